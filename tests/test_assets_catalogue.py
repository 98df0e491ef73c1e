"""What Dagster's catalogue says of the assets: owners, tags, freshness, lineage, links; and what is made by itself."""

from collections.abc import Iterator
from datetime import timedelta
from pathlib import Path
from typing import Any

import dagster as dg
import pytest

from assets.code_location import code_location
from assets.keys import annotations_key, decoded_keys, responses_key
from foundry_pipeline.home import Home, load_home
from foundry_pipeline.tables import TABLES
from resources import places_of
from tests.fake_model import FakeModel
from tests.home_folder import (
    mood_of,
    write_box_model,
    write_file,
    write_mood_home,
    write_pictures,
    write_run,
)
from tests.place import Place, last_materialization

URL = "http://127.0.0.1:1/predict"
SAID = """\
exports: [labelbox]
owners: [team:labels, ann@example.com]
tags: {domain: reviews, cost-centre: '0042'}
freshness: {fail_after: 26h, warn_after: 25h}
"""


@pytest.fixture
def root(tmp_path: Path) -> Path:
    write_mood_home(tmp_path, URL, ["a", "b"], SAID)
    write_box_model(tmp_path, URL)
    write_pictures(tmp_path, 1)
    write_run(tmp_path, "street_things", "finder", "street")
    return tmp_path


def definitions_of(root: Path) -> dg.Definitions:
    home = load_home(root, {})
    assert home.problems == ()
    return code_location(home, places_of({}, root))


def specs_of(root: Path) -> dict[str, dg.AssetSpec]:
    return {spec.key.to_user_string(): spec for spec in definitions_of(root).resolve_all_asset_specs()}


def test_every_asset_has_kinds_and_says_its_model_and_dataset(root: Path) -> None:
    for name, spec in specs_of(root).items():
        assert spec.kinds, name
        assert spec.tags["dataset"] in ("notes", "street")
        assert ("model" in spec.tags) == (not name.endswith("data_rows"))


def test_owners_and_tags_are_those_of_the_file(root: Path) -> None:
    for name, spec in specs_of(root).items():
        mine = name.startswith("notes_mood/")
        assert list(spec.owners) == (["team:labels", "ann@example.com"] if mine else []), name
        said = (spec.tags.get("domain"), spec.tags.get("cost-centre"))
        assert said == (("reviews", "0042") if mine else (None, None)), name


def test_a_dataset_has_owners_tags_and_freshness_of_its_own(root: Path) -> None:
    with (root / "datasets/notes.yaml").open("a") as file:
        file.write("owners: [team:rows]\ntags: {source: crm}\nfreshness: 7d\n")
    spec = specs_of(root)["notes/data_rows"]
    assert (list(spec.owners), spec.tags["source"]) == (["team:rows"], "crm")
    assert spec.freshness_policy == dg.FreshnessPolicy.time_window(timedelta(days=7))


def test_freshness_is_asked_of_what_a_run_file_wants_and_never_of_a_preview(root: Path) -> None:
    policy = dg.FreshnessPolicy.time_window(timedelta(hours=26), timedelta(hours=25))
    for name, spec in specs_of(root).items():
        wanted = name.startswith("notes_mood/") and not name.endswith("preview")
        assert spec.freshness_policy == (policy if wanted else None), name


@pytest.mark.parametrize(
    ("line", "path", "message"),
    [
        ("owners: [ann]", "$.owners[0]", "expected a mail address or team:name; got 'ann'"),
        ("owners: ['team:']", "$.owners[0]", "expected a mail address or team:name"),
        ("tags: {a b: c}", "$.tags['a b']", "expected a name of letters"),
        ("tags: {a: 'b c'}", "$.tags.a", "expected at most 63 letters, digits, _ - .; got 'b c'"),
        ("tags: {dagster/kind/x: ''}", "$.tags['dagster/kind/x']", "is set by the pipeline or by Dagster"),
        ("tags: {model: x}", "$.tags.model", "is set by the pipeline or by Dagster"),
        ("freshness: 26", "$.freshness", "expected minutes, hours or days such as 90m, 26h or 7d; got '26'"),
        ("freshness: 0h", "$.freshness", "expected minutes, hours or days"),
        ("freshness: {fail_after: 1h, warn_after: 2h}", "$.freshness.warn_after", "expected less than fail_after"),
        ("freshness: {fail_afer: 1h}", "$.freshness.fail_afer", "did you mean 'fail_after'?"),
    ],
)
def test_what_dagster_would_refuse_is_a_problem_of_the_file(root: Path, line: str, path: str, message: str) -> None:
    write_run(root, "notes_mood", "mood", "notes", line + "\n")
    home: Home = load_home(root, {})
    assert [problem for problem in home.problems if problem.path == path and message in problem.message], home.problems


@pytest.mark.parametrize("owner", ["team:a b", "team:x", "a.b+c%d@example.co", "_@a.bc"])
def test_an_owner_that_is_taken_is_one_that_dagster_takes(root: Path, owner: str) -> None:
    write_run(root, "notes_mood", "mood", "notes", f"owners: ['{owner}']\ntags: {{a/b: ''}}\n")
    dg.Definitions.validate_loadable(definitions_of(root))
    assert list(specs_of(root)["notes_mood/responses"].owners) == [owner]


