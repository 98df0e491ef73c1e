"""The ids of predictions: version 5 UUIDs that are the same on every re-run.

A row's id is `uuid5(NAMESPACE, [run, dataset, global key])`, a prediction's `uuid5(row id, [table, part, parent id,
feature, index])`, each list written as compact JSON; the part is a video's frame, or a conversation's message. So an
id depends on nothing that a rejected neighbour could change, and no two predictions of a run share one.
Predictions are hashed a column at a time: SHA-1 (FIPS 180-4) in numpy takes a third of the time of a call each.
"""

from __future__ import annotations

import functools
import hashlib
import uuid
from collections.abc import Iterable, Sequence

import numpy as np
import numpy.typing as npt
import orjson
import pyarrow as pa

NAMESPACE = uuid.UUID("8a2f6c0e-5f0b-5d64-9c55-2f3f1b7a4e10")

Words = npt.NDArray[np.uint32]
Bytes = npt.NDArray[np.uint8]
Places = npt.NDArray[np.int64]

_BLOCK = 64
_MAX_BLOCKS = 3
"""Longer names are rare, and hashed one by one: a column is as wide as its longest name."""
_CHUNK = 32_768  # large enough to hide numpy's cost of a call, 1,200 of which make a hash
_FEW = 512
"""Fewer items are hashed one by one: what numpy costs a call would cost more."""
_START = (0x67452301, 0xEFCDAB89, 0x98BADCFE, 0x10325476, 0xC3D2E1F0)
_ROUND = (0x5A827999, 0x6ED9EBA1, 0x8F1BBCDC, 0xCA62C1D6)
_HEX = np.frombuffer("".join(f"{byte:02x}" for byte in range(256)).encode(), np.uint16)


def row_id(run: str, dataset: str, global_key: str) -> bytes:
    """The 16 bytes that the ids of a data row's predictions start from."""
    return uuid5(NAMESPACE.bytes, orjson.dumps([run, dataset, global_key]))


def row_ids(run: str, dataset: str, global_keys: Iterable[str]) -> Bytes:
    """`row_id` of many data rows, (rows, 16) bytes."""
    digests = [_sha1_one(NAMESPACE.bytes + orjson.dumps([run, dataset, key])) for key in global_keys]
    return _as_version_5(np.frombuffer(b"".join(digests), np.uint8).reshape(-1, 20)[:, :16].copy())


@functools.lru_cache(maxsize=4096)
def list_name(table: str, part: int | str | None, parent_id: str | None, feature: str) -> bytes:
    """What the names of a list's items have in common: all but the index and the closing bracket.

    `part` is the frame of a video, or the message of a conversation that the reply answers.
    """
    return orjson.dumps([table, part, parent_id, feature])[:-1] + b","


def item_id(row: bytes, name: bytes, index: int) -> str:
    """The id of one item, hashed alone. `row` is of `row_id`, `name` of `list_name`."""
    return str(uuid.UUID(bytes=uuid5(row, b"%b%d]" % (name, index))))


def item_ids(rows: Bytes, names: Sequence[bytes], name_of_item: Places, indices: Places) -> pa.Array:
    """The ids of a column of items, as Arrow strings: as `item_id` of each.

    `rows` is (items, 16) bytes; an item's name is `names[name_of_item]`, its place `indices`.
    """
    if len(indices) < _FEW:
        pairs = zip(rows, name_of_item.tolist(), indices.tolist(), strict=True)
        return pa.array([item_id(row.tobytes(), names[name], index) for row, name, index in pairs], pa.string())
    distinct = {name: place for place, name in enumerate(dict.fromkeys(names))}
    code = np.array([distinct[name] for name in names], np.int64)[name_of_item]
    table = np.array([name[: _MAX_BLOCKS * _BLOCK] for name in distinct]).view(np.uint8).reshape(len(distinct), -1)
    ends = 16 + np.array([len(name) for name in distinct], np.int64)[code] + _digits(indices)
    blocks = (ends + 1 + 9 + _BLOCK - 1) // _BLOCK
    ids = np.empty((len(indices), 16), np.uint8)
    for count in range(1, _MAX_BLOCKS + 1):
        which = np.flatnonzero(blocks == count)
        for at in range(0, len(which), _CHUNK):
            part = which[at : at + _CHUNK]
            ids[part] = _sha1_of_padded(_padded(count, rows[part], table, code[part], indices[part], ends[part]))
    for item in np.flatnonzero(blocks > _MAX_BLOCKS).tolist():
        name = b"%b%d]" % (names[name_of_item[item]], indices[item])
        ids[item] = np.frombuffer(uuid5(rows[item].tobytes(), name), np.uint8)
    return _formatted(_as_version_5(ids))


def _digits(numbers: Places) -> Places:
    """How many decimal digits each number has."""
    digits = np.ones(len(numbers), np.int64)
    for power in range(1, 10):
        if not (longer := numbers >= 10**power).any():
            break
        digits += longer
    return digits


