"""Whatever a model sends, decoding ends, soon and within the memory; and memory does not grow with the rows."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

from tests.hostile_replies import REPLIES

CHECKOUT = Path(__file__).resolve().parents[1]


def test_no_reply_crashes_hangs_or_eats_memory() -> None:
    """Each is decoded in a process of its own. Here they have 250 kB; the program takes any size."""
    command = [sys.executable, "-m", "tests.hostile_replies", "0.25"]
    done = subprocess.run(command, cwd=CHECKOUT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    ends = json.loads(done.stdout)
    assert set(ends) == set(REPLIES)
    assert {name: end for name, end in ends.items() if end[0] != 0} == {}, done.stderr
