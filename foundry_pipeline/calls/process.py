"""Names for processes, by which others of the same machine can tell that one has died."""

from __future__ import annotations

import os
from pathlib import Path


def this_process() -> str:
    """Names this process among all that ever were: machine since its start, process namespace, pid, start time.

    Empty where the system does not say.
    """
    return _name(os.getpid()) or ""


def has_died(process: str) -> bool:
    """True where `process`, named by `this_process`, ran on this machine and has ended. Of others nothing is known."""
    place, _, pid_and_start = process.rpartition(":")
    pid = pid_and_start.partition("@")[0]
    if not place or place != _place() or not pid.isdigit():
        return False
    return _name(int(pid)) != process


def _name(pid: int) -> str | None:
    """None where there is no such process, or nobody can say."""
    try:
        # The name in the second field may hold spaces and brackets; what follows is numbers but for the state.
        state, *numbers = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
        place = _place()
    except (OSError, ValueError):
        return None
    started = numbers[18]
    return None if state in "ZX" or not place else f"{place}:{pid}@{started}"


def _place() -> str:
    """This machine since its start, and this process's view of its processes."""
    try:
        boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
        return f"{boot}:{Path('/proc/self/ns/pid').readlink()}"
    except OSError:
        return ""
