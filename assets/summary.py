"""What became of a run, in words for people: rows, calls, predictions, what failed, where things are."""

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

from assets.keys import decoded_tables
from assets.outcomes import ALL_SLICES
from assets.stops import Totals
from assets.work import Result
from foundry_pipeline.calls.budget import Cost
from foundry_pipeline.evaluation.evaluate import WHOLE_RUN
from foundry_pipeline.evaluation.report import report_name
from foundry_pipeline.home import Run
from foundry_pipeline.quality.audit import Answers, audit_answers, total_rows
from foundry_pipeline.rows.datasets import DatasetReport
from foundry_pipeline.store import Store
from foundry_pipeline.tables import METRICS, REJECTS, RESPONSES

LINES_SHOWN = 20


@dataclass(slots=True)
class Summary:
    """One run: counts of this command's calls, and what failed."""

    run: Run
    calls: int = 0
    reused: int = 0
    repeated: int = 0
    cost: Cost | None = None
    totals: Totals = field(default_factory=Totals)
    """Of the slices that were called for: how far they came, and what stopped them."""
    failures: dict[str, str] = field(default_factory=dict)
    """A slice, or a word for what is not about one slice -> why."""
    checks: dict[str, str] = field(default_factory=dict)
    """A check that is over its limit -> its words."""

    def note(self, results: Sequence[Result], what: str) -> None:
        """Keep the failures of a phase, and the latest word of each check."""
        for result in results:
            self.checks |= result.checks
            for slice_key, why in result.failures.items():
                self.failures.setdefault(what if slice_key == ALL_SLICES else f"slice {slice_key}", why)

    def lines(self, store: Store) -> Iterator[str]:
        """To be printed. Counts are of all that is in the warehouse, whoever called for it."""
        run, answers = self.run, audit_answers(self.run, store)
        yield f"{run.name}: {_rows_in_words(answers, self.totals.empty)}; {self._calls_in_words(answers)}"
        if self.totals.stop is not None:
            yield f"  stopped: {self.totals.stop_in_words()}"
        yield from _reasons(run, store)
        for spec in decoded_tables(run):
            if not store.slices(spec, run.name):
                continue
            yield f"  {total_rows(run, store, spec):>9,} {spec.name:<16} {store.uri(spec, run.name)}"
        for format_name in run.exports:
            folder = f"annotations/run={run.name}/{format_name}"
            if store.file_names(folder):
                yield f"  {format_name:>9} {'annotations':<16} {store.root}/{folder}"
        yield from _evaluation(run, store)
        yield from (f"  check {name}: {words}" for name, words in sorted(self.checks.items()))
        yield from self._failures_in_words()

    def _failures_in_words(self) -> Iterator[str]:
        """A line for each reason, with all that has it; what stopped the run has been said."""
        places: dict[str, list[str]] = {}
        for place, why in sorted(self.failures.items()):
            is_stop = self.totals.stop is not None and why.startswith(self.totals.stop)
            places.setdefault("not done" if is_stop else f"failed: {why}", []).append(place)
        yield from _some([f"  {_joined(some)} {why}" for why, some in places.items()], len(places))

    def _calls_in_words(self, answers: Answers) -> str:
        if not self.calls and not self.failures and self.reused == answers.outcomes.total():
            return "0 calls: every row had its answer"
        again = f", {counted(self.repeated, 'call')} repeated" if self.repeated else ""
        cost = f"; {self.cost}" if self.cost is not None else ""
        return f"{counted(self.calls, 'call')}, {counted(self.reused, 'answer')} reused{again}{cost}"


def _evaluation(run: Run, store: Store) -> Iterator[str]:
    """The first figure of each table that was compared with ground truth, and where the report is."""
    metrics = store.read(METRICS, run.name, WHOLE_RUN)
    if run.dataset.ground_truth and metrics is not None:
        first: dict[str, str] = {}
        for measure in metrics.to_pylist():
            if measure["value"] is not None:
                first.setdefault(measure["table"], f"{measure['metric']} {measure['value']:.3f}")
        figures = ", ".join(f"{table} {figure}" for table, figure in first.items()) or "nothing to compare"
        yield f"  {'':>9} {'evaluation':<16} {store.root}/{report_name(run.name)} ({figures})"


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


def _joined(places: Sequence[str]) -> str:
    """`slice 00003`, or `slice 00003 and 27 more`"""
    return places[0] if len(places) == 1 else f"{places[0]} and {len(places) - 1:,} more"


def _rows_in_words(answers: Answers, empty: int) -> str:
    found_nothing = {"ok": f" with {empty:,} empty"} if empty else {}
    parts = [
        f"{count:,} {outcome.replace('_', ' ')}{found_nothing.get(outcome, '')}"
        for outcome, count in sorted(answers.outcomes.items())
    ]
    calls = answers.outcomes.total()
    more = f" in {counted(calls, 'call')}" if calls > answers.rows else ""
    return f"{counted(answers.rows, 'data row')}{more} ({', '.join(parts) or 'none answered'})"


def _some(lines: Sequence[str], total: int) -> Iterator[str]:
    yield from lines[:LINES_SHOWN]
    if total > LINES_SHOWN:
        yield f"  and {total - LINES_SHOWN:,} more"
