"""The assets at work: a real Invoker and a real endpoint on 127.0.0.1, Dagster's instance in memory."""

import json
from collections.abc import Iterator
from pathlib import Path

import dagster as dg
import pytest

from assets.keys import annotations_key, decoded_keys, responses_key
from assets.partitions import registered_slices
from foundry_pipeline.tables import CLASSIFICATIONS, RESPONSES
from tests.fake_model import FakeModel, Reply
from tests.home_folder import (
    boxes_of,
    mood_of,
    write_box_model,
    write_mood_home,
    write_pictures,
    write_run,
    write_texts,
)
from tests.place import Place, last_materialization


@pytest.fixture
def place(tmp_path: Path) -> Iterator[Place]:
    with FakeModel(mood_of) as model, dg.DagsterInstance.ephemeral() as instance:
        yield Place(tmp_path, model, instance)


@pytest.fixture
def loaded(place: Place) -> Place:
    """Three slices; the second holds a row that the endpoint fails at."""
    write_mood_home(place.root, place.model.url, ["nice", "bad", "broken", "fine", "well"])
    assert place.execute("notes_data_rows").success
    return place


ALL = ("00000", "00001", "00002")


def heal(place: Place) -> None:
    """From now on the endpoint answers everything."""
    place.model.answer = lambda _: Reply({"mood": "good"})


def test_a_dataset_registers_its_slices_and_says_what_it_found(place: Place) -> None:
    write_mood_home(place.root, place.model.url, ["a", "b", "c"])
    result = place.execute("notes_data_rows")
    assert list(registered_slices(place.instance, "notes")) == ["00000", "00001"]
    metadata = last_materialization(place, dg.AssetKey(["notes", "data_rows"]), None).metadata
    assert metadata["dagster/row_count"].value == 3
    assert metadata["changed_slices"].value == "00000-00001"
    assert metadata["problems"].value == "none"
    assert [check.passed for check in result.get_asset_check_evaluations()] == [True]


def test_rows_that_cannot_be_loaded_are_named_and_the_others_loaded(place: Place) -> None:
    write_mood_home(place.root, place.model.url, ["a", "b"])
    with (place.root / "texts/notes.ndjson").open("a") as file:
        file.write(json.dumps({"row_data": "again", "global_key": "n0"}) + "\n")
    result = place.execute("notes_data_rows")
    assert result.success
    metadata = last_materialization(place, dg.AssetKey(["notes", "data_rows"]), None).metadata
    assert metadata["problem_codes"].value == {"duplicate_key": 1}
    assert "n0" in str(metadata["problems"].value)
    assert [check.passed for check in result.get_asset_check_evaluations()] == [False]


def test_a_slice_that_fails_fails_alone(loaded: Place) -> None:
    run = loaded.run()
    result = loaded.execute("notes_mood", [responses_key("notes_mood")], ALL)
    assert not result.success
    assert loaded.statuses(responses_key("notes_mood"), run) == {
        "00000": "MATERIALIZED",
        "00001": "FAILED",
        "00002": "MATERIALIZED",
    }
    assert loaded.store.slices(RESPONSES, "notes_mood") == ["00000", "00002"]


def test_a_failed_step_says_which_slice_and_why(loaded: Place) -> None:
    result = loaded.execute("notes_mood", [responses_key("notes_mood")], ALL)
    [failure] = result.filter_events(lambda event: event.is_step_failure)
    data = failure.step_failure_data.user_failure_data
    assert data is not None
    assert list(data.metadata["failures"].value) == ["00001"]  # type: ignore[call-overload]
    assert "1 of 2 rows failed" in data.description


def test_tables_of_good_slices_are_made_although_another_failed(loaded: Place) -> None:
    run = loaded.run()
    loaded.execute("notes_mood", [responses_key("notes_mood")], ALL)
    result = loaded.execute("notes_mood", decoded_keys(run), ALL)
    assert not result.success
    assert loaded.statuses(decoded_keys(run)[0], run) == {
        "00000": "MATERIALIZED",
        "00001": "FAILED",
        "00002": "MATERIALIZED",
    }
    assert loaded.store.slices(CLASSIFICATIONS, "notes_mood") == ["00000", "00002"]


def test_the_whole_job_runs_on_a_range_of_slices_and_calls_once_for_each_row(loaded: Place) -> None:
    heal(loaded)
    assert loaded.execute("notes_mood", None, ALL).success
    assert loaded.execute("notes_mood", None, ALL).success
    assert len(loaded.model.requests) == 5
    assert (loaded.root / "warehouse/annotations/run=notes_mood/labelbox/manifest.json").exists()
    assert last_materialization(loaded, annotations_key("notes_mood"), None).metadata["labelbox_data_rows"].value == 5


def test_a_retry_of_the_failed_slice_calls_only_for_what_has_no_answer(loaded: Place) -> None:
    loaded.execute("notes_mood", [responses_key("notes_mood")], ALL)
    before = len(loaded.model.requests)
    heal(loaded)
    assert loaded.execute("notes_mood", [responses_key("notes_mood")], ("00001",)).success
    assert [request.text for request in loaded.model.requests[before:]] == ["broken"]


def test_refresh_calls_for_every_row_again(loaded: Place) -> None:
    heal(loaded)
    loaded.execute("notes_mood", [responses_key("notes_mood")], ("00000",))
    loaded.execute("notes_mood", [responses_key("notes_mood")], ("00000",), {"refresh": True})
    assert len(loaded.model.requests) == 4


