"""Masks as COCO run lengths: checked, made canonical and measured in numpy, never as pixels.

Runs go down columns and the first one counts zeros, even where it is 0. The C code of pycocotools crashes, hangs or
leaks memory on malformed runs, so foreign masks pass `check` first, and everything downstream sees canonical runs only:
no zero after the first, each number in its shortest spelling.
Source of the format: cocodataset/cocoapi, `common/maskApi.c`, `rleToString` and `rleFrString`.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

Runs = npt.NDArray[np.int64]
Size = tuple[int, int]

MAX_SIDE = 2**20
MAX_PIXELS = 2**28
MAX_NUMBER_CHARS = 6
MAX_COUNTS_CHARS = 2**22
"""Outlines of real objects in the largest pictures have a tenth of it. Reading takes some 50 bytes a character."""
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


def check(size: object, counts: object, image_hw: Size | None) -> Rle | BadRle:
    """A foreign mask, as its reply has it, made canonical and measured; or why it is refused. Never raises.

    `size` should be [height, width]; `counts` a compressed string (or its Python bytes literal, `b'...'`) or a list of
    runs; `image_hw` is the picture's size in pixels, None where nobody knows it.
    """
    shape = _size(size, image_hw)
    if isinstance(shape, BadRle):
        return shape
    found = _foreign_runs(counts, shape[0] * shape[1])
    if isinstance(found, BadRle):
        return found
    runs, text = found
    if (bad := _bad_runs(runs, shape)) is not None:
        return bad
    if not runs[1:].all():
        runs, text = _join(runs), None
    return _measured(shape, runs, text or encode_runs(runs))


def encode_runs(runs: Runs) -> str:
    """Compressed counts of run lengths, as pycocotools writes them. Inverse of `decode_runs`."""
    rest = runs.astype(np.int64)
    rest[3:] -= runs[1:-2]
    groups = np.zeros((len(rest), MAX_NUMBER_CHARS), np.uint8)
    used = np.zeros(groups.shape, bool)
    unfinished = np.ones(len(rest), bool)
    for place in range(MAX_NUMBER_CHARS):
        used[:, place] = unfinished
        low = rest & 0x1F
        rest >>= 5
        unfinished = unfinished & (rest != -(low >> 4))
        groups[:, place] = low + unfinished * _MORE + _ZERO
        if not unfinished.any():
            break
    return groups[used].tobytes().decode("ascii")


def decode_runs(counts: str) -> Runs:
    """Run lengths of compressed counts that `check` has accepted. Inverse of `encode_runs`."""
    found = _numbers(np.frombuffer(counts.encode("ascii"), np.uint8))
    assert found is not None
    return found[0]


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
    height, width = mask.shape
    return _measured((height, width), runs, encode_runs(runs))


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


def _foreign_runs(counts: object, pixels: int) -> tuple[Runs, str | None] | BadRle:
    """Rules 2 and 3: (runs, the counts themselves where each number has its shortest spelling)."""
    if isinstance(counts, list):
        return _listed(counts, pixels)
    if isinstance(counts, str):
        try:
            counts = _unquoted(counts).encode("ascii")
        except UnicodeEncodeError:
            return BadRle("bad_rle", 2, "counts hold a character outside '0'..'o'")
    if not isinstance(counts, bytes):
        return BadRle("bad_rle", 2, "expected counts as a string or a list of integers")
    return _compressed(counts, pixels)


def _unquoted(counts: str) -> str:
    """`b'...'` is what `str()` makes of pycocotools' bytes. No quote is in the alphabet, so this is no guess."""
    if len(counts) >= 3 and counts[:2] in ("b'", 'b"') and counts[-1] == counts[1]:
        return counts[2:-1].replace("\\\\", "\\")
    return counts


def _listed(counts: list[object], pixels: int) -> tuple[Runs, None] | BadRle:
    if not 0 < len(counts) <= pixels + 1:
        return BadRle("bad_rle", 3, f"expected 1 to {pixels + 1} runs, got {len(counts)}")
    if set(map(type, counts)) != {int}:
        return BadRle("bad_rle", 3, "expected counts of integers only")
    least, most = min(counts), max(counts)  # type: ignore[type-var]  # all are int: checked above
    if least < 0 or most > pixels:  # type: ignore[operator]
        return BadRle("bad_rle", 4, f"expected runs of 0 to {pixels} pixels, got one outside")
    return np.array(counts, np.int64), None


