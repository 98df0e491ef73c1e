"""Masks that end pycocotools: each is checked in a process of its own, under limits, and what is accepted is safe.

Source of the list: what pycocotools 2.0.11 does with malformed masks, from wrong areas over endless loops to crashes.
"""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

CHECKOUT = Path(__file__).resolve().parents[1]

RUNNER = """
import json, os, resource, signal, sys, warnings
import numpy as np
from pycocotools import mask as coco
from foundry_pipeline.rle import Rle, check
from tests.test_rle import REFUSED

ACCEPTED = [
    ("interior zeros", [4, 4], [3, 0, 0, 5, 8]),
    ("zeros of the foreground", [4, 4], [4, 0, 4, 0, 8]),
    ("nothing but the first run", [480, 640], [480 * 640]),
    ("all of it", [480, 640], [0, 480 * 640]),
    ("every pixel a run", [512, 512], [1] * 512 * 512),
    ("padded numbers", [3, 1], "S0"),
    ("the largest", [2**14, 2**14], [2**27 + 1, 2**27 - 1]),
    ("one column", [2**20, 1], [2**19, 2**19]),
    ("one row", [1, 2**20], [2**19, 2**19]),
    ("bytes as Python writes them", [6, 8], "b'=3300000;'"),
]

def limit():
    used = int(open("/proc/self/statm").read().split()[0]) * 4096
    resource.setrlimit(resource.RLIMIT_AS, (used + 2**30, used + 2**30))
    resource.setrlimit(resource.RLIMIT_CPU, (60, 60))

def look_at(size, counts, expected):
    limit()
    found = check(size, counts, None)
    if isinstance(found, Rle) != (expected is None) or (expected and found.reason != expected):
        os._exit(3)
    if isinstance(found, Rle) and found.size_hw[0] * found.size_hw[1] <= 2**20:
        mask = {"size": list(found.size_hw), "counts": found.counts.encode()}
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            area = int(np.asarray(coco.decode(mask)).sum())
        union = coco.merge([mask, mask, mask])
        same = area == found.area == coco.area(mask) == coco.area(union)
        same = same and list(coco.toBbox(mask)) == list(found.box_ltwh)
        overlap = coco.iou([mask], [mask], [0])[0][0]
        os._exit(0 if same and overlap == (1.0 if found.area else 0.0) else 4)
    os._exit(0)

cases = [(name, size, counts, reason) for name, size, counts, reason, rule in REFUSED]
cases += [(name, size, counts, None) for name, size, counts in ACCEPTED]
ends = {}
for name, size, counts, expected in cases:
    child = os.fork()
    if child == 0:
        look_at(size, counts, expected)
    ends[name] = os.waitpid(child, 0)[1]
print(json.dumps(ends))
"""


def test_no_mask_crashes_hangs_or_eats_memory() -> None:
    """The status says how a process ended: 3 another verdict than expected, 4 another mask than pycocotools sees."""
    done = subprocess.run([sys.executable, "-c", RUNNER], cwd=CHECKOUT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    ends = json.loads(done.stdout)
    assert len(ends) > 45
    assert {name: status for name, status in ends.items() if status != 0} == {}
