"""One PostgreSQL server: its connections, and patience with one that is lost.

Every statement of this package goes through `Server.run`, or over a connection from `Server.connect`. No message shows
a password, a statement or its parameters.
"""

from __future__ import annotations

import contextlib
import random
import socket
import ssl
import threading
import time
from collections.abc import Callable
from typing import Any, TypeVar

import pg8000.dbapi
import pg8000.native
import sqlalchemy as sa

from foundry_pipeline.calls import ledger_tables
from foundry_pipeline.calls.postgres import tables
from foundry_pipeline.config.ledger_source import VARIABLE, LedgerDatabase
from foundry_pipeline.errors import ConfigError, Problem, StorageError

T = TypeVar("T")
SCHEMA = "foundry_ledger"
MOST_CONNECTIONS = 3
"""For ledgers, leases and the reading of them; the rate has one more."""
CONNECT_S = 10.0
ANSWER_S = 20.0
"""A statement that is not answered by then was sent over a dead connection. Sooner, where patience ends sooner."""
LONGEST_PAUSE_S = 2.0
FORGOTTEN_S = 60.0
"""A failure that is older, with no answer and no failure since, belongs to another outage."""
ERRORS = (sa.exc.DBAPIError, sa.exc.TimeoutError, pg8000.native.Error, OSError)
"""What a statement may raise that is no bug of ours."""
_ADVISORY_LOCK = 0x0F0E_D417

# A process that is frozen in a transaction must not hold others up for long.
_BOUNDED = """
SELECT set_config('lock_timeout', '5s', false), set_config('idle_in_transaction_session_timeout', '10s', false)
"""
DURABLE = """
SELECT set_config('synchronous_commit', 'on', false) WHERE current_setting('synchronous_commit') = 'off'
"""
"""For a session whose commits must be on the server's disk when they return."""


class Server:
    """Connections to the database of `place`. Threads may share it."""

    def __init__(self, place: LedgerDatabase) -> None:
        """Raises ConfigError where the file of `sslrootcert` cannot be read."""
        self._place = place
        self._tls = _tls(place)
        self._closing = threading.Event()
        self.outage = Outage()
        self._engine = sa.create_engine(
            "postgresql+pg8000://",
            module=pg8000.dbapi,
            creator=lambda: self._opened(_LedgerConnection),
            pool_size=MOST_CONNECTIONS,
            max_overflow=0,
            pool_timeout=ANSWER_S,
            hide_parameters=True,
        ).execution_options(schema_translate_map={None: SCHEMA})

    def __str__(self) -> str:
        return str(self._place)

    def make_tables(self, patience_s: float) -> None:
        """Make the schema and what is missing in it; many processes may do so at once."""

        def make(connection: sa.Connection) -> None:
            connection.execute(sa.select(sa.func.pg_advisory_xact_lock(_ADVISORY_LOCK)))
            if SCHEMA not in sa.inspect(connection).get_schema_names():
                connection.execute(sa.schema.CreateSchema(SCHEMA))
            for metadata in (ledger_tables.METADATA, tables.METADATA):
                metadata.create_all(connection)

        self.run(make, min(patience_s, self._place.patience_s))

    def run(self, work: Callable[[sa.Connection], T], patience_s: float | None = None) -> T:
        """Call `work` in a transaction and commit it; again, from the start, where the connection is lost.

        Whether a commit whose answer was lost took place is for `work` to find out. Raises StorageError.
        """
        patience = self.patience(patience_s)
        while True:
            try:
                return self._once(work)
            except ERRORS as err:
                patience.sleep_after(err)

    def _once(self, work: Callable[[sa.Connection], T]) -> T:
        with self._engine.connect() as connection:
            transaction = connection.begin()
            try:
                result = work(connection)
                transaction.commit()
            except BaseException:
                connection.invalidate()  # what state it is in is not known; the server forgets the transaction
                raise
            self.outage.end()
            return result

    def connect(self) -> pg8000.native.Connection:
        """A connection of one's own, in autocommit. Raises one of ERRORS."""
        return self._opened(pg8000.native.Connection)

    def patience(self, seconds: float | None = None) -> Patience:
        """For one task; None: as long as the address says, counted from when the server was lost to all."""
        if seconds is None:
            return Patience(str(self), self._place.patience_s, self._closing, self.outage)
        return Patience(str(self), seconds, self._closing, Outage())

    @property
    def lease_s(self) -> float:
        """See LedgerDatabase."""
        return self._place.lease_s

    @property
    def closing(self) -> threading.Event:
        """Set once nobody is to wait any longer."""
        return self._closing

    def close(self) -> None:
        """Close the connections; who still waits for one gets a StorageError."""
        self._closing.set()
        self._engine.dispose()

    def _opened(self, kind: Callable[..., T]) -> T:
        place = self._place
        sock = _open_socket(place)
        try:
            return kind(
                place.user,
                database=place.database,
                host=place.host,
                password=place.password.reveal() if place.password else "",
                sock=sock,
                ssl_context=self._tls,
                application_name="foundry-pipeline",
            )
        except BaseException:
            sock.close()
            raise


