"""The calls of one run: workers that send tasks under the shared rate, retry what can succeed, and settle the rest.

A task ends in an Answer that is durable in its slice's ledger. Whose fault a failure is, is decided in `blame.py`; what
no request can mend stops everything.
"""

from __future__ import annotations

import asyncio
import contextlib
import math
import random
import time
from collections import deque
from collections.abc import Awaitable, Callable, Collection, Iterator, Mapping
from dataclasses import dataclass, field, replace
from itertools import count

from foundry_pipeline.asks import Ask
from foundry_pipeline.calls.blame import Blame, HeldBack, Task, Tried
from foundry_pipeline.calls.breaker import Breaker, Gate
from foundry_pipeline.calls.budget import Budget
from foundry_pipeline.calls.client import Broken, Fault, ModelClient, Response
from foundry_pipeline.calls.clock import clock_time
from foundry_pipeline.calls.ledger import EVIDENCE_BYTES, Answer, Attempt, Intent, Withdrawal
from foundry_pipeline.calls.rate import Rate
from foundry_pipeline.calls.stop import Stop
from foundry_pipeline.calls.verdicts import Next, Verdict, decode_text, judge, kept_as, spent_until_s
from foundry_pipeline.errors import EndpointStopped, RowUnavailable

LONGEST_BACKOFF_S = 60.0
SLOW_PER_S = 5.0
MOST_IN_FLIGHT = 64
FEWEST_READY = 64
"""Tasks that are ready beside those in flight, before a feed is asked for more."""
MOST_OPEN = 10_000
"""Tasks at once, those that wait for another try included."""


@dataclass(frozen=True, slots=True)
class CallRules:
    """What the manifest and the deployment fix about calling. Times are seconds.

    `advice` is what a person can do where a code of `responses.error` stops everything.
    """

    requests_per_second: float
    max_attempts: int
    max_concurrency: int | None
    features: Collection[str] | None
    takes_text: bool
    endpoint_patience_s: float = 3600.0
    preflight_patience_s: float = 600.0
    refused_patience_s: float = 60.0
    advice: Mapping[str, str] = field(default_factory=dict)


