"""Between exports: a slice that has not changed is not read again, and nobody can tell from the files."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest

from foundry_pipeline.errors import RowUnavailable, StorageError
from foundry_pipeline.exports import FORMATS, export_run
from foundry_pipeline.home import MinScore
from foundry_pipeline.store import Store
from tests.exporting import BOX
from tests.warehouse import fill, make_run, mask

SLICES = [f"{number:06}" for number in range(8)]
PICTURES = [name for name in FORMATS if "image" in FORMATS[name].media_types]
TEXTS = [name for name in FORMATS if "text" in FORMATS[name].media_types]


class WatchedStore(Store):
    """Notes which tables are opened."""

    def __init__(self, root: Path) -> None:
        super().__init__(root)
        self.opened: list[tuple[str, str]] = []

    def open(self, spec, owner, slice_key):
        self.opened.append((spec.name, slice_key))
        return super().open(spec, owner, slice_key)

    def read_slices(self) -> set[str]:
        """The slices of which a table was opened since the last look."""
        opened, self.opened = self.opened, []
        return {slice_key for _, slice_key in opened}


def contents(root: Path) -> dict[str, bytes]:
    return {path.relative_to(root).as_posix(): path.read_bytes() for path in root.rglob("*") if path.is_file()}


def fill_pictures(store, run, slice_key, *, feature="cat", score=0.5, row_data=None, rows=3):
    keys = [f"{slice_key}-{number}.jpg" for number in range(rows)]
    data = [{"global_key": key, "width": 60, "height": 40, "row_data": row_data or f"/data/{key}"} for key in keys]
    boxes = [BOX | {"global_key": key, "feature": feature, "score": score} for key in keys]
    masks = [mask(key, "lake", [[1] * 60] * 40) for key in keys[:1]]
    answers = [{"global_key": key, "feature": "weather", "answer": f"of {slice_key}"} for key in keys]
    fill(store, run, slice_key, data_rows=data, boxes=boxes, masks=masks, classifications=answers)


def filled(root: Path, run) -> WatchedStore:
    store = WatchedStore(root)
    for slice_key in SLICES:
        fill_pictures(store, run, slice_key)
    return store


def assert_as_if_made_anew(store, run, name, tmp_path, **options):
    """The export in the warehouse is, byte for byte, one that takes nothing from earlier ones."""
    export_run(run, store, name, tmp_path / "anew", fresh=True, **options)
    assert contents(Path(store.root) / f"annotations/run={run.name}/{name}") == contents(tmp_path / "anew")


@pytest.mark.parametrize("name", PICTURES)
@pytest.mark.parametrize("split", [None, {"train": 0.5, "test": 0.5}])
def test_after_one_slice_of_many_has_changed_no_other_is_read(tmp_path, name, split):
    run = make_run(split=split)
    store = filled(tmp_path / "warehouse", run)
    export_run(run, store, name)
    assert store.read_slices() == set(SLICES)
    fill_pictures(store, run, SLICES[3], score=0.9)
    export_run(run, store, name)
    assert store.read_slices() == {SLICES[3]}
    assert_as_if_made_anew(store, run, name, tmp_path)


@pytest.mark.parametrize("name", PICTURES)
def test_nothing_is_read_where_nothing_has_changed(tmp_path, name):
    run = make_run()
    store = filled(tmp_path / "warehouse", run)
    export_run(run, store, name)
    before = contents(tmp_path / f"warehouse/annotations/run=run/{name}")
    store.read_slices()
    report = export_run(run, store, name)
    assert store.read_slices() == set()
    assert contents(tmp_path / f"warehouse/annotations/run=run/{name}") == before
    assert report.predictions_in == len(SLICES) * 7


@pytest.mark.parametrize("name", TEXTS)
def test_texts_in_their_data_rows_are_not_read_again(tmp_path, name):
    run, store = make_run(media_type="text"), WatchedStore(tmp_path / "warehouse")
    for slice_key in SLICES:
        entities = [{"global_key": slice_key, "feature": "person", "start": 0, "end": 3, "text": "Tom"}]
        fill(store, run, slice_key, data_rows=[{"global_key": slice_key, "row_data": "Tom works"}], entities=entities)
    export_run(run, store, name)
    store.read_slices()
    fill(store, run, SLICES[0], data_rows=[{"global_key": SLICES[0], "row_data": "Ann rests"}])
    export_run(run, store, name)
    assert store.read_slices() == {SLICES[0]}
    assert_as_if_made_anew(store, run, name, tmp_path)


@pytest.mark.parametrize("name", PICTURES)
def test_a_new_class_that_renumbers_the_others_shows_in_every_slice(tmp_path, name):
    run = make_run()
    store = filled(tmp_path / "warehouse", run)
    export_run(run, store, name)
    fill_pictures(store, run, SLICES[3], feature="aardvark")
    export_run(run, store, name)
    assert_as_if_made_anew(store, run, name, tmp_path)


@pytest.mark.parametrize("name", PICTURES)
def test_a_name_that_two_pictures_have_by_now_is_changed_where_it_stood_alone(tmp_path, name):
    run = make_run()
    store = filled(tmp_path / "warehouse", run)
    export_run(run, store, name)
    fill_pictures(store, run, SLICES[3], row_data=f"/other/{SLICES[0]}-0.jpg", rows=1)
    export_run(run, store, name)
    assert_as_if_made_anew(store, run, name, tmp_path)


@pytest.mark.parametrize("name", FORMATS)
def test_other_settings_show_in_every_slice(tmp_path, name):
    run = make_run(min_score=MinScore(0.1))
    store = filled(tmp_path / "warehouse", run)
    export_run(run, store, name)
    for change in (
        {"min_score": MinScore(0.6)},
        {"ontology_mapping": {"cat": "tomcat", "lake": None}},
        {"keep_empty": False, "min_score": MinScore(0.6)},
        {"model": dataclasses.replace(run.model, name="another")},
    ):
        run = dataclasses.replace(run, **change)
        export_run(run, store, name)
        assert_as_if_made_anew(store, run, name, tmp_path)


def flipped(content: bytes) -> bytes:
    return content[:-5] + bytes([content[-5] ^ 1]) + content[-4:]


@pytest.mark.parametrize("what", ["facts", "coco"])
@pytest.mark.parametrize("damage", [flipped, lambda c: c[:-3], lambda c: b"", lambda c: c[:64], lambda c: b"\0" * 99])
def test_a_damaged_part_is_made_again(tmp_path, what, damage):
    run = make_run()
    store = filled(tmp_path / "warehouse", run)
    export_run(run, store, "coco")
    part = tmp_path / f"warehouse/_exports/run=run/{what}/{SLICES[2]}.part"
    whole = part.read_bytes()
    part.write_bytes(damage(whole))
    store.read_slices()
    export_run(run, store, "coco")
    assert store.read_slices() == {SLICES[2]}
    assert part.read_bytes() == whole
    assert_as_if_made_anew(store, run, "coco", tmp_path)


def test_the_part_of_another_slice_or_format_is_no_part_of_this_one(tmp_path):
    run = make_run()
    store = filled(tmp_path / "warehouse", run)
    for name in ("coco", "csv"):
        export_run(run, store, name)
    parts = tmp_path / "warehouse/_exports/run=run"
    (parts / f"coco/{SLICES[0]}.part").write_bytes((parts / f"coco/{SLICES[1]}.part").read_bytes())
    (parts / f"coco/{SLICES[2]}.part").write_bytes((parts / f"csv/{SLICES[2]}.part").read_bytes())
    export_run(run, store, "coco")
    assert_as_if_made_anew(store, run, "coco", tmp_path)


def test_a_table_that_a_person_has_put_there_without_a_commit_is_read(tmp_path):
    run, store, other = make_run(), WatchedStore(tmp_path / "warehouse"), Store(tmp_path / "other")
    fill_pictures(store, run, "0")
    fill_pictures(other, run, "0", score=0.25)
    export_run(run, store, "coco")
    boxes = "boxes/run=run/0.parquet"
    (tmp_path / "warehouse" / boxes).write_bytes((tmp_path / "other" / boxes).read_bytes())
    export_run(run, store, "coco")
    assert '"score":0.25' in (tmp_path / "warehouse/annotations/run=run/coco/results.json").read_text()


def test_a_slice_whose_texts_may_be_others_next_time_is_read_again(tmp_path):
    """One text could not be had, one lies elsewhere and nobody knows its sha256: both are asked for again."""
    run, store = make_run(media_type="text"), WatchedStore(tmp_path / "warehouse")
    said = {"gone": None, "elsewhere": "first", "known": "same"}
    for key in said:
        row = {"global_key": key, "row_data": f"https://host/{key}.txt"}
        fill(store, run, key, data_rows=[row | ({"content_sha256": "00"} if key == "known" else {})])

    def read_text(row):
        if said[row.global_key] is None:
            raise RowUnavailable("row_unreachable", "no route")
        return said[row.global_key]

    export_run(run, store, "spacy", read_text=read_text)
    store.read_slices()
    said |= {"gone": "back", "elsewhere": "second"}
    export_run(run, store, "spacy", read_text=read_text)
    assert store.read_slices() == {"gone", "elsewhere"}
    assert_as_if_made_anew(store, run, "spacy", tmp_path, read_text=read_text)


def test_slices_that_are_no_more_leave_nothing_behind(tmp_path):
    run = make_run()
    store = filled(tmp_path / "warehouse", run)
    export_run(run, store, "coco")
    for path in (tmp_path / "warehouse").glob(f"*/*/{SLICES[1]}.parquet"):
        path.unlink()
    export_run(run, store, "coco")
    parts = tmp_path / "warehouse/_exports/run=run"
    assert {path.stem for path in parts.glob("*/*")} == set(SLICES) - {SLICES[1]}
    assert_as_if_made_anew(store, run, "coco", tmp_path)


def test_parts_lie_where_no_reader_of_tables_or_of_exports_looks(tmp_path):
    run = make_run()
    filled(tmp_path / "warehouse", run)
    export_run(run, Store(tmp_path / "warehouse"), "coco", tmp_path / "out")
    assert {path.name for path in (tmp_path / "out").iterdir()} == {"instances.json", "results.json", "manifest.json"}
    assert {path.parts[-4] for path in (tmp_path / "warehouse").rglob("*.part")} == {"_exports"}


def test_a_table_damaged_in_a_slice_that_must_be_read_stops_the_export_and_keeps_the_old_one(tmp_path):
    run = make_run()
    store = filled(tmp_path / "warehouse", run)
    export_run(run, store, "coco")
    before = contents(tmp_path / "warehouse/annotations")
    (tmp_path / f"warehouse/boxes/run=run/{SLICES[4]}.parquet").write_bytes(b"PAR1 not really PAR1")
    with pytest.raises(StorageError, match=rf"boxes/run=run/{SLICES[4]}.parquet"):
        export_run(run, store, "coco")
    assert contents(tmp_path / "warehouse/annotations") == before
    assert list((tmp_path / "warehouse").glob("_staging/*")) == []
