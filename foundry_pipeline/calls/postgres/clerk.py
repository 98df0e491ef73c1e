"""One thread with one connection of its own, which does one thing after the other: the event loop never waits."""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any, ParamSpec, TypeVar

import pg8000.native

from foundry_pipeline.calls.postgres.server import ERRORS, Server

P = ParamSpec("P")
R = TypeVar("R")


class Clerk:
    """`run` is for the thread's own work; all else may be called from any thread."""

    def __init__(self, server: Server, name: str, setting: str = "") -> None:
        """`setting` is a statement for every new connection."""
        self._server = server
        self._setting = setting
        self._thread = ThreadPoolExecutor(1, thread_name_prefix=name)
        self._connection: pg8000.native.Connection | None = None
        self._statements: dict[str, Any] = {}
        self.asked_at = 0.0
        """When the last statement that was answered was sent: seconds of `time.monotonic`."""
        self.trip_s = 0.0
        """How long an answer takes, lately."""

    def tell(self, work: Callable[P, R], *args: P.args, **kwargs: P.kwargs) -> Future[R]:
        """Have `work` done by the thread, after all that it was told before."""
        return self._thread.submit(work, *args, **kwargs)

    async def ask(self, question: Callable[[], R]) -> R:
        """`tell`, and wait for what comes of it."""
        return await asyncio.get_running_loop().run_in_executor(self._thread, question)

    def close(self) -> None:
        """Finish what was told, and give the connection back."""
        self._thread.submit(self._drop).result()
        self._thread.shutdown()

    def run(self, statement: str, **values: object) -> list[list[Any]]:
        """Rows of a statement, which is tried again where the connection is lost, and then perhaps takes effect twice.

        Raises StorageError.
        """
        patience = self._server.patience()
        while True:
            began = time.monotonic()
            try:
                rows: list[list[Any]] | None = self._prepared(statement).run(**values)
            except ERRORS as err:
                self._drop()
                patience.sleep_after(err)
            else:
                self._server.outage.end()
                self.asked_at, self.trip_s = began, 0.8 * self.trip_s + 0.2 * (time.monotonic() - began)
                return rows or []

    def _prepared(self, statement: str) -> Any:
        if self._connection is None:
            self._connection = self._server.connect()
            if self._setting:
                self._connection.run(self._setting)
        if statement not in self._statements:
            self._statements[statement] = self._connection.prepare(statement)
        return self._statements[statement]

    def _drop(self) -> None:
        self._statements.clear()
        connection, self._connection = self._connection, None
        if connection is not None:
            with contextlib.suppress(*ERRORS):
                connection.close()
