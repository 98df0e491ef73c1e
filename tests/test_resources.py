from collections.abc import AsyncIterator, Mapping
from pathlib import Path

import dagster as dg
import httpx
import pytest

from assets.code_location import code_location
from foundry_pipeline.errors import ConfigError
from foundry_pipeline.home import Dataset, Home, load_home
from foundry_pipeline.store import Store
from foundry_pipeline.tables import DATA_ROWS
from resources import (
    CHECKOUT,
    Contents,
    ContentsResource,
    HomeResource,
    ModelCalls,
    ModelCallsResource,
    WarehouseResource,
    places_of,
)
from resources.fingerprints import source_fingerprint
from tests.fake_model import FakeModel
from tests.home_folder import mood_of, write_mood_home, write_pictures, write_texts


def context() -> dg.InitResourceContext:
    return dg.build_init_resource_context()


DEMO = str(CHECKOUT / "demo/home")


@pytest.mark.parametrize(
    ("environ", "argument", "expected"),
    [
        ({}, None, (DEMO, f"{DEMO}/warehouse", f"{DEMO}/ledger", f"{DEMO}/.dagster")),
        ({"FOUNDRY_HOME": "/h"}, None, ("/h", "/h/warehouse", "/h/ledger", "/h/.dagster")),
        ({"FOUNDRY_HOME": "/h"}, "/other", ("/other", "/other/warehouse", "/other/ledger", "/other/.dagster")),
        (
            {"FOUNDRY_HOME": "/h", "FOUNDRY_WAREHOUSE": "s3://b/w", "FOUNDRY_LEDGER": "/l", "DAGSTER_HOME": "/d"},
            None,
            ("/h", "s3://b/w", "/l", "/d"),
        ),
        (
            {"FOUNDRY_HOME": "", "DAGSTER_HOME": ""},
            None,
            (DEMO, f"{DEMO}/warehouse", f"{DEMO}/ledger", f"{DEMO}/.dagster"),
        ),
    ],
    ids=["nothing said", "home", "argument", "everything", "empty is nothing"],
)
def test_places_are_what_the_environment_says(
    environ: Mapping[str, str], argument: str | None, expected: tuple[str, ...]
) -> None:
    places = places_of(environ, argument)
    assert (str(places.home), places.warehouse, places.ledger, str(places.dagster_home)) == expected


def test_resources_hand_out_domain_objects_that_know_nothing_of_dagster(tmp_path: Path) -> None:
    write_mood_home(tmp_path, "http://127.0.0.1:1/", ["a"])
    home = HomeResource(root=str(tmp_path)).create_resource(context())
    assert isinstance(home, Home)
    assert list(home.runs) == ["notes_mood"]
    assert isinstance(WarehouseResource(root=str(tmp_path / "w")).create_resource(context()), Store)
    assert isinstance(ContentsResource(home_root=str(tmp_path)).create_resource(context()), Contents)
    calls = ModelCallsResource(home_root=str(tmp_path), warehouse_root=str(tmp_path / "w"), ledger=str(tmp_path / "l"))
    assert isinstance(calls.create_resource(context()), ModelCalls)


def test_a_missing_home_is_named(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="nowhere"):
        HomeResource(root=str(tmp_path / "nowhere")).create_resource(context())


def test_every_field_is_described_and_none_is_a_secret() -> None:
    for resource in (HomeResource, WarehouseResource, ModelCallsResource, ContentsResource):
        for name, field in resource.model_fields.items():
            assert field.description, f"{resource.__name__}.{name}"
            assert not {"secret", "token", "key", "password"} & set(name.split("_"))


def test_the_environment_is_not_in_what_model_calls_say_of_themselves(tmp_path: Path) -> None:
    write_mood_home(tmp_path, "http://127.0.0.1:1/", ["a"])
    calls = ModelCalls(load_home(tmp_path, {}), Store(tmp_path), str(tmp_path), {"TOKEN": "s3cret-value"})
    assert "s3cret-value" not in repr(calls)


