"""Exports against writing the same bytes, and against direct library calls: json.dumps of the same lines, Pillow."""

from __future__ import annotations

import io
import json
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
from PIL import Image
from pycocotools import mask as coco_mask

from benchmarks import Ratio
from foundry_pipeline.exports import export_run
from foundry_pipeline.home import Dataset, Run
from foundry_pipeline.manifest import Manifest
from foundry_pipeline.png import rle_png
from foundry_pipeline.rle import from_dense
from foundry_pipeline.store import Store
from foundry_pipeline.tables import BOXES, DATA_ROWS, ENTITIES, MASKS, RESPONSES, TableSpec, build

ROWS, BOXES_PER_ROW, MASKS_PER_ROW, ENTITIES_PER_ROW, ROUNDS = 500, 20, 1, 10, 3
MASK_HW, MASK_COPIES = (480, 640), 40
TEXT = "Tom and Bob are happy to work at IBM, and Ann is, too. " * 8
OF_BOXES = ("labelbox", "coco", "yolo_detect", "pascal_voc", "label_studio", "cvat", "huggingface", "csv")
OF_MASKS = ("labelbox", "coco", "yolo_segment", "pascal_voc", "label_studio", "cvat", "huggingface", "csv")
SLICES = 10
OF_AGAIN = ("labelbox", "coco")
OF_ENTITIES = ("labelbox", "label_studio", "spacy", "conll", "huggingface", "csv")


def run() -> list[Ratio]:
    """Export throughput per format, and masks to PNG."""
    with tempfile.TemporaryDirectory() as folder:
        at = Path(folder)
        return [*_export_ratios(at), *_json_ratios(at), *_again_ratios(at / "again"), *_png_ratios()]


def _export_ratios(folder: Path) -> list[Ratio]:
    filled = ((_fill_boxes, OF_BOXES), (_fill_masks, OF_MASKS), (_fill_entities, OF_ENTITIES))
    return [
        _export_ratio(of_run, folder, name) for fill, names in filled for of_run in [fill(folder)] for name in names
    ]


def _export_ratio(of_run: Run, folder: Path, name: str) -> Ratio:
    """CPU of writing an export's bytes from memory, over that of the export: 1 would be as fast as can be."""
    store, made = Store(folder), folder / f"annotations/run={of_run.name}/{name}"
    export_run(of_run, store, name)
    contents = {p.relative_to(made): p.read_bytes() for p in made.rglob("*") if p.is_file()}
    times = _interleaved(lambda: export_run(of_run, store, name, fresh=True), lambda: _write(contents, folder))
    rows_per_s, size_bytes = ROWS / statistics.median(ours for ours, _ in times), sum(map(len, contents.values()))
    return _ratio(
        f"{name}, {of_run.name}",
        "reported",
        f"rows/s, {ROWS} rows -> {size_bytes:,} bytes in {len(contents)} files ({rows_per_s:,.0f}/s)",
        "rows/s, the same files from memory",
        [direct / ours for ours, direct in times],
    )


def _write(contents: dict[Path, bytes], folder: Path) -> None:
    for path, content in contents.items():
        target = folder / "direct" / path
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_bytes(content)


def _json_ratios(folder: Path) -> list[Ratio]:
    store, of_run = Store(folder), _fill_boxes(folder)
    ratios = []
    for name in ("labelbox", "coco"):
        items = _items(folder / f"annotations/run={of_run.name}/{name}")
        times = _interleaved(
            lambda name=name: export_run(of_run, store, name, fresh=True), lambda items=items: _dump(items, folder)
        )
        ratios.append(
            _ratio(
                f"{name}, json",
                "≥ 0.3",
                f"rows/s, tables of {ROWS} rows x {BOXES_PER_ROW} boxes -> checked files",
                "rows/s, json.dumps of the same items, ready in memory -> file",
                [direct / ours for ours, direct in times],
            )
        )
    return ratios


