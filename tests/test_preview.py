"""The preview at work: a few calls that the whole run does not pay again, a page, a forecast, parameters tried out."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import dagster as dg
import pytest

from assets.code_location import code_location
from assets.keys import data_rows_key, decoded_keys, preview_key, responses_key
from assets.launchpad import params_field
from foundry_pipeline.home import load_home
from foundry_pipeline.store import Store
from foundry_pipeline.tables import RESPONSES
from resources import places_of
from tests.fake_model import FakeModel, Reply, Request
from tests.home_folder import boxes_of, mood_of, write_box_model, write_file, write_mood_home, write_pictures, write_run

TEXTS = [f"text {n}" for n in range(8)] + ["refused", "bad & <b>bold</b>"]


@dataclass
class Place:
    root: Path
    model: FakeModel
    instance: dg.DagsterInstance

    def make(
        self, *keys: dg.AssetKey, config: Mapping[str, Any] | None = None, partition: str | None = None
    ) -> dg.ExecuteInProcessResult:
        location = code_location(load_home(self.root, {}), places_of({}, self.root))
        assets = [a for a in location.assets or () if isinstance(a, dg.AssetsDefinition) and a.keys & set(keys)]
        ops = {"ops": {f"{keys[0].path[0]}__preview": {"config": config}}} if config else {}
        return dg.materialize(
            assets,
            instance=self.instance,
            resources=location.resources,
            partition_key=partition,
            run_config={"loggers": {"console": {"config": {"log_level": "CRITICAL"}}}, **ops},
            raise_on_error=False,
        )

    def preview(self, run: str = "notes_mood", **config: Any) -> Mapping[str, Any]:
        result = self.make(preview_key(run), config=config)
        assert result.success
        [made] = result.asset_materializations_for_node(f"{run}__preview")
        return {name: value.value for name, value in made.metadata.items()}

    def page(self, run: str = "notes_mood") -> str:
        return (self.root / f"warehouse/preview/run={run}/preview.html").read_text()


@pytest.fixture
def place(tmp_path: Path) -> Iterator[Place]:
    with FakeModel(mood_of) as model, dg.DagsterInstance.ephemeral() as instance:
        write_mood_home(tmp_path, model.url, TEXTS, more="max_failed_share: 1.0\n")
        made = Place(tmp_path, model, instance)
        made.make(data_rows_key("notes"))
        yield made


def test_a_preview_calls_for_its_sample_only_and_the_run_does_not_pay_again(place: Place) -> None:
    place.preview(count=4)
    assert len(place.model.requests) == 4
    run = load_home(place.root, {}).runs["notes_mood"]
    for partition in ("00000", "00001", "00002", "00003", "00004"):
        place.make(responses_key("notes_mood"), *decoded_keys(run), partition=partition)
    assert len(place.model.requests) == len(TEXTS)
    assert sorted(request.text for request in place.model.requests) == sorted(TEXTS)


def test_nothing_is_committed_by_a_preview(place: Place) -> None:
    place.preview(count=4)
    assert Store(place.root / "warehouse").slices(RESPONSES, "notes_mood") == []


def test_the_same_seed_takes_the_same_rows_and_pays_once(place: Place) -> None:
    place.preview(count=3, seed=7)
    place.preview(count=3, seed=7)
    assert len(place.model.requests) == 3


def test_named_rows_are_taken_in_their_order(place: Place) -> None:
    place.preview(rows=["n9", "n8"])
    assert [request.text for request in place.model.requests] == ["refused", "bad & <b>bold</b>"]
    page = place.page()
    assert page.index("<h3>n9</h3>") < page.index("<h3>n8</h3>")


def test_the_page_shows_answers_refusals_and_escapes_texts(place: Place) -> None:
    metadata = place.preview(rows=["n8", "n9", "n0"])
    page = place.page()
    assert "rejected_by_model: http_400" in page
    assert "bad &amp; &lt;b&gt;bold&lt;/b&gt;" in page
    assert "<td>mood</td><td>bad</td>" in page
    assert metadata["refused"] == 1
    assert "Content-Security-Policy" in page


def test_the_forecast_is_of_the_rows_that_have_no_answer(place: Place) -> None:
    metadata = place.preview(count=2)
    assert metadata["calls_to_come"] == 8
    assert "10, of which 2 have their answer" in metadata["forecast"]
    place.make(responses_key("notes_mood"), partition="00000")
    assert place.preview(count=1, rows=["n0"])["calls_to_come"] == 8


def test_a_parameter_is_tried_out_and_comes_with_the_line_to_keep_it(place: Place) -> None:
    metadata = place.preview(count=1, inference_params={"strictness": 0.75})
    assert place.model.requests[0].body["inference_params"] == {"strictness": 0.75}
    assert metadata["for_the_run_file"] == 'inference_params: {"strictness": 0.75}'
    run_file = place.root / "runs/notes_mood.yaml"
    write_file(run_file, run_file.read_text() + metadata["for_the_run_file"] + "\n")
    place.preview(count=1)
    assert len(place.model.requests) == 1, "the run's own parameters now are those that were tried"


@pytest.mark.parametrize(
    ("config", "said"),
    [
        ({"inference_params": {"strictness": 3.5}}, "$.inference_params.strictness"),
        ({"count": 0}, "expected 1 to 500"),
        ({"rows": ["nobody"]}, "nobody"),
    ],
)
def test_what_cannot_be_is_refused_before_any_call(place: Place, config: dict[str, Any], said: str) -> None:
    result = place.make(preview_key("notes_mood"), config=config)
    assert not result.success
    [failure] = result.filter_events(lambda event: event.is_step_failure)
    assert said in str(failure.event_specific_data)
    assert place.model.requests == []


def test_the_launchpad_comes_with_the_runs_own_parameters_filled_in(place: Place) -> None:
    write_run(place.root, "notes_mood", "mood", "notes", "inference_params: {strictness: 0.25}\n")
    field = params_field(load_home(place.root, {}).runs["notes_mood"])
    assert field.default_value == {"strictness": 0.25}
    assert not field.is_required


@pytest.mark.parametrize("params", [{"strictness": "high"}, {"strictnes": 0.5}])
def test_a_wrong_type_or_name_is_refused_by_the_launchpad_itself(place: Place, params: dict[str, Any]) -> None:
    with pytest.raises(dg.DagsterInvalidConfigError, match="strictnes"):
        place.make(preview_key("notes_mood"), config={"inference_params": params})


def test_every_kind_of_parameter_has_its_type_default_and_bounds_in_the_launchpad(place: Place) -> None:
    schema = """
    strictness: {type: number, default: 0.5, minimum: 0, maximum: 1, description: How strict}
    mode: {type: string, enum: [fast, exact], default: fast}
    tasks: {type: array, items: {type: string}, default: [a]}
    limit: {type: [integer, 'null'], default: null}
    more: {type: object, default: {}}
    prompt: {type: string}
