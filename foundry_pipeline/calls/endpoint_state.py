"""What every process shares about one endpoint: its next free send time, a hold, a slow-down, its breaker.

On one machine it is a small file under `flock`; the kernel frees a dead process's lock. For several machines it is a
row in PostgreSQL (`postgres/endpoint_row.py`). The state is disposable: a damaged file, or one from before a reboot,
starts anew. Times of the file are seconds of the machine's monotonic clock, which all its processes share, so a jump
of the wall clock neither floods nor stalls.
"""

from __future__ import annotations

import fcntl
import hashlib
import logging
import mmap
import os
import struct
import threading
import time
import zlib
from abc import abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass
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

    def pace_at(self, now: float) -> float:
        """The pace in use at `now`: it recovers with time."""
        if self.pace >= 1.0:
            return 1.0
        return min(1.0, self.pace + max(0.0, now - self.pace_changed) * RECOVERY_PER_S)

    def is_absurd(self, now: float) -> bool:
        """True where a time lies so far ahead that nobody of ours has set it: damage, or a clock that was put back."""
        horizon = now + MOST_AHEAD_S
        return self.hold_until > horizon or self.next_probe > horizon


RECOVERY_PER_S = 0.01
MOST_AHEAD_S = 2 * 3600.0
"""No hold or back-off reaches further into the future. Slots may, at a very slow rate."""
MOST_BOOKED, MOST_BOOKED_S = 256, 5.0
"""Every process books a few slots ahead. More than so many, and further ahead than that, are left over from a slower
rate that no longer holds."""
Change = Callable[[EndpointState, float], tuple[EndpointState, R]]
"""(state, now) -> (the state from now on, a result). It leaves `next_free` alone: that is what booking is for."""


@dataclass(frozen=True, slots=True)
class Spacing:
    """Where slots may stand, in seconds: `interval_s` apart at full pace. A slot that is `late_s` late is still taken;
    after a pause those of the last `burst_s` are."""

    interval_s: float
    late_s: float
    burst_s: float = 0.0

    def take(self, state: EndpointState, now: float) -> tuple[EndpointState, float]:
        """Book the next free send time. `postgres/endpoint_row.py` says the same in SQL."""
        interval_s = self.interval_s / state.pace_at(now)
        next_free, hold_until = state.next_free, state.hold_until
        if next_free > now + MOST_BOOKED_S:
            booked_s = max(MOST_BOOKED * interval_s, MOST_BOOKED_S)
            next_free = min(next_free, max(now, hold_until) + booked_s)
        due = next_free if next_free >= now - self.late_s else now - self.burst_s
        slot = due if due > hold_until else hold_until
        return EndpointState(slot + interval_s, *state[1:]), slot


class SharedState(Protocol):
    """Where an EndpointState lives. Changes are atomic over all processes, and none waits for a disk.

    What is asynchronous may take a round trip over a network; the rest is at hand.
    """

    def now(self) -> float:
        """Seconds on the clock that the state's times are on."""

    def peek(self) -> EndpointState:
        """The state as this process last saw it."""

    @property
    def look_ahead_s(self) -> float:
        """How long before a send time to `look`, so as not to be late for it."""

    async def look(self) -> None:
        """See to it that `peek` gives the state as it is, or was a moment ago, with all that this process has changed.

        Raises StorageError where it cannot be had.
        """

    async def book(self, spacing: Spacing, wanted: int) -> Sequence[float]:
        """Take at least one and at most `wanted` send times, in order; they are now this process's."""

    async def update(self, change: Change[R]) -> R:
        """Apply `change` to the state as it is, and hand on its result."""

    def tell(self, change: Change[None]) -> None:
        """Apply `change` now or in a moment; what this process asks later is answered after it."""

    def close(self) -> None:
        """Give connections and files back. The state stays."""


class _AtHand:
    """A state that is so near that every question is answered at once."""

    @abstractmethod
    def now(self) -> float:
        """See SharedState."""

    @abstractmethod
    def _change(self, change: Change[R]) -> R:
        """Apply it under the lock."""

    look_ahead_s = 0.0

    @abstractmethod
    def peek(self) -> EndpointState:
        """See SharedState: the state as it is, without the lock."""

    async def look(self) -> None:
        """See SharedState: `peek` always does."""

    async def book(self, spacing: Spacing, wanted: int) -> Sequence[float]:  # noqa: ARG002, one is enough
        """One slot, so that shares of processes are equal and a killed one wastes one."""
        return (self._change(spacing.take),)

    async def update(self, change: Change[R]) -> R:
        """See SharedState."""
        return self._change(change)

    def tell(self, change: Change[None]) -> None:
        """See SharedState. What would change nothing needs no lock."""
        state = self.peek()
        if change(state, self.now())[0] is not state:
            self._change(change)

    def close(self) -> None:
        """See SharedState."""