def _again_ratios(folder: Path) -> list[Ratio]:
    """After one slice of many has changed: the export against one that takes nothing from the one before."""
    store, of_run = Store(folder), _fill_boxes(folder, SLICES)
    ratios = []
    for name in OF_AGAIN:
        export_run(of_run, store, name)

        def again(name: str = name) -> None:
            _fill_boxes(folder, 1)
            export_run(of_run, store, name)

        times = _interleaved(again, lambda name=name: export_run(of_run, store, name, fresh=True))
        ratios.append(
            _ratio(
                f"{name}, one slice changed",
                "reported",
                f"CPU, export after one of {SLICES} slices of {ROWS} rows has changed",
                "CPU, the same export made anew",
                [ours / anew for ours, anew in times],
            )
        )
    return ratios


def _png_ratios() -> list[Ratio]:
    dense = _blobs(np.random.default_rng(0))
    rle = from_dense(dense)
    coco = {"size": list(rle.size_hw), "counts": rle.counts}
    assert np.array_equal(coco_mask.decode(coco), np.asarray(Image.open(io.BytesIO(rle_png(rle)))))
    decode = _interleaved(lambda: _repeat(lambda: rle_png(rle, 1)), lambda: _repeat(lambda: coco_mask.decode(coco)))
    usual = _interleaved(lambda: _repeat(lambda: rle_png(rle)), lambda: _repeat(lambda: _pillow_png(coco)))
    return [
        _ratio(
            "mask PNG", "≤ 1.5", "CPU, RLE -> 1-bit PNG, 640x480", "CPU, pycocotools decode", [a / b for a, b in decode]
        ),
        _ratio(
            "mask PNG, 8 bit",
            "≤ 0.6",
            "CPU, RLE -> 8-bit PNG, 640x480",
            "CPU, pycocotools decode + Pillow 'L' PNG",
            [a / b for a, b in usual],
        ),
    ]


def _interleaved(ours: Callable[[], object], theirs: Callable[[], object]) -> list[tuple[float, float]]:
    """CPU seconds of both, in turn, after one warm-up of each."""
    return [(_cpu_s(ours), _cpu_s(theirs)) for _ in range(ROUNDS + 1)][1:]


def _cpu_s(call: Callable[[], object]) -> float:
    begun = time.process_time()
    call()
    return time.process_time() - begun


def _ratio(name: str, goal: str, numerator: str, denominator: str, values: list[float]) -> Ratio:
    return Ratio(
        name=name,
        value=statistics.median(values),
        goal=goal,
        numerator=numerator,
        denominator=denominator,
        spread=(min(values), max(values)),
    )


def _repeat(call: Callable[[], object]) -> None:
    for _ in range(MASK_COPIES):
        call()


def _pillow_png(coco: dict[str, object]) -> bytes:
    target = io.BytesIO()
    Image.fromarray(coco_mask.decode(coco)).save(target, "PNG")
    return target.getvalue()


def _items(folder: Path) -> list[object]:
    """What the export's files hold, an object a line or an array's item."""
    lines = [json.loads(line) for file in sorted(folder.glob("*.ndjson")) for line in file.read_text().splitlines()]
    if lines:
        return lines
    instances = json.loads((folder / "instances.json").read_text())
    return [*json.loads((folder / "results.json").read_text()), *instances["images"], *instances["annotations"]]


def _dump(items: list[object], folder: Path) -> None:
    with (folder / "items").open("w") as file:
        for item in items:
            file.write(json.dumps(item) + "\n")


def _blobs(rng: np.random.Generator) -> np.ndarray:
    """Two discs with ragged edges."""
    height, width = MASK_HW
    y, x = np.mgrid[:height, :width]
    ragged = rng.normal(0, 400, MASK_HW)
    return ((x - 200) ** 2 + (y - 200) ** 2 + ragged < 90**2) | ((x - 420) ** 2 + (y - 300) ** 2 + ragged < 120**2)


def _fill_boxes(folder: Path, slices: int = 1) -> Run:
    """The first slices of a run that found boxes everywhere."""
    places = np.random.default_rng(1).uniform(0, 600, (4, ROWS * BOXES_PER_ROW)).round(2)
    said = dict(zip(("left", "top", "width", "height"), places, strict=True))
    for at in range(slices):
        keys = [f"{number:06}.jpg" for number in range(at * ROWS, (at + 1) * ROWS)]
        of_run = _fill(folder, "boxes", keys, BOXES, BOXES_PER_ROW, said, row_data=keys, slice_key=f"{at:06}")
    return of_run


