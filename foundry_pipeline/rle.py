"""Masks as COCO run lengths: checked, made canonical and measured in numpy, never as pixels.

Runs go down columns and the first one counts zeros, even where it is 0. The C code of pycocotools crashes, hangs or
leaks memory on malformed runs, so foreign masks pass `check` first, and everything downstream sees canonical runs only:
no zero after the first, each number in its shortest spelling. Many masks are read as one array: a call of numpy costs
as much as reading a small mask.
Source of the format: cocodataset/cocoapi, `common/maskApi.c`, `rleToString` and `rleFrString`.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

Runs = npt.NDArray[np.int64]
Size = tuple[int, int]

MAX_SIDE = 2**20
MAX_PIXELS = 2**28
MAX_NUMBER_CHARS = 6
MAX_COUNTS_CHARS = 2**22
"""Outlines of real objects in the largest pictures have a tenth of it. Reading takes some 50 bytes a character."""
BATCH_CHARS = 2**16
"""Masks are read together up to this many characters: what is in work then fits a processor's cache."""
_ZERO = 48
_ALPHABET = bytes(range(_ZERO, _ZERO + 64))
_MORE = 0x20
_FIRST_MORE = _ZERO + _MORE
_LOW: Runs = (np.arange(256, dtype=np.int64) - _ZERO) & 0x1F
"""Character -> its five bits."""
_SIGNED: Runs = (_LOW ^ 0x10) - 0x10
"""Character -> its five bits as a signed number."""


@dataclass(frozen=True, slots=True)
class Rle:
    """One valid mask. `counts` is canonical and compressed, `area` in pixels, `box_ltwh` in pixels, zeros if empty."""

    size_hw: Size
    counts: str
    area: int
    box_ltwh: tuple[float, float, float, float]


@dataclass(frozen=True, slots=True)
class BadRle:
    """Why a mask is refused. `reason` is a reject reason; `rule` is 1 size, 2 characters, 3 numbers, 4 runs."""

    reason: str
    rule: int
    message: str


@dataclass(frozen=True, slots=True)
class Foreign:
    """A mask as its reply has it. `size` should be [height, width]; `counts` a compressed string (or its Python bytes
    literal, `b'...'`) or a list of runs; `image_hw` is the picture's size in pixels, None where nobody knows it."""

    size: object
    counts: object
    image_hw: Size | None


def check(size: object, counts: object, image_hw: Size | None) -> Rle | BadRle:
    """A foreign mask, as of `Foreign`, made canonical and measured; or why it is refused. Never raises."""
    return check_all([Foreign(size, counts, image_hw)])[0]


def check_all(masks: Iterable[Foreign]) -> list[Rle | BadRle]:
    """`check` of each, several times as fast where they are many."""
    found: list[Rle | BadRle] = []
    for batch in _batches(map(_opened, masks)):
        checked = _checked([mask for mask in batch if isinstance(mask, _Opened)])
        found += [mask if isinstance(mask, BadRle) else next(checked) for mask in batch]
    return found


def encode_runs(runs: Runs) -> str:
    """Compressed counts of run lengths below 2**29, as pycocotools writes them. Inverse of `decode_runs`."""
    return _encoded([runs])[0].decode("ascii")


def decode_runs(counts: str) -> Runs:
    """Run lengths of compressed counts that `check` has accepted. Inverse of `encode_runs`."""
    return _pairs_of(counts).of(0)


def to_dense(rle: Rle) -> npt.NDArray[np.bool_]:
    """The mask's pixels, shape (height, width)."""
    runs = decode_runs(rle.counts)
    height, width = rle.size_hw
    return np.repeat(np.arange(len(runs)) % 2 == 1, runs).reshape((width, height)).T


def from_dense(mask: npt.NDArray[np.bool_]) -> Rle:
    """The canonical runs of a picture of booleans, shape (height, width), both at least 1."""
    flat = np.asarray(mask, bool).T.ravel()
    edges = np.flatnonzero(flat[1:] != flat[:-1]) + 1
    runs = np.diff(np.concatenate(([0], edges, [flat.size])))
    if flat[0]:
        runs = np.concatenate(([0], runs))
    counts = encode_runs(runs)
    height, width = mask.shape
    return Rle((height, width), counts, int(runs[1::2].sum()), _pairs_of(counts).boxes_ltwh(np.array([height]))[0])


@dataclass(frozen=True, slots=True)
class _Opened:
    """A mask of sound size and characters (rules 1 and 2), or of a list's runs. Their sum is not known yet."""

    size_hw: Size
    counts: bytes | Runs


