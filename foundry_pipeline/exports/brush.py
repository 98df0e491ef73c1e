"""Masks as Label Studio's brush stores them: run lengths of RGBA bytes, packed into bits.

Source: the format `rle-pack` of thi.ng/umbrella: 32 bits number of values, 5 bits word size - 1, four times 4 bits size
of a length - 1; then for each run a bit 1, two bits that choose the size, the length - 1, and the value.
"""

from __future__ import annotations

from functools import lru_cache

import numpy as np

from foundry_pipeline.rle import Rle, to_dense

WORD_BITS = 8
LENGTH_BITS = (3, 4, 8, 16)
LONGEST = 1 << LENGTH_BITS[-1]
CHANNELS = 4
"""Red, green, blue, alpha; all 0 or all 255."""


def brush_rle(rle: Rle) -> list[int]:
    """The bytes of a mask, along rows, as a list of numbers 0 to 255."""
    flat = to_dense(rle).ravel()
    edges = np.flatnonzero(flat[1:] != flat[:-1]) + 1
    runs: list[int] = (CHANNELS * np.diff(edges, prepend=0, append=flat.size)).tolist()
    bits = [f"{CHANNELS * flat.size:032b}{WORD_BITS - 1:05b}", *(f"{size - 1:04b}" for size in LENGTH_BITS)]
    is_set = bool(flat[0])
    for run in runs:
        bits.append(_run(run, "1" * WORD_BITS if is_set else "0" * WORD_BITS))
        is_set = not is_set
    packed = "".join(bits)
    packed += "0" * (-len(packed) % 8)
    return list(int(packed, 2).to_bytes(len(packed) // 8))


@lru_cache(maxsize=4096)
def _run(length: int, value: str) -> str:
    """One run; a long one in pieces. Most masks have few lengths, many times each."""
    pieces = []
    while length:
        piece = min(length, LONGEST)
        choice = next(i for i, size in enumerate(LENGTH_BITS) if piece <= 1 << size)
        pieces.append(f"1{choice:02b}{piece - 1:0{LENGTH_BITS[choice]}b}{value}")
        length -= piece
    return "".join(pieces)
