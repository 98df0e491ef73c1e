"""Replies that are made to crash a decoder, to hang it, or to fill the memory; and a process that decodes them.

`python -m tests.hostile_replies [SIZE_MB] [NAME ...]` decodes each in a process of its own, under a limit of CPU
seconds and of memory above what the process had, and prints as JSON how each ended, with its CPU seconds and megabytes.
A reply may have 32 MB on the wire.
"""

from __future__ import annotations

import json
import os
import resource
import sys
import traceback
from collections.abc import Callable, Mapping
from pathlib import Path

from foundry_pipeline.decode import SliceDecoder
from tests.decoding import ALL_KINDS, EVERYTHING, data_row

CPU_S = 60
MEMORY_BYTES = 1500 * 2**20

BOX = "[1,2,3,4]"
CAR = f'{{"boxes":[{BOX}]}}'
TEXT = "Tom and Bob. " * 80_000
"""What the entities stand in, a megabyte."""


def _object(item: str) -> Callable[[int], str]:
    """An object of so many members, in each of which # is its number."""
    return _numbered("{", item, "}")


def _list(feature: str, key: str, item: str) -> Callable[[int], str]:
    """A feature's list of so many items, in each of which # is its number."""
    return _numbered(f'{{"{feature}":{{"{key}":[', item, "]}}")


def _numbered(before: str, item: str, after: str) -> Callable[[int], str]:
    def make(size: int) -> str:
        count = max(size // (len(item) + 6 * item.count("#") + 1), 1)
        items = (item.replace("#", str(place)) for place in range(count))
        return before + ",".join(items if "#" in item else [item] * count) + after

    return make


def _within(before: str, filling: str, after: str = "") -> Callable[[int], str]:
    """`filling`, over and over, between two texts."""
    return lambda size: before + filling * (size // len(filling)) + after


ANSWER = '{"answer":"rain","classifications":{"strength":'
REPLIES: Mapping[str, Callable[[int], str]] = {
    "brackets": _within("", "["),
    "objects in objects": _within("", '{"a":'),
    "answers in answers": lambda _: '{"weather":' + ANSWER * 20 + "1" + "}}" * 20 + "}",
    "an object in a string in a string": lambda _: json.dumps(json.dumps(json.dumps({"car": {"boxes": []}}))),
    "empty lists": _list("car", "boxes", "[]"),
    "empty strings": _numbered('{"signs":[', '""', "]}"),
    "numbers": _numbered('{"car":{"boxes":[[', "1", "]]}}"),
    "a number without end": _within('{"car":{"boxes":[[1,2,3,', "9", "]]}}"),
    "a fraction without end": _within('{"car":{"boxes":[[1,2,3,0.', "9", "]]}}"),
    "an exponent without end": _within('{"car":{"boxes":[[1,2,3,1e', "9", "]]}}"),
    "a text without end": _within('{"summary":"', "word ", '"}'),
    "a raw text without end": _within("", "word "),
    "a raw text like JSON": _within("[", "word "),
    "backslashes": _within('{"summary":"', "\\\\", '"}'),
    "half surrogates": _within('{"summary":"', "\\ud800", '"}'),
    "a string cut off": _within('{"summary":"', "x"),
    "fences": _within("", "```"),
    "a fence around nothing": _within("```json", " ", "```"),
    "boxes": _list("car", "boxes", BOX),
    "boxes of a mistake": _list("car", "boxes", '["1",2,3,4]'),
    "features": _object(f'"f#":{CAR}'),
    "features of nothing": _object('"f#":1'),
    "duplicate keys": _object(f'"car":{CAR}'),
    "a long name": _within('{"', "n", f'":{CAR}}}'),
    "long names": _object(f'"{"n" * 1000}#":{CAR}'),
    "frames": _numbered('{"frames":{', f'"#":{{"car":{{"boxes":[{BOX},{BOX}],"scores":[0.5,7]}}}}', "}}"),
    "frames of nothing": _numbered('{"frames":{', '"#":{}', "}}"),
    "masks": _list("tree", "masks", '{"size":[1,1],"counts":"1"}'),
    "masks of a mistake": _list("tree", "masks", '{"size":[9,9],"counts":"1"}'),
    "mask bombs": _list("tree", "masks", '{"size":[16384,16384],"counts":"PPPPP8"}'),
    "a mask of many runs": lambda size: _mask(f'"11{"0" * (min(size, 2**22) - 2)}"', min(size, 2**22)),
    "a mask of a long list": lambda size: _mask(f"[{','.join('1' * (size // 9))}]", size // 9),
    "a polygon of many points": _numbered('{"lake":{"polygons":[[', "[#,1]", "]]}}"),
    "entities that are nowhere": _numbered('{"person":[', '{"start":#,"end":9,"text":"nobody #"}', "]}"),
    "edges": _list("owns", "edges", '{"source":{"feature":"car","index":#},"target":{"feature":"car","index":0}}'),
}


def _mask(counts: str, pixels: int) -> str:
    return f'{{"tree":{{"masks":[{{"size":[1024,{pixels // 1024}],"counts":{counts}}}]}}}}'


def decode_thrice(reply: str) -> None:
    """As a picture's, a video's and a text's reply, with and without an ontology."""
    for known, media_type in ((EVERYTHING, "image"), (EVERYTHING, "video"), (None, "text")):
        decoder = SliceDecoder("run", "model", "dataset", known, ALL_KINDS, media_type)
        decoder.add(data_row(media_type=media_type), "call", reply, TEXT)
        decoder.finish()


def _in_a_process(reply: str) -> list[float]:
    """[exit status, CPU seconds, peak megabytes]"""
    if (child := os.fork()) == 0:
        status = 1
        try:
            used = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
            resource.setrlimit(resource.RLIMIT_AS, (used + MEMORY_BYTES, used + MEMORY_BYTES))
            resource.setrlimit(resource.RLIMIT_CPU, (CPU_S, CPU_S))
            decode_thrice(reply)
            status = 0
        finally:
            if status:
                traceback.print_exc()
            os._exit(status)
    _, status, usage = os.wait4(child, 0)
    return [status, round(usage.ru_utime + usage.ru_stime, 1), usage.ru_maxrss // 1024]


def main() -> None:
    """Print {name: how it ended}."""
    size = int(float(sys.argv[1]) * 2**20) if sys.argv[1:] else 32 * 2**20
    print(json.dumps({name: _in_a_process(REPLIES[name](size)) for name in sys.argv[2:] or REPLIES}))


if __name__ == "__main__":
    main()