def _opened(mask: Foreign) -> _Opened | BadRle:
    shape = _size(mask.size, mask.image_hw)
    if isinstance(shape, BadRle):
        return shape
    counts = _characters(mask.counts, shape[0] * shape[1])
    return counts if isinstance(counts, BadRle) else _Opened(shape, counts)


def _size(size: object, image_hw: Size | None) -> Size | BadRle:
    """Rule 1, in Python's integers: numpy would cut 4.7 to 4, take True as 1 and wrap 2**64."""
    if not isinstance(size, list | tuple) or len(size) != 2 or not all(type(side) is int for side in size):
        return BadRle("bad_rle", 1, "expected size as [height, width], two integers")
    height, width = size
    if height < 1 or width < 1:
        return BadRle("bad_rle", 1, f"expected a size of at least 1 x 1, got {_shown(height)} x {_shown(width)}")
    if max(height, width) > MAX_SIDE or height * width > MAX_PIXELS:
        return BadRle(
            "too_large",
            1,
            f"size {_shown(height)} x {_shown(width)} is over the limit of {MAX_SIDE} a side and {MAX_PIXELS} pixels",
        )
    if image_hw is not None and (height, width) != image_hw:
        hint = "; height and width are swapped" if (width, height) == image_hw else ""
        return BadRle(
            "mask_size",
            1,
            f"expected the picture's size {image_hw[0]} x {image_hw[1]} (height x width), got {height} x {width}{hint}",
        )
    return height, width


def _shown(number: int) -> str:
    """Python refuses to print integers of more than 4,300 digits."""
    return str(number) if number.bit_length() <= 64 else f"a number of {number.bit_length()} bits"


def _characters(counts: object, pixels: int) -> bytes | Runs | BadRle:
    """Rule 2: the characters of compressed counts, or the runs of a list."""
    if isinstance(counts, list):
        return _listed(counts, pixels)
    if isinstance(counts, str):
        try:
            counts = _unquoted(counts).encode("ascii")
        except UnicodeEncodeError:
            return BadRle("bad_rle", 2, "counts hold a character outside '0'..'o'")
    if not isinstance(counts, bytes):
        return BadRle("bad_rle", 2, "expected counts as a string or a list of integers")
    if not 0 < len(counts) <= MAX_NUMBER_CHARS * (pixels + 1):
        return BadRle("bad_rle", 2, f"expected 1 to {MAX_NUMBER_CHARS * (pixels + 1)} characters, got {len(counts)}")
    if len(counts) > MAX_COUNTS_CHARS:
        return BadRle("too_large", 2, f"counts of {len(counts)} characters, the limit is {MAX_COUNTS_CHARS}")
    if counts.translate(None, _ALPHABET):
        return BadRle("bad_rle", 2, "counts hold a character outside '0'..'o'")
    if counts[-1] >= _FIRST_MORE:
        return BadRle("bad_rle", 2, "counts end inside a number")
    return counts


def _unquoted(counts: str) -> str:
    """`b'...'` is what `str()` makes of pycocotools' bytes. No quote is in the alphabet, so this is no guess."""
    if len(counts) >= 3 and counts[:2] in ("b'", 'b"') and counts[-1] == counts[1]:
        return counts[2:-1].replace("\\\\", "\\")
    return counts


def _listed(runs: list[object], pixels: int) -> Runs | BadRle:
    if not 0 < len(runs) <= pixels + 1:
        return BadRle("bad_rle", 3, f"expected 1 to {pixels + 1} runs, got {len(runs)}")
    if list(map(type, runs)).count(int) != len(runs):
        return BadRle("bad_rle", 3, "expected counts of integers only")
    try:
        lengths = np.array(runs, np.int64)
    except OverflowError:
        return _outside(pixels)
    return lengths if lengths.min() >= 0 and lengths.max() <= pixels else _outside(pixels)


def _outside(pixels: int) -> BadRle:
    return BadRle("bad_rle", 4, f"expected runs of 0 to {pixels} pixels, got one outside")


def _batches(masks: Iterable[_Opened | BadRle]) -> Iterator[list[_Opened | BadRle]]:
    """Neighbours, up to `BATCH_CHARS` characters together, or one that has more."""
    batch: list[_Opened | BadRle] = []
    chars = 0
    for mask in masks:
        if isinstance(mask, _Opened):
            chars += len(mask.counts)
            if batch and chars > BATCH_CHARS:
                yield batch
                batch, chars = [], len(mask.counts)
        batch.append(mask)
    yield batch


