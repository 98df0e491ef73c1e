"""The calls of a run's slices: which rows still need one -> call -> commit the slice.

Owns the event loop around `calls.py` and the order of slices; what one slice needs is `slice_work.py`.
"""

from __future__ import annotations

import asyncio
import contextlib
import queue
import random
import ssl
import threading
import time
from collections import Counter, deque
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from concurrent.futures import Future as ThreadFuture
from dataclasses import replace
from functools import partial
from itertools import islice
from pathlib import Path

import httpx
import numpy as np

from foundry_pipeline.asks import Ask, calls_of_slice
from foundry_pipeline.calls.blame import Task
from foundry_pipeline.calls.breaker import Breaker
from foundry_pipeline.calls.budget import Budget, Spent
from foundry_pipeline.calls.caller import Caller, CallRules
from foundry_pipeline.calls.client import ModelClient
from foundry_pipeline.calls.clock import clock_time
from foundry_pipeline.calls.lease import Lease
from foundry_pipeline.calls.ledger import Answer
from foundry_pipeline.calls.ledgers import Ledgers, ledgers_at
from foundry_pipeline.calls.plan import NONE
from foundry_pipeline.calls.proxy import proxy_for, through
from foundry_pipeline.calls.rate import Rate
from foundry_pipeline.calls.reports import Progress, SliceReport, Speedometer, not_begun, tallied
from foundry_pipeline.calls.slice_calls import EXPECTED, SliceCalls
from foundry_pipeline.calls.slice_work import Asked, CallOptions, SliceWork, commit_slice, pages_of, plan_slice
from foundry_pipeline.calls.stop import Stop
from foundry_pipeline.calls.tally import MOST_NAMED
from foundry_pipeline.config.secrets import auth_headers, scrubber, secret_names
from foundry_pipeline.data_rows import DataRow
from foundry_pipeline.decode import tables_needed
from foundry_pipeline.errors import ConfigError, EndpointStopped, Problem, RowUnavailable, SliceBusy, StorageError
from foundry_pipeline.home import Run, Settings
from foundry_pipeline.manifest import Manifest
from foundry_pipeline.protocols.foundry import FoundryRequests
from foundry_pipeline.rendering import Renderer
from foundry_pipeline.rows.content import ContentReader
from foundry_pipeline.rows.conversations import parse_conversation, user_turns
from foundry_pipeline.rows.frames import check_decoder
from foundry_pipeline.store import Store
from foundry_pipeline.tables import OUTCOMES, RESPONSES, TEXTS

__all__ = ["Asked", "CallOptions", "Invoker", "Progress", "SliceReport"]

MOST_SLICES_AT_ONCE = 8
LEASE_PATIENCE_S = 600.0
DRAIN_S = 10.0
REFUSED_PATIENCE_S = 60.0
"""Where nobody listens, no model is loading either."""
TransportFactory = Callable[[], httpx.AsyncBaseTransport]


