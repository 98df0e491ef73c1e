"""The calls of a run's slices: which rows still need one -> call -> commit the slice.

Owns the event loop around `calls.py` and the order of slices; what one slice needs is `slice_work.py`.
"""

from __future__ import annotations

import asyncio
import queue
import ssl
import threading
import time
from collections import Counter, deque
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from concurrent.futures import Future as ThreadFuture
from dataclasses import dataclass, field, replace
from pathlib import Path

import httpx

from foundry_pipeline.asks import Ask, calls_of_slice
from foundry_pipeline.calls.blame import Task
from foundry_pipeline.calls.breaker import Breaker
from foundry_pipeline.calls.caller import Caller, CallRules
from foundry_pipeline.calls.client import ModelClient, warm_up
from foundry_pipeline.calls.endpoint_state import StateFile, endpoint_key
from foundry_pipeline.calls.ledger import Answer, Lease
from foundry_pipeline.calls.rate import Rate
from foundry_pipeline.calls.slice_work import (
    CallOptions,
    SliceWork,
    commit_slice,
    outcome_counts,
    plan_slice,
    read_rows,
)
from foundry_pipeline.calls.stop import Stop
from foundry_pipeline.config.secrets import auth_headers, scrubber
from foundry_pipeline.data_rows import DataRow
from foundry_pipeline.decode import tables_needed
from foundry_pipeline.errors import ConfigError, EndpointStopped, Problem, RowUnavailable, SliceBusy, StorageError
from foundry_pipeline.home import Run, Settings
from foundry_pipeline.protocols.foundry import FoundryRequests
from foundry_pipeline.rendering import Renderer
from foundry_pipeline.rows.content import ContentReader
from foundry_pipeline.rows.conversations import parse_conversation, user_turns
from foundry_pipeline.rows.frames import check_decoder
from foundry_pipeline.store import Store
from foundry_pipeline.tables import TEXTS

__all__ = ["CallOptions", "Invoker", "Progress", "SliceReport"]

MOST_SLICES_AT_ONCE = 8
LEASE_PATIENCE_S = 600.0
DRAIN_S = 10.0
REFUSED_PATIENCE_S = 60.0
"""Where nobody listens, no model is loading either."""
EXAMPLES = 20
TransportFactory = Callable[[], httpx.AsyncBaseTransport]


@dataclass(frozen=True, slots=True)
class SliceReport:
    """What became of one slice. Counts are places in `responses`, one a data row, but several where a video or a
    conversation takes several calls, unless said otherwise; `failure` is None where it is committed."""

    slice_key: str
    rows: int = 0
    ok: int = 0
    empty: int = 0
    """Of `ok`: answers that say "nothing found"."""
    failed: int = 0
    rejected_by_model: int = 0
    not_sent: int = 0
    calls: int = 0
    """Requests sent now, retries included."""
    reused: int = 0
    """Those whose good answer was already there: no request."""
    repeated: int = 0
    """Calls whose outcome an earlier process never learned (killed in flight), sent again."""
    latency_ms: Mapping[str, float] = field(default_factory=dict)
    """p50, p95, p99 and max of the answers that came now."""
    rate_per_s: float = 0.0
    """Requests a second, as sent now."""
    seconds: float = 0.0
    errors: Mapping[str, int] = field(default_factory=dict)
    """Error code -> calls that ended so."""
    examples: Sequence[tuple[str, str, str]] = ()
    """(global key, code, message) of the first that failed, at most 20."""
    failure: str | None = None
    data_version: str | None = None
    """sha256 of the committed file."""


