"""Schedules and sensors, evaluated as the daemon does; what they launch is executed by hand."""

import json
from collections.abc import Iterator
from datetime import UTC, datetime
from functools import cached_property
from pathlib import Path
from typing import Any

import dagster as dg
import pytest

from assets.code_location import code_location
from assets.keys import decoded_keys
from assets.partitions import register_slices
from assets.sensors import MOST_FAILURES
from foundry_pipeline.home import load_home
from foundry_pipeline.store import Store
from resources import places_of
from tests.fake_model import FakeModel, Reply
from tests.home_folder import mood_of, write_mood_home, write_texts

RANGE = ("dagster/asset_partition_range_start", "dagster/asset_partition_range_end")


class Watch:
    """A home whose sensors are evaluated one tick after the other."""

    def __init__(self, root: Path, instance: dg.DagsterInstance) -> None:
        self.root = root
        self.instance = instance
        self.cursor: str | None = None
        self.run_keys: list[str | None] = []

    @cached_property
    def definitions(self) -> dg.Definitions:
        return code_location(load_home(self.root, {}), places_of({}, self.root))

    def tick(self) -> list[dg.RunRequest]:
        repository = self.definitions.get_repository_def()
        with dg.build_sensor_context(
            self.instance,
            self.cursor,
            repository_def=repository,
            resources={"warehouse": Store(self.root / "warehouse")},
        ) as context:
            result = repository.get_sensor_def("notes_growth").evaluate_tick(context)
        self.cursor = result.cursor
        return list(result.run_requests or [])

    def execute(self, request: dg.RunRequest) -> dg.ExecuteInProcessResult:
        assert request.job_name is not None
        return self.definitions.resolve_job_def(request.job_name).execute_in_process(
            instance=self.instance,
            asset_selection=list(request.asset_selection or []),
            tags=dict(request.tags),
            run_config={"loggers": {"console": {"config": {"log_level": "CRITICAL"}}}},
            raise_on_error=False,
        )

    def settle(self) -> list[tuple[str | None, str]]:
        """Tick and execute until nothing is asked for any more: what was launched, job and range."""
        launched = []
        for _ in range(20):
            requests = self.tick()
            if not requests:
                return launched
            for request in requests:
                self.execute(request)
                self.run_keys.append(request.run_key)
                launched.append((request.job_name, "-".join(request.tags.get(tag, "") for tag in RANGE)))
        raise AssertionError(f"the sensor never rests: {launched}")


@pytest.fixture
def model() -> Iterator[FakeModel]:
    with FakeModel(mood_of) as model:
        yield model


@pytest.fixture
def watch(tmp_path: Path, model: FakeModel) -> Iterator[Watch]:
    write_mood_home(tmp_path, model.url, ["a", "b", "c"], more="follow_dataset: true\nschedule: '0 2 * * *'\n")
    # Contexts of sensors and schedules open the instance anew, so it has to be on disk.
    (tmp_path / "dagster").mkdir()
    with dg.DagsterInstance.local_temp(str(tmp_path / "dagster"), {"telemetry": {"enabled": False}}) as instance:
        yield Watch(tmp_path, instance)


def test_a_dataset_is_loaded_and_what_is_new_launched_for_runs_that_follow(watch: Watch, model: FakeModel) -> None:
    assert watch.settle() == [("notes_data_rows", "-"), ("notes_mood", "00000-00001")]
    assert list(json.loads(watch.cursor or "{}")) == ["notes_mood"]
    before = len(model.requests)
    write_texts(watch.root, ["a", "b", "c", "d", "e"])
    assert watch.settle() == [("notes_data_rows", "-"), ("notes_mood", "00001-00002")]
    assert sorted(request.text for request in model.requests[before:]) == ["d", "e"]


def test_a_source_that_becomes_what_it_once_was_is_loaded_again(watch: Watch) -> None:
    watch.settle()
    write_texts(watch.root, ["a", "b", "c", "d"])
    watch.settle()
    write_texts(watch.root, ["a", "b", "c"])
    assert ("notes_data_rows", "-") in watch.settle()


def test_a_run_that_does_not_follow_is_not_launched(watch: Watch) -> None:
    (watch.root / "runs/notes_mood.yaml").write_text("model: mood\ndataset: notes\n")
    assert watch.settle() == [("notes_data_rows", "-")]


def test_a_failed_slice_is_tried_again_under_other_keys_and_not_for_ever(watch: Watch, model: FakeModel) -> None:
    model.answer = lambda request: Reply(status=500) if request.text == "c" else mood_of(request)
    launched = watch.settle()
    again = [("notes_mood", "00001-00001")] * MOST_FAILURES
    assert launched == [("notes_data_rows", "-"), ("notes_mood", "00000-00001"), *again]
    assert len(set(watch.run_keys)) == len(watch.run_keys) == len(launched)


def test_nothing_is_launched_while_the_last_launch_is_at_work(watch: Watch) -> None:
    [load] = watch.tick()
    watch.execute(load)
    [follow] = watch.tick()
    watch.instance.create_run_for_job(
        watch.definitions.resolve_job_def("notes_mood"), status=dg.DagsterRunStatus.STARTED, tags=dict(follow.tags)
    )
    watch.cursor = None
    assert watch.tick() == []


def test_a_schedule_launches_every_slice_in_ranges(watch: Watch) -> None:
    register_slices(watch.instance, "notes", [f"{at:05d}" for at in range(150)])
    assert [tuple(request.tags[tag] for tag in RANGE) for request in scheduled(watch)] == [
        ("00000", "00099"),
        ("00100", "00149"),
    ]


def test_a_schedule_before_the_first_load_says_what_to_do(watch: Watch) -> None:
    assert scheduled(watch) == []


def scheduled(watch: Watch) -> list[dg.RunRequest]:
    repository = watch.definitions.get_repository_def()
    with dg.build_schedule_context(
        watch.instance, scheduled_execution_time=datetime(2030, 1, 1, 2, tzinfo=UTC), repository_def=repository
    ) as context:
        return list(repository.get_schedule_def("notes_mood_schedule").evaluate_tick(context).run_requests or [])


def test_tables_of_slices_that_were_answered_in_a_failed_run_are_asked_for(watch: Watch, model: FakeModel) -> None:
    model.answer = lambda request: Reply(status=500) if request.text == "c" else mood_of(request)
    watch.execute(watch.tick()[0])
    failed = watch.execute(watch.tick()[0])
    [rescue] = rescued(watch, failed)
    assert set(rescue.asset_selection or []) == set(decoded_keys(load_home(watch.root, {}).runs["notes_mood"]))
    assert [rescue.tags[tag] for tag in RANGE] == ["00000", "00000"]
    before = len(model.requests)
    assert watch.execute(rescue).success
    assert len(model.requests) == before


def test_a_failed_run_without_an_answered_slice_asks_for_nothing(watch: Watch, model: FakeModel) -> None:
    model.answer = lambda _: Reply(status=500)
    watch.execute(watch.tick()[0])
    assert rescued(watch, watch.execute(watch.tick()[0])) == []


def rescued(watch: Watch, failed: dg.ExecuteInProcessResult) -> list[dg.RunRequest]:
    repository = watch.definitions.get_repository_def()
    event: Any = failed.get_run_failure_event()
    context = dg.build_run_status_sensor_context("tables_of_good_slices", event, watch.instance, failed.dagster_run)
    sensor: Any = repository.get_sensor_def("tables_of_good_slices")
    return [found for found in sensor(context) if isinstance(found, dg.RunRequest)]
