"""Sending an export: once and for all, whatever the platform, the network and the person at the keyboard do."""

from __future__ import annotations

import argparse
import dataclasses
import io
import json
import subprocess
import sys
import time
import warnings
from collections.abc import Iterator
from pathlib import Path

import pytest

from foundry_pipeline import cli
from foundry_pipeline.config.secrets import SentWith, bearer
from foundry_pipeline.config.settings import Settings
from foundry_pipeline.errors import ConfigError, EndpointStopped, StorageError
from foundry_pipeline.exports import export_run
from foundry_pipeline.project_ontology import ProjectOntology, ProjectTool
from foundry_pipeline.send.platform import Platform
from foundry_pipeline.send.send import Annotate, Order, SendReport, send_run
from foundry_pipeline.store import Store
from foundry_pipeline.tables import SEND_STATUS
from tests.exporting import BOX
from tests.fake_platform import DROP, DROP_AFTER, KEY, FakePlatform
from tests.home_folder import write_mood_home
from tests.warehouse import fill, make_run

KEYS = [f"{number}.jpg" for number in range(5)]
TO_PROJECT = Order("pre_labels", "project1")
TO_RUN = Order("model_run", "run1")


@pytest.fixture
def platform() -> Iterator[FakePlatform]:
    with FakePlatform() as running:
        yield running


def exported(root: Path, run=None, *, features=("cat", "dog"), keys=KEYS, **tables) -> tuple[object, Store]:
    run, store = run or make_run(), Store(root)
    rows = [{"global_key": key, "width": 60, "height": 40} for key in keys]
    boxes = [
        BOX | {"global_key": key, "feature": feature, "prediction_id": f"{key}-{feature}"}
        for key in keys
        for feature in features
    ]
    fill(store, run, "0", data_rows=rows, boxes=boxes, **tables)
    export_run(run, store, "labelbox")
    return run, store


def connected(platform: FakePlatform, waited: list[float] | None = None, key: str = KEY) -> Platform:
    sent_with, scrub = bearer("LABELBOX_API_KEY", platform.url, {"LABELBOX_API_KEY": key}, Settings())
    waits = [] if waited is None else waited
    return Platform(sent_with, scrub, url=platform.url, sleep=waits.append)


def send(
    run, store, platform: FakePlatform, order: Order = TO_PROJECT, waited: list[float] | None = None
) -> SendReport:
    with connected(platform, waited) as connection:
        *_, report = send_run(run, store, order, connection)
    return report


def statuses(store: Store, run="run") -> list[dict[str, object]]:
    return [row for _, table in store.read_all(SEND_STATUS, run) for row in table.to_pylist()]


@pytest.mark.parametrize(
    ("target", "import_field"), [("pre_labels", "modelAssistedLabeling"), ("ground_truth", "labelImport")]
)
def test_every_line_arrives_in_the_project_and_what_became_of_it_is_in_a_table(
    tmp_path, platform, target, import_field
):
    run, store = exported(tmp_path)
    report = send(run, store, platform, Order(target, "project1"))
    assert (report.files, report.sent, report.failed, report.already) == (1, 10, 0, 0)
    ((kind, place, name),) = platform.imports
    assert (kind.startswith(import_field), place, name.startswith("run-")) == (True, "project1", True)
    file = tmp_path / "annotations/run=run/labelbox/annotations-00001.ndjson"
    assert platform.lines() == [json.loads(line) for line in file.read_text().splitlines()]
    rows = statuses(store)
    assert {row["uuid"] for row in rows} == {line["uuid"] for line in platform.lines()}
    assert {(row["status"], row["attempts"], row["message"], row["import_name"]) for row in rows} == {
        ("success", 1, None, name)
    }
    assert rows[0]["feature"] == "cat"


def test_a_second_run_sends_nothing_and_asks_nothing(tmp_path, platform):
    run, store = exported(tmp_path)
    send(run, store, platform)
    platform.asked.clear()
    report = send(run, store, platform)
    assert (report.sent, report.already, platform.asked) == (0, 10, [])