class Invoker:
    """Calls one endpoint for one run, under the shared rate, keeping every answer in the ledger.

    Use as a context manager: it owns connections and a thread with an event loop for its lifetime. Leaving it early
    stops sending and brings home what is in flight.
    """

    def __init__(
        self,
        run: Run,
        store: Store,
        settings: Settings,
        *,
        home_root: Path,
        ledger: str,
        environ: Mapping[str, str],
        transport: TransportFactory | None = None,
        jitter: Callable[[], float] = random.random,
    ) -> None:
        """`ledger` is a folder or a database's URL; `environ` is where the secret is looked up at the moment of
        sending, and the database's password where the URL has none; `transport` makes one for each worker, in place of
        our own connections (`connection.py`); `jitter` gives 0 to 1, for back-offs. Raises ConfigError for what this
        version cannot do, and for a secret that is not there."""
        check_decoder(run.dataset.media_type, run.dataset.file)
        self._run = run
        self._store = store
        self._settings = settings
        self._home_root = home_root
        self._ledgers = ledgers_at(ledger, environ, settings.ballast_bytes)
        self._environ = environ
        self._scrub = scrubber(run.model, environ)
        auth_headers(run.model, environ, settings)
        self._transport = transport
        self._jitter = jitter
        self._requests = FoundryRequests(run)
        self._rows_of_slice: dict[str, int] = {}
        self._reports: queue.SimpleQueue[SliceReport | None] = queue.SimpleQueue()
        self._done = Counter[str]()
        self._errors = Counter[str]()
        self._slices: set[asyncio.Task[None]] = set()
        self._busy: dict[str, str] = {}
        """Slice key -> who works on it, while this process waits for its lease."""
        self._driving: ThreadFuture[None] | None = None

    def __enter__(self) -> Invoker:
        """Raises StorageError where the ledger or the warehouse cannot be written: no call is paid for nothing."""
        try:
            self._store.recover()
            self._store.check_writable()
            self._ledgers.open()
            self._state = self._ledgers.endpoint(self._run.model.inference_endpoint)
            self._budget = _budget(self._run, self._store, self._ledgers)
            self._loop = _new_event_loop(self._settings.event_loop)
        except BaseException:
            self._ledgers.close()
            raise
        name = f"calls of {self._run.name}"
        self._thread = threading.Thread(target=self._loop.run_forever, name=name, daemon=True)
        self._thread.start()
        try:
            asyncio.run_coroutine_threadsafe(self._open(), self._loop).result()
        except BaseException:
            self._give_back()
            raise
        return self

    def __exit__(self, *exc: object) -> None:
        asyncio.run_coroutine_threadsafe(self._shut(), self._loop).result()
        self._give_back()

    def _give_back(self) -> None:
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()
        self._ledgers.close()

    def invoke(
        self,
        slice_keys: Sequence[str],
        options: CallOptions = CallOptions(),  # noqa: B008  # frozen
        on_progress: Callable[[Progress], None] = lambda _: None,
    ) -> Iterator[SliceReport]:
        """One report per slice, as slices finish. A slice that fails fails alone: its report has a `failure`.

        `on_progress` is called in the caller's thread, a few times a second.
        """
        self._rows_of_slice = {key: calls_of_slice(self._run, self._store, key) for key in slice_keys}
        speed = Speedometer()
        self._done.clear()
        self._errors.clear()
        self._driving = asyncio.run_coroutine_threadsafe(self._drive(list(slice_keys), options), self._loop)
        self._driving.add_done_callback(lambda _: self._reports.put(None))
        while True:
            try:
                report = self._reports.get(timeout=0.25)
            except queue.Empty:
                on_progress(self._progress(speed))
                continue
            if report is None:
                self._driving.result()  # raises where it was cancelled: then there may be nothing left to look at
                on_progress(self._progress(speed))
                return
            on_progress(self._progress(speed))
            yield report

    def ask(
        self,
        slice_key: str,
        global_keys: Collection[str],
        options: CallOptions = CallOptions(),  # noqa: B008  # frozen
    ) -> dict[str, Asked]:
        """The answers of some data rows of a slice, by global key, called where they are not there yet: those to the
        first calls about them, where they take several.

        What is called stays in the ledger, so the full run does not pay again. Raises EndpointStopped, StorageError
        and SliceBusy; a key that the slice does not have is left out.
        """
        asking = self._ask(slice_key, frozenset(global_keys), options)
        return asyncio.run_coroutine_threadsafe(asking, self._loop).result()

    def stop(self) -> None:
        """Send nothing more; what is in flight comes home, then `invoke` ends. May be called from any thread."""
        error = EndpointStopped("cancelled", "stopped by request; every answer so far is kept, run again to go on")
        self._loop.call_soon_threadsafe(self._caller.stop, error)

    # In the event loop's thread

    async def _open(self) -> None:
        self._reader = ContentReader(self._home_root, self._settings, encoding=self._run.dataset.encoding)
        self._renderer = Renderer(self._run, self._settings, self._requests, self._reader)
        stop = Stop()
        self._rate = Rate(self._state, self._run.model.requests_per_second, self._run.model.burst, stop.sleep)
        self._breaker = Breaker(self._state, self._jitter)
        is_secure = self._run.model.inference_endpoint.lower().startswith("https:")
        proxy = None
        if self._settings.endpoint_proxy == "environment":
            proxy = proxy_for(self._run.model.inference_endpoint, self._environ)
        tls = await asyncio.to_thread(ssl.create_default_context) if is_secure or proxy else None
        transport = self._transport
        if transport is None and proxy is not None and tls is not None:
            transport = partial(through, proxy, tls)
            await transport().aclose()  # a proxy that cannot be one is told before anything is called
        self._caller = Caller(
            _rules(self._run, self._settings),
            self._rate,
            self._breaker,
            stop,
            body_of=self._renderer.body,
            make_client=lambda: ModelClient(
                self._run.model.inference_endpoint,
                timeout_s=self._run.model.timeout_s,
                max_reply_bytes=self._settings.max_reply_bytes,
                tls=tls,
                transport=transport() if transport else None,
            ),
            credentials=lambda: auth_headers(self._run.model, self._environ, self._settings),
            scrub=self._scrub,
            budget=self._budget,
            jitter=self._jitter,
        )

    async def _shut(self) -> None:
        if self._driving is not None and not self._driving.done():
            self.stop()
            deadline = time.monotonic() + DRAIN_S
            while not self._driving.done() and time.monotonic() < deadline:
                await asyncio.sleep(0.05)
            self._driving.cancel()
        await self._caller.close()
        for task in self._slices:
            task.cancel()
        await asyncio.gather(*self._slices, return_exceptions=True)
        await self._renderer.close()
        await self._reader.close()

    async def _drive(self, slice_keys: list[str], options: CallOptions) -> None:
        """Work on slices in order, beginning the next while the calls of the last ones run out."""
        waiting = deque(slice_keys)
        while waiting or self._slices:
            if waiting and len(self._slices) < MOST_SLICES_AT_ONCE:
                await self._caller.room()
                begun = asyncio.Event()
                self._slices.add(asyncio.create_task(self._slice(waiting.popleft(), options, begun)))
                await begun.wait()
            else:
                await asyncio.wait(self._slices, return_when=asyncio.FIRST_COMPLETED)
            for task in [task for task in self._slices if task.done()]:
                self._slices.discard(task)
                task.result()

    async def _slice(self, slice_key: str, options: CallOptions, begun: asyncio.Event) -> None:
        began = time.monotonic()
        try:
            stopped = self._caller.stopped
            if stopped and not await asyncio.to_thread(self._may_be_done, slice_key, options, stopped):
                raise stopped
            lease = await self._lease(slice_key, begun)
            try:
                report = await self._call_and_commit(slice_key, lease, options, begun, began)
            finally:
                await asyncio.to_thread(lease.release)
        except EndpointStopped as err:
            report = not_begun(slice_key, self._rows_of_slice[slice_key], err)
        except (SliceBusy, StorageError, OSError) as err:
            report = SliceReport(slice_key, seconds=time.monotonic() - began, failure=str(err))
        finally:
            begun.set()
        self._reports.put(report)

    async def _lease(self, slice_key: str, begun: asyncio.Event) -> Lease:
        """The slice's lease, after waiting for another process that holds it."""
        deadline = time.monotonic() + LEASE_PATIENCE_S
        while True:
            try:
                return await self._take_lease(slice_key)
            except SliceBusy as busy:
                if time.monotonic() > deadline or self._caller.stopped:
                    raise
                begun.set()
                self._busy[slice_key] = str(busy)
                await asyncio.sleep(0.25)
            finally:
                self._busy.pop(slice_key, None)

    async def _take_lease(self, slice_key: str) -> Lease:
        """The slice's lease; given back where this task is cancelled while a thread takes it."""
        taking = asyncio.create_task(asyncio.to_thread(self._ledgers.lease, self._run.name, slice_key))
        try:
            return await asyncio.shield(taking)
        except asyncio.CancelledError:
            with contextlib.suppress(SliceBusy, StorageError):
                (await taking).release()
            raise

    async def _call_and_commit(
        self, slice_key: str, lease: Lease, options: CallOptions, begun: asyncio.Event, began: float
    ) -> SliceReport:
        work = await self._plan(slice_key, lease, options)
        try:
            await self._remember_answer(work)
            calls = await self._call(work, begun)
            report = await asyncio.to_thread(self._conclude, work, lease, calls, began)
        except BaseException:
            await asyncio.to_thread(work.close)
            raise
        return report

    async def _call(self, work: SliceWork, begun: asyncio.Event) -> SliceCalls:
        """Make a slice's calls: all at once, but turn by turn where conversations go on."""
        calls = SliceCalls(work.plan, work.ledger.unknown)
        counted = 0
        while True:
            self._done["rows"] += work.reused - counted
            counted = work.reused
            self._rows_of_slice[work.slice_key] = len(work.plan)
            await self._submit_all(work, calls)
            begun.set()
            await calls.all_settled()
            if self._run.generate != "every" or calls.failure is not None:
                return calls
            await asyncio.to_thread(work.plan_rows)
            calls.go_on(work.plan)
            if not work.plan.needs_call.any():
                return calls

    async def _ask(self, slice_key: str, global_keys: frozenset[str], options: CallOptions) -> dict[str, Asked]:
        lease = await self._lease(slice_key, asyncio.Event())
        try:
            work = await self._plan(slice_key, lease, options, global_keys)
            try:
                await self._remember_answer(work)
                calls = SliceCalls(work.plan, work.ledger.unknown)
                await self._submit_all(work, calls)
                await calls.all_settled()
                if calls.failure is not None:
                    raise calls.failure
                return work.answers()
            finally:
                await asyncio.to_thread(work.close)
        finally:
            await asyncio.to_thread(lease.release)

    async def _plan(
        self, slice_key: str, lease: Lease, options: CallOptions, only: frozenset[str] | None = None
    ) -> SliceWork:
        open_ledger = partial(self._ledgers.ledger, self._run.name, slice_key, lease)
        turns = await self._turns(slice_key, only) if self._run.generate else {}
        return await asyncio.to_thread(
            plan_slice, self._run, slice_key, self._store, open_ledger, self._requests, options, turns, only
        )

    async def _turns(self, slice_key: str, only: frozenset[str] | None) -> dict[str, tuple[str, ...]]:
        """global key -> the messages to be answered, of the conversations that can be read."""
        found: dict[str, tuple[str, ...]] = {}
        pages = pages_of(self._run, slice_key, self._store)
        while page := await asyncio.to_thread(next, pages, None):
            asked = [row for row in page if only is None or row.global_key in only]
            turns = await asyncio.gather(*map(self._turns_of, asked))
            found |= {row.global_key: ids for row, ids in zip(asked, turns, strict=True) if ids}
        return found

    async def _turns_of(self, row: DataRow) -> tuple[str, ...]:
        try:
            messages = parse_conversation(await self._reader.text(row))
            return user_turns(messages, self._run.dataset.roles)
        except RowUnavailable:
            return ()  # found again, and put on record, when its request is made

    async def _remember_answer(self, work: SliceWork) -> None:
        """A row that was answered before shows that the endpoint works, and can show it again."""
        answered = np.flatnonzero((work.plan.kept == OUTCOMES.index("ok")) | (work.plan.good_at != NONE))
        if len(answered):
            ((_, ask),) = await asyncio.to_thread(next, work.asks(np.arange(len(work.plan)) == answered[0]))
            self._caller.knows_answer(ask)

    async def _submit_all(self, work: SliceWork, calls: SliceCalls) -> None:
        """Hand over the calls that a slice needs, as fast as they are taken."""
        pages = work.asks(work.plan.needs_call)
        with self._caller.feed():
            while page := await asyncio.to_thread(next, pages, None):
                if self._caller.stopped:
                    calls.fail(self._caller.stopped)
                    break
                for number, ask in page:
                    await self._caller.room()
                    self._submit(work, calls, number, ask)

    def _submit(self, work: SliceWork, calls: SliceCalls, number: int, ask: Ask) -> None:
        settled: asyncio.Future[Answer] = asyncio.get_running_loop().create_future()
        task = Task(ask, work.plan.call_id(number), work.ledger, settled)
        settled.add_done_callback(lambda _: self._count(task, *calls.settle(number, task)))
        calls.begin()
        self._caller.submit(task)

    def _count(self, task: Task, outcome: str | None, rows: int) -> None:
        self._done["rows"] += rows
        self._done["called"] += rows
        if outcome not in (None, "ok"):
            self._done["failed"] += rows if outcome == "failed" else 0
            self._errors[task.settled.result().error or ""] += rows

    def _conclude(self, work: SliceWork, lease: Lease, calls: SliceCalls, began: float) -> SliceReport:
        """Commit the slice, or say why not: then the ledger is closed, with every answer in it."""
        if calls.failure is not None and not isinstance(calls.failure, EXPECTED):
            raise calls.failure
        stopped_by = calls.failure or work.ledger.failed
        stop = calls.failure if isinstance(calls.failure, EndpointStopped) else None
        tally = calls.tally(stop.code if stop else "storage", _unsent(work) if stopped_by is not None else ())
        report = self._report(work, calls, began)
        allowed = self._run.max_failed_share
        failure = str(stopped_by) if stopped_by is not None else tally.too_many_failed(allowed)
        if failure is not None:
            work.close()
            report = replace(report, failure=f"{failure} ({calls.kept()})", stop=str(stop) if stop else None)
            return tallied(report, tally)
        try:
            about = {"calls": report.calls, "reused": report.reused}
            tally, sha256 = commit_slice(work, about, lease.check)
            work.close_committed()
        except (StorageError, SliceBusy, OSError) as err:
            work.close()
            return tallied(replace(report, failure=f"{err} ({calls.kept()})"), tally)
        return tallied(replace(report, data_version=sha256), tally)

    def _report(self, work: SliceWork, calls: SliceCalls, began: float) -> SliceReport:
        cost = None if self._budget is None else self._budget.cost()
        report = calls.report(work.slice_key, time.monotonic() - began)
        return replace(report, allowed_per_s=self._rate.view().per_s, cost=cost, damaged=work.ledger.damaged)

    # For reports

    def _may_be_done(self, slice_key: str, options: CallOptions, stopped: BaseException) -> bool:
        """After a stop: a slice that has its answers is committed all the same, and one that has some is counted."""
        cancelled = isinstance(stopped, EndpointStopped) and stopped.code == "cancelled"
        if cancelled or options.refresh:
            return False
        committed = self._store.open(RESPONSES, self._run.name, slice_key)
        if committed is not None:
            committed.close()
        return committed is not None or self._ledgers.holds(self._run.name, slice_key)

    def _progress(self, speed: Speedometer) -> Progress:
        total = sum(self._rows_of_slice.values())
        calls, view = self._caller.tally.calls, self._rate.view()
        rate_per_s, rows_per_s = speed.read(calls, self._done["called"])
        left = total - self._done["rows"]
        open_for_s = self._breaker.open_for_s()
        going = rows_per_s > 0 and view.held_s <= 1 and open_for_s is None and self._caller.stopped is None
        return Progress(
            self._run.name,
            total,
            self._done["rows"],
            self._done["failed"],
            calls,
            rate_per_s,
            "stopping" if self._caller.stopped else _note(view.held_s, open_for_s, self._caller, self._busy),
            allowed_per_s=view.per_s,
            errors=dict(self._errors.most_common()),
            left_s=left / rows_per_s if going else None,
            cost=None if self._budget is None else self._budget.cost(),
        )


