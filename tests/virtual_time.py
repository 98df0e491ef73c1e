"""Hours of calls in a second: the real caller, rate and breaker on an event loop whose clock jumps to what comes next.

`simulate(endpoint, rows=1000)` sends every row to `endpoint`, a function of the request and the time that gives a
status or raises what httpx raises. Nothing sleeps, nothing listens, and a run that does not end is a TimeoutError.
"""

from __future__ import annotations

import asyncio
import random
import selectors
import ssl
from collections import Counter
from collections.abc import AsyncIterator, Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import httpx

from foundry_pipeline.calls.blame import Task
from foundry_pipeline.calls.breaker import Breaker
from foundry_pipeline.calls.caller import Caller, CallRules
from foundry_pipeline.calls.client import ModelClient
from foundry_pipeline.calls.endpoint_state import LocalState
from foundry_pipeline.calls.ledger import Answer, Attempt, Entry, Intent, Withdrawal
from foundry_pipeline.calls.rate import Rate
from foundry_pipeline.calls.stop import Stop
from foundry_pipeline.data_rows import DataRow

BEGIN_S = 1000.0
LONGEST_S = 12 * 3600.0
"""A run that is not over by then never ends."""


class VirtualLoop(asyncio.SelectorEventLoop):
    """An event loop in which waiting takes no time."""

    def __init__(self) -> None:
        self.now = BEGIN_S
        super().__init__(_Jumping(self))

    def time(self) -> float:
        return self.now


class _Jumping(selectors.SelectSelector):
    def __init__(self, loop: VirtualLoop) -> None:
        super().__init__()
        self._loop = loop

    def select(self, timeout: float | None = None) -> list[Any]:
        ready = super().select(0)
        if not ready and timeout is None:
            raise RuntimeError("everybody waits for something that will never happen")
        if not ready and timeout:
            self._loop.now += timeout
        return ready


class MemoryLedger:
    """What a Ledger would keep, for one simulation."""

    def __init__(self) -> None:
        self.entries: list[Entry] = []
        self.attempts: Counter[str] = Counter()

    async def write(self, entry: Entry) -> None:
        await self.queue(entry)

    def queue(self, entry: Entry) -> asyncio.Future[None]:
        self.entries.append(entry)
        if isinstance(entry, Intent):
            self.attempts[entry.call_id] += 1
        elif isinstance(entry, Withdrawal):
            self.attempts[entry.call_id] -= 1
        written = asyncio.get_running_loop().create_future()
        written.set_result(None)
        return written

    def of_kind(self, kind: type) -> list[Any]:
        return [entry for entry in self.entries if isinstance(entry, kind)]


@dataclass(frozen=True)
class Sent:
    """One request as the endpoint sees it. `at` counts seconds from the beginning; `row` is its number, `is_probe`
    where it is a canary."""

    at: float
    row: int
    is_probe: bool


Endpoint = Callable[[Sent], "httpx.Response | int"]


@dataclass
class Outcome:
    """What became of a simulation."""

    answers: dict[int, Answer | BaseException]
    sent: list[Sent]
    answered_at: list[float]
    """When each response with 200 was on its way."""
    ledger: MemoryLedger
    seconds: float
    notes: list[str] = field(default_factory=list)

    def rows(self, outcome: str) -> set[int]:
        return {row for row, answer in self.answers.items() if isinstance(answer, Answer) and answer.outcome == outcome}

    @property
    def refused(self) -> int:
        """Requests that were not answered with 200."""
        return len(self.sent) - len(self.answered_at)

    @property
    def stopped(self) -> set[str]:
        return {str(answer) for answer in self.answers.values() if isinstance(answer, BaseException)}

    def attempts(self, code: str) -> int:
        return sum(1 for attempt in self.ledger.of_kind(Attempt) if attempt.error == code)


def simulate(
    endpoint: Endpoint, *, rows: int, per_s: float = 10.0, latency_s: float = 0.1, seed: int = 0, **rules: Any
) -> Outcome:
    """Send rows 0 to `rows` - 1. `endpoint` gives a status, 200 meaning an answer, or a whole response."""
    runner = asyncio.Runner(loop_factory=VirtualLoop)
    with runner:
        return runner.run(_simulate(endpoint, rows, per_s, latency_s, random.Random(seed), rules))


async def _simulate(
    endpoint: Endpoint, rows: int, per_s: float, latency_s: float, dice: random.Random, rules: dict[str, Any]
) -> Outcome:
    loop = asyncio.get_running_loop()
    sent: list[Sent] = []
    answered_at: list[float] = []

    async def serve(request: httpx.Request) -> httpx.Response:
        _call_id, _, probe = request.headers["idempotency-key"].partition("-probe-")
        sent_now = Sent(loop.time() - BEGIN_S, int(request.content), bool(probe))
        sent.append(sent_now)
        await asyncio.sleep(latency_s)
        said = endpoint(replace(sent_now, at=loop.time() - BEGIN_S))
        response = httpx.Response(said, content=b"{}") if isinstance(said, int) else said
        if response.status_code == 200:
            answered_at.append(loop.time() - BEGIN_S)
        return httpx.Response(response.status_code, headers=response.headers, stream=_Unread(response.content))

    state, stop, ledger = LocalState(loop.time), Stop(), MemoryLedger()
    tls = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    caller = Caller(
        CallRules(per_s, **{"max_attempts": 8, "max_concurrency": 16, "features": None, "takes_text": False, **rules}),
        Rate(state, per_s, 1, stop.sleep),
        Breaker(state, dice.random),
        stop,
        body_of=_body_of,
        make_client=lambda: ModelClient(
            "http://model.test/", timeout_s=60, max_reply_bytes=1000, tls=tls, transport=httpx.MockTransport(serve)
        ),
        credentials=lambda: ({}, {}),
        scrub=lambda body: body,
        jitter=dice.random,
        clock=loop.time,
    )
    tasks = [_task(row, ledger) for row in range(rows)]
    for task in tasks:
        caller.submit(task)
    notes: list[str] = []
    settled = asyncio.gather(*(task.settled for task in tasks), return_exceptions=True)
    watching = loop.create_task(_watch(caller, notes))
    async with asyncio.timeout(LONGEST_S):
        answers = await settled
    watching.cancel()
    seconds = loop.time() - BEGIN_S
    await caller.close()
    return Outcome(dict(enumerate(answers)), sent, answered_at, ledger, seconds, notes)


class _Unread(httpx.AsyncByteStream):
    """A body that comes over a wire."""

    def __init__(self, content: bytes) -> None:
        self._content = content

    async def __aiter__(self) -> AsyncIterator[bytes]:
        yield self._content


async def _watch(caller: Caller, notes: list[str]) -> None:
    while True:
        await asyncio.sleep(60)
        if caller.waiting_for:
            notes.append(caller.waiting_for)


async def _body_of(row: DataRow) -> bytes:
    return row.row_data.encode()


def _task(row: int, ledger: MemoryLedger) -> Task:
    settled = asyncio.get_running_loop().create_future()
    return Task(DataRow(str(row), f"k{row}", "text", str(row)), f"c{row}", ledger, settled)  # type: ignore[arg-type]


def down_between(*spans: tuple[float, float]) -> Callable[[float], bool]:
    """Whether a time, in seconds from the beginning, is in one of the spans."""
    ordered: Sequence[tuple[float, float]] = spans
    return lambda at: any(begin <= at < end for begin, end in ordered)