@dataclass(slots=True)
class Tally:
    """What was sent so far, canaries included, for progress and for the size of the crew."""

    calls: int = 0
    recent_ms: deque[float] = field(default_factory=lambda: deque(maxlen=50))
    recent_answers: deque[bool] = field(default_factory=lambda: deque(maxlen=50))
    """Whether the last requests were answered."""

    @property
    def is_mostly_unanswered(self) -> bool:
        """True where less than a third of the last requests were answered: sending fewer may help. Where more are,
        failures come by chance, and sending fewer would only bring fewer answers."""
        return 3 * sum(self.recent_answers) < len(self.recent_answers)


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
        stop: Stop,
        *,
        body_of: Callable[[Ask], Awaitable[bytes]],
        make_client: Callable[[], ModelClient],
        credentials: Callable[[], tuple[Mapping[str, str], Mapping[str, str]]],
        scrub: Callable[[bytes], bytes],
        budget: Budget | None = None,
        jitter: Callable[[], float] = random.random,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """`credentials` gives headers and query parameters at the moment of sending; `scrub` takes the secret out of
        what comes back; `rate` must sleep through `stop`; without a `budget` nothing is counted; `clock` is the event
        loop's, in seconds."""
        self._rules = rules
        self._rate = rate
        self._breaker = breaker
        self._stop = stop
        self._body_of = body_of
        self._make_client = make_client
        self._credentials = credentials
        self._scrub = scrub
        self._budget = budget
        self._jitter = jitter
        self._clock = clock
        self._queue: asyncio.Queue[Task] = asyncio.Queue()
        self._open: set[Task] = set()
        self._queued: set[Task] = set()
        self._tried = Tried()
        self._blame = Blame(rules.max_attempts)
        self._held_back = HeldBack()
        self._canary: _Canary | None = None
        self._canary_ask: Ask | None = None
        self._probes = count(1)
        self._answered_before = False
        self._trouble_since: float | None = None
        self._waiting_for = ""
        self._refused = False
        self._workers: list[asyncio.Task[None]] = []
        self._feeds = 0
        self._wants_more: list[asyncio.Future[None]] = []
        self.tally = Tally()

    @property
    def stopped(self) -> BaseException | None:
        """Why nothing more is sent, or None."""
        return self._stop.error

    @property
    def open_calls(self) -> int:
        """Tasks that are not settled yet."""
        return len(self._open)

    @property
    def trouble(self) -> str:
        """What keeps requests from going; empty where nothing does."""
        return self._waiting_for

    @property
    def waiting_for(self) -> str:
        """What keeps requests from going, and for how long, for people; empty where nothing does."""
        return self._waiting_for and f"for {self._waited_s():.0f} s: {self._waiting_for}"

    @property
    def in_flight_limit(self) -> int:
        """Calls that may be in flight at once: the manifest's, else the rate times the latency, at most 64."""
        if self._rules.max_concurrency:
            return self._rules.max_concurrency
        rate = self._rules.requests_per_second
        recent = sorted(self.tally.recent_ms)
        latency_s = recent[int(len(recent) * 0.9)] / 1000 if recent else 1.0
        return min(MOST_IN_FLIGHT, math.ceil(1.25 * rate * latency_s) + 2)

    def knows_answer(self, ask: Ask) -> None:
        """The endpoint has answered this before: a refusal is then the row's, and no sign of a wrong URL; and it may
        serve as a canary."""
        self._canary_ask = self._canary_ask or ask
        self._note_answer()

    def submit(self, task: Task) -> None:
        """Queue a task; its `settled` future gets the Answer, or the error that stopped everything."""
        self._open.add(task)
        self._enqueue(task)
        self._staff()

    @contextlib.contextmanager
    def feed(self) -> Iterator[None]:
        """While more tasks are on their way: what the endpoint has answered none of is not yet all there is."""
        self._feeds += 1
        try:
            yield
        finally:
            self._feeds -= 1
            self._release_if_all_wait()

    async def room(self) -> None:
        """Return once few tasks are left to send, so that a feed holds few rows; at once where all is stopped."""
        while self._stop.error is None and not self._has_room:
            self._wants_more.append(asyncio.get_running_loop().create_future())
            await self._wants_more[-1]

    @property
    def _has_room(self) -> bool:
        return self._queue.qsize() < FEWEST_READY + self.in_flight_limit and len(self._open) < MOST_OPEN

    def _ask_for_more(self) -> None:
        waiting, self._wants_more = self._wants_more, []
        for feed in waiting:
            if not feed.done():
                feed.set_result(None)

    def stop(self, error: BaseException) -> None:
        """Send nothing more. Calls in flight may still bring their answers home."""
        self._stop.set(error)
        self._ask_for_more()
        for task in [*self._queued, *self._held_back.take()]:
            self._fail(task)

    async def close(self) -> None:
        """End the workers and their connections."""
        for worker in self._workers:
            worker.cancel()
        await asyncio.gather(*self._workers, return_exceptions=True)

    def _staff(self) -> None:
        """As many workers as may have a call in flight, and as there are tasks."""
        while len(self._workers) < min(self.in_flight_limit, len(self._open)):
            self._workers.append(asyncio.create_task(self._work()))

    async def _work(self) -> None:
        client = self._make_client()
        last: Task | None = None
        try:
            while True:
                task = await self._queue.get()
                if task not in self._queued or (not self._answered_before and self._tried.keeps_back(task)):
                    continue
                self._queued.discard(task)
                await self._landed_before(task, last)
                await self._attend(client, task)
                last = task
                self._staff()
                if self._wants_more and self._has_room:
                    self._ask_for_more()
        finally:
            await client.close()

    async def _landed_before(self, task: Task, last: Task | None) -> None:
        """Let a worker have one call at a time whose answer could still be lost.

        In one ledger that is so by itself: the next call's intent becomes durable after the last one's answer.
        """
        if last is not None and last.landing is not None and last.ledger is not task.ledger:
            await asyncio.wait([last.landing])

    async def _attend(self, client: ModelClient, task: Task) -> None:
        """One attempt. Whatever it raises ends the run, for a worker that dies in silence would hang it."""
        try:
            await self._attempt(client, task)
        except asyncio.CancelledError:
            self._fail(task)
            raise
        except BaseException as err:
            self.stop(err)
            self._fail(task)
            if not isinstance(err, Exception):
                raise

    async def _attempt(self, client: ModelClient, task: Task) -> None:
        if self._blame.is_spent(task):
            if await self._pass_gate(client):
                self._breaker.probe_abandoned()
            await self._give_up(client, task)
            return
        try:
            body = await self._body_of(task.ask)
        except RowUnavailable as err:
            if err.wait_s is not None:
                self._enqueue_later(task, err.wait_s)
            else:
                await self._land(task, Answer(task.call_id, "not_sent", error=err.code, message=err.message))
            return
        is_probe = await self._pass_gate(client)
        answered = None
        try:
            answered = await self._call(client, task, body)
        finally:
            if is_probe:
                self._report_probe(answered)

    async def _call(self, client: ModelClient, task: Task, body: bytes) -> bool:
        """Send the task once and deal with what comes. True where the endpoint answered."""
        slot = await self._declare_intent(client, task)
        sent_us = time.time_ns() // 1000
        task.sends += 1
        try:
            result = await self._post(client, task.call_id, body, slot)
        except EndpointStopped:  # before it was sent
            task.sends -= 1
            await task.ledger.write(Withdrawal(task.call_id))
            raise
        if isinstance(result, Fault):
            self.tally.recent_answers.append(False)
            await self._digest_fault(client, task, result, sent_us)
            return False
        reply = self._scrub(result.body)
        verdict = self._judge(result, reply)
        self.tally.recent_answers.append(verdict.next in (Next.KEEP, Next.REFUSED))
        if verdict.next is Next.KEEP:
            self._keep(task, result, reply, body, sent_us)
            return True
        await task.ledger.write(
            Attempt(task.call_id, sent_us, verdict.code or "", verdict.message or "", result.status, reply)
        )
        task.reply = _readable(reply, result) if result.status in (200, 201) else None
        await self._follow(client, task, verdict, result, sent_us)
        return verdict.next is Next.REFUSED

    async def _declare_intent(self, client: ModelClient, task: Task) -> float:
        """Return at the call's send time, which it gives, with its intent durable.

        At a fast rate commit and connecting would make slots late, so they come first; at a slow one the wait would
        leave intents of calls that are not in flight. There a commit that took long has cost the slot.
        """
        intent = Intent(task.call_id, task.ask.row.global_key, time.time_ns() // 1000)
        if self._rules.requests_per_second <= SLOW_PER_S:
            slot = await self._rate.acquire()
            await task.ledger.write(intent)
            if self._rate.is_good(slot):
                return slot
        else:
            written = task.ledger.queue(intent)
            await client.open()
            await written
        try:
            return await self._rate.acquire()
        except EndpointStopped:
            await task.ledger.write(Withdrawal(task.call_id))
            raise

    async def _post(self, client: ModelClient, key: str, body: bytes, slot: float) -> Response | Fault:
        """Send once, at its send time. Raises EndpointStopped, and sends nothing, where the run has ended or its budget
        is spent."""
        self._stop.check()
        headers, params = self._credentials()
        if self._budget is not None:
            await self._pay(self._budget, slot)
        self.tally.calls += 1
        result = await client.post(body, {**headers, "Idempotency-Key": key}, params)
        if self._budget is not None and isinstance(result, Fault) and result.broken in _NEVER_ARRIVED:
            self._budget.give_back()
        return result

    async def _pay(self, budget: Budget, slot: float) -> None:
        """Count a call that is about to be sent. Where the count is far away, that may cost the send time."""
        await budget.spend()
        if self._rate.is_good(slot):
            return
        try:
            await self._rate.acquire()
        except EndpointStopped:
            budget.give_back()
            raise

    def _judge(self, response: Response, reply: bytes) -> Verdict:
        rules = self._rules
        verdict = judge(response.status, response.headers, reply, features=rules.features, takes_text=rules.takes_text)
        if (spent_s := spent_until_s(response.headers)) is not None:
            self._rate.hold(spent_s)
        if not verdict.message:
            return verdict
        return replace(verdict, message=self._scrub(verdict.message.encode()).decode(errors="replace"))

    def _keep(self, task: Task, response: Response, reply: bytes, body: bytes, sent_us: int) -> None:
        """Settle the task, and let its worker go on: the answer counts once it is durable."""
        self.tally.recent_ms.append(response.latency_ms)
        answer = Answer(
            task.call_id,
            "ok",
            http_status=response.status,
            sent_us=sent_us,
            latency_ms=response.latency_ms,
            reply=kept_as(reply, response.headers),
        )
        self._land(task, answer)
        self._note_answer()
        self._endpoint_is_fine()
        self._blame.success()
        if self._canary is None or len(body) < len(self._canary.body):
            self._canary = _Canary(task.call_id, body)
        self._release(self._held_back.clear())

    def _note_answer(self) -> None:
        """From now on a failure is a row's or an outage's: rows that wait for the first answer go."""
        self._answered_before = True
        for task in self._tried.release_all():
            self._queue.put_nowait(task)

    def _endpoint_is_fine(self) -> None:
        self._breaker.succeeded()
        self._waiting_for = ""
        self._refused = False
        self._trouble_since = None

    async def _digest_fault(self, client: ModelClient, task: Task, fault: Fault, sent_us: int) -> None:
        code, resends = _FAULT_CODES[fault.broken]
        message = self._scrub(fault.message.encode()).decode()
        task.reply = None
        await task.ledger.write(Attempt(task.call_id, sent_us, code, message, evidence=self._scrub(fault.partial)))
        if fault.broken is Broken.TLS or (fault.broken is Broken.NO_HOST and not self._answered_before):
            raise self._stopped(code, message)
        if fault.broken in (Broken.UNREACHABLE, Broken.NO_HOST):
            self._refused = True
            await self._wait_for_endpoint(client, task, Verdict(Next.WAIT, code, message), None)
        elif fault.broken is Broken.CLOSED and not task.closed_before:
            task.closed_before = True
            self._note_failure(Verdict(Next.RETRY, code, message))
            self._enqueue(task)
        else:
            await self._charge(client, task, Verdict(Next.RETRY, code, message, resends=resends), None)

    async def _follow(
        self, client: ModelClient, task: Task, verdict: Verdict, response: Response, sent_us: int
    ) -> None:
        """Do what a verdict that is no answer asks for."""
        if verdict.next is Next.STOP:
            raise self._stopped(verdict.code or "stopped", verdict.message or "the endpoint takes no requests")
        if verdict.next is Next.REFUSED:
            await self._refuse(task, verdict, response, sent_us)
        elif verdict.next is Next.WAIT:
            self._refused = False
            await self._wait_for_endpoint(client, task, verdict, response.status)
        else:
            await self._charge(client, task, verdict, response.status)

    def _stopped(self, code: str, message: str) -> EndpointStopped:
        advice = self._rules.advice.get(code)
        return EndpointStopped(code, f"{message}; {advice}" if advice else message)

    async def _refuse(self, task: Task, verdict: Verdict, response: Response, sent_us: int) -> None:
        """The model's verdict on the row, unless the endpoint has never answered: then it may be a wrong URL."""
        if verdict.before_success and not self._answered_before:
            raise EndpointStopped(
                verdict.code or "http_404",
                f"there is no model at this URL: {verdict.message}; check inference_endpoint",
            )
        self._endpoint_is_fine()
        answer = Answer(
            task.call_id,
            "rejected_by_model",
            http_status=response.status,
            sent_us=sent_us,
            latency_ms=response.latency_ms,
            reply=task.reply,
            error=verdict.code,
            message=verdict.message,
        )
        if self._answered_before or not (verdict.code or "").startswith("http_"):
            await self._land(task, answer)
        else:
            self._hold_back(task, answer)

    async def _wait_for_endpoint(self, client: ModelClient, task: Task, verdict: Verdict, status: int | None) -> None:
        """A limit or an outage: everybody waits. The row is charged only where the endpoint answers all others."""
        self._trouble(verdict)
        if verdict.hold_s is not None:
            self._rate.hold(verdict.hold_s)
        elif status == 429 or (status == 503 and self.tally.is_mostly_unanswered):
            self._rate.slow_down()
        task.waits += 1
        if status == 429 or verdict.hold_s is not None:
            is_spent = await self._is_limited_alone(client, task, verdict, status)
        else:
            self._breaker.failed()
            self._blame.suspect(task, verdict, status)
            is_spent = self._blame.is_contradicted(task)
        if is_spent:
            await self._give_up(client, task)
        else:
            self._enqueue_later(task, 0.0 if verdict.hold_s else self._backoff_s(task.waits))

    async def _is_limited_alone(self, client: ModelClient, task: Task, verdict: Verdict, status: int | None) -> bool:
        """Whether a limit is this row's alone: some endpoints answer a row that is too large for the quota with 429."""
        if not (self._answered_before and self._blame.limit(task) and await self._canary_answers(client)):
            return False
        self._endpoint_is_fine()
        return self._blame.limit_alone(task, verdict, status)

    async def _charge(self, client: ModelClient, task: Task, verdict: Verdict, status: int | None) -> None:
        """A failure that may be the row's own."""
        self._note_failure(verdict)
        if self._blame.charge(task, verdict, status):
            await self._give_up(client, task)
        else:
            self._enqueue_later(task, self._backoff_s(task.charged))

    def _note_failure(self, verdict: Verdict) -> None:
        """Count a failure that may yet turn out to be an outage."""
        if self._answered_before:
            self._trouble(verdict)
            self._breaker.failed()

    async def _give_up(self, client: ModelClient, task: Task) -> None:
        """The row's attempts are spent. If nothing has succeeded since they began, the endpoint may be to blame."""
        answer = self._blame.verdict_on(task)
        if not self._answered_before:
            self._hold_back(task, answer)
        elif self._blame.is_proven(task) or await self._canary_answers(client):
            await self._land(task, answer)
        else:
            self._breaker.open_now()
            self._blame.endpoint()
            self._enqueue_later(task, self._backoff_s(task.refunds + 1))

    def _hold_back(self, task: Task, answer: Answer) -> None:
        """Without any answer yet, a verdict waits: the same fault on several rows is the endpoint's."""
        self._no_longer_tried(task)
        if (rows := self._held_back.add(task, answer)) is not None:
            raise EndpointStopped(
                answer.error or "stopped", f"the endpoint answered none of the first {rows} rows: {answer.message}"
            )
        self._release_if_all_wait()

    def _release_if_all_wait(self) -> None:
        if not self._feeds and len(self._held_back) == len(self._open):
            self._release(self._held_back.release())

    def _release(self, held_back: list[tuple[Task, Answer]]) -> None:
        for task, answer in held_back:
            self._land(task, answer)

    def _land(self, task: Task, answer: Answer) -> asyncio.Future[None]:
        """Write a task's answer; once it is durable, the task is settled."""
        task.landing = task.ledger.queue(answer)
        task.landing.add_done_callback(lambda written: self._settle(task, answer, written))
        return task.landing

    def _settle(self, task: Task, answer: Answer, written: asyncio.Future[None]) -> None:
        if written.cancelled():
            self._fail(task)
            return
        if (error := written.exception()) is not None:
            self.stop(error)
            self._fail(task)
            return
        self._open.discard(task)
        self._blame.forget(task)
        self._no_longer_tried(task)
        if not task.settled.done():
            task.settled.set_result(answer.without_reply())
        if len(self._held_back):
            self._release_if_all_wait()

    def _fail(self, task: Task) -> None:
        self._open.discard(task)
        self._queued.discard(task)
        if not task.settled.done():
            task.settled.set_exception(self._stop.error or EndpointStopped("stopped", "nothing more is sent"))

    def _no_longer_tried(self, task: Task) -> None:
        for waiting in self._tried.done(task):
            self._queue.put_nowait(waiting)

    def _enqueue(self, task: Task) -> None:
        self._enqueue_later(task, 0.0)

    def _enqueue_later(self, task: Task, delay_s: float) -> None:
        if self._stop.error is not None:
            self._fail(task)
            return
        self._queued.add(task)
        if task.sends and not self._answered_before:
            self._tried.add(task)
        if delay_s > 0:
            asyncio.get_running_loop().call_later(delay_s, self._queue.put_nowait, task)
        else:
            self._queue.put_nowait(task)

    def _backoff_s(self, failures: int) -> float:
        """Full jitter: 0 to 2^(n-1) seconds, at most 60."""
        return self._jitter() * min(LONGEST_BACKOFF_S, 2.0 ** min(failures - 1, 10))

    def _trouble(self, verdict: Verdict) -> None:
        """Note a failure for people, and end the run where it has lasted longer than anybody wants to wait."""
        self._waiting_for = verdict.message or verdict.code or ""
        self._trouble_since = self._trouble_since or self._clock()
        self._check_patience()

    def _check_patience(self) -> None:
        if self._answered_before:
            patience_s = self._rules.endpoint_patience_s
        elif self._refused:
            patience_s = self._rules.refused_patience_s
        else:
            patience_s = self._rules.preflight_patience_s
        waited_s = self._waited_s()
        if waited_s > patience_s:
            since = f"{waited_s:.0f} s, since {clock_time(time.time() - waited_s)}"
            raise EndpointStopped("endpoint_down", f"no answer for {since}: {self._waiting_for}; run again to go on")

    def _waited_s(self) -> float:
        return 0.0 if self._trouble_since is None else self._clock() - self._trouble_since

    async def _pass_gate(self, client: ModelClient) -> bool:
        """Return once requests may go. True: this request itself is the probe, for want of a canary."""
        while not (gate := await self._breaker.gate()).is_free:
            self._trouble_since = self._trouble_since or self._clock()
            self._waiting_for = self._waiting_for or "it was down when last asked"
            self._check_patience()
            if gate.is_probe and not self._has_canary:
                return True
            await self._probe_or_wait(client, gate)
        self._blame.resume()
        return False

    async def _probe_or_wait(self, client: ModelClient, gate: Gate) -> None:
        if not gate.is_probe:
            await self._stop.sleep(min(gate.wait_s, 1.0))
            return
        answered = None
        try:
            answered = await self._canary_answers(client)
        finally:
            self._report_probe(answered)
        if answered:
            self._endpoint_is_fine()
            self._blame.rows()
        else:
            self._blame.endpoint()

    def _report_probe(self, answered: bool | None) -> None:
        """None: it was stopped before it brought anything."""
        if answered is None:
            self._breaker.probe_abandoned()
        elif not answered:
            self._breaker.probe_failed()

    @property
    def _has_canary(self) -> bool:
        return self._canary is not None or self._canary_ask is not None

    async def _canary_answers(self, client: ModelClient) -> bool:
        """Send a request that has succeeded before; its answer is known, and not kept again.

        Without one, True: nothing speaks for the row. The key is the probe's own, or a cache might answer for a model
        that is down.
        """
        if self._canary is None and self._canary_ask is not None:
            try:
                self._canary = _Canary("earlier", await self._body_of(self._canary_ask))
            except RowUnavailable:
                self._canary_ask = None
        if self._canary is None:
            return True
        slot = await self._rate.acquire()
        key = f"{self._canary.call_id}-probe-{next(self._probes)}"
        result = await self._post(client, key, self._canary.body, slot)
        if isinstance(result, Fault):
            return False
        verdict = self._judge(result, self._scrub(result.body))
        if verdict.next is Next.STOP:
            raise self._stopped(verdict.code or "stopped", verdict.message or "")
        if verdict.hold_s is not None:
            self._rate.hold(verdict.hold_s)
        return verdict.next is Next.KEEP


def _readable(reply: bytes, response: Response) -> bytes:
    """The body of a 200 that was no answer, as UTF-8, for people to look at; bytes that are no text as `\\xNN`."""
    try:
        text = decode_text(reply, response.headers)
    except UnicodeError:
        text = reply[:EVIDENCE_BYTES].decode("utf-8", errors="backslashreplace")
    return text.encode()[:EVIDENCE_BYTES].decode(errors="ignore").encode()


_NEVER_ARRIVED = frozenset({Broken.UNREACHABLE, Broken.NO_HOST, Broken.TLS})
"""Nothing was sent, so nothing is charged for it."""

_FAULT_CODES: Mapping[Broken, tuple[str, int | None]] = {
    Broken.UNREACHABLE: ("connection", None),
    Broken.NO_HOST: ("connection", None),
    Broken.CUT: ("connection", None),
    Broken.CLOSED: ("connection", None),
    Broken.TIMEOUT: ("timeout", None),
    Broken.TOO_LARGE: ("too_large", 1),
    Broken.ENCODING: ("content_encoding", 1),
    Broken.TLS: ("tls", None),
}
