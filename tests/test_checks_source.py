"""`checks:` of a run file: what it may say, and what it says of a slip."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from foundry_pipeline.config.checks_source import CHECKS, CanaryRule, Checks, DuplicatesRule, Rule, Severity
from foundry_pipeline.home import Home, load_home
from tests.home_folder import write_mood_home


def home_with(root: Path, more: str) -> Home:
    return load_home(write_mood_home(root, "http://127.0.0.1:1/", ["a"], more), {})


def checks_of(root: Path, more: str) -> Checks:
    home = home_with(root, more)
    assert home.problems == ()
    return home.runs["notes_mood"].checks


def test_a_run_that_says_nothing_has_every_check_and_none_blocks(tmp_path: Path) -> None:
    checks = checks_of(tmp_path, "")
    assert all(checks.on(name) and not checks.rule(name).blocking for name in CHECKS)


def test_the_limit_of_failed_rows_is_the_runs_own_unless_the_check_has_one(tmp_path: Path) -> None:
    assert checks_of(tmp_path, "max_failed_share: 0.2\n").failed_share.limit == 0.2
    both = "max_failed_share: 0.2\nchecks: {failed_share: {limit: 0.1}}\n"
    assert checks_of(tmp_path, both).failed_share.limit == 0.1
    assert checks_of(tmp_path, "max_failed_share: 0.2\nchecks: {score_drift: warn}\n").failed_share.limit == 0.2


def test_every_setting_of_a_check_is_read(tmp_path: Path) -> None:
    checks = checks_of(
        tmp_path,
        """
checks:
  score_drift: {severity: error, limit: 0.3, blocking: true}
  class_balance: error
  reject_share: {limit: 0.1, reasons: {not_finite: 0}}
  duplicates: {iou: 0.8}
  canary_rows: {rows: [a, b], score_tolerance: 0.02, pixel_tolerance: 3}
""",
    )
    assert checks.score_drift == Rule(Severity.ERROR, 0.3, blocking=True)
    assert checks.class_balance == Rule(Severity.ERROR, 0.2)
    assert (checks.reject_share.limit, checks.reject_share.reasons) == (0.1, {"not_finite": 0.0})
    assert checks.duplicates == DuplicatesRule(Severity.WARN, 0.0, iou=0.8)
    assert checks.canary_rows == CanaryRule(Severity.ERROR, rows=("a", "b"), score_tolerance=0.02, pixel_tolerance=3.0)


@pytest.mark.parametrize("word", ["off", "'off'", "Off", "{severity: off}"])
def test_off_turns_a_check_off_although_yaml_reads_it_as_false(tmp_path: Path, word: str) -> None:
    assert not checks_of(tmp_path, f"checks: {{duplicates: {word}}}\n").on("duplicates")


def test_a_check_that_blocks_is_an_error(tmp_path: Path) -> None:
    assert checks_of(tmp_path, "checks: {score_drift: {blocking: true}}\n").score_drift.severity is Severity.ERROR


@pytest.mark.parametrize(
    ("checks", "path", "message"),
    [
        ("{score_drft: warn}", "$.checks.score_drft", "unknown key 'score_drft' (did you mean 'score_drift'?)"),
        ("{score_drift: {limt: 1}}", "$.checks.score_drift.limt", "(did you mean 'limit'?)"),
        ("{score_drift: wran}", "$.checks.score_drift", "expected one of error, warn, off; got 'wran'"),
        ("{score_drift: {limit: 20}}", "$.checks.score_drift.limit", "expected a number from 0 to 1; got 20"),
        ("{score_drift: {iou: 0.5}}", "$.checks.score_drift.iou", "unknown key 'iou'"),
        (
            "{score_drift: {severity: warn, blocking: true}}",
            "$.checks.score_drift.blocking",
            "only an error blocks: expected `severity: error` beside it; got warn",
        ),
        (
            "{reject_share: {reasons: {not_finit: 0}}}",
            "$.checks.reject_share.reasons.not_finit",
            "there is no reason 'not_finit' (did you mean 'not_finite'?)",
        ),
        ("{canary_rows: {rows: [a, a]}}", "$.checks.canary_rows.rows[1]", "'a' stands twice"),
        ("{canary_rows: {blocking: true}}", "$.checks.canary_rows", "names no rows: expected `rows`"),
        ("{canary_rows: warn}", "$.checks.canary_rows", "names no rows: expected `rows`"),
        ("[score_drift]", "$.checks", "expected a mapping"),
    ],
)
def test_a_slip_is_named_with_its_place(tmp_path: Path, checks: str, path: str, message: str) -> None:
    home = home_with(tmp_path, f"checks: {checks}\n")
    [problem] = home.problems
    assert problem.file == "runs/notes_mood.yaml"
    assert problem.path == path
    assert message in problem.message
    assert "notes_mood" not in home.runs


def test_the_page_about_quality_has_every_check_with_its_limit_and_severity() -> None:
    page = (Path(__file__).parent.parent / "docs/quality.md").read_text()
    rows = re.findall(r"^\| `(\w+)` \| .* \| (.*) \| (\w+) \|$", page, re.MULTILINE)
    said = {name: (float(re.findall(r"[\d.]+", limit)[-1]), severity) for name, limit, severity in rows}
    assert said == {name: (Checks().rule(name).limit, Checks().rule(name).severity.value) for name in CHECKS}


def test_the_example_of_the_page_about_quality_is_read(tmp_path: Path) -> None:
    page = (Path(__file__).parent.parent / "docs/quality.md").read_text()
    [example] = re.findall(r"```yaml\n(.*?)```", page, re.DOTALL)
    checks = checks_of(tmp_path, example)
    assert checks.score_drift.blocking
    assert checks.canary_rows.blocking
    assert not checks.on("duplicates")
