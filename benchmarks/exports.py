"""Exports against the direct library calls: the same lines through json.dumps, the same mask through Pillow."""

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
from foundry_pipeline.tables import BOXES, DATA_ROWS, RESPONSES, TableSpec, build

ROWS, BOXES_PER_ROW, ROUNDS = 1_000, 20, 5
MASK_HW, MASK_COPIES = (480, 640), 40


def run() -> list[Ratio]:
    """Export throughput per format, and masks to PNG."""
    with tempfile.TemporaryDirectory() as folder:
        return [*_export_ratios(Path(folder)), *_png_ratios()]


def _export_ratios(folder: Path) -> list[Ratio]:
    store, of_run = Store(folder), _fill(folder)
    ratios = []
    for name, goal in (("labelbox", "≥ 0.3"), ("coco", "≥ 0.3")):
        export_run(of_run, store, name)
        items = _items(folder / f"annotations/run=bench/{name}")
        times = _interleaved(
            lambda name=name: export_run(of_run, store, name), lambda items=items: _dump(items, folder)
        )
        ratios.append(
            _ratio(
                f"export {name}",
                goal,
                f"rows/s, tables of {ROWS} rows x {BOXES_PER_ROW} boxes -> checked files",
                "rows/s, json.dumps of the same items, ready in memory -> file",
                [direct / ours for ours, direct in times],
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
    with (folder / "direct").open("w") as file:
        for item in items:
            file.write(json.dumps(item) + "\n")


def _blobs(rng: np.random.Generator) -> np.ndarray:
    """Two discs with ragged edges."""
    height, width = MASK_HW
    y, x = np.mgrid[:height, :width]
    ragged = rng.normal(0, 400, MASK_HW)
    return ((x - 200) ** 2 + (y - 200) ** 2 + ragged < 90**2) | ((x - 420) ** 2 + (y - 300) ** 2 + ragged < 120**2)


def _fill(folder: Path) -> Run:
    """One slice of a run that found boxes everywhere."""
    manifest = Manifest("bench", "bench", "bench.yaml", "http://127.0.0.1:1/", 1.0)
    of_run = Run("bench", "bench.yaml", manifest, Dataset("bench", "bench.yaml", folder, "image", "*"))
    keys = [f"{number:06}.jpg" for number in range(ROWS)]
    rows = {"data_row_id": keys, "global_key": keys, "media_type": ["image"] * ROWS, "row_data": keys}
    sizes = {"width": [1280] * ROWS, "height": [720] * ROWS, "attachments": [[]] * ROWS, "metadata": [[]] * ROWS}
    answers = {
        "call_id": keys,
        "data_row_id": keys,
        "global_key": keys,
        "outcome": ["ok"] * ROWS,
        "attempts": [1] * ROWS,
    }
    store = Store(folder)
    store.commit("bench", "000000", {DATA_ROWS.name: _table(DATA_ROWS, ROWS, rows | sizes)})
    tables = {RESPONSES.name: _table(RESPONSES, ROWS, answers), BOXES.name: _boxes(keys)}
    store.commit("bench", "000000", tables)
    return of_run


def _boxes(keys: list[str]) -> object:
    count = len(keys) * BOXES_PER_ROW
    of_row = [key for key in keys for _ in range(BOXES_PER_ROW)]
    places = np.random.default_rng(1).uniform(0, 600, (4, count)).round(2)
    said = dict(zip(("left", "top", "width", "height"), places, strict=True))
    names = {name: ["bench"] * count for name in ("run", "model", "dataset")}
    names |= {"data_row_id": of_row, "global_key": of_row, "call_id": of_row, "feature": ["cat"] * count}
    ids = [f"00000000-0000-5000-8000-{number:012}" for number in range(count)]
    scores = np.random.default_rng(2).random(count).round(4)
    order = {"index": [place % BOXES_PER_ROW for place in range(count)], "prediction_id": ids, "score": scores}
    return _table(BOXES, count, names | said | order)


def _table(spec: TableSpec, count: int, columns: dict[str, object]) -> object:
    """The table, null in every column that is not given."""
    return build(spec, {name: columns.get(name, [None] * count) for name in spec.schema.names})


if __name__ == "__main__":
    for ratio in run():
        print(f"{ratio.name:16} {ratio.value:6.2f} ({ratio.spread[0]:.2f}-{ratio.spread[1]:.2f}), goal {ratio.goal}")
