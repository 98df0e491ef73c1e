"""Decoding: replies to Arrow against pyarrow's own JSON reader, masks against pycocotools, and entities.

The yardsticks do less: pyarrow.json checks nothing and gives neither ids nor the data row's columns; pycocotools
measures masks that it trusts. All are CPU time, rounds interleaved, the median of the rounds' ratios.
"""

from __future__ import annotations

import io
import json
import random
import statistics
import time
from collections.abc import Callable, Sequence

import numpy as np
import pyarrow as pa
import pyarrow.json as pajson
from pycocotools import mask as coco

from benchmarks import Ratio
from foundry_pipeline.data_rows import DataRow
from foundry_pipeline.decode import SliceDecoder
from foundry_pipeline.ontology import FeatureKind, Ontology, Tool
from foundry_pipeline.rle import Foreign, Rle, check_all, from_dense

ROUNDS = 7
REPLIES, BOXES_A_REPLY, CLASSES = 10_000, 20, ("car", "cat", "dog", "person")
TEXTS, ENTITIES_A_TEXT = 2_000, 50
MASKS, MASK_HW = 100, (480, 640)


def run() -> list[Ratio]:
    """Boxes, masks and entities."""
    return [boxes(), masks(), mask_tables(), entities()]


def boxes() -> Ratio:
    """Boxes a second, replies to tables, against the same replies read by pyarrow.json with an explicit schema."""
    rng = random.Random(1)
    replies = [_box_reply(rng) for _ in range(REPLIES)]
    rows = [DataRow(f"id-{at}", f"pictures/{at:06}.jpg", "image", "", width=640, height=480) for at in range(REPLIES)]
    feature = pa.struct({"boxes": pa.list_(pa.list_(pa.float64())), "scores": pa.list_(pa.float64())})
    schema = pa.schema([(name, feature) for name in CLASSES])
    lines = "\n".join(replies).encode()

    def yardstick() -> pa.Table:
        options = pajson.ReadOptions(use_threads=False)
        return pajson.read_json(io.BytesIO(lines), options, pajson.ParseOptions(explicit_schema=schema))

    def decode() -> pa.Table:
        return _decoded(CLASSES, FeatureKind.RECTANGLE, rows, replies)["boxes"]

    ours, theirs = decode()["left"].to_numpy().sum(), yardstick()
    lefts = sum(box[0] for name in CLASSES for row in theirs[name].to_pylist() for box in row["boxes"])
    assert abs(ours - lefts) < 1e-3
    return _ratio("decode", ">= 0.5", "boxes/s, reply to Arrow", "pyarrow.json, explicit schema", decode, yardstick)


def masks() -> Ratio:
    """Masks a second, checked and measured, against pycocotools measuring the same masks unchecked."""
    found = [_mask(np.random.default_rng(at)) for at in range(MASKS)]
    foreign = [Foreign(list(MASK_HW), mask.counts, MASK_HW) for mask in found]
    theirs = [{"size": list(MASK_HW), "counts": mask.counts.encode()} for mask in found]

    def ours() -> list[Rle]:
        return [mask for mask in check_all(foreign) if isinstance(mask, Rle)]

    def yardstick() -> tuple[list[int], list[list[float]]]:
        return coco.area(theirs).tolist(), coco.toBbox(theirs).tolist()

    assert ([mask.area for mask in ours()], [list(mask.box_ltwh) for mask in ours()]) == yardstick()
    return _ratio(
        "masks", ">= 0.12", "masks/s checked, area, box, 640x480", "pycocotools area + toBbox", ours, yardstick, 10
    )


def mask_tables() -> Ratio:
    """Masks a second, replies to tables, one a reply. A rate: its denominator is 1."""
    found = [_mask(np.random.default_rng(at)) for at in range(MASKS)]
    replies = [json.dumps({"person": {"masks": [{"size": MASK_HW, "counts": mask.counts}]}}) for mask in found] * 10
    rows = [DataRow(f"id-{at}", f"{at:06}.jpg", "image", "", width=640, height=480) for at in range(len(replies))]

    def decode() -> pa.Table:
        return _decoded(("person",), FeatureKind.MASK, rows, replies)["masks"]

    assert decode()["area"].to_pylist() == [mask.area for mask in found] * 10
    return _rate("mask tables", ">= 10000", "masks/s, reply to Arrow, 640x480", decode, len(replies))


