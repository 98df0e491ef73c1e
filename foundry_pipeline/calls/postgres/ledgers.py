"""Ledgers, leases and rates in one PostgreSQL database."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from typing import Any, TypeVar

import sqlalchemy as sa

from foundry_pipeline.calls.budget import SharedSpent, Spent
from foundry_pipeline.calls.endpoint_state import SharedState, endpoint_key
from foundry_pipeline.calls.lease import Lease
from foundry_pipeline.calls.ledger import Ledger
from foundry_pipeline.calls.ledger_tables import ATTEMPTS, CALLS, Scope
from foundry_pipeline.calls.pending import Pending, pending_slices
from foundry_pipeline.calls.postgres.endpoint_row import EndpointRow
from foundry_pipeline.calls.postgres.leases import Leases, RowLease
from foundry_pipeline.calls.postgres.server import Server
from foundry_pipeline.calls.postgres.spent_row import SpentRow
from foundry_pipeline.calls.salvage import Salvage
from foundry_pipeline.config.ledger_source import LedgerDatabase

T = TypeVar("T")
PAGE_ROWS = 64
"""Rows that are in memory at once, each perhaps with a reply of megabytes."""
OPENING_S = 5.0
"""At the start somebody waits to be told that the address is wrong; nothing is at stake yet."""


class PostgresLedgers:
    """`ledgers.Ledgers` in a database that any number of machines share."""

    def __init__(self, place: LedgerDatabase) -> None:
        self._server = Server(place)
        self._leases = Leases(self._server)
        self._rows: list[EndpointRow | SpentRow] = []

    def __str__(self) -> str:
        return str(self._server)

    def open(self) -> None:
        """Make the tables that are missing."""
        self._server.make_tables(OPENING_S)

    def lease(self, run: str, slice_key: str) -> RowLease:
        """See Ledgers."""
        return self._leases.take(run, slice_key)

    def ledger(self, run: str, slice_key: str, lease: Lease | None) -> Ledger:
        """See Ledgers."""
        assert lease is None or isinstance(lease, RowLease)
        return Ledger(SliceRows(self._server, Scope(run, slice_key), lease))

    def endpoint(self, url: str) -> SharedState:
        """See Ledgers."""
        state = EndpointRow(self._server, endpoint_key(url))
        self._rows.append(state)
        return state

    def spent(self, run: str, recorded: Callable[[], Spent]) -> SharedSpent:
        """See Ledgers."""
        spent = SpentRow(self._server, run, recorded)
        self._rows.append(spent)
        return spent

    def requests(self, run: str) -> int:
        """See Ledgers."""
        attempts = sa.select(sa.func.coalesce(sa.func.sum(CALLS.c.attempts), 0)).where(CALLS.c.run == run)
        return int(self._server.run(lambda connection: connection.execute(attempts).scalar_one()))

    def holds(self, run: str, slice_key: str) -> bool:
        """See Ledgers."""
        some = sa.select(sa.literal(1)).where(Scope(run, slice_key).of(CALLS)).limit(1)
        return self._server.run(lambda connection: connection.execute(some).first() is not None)

    def pending(self) -> Sequence[Pending]:
        """See Ledgers."""
        self.open()
        found, holders = self._server.run(lambda c: (pending_slices(c), self._leases.holders(c)))
        by_key = {(p.run, p.slice_key): p for p in found}
        empty = {key: Pending(*key) for key in holders}
        return [replace(p, holder=holders.get(key)) for key, p in sorted({**empty, **by_key}.items())]

    def repair(self, run: str, slice_key: str) -> Sequence[Salvage]:  # noqa: ARG002
        """See Ledgers: the server's files are the server's."""
        return ()

    def close(self) -> None:
        """See Ledgers."""
        self._server.closing.set()
        for row in self._rows:
            row.close()
        self._leases.close()
        self._server.close()


class SliceRows:
    """A `ledger.Database`: the rows of one slice, written by the holder of its lease alone."""

    def __init__(self, server: Server, scope: Scope, lease: RowLease | None) -> None:
        self.scope = scope
        self._server = server
        self._lease = lease
        self._turn = threading.Lock()

    def __str__(self) -> str:
        return str(self._server)

    def run(self, work: Callable[[sa.Connection], T]) -> T:
        """See Database."""
        return self._server.run(work)

    @property
    def is_ours(self) -> bool:
        """See Database."""
        return self._lease is not None

    def begin_spare(self) -> None:
        """See Database: what finds no place on the server finds it nowhere."""

    def spare_left(self) -> None:
        """See Database."""

    def pages(self, calls: sa.Select[Any]) -> Iterator[Sequence[Any]]:
        """See Database: each page is a question of its own, so that one whose connection is lost is asked again."""
        page = self._page(calls, "")
        while page:
            yield page
            page = self._page(calls, page[-1][0])

    def _page(self, calls: sa.Select[Any], after: str) -> Sequence[Any]:
        some = calls.where(CALLS.c.call_id > after).order_by(CALLS.c.call_id).limit(PAGE_ROWS)
        return self.run(lambda connection: connection.execute(some).all())

    def commit(self, work: Callable[[sa.Connection], None]) -> None:
        """See Database. A commit whose receipt was lost with the connection shows in the lease: it is not repeated."""

        lease = self._lease
        assert lease is not None, "a ledger without a lease is for reading"

        def once(connection: sa.Connection) -> None:
            if lease.admit(connection, number):
                work(connection)

        with self._turn:
            number = lease.next_commit()
            self._server.run(once)

    def close(self) -> None:
        """The connections are the server's: others use them."""

    def remove(self) -> None:
        """See Database."""

        def delete(connection: sa.Connection) -> None:
            for table in (CALLS, ATTEMPTS):
                connection.execute(sa.delete(table).where(self.scope.of(table)))

        self.commit(delete)
