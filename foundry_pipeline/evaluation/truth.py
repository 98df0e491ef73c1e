"""Ground truth as this package compares it with predictions: what a person marked, by kind, under their own names.

Reading it from files is the matter of `coco_truth.py` and `annotation_truth.py`.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from foundry_pipeline.rle import Rle


@dataclass(frozen=True, slots=True)
class TrueObject:
    """A box or mask. `box_ltwh` and `area` in pixels; `rle` where the mask is known.

    `area` decides between small, medium and large, and is what the source says. `crowd` marks a region of many
    objects: what is found in it is neither right nor wrong.
    """

    truth_id: str
    global_key: str
    feature: str
    box_ltwh: tuple[float, float, float, float]
    area: float
    rle: Rle | None = None
    crowd: bool = False


@dataclass(frozen=True, slots=True)
class TrueEntity:
    """A span of text, in code points, half open. `message_id` in a conversation."""

    truth_id: str
    global_key: str
    feature: str
    start: int
    end: int
    message_id: str | None = None


@dataclass(frozen=True, slots=True)
class TrueAnswer:
    """The answers to one question about a data row: one for a radio or free text, any number for a checklist."""

    truth_id: str
    global_key: str
    feature: str
    answers: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Truth:
    """What is true of a dataset. Only data rows in `rows` have been looked at by a person.

    `category_ids` are the file's own numbers of features, `image_ids` of data rows; both fix the order of sums.
    `unused` says what the file holds that nothing is compared with: reason -> count.
    """

    rows: frozenset[str]
    boxes: tuple[TrueObject, ...] = ()
    masks: tuple[TrueObject, ...] = ()
    entities: tuple[TrueEntity, ...] = ()
    choices: tuple[TrueAnswer, ...] = ()
    texts: tuple[TrueAnswer, ...] = ()
    category_ids: Mapping[str, int] = field(default_factory=dict)
    image_ids: Mapping[str, int] = field(default_factory=dict)
    unused: Mapping[str, int] = field(default_factory=dict)