_RECORD = struct.Struct("<36s8dI")
"""Boot, state, and the check sum of both."""
_SIZE = _RECORD.size
_CHECKED = _SIZE - 4


class StateFile(_AtHand):
    """An EndpointState in a file. Not for network file systems, where locks are not to be trusted."""

    def __init__(self, path: Path, clock: Clock = time.monotonic, boot_id: str | None = None) -> None:
        """`path` is made if it is missing. `boot_id` tells a state from before a reboot, whose clock started anew."""
        path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        self._path = path
        self._told = False
        self._descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        if os.fstat(self._descriptor).st_size < _SIZE:
            os.ftruncate(self._descriptor, _SIZE)
        self._content = mmap.mmap(self._descriptor, _SIZE, prot=mmap.PROT_READ)
        self._known = (b"", EndpointState())
        """The last record seen, and what it says: as a rule it is our own."""
        self._clock = clock
        self._lock = threading.Lock()  # flock tells processes apart, not threads
        self._boot = (boot_id or this_boot()).encode()[:36].ljust(36)

    def close(self) -> None:
        """Give the file back. The state stays."""
        self._content.close()
        os.close(self._descriptor)

    def now(self) -> float:
        """See SharedState."""
        return self._clock()

    def peek(self) -> EndpointState:
        """See SharedState. The check sum tells a record that is just being written."""
        return self._read(self._clock()) or self._change(lambda state, _: (state, state))

    def _change(self, change: Change[R]) -> R:
        with self._lock:
            fcntl.flock(self._descriptor, fcntl.LOCK_EX)
            try:
                now = self._clock()
                before = self._read(now) or self._anew()
                after, result = change(before, now)
                if after is not before:
                    self._write(after)
                return result
            finally:
                fcntl.flock(self._descriptor, fcntl.LOCK_UN)

    def _read(self, now: float) -> EndpointState | None:
        """None where the record is damaged, from another boot or absurd."""
        record = self._content[:]
        known, state = self._known
        if record != known:
            boot, *values, check = _RECORD.unpack(record)
            state = EndpointState._make(values)
            if check != zlib.crc32(record[:_CHECKED]) or boot != self._boot:
                return None
            self._known = (record, state)
        return None if state.is_absurd(now) else state

    def _anew(self) -> EndpointState:
        """A new file, or one from before a reboot; or it is damaged, which is said once."""
        record = self._content[:]
        boot, *_, check = _RECORD.unpack(record)
        is_damaged = any(record) and (boot == self._boot or check != zlib.crc32(record[:_CHECKED]))
        if is_damaged and not self._told:
            log.warning("%s: damaged; the rate's state starts anew", self._path)
            self._told = True
        return EndpointState()

    def _write(self, state: EndpointState) -> None:
        """One call, so that a process killed here leaves the old record or the new one."""
        record = _RECORD.pack(self._boot, *state, 0)[:_CHECKED]
        record += zlib.crc32(record).to_bytes(4, "little")
        os.pwrite(self._descriptor, record, 0)
        self._known = (record, state)


class LocalState(_AtHand):
    """An EndpointState of this process alone: for tests and for a single preview call."""

    def __init__(self, clock: Clock = time.monotonic) -> None:
        self._clock = clock
        self._state = EndpointState()

    def now(self) -> float:
        """See SharedState."""
        return self._clock()

    def peek(self) -> EndpointState:
        """See SharedState."""
        return self._state

    def _change(self, change: Change[R]) -> R:
        self._state, result = change(self._state, self._clock())
        return result


def endpoint_key(url: str) -> str:
    """A file name for an endpoint: 32 hexadecimal characters of the URL without user info, query and fragment."""
    parts = urlsplit(url)
    port = parts.port or {"http": 80, "https": 443}.get(parts.scheme)
    place = f"{parts.hostname}:{port}"
    return hashlib.sha256(urlunsplit((parts.scheme, place, parts.path, "", "")).encode()).hexdigest()[:32]


def this_boot() -> str:
    """An id that a reboot changes: the kernel's own, else the minute of the last boot."""
    try:
        return Path("/proc/sys/kernel/random/boot_id").read_text().strip()
    except OSError:
        return f"since {round((time.time() - time.monotonic()) / 60)}"