def test_model_calls_open_and_close_for_each_run(tmp_path: Path) -> None:
    from foundry_pipeline.rows.datasets import load_dataset

    with FakeModel(mood_of) as model:
        write_mood_home(tmp_path, model.url, ["a", "bad"])
        home, store = load_home(tmp_path, {}), Store(tmp_path / "w")
        run = home.runs["notes_mood"]
        load_dataset(run.dataset, home.root, home.settings, store)
        calls = ModelCalls(home, store, str(tmp_path / "l"), {})
        for expected in (2, 0):
            with calls.open(run) as invoker:
                [report] = list(invoker.invoke(["00000"]))
            assert (report.ok, report.calls) == (2, expected)


def test_a_row_reader_gives_texts_and_pictures(tmp_path: Path) -> None:
    from foundry_pipeline.data_rows import rows_of
    from foundry_pipeline.rows.datasets import load_dataset

    write_texts(tmp_path, ["grüße"])
    write_pictures(tmp_path, 1)
    home, store = load_home(tmp_path, {}), Store(tmp_path / "w")
    found = {}
    for dataset in home.datasets.values():
        load_dataset(dataset, home.root, home.settings, store)
        table = store.read(DATA_ROWS, dataset.name, "00000")
        assert table is not None
        found[dataset.name] = next(rows_of(table))
    contents = Contents(home.root, home.settings)
    with contents.open(home.datasets["notes"]) as reader:
        assert reader.text(found["notes"]) == "grüße"
    with contents.open(home.datasets["street"]) as reader:
        assert reader.picture(found["street"]) == (tmp_path / "pictures/0.jpg").read_bytes()


def dataset_of(folder: Path, source: str) -> Dataset:
    return Dataset("d", "datasets/d.yaml", folder, "text", source)


@pytest.mark.parametrize("source", ["*.txt", "texts", "texts/**/*.txt", "rows.csv"])
def test_a_fingerprint_stays_while_nothing_changes_and_changes_with_every_file(tmp_path: Path, source: str) -> None:
    files = [tmp_path / "rows.csv", tmp_path / "a.txt", tmp_path / "texts/deep/b.txt"]
    for file in files:
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text("one")
    dataset = dataset_of(tmp_path, source)
    before = source_fingerprint(dataset)
    assert source_fingerprint(dataset) == before
    belonging = {"*.txt": files[1], "texts": files[2], "texts/**/*.txt": files[2], "rows.csv": files[0]}[source]
    belonging.write_text("longer")
    changed = source_fingerprint(dataset)
    belonging.unlink()
    assert len({before, changed, source_fingerprint(dataset)}) == 3


def test_a_fingerprint_changes_when_a_file_is_added_or_a_setting_changes(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("one")
    before = source_fingerprint(dataset_of(tmp_path, "*.txt"))
    assert source_fingerprint(dataset_of(tmp_path, "*.md")) != before
    (tmp_path / "b.txt").write_text("two")
    assert source_fingerprint(dataset_of(tmp_path, "*.txt")) != before


def test_a_source_that_is_not_there_has_a_fingerprint_too(tmp_path: Path) -> None:
    missing = source_fingerprint(dataset_of(tmp_path, "rows.csv"))
    (tmp_path / "rows.csv").write_text("row_data\nx\n")
    assert source_fingerprint(dataset_of(tmp_path, "rows.csv")) != missing


def test_model_calls_take_another_transport_as_a_resource(tmp_path: Path) -> None:
    """The seam for tests of assets: the code location takes resources of the same name instead of its own."""
    write_mood_home(tmp_path, "http://model.invalid/", ["a"])
    asked = []

    async def body() -> AsyncIterator[bytes]:
        yield b'{"mood": "good"}'

    def answer(request: httpx.Request) -> httpx.Response:
        asked.append(request.url.host)
        return httpx.Response(200, content=body())

    home, places = load_home(tmp_path, {}), places_of({}, tmp_path)
    calls = ModelCalls(home, Store(places.warehouse), places.ledger, {}, lambda: httpx.MockTransport(answer))
    definitions = code_location(home, places, {"model_calls": calls})
    with dg.DagsterInstance.ephemeral() as instance:
        assert definitions.resolve_job_def("notes_data_rows").execute_in_process(instance=instance).success
        job = definitions.resolve_job_def("notes_mood")
        assert job.execute_in_process(instance=instance, partition_key="00000").success
    assert asked == ["model.invalid"]