def _checked(masks: Sequence[_Opened]) -> Iterator[Rle | BadRle]:
    """Rules 3 to 5, for masks read as one text: each ends with the last character of a number."""
    if not masks:
        return
    encoded = iter(_encoded([mask.counts for mask in masks if not isinstance(mask.counts, bytes)]))
    texts = [mask.counts if isinstance(mask.counts, bytes) else next(encoded) for mask in masks]
    last_char = np.array(list(map(len, texts))).cumsum() - 1
    numbers = _numbers(np.frombuffer(b"".join(texts), np.uint8))
    stops = numbers.ends.searchsorted(last_char, side="right")
    pairs = _paired(numbers.values, np.diff(stops, prepend=0))
    too_long, padded = (
        np.bincount(stops.searchsorted(which, side="right"), minlength=len(masks)).tolist()
        for which in (numbers.too_long, numbers.padded)
    )
    boxes = pairs.boxes_ltwh(np.array([mask.size_hw[0] for mask in masks]))
    for place, (mask, facts, box) in enumerate(zip(masks, pairs.facts(), boxes, strict=True)):
        bad = _bad_number() if too_long[place] else _bad_runs(facts, mask.size_hw)
        if bad is not None:
            yield bad
            continue
        counts = texts[place].decode("ascii")
        if facts.empty or padded[place]:
            counts = encode_runs(_join(pairs.of(place)))
        yield Rle(mask.size_hw, counts, facts.area, box)


def _encoded(masks: Sequence[Runs]) -> list[bytes]:
    """Compressed counts of several masks. From the fourth on, a run is told as a difference to the run before last."""
    if not masks:
        return []
    runs, lengths = np.concatenate(masks), np.array(list(map(len, masks)))
    starts = lengths.cumsum() - lengths
    rest = runs.copy()
    rest[3:] -= runs[1:-2]
    for place in range(3):
        own = starts[lengths > place] + place
        rest[own] = runs[own]
    magnitude = rest ^ (rest >> 63)  # x and ~x take the same number of characters
    chars = np.ones(len(rest), np.int64)
    for more in range(1, MAX_NUMBER_CHARS):
        if not (longer := magnitude >= 1 << (5 * more - 1)).any():
            break
        chars += longer
    sizes = np.add.reduceat(chars, starts).cumsum()
    text, places = np.empty(sizes[-1], np.uint8), chars.cumsum() - chars
    while places.size:
        goes_on = chars > 1
        text[places] = (rest & 0x1F) + goes_on * _MORE + _ZERO
        places, rest, chars = places[goes_on] + 1, rest[goes_on] >> 5, chars[goes_on] - 1
    return [part.tobytes() for part in np.split(text, sizes[:-1])]


@dataclass(frozen=True, slots=True)
class _Numbers:
    """The numbers in a text, where each ends, which have more characters than allowed, and which more than needed."""

    values: Runs
    ends: Runs
    too_long: Runs
    padded: Runs


def _numbers(chars: npt.NDArray[np.uint8]) -> _Numbers:
    """Read checked characters, of one mask or of several in a row.

    A number's last character holds its highest bits and its sign, so it is read from there backwards. The place before
    the first number wraps to the very last character, which never says "more".
    """
    ends = (chars < _FIRST_MORE).nonzero()[0]
    values = _SIGNED.take(chars.take(ends))
    places = ends - 1
    which = (chars.take(places) >= _FIRST_MORE).nonzero()[0]
    places = places.take(which)
    high, padded = values.take(which), which[:0]
    for length in range(2, MAX_NUMBER_CHARS + 1):
        if not which.size:
            break
        low = _LOW.take(chars.take(places))
        if length == 2:  # a highest group that only repeats the sign below it could have been left out
            padded = which[high + (low >> 4) == 0]
        high = (high << 5) + low
        values[which] = high
        places -= 1
        longer = (chars.take(places) >= _FIRST_MORE).nonzero()[0]
        which, places, high = which.take(longer), places.take(longer), high.take(longer)
    return _Numbers(values, ends, which, padded)


class _Facts(NamedTuple):
    """What the rules ask about one mask's runs. `empty` counts those of no pixels after the first."""

    length: int
    least: int
    most: int
    total: int
    empty: int
    area: int


