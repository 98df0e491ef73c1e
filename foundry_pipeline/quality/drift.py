"""A table against the last good state of it: whole, slice by slice, and what is new against all there was.

The last good state is one small JSON file a table in the warehouse, `quality/run=<run>/<table>.json`: counts for each
slice, no rows. It is written whole or not at all, whatever becomes of the tables, and only for a state that is
complete and that no check finds wrong.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any

from foundry_pipeline.errors import StorageError
from foundry_pipeline.home import Run
from foundry_pipeline.quality.finding import WORST_ROWS, Finding, Worst, counted, plain
from foundry_pipeline.quality.histogram import Shift
from foundry_pipeline.quality.piece import Piece
from foundry_pipeline.quality.profile import MEASURES, Profile, profile_of
from foundry_pipeline.store import Store
from foundry_pipeline.tables import TableSpec

FORMAT = 1
"""Of the file. Another number is read as no file: then what is there now becomes the last good state."""
MOVERS_SAID = 3

_WORDS = {"predictions_per_row": "predictions per data row", "score_drift": "scores", "class_balance": "classes"}


def quality_folder(run: str) -> str:
    """Where a run's last good states and canaries are, relative to the warehouse."""
    return f"quality/run={run}"


@dataclass(frozen=True, slots=True)
class Baseline:
    """The last good state of a table: when it was seen, and the profile of each slice."""

    seen_at: str
    slices: Mapping[str, Profile]

    def whole(self) -> Profile:
        """All slices together."""
        return _merged(self.slices.values())


def read_baseline(store: Store, run: str, table: str) -> Baseline | None:
    """None where there is none yet. Raises StorageError where the file is damaged."""
    name = f"{quality_folder(run)}/{table}.json"
    content = store.read_file(name)
    if content is None:
        return None
    try:
        body = json.loads(content)
        if body["format"] != FORMAT:
            return None
        return Baseline(body["seen_at"], {key: Profile.from_json(part) for key, part in body["slices"].items()})
    except (ValueError, KeyError, TypeError, AttributeError) as err:
        message = f"{store.root}/{name}: damaged: {err}; `foundry-pipeline accept {run}` takes it away"
        raise StorageError(message) from err


def write_baseline(
    store: Store, run: str, table: str, slices: Mapping[str, Mapping[str, Any]], seen_at: datetime
) -> None:
    """Make this the last good state: each slice's profile as JSON."""
    body: dict[str, Any] = {
        "format": FORMAT,
        "seen_at": seen_at.isoformat(timespec="seconds"),
        "slices": dict(sorted(slices.items())),
    }
    content = json.dumps(body, ensure_ascii=False, separators=(",", ":"))
    store.write_file(f"{quality_folder(run)}/{table}.json", content.encode("utf-8", "surrogatepass"))


def forget(store: Store, run: str) -> list[str]:
    """Take away a run's last good states and its canaries' first answers; the files that there were.

    The next check of the run then has nothing to compare with, and keeps what it finds.
    """
    names = [f"{quality_folder(run)}/{name}" for name in store.file_names(quality_folder(run))]
    for name in names:
        store.remove_file(name)
    return names


@dataclass(frozen=True, slots=True)
class _Compared:
    """Something that was compared with what it was: in words, and how it differs."""

    where: str
    shift: Shift


@dataclass(slots=True)
class Drift:
    """Compares slice by slice; keeps the greatest difference of each measure, and the profiles without their rows."""

    baseline: Baseline | None
    slices: dict[str, Mapping[str, Any]] = field(default_factory=dict)
    """All profiles as JSON: counts, no rows."""
    _known: Profile = field(default_factory=Profile)
    _known_then: Profile = field(default_factory=Profile)
    _new: Profile = field(default_factory=Profile)
    _new_slices: list[str] = field(default_factory=list)
    _worst: dict[str, _Compared] = field(default_factory=dict)

    @classmethod
    def of(cls, run: Run, store: Store, spec: TableSpec) -> Drift:
        """Against the table's last good state."""
        return cls(read_baseline(store, run.name, spec.name))

    def add(self, piece: Piece) -> None:
        """Take in a slice."""
        profile = profile_of(piece)
        self.slices[piece.slice_key] = profile.as_json()
        then = self.baseline.slices.get(piece.slice_key) if self.baseline is not None else None
        if then is None:
            self._new.merge(profile)
            self._new_slices.append(piece.slice_key)
            return
        self._known.merge(profile)
        self._known_then.merge(then)
        for measure in MEASURES:
            self._note(measure, _Compared(f"slice {piece.slice_key}", profile.shift(measure, then)))

    def _note(self, measure: str, compared: _Compared) -> None:
        worst = self._worst.get(measure)
        if worst is None or compared.shift.telling > worst.shift.telling:
            self._worst[measure] = compared

    def findings(self, run: Run) -> Iterator[Finding]:
        """One a measure. The number is the greatest distance that chance does not explain."""
        for measure in MEASURES:
            if self.baseline is None:
                words = "no earlier good state to compare with; this one is it, once it is complete and good"
                yield Finding(measure, run.checks.rule(measure), 0.0, words)
            else:
                yield self._finding(run, measure, self.baseline)

    def _finding(self, run: Run, measure: str, baseline: Baseline) -> Finding:
        places = self._places(measure, baseline)
        worst = max(places, key=lambda compared: compared.shift.telling)
        number = worst.shift.telling
        whole = places[0].shift
        words = f"{_WORDS[measure]} as on {baseline.seen_at}: the distance is {whole.distance:.3f}"
        if number:
            words = (
                f"{_WORDS[measure]} of {worst.where} are {number:.3f} away from those of {baseline.seen_at}: "
                f"{_moves(worst.shift)}"
            )
        facts = {
            "distance_of_whole_run": whole.distance,
            "where": worst.where if number else "",
            "last_good": baseline.seen_at,
            "then_and_now": {plain(label): [round(then, 4), round(now, 4)] for label, then, now in whole.movers()[:20]},
        }
        over = number > run.checks.rule(measure).limit
        return Finding(measure, run.checks.rule(measure), number, words, _risen(worst.shift) if over else (), facts)

    def _places(self, measure: str, baseline: Baseline) -> list[_Compared]:
        """The slices that there were, together; those that are new; the worst single one."""
        places = [_Compared(f"all {counted(self._known.rows, 'row')}", self._known.shift(measure, self._known_then))]
        if self._new_slices:
            words = f"{counted(len(self._new_slices), 'new slice')} from {self._new_slices[0]}"
            places.append(_Compared(words, self._new.shift(measure, baseline.whole())))
        return [*places, *([self._worst[measure]] if measure in self._worst else [])]


def _moves(shift: Shift) -> str:
    return ", ".join(f"{plain(label)} {then:.1%} -> {now:.1%}" for label, then, now in shift.movers()[:MOVERS_SAID])


def _risen(shift: Shift) -> tuple[Worst, ...]:
    """Data rows of the bins that grew most: what is gone has none to show."""
    rows: dict[str, str] = {}
    for label, then, now in shift.movers():
        for key in shift.now.examples.get(label, ()) if now > then else ():
            rows.setdefault(key, f"{plain(label)}: {then:.1%} -> {now:.1%}")
    return tuple(Worst(key, why) for key, why in rows.items())[:WORST_ROWS]


def _merged(profiles: Iterable[Profile]) -> Profile:
    whole = Profile()
    for profile in profiles:
        whole.merge(profile)
    return whole
