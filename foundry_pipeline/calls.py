"""The calls of one run: workers that send tasks under the shared rate, retry what can succeed, and settle the rest.

A task ends in an Answer that is durable in its slice's ledger. What is the endpoint's fault charges no row: failures
are taken back when a canary shows an outage. What no request can mend stops everything (EndpointStopped).
"""

from __future__ import annotations

import asyncio
import math
import random
import time
from collections import Counter
from collections.abc import Awaitable, Callable, Collection, Mapping
from dataclasses import dataclass, field, replace

from foundry_pipeline.breaker import Breaker
from foundry_pipeline.client import Broken, Fault, ModelClient, Response
from foundry_pipeline.data_rows import DataRow
from foundry_pipeline.errors import EndpointStopped, RowUnavailable, StorageError
from foundry_pipeline.ledger import Answer, Attempt, Intent, Ledger
from foundry_pipeline.rate import Rate
from foundry_pipeline.verdicts import Next, Verdict, decode_text, judge, spent_until_s

LONGEST_BACKOFF_S = 60.0
SLOW_PER_S = 5.0
SAME_FAULT_ROWS = 5
"""So many distinct rows with the same fault, and no answer ever, mean that the endpoint takes nothing."""
MOST_IN_FLIGHT = 64
CANARY_BYTES = 1024 * 1024


@dataclass(frozen=True, slots=True)
class CallRules:
    """What the manifest and the deployment fix about calling. Times are seconds."""

    requests_per_second: float
    max_attempts: int
    max_concurrency: int | None
    features: Collection[str] | None
    takes_text: bool
    endpoint_patience_s: float = 3600.0
    preflight_patience_s: float = 600.0
    refused_patience_s: float = 60.0


@dataclass(slots=True, eq=False)
class Task:
    """One call to be made; `settled` gets its Answer without the reply, which the ledger has.

    `charged` counts failures held against the row, `streak` those of them that a proven outage takes back,
    `suspected` those that only a proven healthy endpoint puts on the row.
    """

    row: DataRow
    call_id: str
    ledger: Ledger
    settled: asyncio.Future[Answer]
    charged: int = 0
    streak: int = 0
    suspected: int = 0
    resends: Counter[str] = field(default_factory=Counter)
    successes_seen: int = 0
    fault: Verdict | None = None
    fault_status: int | None = None
    sends: int = 0
    stale_before: bool = False


@dataclass(slots=True)
class Tally:
    """What was sent so far, for reports and progress."""

    calls: int = 0
    latencies_ms: list[float] = field(default_factory=list)


@dataclass(frozen=True, slots=True)
class _Canary:
    call_id: str
    body: bytes = field(repr=False)