def test_lineage_names_columns_that_there_are(root: Path) -> None:
    seen = 0
    for spec in specs_of(root).values():
        lineage: Any = spec.metadata.get("dagster/column_lineage")
        if lineage is None:
            continue
        seen += 1
        for column, sources in lineage.deps_by_column.items():
            assert column in TABLES[spec.key.path[-1]].schema.names
            for source in sources:
                assert source.column_name in TABLES[source.asset_key.path[-1]].schema.names
                assert source.asset_key.to_user_string() in specs_of_keys(root)
    assert seen == 6


def specs_of_keys(root: Path) -> set[str]:
    return set(specs_of(root))


def test_a_boxs_numbers_come_from_the_reply_and_its_pictures_size_from_the_data_row(root: Path) -> None:
    lineage: Any = specs_of(root)["street_things/boxes"].metadata["dagster/column_lineage"]
    deps = {name: [(d.asset_key.to_user_string(), d.column_name) for d in deps] for name, deps in
            lineage.deps_by_column.items()}  # fmt: skip
    assert deps["left"] == [("street_things/responses", "reply")]
    assert deps["image_width"] == [("street/data_rows", "width")]
    assert deps["call_id"] == [("street_things/responses", "call_id")]
    assert "model" not in deps


@pytest.fixture
def place(tmp_path: Path) -> Iterator[Place]:
    with FakeModel(mood_of) as model, dg.DagsterInstance.ephemeral() as instance:
        yield Place(tmp_path, model, instance)


SLICES = ("00000", "00001")


def test_every_materialization_says_where_its_file_is(place: Place) -> None:
    write_mood_home(place.root, place.model.url, ["nice", "bad", "fine"])
    place.execute("notes_data_rows")
    place.execute("notes_mood", None, SLICES)
    for key in [responses_key("notes_mood"), *decoded_keys(place.run())]:
        for slice_key in SLICES:
            assert Path(str(last_materialization(place, key, slice_key).metadata["file"].value)).is_file()
    folder = last_materialization(place, dg.AssetKey(["notes", "data_rows"]), None).metadata["folder"].value
    assert len(list(Path(str(folder)).glob("*.parquet"))) == 2
    exported = last_materialization(place, annotations_key("notes_mood"), None).metadata["labelbox_folder"].value
    assert (Path(str(exported)) / "manifest.json").is_file()


def requested(place: Place, cursor: Any = None) -> tuple[dict[str, int], Any]:
    definitions = code_location(load_home(place.root, {}), places_of({}, place.root))
    keys = [responses_key("notes_mood"), *decoded_keys(place.run()), annotations_key("notes_mood")]
    wanted = dg.AssetSelection.assets(*keys)
    result = dg.evaluate_automation_conditions(definitions, place.instance, wanted, cursor=cursor)
    found = {key.path[-1]: result.get_num_requested(key) for key in keys}
    return found, result.cursor


def test_answered_slices_are_decoded_by_themselves_and_then_exported(place: Place) -> None:
    write_mood_home(place.root, place.model.url, ["nice", "bad", "fine"])
    place.execute("notes_data_rows")
    nothing = {"responses": 0, "classifications": 0, "rejects": 0, "annotations": 0}
    asked, cursor = requested(place)
    assert asked == nothing
    place.execute("notes_mood", [responses_key("notes_mood")], SLICES)
    asked, cursor = requested(place, cursor)
    assert asked == nothing | {"classifications": 2, "rejects": 2}
    place.execute("notes_mood", decoded_keys(place.run()), SLICES)
    asked, cursor = requested(place, cursor)
    assert asked == nothing | {"annotations": 1}


def test_what_a_check_holds_back_is_not_made_by_itself(place: Place) -> None:
    more = "max_failed_share: 1\nexports: [labelbox]\nchecks: {failed_share: {limit: 0.1, blocking: true}}\n"
    write_mood_home(place.root, place.model.url, ["nice", "broken", "fine"], more)
    place.execute("notes_data_rows")
    _, cursor = requested(place)
    place.execute("notes_mood", [responses_key("notes_mood")], SLICES)
    assert sum(requested(place, cursor)[0].values()) == 0


def test_the_rows_without_an_answer_and_their_reasons_stand_on_the_slice(place: Place) -> None:
    """Dagster's page of a partition shows this table; `failed_rows` is the same in SQL."""
    write_mood_home(place.root, place.model.url, ["nice", "refused", "fine"])
    place.execute("notes_data_rows")
    place.execute("notes_mood", [responses_key("notes_mood")], SLICES)
    table = str(last_materialization(place, responses_key("notes_mood"), "00000").metadata["rows_without_answer"].value)
    assert "| n1 | rejected by model |" in table
    assert "not this one" in table


def test_nothing_is_launched_that_nobody_turned_on(root: Path) -> None:
    write_file(root / "runs/more.yaml", "model: mood\ndataset: notes\nschedule: '0 2 * * *'\nfollow_dataset: true\n")
    repository = definitions_of(root).get_repository_def()
    assert {schedule.default_status for schedule in repository.schedule_defs} == {dg.DefaultScheduleStatus.STOPPED}
    running = {s.name for s in repository.sensor_defs if s.default_status == dg.DefaultSensorStatus.RUNNING}
    assert running == set()
