"""The right to work on one slice of a run: one process at a time has it, and the others are told which.

On one machine it is `flock` on a file; the kernel frees a dead process's lock. In PostgreSQL it is a row that runs out
(`postgres/leases.py`). A lease can be lost, so who has one asks `check` before a commit.
"""

from __future__ import annotations

import fcntl
import json
import os
import socket
import time
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Protocol

from foundry_pipeline.errors import SliceBusy, StorageError


@dataclass(frozen=True, slots=True)
class Holder:
    """Who works on a slice of `run`. `since` is UTC, as text."""

    run: str
    pid: int
    host: str
    since: str

    def __str__(self) -> str:
        return f"run {self.run} (pid {self.pid}, host {self.host}, since {self.since})"


class Lease(Protocol):
    """Held from the moment it is made until `release`, or until it is lost."""

    def check(self) -> None:
        """Return where the lease is still held. Raises SliceBusy naming its new holder where it is lost."""

    def release(self) -> None:
        """Give the slice free."""


class FileLease:
    """A lease by `flock` on a file that says who holds it."""

    def __init__(self, path: Path, run: str) -> None:
        """Take the lease of the slice that the file is named after, or raise SliceBusy naming its holder."""
        self._path = path
        self._run = run
        make_private_folder(path.parent)
        while True:
            try:
                self._descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
            except OSError as err:
                raise StorageError(f"ledger {path}: {err.strerror or err}") from err
            try:
                fcntl.flock(self._descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                os.close(self._descriptor)
                raise SliceBusy(self._busy()) from None
            if self._is_current():
                break
            os.close(self._descriptor)
        holder = Holder(run, os.getpid(), socket.gethostname(), now_text())
        os.ftruncate(self._descriptor, 0)
        os.pwrite(self._descriptor, json.dumps(asdict(holder)).encode(), 0)

    def check(self) -> None:
        """See Lease. It is lost where somebody has removed the file: then the next process locks a new one."""
        if not self._is_current():
            raise SliceBusy(f"lost slice {self._path.stem}: {self._path} was removed while {self._run} worked on it")

    def release(self) -> None:
        """Give the slice free. The file goes while the lock is still held, so that none is left behind."""
        if self._is_current():
            self._path.unlink(missing_ok=True)
        os.close(self._descriptor)

    def _is_current(self) -> bool:
        """False where the file was removed by its last holder between our open and our lock."""
        try:
            return os.path.samestat(self._path.stat(), os.fstat(self._descriptor))
        except FileNotFoundError:
            return False

    def _busy(self) -> str:
        holder = file_lease_holder(self._path)
        return f"{holder or f'another process of run {self._run}'} works on slice {self._path.stem}"


def file_lease_holder(path: Path) -> Holder | None:
    """Who holds the lease of this file now; None where nobody does, or who does has just begun."""
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW)
    except OSError:
        return None
    try:
        fcntl.flock(descriptor, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return _holder_said(os.pread(descriptor, 1024, 0))
    finally:
        os.close(descriptor)
    return None


def _holder_said(content: bytes) -> Holder | None:
    try:
        said: Mapping[str, Any] = json.loads(content)
        return Holder(str(said["run"]), int(said["pid"]), str(said["host"]), str(said["since"]))
    except (ValueError, KeyError, TypeError):
        return None


def make_private_folder(folder: Path) -> None:
    """Make it, for this user alone, where it is missing. Raises StorageError."""
    try:
        folder.mkdir(parents=True, exist_ok=True, mode=0o700)
    except OSError as err:
        raise StorageError(f"ledger folder {folder}: {err.strerror or err}") from err


def now_text() -> str:
    """UTC, to the second."""
    return time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())
