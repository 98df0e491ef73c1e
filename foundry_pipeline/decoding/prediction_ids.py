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
_PADDING = 9
"""What SHA-1 puts behind a message at least, in bytes."""
_MAX_BLOCKS = 3
"""Longer names are rare, and hashed one by one."""
_CHUNK = 32_768  # large enough to hide numpy's cost of a call, 1,200 of which make a hash
_FEW = 512
"""Fewer items are hashed one by one: what numpy costs a call would cost more."""
_sha1 = functools.partial(hashlib.sha1, usedforsecurity=False)
_START = (0x67452301, 0xEFCDAB89, 0x98BADCFE, 0x10325476, 0xC3D2E1F0)
_ROUND = (0x5A827999, 0x6ED9EBA1, 0x8F1BBCDC, 0xCA62C1D6)
_HEX_OF_BYTE = np.frombuffer("".join(f"{byte:02x}" for byte in range(256)).encode(), "<u2").astype("<u4")
_HEX = (_HEX_OF_BYTE[:, None] << 16 | _HEX_OF_BYTE).ravel()
"""Two bytes, as a little-endian number -> their four hexadecimal digits, as one."""
_UUID_DIGITS = {"a": slice(0, 2), "b": 2, "c": 3, "d": 4, "e": slice(5, 8)}
_UUID_DASHES = ("ab", "bc", "cd", "de")
_UUID_TEXT = np.dtype("2<u4, u1, <u4, u1, <u4, u1, <u4, u1, 3<u4")
_UUID_TEXT.names = ("a", "ab", "b", "bc", "c", "cd", "d", "de", "e")


def row_id(run: str, dataset: str, global_key: str) -> bytes:
    """The 16 bytes that the ids of a data row's predictions start from."""
    return uuid5(NAMESPACE.bytes, orjson.dumps([run, dataset, global_key]))


def row_ids(run: str, dataset: str, global_keys: Iterable[str]) -> Bytes:
    """`row_id` of many data rows, (rows, 16) bytes."""
    before = NAMESPACE.bytes + orjson.dumps([run, dataset])[:-1] + b","
    digests = [_sha1(b"%b%b]" % (before, orjson.dumps(key))).digest() for key in global_keys]
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


def item_ids(
    row_ids: Bytes, row_of_item: Places, names: Sequence[bytes], name_of_item: Places, indices: Places
) -> pa.Array:
    """The ids of a column of items, as Arrow strings: as `item_id` of each.

    `row_ids` is (rows, 16) bytes; an item stands in the row `row_of_item`, its name is `names[name_of_item]`.
    """
    if len(indices) < _FEW:
        triples = zip(row_of_item.tolist(), name_of_item.tolist(), indices.tolist(), strict=True)
        return pa.array([item_id(row_ids[row].tobytes(), names[name], index) for row, name, index in triples])
    return _formatted(_uuid5_all(row_ids, row_of_item, *_tails(names, name_of_item, indices)))


def _tails(names: Sequence[bytes], name_of_item: Places, indices: Places) -> tuple[list[bytes], Places]:
    """The names that are hashed behind the rows' ids, each once, and which of them is an item's.

    They are few: replies of one model repeat their features, and lists begin at 0.
    """
    distinct = {name: place for place, name in enumerate(dict.fromkeys(names))}
    code = np.array([distinct[name] for name in names], np.int64)[name_of_item]
    pairs = pa.array(code << 32 | indices).dictionary_encode()
    by_code, found = list(distinct), pairs.dictionary.to_numpy()
    tails = [
        b"%b%d]" % (by_code[name], index)
        for name, index in zip((found >> 32).tolist(), (found & 0xFFFF_FFFF).tolist(), strict=True)
    ]
    return tails, pairs.indices.to_numpy()


def uuid5(namespace: bytes, name: bytes) -> bytes:
    """`uuid.uuid5` on bytes."""
    raw = bytearray(_sha1(namespace + name).digest()[:16])
    raw[6] = raw[6] & 0x0F | 0x50
    raw[8] = raw[8] & 0x3F | 0x80
    return bytes(raw)


def _as_version_5(raw: Bytes) -> Bytes:
    """Set the version and variant bits of (n, 16) bytes of hash, in place."""
    raw[:, 6] = raw[:, 6] & 0x0F | 0x50
    raw[:, 8] = raw[:, 8] & 0x3F | 0x80
    return raw


def _uuid5_all(spaces: Bytes, space_of_item: Places, names: Sequence[bytes], name_of_item: Places) -> Bytes:
    """`uuid5` of items, (items, 16) bytes, each in one of the `spaces`, (spaces, 16) bytes, under one of the names."""
    space_words = np.array(spaces.view(">u4").T, np.uint32, order="C")
    blocks = np.array([(16 + len(name) + _PADDING + _BLOCK - 1) // _BLOCK for name in names])[name_of_item]
    ids = np.empty((len(name_of_item), 16), np.uint8)
    for count in range(1, _MAX_BLOCKS + 1):
        if not (which := np.flatnonzero(blocks == count)).size:
            continue
        name_words = _padded(names, count)
        for part in np.array_split(which, max(round(len(which) / _CHUNK), 1)):
            words = np.empty((16 * count, len(part)), np.uint32)
            space_words.take(space_of_item[part], axis=1, out=words[:4], mode="clip")  # it is quicker; all are inside
            name_words.take(name_of_item[part], axis=1, out=words[4:], mode="clip")
            ids[part] = _sha1_of_padded(words)
    _as_version_5(ids)
    for item in np.flatnonzero(blocks > _MAX_BLOCKS).tolist():
        found = uuid5(spaces[space_of_item[item]].tobytes(), names[name_of_item[item]])
        ids[item] = np.frombuffer(found, np.uint8)
    return ids


def _padded(names: Sequence[bytes], blocks: int) -> Words:
    """Messages as SHA-1 wants them, without the first 16 bytes: name, 0x80, zeros, length in bits; as words,
    (16 * blocks - 4, names). Names of another number of blocks are there as zeros."""
    size = blocks * _BLOCK
    messages = [
        (name + b"\x80").ljust(size - 24, b"\0") + (8 * (16 + len(name))).to_bytes(8)
        if size - _BLOCK < 16 + len(name) + _PADDING <= size
        else bytes(size - 16)
        for name in names
    ]
    return np.array(np.frombuffer(b"".join(messages), ">u4").reshape(len(names), -1).T, np.uint32, order="C")


def _sha1_of_padded(words: Words) -> Bytes:
    """The first 16 bytes of the SHA-1 of padded messages, words of (16 * blocks, n) -> bytes of (n, 16)."""
    state = [np.full(words.shape[1], start, np.uint32) for start in _START]
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
    digits = _HEX.take(raw.view("<u2"))
    text = np.empty(len(raw), _UUID_TEXT)
    for name, fours in _UUID_DIGITS.items():
        text[name] = digits[:, fours]
    for dash in _UUID_DASHES:
        text[dash] = ord("-")
    offsets = np.arange(0, 36 * len(raw) + 1, 36, dtype=np.int32)
    return pa.StringArray.from_buffers(len(raw), pa.py_buffer(offsets), pa.py_buffer(text.view(np.uint8)))