def _compressed(counts: bytes, pixels: int) -> tuple[Runs, str | None] | BadRle:
    if not 0 < len(counts) <= MAX_NUMBER_CHARS * (pixels + 1):
        return BadRle("bad_rle", 2, f"expected 1 to {MAX_NUMBER_CHARS * (pixels + 1)} characters, got {len(counts)}")
    if len(counts) > MAX_COUNTS_CHARS:
        return BadRle("too_large", 2, f"counts of {len(counts)} characters, the limit is {MAX_COUNTS_CHARS}")
    if counts.translate(None, _ALPHABET):
        return BadRle("bad_rle", 2, "counts hold a character outside '0'..'o'")
    if counts[-1] >= _FIRST_MORE:
        return BadRle("bad_rle", 2, "counts end inside a number")
    found = _numbers(np.frombuffer(counts, np.uint8))
    if found is None:
        return BadRle("bad_rle", 3, f"counts hold a number of more than {MAX_NUMBER_CHARS} characters")
    runs, shortest = found
    if len(runs) > pixels + 1:
        return BadRle("bad_rle", 3, f"expected at most {pixels + 1} runs, got {len(runs)}")
    return runs, counts.decode("ascii") if shortest else None


def _numbers(chars: npt.NDArray[np.uint8]) -> tuple[Runs, bool] | None:
    """(runs, whether each number has its shortest spelling) of checked characters; None where a number is too long.

    A number's last character holds its highest bits and its sign, so it is read from there backwards. The place before
    the first number wraps to the very last character, which never says "more".
    """
    ends = (chars < _FIRST_MORE).nonzero()[0]
    runs = _SIGNED.take(chars.take(ends))
    places = ends - 1
    which = (chars.take(places) >= _FIRST_MORE).nonzero()[0]
    places = places.take(which)
    high, shortest = runs.take(which), True
    for length in range(2, MAX_NUMBER_CHARS + 1):
        if not which.size:
            break
        low = _LOW.take(chars.take(places))
        if length == 2:  # a highest group that only repeats the sign below it could have been left out
            shortest = bool((high + (low >> 4)).all())
        high = (high << 5) + low
        runs[which] = high
        places -= 1
        longer = (chars.take(places) >= _FIRST_MORE).nonzero()[0]
        which, places, high = which.take(longer), places.take(longer), high.take(longer)
    if which.size:
        return None
    runs[1::2] = runs[1::2].cumsum()
    runs[2::2] = runs[2::2].cumsum()
    return runs, shortest


def _bad_runs(runs: Runs, size_hw: Size) -> BadRle | None:
    """Rule 4. The bound of each run comes first: without it the sum could wrap around."""
    pixels = size_hw[0] * size_hw[1]
    if runs.min() < 0 or runs.max() > pixels:
        return BadRle("bad_rle", 4, f"expected runs of 0 to {pixels} pixels, got one outside")
    if (total := int(runs.sum())) != pixels:
        return BadRle("bad_rle", 4, f"runs add up to {total}, expected {pixels} = {size_hw[0]} x {size_hw[1]}")
    return None


def _join(runs: Runs) -> Runs:
    """Rule 5: drop runs of no pixels and join their neighbours of one colour."""
    places = np.flatnonzero(runs)
    colours = places % 2
    begins = np.flatnonzero(np.diff(colours, prepend=-1))
    joined = np.add.reduceat(runs[places], begins)
    return np.concatenate(([0], joined)) if colours[0] else joined


def _measured(size_hw: Size, runs: Runs, counts: str) -> Rle:
    return Rle(size_hw, counts, int(runs[1::2].sum()), _box_ltwh(runs, size_hw[0]))


def _box_ltwh(runs: Runs, height: int) -> tuple[float, float, float, float]:
    ends = runs.cumsum()
    first, last = ends[:-1:2], ends[1::2] - 1
    if not len(last):
        return 0.0, 0.0, 0.0, 0.0
    left, right = int(first[0]) // height, int(last[-1]) // height
    offsets = first // height * height
    last -= offsets
    bottom = int(last.max())
    if bottom < height:
        top = int((first - offsets).min())
    else:  # a run that goes on in the next column touches both edges
        top, bottom = 0, height - 1
    return float(left), float(top), float(right - left + 1), float(bottom - top + 1)
