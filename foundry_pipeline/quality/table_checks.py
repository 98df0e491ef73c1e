"""All checks of one prediction table in one pass over it, and what is kept when it is good."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import datetime
from typing import Protocol

from foundry_pipeline.home import Run
from foundry_pipeline.quality.canaries import CANARIES, Canaries, keep_canaries
from foundry_pipeline.quality.drift import Drift, write_baseline
from foundry_pipeline.quality.duplicates import DUPLICATES, Duplicates
from foundry_pipeline.quality.finding import Finding
from foundry_pipeline.quality.numbers import INSIDE, SCORES, Outside, Scores
from foundry_pipeline.quality.piece import GEOMETRY, Piece, pieces
from foundry_pipeline.quality.profile import MEASURES
from foundry_pipeline.store import Store
from foundry_pipeline.tables import BOXES, DATA_ROWS, TableSpec


class _Look(Protocol):
    """Something that looks at every slice of a table and then has a finding."""

    def add(self, piece: Piece) -> None:
        """Take in a slice."""

    def finding(self) -> Finding:
        """Over all slices."""


def table_checks(run: Run, spec: TableSpec) -> tuple[str, ...]:
    """The checks that a run has of one of its prediction tables, in their order."""
    names = [SCORES, *([INSIDE] if spec is BOXES else []), *([DUPLICATES] if spec.name in GEOMETRY else []), *MEASURES]
    named = [*names, *([CANARIES] if run.checks.canary_rows.rows else [])]
    return tuple(name for name in named if run.checks.on(name))


def check_table(run: Run, store: Store, spec: TableSpec, now: datetime) -> dict[str, Finding]:
    """Check name -> finding, of every check that the run has of this table.

    Where every slice of the dataset has the table and nothing is wrong with it, it becomes what later ones are compared
    with; first answers of canary rows are kept where nothing is an error. Raises StorageError where a file is damaged
    or cannot be written.
    """
    names = table_checks(run, spec)
    if not names:
        return {}
    complete = set(store.slices(spec, run.name)) >= set(store.slices(DATA_ROWS, run.dataset.name))
    looks, drift = list(_looks(run, names)), Drift.of(run, store, spec)
    canaries = Canaries.of(run, store, spec, complete=complete)
    for piece in pieces(run, store, spec, canaries.rule.rows if CANARIES in names else ()):
        for look in looks:
            look.add(piece)
        drift.add(piece)
        canaries.add(piece)
    found = [*(look.finding() for look in looks), *drift.findings(run), canaries.finding()]
    findings = {finding.check: finding for finding in found if finding.check in names}
    if complete and _is_good(findings):
        write_baseline(store, run.name, spec.name, drift.slices, now)
    if CANARIES in names and not any(finding.is_error for finding in findings.values()):
        keep_canaries(store, run.name, spec.name, canaries)
    return findings


def _is_good(findings: dict[str, Finding]) -> bool:
    """True where no error was found, and nothing that moved away from the last good state."""
    moved = any(findings[measure].over for measure in MEASURES if measure in findings)
    return not moved and not any(finding.is_error for finding in findings.values())


def _looks(run: Run, names: tuple[str, ...]) -> Iterator[_Look]:
    rules = run.checks
    if SCORES in names:
        yield Scores(rules.scores_in_0_1)
    if INSIDE in names:
        yield Outside(rules.boxes_inside_picture)
    if DUPLICATES in names:
        yield Duplicates(rules.duplicates)