def _budget(run: Run, store: Store, ledgers: Ledgers) -> Budget | None:
    """The run's count of what is spent; None where its model has no price."""
    price = run.model.cost_per_call
    if price is None:
        return None

    def recorded() -> Spent:
        calls = ledgers.requests(run.name)
        for _, table in store.read_all(RESPONSES, run.name, ["attempts"]):
            calls += sum(table["attempts"].to_pylist())
        return Spent(calls, calls * price.billionths)

    return Budget(ledgers.spent(run.name, recorded), price, run.budget, run.file)


def _new_event_loop(kind: str) -> asyncio.AbstractEventLoop:
    if kind == "asyncio":
        return asyncio.new_event_loop()
    try:
        import uvloop
    except ImportError:
        problem = Problem(
            "foundry.yaml", "uvloop is not installed: pip install 'foundry-pipeline[fast]'", "$.event_loop"
        )
        raise ConfigError([problem]) from None
    return uvloop.new_event_loop()


def _rules(run: Run, settings: Settings) -> CallRules:
    model = run.model
    return CallRules(
        requests_per_second=model.requests_per_second,
        max_attempts=model.max_attempts,
        max_concurrency=model.max_concurrency,
        features=frozenset(f.name for f in model.ontology.features()) if model.ontology else None,
        takes_text=TEXTS in tables_needed(model.ontology, model.allowed_feature_kinds),
        endpoint_patience_s=settings.endpoint_patience_s,
        preflight_patience_s=settings.preflight_patience_s,
        refused_patience_s=min(REFUSED_PATIENCE_S, settings.preflight_patience_s),
        advice=_advice(model),
    )


