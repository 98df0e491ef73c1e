"""Ground truth as this package compares it with predictions: what a person marked, by kind, under their own names.

Reading it from files is the matter of `coco_truth.py` and `annotation_truth.py`.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import pairwise

from foundry_pipeline.rle import Rle


@dataclass(frozen=True, slots=True)
class TrueObject:
    """A box or mask. `box_ltwh` and `area` in pixels; `rle` where the mask is known.

    `area` decides between small, medium and large, and is what the source says. `crowd` marks a region of many
    objects: what is found in it is neither right nor wrong. `frame` in a video.
    """

    truth_id: str
    global_key: str
    feature: str
    box_ltwh: tuple[float, float, float, float]
    area: float
    rle: Rle | None = None
    crowd: bool = False
    frame: int | None = None


@dataclass(frozen=True, slots=True)
class TrueTrack:
    """An object's boxes in a video. A segment is key frames, rising, each with its box as left, top, width, height;
    between two of them the box moves evenly, as it does in the platform's editor."""

    truth_id: str
    global_key: str
    feature: str
    segments: tuple[tuple[tuple[int, tuple[float, float, float, float]], ...], ...]

    def objects_in(self, frames: Iterable[int]) -> Iterator[TrueObject]:
        """The object in those of the frames in which it is to be seen."""
        for frame in frames:
            box = next((box for segment in self.segments if (box := _box_at(segment, frame)) is not None), None)
            if box is not None:
                yield TrueObject(self.truth_id, self.global_key, self.feature, box, box[2] * box[3], frame=frame)


def _box_at(
    segment: Sequence[tuple[int, tuple[float, float, float, float]]], frame: int
) -> tuple[float, float, float, float] | None:
    for (first, begin), (last, end) in pairwise((*segment, segment[-1])):
        if first <= frame <= last:
            share = (frame - first) / (last - first) if last > first else 0.0
            left, top, width, height = (one + (other - one) * share for one, other in zip(begin, end, strict=True))
            return left, top, width, height
    return None


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
    """The answers to one question about a data row: one for a radio or free text, any number for a checklist.

    It may be about one message of a conversation; or about `ranges` of a video's frames, both ends included, and then
    stands for an answer about each `frame` that is looked at.
    """

    truth_id: str
    global_key: str
    feature: str
    answers: tuple[str, ...]
    message_id: str | None = None
    ranges: tuple[tuple[int, int], ...] = ()
    frame: int | None = None

    @property
    def part(self) -> int | str | None:
        """The part of the data row that it is about; None for the whole."""
        return self.message_id if self.frame is None else self.frame

    def in_frames(self, frames: Iterable[int]) -> Iterator[TrueAnswer]:
        """The answer about each of the frames that it holds for; the answer itself, where it is about no frames."""
        if not self.ranges:
            yield self
        for frame in frames:
            if any(first <= frame <= last for first, last in self.ranges):
                yield replace(self, ranges=(), frame=frame)


@dataclass(frozen=True, slots=True)
class Truth:
    """What is true of a dataset. Only data rows in `rows` have been looked at by a person.

    `category_ids` are the file's own numbers of features, `image_ids` of data rows; both fix the order of sums.
    `unused` says what the file holds that nothing is compared with: reason -> count. `tracks` are the boxes in videos
    before it is known which frames are looked at (`in_frames`).
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
    tracks: tuple[TrueTrack, ...] = ()

    def in_frames(self, frames: Mapping[str, Sequence[int]]) -> Truth:
        """The truth about these frames of videos: global key -> frames, rising."""
        boxes = (box for track in self.tracks for box in track.objects_in(frames.get(track.global_key, ())))
        choices, texts = (
            tuple(part for answer in answers for part in answer.in_frames(frames.get(answer.global_key, ())))
            for answers in (self.choices, self.texts)
        )
        return replace(self, boxes=(*self.boxes, *boxes), choices=choices, texts=texts, tracks=())
