"""What Dagster is told of a home folder, before anything runs."""

import logging
from pathlib import Path

import dagster as dg
import pytest

from assets.code_location import code_location
from assets.keys import pool_of
from assets.metadata import table_uri
from assets.versions import answers_version, decoding_version, exports_version
from foundry_pipeline.exports import FORMATS
from foundry_pipeline.home import Run, load_home
from foundry_pipeline.store import Store
from foundry_pipeline.tables import TABLES, TableSpec
from resources import places_of
from tests.home_folder import (
    write_box_model,
    write_file,
    write_mood_home,
    write_mood_model,
    write_pictures,
    write_run,
    write_texts,
)

URL = "http://127.0.0.1:1/predict"


@pytest.fixture
def root(tmp_path: Path) -> Path:
    write_mood_home(tmp_path, URL, ["a", "b"], more="exports: [labelbox]\nschedule: '0 2 * * *'\n")
    write_box_model(tmp_path, URL)
    write_pictures(tmp_path, 1)
    write_run(tmp_path, "street_things", "finder", "street", "follow_dataset: true\n")
    return tmp_path


def definitions_of(root: Path) -> dg.Definitions:
    return code_location(load_home(root, {}), places_of({}, root))


def run_of(root: Path, name: str = "notes_mood") -> Run:
    return load_home(root, {}).runs[name]


def spec_of(root: Path, *path: str) -> dg.AssetSpec:
    assets = definitions_of(root).resolve_all_asset_specs()
    return next(spec for spec in assets if spec.key == dg.AssetKey(list(path)))


def test_a_home_becomes_these_assets(root: Path) -> None:
    found = {
        spec.key.to_user_string(): (spec.group_name, spec.partitions_def and spec.partitions_def.name)  # type: ignore[attr-defined]
        for spec in definitions_of(root).resolve_all_asset_specs()
    }
    assert found == {
        "notes/data_rows": ("notes", None),
        "street/data_rows": ("street", None),
        "notes_mood/preview": ("notes_mood", None),
        "notes_mood/responses": ("notes_mood", "notes_slices"),
        "notes_mood/classifications": ("notes_mood", "notes_slices"),
        "notes_mood/rejects": ("notes_mood", "notes_slices"),
        "notes_mood/annotations": ("notes_mood", None),
        "street_things/preview": ("street_things", None),
        "street_things/responses": ("street_things", "street_slices"),
        "street_things/boxes": ("street_things", "street_slices"),
        "street_things/rejects": ("street_things", "street_slices"),
    }


def test_a_run_may_export_every_format(root: Path) -> None:
    """Dagster refuses an asset of more than three kinds."""
    write_run(root, "notes_mood", "mood", "notes", f"exports: [{', '.join(FORMATS)}]\n")
    assert len(spec_of(root, "notes_mood", "annotations").kinds) == 3
    dg.Definitions.validate_loadable(definitions_of(root))


def test_the_code_location_is_valid_as_a_whole(root: Path) -> None:
    dg.Definitions.validate_loadable(definitions_of(root))


def test_jobs_schedules_and_sensors_are_named_after_files(root: Path) -> None:
    repository = definitions_of(root).get_repository_def()
    assert {job.name for job in repository.get_all_jobs()} - {"__ASSET_JOB"} == {
        "notes_data_rows",
        "street_data_rows",
        "notes_mood",
        "notes_mood_preview",
        "street_things",
        "street_things_preview",
    }
    assert [schedule.name for schedule in repository.schedule_defs] == ["notes_mood_schedule"]
    assert {sensor.name: sensor.default_status.value for sensor in repository.sensor_defs} == {
        "notes_growth": "STOPPED",
        "street_growth": "STOPPED",
        "tables_of_good_slices": "STOPPED",
        "made_when_answers_come": "STOPPED",
    }


def test_a_run_may_have_the_name_of_a_datasets_job(root: Path) -> None:
    write_run(root, "notes_data_rows", "mood", "notes")
    names = {job.name for job in definitions_of(root).get_repository_def().get_all_jobs()}
    assert {"notes_data_rows", "notes_data_rows_"} <= names


def test_a_run_may_have_its_datasets_name(root: Path) -> None:
    write_run(root, "notes", "mood", "notes")
    dg.Definitions.validate_loadable(definitions_of(root))


def test_a_home_without_runs_loads(tmp_path: Path) -> None:
    dg.Definitions.validate_loadable(definitions_of(tmp_path))


def test_a_bad_file_takes_only_what_needs_it_and_is_logged_once(root: Path, caplog: pytest.LogCaptureFixture) -> None:
    write_file(root / "models/finder.yaml", "name: finder\nrequests_per_second: -1\n")
    with caplog.at_level(logging.WARNING):
        keys = {spec.key.to_user_string() for spec in definitions_of(root).resolve_all_asset_specs()}
    assert "notes_mood/responses" in keys
    assert "street_things/responses" not in keys
    assert len([record for record in caplog.records if "requests_per_second" in record.getMessage()]) == 1


