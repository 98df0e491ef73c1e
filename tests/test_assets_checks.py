from pathlib import Path
from typing import Any

import dagster as dg
import pytest

from assets.checks import run_checks
from foundry_pipeline.home import Run
from foundry_pipeline.store import Store
from foundry_pipeline.tables import BOXES, DATA_ROWS, REJECTS, build
from tests.warehouse import fill, make_run

ROWS = [{"global_key": f"{at}.jpg", "width": 60, "height": 40} for at in range(4)]


@pytest.fixture
def run() -> Run:
    return make_run("objects", features={"cat": "rectangle"})


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store(tmp_path)


def box(at: int, **values: Any) -> dict[str, Any]:
    size = {"image_width": 60, "image_height": 40}
    return {"global_key": f"{at}.jpg", "feature": "cat", "left": 1, "top": 2, "width": 3, "height": 4} | size | values


def check(run: Run, store: Store) -> dict[str, Any]:
    """Evaluate all checks of the run: name -> evaluation. Of several tables, one that does not pass."""
    definitions = dg.Definitions(asset_checks=run_checks(run), resources={"warehouse": store})
    job = definitions.resolve_implicit_global_asset_job_def()
    with dg.DagsterInstance.ephemeral() as instance:
        result = job.execute_in_process(instance=instance)
    evaluations = sorted(result.get_asset_check_evaluations(), key=lambda found: found.passed, reverse=True)
    return {found.check_name: found for found in evaluations}


def commit_rejects(run: Run, store: Store, slice_key: str, reasons: list[str]) -> None:
    same = {"run": run.name, "model": "model", "dataset": "street", "data_row_id": "i", "global_key": "0.jpg"}
    rows = [
        dict.fromkeys(REJECTS.schema.names)
        | same
        | {"prediction_id": str(at), "call_id": "c", "path": "$", "reason": reason, "message": "m", "value": "v"}
        for at, reason in enumerate(reasons)
    ]
    table = build(REJECTS, {name: [row[name] for row in rows] for name in REJECTS.schema.names})
    store.commit(run.name, slice_key, {REJECTS.name: table})


def test_all_is_well_where_every_row_is_answered_and_nothing_refused(run: Run, store: Store) -> None:
    fill(store, run, "00000", data_rows=ROWS, boxes=[box(0, score=0.5), box(1)])
    found = check(run, store)
    assert {name: one.passed for name, one in found.items()} == {
        "answered_equals_asked": True,
        "failed_share": True,
        "scores_in_0_1": True,
        "boxes_inside_picture": True,
        "reject_share": True,
        "files_intact": True,
    }
    assert found["answered_equals_asked"].metadata["ok"].value == 4


def test_a_slice_without_responses_is_a_warning_that_names_it(run: Run, store: Store) -> None:
    fill(store, run, "00000", data_rows=ROWS)
    store.commit("street", "00001", {"data_rows": store.read(DATA_ROWS, "street", "00000")})
    found = check(run, store)["answered_equals_asked"]
    assert not found.passed
    assert found.severity == dg.AssetCheckSeverity.WARN
    assert found.metadata["for_example"].value == "00001"


def test_responses_for_other_rows_than_asked_are_an_error(run: Run, store: Store) -> None:
    fill(store, run, "00000", data_rows=ROWS, outcomes={"3.jpg": None})  # type: ignore[dict-item]
    found = check(run, store)["answered_equals_asked"]
    assert not found.passed
    assert found.severity == dg.AssetCheckSeverity.ERROR


@pytest.mark.parametrize(
    ("failed", "severity"), [(1, dg.AssetCheckSeverity.WARN), (20, dg.AssetCheckSeverity.ERROR)], ids=["few", "many"]
)
def test_failed_rows_warn_below_the_runs_limit_and_are_an_error_above(
    run: Run, store: Store, failed: int, severity: dg.AssetCheckSeverity
) -> None:
    rows = [{"global_key": f"{at}.jpg"} for at in range(40)]
    fill(store, run, "00000", data_rows=rows, outcomes={f"{at}.jpg": "failed" for at in range(failed)})
    found = check(run, store)["failed_share"]
    assert not found.passed
    assert found.severity == severity
    assert found.metadata["failed_share"].value == failed / 40


@pytest.mark.parametrize(
    ("values", "outside"),
    [
        ({"left": 0, "width": 60}, 0),
        ({"left": 50, "width": 10.5}, 0),
        ({"left": 50, "width": 12}, 1),
        ({"top": -3}, 1),
        ({"left": 500, "image_width": None, "image_height": None}, 0),
    ],
    ids=["to the edge", "rounded", "too wide", "above", "size unknown"],
)
def test_F066_boxes_outside_their_picture_are_counted(
    run: Run, store: Store, values: dict[str, Any], outside: int
) -> None:
    fill(store, run, "00000", data_rows=ROWS, boxes=[box(0), box(1, **values)])
    found = check(run, store)["boxes_inside_picture"]
    assert found.metadata["outside"].value == outside
    assert found.passed == (outside == 0)


def test_a_score_outside_0_to_1_is_found_in_whichever_slice_it_is(run: Run, store: Store) -> None:
    fill(store, run, "00000", data_rows=ROWS, boxes=[box(0, score=0.0), box(1, score=1.0), box(2)])
    fill(store, run, "00001", data_rows=ROWS, boxes=[box(0, score=1.5)])
    found = check(run, store)["scores_in_0_1"]
    assert not found.passed
    assert (found.metadata["scores"].value, found.metadata["wrong"].value) == (3, 1)


@pytest.mark.parametrize(
    ("boxes", "severity"),
    [(99, dg.AssetCheckSeverity.WARN), (3, dg.AssetCheckSeverity.ERROR)],
    ids=["one", "a quarter"],
)
def test_rejects_are_counted_by_reason(run: Run, store: Store, boxes: int, severity: dg.AssetCheckSeverity) -> None:
    many = [box(0, index=at) for at in range(boxes)]
    fill(store, run, "00000", data_rows=ROWS, boxes=many)
    commit_rejects(run, store, "00000", ["not_finite"])
    found = check(run, store)["reject_share"]
    assert not found.passed
    assert found.severity == severity
    assert found.metadata["share"].value == 1 / (boxes + 1)
    assert found.metadata["reasons"].value == {"not_finite": 1}


def test_F112_a_file_that_rotted_is_found_with_its_name_and_what_to_do(run: Run, store: Store) -> None:
    fill(store, run, "00000", data_rows=ROWS, boxes=[box(0), box(1)])
    path = Path(store.path(BOXES, run.name, "00000"))
    content = bytearray(path.read_bytes())
    content[content.rindex(b"parquet-cpp")] ^= 1  # in the footer, where no reader looks
    path.write_bytes(content)
    found = check(run, store)["files_intact"]
    assert not found.passed
    assert found.severity == dg.AssetCheckSeverity.ERROR
    assert str(path) in str(found.metadata["for_example"].value)
    assert "no call is needed" in found.metadata["advice"].value