def uuid5(namespace: bytes, name: bytes) -> bytes:
    """`uuid.uuid5` on bytes."""
    raw = bytearray(_sha1_one(namespace + name)[:16])
    raw[6] = raw[6] & 0x0F | 0x50
    raw[8] = raw[8] & 0x3F | 0x80
    return bytes(raw)


def _sha1_one(message: bytes) -> bytes:
    return hashlib.sha1(message, usedforsecurity=False).digest()


def _as_version_5(raw: Bytes) -> Bytes:
    """Set the version and variant bits of (n, 16) bytes of hash, in place."""
    raw[:, 6] = raw[:, 6] & 0x0F | 0x50
    raw[:, 8] = raw[:, 8] & 0x3F | 0x80
    return raw


def _padded(blocks: int, rows: Bytes, table: Bytes, code: Places, indices: Places, ends: Places) -> Bytes:
    """Messages as SHA-1 wants them, (items, blocks * 64): row id, name, index, bracket, 0x80, zeros, length in bits.

    Names are rows of `table`; `ends` is where each bracket stands.
    """
    messages = np.zeros((len(indices), blocks * _BLOCK), np.uint8)
    width = min(table.shape[1], blocks * _BLOCK - 16)
    messages[:, :16] = rows
    messages[:, 16 : 16 + width] = table[:, :width][code]
    items, digits = np.arange(len(indices)), _digits(indices)
    for place in range(int(digits.max())):
        which = np.flatnonzero(digits > place)
        messages[which, ends[which] - 1 - place] = indices[which] // 10**place % 10 + ord("0")
    messages[items, ends] = ord("]")
    messages[items, ends + 1] = 0x80
    bits = (ends + 1) * 8
    messages[:, -2], messages[:, -1] = bits >> 8, bits & 0xFF
    return messages


def _sha1_of_padded(messages: Bytes) -> Bytes:
    """The first 16 bytes of the SHA-1 of padded messages, (n, blocks * 64) -> (n, 16)."""
    words = np.array(messages.view(">u4").T, np.uint32, order="C")
    state = [np.full(len(messages), start, np.uint32) for start in _START]
    for block in range(0, len(words), 16):
        mixed = _sha1_rounds(words[block : block + 16], state)
        for part, more in zip(state, mixed, strict=True):
            part += more
    return np.stack(state[:4], axis=1).astype(">u4").view(np.uint8)


def _sha1_rounds(schedule: Words, state: Sequence[Words]) -> tuple[Words, ...]:
    """SHA-1's eighty steps on one block of each message. `schedule` is (16, n) and used up."""
    a, b, c, d, e = (part.copy() for part in state)
    mixed, other = np.empty_like(a), np.empty_like(a)
    for step in range(80):
        word = schedule[step % 16]
        if step >= 16:
            for back in (3, 8, 14):
                word ^= schedule[(step - back) % 16]
            _rotate(word, 1, other)
        _mix(step // 20, b, c, d, mixed, other)
        mixed += e
        mixed += word
        mixed += np.uint32(_ROUND[step // 20])
        np.left_shift(a, 5, out=other)
        mixed += other
        np.right_shift(a, 27, out=other)
        mixed += other
        _rotate(b, 30, other)
        a, b, c, d, e, mixed = mixed, a, b, c, d, e
    return a, b, c, d, e


def _mix(phase: int, b: Words, c: Words, d: Words, out: Words, other: Words) -> None:
    """SHA-1's function of three words in each of its four phases: choose, parity, majority, parity."""
    if phase == 0:
        np.bitwise_xor(c, d, out=out)
        out &= b
        out ^= d
    elif phase == 2:
        np.bitwise_or(b, c, out=out)
        out &= d
        np.bitwise_and(b, c, out=other)
        out |= other
    else:
        np.bitwise_xor(b, c, out=out)
        out ^= d


def _rotate(words: Words, bits: int, other: Words) -> None:
    np.right_shift(words, 32 - bits, out=other)
    words <<= np.uint32(bits)
    words |= other


def _formatted(raw: Bytes) -> pa.Array:
    """Text of UUIDs, 8-4-4-4-12 hexadecimal digits, from (n, 16) bytes."""
    digits = _HEX[raw].view(np.uint8)
    text = np.full((len(raw), 36), ord("-"), np.uint8)
    for dashes, (start, stop) in enumerate(((0, 8), (8, 12), (12, 16), (16, 20), (20, 32))):
        text[:, start + dashes : stop + dashes] = digits[:, start:stop]
    offsets = np.arange(0, 36 * len(raw) + 1, 36, dtype=np.int32)
    return pa.StringArray.from_buffers(len(raw), pa.py_buffer(offsets), pa.py_buffer(text))
