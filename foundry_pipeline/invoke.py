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

from foundry_pipeline.calls.ballast import Ballast
from foundry_pipeline.calls.blame import Task
from foundry_pipeline.calls.breaker import Breaker
from foundry_pipeline.calls.caller import Caller, CallRules
from foundry_pipeline.calls.client import ModelClient, warm_up
from foundry_pipeline.calls.endpoint_state import StateFile, endpoint_key
from foundry_pipeline.calls.ledger import Answer, Lease
from foundry_pipeline.calls.rate import Rate
from foundry_pipeline.calls.slice_work import CallOptions, SliceWork, commit_slice, outcome_counts, plan_slice
from foundry_pipeline.calls.stop import Stop
from foundry_pipeline.config.secrets import auth_headers, scrubber
from foundry_pipeline.data_rows import DataRow
from foundry_pipeline.decode import tables_needed
from foundry_pipeline.errors import ConfigError, EndpointStopped, Problem, SliceBusy, StorageError
from foundry_pipeline.home import Run, Settings
from foundry_pipeline.protocols.foundry import FoundryRequests
from foundry_pipeline.rows.content import ContentReader
from foundry_pipeline.rows.media import needs_turning, upright_jpeg_or_png
from foundry_pipeline.store import Store
from foundry_pipeline.tables import DATA_ROWS, TEXTS

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
    """What became of one slice. Counts are data rows unless said otherwise; `failure` is None where it is committed."""

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
    """Rows whose good answer was already there: no request."""
    repeated: int = 0
    """Calls whose outcome an earlier process never learned (killed in flight), sent again."""
    damaged: int = 0
    """Answers in the ledger that had rotted: asked again."""
    latency_ms: Mapping[str, float] = field(default_factory=dict)
    """p50, p95, p99 and max of the answers that came now."""
    rate_per_s: float = 0.0
    """Requests a second, as sent now."""
    seconds: float = 0.0
    errors: Mapping[str, int] = field(default_factory=dict)
    """Error code -> rows."""
    examples: Sequence[tuple[str, str, str]] = ()
    """(global key, code, message) of the first failed rows, at most 20."""
    failure: str | None = None
    data_version: str | None = None
    """sha256 of the committed file."""


