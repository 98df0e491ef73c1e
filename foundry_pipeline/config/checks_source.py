"""`checks:` of a run file -> Checks: which quality checks a run has, how severe each is, and its limit.

What a check measures is in `quality/`; `docs/quality.md` says it to people.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, fields, replace
from enum import StrEnum
from typing import Any, TypeVar

from foundry_pipeline.config.fields import Block, Reader, choice, flag, list_of, near, number, one_of, refuse, text
from foundry_pipeline.config.yaml_source import Findings, Item
from foundry_pipeline.decoding.rejects import REASONS
from foundry_pipeline.errors import shown


class Severity(StrEnum):
    """What it means that a check is over its limit; `off`: there is no such check."""

    ERROR = "error"
    WARN = "warn"
    OFF = "off"


@dataclass(frozen=True, slots=True)
class Rule:
    """How one check judges. It fails where its number is over `limit`, a share or distance from 0 to 1.

    `blocking`: what is made of the checked asset is then not made. Only an error blocks.
    """

    severity: Severity
    limit: float = 0.0
    blocking: bool = False


@dataclass(frozen=True, slots=True)
class RejectsRule(Rule):
    """`reasons` has limits of its own for some reasons: the share of all parts that may be refused for it."""

    reasons: Mapping[str, float] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class DuplicatesRule(Rule):
    """Two boxes of one feature are the same thing from this `iou` on."""

    iou: float = 0.9


@dataclass(frozen=True, slots=True)
class CanaryRule(Rule):
    """`rows` are global keys. Tolerances are absolute, for scores and for pixels."""

    rows: tuple[str, ...] = ()
    score_tolerance: float = 0.01
    pixel_tolerance: float = 1.0


R = TypeVar("R", bound=Rule)

DRIFT = 0.2
"""As a Jensen-Shannon distance: about where a population stability index is 0.25, by custom a shift to act on."""


@dataclass(frozen=True, slots=True)
class Checks:
    """One rule a check; the field's name is the check's. A run file may change each of them.

    `failed_share` over zero and `reject_share` over zero are noted as warnings; `limit` is where they become what
    `severity` says. The limit of `failed_share` is the run's `max_failed_share` where it has none of its own.
    """

    answered_equals_asked: Rule = Rule(Severity.ERROR)
    failed_share: Rule = Rule(Severity.ERROR, 0.05)
    reject_share: RejectsRule = RejectsRule(Severity.ERROR, 0.05)
    scores_in_0_1: Rule = Rule(Severity.ERROR)
    boxes_inside_picture: Rule = Rule(Severity.WARN)
    duplicates: DuplicatesRule = DuplicatesRule(Severity.WARN)
    predictions_per_row: Rule = Rule(Severity.WARN, DRIFT)
    score_drift: Rule = Rule(Severity.WARN, DRIFT)
    class_balance: Rule = Rule(Severity.WARN, DRIFT)
    canary_rows: CanaryRule = CanaryRule(Severity.ERROR)

    def rule(self, check: str) -> Rule:
        """The rule of the check of this name."""
        rule: Rule = getattr(self, check)
        return rule

    def on(self, check: str) -> bool:
        """True where the run has this check."""
        return self.rule(check).severity is not Severity.OFF


CHECKS = tuple(each.name for each in fields(Checks))
"""The names of all checks, in the order data flows."""

_MOST_CANARIES = 1000


def checks(usual: Checks) -> Reader[Checks]:
    """A mapping of checks; the value of one is a mapping of its settings, or its severity. `usual` has the others."""

    def read(item: Item, found: Findings) -> Checks | None:
        block = Block.of(item, found)
        if block is None:
            return None
        given = block.given({name: _rule(usual.rule(name)) for name in CHECKS})
        block.close()
        read = replace(usual, **given)
        _refuse_without_rows(read.canary_rows, block, found)
        return read

    return read


def _refuse_without_rows(rule: CanaryRule, block: Block, found: Findings) -> None:
    """A check of no rows would pass for ever, and be trusted."""
    item = block.item("canary_rows")
    if item is not None and rule.severity is not Severity.OFF and not rule.rows and not found.problems:
        refuse(item, found, "names no rows: expected `rows` with the global keys of data rows")


def _rule(usual: R) -> Reader[R]:
    def read(item: Item, found: Findings) -> R | None:
        if not isinstance(item.value, Mapping):
            severity = _severity(item, found)
            return None if severity is None else replace(usual, severity=severity)
        block = Block.of(item, found)
        assert block is not None
        given = block.given({"severity": _severity, "limit": _share, "blocking": flag, **_more(usual)})
        block.close()
        return _judging(usual, given, block, found)

    return read


def _judging(usual: R, given: dict[str, Any], block: Block, found: Findings) -> R | None:
    """A check that blocks is an error, unless its file says something else and so contradicts itself."""
    if given.get("blocking"):
        severity = given.setdefault("severity", Severity.ERROR)
        item = block.item("blocking")
        if severity is not Severity.ERROR and item is not None:
            refuse(item, found, f"only an error blocks: expected `severity: error` beside it; got {severity.value}")
            return None
    return replace(usual, **given)


def _more(usual: Rule) -> Mapping[str, Reader[Any]]:
    """Settings that this kind of check alone has."""
    if isinstance(usual, RejectsRule):
        return {"reasons": _reasons}
    if isinstance(usual, DuplicatesRule):
        return {"iou": number(above=0, most=1)}
    if isinstance(usual, CanaryRule):
        return {
            "rows": _rows,
            "score_tolerance": _share,
            "pixel_tolerance": number(least=0, most=1_000_000),
        }
    return {}


_share = number(least=0, most=1)


def _severity(item: Item, found: Findings) -> Severity | None:
    """A bare `off` is false in YAML 1.1; what is meant is plain."""
    if item.value is False and item.text.lower() == "off":
        return Severity.OFF
    word = choice([severity.value for severity in Severity])(item, found)
    return None if word is None else Severity(word)


def _rows(item: Item, found: Findings) -> tuple[str, ...] | None:
    keys = list_of(text(4096))(item, found)
    if keys is not None and len(keys) > _MOST_CANARIES:
        refuse(item, found, f"expected at most {_MOST_CANARIES} rows; got {len(keys)}")
        return None
    return keys


def _reasons(item: Item, found: Findings) -> Mapping[str, float] | None:
    if not isinstance(item.value, Mapping):
        refuse(item, found, "expected a mapping (`reason: limit`)")
        return None
    for reason, entry in item.value.items():
        if reason not in REASONS:
            advice = near(reason, REASONS) or f"; there is {one_of(REASONS)}"
            refuse(entry, found, f"there is no reason {shown(reason)}{advice}")
    limits = {reason: _share(entry, found) for reason, entry in item.value.items()}
    return {reason: limit for reason, limit in limits.items() if limit is not None}
