"""A run that stopped, in words: why, how many rows have their answer, how many are left. Sums over slices."""

from dataclasses import dataclass

from foundry_pipeline.invoke import SliceReport


@dataclass(slots=True)
class Totals:
    """Of slices that were worked on: data rows, and those of them that have their answer. `stop` is why it ended."""

    rows: int = 0
    answered: int = 0
    empty: int = 0
    stop: str | None = None

    def add(self, report: SliceReport) -> None:
        """Take a slice in."""
        self.rows += report.rows
        self.answered += report.answered
        self.empty += report.empty
        self.stop = self.stop or report.stop

    def stop_in_words(self) -> str:
        """Empty where nothing stopped."""
        if self.stop is None:
            return ""
        return (
            f"{self.stop}. {self.answered:,} of {self.rows:,} rows have their answer and keep it: run again to go on "
            f"with the {self.rows - self.answered:,} that are left"
        )