def entities() -> Ratio:
    """Entities a second, replies to tables, each checked against its text. A rate: its denominator is 1."""
    rng = random.Random(2)
    texts = [
        " ".join(rng.choice(("Tom", "Bob", "IBM", "works", "at", "in", "Paris")) for _ in range(400))
        for _ in range(TEXTS)
    ]
    replies = [_entity_reply(rng, text) for text in texts]
    rows = [DataRow(f"id-{at}", f"texts/{at:06}.txt", "text", text) for at, text in enumerate(texts)]

    def decode() -> pa.Table:
        return _decoded(("person", "company"), FeatureKind.ENTITY, rows, replies, texts)["entities"]

    assert decode().num_rows == TEXTS * ENTITIES_A_TEXT
    return _rate("entities", ">= 300000", "entities/s, reply to Arrow", decode, TEXTS * ENTITIES_A_TEXT)


def _ratio(
    name: str,
    goal: str,
    numerator: str,
    denominator: str,
    ours: Callable[[], object],
    yardstick: Callable[[], object],
    times: int = 1,
) -> Ratio:
    """How fast we are, as a share of the yardstick's speed: its time by ours, round by round."""
    found = []
    for _ in range(ROUNDS):
        theirs_s = _cpu_s(yardstick, times)
        found.append(theirs_s / _cpu_s(ours, times))
    return Ratio(name, statistics.median(found), goal, numerator, denominator, (min(found), max(found)))


def _rate(name: str, goal: str, numerator: str, ours: Callable[[], object], items: int) -> Ratio:
    rates = [items / _cpu_s(ours) for _ in range(ROUNDS)]
    return Ratio(name, statistics.median(rates), goal, numerator, "1", (min(rates), max(rates)))


def _cpu_s(work: Callable[[], object], times: int = 1) -> float:
    started = time.process_time()
    for _ in range(times):
        work()
    return time.process_time() - started


def _decoded(
    names: Sequence[str],
    kind: FeatureKind,
    rows: Sequence[DataRow],
    replies: Sequence[str],
    texts: Sequence[str | None] | None = None,
) -> dict[str, pa.Table]:
    known = Ontology(None, (), tuple(Tool(name, kind) for name in names))
    decoder = SliceDecoder("street_objects", "objects", "street", known, (), rows[0].media_type)
    for row, reply, text in zip(rows, replies, texts or [None] * len(rows), strict=True):
        decoder.add(row, "0123456789abcdef" * 4, reply, text)
    return decoder.finish()


def _box_reply(rng: random.Random) -> str:
    def feature(count: int) -> dict[str, object]:
        found = [[round(rng.uniform(0, 300), 2) for _ in range(4)] for _ in range(count)]
        return {"boxes": found, "scores": [round(rng.random(), 4) for _ in range(count)]}

    return json.dumps({name: feature(BOXES_A_REPLY // len(CLASSES)) for name in CLASSES})


def _entity_reply(rng: random.Random, text: str) -> str:
    found: dict[str, list[dict[str, object]]] = {"person": [], "company": []}
    for _ in range(ENTITIES_A_TEXT):
        start = rng.randrange(len(text) - 20)
        end = start + rng.randrange(2, 20)
        item = {"start": start, "end": end, "text": text[start:end], "score": round(rng.random(), 4)}
        found[rng.choice(("person", "company"))].append(item)
    return json.dumps(found)


def _mask(rng: np.random.Generator) -> Rle:
    """One to three blobs with a rough edge, some 900 runs."""
    height, width = MASK_HW
    y, x = np.mgrid[:height, :width]
    pixels = np.zeros(MASK_HW, bool)
    for _ in range(rng.integers(1, 4)):
        at_y, at_x = rng.integers(60, height - 60), rng.integers(60, width - 60)
        rough = 0.05 * np.sin(x / rng.uniform(4, 9)) + 0.05 * np.sin(y / rng.uniform(4, 9))
        pixels |= ((y - at_y) / rng.uniform(40, 150)) ** 2 + ((x - at_x) / rng.uniform(40, 220)) ** 2 + rough < 1
    return from_dense(pixels)