def test_a_second_run_sends_only_what_failed_or_is_new_or_has_changed(tmp_path, platform):
    run, store = exported(tmp_path)
    platform.refused_names = {"dog"}
    report = send(run, store, platform)
    assert (report.sent, report.failed) == (10, 5)
    failed = [row for row in statuses(store) if row["status"] == "failed"]
    assert {row["uuid"] for row in failed} == {f"{key}-dog" for key in KEYS}
    assert failed[0]["message"] == "no feature dog (***)"
    platform.refused_names = set()
    exported(tmp_path, features=("cat", "dog", "owl"))
    report = send(run, store, platform)
    assert (report.sent, report.failed, report.already) == (10, 0, 5)
    assert {line["name"] for line in list(platform.imports.values())[1]["lines"]} == {"dog", "owl"}
    moved = [BOX | {"global_key": "0.jpg", "feature": "owl", "left": 7.0, "prediction_id": "0.jpg-owl"}]
    fill(store, run, "0", data_rows=[{"global_key": "0.jpg", "width": 60, "height": 40}], boxes=moved)
    export_run(run, store, "labelbox")
    assert send(run, store, platform).sent == 1
    assert send(run, store, platform).sent == 0


def test_lines_that_fail_again_are_sent_again_with_every_run(tmp_path, platform):
    run, store = exported(tmp_path, features=("dog",))
    platform.refused_names = {"dog"}
    for attempt in (1, 2, 3):
        assert send(run, store, platform).failed == 5
        assert len(platform.imports) == attempt
    assert sorted({row["attempts"] for row in statuses(store)}) == [1, 2, 3]


def test_a_line_of_which_the_platform_says_nothing_has_failed(tmp_path, platform):
    run, store = exported(tmp_path)
    platform.silent_about = {"0.jpg-cat"}
    report = send(run, store, platform)
    assert report.messages == {"the platform said nothing about this line; its import is FINISHED": 1}
    platform.silent_about = set()
    assert send(run, store, platform).sent == 1


def test_an_import_that_fails_as_a_whole_fails_all_its_lines(tmp_path, platform):
    run, store = exported(tmp_path)
    platform.state, platform.silent_about = "FAILED", {f"{key}-{name}" for key in KEYS for name in ("cat", "dog")}
    report = send(run, store, platform)
    assert report.messages == {"the platform said nothing about this line; its import is FAILED": 10}


@pytest.mark.parametrize(
    "noise", [b"not json\n", b"[1]\n5\nnull\n", b'{"uuid": 5}\n{"status": "SUCCESS"}\n', b"\xff\xfe\n"]
)
def test_garbage_among_the_statuses_costs_no_line_its_status(tmp_path, platform, noise):
    run, store = exported(tmp_path)
    platform.status_noise = noise
    assert send(run, store, platform).failed == 0


def test_a_model_run_gets_its_data_rows_their_splits_and_the_lines(tmp_path, platform):
    run, store = exported(tmp_path, make_run(split={"train": 0.5, "val": 0.25, "test": 0.25}))
    assert send(run, store, platform, TO_RUN).failed == 0
    assert platform.registered == [("run1", KEYS)]
    words = {"train": "TRAINING", "val": "VALIDATION", "test": "TEST"}
    assert platform.split_of == {key: words[run.split.part_of(key)] for key in KEYS}
    ((kind, place, _),) = platform.imports
    assert (kind, place) == ("modelErrorAnalysisPredictionImport", "run1")


EDGE = {
    "global_key": "0.jpg",
    "feature": "near",
    "source_id": "0.jpg-cat",
    "target_id": "0.jpg-dog",
    "prediction_id": "edge",
}


def test_relationships_go_with_pre_labels_only_and_take_their_ends_along(tmp_path, platform):
    run, store = exported(tmp_path, edges=[EDGE])
    assert send(run, store, platform, Order("ground_truth", "project1")).unsendable == 1
    platform.refused_names = {"near"}
    assert send(run, store, platform).failed == 1
    platform.refused_names = set()
    assert send(run, store, platform).sent == 1
    assert {line["uuid"] for line in list(platform.imports.values())[-1]["lines"]} == {"0.jpg-cat", "0.jpg-dog", "edge"}