class _LedgerConnection(pg8000.dbapi.Connection):  # type: ignore[misc]  # the driver has no types
    """Knows the session's settings, and closes without complaint when its server has gone."""

    def __init__(self, *args: object, **options: object) -> None:
        super().__init__(*args, **options)
        self.execute_simple(f"{_BOUNDED};{DURABLE}")

    def close(self) -> None:
        with contextlib.suppress(pg8000.native.Error, OSError):
            super().close()


class Outage:
    """Since when a server has not answered. Shared by many tasks, so that they do not wait one after the other."""

    def __init__(self) -> None:
        self._since: float | None = None
        self._latest = 0.0

    def begin(self, now: float) -> float:
        """Note a failure at `now`, seconds of `time.monotonic`. Gives the time of the first one."""
        if self._since is None or now - self._latest > FORGOTTEN_S:
            self._since = now
        self._latest = now
        return self._since

    def end(self) -> None:
        """The server has answered."""
        self._since = None


class Patience:
    """Time to try again, from the beginning of an outage on."""

    def __init__(self, server: str, seconds: float, closing: threading.Event, outage: Outage) -> None:
        self._server = server
        self._seconds = seconds
        self._closing = closing
        self._outage = outage
        self._pause_s = 0.05

    def sleep_after(self, err: Exception) -> None:
        """Return when it is time to try again. Raises StorageError where that makes no sense, or not any longer."""
        if not _may_pass(err):
            raise StorageError(f"ledger {self._server}: {cause(err)}") from None
        now = time.monotonic()
        deadline = self._outage.begin(now) + self._seconds
        if now >= deadline or self._closing.is_set():
            raise StorageError(
                f"ledger {self._server}: no connection for {self._seconds:g} s: {cause(err)}; nothing more is sent, "
                "what it holds is kept, run again to go on"
            ) from None
        # Jitter: a fleet whose server comes back must not come back as one.
        self._closing.wait(min(self._pause_s * random.uniform(0.5, 1.5), deadline - now))  # noqa: S311
        self._pause_s = min(2 * self._pause_s, LONGEST_PAUSE_S)


def cause(err: BaseException) -> str:
    """What an error says, in one line, without statements."""
    original = getattr(err, "orig", None) or err
    said = original.args[0] if original.args else ""
    if isinstance(said, dict):
        return str(said.get("M", "an error without a message"))
    if isinstance(original, OSError):
        return original.strerror or str(original) or type(original).__name__
    return next(iter(str(said).splitlines()), "") or type(original).__name__


_PASSING_STATES = ("08", "53", "57", "40", "55P03", "25006", "25P03")
"""Connection, resources, shutdown and start, conflict, a lock not had, a standby, a transaction ended while frozen."""
_PASSING_WORDS = ("network error", "connection is closed", "communication error")


def _may_pass(err: Exception) -> bool:
    """True where trying again may help."""
    original = getattr(err, "orig", None) or err
    if isinstance(original, pg8000.native.DatabaseError):
        said: Any = original.args[0] if original.args else {}
        return isinstance(said, dict) and str(said.get("C", "")).startswith(_PASSING_STATES)
    if isinstance(original, ssl.SSLCertVerificationError):
        return False
    if isinstance(original, pg8000.native.InterfaceError):
        return str(original) in _PASSING_WORDS
    return isinstance(original, OSError | sa.exc.TimeoutError)


def _open_socket(place: LedgerDatabase) -> socket.socket:
    limit_s = min(CONNECT_S, max(1.0, place.patience_s))
    if place.host.startswith("/"):
        sock = socket.socket(socket.AF_UNIX)
        try:
            sock.settimeout(limit_s)
            sock.connect(f"{place.host}/.s.PGSQL.{place.port}")
        except OSError:
            sock.close()
            raise
    else:
        sock = socket.create_connection((place.host, place.port), limit_s)
        # The driver writes a statement in pieces; without this each waits 40 ms for the other side's receipt.
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    sock.settimeout(min(ANSWER_S, max(1.0, place.patience_s)))
    return sock


def _tls(place: LedgerDatabase) -> ssl.SSLContext | bool | None:
    """As libpq does for `sslmode`; for the driver, None is "if the server can", True "without looking at its name"."""
    if place.host.startswith("/") or place.tls == "disable":
        return False
    if place.tls == "prefer":
        return None
    if place.tls == "require" and place.tls_roots is None:
        return True
    try:
        context = ssl.create_default_context(cafile=place.tls_roots)
    except OSError as err:
        raise ConfigError([Problem(VARIABLE, f"sslrootcert: {place.tls_roots}: {err.strerror or err}")]) from err
    context.check_hostname = place.tls == "verify-full"
    return context
