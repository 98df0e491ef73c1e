"""Hypothesis: masks, JSON as servers send it, and replies that are nearly right."""

from __future__ import annotations

import json
import math
from typing import Any

import numpy as np
from hypothesis import strategies as st

from foundry_pipeline.rle import from_dense

FEATURES = ("car", "lake", "lane", "nose", "tree", "person", "owns", "weather", "signs", "summary")
"""Names of `decoding.EVERYTHING`, an ontology with a feature of every kind."""
KEYS = ("boxes", "masks", "polygons", "lines", "points", "edges", "scores", "classifications", "answer", "score",
        "start", "end", "text", "frames", "size", "counts", "source", "target", "feature", "index", "12")  # fmt: skip


@st.composite
def dense_masks(draw: st.DrawFn, max_side: int = 12) -> np.ndarray:
    """Small pictures of booleans, (height, width); from empty over noise to full."""
    height, width = draw(st.integers(1, max_side)), draw(st.integers(1, max_side))
    share = draw(st.sampled_from([0.0, 0.05, 0.5, 0.95, 1.0]))
    seed = draw(st.integers(0, 2**32 - 1))
    return np.random.default_rng(seed).random((height, width)) < share


LETTERS = "".join(map(chr, range(48, 112)))
"""The alphabet of compressed counts."""


@st.composite
def malformed_masks(draw: st.DrawFn) -> tuple[tuple[int, int], str]:
    """((height, width), counts): right, with a character or two changed, or of letters by chance."""
    mask = from_dense(draw(dense_masks(5)))
    counts = draw(st.just(mask.counts) | st.text(LETTERS, min_size=1, max_size=4) | st.text(max_size=3))
    for _ in range(draw(st.integers(0, 2))):
        at = draw(st.integers(0, len(counts)))
        counts = counts[:at] + draw(st.text(LETTERS, max_size=1)) + counts[at + draw(st.integers(0, 1)) :]
    return mask.size_hw, counts


def runs(max_runs: int = 12) -> st.SearchStrategy[list[int]]:
    """Run lengths, zeros in any place."""
    return st.lists(st.integers(0, 5), min_size=1, max_size=max_runs)


def json_values(max_leaves: int = 20) -> st.SearchStrategy[Any]:
    """Anything that `json.loads` can give, NaN, infinities, huge integers and half surrogate pairs included."""
    strings = st.text(st.characters(), max_size=6) | st.sampled_from([*FEATURES, "\ud800", "b'3'", "joy", "\x00"])
    numbers = (
        st.integers(-5, 10) | st.floats(-3, 900) | st.sampled_from([math.nan, math.inf, 2**64, 10**30, 1e300, -0.0])
    )
    leaves = st.none() | st.booleans() | numbers | strings
    keys = st.sampled_from([*FEATURES, *KEYS]) | strings
    return st.recursive(
        leaves,
        lambda inner: st.lists(inner, max_size=4) | st.dictionaries(keys, inner, max_size=4),
        max_leaves=max_leaves,
    )


def _odd(usual: st.SearchStrategy[Any]) -> st.SearchStrategy[Any]:
    """Mostly what is expected, now and then anything."""
    return st.integers(0, 9).flatmap(lambda dice: json_values(3) if dice == 0 else usual)


def boxes_of_feature() -> st.SearchStrategy[Any]:
    """A feature's object of boxes and scores, as models send it, with a slip here and there."""
    number = st.floats(0, 900) | st.integers(-1, 1) | st.sampled_from([True, None, "3", 2**53, 1e999])
    usual = st.floats(1, 900, allow_nan=False) | st.integers(0, 600)
    box = st.lists(usual, min_size=4, max_size=4) | st.lists(number, min_size=3, max_size=5)
    score = st.floats(0, 1) | st.sampled_from([0, 1, 87, None, True, "0.5"])
    parts = {"boxes": st.lists(box, max_size=4)}
    rarely = st.fixed_dictionaries(parts, optional={"scores": st.lists(score, max_size=4), "note": json_values(2)})
    return st.one_of(st.fixed_dictionaries(parts), rarely, _scored_boxes(usual))


def _scored_boxes(number: st.SearchStrategy[Any]) -> st.SearchStrategy[Any]:
    pair = st.tuples(st.lists(number, min_size=4, max_size=4), st.floats(0, 1))
    return st.lists(pair, max_size=5).map(
        lambda pairs: {"boxes": [p[0] for p in pairs], "scores": [p[1] for p in pairs]}
    )


def box_replies() -> st.SearchStrategy[str]:
    """Bodies that hold boxes and little else, some with a duplicate key, some in frames."""
    features = st.tuples(st.sampled_from(["car", "cat", "lake"]), boxes_of_feature().map(json.dumps))
    part = st.lists(features, max_size=3).map(_object)
    frames = st.lists(st.tuples(st.sampled_from(["0", "1", "12", "01"]), part), max_size=3).map(_object)
    return st.one_of(part, part, frames.map(lambda inner: _object([("frames", inner)])))


def _object(members: list[tuple[str, str]]) -> str:
    """An object of JSON texts; a key may be there twice."""
    return "{" + ", ".join(f"{json.dumps(key)}: {value}" for key, value in members) + "}"


def replies() -> st.SearchStrategy[str]:
    """Bodies of answers: nearly right, anything that is JSON, JSON in a string or fence, cut off, or no JSON."""
    entity = st.fixed_dictionaries(
        {"start": _odd(st.integers(-1, 9)), "end": _odd(st.integers(0, 12))},
        optional={"text": _odd(st.sampled_from(["Tom", "😀", "and"])), "message_id": _odd(st.sampled_from("12"))},
    )
    point = st.lists(_odd(st.floats(0, 99)), min_size=2, max_size=2)
    mask = st.fixed_dictionaries({"size": _odd(st.just([2, 2])), "counts": _odd(st.sampled_from(["04", "13", [1, 3]]))})
    reference = st.fixed_dictionaries({"feature": st.sampled_from(FEATURES), "index": st.integers(-1, 3)})
    edge = st.fixed_dictionaries({"source": _odd(reference), "target": _odd(reference)})
    document = st.fixed_dictionaries(
        {},
        optional={
            "car": boxes_of_feature(),
            "tree": st.fixed_dictionaries({"masks": st.lists(_odd(mask), max_size=3)}),
            "lake": st.fixed_dictionaries({"polygons": st.lists(st.lists(_odd(point), max_size=5), max_size=3)}),
            "lane": st.fixed_dictionaries({"lines": st.lists(st.lists(_odd(point), max_size=3), max_size=3)}),
            "nose": st.fixed_dictionaries({"points": st.lists(_odd(point), max_size=3)}),
            "person": st.lists(_odd(entity), max_size=4),
            "owns": st.fixed_dictionaries({"edges": st.lists(_odd(edge), max_size=3)}),
            "weather": _odd(st.sampled_from(["sun", "rain", "Rain!"])),
            "signs": _odd(st.lists(_odd(st.sampled_from(["joy", "fear"])), max_size=3)),
            "summary": _odd(st.text(max_size=5)),
        },
    )
    framed = st.builds(lambda part, key: {"frames": {key: part}}, document, st.sampled_from(["0", "12", "012", "x"]))
    body = st.one_of(document, document, framed, json_values()).map(json.dumps)
    quoted = body.map(json.dumps)
    fenced = body.map(lambda text: f"Here it is:\n```json\n{text}\n```")
    cut = st.builds(lambda text, at: text[:at], body, st.integers(0, 40))
    return st.one_of(body, body, body, quoted, fenced, cut, st.text(max_size=20))
