"""Masks of several replies, checked together before the replies are read: several times as fast as one by one.

What a mask must look like is in `foundry_pipeline/rle.py`.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping

from foundry_pipeline import rle

MASKS = "masks"

Checked = Mapping[int, rle.Rle | rle.BadRle]
"""Identity of a mask's object -> what it is. Good as long as its document lives."""


def check_masks(documents: Iterable[tuple[object, rle.Size | None]]) -> Checked:
    """Check the masks of parsed replies, each given with its picture's (height, width), None where nobody knows it."""
    found = [(mask, image_hw) for document, image_hw in documents for mask in _masks_in(document)]
    checked = rle.check_all(rle.Foreign(mask["size"], mask["counts"], image_hw) for mask, image_hw in found)
    return {id(mask): result for (mask, _), result in zip(found, checked, strict=True)}


def _masks_in(document: object) -> Iterator[dict[str, object]]:
    """The masks of a reply's features, and of its frames' features. What looks otherwise is left to its reader."""
    for value in _values(document):
        if MASKS in value:
            yield from _masks_of(value)
        else:
            for part in _values(value):
                for feature in _values(part):
                    yield from _masks_of(feature)


def _values(value: object) -> Iterator[dict[str, object]]:
    if isinstance(value, dict):
        yield from (member for member in value.values() if isinstance(member, dict))


def _masks_of(feature: Mapping[str, object]) -> Iterator[dict[str, object]]:
    items = feature.get(MASKS)
    if isinstance(items, list):
        yield from (item for item in items if isinstance(item, dict) and "size" in item and "counts" in item)