def _advice(model: Manifest) -> dict[str, str]:
    """Code of a stop -> what a person can do about it."""
    secret = f"{model.file} names no secret"
    if model.secret is not None:
        secret = f"the secret came from {', '.join(secret_names(model)) or model.file}"
    return {
        "auth": secret,
        "connection": f"check inference_endpoint in {model.file}",
        "tls": "where the certificate is of an authority of your own, name its bundle in SSL_CERT_FILE",
    }


def _unsent(work: SliceWork) -> list[str]:
    """Global keys of the first rows whose call was not settled."""
    pages = work.asks(work.plan.final() == NONE)
    return list(dict.fromkeys(ask.row.global_key for page in islice(pages, 1) for _, ask in page))[:MOST_NAMED]


def _note(held_s: float, open_for_s: float | None, caller: Caller, busy: Mapping[str, str]) -> str:
    """What keeps requests from going, for people; empty where nothing does."""
    if held_s > 1:
        return f"held by the endpoint until {clock_time(time.time() + held_s)}"
    if open_for_s is not None:
        since = clock_time(time.time() - open_for_s)
        return f"paused since {since}: {caller.trouble or 'it was down when last asked'}"
    if caller.waiting_for:
        return f"retrying {caller.waiting_for}"
    return next((f"waiting: {who}" for who in list(busy.values())), "")
