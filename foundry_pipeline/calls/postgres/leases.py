"""Leases of slices as rows that run out, kept alive while their process lives, with a token that shows who has lost.

A process that is frozen until its lease has run out finds, at its next commit, another token in the row: it has lost
and writes nothing. A holder that died on this machine is noticed at once, one on another machine when its lease runs
out. Time is the server's.
"""

from __future__ import annotations

import contextlib
import datetime
import os
import socket
import threading
import uuid
from itertools import count
from typing import Any

import sqlalchemy as sa
from sqlalchemy.dialects.postgresql import insert

from foundry_pipeline.calls.lease import Holder
from foundry_pipeline.calls.postgres.server import Server
from foundry_pipeline.calls.postgres.tables import LEASES, TOKENS
from foundry_pipeline.calls.process import has_died, this_process
from foundry_pipeline.errors import SliceBusy, StorageError

SIGNS_PER_LEASE = 5
"""So that several may be missed before the lease runs out."""
BRIEFLY_S = 1.0
"""Patience for what is not worth waiting for: long enough to replace a connection that died unnoticed."""


class RowLease:
    """A `Lease` in a row; made by `Leases.take`."""

    def __init__(self, leases: Leases, run: str, slice_key: str, token: int) -> None:
        self.run = run
        self.slice_key = slice_key
        self.token = token
        self._leases = leases
        self._commits = count(1)

    def next_commit(self) -> int:
        """A number for a commit, so that it can be told from the others of this lease."""
        return next(self._commits)

    def admit(self, connection: sa.Connection, commit: int) -> bool:
        """Let a transaction of the holder pass: no other holder can come before it ends.

        False where this very commit took place before, and only its receipt was lost. Raises SliceBusy where the lease
        is lost. Commits of one lease must not overlap.
        """
        statement = self._leases.renewal(self).where(LEASES.c.last_commit != commit).values(last_commit=commit)
        if connection.execute(statement).rowcount:
            return True
        self._leases.check(connection, self)
        return False

    def check(self) -> None:
        """See Lease; renewed at the same time, so that it is held for a while to come."""

        def renew(connection: sa.Connection) -> None:
            if not connection.execute(self._leases.renewal(self)).rowcount:
                self._leases.check(connection, self)

        self._leases.server.run(renew)

    def release(self) -> None:
        """See Lease. Where the server cannot be reached, the lease runs out by itself."""
        self._leases.release(self)