@dataclass(frozen=True, slots=True)
class Progress:
    """A moment of a run, for bars and logs. Rows done include reused ones; `note` says what is being waited for."""

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
        self._reports: queue.SimpleQueue[SliceReport | None] = queue.SimpleQueue()
        self._done = Counter[str]()
        self._slices: set[asyncio.Task[None]] = set()
        self._busy: dict[str, str] = {}
        """Slice key -> who works on it, while this process waits for its lease."""
        self._driving: ThreadFuture[None] | None = None

    def __enter__(self) -> Invoker:
        """Raises StorageError where the ledger or the warehouse cannot be written: no call is paid for nothing."""
        self._store.recover()
        self._store.check_writable()
        self._ballast = Ballast(self._ledger / "ballast", self._settings.ballast_bytes)
        rates = self._ledger / "rates"
        try:
            self._state = StateFile(rates / endpoint_key(self._run.model.inference_endpoint))
        except OSError as err:
            self._ballast.release()
            raise StorageError(f"ledger folder {rates}: {err.strerror or err}") from err
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, name=f"calls of {self._run.name}", daemon=True)
        self._thread.start()
        asyncio.run_coroutine_threadsafe(self._open(), self._loop).result()
        return self

    def __exit__(self, *exc: object) -> None:
        asyncio.run_coroutine_threadsafe(self._shut(), self._loop).result()
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()
        self._state.close()
        self._ballast.release()

    def invoke(
        self,
        slice_keys: Sequence[str],
        options: CallOptions = CallOptions(),  # noqa: B008  # frozen
        on_progress: Callable[[Progress], None] = lambda _: None,
    ) -> Iterator[SliceReport]:
        """One report per slice, as slices finish. A slice that fails fails alone: its report has a `failure`.

        `on_progress` is called in the caller's thread, a few times a second.
        """
        total = sum(self._rows_in(key) for key in slice_keys)
        began = time.monotonic()
        self._done.clear()
        self._driving = asyncio.run_coroutine_threadsafe(self._drive(list(slice_keys), options), self._loop)
        self._driving.add_done_callback(lambda _: self._reports.put(None))
        while True:
            try:
                report = self._reports.get(timeout=0.25)
            except queue.Empty:
                on_progress(self._progress(total, began))
                continue
            on_progress(self._progress(total, began))
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
        """The answers of some rows of a slice, by global key, called where they are not there yet.

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
            body_of=self._body_of,
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
            except SliceBusy as busy:
                if time.monotonic() > deadline or self._caller.stopped:
                    raise
                begun.set()
                self._busy[slice_key] = str(busy)
                await asyncio.sleep(0.25)
            finally:
                self._busy.pop(slice_key, None)

    async def _call_and_commit(
        self, slice_key: str, options: CallOptions, begun: asyncio.Event, began: float
    ) -> SliceReport:
        work = await self._plan(slice_key, options)
        try:
            self._remember_answer(work)
            self._done["rows"] += work.reused
            sharing = work.rows_sharing
            tasks = [self._submit(work, call_id, row, sharing[call_id]) for call_id, row in work.to_call.items()]
            begun.set()
            results = await asyncio.gather(*(task.settled for task in tasks), return_exceptions=True)
            report = await asyncio.to_thread(self._conclude, work, tasks, results, began)
        except BaseException:
            work.ledger.close()
            raise
        return report

    async def _ask(self, slice_key: str, global_keys: frozenset[str], options: CallOptions) -> dict[str, Answer]:
        lease = await self._lease(slice_key, asyncio.Event())
        try:
            work = await self._plan(slice_key, options, global_keys)
            try:
                self._remember_answer(work)
                tasks = [self._submit(work, call_id, row, 1) for call_id, row in work.to_call.items()]
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
        return await asyncio.to_thread(
            plan_slice, self._run, slice_key, self._store, path, self._requests, options, only, self._ballast
        )

    def _remember_answer(self, work: SliceWork) -> None:
        """A row that was answered before shows that the endpoint works, and can show it again."""
        for planned in work.planned:
            if planned.kept == "ok" or planned.good_at is not None:
                self._caller.knows_answer(planned.row)
                return

    def _submit(self, work: SliceWork, call_id: str, row: DataRow, rows: int) -> Task:
        task = Task(row, call_id, work.ledger, asyncio.get_running_loop().create_future())
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
        failed = [*errors, *filter(None, [work.ledger.failed])]
        failure = str(failed[0]) if failed else self._too_many_failed(work, settled)
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

    async def _body_of(self, row: DataRow) -> bytes:
        media_type = self._run.dataset.media_type
        if media_type == "image":
            content = await self._reader.read(row)
            picture = content.data
            if needs_turning(content.exif_orientation):
                picture = await asyncio.to_thread(upright_jpeg_or_png, picture, content.mime_type)
            return self._requests.image_body(picture)
        text = await self._reader.text(row)
        if media_type == "conversational":
            return self._requests.conversation_body(text)
        return self._requests.text_body(text)

    # For reports

    def _rows_in(self, slice_key: str) -> int:
        file = self._store.open(DATA_ROWS, self._run.dataset.name, slice_key)
        if file is None:
            return 0
        with file:
            rows: int = file.metadata.num_rows
            return rows

    def _progress(self, total: int, began: float) -> Progress:
        calls = self._caller.tally.calls
        held_s = self._rate.view().held_s
        note = f"held by the endpoint for {held_s:.0f} s" if held_s > 1 else _waiting_note(self._caller.waiting_for)
        note = note or next((f"waiting: {who}" for who in list(self._busy.values())), "")
        seconds = max(time.monotonic() - began, 1e-9)
        return Progress(self._run.name, total, self._done["rows"], self._done["failed"], calls, calls / seconds, note)


def _check_supported(run: Run, ledger: str) -> None:
    problems = []
    if "://" in ledger:
        problems.append(
            Problem("FOUNDRY_LEDGER", "only a local folder is supported for the ledger", ledger.split(":")[0])
        )
    if run.dataset.media_type == "video":
        problems.append(Problem(run.dataset.file, "video is not supported yet", "$.media_type"))
    if problems:
        raise ConfigError(problems)


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
        damaged=work.ledger.damaged,
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