def test_a_refusal_is_asked_again_only_when_wanted(place: Place) -> None:
    write_mood_home(place.root, place.model.url, ["refused", "fine"])
    place.execute("notes_data_rows")
    for retry, requests in (("failed", 2), ("failed", 2), ("none", 2), ("rejected", 3)):
        assert place.execute("notes_mood", [responses_key("notes_mood")], ("00000",), {"retry": retry}).success
        assert len(place.model.requests) == requests


def test_a_word_that_is_no_kind_of_retry_is_refused_before_anything_runs(loaded: Place) -> None:
    with pytest.raises(dg.DagsterInvalidConfigError, match="retry"):
        loaded.execute("notes_mood", [responses_key("notes_mood")], ("00000",), {"retry": "everything"})


def test_every_slice_has_its_own_counts(place: Place) -> None:
    write_mood_home(place.root, place.model.url, ["nice", "refused", "fine"])
    place.execute("notes_data_rows")
    assert place.execute("notes_mood", None, ("00000", "00001")).success
    first = last_materialization(place, responses_key("notes_mood"), "00000").metadata
    second = last_materialization(place, responses_key("notes_mood"), "00001").metadata
    assert (first["dagster/partition_row_count"].value, second["dagster/partition_row_count"].value) == (2, 1)
    assert (first["ok"].value, first["rejected_by_model"].value, first["calls"].value) == (1, 1, 2)
    assert first["allowed_per_second"].value == 1000.0
    assert {"latency_ms_p50", "latency_ms_p95", "latency_ms_p99", "latency_ms_max"} <= set(second)
    assert "n1" in str(first["rows_without_answer"].value)
    assert "rows_without_answer" not in second


def test_a_slice_materialized_alone_twice_keeps_its_data_version(loaded: Place) -> None:
    versions = []
    for _ in range(2):
        loaded.execute("notes_mood", [responses_key("notes_mood")], ("00000",))
        tags = last_materialization(loaded, responses_key("notes_mood"), "00000").tags or {}
        versions.append(tags["dagster/data_version"])
    record = loaded.store.record("notes_mood", "00000", "responses")
    assert record is not None
    assert versions == [record["sha256"]] * 2


def test_a_slice_that_finished_beside_a_failed_one_is_not_stale(loaded: Place) -> None:
    loaded.execute("notes_mood", [responses_key("notes_mood")], ALL)
    tags = last_materialization(loaded, responses_key("notes_mood"), "00000").tags or {}
    loaded.execute("notes_mood", [responses_key("notes_mood")], ("00000",))
    alone = last_materialization(loaded, responses_key("notes_mood"), "00000").tags or {}
    assert tags == alone


def test_F123_a_slice_costs_few_events(place: Place) -> None:
    """Two runs that differ by ten slices differ by the events of ten slices."""
    write_mood_home(place.root, place.model.url, ["a"] * 24)
    place.execute("notes_data_rows")
    known = tuple(registered_slices(place.instance, "notes"))
    few = place.execute("notes_mood", None, known[:2])
    many = place.execute("notes_mood", None, known[:12])
    difference = len(place.instance.all_logs(many.run_id)) - len(place.instance.all_logs(few.run_id))
    assert difference <= 10 * 20
    materializations = many.filter_events(lambda event: event.is_step_materialization)
    sizes = [len(dg.serialize_value(event.step_materialization_data.materialization)) for event in materializations]
    assert max(sizes) < 4096


def test_only_the_tables_that_were_asked_for_are_reported(loaded: Place) -> None:
    heal(loaded)
    loaded.execute("notes_mood", [responses_key("notes_mood")], ALL)
    rejects = dg.AssetKey(["notes_mood", "rejects"])
    result = loaded.execute("notes_mood", [rejects], ALL)
    events = result.filter_events(lambda event: event.is_step_materialization)
    assert {event.asset_key for event in events} == {rejects}
    assert loaded.store.slices(CLASSIFICATIONS, "notes_mood") == list(ALL)


def test_a_run_on_pictures_shows_one_small_picture(place: Place) -> None:
    place.model.answer = boxes_of
    write_box_model(place.root, place.model.url)
    write_pictures(place.root, 4)
    write_run(place.root, "street_things", "finder", "street")
    place.execute("street_data_rows")
    result = place.execute("street_things", None, ("00000", "00001"))
    assert result.success
    events = result.filter_events(lambda event: event.is_step_materialization)
    pictures = [
        str(event.step_materialization_data.materialization.metadata["picture"].value)
        for event in events
        if "picture" in event.step_materialization_data.materialization.metadata
    ]
    assert len(pictures) == 1
    assert pictures[0].startswith("![predictions](data:image/jpeg;base64,/9j/")
    assert len(pictures[0]) < 70_000


def test_F127_a_slice_that_lost_its_rows_becomes_empty(loaded: Place) -> None:
    heal(loaded)
    assert loaded.execute("notes_mood", None, ALL).success
    write_texts(loaded.root, ["nice", "bad"])
    assert loaded.execute("notes_data_rows").success
    assert loaded.execute("notes_mood", None, ALL).success
    table = loaded.store.read(CLASSIFICATIONS, "notes_mood", "00002")
    assert table is not None
    assert table.num_rows == 0


def test_no_secret_reaches_an_event(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MOOD_TOKEN", "s3cret-value")
    write_mood_home(place.root, place.model.url, ["nice", "broken"])
    manifest = place.root / "models/mood.yaml"
    manifest.write_text(manifest.read_text() + "secrets: env:MOOD_TOKEN\n")
    place.execute("notes_data_rows")
    result = place.execute("notes_mood", None, ("00000",))
    assert place.model.requests[0].headers["authorization"] == "Bearer s3cret-value"
    logs = "".join(str(entry) for entry in place.instance.all_logs(result.run_id))
    assert "s3cret-value" not in logs