class Leases:
    """The leases of this process, kept alive by one thread."""

    def __init__(self, server: Server) -> None:
        self.server = server
        self._held: set[RowLease] = set()
        self._lock = threading.Lock()
        self._keeper: threading.Thread | None = None
        self._closed = threading.Event()

    def take(self, run: str, slice_key: str) -> RowLease:
        """The lease of a slice, or SliceBusy naming its holder."""
        claim = f"{this_process()} {uuid.uuid4().hex}"
        taken = self.server.run(lambda connection: self._take(connection, run, slice_key, claim))
        if isinstance(taken, Holder):
            raise SliceBusy(f"{taken} works on slice {slice_key}")
        lease = RowLease(self, run, slice_key, taken)
        with self._lock:
            self._held.add(lease)
            if self._keeper is None:
                self._keeper = threading.Thread(target=self._keep_alive, name="leases", daemon=True)
                self._keeper.start()
        return lease

    def holders(self, connection: sa.Connection) -> dict[tuple[str, str], Holder]:
        """(run, slice) -> who works on it now."""
        return {(row.run, row.slice): _holder(row) for row in connection.execute(sa.select(LEASES).where(~_is_free()))}

    def renewal(self, lease: RowLease) -> sa.Update:
        """Touches one row where the lease is held, none where it is lost."""
        return sa.update(LEASES).where(_row(lease), LEASES.c.token == lease.token).values(expires=self._expiry)

    def check(self, connection: sa.Connection, lease: RowLease) -> None:
        """Raise SliceBusy where the lease is lost."""
        row = connection.execute(sa.select(LEASES).where(_row(lease))).one_or_none()
        if row is None or row.token != lease.token:
            winner = f"{_holder(row)} works on it" if row is not None else "another process had it in between"
            raise SliceBusy(
                f"lost slice {lease.slice_key} of {lease.run}: this process was silent for more than "
                f"{self.server.lease_s:g} s, and {winner}; nothing was committed"
            )

    def release(self, lease: RowLease) -> None:
        """Give a lease free, with little patience."""
        with self._lock:
            self._held.discard(lease)
        row = sa.delete(LEASES).where(_row(lease), LEASES.c.token == lease.token)
        with contextlib.suppress(StorageError):
            self.server.run(lambda connection: connection.execute(row), patience_s=BRIEFLY_S)

    def close(self) -> None:
        """Keep nothing alive any longer."""
        self._closed.set()
        if self._keeper is not None:
            self._keeper.join()

    @property
    def _expiry(self) -> sa.ColumnElement[datetime.datetime]:
        return sa.func.clock_timestamp() + datetime.timedelta(seconds=self.server.lease_s)

    def _take(self, connection: sa.Connection, run: str, slice_key: str, claim: str) -> int | Holder:
        """The token, or who has the slice. May be repeated: the claim shows what an earlier try has taken."""
        dead: int | None = None
        while (token := self._try_to_take(connection, run, slice_key, claim, dead)) is None:
            here = sa.select(LEASES).where(LEASES.c.run == run, LEASES.c.slice == slice_key)
            row = connection.execute(here).one_or_none()
            if row is not None and row.claim == claim:
                return int(row.token)
            if row is not None and (row.token == dead or not has_died(row.claim.partition(" ")[0])):
                return _holder(row)
            dead = row.token if row is not None else None
        return token

    def _try_to_take(
        self, connection: sa.Connection, run: str, slice_key: str, claim: str, dead: int | None
    ) -> int | None:
        """The new token where nobody has the slice, or only the holder of the token `dead`; else None."""
        fresh = insert(LEASES).values(
            run=run,
            slice=slice_key,
            token=TOKENS.next_value(),
            last_commit=0,
            claim=claim,
            pid=os.getpid(),
            host=socket.gethostname(),
            since=sa.func.clock_timestamp(),
            expires=self._expiry,
        )
        taken = fresh.on_conflict_do_update(
            index_elements=[LEASES.c.run, LEASES.c.slice],
            set_={c.name: fresh.excluded[c.name] for c in LEASES.columns if not c.primary_key},
            where=_is_free() if dead is None else sa.or_(_is_free(), LEASES.c.token == dead),
        )
        token: int | None = connection.execute(taken.returning(LEASES.c.token)).scalar_one_or_none()
        return token

    def _keep_alive(self) -> None:
        """Give signs of life until closed. One that cannot be given is missed; a lost lease shows at a commit."""
        while not self._closed.wait(self.server.lease_s / SIGNS_PER_LEASE):
            with contextlib.suppress(StorageError):
                self.server.run(self._renew_all, patience_s=BRIEFLY_S)

    def _renew_all(self, connection: sa.Connection) -> None:
        with self._lock:
            tokens = [lease.token for lease in self._held]
        connection.execute(sa.update(LEASES).where(LEASES.c.token.in_(tokens)).values(expires=self._expiry))


def _row(lease: RowLease) -> sa.ColumnElement[bool]:
    return sa.and_(LEASES.c.run == lease.run, LEASES.c.slice == lease.slice_key)


def _is_free() -> sa.ColumnElement[bool]:
    return LEASES.c.expires < sa.func.clock_timestamp()


def _holder(row: Any) -> Holder:
    since = row.since.astimezone(datetime.UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
    return Holder(row.run, row.pid, row.host, since)
