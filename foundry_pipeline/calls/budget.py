"""What a run has cost and may cost: each request is counted before it is sent, over all processes, for the run's life.

One count per run. On one machine it is a small file under `flock`, in the ledger folder; for several machines it is a
row in PostgreSQL (`postgres/spent_row.py`). It is no disposable state like a rate: where the file is missing, damaged,
or from before a reboot, whose last writes may be lost, the count goes on with what tables and ledgers record.
"""

from __future__ import annotations

import fcntl
import os
import struct
import threading
import zlib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple, Protocol, TypeVar

from foundry_pipeline.calls.endpoint_state import this_boot
from foundry_pipeline.config.money import Money
from foundry_pipeline.errors import EndpointStopped, StorageError

R = TypeVar("R")


class Spent(NamedTuple):
    """Requests that were sent for a run, and their cost in billionths of the unit."""

    calls: int = 0
    billionths: int = 0

    def without_one(self, price: int) -> Spent:
        """The count before a call at `price` billionths."""
        return Spent(max(0, self.calls - 1), max(0, self.billionths - price))


class SharedSpent(Protocol):
    """Where the count of one run lives. Changes are atomic over all processes. Amounts are billionths of the unit."""

    async def spend(self, price: int, most: int | None) -> bool:
        """Count a call, durably. False, and nothing is counted, where more than `most` would then be spent.

        Raises StorageError where the count cannot be kept.
        """

    def give_back(self, price: int) -> None:
        """Take a call off the count again, now or in a moment."""

    def peek(self) -> Spent:
        """The count as this process last saw it. It never waits for a network."""

    def close(self) -> None:
        """Give it back. The count stays."""


@dataclass(frozen=True, slots=True)
class Cost:
    """What a run has cost so far, with everything ever sent for it; `budget` is None where it has none."""

    calls: int
    spent: Money
    budget: Money | None = None

    def __str__(self) -> str:
        if self.budget is None:
            return f"{self.spent} spent"
        return f"{Money(self.spent.amount)} of {Money(self.budget.amount, self.spent.currency)} spent"


class Budget:
    """Counts the calls of one run at `price` each, and ends the run before a call that `most` does not cover."""

    def __init__(self, shared: SharedSpent, price: Money, most: Money | None, run_file: str) -> None:
        """`run_file` is where a person raises the budget."""
        self._shared = shared
        self._price = price
        self._most = most
        self._currency = price.currency or (most.currency if most is not None else "")
        self._run_file = run_file

    async def spend(self) -> None:
        """Count a call that is about to be sent. Raises EndpointStopped, and counts nothing, where it is too much."""
        most = None if self._most is None else self._most.billionths
        if not await self._shared.spend(self._price.billionths, most):
            raise EndpointStopped("budget", self._too_much())

    def give_back(self) -> None:
        """A call that was counted did not reach the endpoint."""
        self._shared.give_back(self._price.billionths)

    def cost(self) -> Cost:
        """So far, whoever sent it."""
        spent = self._shared.peek()
        return Cost(spent.calls, Money.of_billionths(spent.billionths, self._currency), self._most)

    def _too_much(self) -> str:
        cost = self.cost()
        return (
            f"{cost} on {cost.calls:,} calls, and the next one costs {Money(self._price.amount, self._currency)}; "
            f"to go on, raise `budget` in {self._run_file}"
        )


_RECORD = struct.Struct("<36sQ16s")
_CHECK = struct.Struct("<I")


class SpentFile:
    """A count in a file. Not for network file systems, where locks are not to be trusted."""

    def __init__(self, path: Path, recorded: Callable[[], Spent], boot_id: str | None = None) -> None:
        """`recorded` is asked where the file cannot be trusted. Raises StorageError where it cannot be written."""
        self._path = path
        self._recorded = recorded
        self._lock = threading.Lock()  # flock tells processes apart, not threads
        self._boot = (boot_id or this_boot()).encode()[:36].ljust(36)
        self._latest = Spent()
        try:
            path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
            self._descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        except OSError as err:
            raise StorageError(f"the count of what is spent, {path}: {err.strerror or err}") from err
        self.update(lambda spent: (spent, None))

    def close(self) -> None:
        """See SharedSpent."""
        os.close(self._descriptor)

    async def spend(self, price: int, most: int | None) -> bool:
        """See SharedSpent."""

        def add(spent: Spent) -> tuple[Spent, bool]:
            if most is not None and spent.billionths + price > most:
                return spent, False
            return Spent(spent.calls + 1, spent.billionths + price), True

        return self.update(add)

    def give_back(self, price: int) -> None:
        """See SharedSpent."""
        self.update(lambda spent: (spent.without_one(price), None))

    def peek(self) -> Spent:
        """See SharedSpent: as it is."""
        return self.update(lambda spent: (spent, spent))

    def update(self, change: Callable[[Spent], tuple[Spent, R]]) -> R:
        """Call `change(spent)` under the lock, keep the count it gives back, hand on its result.

        Raises StorageError where the count cannot be kept.
        """
        with self._lock:
            try:
                fcntl.flock(self._descriptor, fcntl.LOCK_EX)
                try:
                    before, is_trusted = self._read()
                    self._latest, result = change(before)
                    if self._latest != before or not is_trusted:
                        self._write(self._latest)
                    return result
                finally:
                    fcntl.flock(self._descriptor, fcntl.LOCK_UN)
            except OSError as err:
                raise StorageError(f"the count of what is spent, {self._path}: {err.strerror or err}") from err

    def _read(self) -> tuple[Spent, bool]:
        """The count, and whether the file says so itself. One from before a reboot may lack its last calls."""
        raw = os.pread(self._descriptor, _RECORD.size + _CHECK.size, 0)
        record, check = raw[: _RECORD.size], raw[_RECORD.size :]
        if len(record) != _RECORD.size or check != _CHECK.pack(zlib.crc32(record)):
            return _at_least(self._latest, self._recorded()), False
        boot, calls, billionths = _RECORD.unpack(record)
        spent = Spent(calls, int.from_bytes(billionths, "little"))
        return (spent, True) if boot == self._boot else (_at_least(spent, self._recorded()), False)

    def _write(self, spent: Spent) -> None:
        record = _RECORD.pack(self._boot, spent.calls, spent.billionths.to_bytes(16, "little"))
        os.pwrite(self._descriptor, record + _CHECK.pack(zlib.crc32(record)), 0)


def _at_least(one: Spent, other: Spent) -> Spent:
    return Spent(max(one.calls, other.calls), max(one.billionths, other.billionths))