def _fill_masks(folder: Path) -> Run:
    """One slice of a run that found blobs everywhere."""
    keys = [f"{number:06}.jpg" for number in range(ROWS)]
    rng = np.random.default_rng(0)
    blobs = [from_dense(_blobs(rng)) for _ in range(8)]
    chosen = [blobs[i % len(blobs)] for i in range(ROWS * MASKS_PER_ROW)]
    names = ("left", "top", "width", "height")
    said = {name: [rle.box_ltwh[i] for rle in chosen] for i, name in enumerate(names)}
    said |= {"size_h": [MASK_HW[0]] * len(chosen), "size_w": [MASK_HW[1]] * len(chosen)}
    said |= {"counts": [rle.counts for rle in chosen], "area": [rle.area for rle in chosen]}
    return _fill(folder, "masks", keys, MASKS, MASKS_PER_ROW, said, row_data=keys, size=MASK_HW[::-1])


def _fill_entities(folder: Path) -> Run:
    """One slice of a run that found names in texts of some 450 characters."""
    keys = [f"{number:06}" for number in range(ROWS)]
    starts = [55 * (place // 2 % 8) + (0, 8)[place % 2] for place in range(ROWS * ENTITIES_PER_ROW)]
    texts = [TEXT[start : start + 3] for start in starts]
    said = {"start": starts, "end": [start + 3 for start in starts], "text": texts, "anchor": ["exact"] * len(starts)}
    return _fill(folder, "entities", keys, ENTITIES, ENTITIES_PER_ROW, said, row_data=[TEXT] * ROWS, media="text")


def _fill(
    folder: Path,
    name: str,
    keys: list[str],
    spec: TableSpec,
    per_row: int,
    said: dict[str, object],
    *,
    row_data: list[str],
    media: str = "image",
    size: tuple[int, int] = (1280, 720),
    slice_key: str = "000000",
) -> Run:
    manifest = Manifest("bench", "bench", "bench.yaml", "http://127.0.0.1:1/", 1.0)
    of_run = Run(name, "bench.yaml", manifest, Dataset(name, "bench.yaml", folder, media, "*"))
    rows = {"data_row_id": keys, "global_key": keys, "media_type": [media] * ROWS, "row_data": row_data}
    sizes = {"width": [size[0]] * ROWS, "height": [size[1]] * ROWS, "attachments": [[]] * ROWS, "metadata": [[]] * ROWS}
    answers = {
        "call_id": keys,
        "data_row_id": keys,
        "global_key": keys,
        "outcome": ["ok"] * ROWS,
        "attempts": [1] * ROWS,
    }
    store = Store(folder)
    store.commit(name, slice_key, {DATA_ROWS.name: _table(DATA_ROWS, ROWS, rows | sizes)})
    predictions = _predictions(name, keys, spec, per_row, said)
    store.commit(name, slice_key, {RESPONSES.name: _table(RESPONSES, ROWS, answers), spec.name: predictions})
    return of_run


def _predictions(name: str, keys: list[str], spec: TableSpec, per_row: int, said: dict[str, object]) -> object:
    count = len(keys) * per_row
    of_row = [key for key in keys for _ in range(per_row)]
    names = {column: [name] * count for column in ("run", "model", "dataset")}
    names |= {"data_row_id": of_row, "global_key": of_row, "call_id": of_row, "feature": ["cat"] * count}
    ids = [f"00000000-0000-5000-8000-{number:012}" for number in range(count)]
    scores = np.random.default_rng(2).random(count).round(4)
    order = {"index": [place % per_row for place in range(count)], "prediction_id": ids, "score": scores}
    return _table(spec, count, names | said | order)


def _table(spec: TableSpec, count: int, columns: dict[str, object]) -> object:
    """The table, null in every column that is not given."""
    return build(spec, {name: columns.get(name, [None] * count) for name in spec.schema.names})


if __name__ == "__main__":
    for ratio in run():
        least, most = ratio.spread
        print(f"{ratio.name:24} {ratio.value:6.3f} ({least:.3f}-{most:.3f}), {ratio.goal}: {ratio.numerator}")