def test_responses_carry_the_manifests_readme_and_parameters_but_no_foreign_picture(root: Path) -> None:
    description = spec_of(root, "notes_mood", "responses").description or ""
    assert "### Intended use" in description
    assert "| strictness | 0.5 |" in description
    assert URL in description
    assert "![" not in description
    assert "<img" not in description


def test_the_first_sentence_of_every_description_has_no_markdown_since_the_catalogue_shows_it_raw(root: Path) -> None:
    write_mood_model(root, URL, name="mood_of_a_text")
    write_run(root, "notes_mood", "mood_of_a_text", "notes", "exports: [labelbox]\n")
    first = [(spec.description or "").split(". ")[0] for spec in definitions_of(root).resolve_all_asset_specs()]
    assert all(first)
    assert not [sentence for sentence in first if set(sentence) & set("*`\\[<")]


def test_a_secret_in_an_endpoints_query_is_not_shown(root: Path) -> None:
    write_mood_model(root, f"{URL}?key=hunter2")
    shown = [
        text
        for spec in definitions_of(root).resolve_all_asset_specs()
        for text in (str(spec.description), str(spec.metadata), str(spec.tags))
    ]
    assert any("key=" in text for text in shown)
    assert not [text for text in [*shown, pool_of(run_of(root))] if "hunter2" in text]


def test_every_table_has_its_columns_and_its_place(root: Path) -> None:
    spec = spec_of(root, "street_things", "boxes")
    schema = spec.metadata["dagster/column_schema"]
    columns = {column.name: column for column in schema.columns}
    assert columns["left"].type == "double"
    assert columns["left"].description == "from the picture's left edge (pixel)"
    assert not columns["left"].constraints.nullable
    assert columns["score"].constraints.nullable
    assert spec.metadata["dagster/uri"] == f"{root}/warehouse/boxes/run=street_things"
    assert spec.kinds == {"parquet"}


@pytest.mark.parametrize("spec", TABLES.values(), ids=lambda spec: spec.name)
def test_a_tables_place_is_the_stores(tmp_path: Path, spec: TableSpec) -> None:
    assert table_uri(spec, "owner", str(tmp_path)) == Store(tmp_path).uri(spec, "owner")


def test_a_warehouse_on_an_object_store_is_not_opened_to_load_the_code_location(root: Path) -> None:
    places = places_of({"FOUNDRY_WAREHOUSE": "s3://no-such-bucket.invalid/w"}, root)
    definitions = code_location(load_home(root, {}), places)
    uris = {str(spec.metadata.get("dagster/uri")) for spec in definitions.resolve_all_asset_specs()}
    assert "s3://no-such-bucket.invalid/w/boxes/run=street_things" in uris


def test_runs_of_one_endpoint_share_a_pool_whatever_their_model(root: Path) -> None:
    write_mood_model(root, URL, name="other")
    write_mood_model(root, "http://127.0.0.1:2/predict", name="elsewhere")
    for name in ("other", "elsewhere"):
        write_run(root, f"notes_{name}", name, "notes")
    here, other, elsewhere = (pool_of(run_of(root, f"notes_{name}")) for name in ("mood", "other", "elsewhere"))
    assert here == other
    assert here != elsewhere
    op = next(
        node.definition
        for node in definitions_of(root).resolve_job_def("notes_mood").graph.nodes
        if node.name == "notes_mood__invoke_model"
    )
    assert isinstance(op, dg.OpDefinition)
    assert op.pool == here


@pytest.mark.parametrize(
    ("before", "after", "changes"),
    [
        ("requests_per_second: 1000", "requests_per_second: 5", (False, False, False)),
        ("description: Says", "description: Tells", (False, False, False)),
        ("default: 0.5", "default: 0.6", (True, False, False)),
        ("value: bad,", "value: sad,", (True, True, False)),
        (URL, "http://127.0.0.1:2/other", (True, False, False)),
    ],
    ids=["rate", "words", "parameter", "ontology", "endpoint"],
)
def test_what_changes_an_answer_makes_it_stale(root: Path, before: str, after: str, changes: tuple[bool, ...]) -> None:
    def versions() -> tuple[str, ...]:
        run = run_of(root)
        return answers_version(run), decoding_version(run), exports_version(run)

    old = versions()
    manifest = root / "models/mood.yaml"
    manifest.write_text(manifest.read_text().replace(before, after))
    assert tuple(one != other for one, other in zip(old, versions(), strict=True)) == changes


def test_a_run_on_more_data_rows_has_the_same_versions(root: Path) -> None:
    before = answers_version(run_of(root))
    write_texts(root, ["a", "b", "c"])
    assert answers_version(run_of(root)) == before


def test_the_launchpad_explains_every_field(root: Path) -> None:
    job = definitions_of(root).resolve_job_def("notes_mood")
    op = next(node.definition for node in job.graph.nodes if node.name == "notes_mood__invoke_model")
    assert isinstance(op, dg.OpDefinition)
    fields = op.config_schema.config_type.fields  # type: ignore[union-attr]
    assert set(fields) == {"refresh", "retry"}
    assert all(field.description for field in fields.values())