def test_places_do_not_know_of_each_other(tmp_path, platform):
    run, store = exported(tmp_path)
    for order in (TO_PROJECT, Order("pre_labels", "project2"), Order("ground_truth", "project1"), TO_RUN):
        assert send(run, store, platform, order).sent == 10
    assert set(platform.arrived.values()) == {1, 2}


def test_files_of_1000_data_rows_are_imports_of_their_own(tmp_path, platform):
    run, store = exported(tmp_path, features=("cat",), keys=[f"{number:05}" for number in range(2001)])
    report = send(run, store, platform)
    assert (report.files, report.sent) == (3, 2001)
    assert [len(one["lines"]) for one in platform.imports.values()] == [1000, 1000, 1]


@pytest.mark.parametrize(
    "fault",
    [
        DROP,
        DROP_AFTER,
        (500, {}, b"oops"),
        (200, {}, b"<html>busy</html>"),
        (200, {}, b"[]"),
        (200, {}, b'{"data": null}'),
    ],
)
@pytest.mark.parametrize("at", ["createModelAssistedLabelingPredictionImport", "modelAssistedLabelingPredictionImport"])
def test_whatever_happens_on_the_way_no_line_is_sent_twice(tmp_path, platform, fault, at):
    run, store = exported(tmp_path)
    platform.faults, platform.fault_at = [fault, fault], lambda root: root == at
    waited: list[float] = []
    assert send(run, store, platform, waited=waited).failed == 0
    assert set(platform.arrived.values()) == {1}
    assert len(platform.arrived) == 10
    assert waited


def test_what_a_killed_process_has_sent_is_not_sent_again(tmp_path, platform):
    """It is killed while the platform works on its import: no table says yet what was sent."""
    write_mood_home(tmp_path, "http://127.0.0.1:1/", ["a"], "exports: [labelbox]\n")
    run = make_run("notes_mood", media_type="text")
    answers = [{"global_key": key, "feature": "mood", "answer": "good", "prediction_id": key} for key in KEYS]
    store = Store(tmp_path / "warehouse")
    fill(store, run, "0", data_rows=[{"global_key": key, "row_data": "x"} for key in KEYS], classifications=answers)
    export_run(run, store, "labelbox")
    platform.polls = 1_000_000
    command = [
        "send",
        "notes_mood",
        "--as",
        "pre-labels",
        "--project",
        "p",
        "--url",
        platform.url,
        "--home",
        str(tmp_path),
    ]
    process = subprocess.Popen(
        [sys.executable, "-m", "foundry_pipeline.cli", *command],
        env={"LABELBOX_API_KEY": KEY},
        stdout=subprocess.DEVNULL,
        cwd=Path(__file__).parent.parent,
    )
    while "modelAssistedLabelingPredictionImport" not in platform.asked[1:]:
        assert process.poll() is None
        time.sleep(0.02)
    process.kill()
    process.wait()
    assert statuses(store, "notes_mood") == []
    for one in platform.imports.values():
        one["polls"] = 1
    assert send(run, store, platform, Order("pre_labels", "p")).failed == 0
    assert set(platform.arrived.values()) == {1}
    assert {row["status"] for row in statuses(store, "notes_mood")} == {"success"}


def test_statuses_that_are_gone_after_a_day_are_failures_that_can_be_sent_again(tmp_path, platform):
    run, store = exported(tmp_path)
    platform.faults, platform.fault_at = [(403, {}, b"expired")], lambda root: root == "file"
    assert send(run, store, platform).failed == 10
    assert send(run, store, platform).failed == 0


def test_429_is_waited_for_as_long_as_the_platform_says(tmp_path, platform):
    run, store = exported(tmp_path)
    platform.faults = [(429, {"Retry-After": "17"}, b"slow down"), (429, {}, b""), (503, {"Retry-After": "7"}, b"")]
    waited: list[float] = []
    assert send(run, store, platform, waited=waited).failed == 0
    assert waited[0] == 17
    assert 7 in waited
    assert len(platform.arrived) == 10