@dataclass(frozen=True, slots=True)
class _Pairs:
    """The runs of several masks, a run of zeros beside the run of ones that follows it.

    `lengths` are runs of each mask; where they are odd, the last run of ones is not the mask's and 0. `starts` and
    `counts` say which pairs are a mask's.
    """

    zeros: Runs
    ones: Runs
    lengths: Runs
    starts: Runs
    counts: Runs

    def of(self, mask: int) -> Runs:
        """One mask's runs."""
        own = slice(self.starts[mask], self.starts[mask] + self.counts[mask])
        return np.stack((self.zeros[own], self.ones[own]), axis=1).ravel()[: self.lengths[mask]]

    def facts(self) -> Iterator[_Facts]:
        """Mask by mask. Sums are right where no run is out of bounds; elsewhere they may have wrapped around."""
        zeros, ones, starts = self.zeros, self.ones, self.starts
        area = np.add.reduceat(ones, starts)
        empty = np.add.reduceat((zeros == 0).astype(np.int64) + (ones == 0), starts)
        empty -= (zeros[starts] == 0) + self.lengths % 2
        columns = (
            self.lengths,
            np.minimum.reduceat(np.minimum(zeros, ones), starts),
            np.maximum.reduceat(np.maximum(zeros, ones), starts),
            np.add.reduceat(zeros, starts) + area,
            empty,
            area,
        )
        return map(_Facts._make, zip(*(column.tolist() for column in columns), strict=True))

    def boxes_ltwh(self, heights: Runs) -> list[tuple[float, float, float, float]]:
        """Mask by mask, given the masks' heights in pixels. Nonsense where the runs are."""
        boxes = np.zeros((len(heights), 4))
        kept = np.add.reduceat(self.ones != 0, self.starts, dtype=np.int64)
        if (filled := kept.nonzero()[0]).size:
            stops = (self.zeros + self.ones).cumsum()
            begins = stops[self.starts] - self.zeros[self.starts] - self.ones[self.starts]
            which = self.ones.nonzero()[0]
            lengths = self.ones.take(which)
            first = stops.take(which) - np.repeat(begins, kept) - lengths
            height = np.repeat(heights, kept)
            top = first % height
            bottom = top + lengths - 1
            goes_on = bottom >= height  # in the next column, so it touches both edges
            top[goes_on], bottom[goes_on] = 0, height[goes_on] - 1
            final = kept.cumsum()[filled] - 1
            initial = final - kept[filled] + 1
            lefts = first[initial] // heights[filled]
            rights = (first + lengths - 1)[final] // heights[filled]
            tops = np.minimum.reduceat(top, initial)
            bottoms = np.maximum.reduceat(bottom, initial)
            boxes[filled] = np.stack((lefts, tops, rights - lefts + 1, bottoms - tops + 1), axis=1)
        return [(left, top, width, height) for left, top, width, height in boxes.tolist()]


def _pairs_of(counts: str) -> _Pairs:
    """The runs of one mask that was checked before."""
    numbers = _numbers(np.frombuffer(counts.encode("ascii"), np.uint8)).values
    return _paired(numbers, np.array([len(numbers)]))


def _paired(numbers: Runs, lengths: Runs) -> _Pairs:
    """Run lengths from the numbers of one mask or several: from its fourth on, a number is a difference to the run
    before last. `lengths` says how many numbers each mask has, at least 1."""
    counts = (lengths + 1) // 2
    starts = counts.cumsum() - counts
    runs = np.zeros(2 * int(counts.sum()), np.int64)
    if len(lengths) == 1:
        runs[: len(numbers)] = numbers
    else:
        runs[np.arange(len(numbers)) + np.repeat(2 * starts - (lengths.cumsum() - lengths), lengths)] = numbers
    zeros, ones = runs[::2], runs[1::2]
    first = zeros[starts]
    zeros[starts] = 0
    zeros, ones = _cumulated(zeros, starts, counts), _cumulated(ones, starts, counts)
    zeros[starts] = first
    ones[(starts + counts - 1)[lengths % 2 == 1]] = 0
    return _Pairs(zeros, ones, lengths, starts, counts)


def _cumulated(numbers: Runs, starts: Runs, counts: Runs) -> Runs:
    """Sums from each start on."""
    sums = numbers.cumsum()
    sums -= np.repeat(sums[starts] - numbers[starts], counts)
    return sums


def _bad_number() -> BadRle:
    return BadRle("bad_rle", 3, f"counts hold a number of more than {MAX_NUMBER_CHARS} characters")


def _bad_runs(facts: _Facts, size_hw: Size) -> BadRle | None:
    """Rules 3 and 4. The bound of each run comes first: without it the sum could wrap around."""
    pixels = size_hw[0] * size_hw[1]
    if facts.length > pixels + 1:
        return BadRle("bad_rle", 3, f"expected at most {pixels + 1} runs, got {facts.length}")
    if facts.least < 0 or facts.most > pixels:
        return _outside(pixels)
    if facts.total != pixels:
        return BadRle("bad_rle", 4, f"runs add up to {facts.total}, expected {pixels} = {size_hw[0]} x {size_hw[1]}")
    return None


def _join(runs: Runs) -> Runs:
    """Rule 5: drop runs of no pixels and join their neighbours of one colour."""
    places = np.flatnonzero(runs)
    colours = places % 2
    begins = np.flatnonzero(np.diff(colours, prepend=-1))
    joined = np.add.reduceat(runs[places], begins)
    return np.concatenate(([0], joined)) if colours[0] else joined