@dataclass(frozen=True, slots=True)
class Progress:
    """A moment of a run, for bars and logs. `rows` are all places in `responses`, as far as they are known by now; done
    include reused ones. `note` says what is being waited for."""

    run: str
    rows: int
    done: int
    failed: int
    calls: int
    rate_per_s: float
    note: str = ""


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
    ) -> None:
        """`ledger` is a folder; `environ` is where the secret is looked up at the moment of sending; `transport` makes
        each connection's transport (httpx's own by default). Raises ConfigError for what this version cannot do, and
        for a secret that is not there."""
        _check_supported(run, ledger)
        self._run = run
        self._store = store
        self._settings = settings
        self._home_root = home_root
        self._ledger = Path(ledger)
        self._environ = environ
        self._scrub = scrubber(run.model, environ)
        auth_headers(run.model, environ, settings)
        self._transport = transport
        self._requests = FoundryRequests(run)
        self._rows_of_slice: dict[str, int] = {}
        self._counted_reused: dict[str, int] = {}
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, name=f"calls of {run.name}", daemon=True)
        self._reports: queue.SimpleQueue[SliceReport | None] = queue.SimpleQueue()
        self._done = Counter[str]()
        self._slices: set[asyncio.Task[None]] = set()
        self._driving: ThreadFuture[None] | None = None

    def __enter__(self) -> Invoker:
        """Raises StorageError where the ledger or the warehouse cannot be written: no call is paid for nothing."""
        self._store.recover()
        self._store.check_writable()
        rates = self._ledger / "rates"
        try:
            self._state = StateFile(rates / endpoint_key(self._run.model.inference_endpoint))
        except OSError as err:
            raise StorageError(f"ledger folder {rates}: {err.strerror or err}") from err
        self._thread.start()
        asyncio.run_coroutine_threadsafe(self._open(), self._loop).result()
        return self

    def __exit__(self, *exc: object) -> None:
        asyncio.run_coroutine_threadsafe(self._shut(), self._loop).result()
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()
        self._state.close()

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
        began = time.monotonic()
        self._done.clear()
        self._counted_reused.clear()
        self._driving = asyncio.run_coroutine_threadsafe(self._drive(list(slice_keys), options), self._loop)
        self._driving.add_done_callback(lambda _: self._reports.put(None))
        while True:
            try:
                report = self._reports.get(timeout=0.25)
            except queue.Empty:
                on_progress(self._progress(began))
                continue
            on_progress(self._progress(began))
            if report is None:
                self._driving.result()
                return
            yield report

    def ask(
        self,
        slice_key: str,
        global_keys: Collection[str],
        options: CallOptions = CallOptions(),  # noqa: B008  # frozen
    ) -> dict[str, Answer]:
        """The answers of some rows of a slice, by global key, called where they are not there yet: those to the first
        calls about them, where they take several.

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
        self._breaker = Breaker(self._state)
        tls = await asyncio.to_thread(ssl.create_default_context)
        await warm_up()
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
                transport=self._transport() if self._transport else None,
            ),
            credentials=lambda: auth_headers(self._run.model, self._environ, self._settings),
            scrub=self._scrub,
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
            enough = self._caller.open_calls >= 2 * self._caller.in_flight_limit
            if waiting and not (self._slices and enough) and len(self._slices) < MOST_SLICES_AT_ONCE:
                begun = asyncio.Event()
                self._slices.add(asyncio.create_task(self._slice(waiting.popleft(), options, begun)))
                await begun.wait()
            else:
                done, self._slices = await asyncio.wait(self._slices, timeout=0.1, return_when=asyncio.FIRST_COMPLETED)
                for task in done:
                    task.result()

    async def _slice(self, slice_key: str, options: CallOptions, begun: asyncio.Event) -> None:
        began = time.monotonic()
        try:
            if self._caller.stopped:
                raise self._caller.stopped
            lease = await self._lease(slice_key, begun)
            try:
                report = await self._call_and_commit(slice_key, options, begun, began)
            finally:
                lease.release()
        except (SliceBusy, EndpointStopped, StorageError, OSError) as err:
            report = SliceReport(slice_key, seconds=time.monotonic() - began, failure=str(err))
        finally:
            begun.set()
        self._reports.put(report)

    async def _lease(self, slice_key: str, begun: asyncio.Event) -> Lease:
        """The slice's lease, after waiting for another process that holds it."""
        path = self._ledger / self._run.name / f"{slice_key}.lock"
        deadline = time.monotonic() + LEASE_PATIENCE_S
        while True:
            try:
                return Lease(path, self._run.name)
            except SliceBusy:
                if time.monotonic() > deadline or self._caller.stopped:
                    raise
                begun.set()
                await asyncio.sleep(0.25)

    async def _call_and_commit(
        self, slice_key: str, options: CallOptions, begun: asyncio.Event, began: float
    ) -> SliceReport:
        work = await self._plan(slice_key, options)
        try:
            self._remember_answer(work)
            tasks, results = await self._call(work, begun)
            report = await asyncio.to_thread(self._conclude, work, tasks, results, began)
        except BaseException:
            work.ledger.close()
            raise
        return report

    async def _call(self, work: SliceWork, begun: asyncio.Event) -> tuple[list[Task], list[Answer | BaseException]]:
        """Make a slice's calls, and what came of them: all at once, but turn by turn where conversations go on."""
        tasks: list[Task] = []
        results: list[Answer | BaseException] = []
        while True:
            now = self._submit_all(work)
            begun.set()
            tasks += now
            results += await asyncio.gather(*(task.settled for task in now), return_exceptions=True)
            outcomes = {result.call_id: result.outcome for result in results if isinstance(result, Answer)}
            if self._run.generate != "every" or len(outcomes) < len(results):
                return tasks, results
            await asyncio.to_thread(work.plan, outcomes)
            if not work.to_call:
                return tasks, results

    async def _ask(self, slice_key: str, global_keys: frozenset[str], options: CallOptions) -> dict[str, Answer]:
        lease = await self._lease(slice_key, asyncio.Event())
        try:
            work = await self._plan(slice_key, options, global_keys)
            try:
                self._remember_answer(work)
                tasks = [self._submit(work, call_id, ask, 1) for call_id, ask in work.to_call.items()]
                settled = await asyncio.gather(*(task.settled for task in tasks), return_exceptions=True)
                for error in settled:
                    if isinstance(error, BaseException):
                        raise error
                return work.answers()
            finally:
                work.ledger.close()
        finally:
            lease.release()

    async def _plan(self, slice_key: str, options: CallOptions, only: frozenset[str] | None = None) -> SliceWork:
        path = self._ledger / self._run.name / f"{slice_key}.sqlite"
        turns = await self._turns(slice_key, only) if self._run.generate else {}
        return await asyncio.to_thread(
            plan_slice, self._run, slice_key, self._store, path, self._requests, options, turns, only
        )

    async def _turns(self, slice_key: str, only: frozenset[str] | None) -> dict[str, tuple[str, ...]]:
        """global key -> the messages to be answered, of the conversations that can be read."""
        rows = await asyncio.to_thread(read_rows, self._run, slice_key, self._store)
        asked = [row for row in rows if only is None or row.global_key in only]
        found = await asyncio.gather(*map(self._turns_of, asked))
        return {row.global_key: turns for row, turns in zip(asked, found, strict=True) if turns}

    async def _turns_of(self, row: DataRow) -> tuple[str, ...]:
        try:
            messages = parse_conversation(await self._reader.text(row))
            return user_turns(messages, self._run.dataset.roles)
        except RowUnavailable:
            return ()  # found again, and put on record, when its request is made

    def _remember_answer(self, work: SliceWork) -> None:
        """A row that was answered before shows that the endpoint works, and can show it again."""
        for planned in work.planned:
            if planned.kept == "ok" or planned.good_at is not None:
                self._caller.knows_answer(planned.ask)
                return

    def _submit_all(self, work: SliceWork) -> list[Task]:
        """Submit what is to be called now. The count of places done begins with those whose answer is there."""
        sharing = work.places_sharing
        self._done["rows"] += work.reused - self._counted_reused.get(work.slice_key, 0)
        self._counted_reused[work.slice_key] = work.reused
        self._rows_of_slice[work.slice_key] = len(work.planned)
        return [self._submit(work, call_id, ask, sharing[call_id]) for call_id, ask in work.to_call.items()]

    def _submit(self, work: SliceWork, call_id: str, ask: Ask, rows: int) -> Task:
        task = Task(ask, call_id, work.ledger, asyncio.get_running_loop().create_future())
        task.settled.add_done_callback(lambda settled: self._count(settled, rows))
        self._caller.submit(task)
        return task

    def _count(self, settled: asyncio.Future[Answer], rows: int) -> None:
        if settled.cancelled() or settled.exception() is not None:
            return
        self._done["rows"] += rows
        if settled.result().outcome == "failed":
            self._done["failed"] += rows

    def _conclude(
        self, work: SliceWork, tasks: Sequence[Task], results: Sequence[Answer | BaseException], began: float
    ) -> SliceReport:
        """Commit the slice, or say why not; either way the ledger is closed, with every answer in it."""
        settled = {r.call_id: r for r in results if isinstance(r, Answer)}
        errors = [r for r in results if isinstance(r, BaseException)]
        unexpected = [e for e in errors if not isinstance(e, EndpointStopped | StorageError)]
        if unexpected:
            work.ledger.close()
            raise unexpected[0]
        report = _report(work, tasks, settled, time.monotonic() - began)
        failure = str(errors[0]) if errors else self._too_many_failed(work, settled)
        if failure is not None:
            work.ledger.close()
            return replace(report, failure=f"{failure} ({_kept(work, settled)})")
        try:
            outcomes, empty, sha256 = commit_slice(work, {"calls": report.calls, "reused": report.reused})
        except (StorageError, OSError) as err:
            work.ledger.close()
            return replace(report, failure=f"{err} ({_kept(work, settled)})")
        if work.ledger.is_empty():
            work.ledger.remove()
        else:
            work.ledger.close()
        return replace(
            report,
            ok=outcomes["ok"],
            empty=empty,
            failed=outcomes["failed"],
            rejected_by_model=outcomes["rejected_by_model"],
            not_sent=outcomes["not_sent"],
            data_version=sha256,
        )

    def _too_many_failed(self, work: SliceWork, settled: Mapping[str, Answer]) -> str | None:
        outcomes, errors = outcome_counts(work, settled)
        allowed = self._run.max_failed_share
        share = outcomes["failed"] / len(work.planned) if work.planned else 0.0
        if share <= allowed:
            return None
        codes = ", ".join(f"{code}: {count}" for code, count in errors.most_common(5))
        return (
            f"{outcomes['failed']} of {len(work.planned)} rows failed ({share:.1%}, max_failed_share is "
            f"{allowed:.1%}): {codes}; the slice's older tables stay, run again to ask only those rows"
        )

    # For reports

    def _progress(self, began: float) -> Progress:
        total = sum(self._rows_of_slice.values())
        calls = self._caller.tally.calls
        held_s = self._rate.view().held_s
        note = f"held by the endpoint for {held_s:.0f} s" if held_s > 1 else _waiting_note(self._caller.waiting_for)
        seconds = max(time.monotonic() - began, 1e-9)
        return Progress(self._run.name, total, self._done["rows"], self._done["failed"], calls, calls / seconds, note)