@pytest.mark.parametrize("fault", [(429, {"Retry-After": "1"}, b""), (500, {}, b""), (200, {}, b"garbage"), DROP])
def test_a_platform_that_never_gets_well_stops_the_sending_and_keeps_what_is_known(tmp_path, platform, fault):
    run, store = exported(tmp_path)
    platform.faults = [fault] * 1000
    with pytest.raises(EndpointStopped) as caught:
        send(run, store, platform)
    assert caught.value.code in ("platform_unreachable",)
    assert statuses(store) == []
    platform.faults = []
    assert send(run, store, platform).sent == 10


def test_a_key_that_the_platform_refuses_is_told_and_shown_nowhere(tmp_path, platform):
    run, store = exported(tmp_path)
    platform.key = "another"
    with pytest.raises(EndpointStopped, match="the platform refuses the key in LABELBOX_API_KEY") as caught:
        send(run, store, platform)
    assert KEY not in repr(caught.value) + str(caught.value)
    assert len(platform.asked) == 1


def test_the_key_does_not_come_back_out_of_what_the_platform_says(tmp_path, platform):
    run, store = exported(tmp_path)
    platform.faults = [(400, {}, f"bad request with Bearer {KEY}".encode())]
    with pytest.raises(EndpointStopped, match=r"the platform answers 400: 'bad request with Bearer \*\*\*'"):
        send(run, store, platform)
    error = json.dumps({"errors": [{"message": f"no {KEY}", "extensions": {"code": "X"}}]}).encode()
    platform.faults = [(200, {}, error)]
    with pytest.raises(EndpointStopped, match=r"the platform refuses: 'no \*\*\*'"):
        send(run, store, platform)


def test_the_key_goes_to_the_api_alone_and_into_no_file(tmp_path, platform):
    run, store = exported(tmp_path)
    platform.refused_names = {"dog"}
    send(run, store, platform)
    assert platform.headers_of_files
    assert all("Authorization" not in headers for headers in platform.headers_of_files)
    assert [path for path in tmp_path.rglob("*") if path.is_file() and KEY.encode() in path.read_bytes()] == []


def test_the_key_is_not_sent_in_the_clear():
    with pytest.raises(ConfigError, match="expected an https URL"):
        Platform(SentWith({}, {}), bytes, url="http://api.labelbox.com/graphql")


def test_foundry_yaml_has_the_last_word_on_where_the_key_goes():
    settings = Settings(secret_hosts={"LABELBOX_API_KEY": ("api.labelbox.com",)})
    environ = {"LABELBOX_API_KEY": KEY}
    assert bearer("LABELBOX_API_KEY", "https://api.labelbox.com/graphql", environ, settings)
    with pytest.raises(ConfigError, match=r"go to api.labelbox.com only; the platform is on evil.example"):
        bearer("LABELBOX_API_KEY", "https://evil.example/graphql", environ, settings)


def test_a_dry_run_says_what_would_be_sent_and_neither_contacts_nor_writes(tmp_path, platform):
    run, store = exported(tmp_path)
    before = sorted(tmp_path.rglob("*"))
    line, report = send_run(run, store, TO_PROJECT, None)
    assert line.startswith("file 1: 10 lines of 5 data rows as run-")
    assert (report.sent, report.failed) == (10, 0)
    assert sorted(tmp_path.rglob("*")) == before
    send(run, store, platform)
    assert next(iter(platform.imports))[2] in line


def test_data_rows_are_put_into_the_project_first_those_that_are_new(tmp_path, platform):
    run, store = exported(tmp_path)
    platform.refused_names = {"dog"}
    order = Order("pre_labels", "project1", batch_priority=2)
    send(run, store, platform, order)
    ((name, batch),) = platform.batches.items()
    assert (batch["globalKeys"], batch["priority"], name) == (KEYS, 2, next(iter(platform.imports))[2])
    platform.refused_names = set()
    send(run, store, platform, order)
    assert len(platform.batches) == 1


