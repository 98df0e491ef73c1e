"""A run against its dataset's ground truth: which rows and features count, the tables, the report, the asset."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import dagster as dg
import pytest

from assets.code_location import code_location
from assets.keys import data_rows_key, decoded_keys, evaluation_key, responses_key
from foundry_pipeline.errors import ConfigError
from foundry_pipeline.evaluation.compare import compare_runs
from foundry_pipeline.evaluation.evaluate import WHOLE_RUN, Evaluation, evaluate_run, read_truth
from foundry_pipeline.evaluation.report import min_score_line, report_name, write_report
from foundry_pipeline.home import MinScore, Run, load_home
from foundry_pipeline.store import Store
from foundry_pipeline.tables import MATCHES, METRICS
from resources import places_of
from tests.fake_model import FakeModel
from tests.home_folder import boxes_of, write_box_model, write_file, write_pictures, write_run
from tests.warehouse import fill, make_run

PERSON, CAT = {"id": 1, "name": "person"}, {"id": 2, "name": "cat"}


def coco(*truths: tuple[str, str, list[float]], images: tuple[str, ...] = ("a.jpg", "b.jpg", "c.jpg")) -> bytes:
    document = {
        "images": [{"id": n, "file_name": name, "width": 60, "height": 40} for n, name in enumerate(images, 1)],
        "categories": [PERSON, CAT],
        "annotations": [
            {"id": n, "image_id": images.index(key) + 1, "category_id": 1 if name == "person" else 2, "bbox": box}
            for n, (key, name, box) in enumerate(truths, 1)
        ],
    }
    return json.dumps(document).encode()


def box(key: str, feature: str, ltwh: tuple[float, ...], score: float = 0.9) -> dict[str, Any]:
    left, top, width, height = ltwh
    shape = {"left": left, "top": top, "width": width, "height": height}
    return {"global_key": key, "feature": feature, "score": score, **shape}


def street_run(name: str = "street", **more: Any) -> Run:
    run = make_run(name, features={"Person": "rectangle", "Cat": "rectangle"}, **more)
    return replace(run, dataset=replace(run.dataset, ground_truth="truth.json"))


MAPPING = {"Person": "person", "Cat": "cat"}
ROWS = [{"global_key": key} for key in ("a.jpg", "b.jpg", "c.jpg")]


def evaluate(run: Run, store: Store, truth: bytes) -> Evaluation:
    return evaluate_run(run, store, lambda rows: read_truth(truth, "truth.json", rows))


def value(found: Evaluation, metric: str, feature: str = "") -> float | None:
    (measured,) = [m.value for m in found.findings.measures if (m.metric, m.feature) == (metric, feature)]
    return measured


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store(tmp_path)


def test_features_are_compared_under_the_runs_mapping(store: Store) -> None:
    run = street_run(mapping=MAPPING)
    fill(store, run, "000000", data_rows=ROWS, boxes=[box("a.jpg", "Person", (1, 2, 30, 20))])
    found = evaluate(run, store, coco(("a.jpg", "person", [1, 2, 30, 20])))
    assert value(found, "AP", "person") == pytest.approx(1.0)
    assert (found.compared, found.unanswered) == (3, 0)


def test_a_class_mapped_to_null_is_not_compared(store: Store) -> None:
    run = street_run(mapping={"Person": "person", "Cat": None})
    fill(store, run, "000000", data_rows=ROWS, boxes=[box("a.jpg", "Cat", (1, 2, 30, 20))])
    found = evaluate(run, store, coco(("a.jpg", "cat", [1, 2, 30, 20]), ("a.jpg", "person", [1, 2, 3, 4])))
    assert {m.feature for m in found.findings.measures} == {"", "person"}
    assert any("cat" in note for note in found.findings.notes)


def test_a_row_that_was_not_answered_is_no_miss(store: Store) -> None:
    run = street_run(mapping=MAPPING)
    boxes = [box("a.jpg", "Person", (1, 2, 30, 20))]
    fill(store, run, "000000", data_rows=ROWS, outcomes={"b.jpg": "failed"}, boxes=boxes)
    found = evaluate(run, store, coco(("a.jpg", "person", [1, 2, 30, 20]), ("b.jpg", "person", [1, 2, 30, 20])))
    assert value(found, "recall") == 1.0
    assert (found.compared, found.unanswered) == (2, 1)


def test_a_row_answered_with_nothing_is_a_miss(store: Store) -> None:
    run = street_run(mapping=MAPPING)
    fill(store, run, "000000", data_rows=ROWS)
    found = evaluate(run, store, coco(("a.jpg", "person", [1, 2, 30, 20])))
    assert value(found, "recall") == 0.0


def test_all_slices_are_compared_together(store: Store) -> None:
    run = street_run(mapping=MAPPING)
    fill(store, run, "000000", data_rows=ROWS[:1], boxes=[box("a.jpg", "Person", (1, 2, 30, 20))])
    fill(store, run, "000001", data_rows=ROWS[1:], boxes=[box("b.jpg", "Person", (1, 2, 30, 20))])
    found = evaluate(run, store, coco(("a.jpg", "person", [1, 2, 30, 20]), ("b.jpg", "person", [1, 2, 30, 20])))
    assert value(found, "recall") == 1.0


def test_metrics_and_matches_are_tables(store: Store) -> None:
    run = street_run(mapping=MAPPING)
    fill(store, run, "000000", data_rows=ROWS, boxes=[box("a.jpg", "Person", (1, 2, 30, 20))])
    found = evaluate(run, store, coco(("a.jpg", "person", [1, 2, 30, 20]), ("b.jpg", "cat", [1, 2, 3, 4])))
    metrics, matches = (store.read(spec, run.name, WHOLE_RUN) for spec in (METRICS, MATCHES))
    assert metrics is not None
    assert matches is not None
    assert metrics.num_rows == len(found.findings.measures)
    assert dict(zip(matches["global_key"].to_pylist(), matches["verdict"].to_pylist(), strict=True)) == {
        "a.jpg": "match",
        "b.jpg": "missed",
    }


def test_truth_about_other_rows_is_an_error_that_says_so(store: Store) -> None:
    run = street_run()
    fill(store, run, "000000", data_rows=ROWS)
    with pytest.raises(ConfigError, match="image_not_in_the_dataset"):
        evaluate(run, store, coco(images=("elsewhere.jpg",)))


def test_a_run_without_answers_yet_has_nothing_to_compare(store: Store) -> None:
    run = street_run()
    fill(store, run, "000000", data_rows=ROWS, outcomes=dict.fromkeys(("a.jpg", "b.jpg", "c.jpg"), "failed"))
    found = evaluate(run, store, coco(("a.jpg", "person", [1, 2, 3, 4])))
    assert (found.compared, found.unanswered, found.findings.measures) == (0, 3, ())


def test_runs_stand_side_by_side_with_the_rows_where_they_disagree(store: Store) -> None:
    truth = coco(("a.jpg", "person", [1, 2, 30, 20]), ("b.jpg", "person", [1, 2, 30, 20]))
    for name, keys in (("good", ("a.jpg", "b.jpg")), ("blind", ("a.jpg",))):
        run = street_run(name, mapping=MAPPING)
        fill(store, run, "000000", data_rows=ROWS, boxes=[box(key, "Person", (1, 2, 30, 20)) for key in keys])
        evaluate(run, store, truth)
    comparison = compare_runs(store, "street", ["good", "blind", "never_evaluated"])
    assert comparison.runs == ("good", "blind")
    (f1,) = [line.values for line in comparison.lines if line.metric == "f1"]
    assert f1 == (1.0, pytest.approx(2 / 3))
    (row,) = comparison.disagreements
    assert (row.global_key, row.right, row.faults) == ("b.jpg", (1, 0), (0, 1))


def test_the_report_is_one_page_that_fetches_nothing_and_escapes_strangers(store: Store, tmp_path: Path) -> None:
    evil = "<script>alert(1)</script>"
    run = street_run(mapping={"Person": "person", "Cat": evil}, min_score=MinScore(0.95))
    boxes = [box("a.jpg", "Person", (1, 2, 30, 20)), box("a.jpg", "Cat", (1, 2, 30, 20))]
    fill(store, run, "000000", data_rows=ROWS, boxes=boxes)
    found = evaluate(run, store, coco(("a.jpg", "person", [1, 2, 30, 20])))
    write_report(found, compare_runs(store, "street", [run.name]), store)
    page = (tmp_path / report_name(run.name)).read_text()
    assert "<script>" not in page
    assert "&lt;script&gt;" in page
    assert "Content-Security-Policy" in page
    assert page.count("data:image/png;base64,") == 2
    assert "http" not in page.replace("http-equiv", "")


def test_the_thresholds_are_a_line_for_the_run_file(store: Store, tmp_path: Path) -> None:
    line = min_score_line({"person": 0.47563, 'odd "name"': 0.3})
    write_box_model(tmp_path, "http://127.0.0.1:1/")
    write_pictures(tmp_path, 1)
    write_run(tmp_path, "r", "finder", "street", "ontology_mapping: {thing: person}\n" + line + "\n")
    home = load_home(tmp_path, {})
    assert 'odd \\"name\\"' in line
    assert not home.runs, "a feature that the run does not have is refused"
    write_run(
        tmp_path, "r", "finder", "street", "ontology_mapping: {thing: person}\n" + min_score_line({"person": 0.47563})
    )
    assert load_home(tmp_path, {}).runs["r"].min_score.of("person") == 0.4756


def test_the_asset_shows_figures_and_pictures_and_calls_nobody(tmp_path: Path) -> None:
    truth = coco(("0.jpg", "thing", [1, 2, 30, 20]), images=("0.jpg", "1.jpg"))
    with FakeModel(boxes_of) as model:
        write_box_model(tmp_path, model.url)
        write_pictures(tmp_path, 2)
        dataset = tmp_path / "datasets/street.yaml"
        write_file(dataset, dataset.read_text() + "ground_truth: ../truth.json\n")
        (tmp_path / "truth.json").write_bytes(truth)
        write_run(tmp_path, "things", "finder", "street", "ontology_mapping: {thing: cat}\n")
        run = load_home(tmp_path, {}).runs["things"]
        location = code_location(load_home(tmp_path, {}), places_of({}, tmp_path))
        with dg.DagsterInstance.ephemeral() as instance:
            dg.materialize(
                _selected(location, [data_rows_key("street")]), instance=instance, resources=location.resources
            )
            keys = [responses_key("things"), *decoded_keys(run)]
            dg.materialize(
                _selected(location, keys), instance=instance, resources=location.resources, partition_key="00000"
            )
            calls = len(model.requests)
            result = dg.materialize(
                _selected(location, [evaluation_key("things")]), instance=instance, resources=location.resources
            )
        assert len(model.requests) == calls
    (made,) = result.asset_materializations_for_node("things__evaluation")
    assert made.metadata["boxes_AP"].value == pytest.approx(1.0)
    assert made.metadata["data_rows_compared"].value == 2
    assert "data:image/png;base64," in str(made.metadata["precision_recall_boxes"].value)
    assert Path(str(made.metadata["report"].value)).is_file()


def _selected(location: dg.Definitions, keys: list[dg.AssetKey]) -> list[dg.AssetsDefinition]:
    wanted = set(keys)
    return [asset for asset in location.assets or () if isinstance(asset, dg.AssetsDefinition) and asset.keys & wanted]
