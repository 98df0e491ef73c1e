"""Who wants to hear of a step while it works: nobody in the UI, whose log has its own lines; the command line's bar."""

from __future__ import annotations

from foundry_pipeline.invoke import Progress, SliceReport
from foundry_pipeline.rows.datasets import DatasetReport, LoadProgress


class Listener:
    """Hears nothing. A subclass overrides what it wants to hear; it is called in the step's thread."""

    def on_load(self, progress: LoadProgress) -> None:
        """A few times a second while a dataset is loaded."""

    def on_loaded(self, report: DatasetReport) -> None:
        """Once, when a dataset is loaded."""

    def on_calls(self, progress: Progress) -> None:
        """A few times a second while a run's slices are called."""

    def on_slice(self, run: str, report: SliceReport) -> None:
        """Once for every slice, as it finishes or fails."""

    def on_decoded(self, run: str, slice_key: str) -> None:
        """Once for every slice, as its tables are written."""