def project_run(**options):
    tools = {name: ProjectTool(name, "rectangle", f"c{name:_<24}") for name in ("cat", "dog")}
    return dataclasses.replace(make_run(**options), project=ProjectOntology("project.json", tools))


ON = Annotate("project9", "initial labeling TASK", 1, "predictions", exclude_in_project=True)


def test_a_model_run_goes_on_to_a_step_of_a_project_with_what_the_platform_offers(tmp_path, platform):
    run, store = exported(tmp_path, project_run())
    platform.refused_names = {"dog"}
    report = send(run, store, platform, dataclasses.replace(TO_RUN, annotate=ON))
    (order,) = platform.orders
    assert report.annotated == 5
    assert order == {
        "destinationProjectId": "project9",
        "batchInput": {"batchName": order["batchInput"]["batchName"], "batchPriority": 1},
        "destinationTaskQueue": {"type": "id", "value": "q1"},
        "excludeDataRowsInProject": True,
        "annotationsInput": None,
        "predictionsInput": {
            "featureSchemaIdsMapping": {f"c{name:_<24}": f"c{name:_<24}" for name in ("cat", "dog")},
            "modelRunId": "run1",
            "minConfidence": 0,
            "maxConfidence": 1,
        },
        "conflictLabelsResolutionStrategy": "OVERRIDE_WITH_PREDICTIONS",
        "searchQuery": [{"type": "global_key", "operator": "is", "ids": KEYS}],
        "sourceModelRunId": "run1",
    }
    send(run, store, platform, dataclasses.replace(TO_RUN, annotate=ON))
    assert len(platform.orders) == 1


@pytest.mark.parametrize(("step", "sent"), [(None, {"type": "id", "value": "q1"}), ("done", {"type": "done"})])
def test_a_step_is_where_labeling_begins_unless_said_otherwise(tmp_path, platform, step, sent):
    run, store = exported(tmp_path, project_run())
    send(run, store, platform, dataclasses.replace(TO_RUN, annotate=Annotate("project9", step)))
    assert platform.orders[0]["destinationTaskQueue"] == sent
    assert platform.orders[0]["conflictLabelsResolutionStrategy"] == "KEEP_EXISTING"


def test_a_step_that_the_project_lacks_is_told_before_anything_is_sent(tmp_path, platform):
    run, store = exported(tmp_path, project_run())
    with pytest.raises(ConfigError, match=r"the project project9 has no step 'Intial labeling task' \(did you mean"):
        send(run, store, platform, dataclasses.replace(TO_RUN, annotate=Annotate("project9", "Intial labeling task")))
    assert platform.imports == {}


def test_rows_of_which_nobody_knows_whether_they_went_on_are_not_sent_into_the_project_twice(tmp_path, platform):
    """The answer is lost, and so is every other until the process gives up; the next one excludes what is there."""
    run, store = exported(tmp_path, project_run())
    order = dataclasses.replace(TO_RUN, annotate=Annotate("project9"))
    platform.faults, platform.fault_at = [DROP_AFTER] * 20, lambda root: root == "sendToAnnotateFromMea"
    with pytest.raises(EndpointStopped):
        send(run, store, platform, order)
    first, *others = platform.orders
    assert first["excludeDataRowsInProject"] is False
    assert all(one["excludeDataRowsInProject"] for one in others)
    platform.faults = []
    send(run, store, platform, order)
    assert platform.orders[-1]["excludeDataRowsInProject"] is True
    assert {row["status"] for row in statuses(store) if row["target"] == "annotate"} == {"success"}


@pytest.mark.parametrize(
    ("order", "message"),
    [
        (Order("pre_labels", "../x"), "'../x' is no id"),
        (Order("pre_labels", "p", annotate=Annotate("q")), "only the data rows of a model run are sent on"),
        (Order("model_run", "m", annotate=Annotate("q")), "needs `ontology` in the run"),
        (Order("model_run", "m", batch_priority=1), "batches are for projects"),
    ],
)
def test_an_order_that_cannot_be_is_refused(tmp_path, order, message):
    run, store = exported(tmp_path)
    with pytest.raises(ConfigError, match=message):
        list(send_run(run, store, order, None))


