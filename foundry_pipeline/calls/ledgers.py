"""Where the ledgers, leases and rates of all runs are: a folder on a local disk, or a PostgreSQL database."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Protocol

from foundry_pipeline.calls.budget import SharedSpent, Spent, SpentFile
from foundry_pipeline.calls.endpoint_state import SharedState, StateFile, endpoint_key
from foundry_pipeline.calls.file_systems import file_system_type, refuse_shared
from foundry_pipeline.calls.lease import FileLease, Lease, file_lease_holder, make_private_folder
from foundry_pipeline.calls.ledger import Ledger
from foundry_pipeline.calls.pending import Pending, pending_slices
from foundry_pipeline.calls.salvage import Salvage, is_damaged, salvage
from foundry_pipeline.calls.sqlite import SqliteFile, files_of, requests_in
from foundry_pipeline.config.ledger_source import VARIABLE, LedgerFolder, ledger_place
from foundry_pipeline.errors import ConfigError, Problem, StorageError

RATES, SPENT = "rates", "spent"


class Ledgers(Protocol):
    """Where calls are kept. Its text is its address, without a password. All methods raise StorageError."""

    def open(self) -> None:
        """Make sure that it can be written."""

    def lease(self, run: str, slice_key: str) -> Lease:
        """Take the lease of a slice now. Raises SliceBusy naming its holder."""

    def ledger(self, run: str, slice_key: str, lease: Lease | None) -> Ledger:
        """Open the slice's ledger under its lease; without one, only to read what is there."""

    def endpoint(self, url: str) -> SharedState:
        """What all processes share about this endpoint."""

    def spent(self, run: str, recorded: Callable[[], Spent]) -> SharedSpent:
        """The count of what a run has cost; it begins with `recorded`, which is asked where there is none to trust."""

    def requests(self, run: str) -> int:
        """Requests that the ledgers of a run's slices record; others may be writing them."""

    def holds(self, run: str, slice_key: str) -> bool:
        """True where the slice has a ledger."""

    def pending(self) -> Sequence[Pending]:
        """Every slice with something in its ledger, or somebody at work on it, by run and slice."""

    def repair(self, run: str, slice_key: str) -> Salvage | None:
        """Replace a ledger that cannot be read by what can be; None where nothing is wrong. Needs the slice's lease."""

    def close(self) -> None:
        """Give everything back; to be called when leases and ledgers are."""


def ledgers_at(ledger: str, environ: Mapping[str, str]) -> Ledgers:
    """The ledgers at FOUNDRY_LEDGER's value; nothing is opened yet. Raises ConfigError."""
    place = ledger_place(ledger, environ)
    if isinstance(place, LedgerFolder):
        return LedgerFiles(place.path)
    try:
        from foundry_pipeline.calls.postgres.ledgers import PostgresLedgers
    except ModuleNotFoundError as err:
        message = f"PostgreSQL needs its driver ({err.name} is missing): pip install 'foundry-pipeline[postgres]'"
        raise ConfigError([Problem(VARIABLE, message)]) from err
    return PostgresLedgers(place)


class LedgerFiles:
    """`Ledgers` in a folder: <run>/<slice>.sqlite, a lock file beside it while somebody works on it, and rates/."""

    def __init__(self, folder: Path, file_system: Callable[[Path], int | None] = file_system_type) -> None:
        self.folder = folder
        self._file_system = file_system
        self._files: list[StateFile | SpentFile] = []

    def __str__(self) -> str:
        return str(self.folder)

    def open(self) -> None:
        """Make the folder. Raises StorageError where it is on a network file system."""
        make_private_folder(self.folder)
        refuse_shared(self.folder, self._file_system)

    def lease(self, run: str, slice_key: str) -> Lease:
        """See Ledgers."""
        return FileLease(self.path(run, slice_key, ".lock"), run)

    def ledger(self, run: str, slice_key: str, lease: Lease | None) -> Ledger:  # noqa: ARG002, a lock cannot run out
        """See Ledgers."""
        return Ledger(SqliteFile(self.path(run, slice_key)))

    def endpoint(self, url: str) -> SharedState:
        """See Ledgers."""
        try:
            state = StateFile(self.folder / RATES / endpoint_key(url))
        except OSError as err:
            raise StorageError(f"ledger folder {self.folder / RATES}: {err.strerror or err}") from err
        self._files.append(state)
        return state

    def spent(self, run: str, recorded: Callable[[], Spent]) -> SharedSpent:
        """See Ledgers."""
        spent = SpentFile(self.folder / SPENT / run, recorded)
        self._files.append(spent)
        return spent

    def requests(self, run: str) -> int:
        """See Ledgers."""
        return sum(map(requests_in, sorted((self.folder / run).glob("*.sqlite"))))

    def holds(self, run: str, slice_key: str) -> bool:
        """See Ledgers."""
        return self.path(run, slice_key).exists()

    def pending(self) -> Sequence[Pending]:
        """See Ledgers. A ledger that cannot be read is listed with its damage."""
        names = {(path.parent.name, path.stem) for path in self.folder.glob("*/*") if path.suffix in _LISTED}
        found = [self._pending(run, slice_key) for run, slice_key in sorted(names)]
        return [p for p in found if p.holder is not None or self.path(p.run, p.slice_key).exists()]

    def repair(self, run: str, slice_key: str) -> Salvage | None:
        """See Ledgers."""
        path = self.path(run, slice_key)
        return salvage(path) if path.exists() and is_damaged(path) else None

    def close(self) -> None:
        """See Ledgers."""
        for file in self._files:
            file.close()

    def path(self, run: str, slice_key: str, suffix: str = ".sqlite") -> Path:
        """A slice's file."""
        return self.folder / run / f"{slice_key}{suffix}"

    def _pending(self, run: str, slice_key: str) -> Pending:
        path = self.path(run, slice_key)
        try:
            found = _content(path) if path.exists() else Pending()
        except StorageError as err:
            size_bytes = sum(file.stat().st_size for file in files_of(path))
            found = Pending(size_bytes=size_bytes, damage=str(err))
        holder = file_lease_holder(self.path(run, slice_key, ".lock"))
        return replace(found, run=run, slice_key=slice_key, holder=holder)


_LISTED = (".sqlite", ".lock")


def _content(path: Path) -> Pending:
    database = SqliteFile(path)
    try:
        return next(iter(database.run(pending_slices)), Pending())
    finally:
        database.close()
