"""What every process shares about one endpoint: its next free send time, a hold, a slow-down, its breaker.

On one machine it is a small file under `flock`; the kernel frees a dead process's lock. The state is disposable: a
damaged file, or one from before a reboot, starts anew. Times are seconds of the machine's monotonic clock, which all
its processes share, so a jump of the wall clock neither floods nor stalls.
"""

from __future__ import annotations

import fcntl
import hashlib
import logging
import os
import struct
import threading
import time
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple, Protocol, TypeVar
from urllib.parse import urlsplit, urlunsplit

log = logging.getLogger(__name__)

R = TypeVar("R")
Clock = Callable[[], float]


class EndpointState(NamedTuple):
    """A tuple, since it is made anew at every booking.

    `pace` is the share of the allowed rate in use, 0 to 1. `open_since` is 0 while the breaker is closed.
    """

    next_free: float = 0.0
    hold_until: float = 0.0
    pace: float = 1.0
    pace_changed: float = 0.0
    failures_in_row: float = 0.0
    open_since: float = 0.0
    next_probe: float = 0.0
    probes: float = 0.0


class SharedState(Protocol):
    """Where an EndpointState lives. `update` is atomic over all processes and never waits for a disk."""

    def now(self) -> float:
        """Seconds on the clock that the state's times are on."""

    def update(self, change: Callable[[EndpointState, float], tuple[EndpointState, R]]) -> R:
        """Call `change(state, now)` under the lock, keep the state it gives back, hand on its result."""


_RECORD = struct.Struct("<36s8d")
_CHECK = struct.Struct("<I")
MOST_AHEAD_S = 2 * 3600.0
"""No hold or back-off reaches further into the future; more is damage. Slots may, at a very slow rate."""


class StateFile:
    """An EndpointState in a file. Not for network file systems, where locks are not to be trusted."""

    def __init__(self, path: Path, clock: Clock = time.monotonic, boot_id: str | None = None) -> None:
        """`path` is made if it is missing. `boot_id` tells a state from before a reboot, whose clock started anew."""
        path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        self._path = path
        self._told = False
        self._descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        self._clock = clock
        self._lock = threading.Lock()  # flock tells processes apart, not threads
        self._boot = (boot_id or _this_boot()).encode()[:36].ljust(36)

    def close(self) -> None:
        """Give the file back. The state stays."""
        os.close(self._descriptor)

    def now(self) -> float:
        """See SharedState."""
        return self._clock()

    def update(self, change: Callable[[EndpointState, float], tuple[EndpointState, R]]) -> R:
        """See SharedState."""
        with self._lock:
            fcntl.flock(self._descriptor, fcntl.LOCK_EX)
            try:
                now = self._clock()
                before = self._read(now)
                after, result = change(before, now)
                if after is not before:
                    self._write(after)
                return result
            finally:
                fcntl.flock(self._descriptor, fcntl.LOCK_UN)

    def _read(self, now: float) -> EndpointState:
        raw = os.pread(self._descriptor, _RECORD.size + _CHECK.size, 0)
        if len(raw) != _RECORD.size + _CHECK.size:
            return EndpointState() if not raw else self._anew()
        record, check = raw[: _RECORD.size], _CHECK.unpack(raw[_RECORD.size :])[0]
        boot, *values = _RECORD.unpack(record)
        state = EndpointState(*values)
        absurd = max(state.hold_until, state.next_probe) > now + MOST_AHEAD_S
        if zlib.crc32(record) != check or (boot == self._boot and absurd):
            return self._anew()
        return state if boot == self._boot else EndpointState()

    def _anew(self) -> EndpointState:
        """The file is damaged, which is said once."""
        if not self._told:
            log.warning("%s: damaged; the rate's state starts anew", self._path)
            self._told = True
        return EndpointState()

    def _write(self, state: EndpointState) -> None:
        record = _RECORD.pack(self._boot, *state)
        os.pwrite(self._descriptor, record + _CHECK.pack(zlib.crc32(record)), 0)


class LocalState:
    """An EndpointState of this process alone: for tests and for a single preview call."""

    def __init__(self, clock: Clock = time.monotonic) -> None:
        self._clock = clock
        self._state = EndpointState()

    def now(self) -> float:
        """See SharedState."""
        return self._clock()

    def update(self, change: Callable[[EndpointState, float], tuple[EndpointState, R]]) -> R:
        """See SharedState."""
        self._state, result = change(self._state, self._clock())
        return result


def endpoint_key(url: str) -> str:
    """A file name for an endpoint: 32 hexadecimal characters of the URL without user info, query and fragment."""
    parts = urlsplit(url)
    port = parts.port or {"http": 80, "https": 443}.get(parts.scheme)
    place = f"{parts.hostname}:{port}"
    return hashlib.sha256(urlunsplit((parts.scheme, place, parts.path, "", "")).encode()).hexdigest()[:32]


def _this_boot() -> str:
    try:
        return Path("/proc/sys/kernel/random/boot_id").read_text().strip()
    except OSError:
        return f"since {round((time.time() - time.monotonic()) / 60)}"