def test_without_an_export_the_command_that_makes_it_is_named(tmp_path):
    with pytest.raises(ConfigError, match="there is no export to send: foundry-pipeline export run labelbox"):
        list(send_run(make_run(), Store(tmp_path), TO_PROJECT, None))


def test_a_file_that_is_not_the_exported_one_is_not_sent(tmp_path, platform):
    run, store = exported(tmp_path)
    with (tmp_path / "annotations/run=run/labelbox/annotations-00001.ndjson").open("a") as file:
        file.write("{}\n")
    with pytest.raises(StorageError, match="is not the file that was exported"):
        send(run, store, platform)
    assert platform.asked == []


def command(*words: str) -> argparse.Namespace:
    return cli._parser().parse_args(["send", *words])


def test_the_command_sends_and_says_what_came_of_it(tmp_path, platform):
    write_mood_home(tmp_path, "http://127.0.0.1:1/", ["a"], "exports: [labelbox]\n")
    run = make_run("notes_mood", media_type="text")
    answers = [{"global_key": key, "feature": "mood", "answer": "good", "prediction_id": key} for key in KEYS]
    store = Store(tmp_path / "warehouse")
    fill(store, run, "0", data_rows=[{"global_key": key, "row_data": "x"} for key in KEYS], classifications=answers)
    export_run(run, store, "labelbox")
    words = ["notes_mood", "--as", "ground-truth", "--project", "p1", "--home", str(tmp_path), "--url", platform.url]
    platform.polls, platform.refused_names, out = 0, {"mood"}, io.StringIO()
    dry = command(*words, "--dry-run")
    assert dry.command(dry, {}, out) == 0
    assert (out.getvalue().splitlines()[0], platform.asked) == ("dry run: nothing is sent", [])
    assert "5 lines would be sent; 0 were there already" in out.getvalue()
    assert "lines sent" not in out.getvalue()
    arguments = command(*words)
    with pytest.raises(ConfigError, match="the environment variable LABELBOX_API_KEY is not set"):
        arguments.command(arguments, {}, out)
    assert arguments.command(arguments, {"LABELBOX_API_KEY": f"{KEY}\n"}, out) == 1
    assert "5 lines sent, 5 of them failed; 0 were there already" in out.getvalue()
    assert "  5 failed: no feature mood (***)" in out.getvalue()
    platform.refused_names = set()
    assert arguments.command(arguments, {"LABELBOX_API_KEY": KEY}, out) == 0
    assert KEY not in out.getvalue()


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--as", "pre-labels", "--model-run", "m"], "--as pre-labels needs --project"),
        (["--as", "model-run", "--project", "p"], "--as model-run needs --model-run"),
        (["--as", "model-run", "--model-run", "m", "--batch"], "--batch is not for --as model-run"),
        (["--as", "pre-labels", "--project", "p", "--step", "done"], "--step needs --to-project"),
    ],
)
def test_words_that_do_not_go_together_are_told(words, message):
    with pytest.raises(ConfigError, match=message):
        cli._order(command("run", *words))


def test_the_sdk_understands_this_platform_too(platform, tmp_path):
    """What the tests stand on speaks as the platform does, as far as the vendor's own client can tell."""
    pytest.importorskip("labelbox", reason="its SDK needs a Python below 3.14")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        import labelbox
        from labelbox import MEAPredictionImport
        from labelbox.schema.enums import AnnotationImportState
    platform.polls, platform.refused_names = 0, {"dog"}
    client = labelbox.Client(api_key=KEY, endpoint=platform.url, rest_endpoint=f"{platform.base}/api/v1")
    lines = [{"uuid": name, "dataRow": {"globalKey": "g"}, "name": name} for name in ("cat", "dog")]
    made = MEAPredictionImport.create_from_objects(client, "run1", "by hand", lines)
    assert made.state == AnnotationImportState.FINISHED
    assert [status["status"] for status in made.statuses] == ["SUCCESS", "FAILURE"]
    with connected(platform) as connection:
        assert connection.run_import("model_run", "run1", "by hand", b"").said["cat"] is None
    client.connection.close()