class Caller:
    """Sends tasks. Make it, use it and close it in one event loop."""

    def __init__(
        self,
        rules: CallRules,
        rate: Rate,
        breaker: Breaker,
        *,
        body_of: Callable[[DataRow], Awaitable[bytes]],
        make_client: Callable[[], ModelClient],
        credentials: Callable[[], tuple[Mapping[str, str], Mapping[str, str]]],
        scrub: Callable[[bytes], bytes],
        jitter: Callable[[], float] = random.random,
    ) -> None:
        """`credentials` gives headers and query parameters at the moment of sending; `scrub` takes the secret out of
        what comes back."""
        self._rules = rules
        self._rate = rate
        self._breaker = breaker
        self._body_of = body_of
        self._make_client = make_client
        self._credentials = credentials
        self._scrub = scrub
        self._jitter = jitter
        self._queue: asyncio.Queue[Task] = asyncio.Queue()
        self._open: set[Task] = set()
        self._queued: set[Task] = set()
        self._in_streak: set[Task] = set()
        self._held_back: list[tuple[Task, Answer]] = []
        self._canary: _Canary | None = None
        self._successes = 0
        self._answered_before = False
        self._began = time.monotonic()
        self._workers: list[asyncio.Task[None]] = []
        self._stopped: EndpointStopped | StorageError | None = None
        self._waiting_for = ""
        self._refused = False
        self._last_success = 0.0
        self.tally = Tally()

    @property
    def stopped(self) -> EndpointStopped | StorageError | None:
        """Why nothing more is sent, or None."""
        return self._stopped

    @property
    def open_calls(self) -> int:
        """Tasks that are not settled yet."""
        return len(self._open)

    @property
    def waiting_for(self) -> str:
        """What keeps requests from going, for people; empty where nothing does."""
        return self._waiting_for

    def knows_answers(self) -> None:
        """The endpoint is known to have answered this run before: a refusal is the row's, not a wrong URL's."""
        self._answered_before = True

    def submit(self, task: Task) -> None:
        """Queue a task; its `settled` future gets the Answer, or the error that stopped everything."""
        if self._stopped:
            task.settled.set_exception(self._stopped)
            return
        self._open.add(task)
        self._enqueue(task)
        self._staff()

    def stop(self, error: EndpointStopped | StorageError) -> None:
        """Send nothing more. Calls in flight may still bring their answers home."""
        if self._stopped is None:
            self._stopped = error
        for task in list(self._queued):
            self._fail(task)
        for task, _ in self._held_back:
            self._fail(task)
        self._held_back.clear()

    async def close(self) -> None:
        """End the workers and their connections."""
        for worker in self._workers:
            worker.cancel()
        await asyncio.gather(*self._workers, return_exceptions=True)

    # How many work at once

    def _staff(self) -> None:
        """As many workers as rate times latency asks for, and as there are tasks."""
        wanted = min(self.in_flight_limit, len(self._open))
        while len(self._workers) < wanted:
            self._workers.append(asyncio.create_task(self._work()))

    @property
    def in_flight_limit(self) -> int:
        """Calls that may be in flight at once: the manifest's, else the rate times the latency, at most 64."""
        if self._rules.max_concurrency:
            return self._rules.max_concurrency
        rate = self._rules.requests_per_second
        recent = sorted(self.tally.latencies_ms[-50:])
        latency_s = recent[int(len(recent) * 0.9)] / 1000 if recent else 1.0
        return min(MOST_IN_FLIGHT, math.ceil(1.25 * rate * latency_s) + 2)

    async def _work(self) -> None:
        client = self._make_client()
        try:
            while True:
                task = await self._queue.get()
                if task not in self._queued:
                    continue
                self._queued.discard(task)
                await self._attend(client, task)
                self._staff()
        finally:
            await client.close()

    async def _attend(self, client: ModelClient, task: Task) -> None:
        try:
            await self._attempt(client, task)
        except (EndpointStopped, StorageError) as err:
            self.stop(err)
            self._fail(task)
        except asyncio.CancelledError:
            task.settled.cancel()
            raise
        except BaseException as err:
            if not task.settled.done():
                task.settled.set_exception(err)
            raise

    # One attempt

    async def _attempt(self, client: ModelClient, task: Task) -> None:
        if task.charged >= self._rules.max_attempts:
            await self._give_up(client, task)
            return
        try:
            body = await self._body_of(task.row)
        except RowUnavailable as err:
            await self._settle(task, Answer(task.call_id, "not_sent", error=err.code, message=err.message))
            return
        is_probe = await self._pass_gate(client)
        sent_us = await self._declare_intent(task)
        task.sends += 1
        result = await self._post(client, task.call_id, body)
        if isinstance(result, Response):
            await self._digest(client, task, result, body, sent_us, is_probe)
        else:
            await self._digest_fault(client, task, result, sent_us, is_probe)

    async def _declare_intent(self, task: Task) -> int:
        """Return at the call's send time with its intent durable; gives the time in microseconds of the UTC epoch.

        At a fast rate the commit would make slots late, so it comes first; at a slow one the wait would leave
        intents of calls that are not in flight.
        """
        if self._rules.requests_per_second <= SLOW_PER_S:
            await self._take_slot()
        sent_us = time.time_ns() // 1000
        await task.ledger.write(Intent(task.call_id, task.row.global_key, sent_us))
        if self._rules.requests_per_second > SLOW_PER_S:
            await self._take_slot()
        return sent_us

    async def _take_slot(self) -> None:
        await self._rate.acquire()
        if self._stopped:
            raise self._stopped

    async def _post(self, client: ModelClient, call_id: str, body: bytes) -> Response | Fault:
        headers, params = self._credentials()
        self.tally.calls += 1
        return await client.post(body, {**headers, "Idempotency-Key": call_id}, params)

    async def _digest(
        self, client: ModelClient, task: Task, response: Response, body: bytes, sent_us: int, is_probe: bool
    ) -> None:
        reply = self._scrub(response.body)
        verdict = judge(
            response.status,
            response.headers,
            reply,
            features=self._rules.features,
            takes_text=self._rules.takes_text,
        )
        if (spent_s := spent_until_s(response.headers)) is not None:
            self._rate.hold(spent_s)
        if verdict.next is Next.KEEP:
            await self._keep(task, response, reply, body)
            return
        attempt = Attempt(task.call_id, sent_us, verdict.code or "", verdict.message or "", response.status, reply)
        await task.ledger.write(attempt)
        if verdict.next is Next.STOP:
            raise EndpointStopped(verdict.code or "stopped", verdict.message or "the endpoint takes no requests")
        if verdict.next is Next.REFUSED:
            await self._refuse(task, verdict, response, reply)
        elif verdict.next is Next.WAIT:
            await self._wait_for_endpoint(task, verdict, response.status, is_probe)
        else:
            await self._charge(client, task, verdict, response.status, is_probe)

    async def _keep(self, task: Task, response: Response, reply: bytes, body: bytes) -> None:
        self.tally.latencies_ms.append(response.latency_ms)
        text = decode_text(reply, response.headers).encode()
        answer = Answer(task.call_id, "ok", http_status=response.status, latency_ms=response.latency_ms, reply=text)
        await self._settle(task, answer)
        self._successes += 1
        self._last_success = time.monotonic()
        self._waiting_for = ""
        self._answered_before = True
        self._breaker.succeeded()
        for other in self._in_streak:
            other.streak = 0
        self._in_streak.clear()
        if len(body) <= min(CANARY_BYTES, len(self._canary.body) - 1 if self._canary else CANARY_BYTES):
            self._canary = _Canary(task.call_id, body)
        await self._release_held_back()

    async def _digest_fault(self, client: ModelClient, task: Task, fault: Fault, sent_us: int, is_probe: bool) -> None:
        code, resends = _FAULT_CODES[fault.broken]
        message = self._scrub(fault.message.encode()).decode()
        await task.ledger.write(Attempt(task.call_id, sent_us, code, message, evidence=self._scrub(fault.partial)))
        if fault.broken is Broken.TLS or (fault.broken is Broken.NO_HOST and not self._answered_before):
            raise EndpointStopped(code, message)
        if fault.broken in (Broken.UNREACHABLE, Broken.NO_HOST):
            await self._wait_for_endpoint(task, Verdict(Next.WAIT, code, message), None, is_probe)
        elif fault.broken is Broken.STALE and not task.stale_before:
            task.stale_before = True
            self._enqueue(task)
        else:
            verdict = Verdict(Next.RETRY, code, message, resends=resends)
            await self._charge(client, task, verdict, None, is_probe)

    # What a failure leads to

    async def _refuse(self, task: Task, verdict: Verdict, response: Response, reply: bytes) -> None:
        """The model's verdict on the row, unless the endpoint has never answered: then it may be a wrong URL."""
        if verdict.before_success and not self._answered_before:
            raise EndpointStopped(
                verdict.code or "http_404",
                f"there is no model at this URL: {verdict.message}; check inference_endpoint",
            )
        self._breaker.succeeded()
        answer = Answer(
            task.call_id,
            "rejected_by_model",
            http_status=response.status,
            latency_ms=response.latency_ms,
            reply=decode_text(reply, response.headers).encode() if response.status in (200, 201) else None,
            error=verdict.code,
            message=verdict.message,
        )
        if self._answered_before or not (verdict.code or "").startswith("http_"):
            await self._settle(task, answer)
        else:
            await self._hold_back(task, answer)

    async def _wait_for_endpoint(self, task: Task, verdict: Verdict, status: int | None, is_probe: bool) -> None:
        """429 and outages: everybody waits, the row is not charged."""
        task.suspected += 1
        self._waiting_for = verdict.message or ""
        self._refused = status is None
        task.fault, task.fault_status = verdict, status
        if is_probe:
            self._breaker.probe_failed()
        else:
            self._breaker.failed()
        if verdict.hold_s is not None:
            self._rate.hold(verdict.hold_s)
        elif status in (429, 503):
            self._rate.slow_down()
        self._check_patience(time.monotonic() - self._began)
        delay_s = 0.0 if verdict.hold_s else self._backoff_s(task.suspected)
        self._enqueue_later(task, delay_s)

    async def _charge(
        self, client: ModelClient, task: Task, verdict: Verdict, status: int | None, is_probe: bool
    ) -> None:
        """A failure that may be the row's own."""
        code = verdict.code or "failed"
        if task.streak == 0:
            task.successes_seen = self._successes
        task.charged += 1
        task.streak += 1
        self._in_streak.add(task)
        task.resends[code] += 1
        task.fault, task.fault_status = verdict, status
        if is_probe:
            self._breaker.probe_failed()
        elif self._answered_before:
            self._breaker.failed()
        spent = verdict.resends is not None and task.resends[code] > verdict.resends
        if spent or task.charged >= self._rules.max_attempts:
            await self._give_up(client, task)
        else:
            self._enqueue_later(task, self._backoff_s(task.charged))

    async def _give_up(self, client: ModelClient, task: Task) -> None:
        """The row's attempts are spent. If nothing has succeeded since they began, the endpoint may be to blame."""
        assert task.fault is not None
        answer = Answer(
            task.call_id,
            "failed",
            http_status=task.fault_status,
            error=task.fault.code,
            message=task.fault.message,
        )
        if not self._answered_before:
            await self._hold_back(task, answer)
        elif self._successes > task.successes_seen or self._canary is None or await self._canary_answers(client):
            await self._settle(task, answer)
        else:
            self._breaker.open_now()
            self._blame_endpoint()
            task.resends.clear()
            self._enqueue(task)

    async def _hold_back(self, task: Task, answer: Answer) -> None:
        """Without any answer yet, a verdict waits: the same fault on several rows is the endpoint's."""
        self._held_back.append((task, answer))
        same = [other for _, other in self._held_back if other.error == answer.error]
        if len(same) >= SAME_FAULT_ROWS:
            raise EndpointStopped(
                answer.error or "stopped",
                f"the endpoint answered none of the first {len(same)} rows: {answer.message}",
            )
        if len(self._held_back) == len(self._open):
            await self._release_held_back()

    async def _release_held_back(self) -> None:
        held_back, self._held_back = self._held_back, []
        for task, answer in held_back:
            await self._settle(task, answer)

    async def _settle(self, task: Task, answer: Answer) -> None:
        await task.ledger.write(answer)
        self._open.discard(task)
        if not task.settled.done():
            task.settled.set_result(replace(answer, reply=None))
        if self._held_back and len(self._held_back) == len(self._open):
            await self._release_held_back()

    def _fail(self, task: Task) -> None:
        self._open.discard(task)
        self._queued.discard(task)
        if not task.settled.done():
            task.settled.set_exception(self._stopped or EndpointStopped("stopped", "nothing more is sent"))

    # Waiting

    def _enqueue(self, task: Task) -> None:
        if self._stopped:
            self._fail(task)
            return
        self._queued.add(task)
        self._queue.put_nowait(task)

    def _enqueue_later(self, task: Task, delay_s: float) -> None:
        if self._stopped:
            self._fail(task)
            return
        self._queued.add(task)
        asyncio.get_running_loop().call_later(delay_s, self._queue.put_nowait, task)

    def _backoff_s(self, failures: int) -> float:
        """Full jitter: 0 to 2^(n-1) seconds, at most 60."""
        return self._jitter() * min(LONGEST_BACKOFF_S, 2.0 ** min(failures - 1, 10))

    async def _pass_gate(self, client: ModelClient) -> bool:
        """Return once requests may go. True: this request itself is the probe, for want of a canary."""
        while (gate := self._breaker.gate()).closed:
            if self._stopped:
                raise self._stopped
            self._check_patience(gate.open_for_s)
            if gate.probe and self._canary is None:
                return True
            if gate.probe:
                await self._probe(client)
            else:
                await asyncio.sleep(min(gate.wait_s, 1.0))
        return False

    def _check_patience(self, down_s: float) -> None:
        """Raise EndpointStopped where the endpoint has been down for longer than anybody wants to wait."""
        if self._answered_before:
            patience_s = self._rules.endpoint_patience_s
        elif self._refused:
            patience_s = self._rules.refused_patience_s
        else:
            patience_s = self._rules.preflight_patience_s
        waited_s = min(down_s, time.monotonic() - max(self._began, self._last_success))
        if waited_s > patience_s:
            raise EndpointStopped(
                "endpoint_down", f"no answer for {waited_s:.0f} s: {self._waiting_for}; run again to go on"
            )

    async def _probe(self, client: ModelClient) -> None:
        if await self._canary_answers(client):
            self._breaker.succeeded()
            self._blame_rows()
        else:
            self._breaker.probe_failed()
            self._blame_endpoint()

    async def _canary_answers(self, client: ModelClient) -> bool:
        """Send a request that has succeeded before. Its answer is known and not kept again."""
        assert self._canary is not None
        await self._take_slot()
        result = await self._post(client, self._canary.call_id, self._canary.body)
        if isinstance(result, Fault):
            return False
        verdict = judge(
            result.status,
            result.headers,
            result.body,
            features=self._rules.features,
            takes_text=self._rules.takes_text,
        )
        if verdict.next is Next.STOP:
            raise EndpointStopped(verdict.code or "stopped", verdict.message or "")
        if verdict.hold_s is not None:
            self._rate.hold(verdict.hold_s)
        return verdict.next is Next.KEEP

    def _blame_endpoint(self) -> None:
        for task in self._open:
            task.charged -= task.streak
            task.streak = task.suspected = 0

    def _blame_rows(self) -> None:
        for task in self._open:
            task.charged += task.suspected
            task.streak = task.suspected = 0


_FAULT_CODES: Mapping[Broken, tuple[str, int | None]] = {
    Broken.UNREACHABLE: ("connection", None),
    Broken.NO_HOST: ("connection", None),
    Broken.CUT: ("connection", None),
    Broken.STALE: ("connection", None),
    Broken.TIMEOUT: ("timeout", None),
    Broken.TOO_LARGE: ("too_large", 1),
    Broken.ENCODING: ("content_encoding", 1),
    Broken.TLS: ("tls", None),
}
