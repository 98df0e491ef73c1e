"""Where the ledgers, leases and rates of all runs are: a folder on a local disk, or a PostgreSQL database."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Protocol

from foundry_pipeline.calls.ballast import Ballast
from foundry_pipeline.calls.budget import SharedSpent, Spent, SpentFile
from foundry_pipeline.calls.endpoint_state import SharedState, StateFile, endpoint_key
from foundry_pipeline.calls.file_systems import file_system_type, refuse_shared
from foundry_pipeline.calls.lease import FileLease, Lease, file_lease_holder, make_private_folder
from foundry_pipeline.calls.ledger import Ledger
from foundry_pipeline.calls.pending import Pending, pending_slices
from foundry_pipeline.calls.salvage import Salvage, is_damaged, salvage
from foundry_pipeline.calls.sqlite import SqliteFile, files_of, is_spare, requests_in, slice_of, spare_of
from foundry_pipeline.config.ledger_source import VARIABLE, LedgerFolder, ledger_place
from foundry_pipeline.errors import ConfigError, Problem, StorageError

RATES, SPENT, BALLAST = "rates", "spent", "ballast"


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

    def repair(self, run: str, slice_key: str) -> Sequence[Salvage]:
        """Replace what cannot be read of a slice's ledger by what can be; says what came of it. Needs its lease."""

    def close(self) -> None:
        """Give everything back; to be called when leases and ledgers are."""


def ledgers_at(ledger: str, environ: Mapping[str, str], ballast_bytes: int | None = None) -> Ledgers:
    """The ledgers at FOUNDRY_LEDGER's value; nothing is opened yet. Raises ConfigError.

    `ballast_bytes` are held in reserve in a folder; None: the folder is only looked at, and nothing is.
    """
    place = ledger_place(ledger, environ)
    if isinstance(place, LedgerFolder):
        return LedgerFiles(place.path, ballast_bytes)
    try:
        from foundry_pipeline.calls.postgres.ledgers import PostgresLedgers
    except ModuleNotFoundError as err:
        message = f"PostgreSQL needs its driver ({err.name} is missing): pip install 'foundry-pipeline[postgres]'"
        raise ConfigError([Problem(VARIABLE, message)]) from err
    return PostgresLedgers(place)


class LedgerFiles:
    """`Ledgers` in a folder: <run>/<slice>.sqlite, a lock file beside it while somebody works on it, what a full disk
    left in <slice>.spare.sqlite; rates/, spent/ and the ballast."""

    def __init__(
        self,
        folder: Path,
        ballast_bytes: int | None = None,
        file_system: Callable[[Path], int | None] = file_system_type,
    ) -> None:
        """`ballast_bytes` as in `ledgers_at`."""
        self.folder = folder
        self._ballast_bytes = ballast_bytes
        self._ballast: Ballast | None = None
        self._file_system = file_system
        self._files: list[StateFile | SpentFile] = []

    def __str__(self) -> str:
        return str(self.folder)

    def open(self) -> None:
        """Make the folder and its ballast. Raises StorageError where it is on a network file system, or has no room."""
        make_private_folder(self.folder)
        refuse_shared(self.folder, self._file_system)
        if self._ballast_bytes is not None and self._ballast is None:
            self._ballast = Ballast(self.folder / BALLAST, self._ballast_bytes)

    def lease(self, run: str, slice_key: str) -> Lease:
        """See Ledgers."""
        return FileLease(self.path(run, slice_key, ".lock"), run)

    def ledger(self, run: str, slice_key: str, lease: Lease | None) -> Ledger:
        """See Ledgers."""
        return Ledger(SqliteFile(self.path(run, slice_key), self._ballast, is_ours=lease is not None))

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
        return sum(requests_in(path) for path in sorted((self.folder / run).glob("*.sqlite")) if not is_spare(path))

    def holds(self, run: str, slice_key: str) -> bool:
        """See Ledgers."""
        path = self.path(run, slice_key)
        return path.exists() or spare_of(path).exists()

    def pending(self) -> Sequence[Pending]:
        """See Ledgers. A ledger that cannot be read is listed with its damage."""
        names = {(path.parent.name, slice_of(path)) for path in self.folder.glob("*/*") if path.suffix in _LISTED}
        found = [self._pending(run, slice_key) for run, slice_key in sorted(names)]
        return [p for p in found if p.holder is not None or self.holds(p.run, p.slice_key)]

    def repair(self, run: str, slice_key: str) -> Sequence[Salvage]:
        """See Ledgers."""
        path = self.path(run, slice_key)
        return [salvage(file) for file in (path, spare_of(path)) if file.exists() and is_damaged(file)]

    def close(self) -> None:
        """See Ledgers."""
        if self._ballast is not None:
            self._ballast.release()
        for file in self._files:
            file.close()

    def path(self, run: str, slice_key: str, suffix: str = ".sqlite") -> Path:
        """A slice's file."""
        return self.folder / run / f"{slice_key}{suffix}"

    def _pending(self, run: str, slice_key: str) -> Pending:
        path = self.path(run, slice_key)
        try:
            found = _content(path).with_spare(_content(spare_of(path)))
        except StorageError as err:
            size_bytes = sum(file.stat().st_size for at in (path, spare_of(path)) for file in files_of(at))
            found = Pending(size_bytes=size_bytes, damage=str(err))
        holder = file_lease_holder(self.path(run, slice_key, ".lock"))
        return replace(found, run=run, slice_key=slice_key, holder=holder)


_LISTED = (".sqlite", ".lock")


def _content(path: Path) -> Pending:
    if not path.exists():
        return Pending()
    database = SqliteFile(path)
    try:
        return next(iter(database.run(pending_slices)), Pending())
    finally:
        database.close()