def _check_supported(run: Run, ledger: str) -> None:
    problems = []
    if "://" in ledger:
        problems.append(
            Problem("FOUNDRY_LEDGER", "only a local folder is supported for the ledger", ledger.split(":")[0])
        )
    if problems:
        raise ConfigError(problems)
    check_decoder(run.dataset.media_type, run.dataset.file)


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
    )


def _report(work: SliceWork, tasks: Sequence[Task], settled: Mapping[str, Answer], seconds: float) -> SliceReport:
    """What the calls brought, before the commit. A row whose call was stopped counts as not sent."""
    outcomes, errors = outcome_counts(work, settled)
    calls = sum(task.sends for task in tasks)
    return SliceReport(
        work.slice_key,
        rows=len(work.planned),
        ok=outcomes["ok"],
        failed=outcomes["failed"],
        rejected_by_model=outcomes["rejected_by_model"],
        not_sent=len(work.planned) - outcomes.total() + outcomes["not_sent"],
        calls=calls,
        reused=work.reused,
        repeated=work.repeated,
        latency_ms=_percentiles([a.latency_ms for a in settled.values() if a.outcome == "ok" and a.latency_ms]),
        rate_per_s=calls / max(seconds, 1e-9),
        seconds=seconds,
        errors=dict(errors.most_common()),
        examples=_examples(work, settled),
    )


def _examples(work: SliceWork, settled: Mapping[str, Answer]) -> tuple[tuple[str, str, str], ...]:
    found = []
    for planned in work.planned:
        answer = settled.get(planned.call_id)
        if answer is not None and answer.error is not None:
            found.append((planned.row.global_key, answer.error, answer.message or ""))
        if len(found) == EXAMPLES:
            break
    return tuple(found)


def _percentiles(values: Sequence[float]) -> dict[str, float]:
    if not values:
        return {}
    ordered = sorted(values)
    places = {"p50": 0.5, "p95": 0.95, "p99": 0.99, "max": 1.0}
    return {name: round(ordered[min(len(ordered) - 1, int(len(ordered) * q))], 3) for name, q in places.items()}


def _kept(work: SliceWork, settled: Mapping[str, Answer]) -> str:
    good = sum(1 for answer in settled.values() if answer.outcome in ("ok", "rejected_by_model"))
    return f"{good + work.reused} of {len(work.planned)} rows have their answer, kept in the ledger and not asked again"


def _waiting_note(waiting_for: str) -> str:
    return f"waiting for the endpoint: {waiting_for}" if waiting_for else ""
