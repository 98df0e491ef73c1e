"""Runs on one dataset side by side: their headline measures, and the data rows where they disagree most.

Reads the tables that `evaluate.py` wrote; a run that was not evaluated yet is left out.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from foundry_pipeline.store import Store
from foundry_pipeline.tables import MATCHES, METRICS

HEADLINES = frozenset(
    {"AP", "AP50", "AR_100", "f1", "strict_f1", "partial_f1", "accuracy", "macro_f1", "exact_match", "likeness"}
)
PER_QUESTION = frozenset({"classifications", "texts"})


@dataclass(frozen=True, slots=True)
class Line:
    """One measure, with its value in each run that has it."""

    table: str
    feature: str
    metric: str
    values: tuple[float | None, ...]


@dataclass(frozen=True, slots=True)
class Disagreement:
    """A data row and, for each run, how many of its things were right and how many were not."""

    global_key: str
    right: tuple[int, ...]
    faults: tuple[int, ...]

    @property
    def spread(self) -> int:
        """How far the runs are apart here."""
        return max(self.faults) - min(self.faults) + max(self.right) - min(self.right)


@dataclass(frozen=True, slots=True)
class Comparison:
    """Several runs on one dataset. `runs` names the columns of everything else."""

    runs: tuple[str, ...]
    lines: tuple[Line, ...]
    disagreements: tuple[Disagreement, ...]


def compare_runs(store: Store, dataset: str, runs: Sequence[str], most_rows: int = 20) -> Comparison:
    """The evaluated ones among `runs`, in their order, and at most `most_rows` disagreements, worst first."""
    values: defaultdict[tuple[str, str, str], dict[str, float | None]] = defaultdict(dict)
    evaluated = [run for run in runs if _read_metrics(store, dataset, run, values)]
    lines = [Line(*key, tuple(of.get(run) for run in evaluated)) for key, of in values.items()]
    counts = [_verdict_counts(store, run) for run in evaluated]
    return Comparison(tuple(evaluated), tuple(lines), tuple(_disagreements(counts)[:most_rows]))


def _read_metrics(
    store: Store, dataset: str, run: str, values: defaultdict[tuple[str, str, str], dict[str, float | None]]
) -> bool:
    found = False
    for _, table in store.read_all(METRICS, run):
        for record in table.to_pylist():
            found = found or record["dataset"] == dataset
            of_all = not record["feature"] or record["table"] in PER_QUESTION
            if record["dataset"] == dataset and record["metric"] in HEADLINES and of_all and not record["answer"]:
                values[record["table"], record["feature"], record["metric"]][run] = record["value"]
    return found


def _verdict_counts(store: Store, run: str) -> dict[str, Counter[bool]]:
    """Global key -> how many verdicts are a match (True), and how many are not (False)."""
    counts: defaultdict[str, Counter[bool]] = defaultdict(Counter)
    for _, table in store.read_all(MATCHES, run, ["global_key", "verdict"]):
        for key, verdict in zip(*(column.to_pylist() for column in table.columns), strict=True):
            counts[key][verdict == "match"] += 1
    return counts


def _disagreements(counts: Sequence[dict[str, Counter[bool]]]) -> list[Disagreement]:
    keys: Iterable[str] = sorted(set().union(*counts)) if len(counts) > 1 else ()
    rows = [
        Disagreement(
            key,
            tuple(of.get(key, Counter())[True] for of in counts),
            tuple(of.get(key, Counter())[False] for of in counts),
        )
        for key in keys
    ]
    return sorted((row for row in rows if row.spread), key=lambda row: -row.spread)
