"""Checks that block, in real materializations: one Dagster run, runs of their own, and the command."""

import io
from collections.abc import Iterator
from pathlib import Path

import dagster as dg
import pytest

from assets.keys import annotations_key, decoded_keys, responses_key
from assets.materialize import materialize
from foundry_pipeline.cli import main
from foundry_pipeline.store import Store
from foundry_pipeline.tables import CLASSIFICATIONS, RESPONSES
from resources import places_of
from tests.fake_model import FakeModel, Reply
from tests.home_folder import mood_of, write_mood_home
from tests.place import Place

TEXTS = ["nice", "bad", "fine", "well"]
SLICES = ("00000", "00001")
CANARY = "exports: [labelbox]\nchecks: {canary_rows: {rows: [n0], blocking: true}}\n"
FAILURES = "max_failed_share: 1\nexports: [labelbox]\nchecks: {failed_share: {limit: 0.1, blocking: true}}\n"


@pytest.fixture
def place(tmp_path: Path) -> Iterator[Place]:
    with FakeModel(mood_of) as model, dg.DagsterInstance.ephemeral() as instance:
        yield Place(tmp_path, model, instance)


def load(place: Place, texts: list[str], more: str) -> None:
    write_mood_home(place.root, place.model.url, texts, more)
    assert place.execute("notes_data_rows").success


def exports(root: Path) -> Path:
    return root / "warehouse/annotations/run=notes_mood/labelbox/manifest.json"


def turn(model: FakeModel) -> None:
    """From now on every text sounds bad."""
    model.answer = lambda _: Reply({"mood": "bad"})


def failure_of(result: dg.ExecuteInProcessResult) -> str:
    [failure] = result.filter_events(lambda event: event.is_step_failure)
    data = failure.step_failure_data.user_failure_data
    return str(data.description) if data else str(failure.step_failure_data.error)


def test_a_blocking_check_of_responses_stops_tables_and_exports_in_the_same_run(place: Place) -> None:
    load(place, ["nice", "broken", "fine", "well"], FAILURES)
    result = place.execute("notes_mood", None, SLICES)
    assert [event.step_key for event in result.filter_events(lambda event: event.is_step_failure)] == [
        "notes_mood__responses_checks"
    ]
    assert place.store.slices(RESPONSES, "notes_mood") == list(SLICES)
    assert place.store.slices(CLASSIFICATIONS, "notes_mood") == []
    assert not exports(place.root).exists()


def test_a_blocking_check_stops_tables_and_exports_that_are_asked_for_later(place: Place) -> None:
    """As a backfill asks: each layer in a run of its own."""
    load(place, ["nice", "broken", "fine", "well"], FAILURES)
    place.execute("notes_mood", [responses_key("notes_mood")], SLICES)
    tables = place.execute("notes_mood", decoded_keys(place.run()), SLICES)
    assert not tables.success
    assert "held back: the check failed_share of notes_mood/responses failed: 1 of 4 rows failed" in failure_of(tables)
    assert place.store.slices(CLASSIFICATIONS, "notes_mood") == []
    assert "held back" in failure_of(place.execute("notes_mood", [annotations_key("notes_mood")]))


def test_what_was_held_back_is_made_once_the_check_is_content(place: Place) -> None:
    load(place, ["nice", "broken", "fine", "well"], FAILURES)
    place.execute("notes_mood", None, SLICES)
    place.model.answer = lambda _: Reply({"mood": "good"})
    assert place.execute("notes_mood", None, SLICES).success
    assert exports(place.root).exists()


def test_the_same_check_lets_all_be_made_where_it_does_not_block(place: Place) -> None:
    load(place, ["nice", "broken", "fine", "well"], FAILURES.replace(", blocking: true", ""))
    result = place.execute("notes_mood", None, SLICES)
    assert result.success
    [found] = [one for one in result.get_asset_check_evaluations() if one.check_name == "failed_share"]
    assert (found.passed, found.severity) == (False, dg.AssetCheckSeverity.ERROR)
    assert exports(place.root).exists()


def test_a_changed_canary_stops_the_exports_and_keeps_the_older_ones(place: Place) -> None:
    load(place, TEXTS, CANARY)
    assert place.execute("notes_mood", None, SLICES).success
    before = exports(place.root).read_bytes()
    turn(place.model)
    result = place.execute("notes_mood", None, SLICES, config={"refresh": True})
    assert not result.success
    [found] = [one for one in result.get_asset_check_evaluations() if one.check_name == "canary_rows"]
    assert not found.passed
    assert "| n0 | 1 of 1 prediction gone, 1 new |" in str(found.metadata["worst_rows"].value)
    assert exports(place.root).read_bytes() == before
    tables = place.store.read(CLASSIFICATIONS, "notes_mood", "00000", ["answer"])
    assert tables is not None
    assert tables["answer"].to_pylist() == ["bad", "bad"]


def test_an_accepted_change_is_the_new_answer(place: Place, capsys: pytest.CaptureFixture[str]) -> None:
    load(place, TEXTS, CANARY)
    place.execute("notes_mood", None, SLICES)
    turn(place.model)
    assert not place.execute("notes_mood", None, SLICES, config={"refresh": True}).success
    assert main(["accept", "notes_mood", "--home", str(place.root)]) == 0
    assert "quality/run=notes_mood/classifications.canaries.json" in capsys.readouterr().out
    assert place.execute("notes_mood", None, SLICES).success
    assert place.execute("notes_mood", None, SLICES, config={"refresh": True}).success
    assert main(["accept", "nobody", "--home", str(place.root)]) == 1


def test_the_command_says_what_a_check_holds_back_and_fails(tmp_path: Path) -> None:
    with FakeModel(mood_of) as model:
        write_mood_home(tmp_path, model.url, ["nice", "broken", "fine", "well"], FAILURES)
        out, err = io.StringIO(), io.StringIO()
        code = materialize(places_of({}, tmp_path), (), environ={}, out=out, err=err)
    said = out.getvalue()
    assert code == 1
    assert "check responses/failed_share: error: 1 of 4 rows failed (25.0%): http_500 1. They are" in said
    assert "held back" in said
    assert "dagster._core" not in said
    assert Store(tmp_path / "warehouse").slices(CLASSIFICATIONS, "notes_mood") == []


def test_the_command_shows_a_check_over_its_limit_that_holds_nothing_back(tmp_path: Path) -> None:
    with FakeModel(lambda _: Reply({"mood": "other"})) as model:
        more = "checks: {reject_share: warn}\n"
        write_mood_home(tmp_path, model.url, TEXTS, more)
        out = io.StringIO()
        assert materialize(places_of({}, tmp_path), (), environ={}, out=out, err=io.StringIO()) == 0
    assert "check rejects/reject_share: warning: 4 of 4 parts refused (100.0%)" in out.getvalue()