"""
    model = place.root / "models/mood.yaml"
    text = model.read_text().split("    strictness:")[0]
    write_file(model, text + schema)
    run = load_home(place.root, {}).runs["notes_mood"]
    fields = params_field(run).config_type.fields  # type: ignore[attr-defined]
    assert {name: field.config_type.given_name or field.config_type.kind.name for name, field in fields.items()} == {
        "strictness": "Float",
        "mode": "notes_mood__mode",
        "tasks": "ARRAY",
        "limit": "NONEABLE",
        "more": "PERMISSIVE_SHAPE",
        "prompt": "String",
    }
    assert fields["strictness"].description == "How strict. minimum: 0, maximum: 1"
    assert fields["strictness"].default_value == 0.5
    assert not fields["prompt"].is_required


def test_pictures_are_drawn_on_the_page_and_small_in_the_metadata(tmp_path: Path) -> None:
    with FakeModel(boxes_of) as model, dg.DagsterInstance.ephemeral() as instance:
        write_box_model(tmp_path, model.url)
        write_pictures(tmp_path, 5)
        write_run(tmp_path, "things", "finder", "street", "")
        place = Place(tmp_path, model, instance)
        place.make(data_rows_key("street"))
        metadata = place.preview("things", count=5)
    assert place.page("things").count("data:image/jpeg;base64,") == 5
    pictures = [value for name, value in metadata.items() if name.startswith("picture_")]
    assert len(pictures) == 3
    assert all(len(picture) < 20_000 for picture in pictures)


def test_several_predictions_of_one_feature_are_counted_in_the_metadata(tmp_path: Path) -> None:
    def reply(_: Request) -> Reply:
        return Reply({"thing": {"boxes": [[1, 2, 30, 20], [5, 5, 9, 9]], "scores": [0.9, 0.8]}})

    with FakeModel(reply) as model, dg.DagsterInstance.ephemeral() as instance:
        write_box_model(tmp_path, model.url)
        write_pictures(tmp_path, 1)
        write_run(tmp_path, "things", "finder", "street", "")
        place = Place(tmp_path, model, instance)
        place.make(data_rows_key("street"))
        assert "| 0.jpg | ok | 2 thing |" in place.preview("things")["rows"]


def test_rejects_are_shown_with_their_reasons(tmp_path: Path) -> None:
    def reply(_: Request) -> Reply:
        return Reply({"mood": "furious"})

    with FakeModel(reply) as model, dg.DagsterInstance.ephemeral() as instance:
        write_mood_home(tmp_path, model.url, ["a"])
        place = Place(tmp_path, model, instance)
        place.make(data_rows_key("notes"))
        metadata = place.preview()
    assert "unknown\\_option" in metadata["rejects"]
    assert "unknown_option" in place.page()
