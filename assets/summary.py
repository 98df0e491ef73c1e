"""What became of a run, in words for people: rows, calls, predictions, what failed, where things are."""

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

from assets.audit import Answers, audit_answers, total_rows
from assets.keys import decoded_tables
from assets.work import ALL_SLICES, Result
from foundry_pipeline.home import Run
from foundry_pipeline.rows.datasets import DatasetReport
from foundry_pipeline.store import Store
from foundry_pipeline.tables import REJECTS, RESPONSES

LINES_SHOWN = 20


@dataclass(slots=True)
class Summary:
    """One run: counts of this command's calls, and what failed."""

    run: Run
    calls: int = 0
    reused: int = 0
    repeated: int = 0
    failures: dict[str, str] = field(default_factory=dict)
    """A slice, or a word for what is not about one slice -> why."""

    def note(self, results: Sequence[Result], what: str) -> None:
        """Keep the failures of a phase."""
        for result in results:
            for slice_key, why in result.failures.items():
                self.failures.setdefault(what if slice_key == ALL_SLICES else f"slice {slice_key}", why)

    def lines(self, store: Store) -> Iterator[str]:
        """To be printed. Counts are of all that is in the warehouse, whoever called for it."""
        run, answers = self.run, audit_answers(self.run, store)
        yield f"{run.name}: {_rows_in_words(answers)}; {self._calls_in_words(answers)}"
        yield from _reasons(run, store)
        for spec in decoded_tables(run):
            if not store.slices(spec, run.name):
                continue
            yield f"  {total_rows(run, store, spec):>9,} {spec.name:<16} {store.uri(spec, run.name)}"
        for format_name in run.exports:
            folder = f"annotations/run={run.name}/{format_name}"
            if store.file_names(folder):
                yield f"  {format_name:>9} {'annotations':<16} {store.root}/{folder}"
        yield from _some([f"  {place} failed: {why}" for place, why in self.failures.items()], len(self.failures))

    def _calls_in_words(self, answers: Answers) -> str:
        if not self.calls and not self.failures and self.reused == answers.outcomes.total():
            return "0 calls: every row had its answer"
        again = f", {counted(self.repeated, 'call')} repeated" if self.repeated else ""
        return f"{counted(self.calls, 'call')}, {counted(self.reused, 'answer')} reused{again}"


def _reasons(run: Run, store: Store) -> Iterator[str]:
    """Why rows have no answer, and why parts of replies were refused: the most frequent reasons."""
    errors: Counter[str] = Counter()
    for _, table in store.read_all(RESPONSES, run.name, ["error"]):
        errors.update(table["error"].drop_null().to_pylist())
    if errors:
        again = "; rows that the model refused are asked again with --retry rejected"
        yield f"  without an answer: {_most_frequent(errors)}{again if _refused(run, store) else ''}"
    rejects: Counter[str] = Counter()
    for _, table in store.read_all(REJECTS, run.name, ["reason"]):
        rejects.update(table["reason"].to_pylist())
    if rejects:
        yield f"  refused parts of replies: {_most_frequent(rejects)}; see foundry-pipeline doctor {run.name}"


def _refused(run: Run, store: Store) -> bool:
    return bool(audit_answers(run, store).outcomes["rejected_by_model"])


def _most_frequent(counts: Counter[str]) -> str:
    return ", ".join(f"{word} {count:,}" for word, count in counts.most_common(3))


def load_lines(report: DatasetReport) -> Iterator[str]:
    """What a load found."""
    yield f"{report.dataset}: {counted(report.rows, 'data row')} in {counted(len(report.slices), 'slice')}"
    yield from _some([f"  {p.place}: {p.code}: {p.message}" for p in report.problems], report.problem_count)


def counted(number: int, word: str) -> str:
    """`1 slice`, `2,000 slices`"""
    return f"{number:,} {word}" if number == 1 else f"{number:,} {word}s"


def _rows_in_words(answers: Answers) -> str:
    parts = [f"{count:,} {outcome.replace('_', ' ')}" for outcome, count in sorted(answers.outcomes.items())]
    calls = answers.outcomes.total()
    more = f" in {counted(calls, 'call')}" if calls > answers.rows else ""
    return f"{counted(answers.rows, 'data row')}{more} ({', '.join(parts) or 'none answered'})"


def _some(lines: Sequence[str], total: int) -> Iterator[str]:
    yield from lines[:LINES_SHOWN]
    if total > LINES_SHOWN:
        yield f"  and {total - LINES_SHOWN:,} more"
