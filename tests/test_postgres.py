"""What several machines share through PostgreSQL: lost connections and leases, one rate, a password that stays in.

What the PostgreSQL ledger has in common with the SQLite one is in test_ledger.py and test_invoke.py.
"""

from __future__ import annotations

import asyncio
import itertools
import json
import logging
import os
import signal
import socket
import subprocess
import sys
import threading
import time
import traceback
from collections import Counter
from collections.abc import Iterator
from contextlib import closing, contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import dagster as dg
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from assets.code_location import code_location
from foundry_pipeline.calls.breaker import OPENS_AFTER, Breaker
from foundry_pipeline.calls.budget import Spent
from foundry_pipeline.calls.endpoint_state import EndpointState, SharedState, Spacing
from foundry_pipeline.calls.ledger import Answer, Attempt, Intent
from foundry_pipeline.calls.ledgers import Ledgers, ledgers_at
from foundry_pipeline.calls.postgres.endpoint_row import BOOKED_AHEAD_S, FRESH_S, booking
from foundry_pipeline.calls.rate import Rate
from foundry_pipeline.calls.slice_work import commit_slice, plan_slice
from foundry_pipeline.config.ledger_source import LedgerDatabase, ledger_place, shown_ledger
from foundry_pipeline.errors import ConfigError, SliceBusy, StorageError
from foundry_pipeline.home import load_home
from foundry_pipeline.invoke import CallOptions
from foundry_pipeline.protocols.foundry import FoundryRequests
from resources import Places
from tests.fake_model import FakeModel, Reply, windows
from tests.home_folder import mood_of, write_mood_home
from tests.invoking import Bench
from tests.postgres import PASSWORD, QUOTED, Cluster, Proxy

CHECKOUT = Path(__file__).parent.parent
ENDPOINT = "http://model.example/predict"


@pytest.fixture
def model() -> Iterator[FakeModel]:
    with FakeModel(lambda request: Reply({"summary": request.text}, delay_s=0.02)) as served:
        yield served


@pytest.fixture
def proxy(postgres: Cluster) -> Iterator[Proxy]:
    with Proxy(postgres.port) as between:
        yield between


@contextmanager
def opened(url: str) -> Iterator[Ledgers]:
    ledgers = ledgers_at(url, {})
    try:
        ledgers.open()
        yield ledgers
    finally:
        ledgers.close()


def check_complete(bench: Bench, model: FakeModel, in_flight: int, losses: int = 1) -> None:
    """Every row is in the tables once, with its own answer; at most what was in flight was asked for again."""
    answered = bench.responses()
    assert len(answered) == bench.rows
    assert all(json.loads(row["reply"])["summary"] == f"text {key[1:]}" for key, row in answered.items())
    asked = Counter(request.key for request in model.requests)
    assert len(asked) == bench.rows
    assert asked.total() - bench.rows <= losses * in_flight


# A lost connection


def test_answers_in_flight_survive_connections_that_break_again_and_again(
    model: FakeModel, tmp_path: Path, postgres: Cluster, proxy: Proxy
) -> None:
    bench = Bench(tmp_path, model.url, rows=120, ledger=postgres.url(postgres.empty_database(), port=proxy.port))
    bench.model(max_concurrency=8, requests_per_second=150.0)
    reports: list[Any] = []
    running = threading.Thread(target=lambda: reports.append(bench.one()))
    running.start()
    for at in (20, 50, 80):
        wait_for(lambda at=at: len(model.requests) >= at or not running.is_alive())
        proxy.cut()
    running.join()
    assert reports[0].failure is None
    assert reports[0].calls == 120, "no answer was lost, so none was asked for again"
    check_complete(bench, model, in_flight=0)
    assert bench.pending() == []


def wait_for(condition: Any, most_s: float = 60.0) -> None:
    deadline = time.monotonic() + most_s
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.005)


def test_a_commit_whose_receipt_was_lost_takes_place_once(postgres: Cluster, proxy: Proxy) -> None:
    """Intents and attempts count: written twice, they would say that a call was sent twice."""
    with opened(postgres.url(postgres.empty_database(), port=proxy.port)) as ledgers:
        lease = ledgers.lease("r", "00000")
        ledger = ledgers.ledger("r", "00000", lease)

        async def go() -> None:
            for entry in (Intent("a", "k", 5), Attempt("a", 5, "e", "m"), Intent("a", "k", 6), Answer("a", "ok")):
                proxy.commits_to_lose = 1
                await ledger.write(entry)
                assert proxy.commits_to_lose == 0

        asyncio.run(go())
        assert ledger.answers(["a"])["a"].attempts == 2
        proxy.commits_to_lose = 1
        ledger.forget(["a"])
        assert ledger.is_empty()
        ledger.close()
        lease.release()


def test_a_lease_whose_receipt_was_lost_is_had_all_the_same(postgres: Cluster, proxy: Proxy) -> None:
    with opened(postgres.url(postgres.empty_database(), port=proxy.port)) as ledgers:
        proxy.commits_to_lose = 1
        lease = ledgers.lease("r", "00000")
        assert proxy.commits_to_lose == 0
        lease.check()
        lease.release()


@pytest.mark.parametrize("how", [signal.SIGINT, signal.SIGQUIT], ids=["shut down", "crashed"])
def test_a_database_that_is_restarted_in_the_middle_of_a_run_costs_no_answer(
    model: FakeModel, tmp_path: Path, postgres: Cluster, how: signal.Signals
) -> None:
    bench = Bench(tmp_path, model.url, rows=120, ledger=postgres.url(postgres.empty_database()))
    bench.model(max_concurrency=8, requests_per_second=150.0)
    reports: list[Any] = []
    running = threading.Thread(target=lambda: reports.append(bench.one()))
    running.start()
    wait_for(lambda: len(model.requests) >= 40)
    postgres.stop(how)
    asked = len(model.requests)
    time.sleep(0.5)
    assert len(model.requests) <= asked + 8, "without a ledger nothing is sent"
    postgres.start()
    running.join()
    assert (reports[0].failure, reports[0].calls) == (None, 120)
    check_complete(bench, model, in_flight=0)


def test_a_database_that_stays_away_ends_the_run_and_the_next_goes_on(
    model: FakeModel, tmp_path: Path, postgres: Cluster, proxy: Proxy
) -> None:
    url = postgres.url(postgres.empty_database(), "&patience_s=1&lease_s=2", port=proxy.port)
    bench = Bench(tmp_path, model.url, rows=120, ledger=url)
    bench.model(max_concurrency=4, requests_per_second=150.0)
    reports: list[Any] = []
    running = threading.Thread(target=lambda: reports.append(bench.one()))
    running.start()
    wait_for(lambda: len(model.requests) >= 40)
    proxy.stop_listening()
    proxy.cut()
    running.join()
    failure = str(reports[0].failure)
    assert "no connection for 1 s" in failure
    assert f"ledger postgresql://foundry@127.0.0.1:{proxy.port}/postgres" in failure
    assert "run again to go on" in failure
    bench.ledger = postgres.url("postgres")
    assert bench.one().failure is None
    check_complete(bench, model, in_flight=4)


# A slice is one process's


_WORKER = """
import sys
from dataclasses import replace
from decimal import Decimal
from pathlib import Path
sys.path.insert(0, sys.argv[1])
from foundry_pipeline.config.money import Money
from foundry_pipeline.tables import DATA_ROWS
from tests.invoking import Bench
root, url, ledger, name, rate, price, budget, slices = sys.argv[2:]
bench = Bench(Path(root), url, ledger=ledger, run_name=name, loads=False)
bench.model(max_concurrency=4, requests_per_second=float(rate), headers=(("x-who", slices or name),))
if price:
    bench.model(cost_per_call=Money(Decimal(price)))
    bench.run = replace(bench.run, budget=Money(Decimal(budget)))
keys = bench.store.slices(DATA_ROWS, "ds")
if slices:
    start, _, step = slices.split(":")
    keys = keys[int(start or 0)::int(step)]
with bench.invoker() as invoker:
    print(*(report.failure for report in invoker.invoke(keys)))
"""


class Workers:
    """Processes that call slices of a bench's dataset, all of them by default. Ended with the test."""

    def __init__(self) -> None:
        self._processes: list[subprocess.Popen[str]] = []

    def start(
        self, bench: Bench, rate: float, *, price: str = "", budget: str = "", slices: str = ""
    ) -> subprocess.Popen[str]:
        words = [sys.executable, "-c", _WORKER, str(CHECKOUT), str(bench.root), bench.url, bench.ledger_at]
        words += [bench.run_name, str(rate), price, budget, slices]
        self._processes.append(subprocess.Popen(words, stdout=subprocess.PIPE, text=True))
        return self._processes[-1]

    def end(self) -> None:
        for process in self._processes:
            process.kill()
            process.communicate()


@pytest.fixture
def workers() -> Iterator[Workers]:
    started = Workers()
    yield started
    started.end()


def failure_of(process: subprocess.Popen[str]) -> str:
    """What the slice's report says; "None" where nothing failed."""
    out, _ = process.communicate(timeout=120)
    return out.strip()


def test_two_processes_on_one_slice_pay_once(
    model: FakeModel, tmp_path: Path, database_url: str, workers: Workers
) -> None:
    bench = Bench(tmp_path, model.url, rows=60, ledger=database_url)
    both = [workers.start(bench, 200.0) for _ in range(2)]
    assert [failure_of(process) for process in both] == ["None", "None"]
    assert len(model.requests) == 60


def test_F100_a_suspended_process_that_lost_its_slice_commits_nothing(
    model: FakeModel, tmp_path: Path, postgres: Cluster, workers: Workers
) -> None:
    """The winner's tables stay, and so do its rows in the ledger; the loser is told who has the slice."""
    url = postgres.url(postgres.empty_database(), "&lease_s=1")
    bench = Bench(tmp_path, model.url, rows=60, ledger=url)
    bench.model(max_concurrency=4, requests_per_second=50.0)
    loser = workers.start(bench, 50.0)
    wait_for(lambda: len(model.requests) >= 20)
    loser.send_signal(signal.SIGSTOP)
    assert bench.one().failure is None
    check_complete(bench, model, in_flight=4)
    asked = len(model.requests)
    record = bench.store.record("r", "00000", "responses")
    loser.send_signal(signal.SIGCONT)
    said = failure_of(loser)
    assert "lost slice 00000 of r" in said
    assert "nothing was committed" in said
    assert bench.store.record("r", "00000", "responses") == record
    assert bench.pending() == []
    assert len(model.requests) <= asked + 4, "it sent no more than what it had declared"


def test_F117_the_slice_of_a_machine_that_died_is_free_when_its_lease_runs_out(postgres: Cluster) -> None:
    """Of another machine's process nobody knows whether it lives; a row that looks like that is written by hand."""
    with opened(postgres.url(postgres.empty_database(), "&lease_s=1")) as ledgers:
        ledgers.lease("r", "00000").release()
        fields = "run, slice, token, last_commit, claim, pid, host, since, expires"
        row = "'r', '00000', 999, 0, 'elsewhere:1@2 x', 7, 'elsewhere', now(), now() + interval '1 second'"
        postgres.sql("postgres", f"INSERT INTO foundry_ledger.leases ({fields}) VALUES ({row})")
        with pytest.raises(SliceBusy, match=r"run r \(pid 7, host elsewhere, since .*Z\) works on slice 00000"):
            ledgers.lease("r", "00000")
        time.sleep(1.1)
        lease = ledgers.lease("r", "00000")
        time.sleep(2.0)
        lease.check()
        with pytest.raises(SliceBusy):
            ledgers.lease("r", "00000")
        lease.release()


def test_a_slice_that_is_lost_when_all_is_answered_is_not_committed(
    model: FakeModel, tmp_path: Path, postgres: Cluster
) -> None:
    bench = Bench(tmp_path, model.url, rows=3, ledger=postgres.url(postgres.empty_database()))
    with bench.invoker() as invoker:
        invoker.ask("00000", ["k0", "k1", "k2"])
    with bench.ledgers() as ledgers:
        lease = ledgers.lease("r", "00000")
        requests, options = FoundryRequests(bench.run), CallOptions()
        open_ledger = partial(ledgers.ledger, "r", "00000", lease)
        work = plan_slice(bench.run, "00000", bench.store, open_ledger, requests, options)
        assert not work.plan.needs_call.any()
        postgres.sql("postgres", "UPDATE foundry_ledger.leases SET token = 1000000, host = 'winner'")
        with pytest.raises(SliceBusy, match=r"lost slice 00000 of r.*host winner"):
            commit_slice(work, {}, lease.check)
        work.ledger.close()
        lease.release()
    assert bench.responses() == {}
    assert [pending.outcomes for pending in bench.pending()] == [{"ok": 3}]


def test_a_holder_that_lost_its_lease_can_neither_write_nor_forget(postgres: Cluster) -> None:
    with opened(postgres.url(postgres.empty_database())) as ledgers:
        lease = ledgers.lease("r", "00000")
        ledger = ledgers.ledger("r", "00000", lease)
        asyncio.run(ledger.write(Answer("a", "ok", reply=b"{}")))
        postgres.sql("postgres", "UPDATE foundry_ledger.leases SET token = 1000000, host = 'winner'")
        with pytest.raises(SliceBusy, match=r"lost slice 00000 of r.*host winner"):
            asyncio.run(ledger.write(Answer("b", "ok", reply=b"{}")))
        for action in (lambda: ledger.forget(["a"]), lease.check, ledger.remove):
            with pytest.raises(SliceBusy, match="host winner"):
                action()
        lease.release()
        (pending,) = ledgers.pending()
        assert pending.outcomes == {"ok": 1}
        assert pending.holder is not None
        assert pending.holder.host == "winner"


# One rate


def test_F118_four_processes_share_a_rate_and_one_that_is_killed_costs_the_others_nothing(
    model: FakeModel, tmp_path: Path, database_url: str, workers: Workers
) -> None:
    """The server's own log is the judge. Each process has a run of its own; the endpoint is one."""
    model.answer = lambda request: Reply({"summary": request.text})
    benches = [named_bench(tmp_path, model.url, name, database_url) for name in "abcd"]
    four = [workers.start(bench, 50.0) for bench in benches]
    wait_for(lambda: len({request.headers["x-who"] for request in model.requests}) == 4)
    wait_for(lambda: len(model.requests) >= 150)
    four[0].kill()
    assert [failure_of(process) for process in four[1:]] == ["None"] * 3
    arrivals = [request.at for request in model.requests]
    assert windows(arrivals) <= 55, "a busy machine bunches arrivals; four rates would be 200"
    span = max(arrivals) - min(arrivals)
    assert len(arrivals) - 1 <= span * 50
    asked = Counter(request.headers["x-who"] for request in model.requests)
    assert all(asked[name] == 100 for name in "bcd")


def named_bench(root: Path, url: str, name: str, ledger: str) -> Bench:
    (root / name).mkdir()
    return Bench(root / name, url, rows=100, ledger=ledger, run_name=name)


def test_F120_a_hold_and_a_breaker_are_everybodys(database_url: str) -> None:
    async def go(one: SharedState, two: SharedState) -> None:
        Rate(one, 100).hold(0.7)
        await one.look()
        began = time.monotonic()
        await Rate(two, 100).acquire()
        assert time.monotonic() - began > 0.4
        breaker, other = Breaker(one), Breaker(two)
        assert (await breaker.gate()).is_free
        assert (await other.gate()).is_free
        for _ in range(OPENS_AFTER):
            breaker.failed()
        assert [(await breaker.gate()).is_probe for _ in range(3)] == [True, False, False]
        await asyncio.sleep(0.05)
        assert not (await other.gate()).is_probe
        assert not (await other.gate()).is_free
        breaker.succeeded()
        assert (await breaker.gate()).is_free
        await asyncio.sleep(0.05)
        assert (await other.gate()).is_free

    with opened(database_url) as ledgers, opened(database_url) as others:
        asyncio.run(go(ledgers.endpoint(ENDPOINT), others.endpoint(ENDPOINT)))


def test_changes_by_several_at_once_are_all_counted(database_url: str) -> None:
    async def count(state: SharedState) -> None:
        await asyncio.gather(*(state.update(one_more) for _ in range(25)))

    def one_more(state: EndpointState, _: float) -> tuple[EndpointState, None]:
        return state._replace(failures_in_row=state.failures_in_row + 1), None

    with opened(database_url) as ledgers:
        states = [ledgers.endpoint(ENDPOINT) for _ in range(4)]
        threads = [threading.Thread(target=lambda state=state: asyncio.run(count(state))) for state in states]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        time.sleep(2 * FRESH_S)
        asyncio.run(states[0].look())
        assert states[0].peek().failures_in_row == 100


def test_slots_of_several_at_once_are_all_different_and_evenly_spaced(database_url: str) -> None:
    async def book(state: SharedState, taken: list[float]) -> None:
        for wanted in (1, 3, 5) * 20:
            taken += await state.book(Spacing(0.002, 0.0), wanted)

    with opened(database_url) as ledgers:
        states, taken = [ledgers.endpoint(ENDPOINT) for _ in range(4)], [list[float]() for _ in range(4)]
        pairs = zip(states, taken, strict=True)
        threads = [threading.Thread(target=lambda pair=pair: asyncio.run(book(*pair))) for pair in pairs]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    slots = sorted(slot for some in taken for slot in some)
    assert len(slots) == 4 * 60 * 3
    assert min(later - earlier for earlier, later in itertools.pairwise(slots)) > 0.00199


def test_slots_are_booked_ahead_for_a_moment_and_for_those_who_wait_only(database_url: str) -> None:
    with opened(database_url) as ledgers:
        state = ledgers.endpoint(ENDPOINT)
        assert len(asyncio.run(state.book(Spacing(0.001, 0.005), 3))) == 3
        assert len(asyncio.run(state.book(Spacing(0.001, 0.005), 1000))) == BOOKED_AHEAD_S / 0.001
        assert len(asyncio.run(state.book(Spacing(1.0, 0.005), 1000))) == 1


moments = st.floats(-20, 20).map(lambda seconds: 1000 + seconds)


states = st.builds(
    EndpointState,
    next_free=moments | st.just(0.0) | st.just(5000.0),
    hold_until=moments | st.just(0.0),
    pace=st.floats(0.1, 1),
    pace_changed=moments | st.just(0.0),
    failures_in_row=st.just(0.0),
    open_since=st.just(0.0),
    next_probe=st.just(0.0),
    probes=st.just(0.0),
)


def test_the_database_books_as_the_file_does(postgres: Cluster) -> None:
    with (
        opened(postgres.url(postgres.empty_database())) as ledgers,
        closing(postgres.connect("postgres")) as connection,
    ):
        ledgers.endpoint(ENDPOINT)
        ((key,),) = connection.run("SELECT key FROM foundry_ledger.endpoints")

        @given(state=states, rate=st.floats(0.05, 2000), burst=st.integers(1, 5))
        @settings(max_examples=60, deadline=None)
        def check(state: EndpointState, rate: float, burst: int) -> None:
            burst_s = (burst - 1) / rate
            spacing = Spacing(1 / rate, max(0.005, burst_s), burst_s)
            after, slot = spacing.take(state, 1000.0)
            values = ", ".join(f"{name} = {value!r}" for name, value in state._asdict().items())
            connection.run(f"UPDATE foundry_ledger.endpoints SET {values}")
            named = {"interval": 1 / rate, "late": spacing.late_s, "burst": burst_s, "trip": 0.0, "count": 1}
            (row,) = connection.run(booking("cast(1000.0 AS float8)"), key=key, **named)
            assert row[0] == pytest.approx(slot, abs=1e-9)
            assert row[4] == pytest.approx(after.next_free, abs=1e-9)

        check()


def test_booking_over_a_line_that_became_slow_neither_blocks_the_loop_nor_starves(
    postgres: Cluster, proxy: Proxy
) -> None:
    """A round trip of 60 ms: without allowance for it every slot would have passed when its news come."""
    with opened(postgres.url(postgres.empty_database(), port=proxy.port)) as ledgers:
        rate, turns, done = Rate(ledgers.endpoint(ENDPOINT), 20), 0, asyncio.Event()

        async def other_work() -> None:
            nonlocal turns
            while not done.is_set():
                turns += 1
                await asyncio.sleep(0.001)

        async def go() -> int:
            for _ in range(3):
                await rate.acquire()
            proxy.round_trip_s = 0.06
            working = asyncio.create_task(other_work())
            for _ in range(10):
                await rate.acquire()
            done.set()
            await working
            return turns

        assert asyncio.run(asyncio.wait_for(go(), 60)) > 10 * 5


def test_a_lost_connection_costs_the_rate_a_moment(postgres: Cluster, proxy: Proxy) -> None:
    with opened(postgres.url(postgres.empty_database(), port=proxy.port)) as ledgers:
        rate = Rate(ledgers.endpoint(ENDPOINT), 200)

        async def go() -> None:
            for turn in range(40):
                if turn % 10 == 5:
                    proxy.cut()
                await rate.acquire()

        asyncio.run(go())


def test_a_clock_of_the_server_that_was_put_back_does_not_hold_anybody(postgres: Cluster) -> None:
    with opened(postgres.url(postgres.empty_database())) as ledgers:
        ledgers.endpoint(ENDPOINT)
        held = "hold_until = extract(epoch FROM now()) + 86400"
        postgres.sql("postgres", f"UPDATE foundry_ledger.endpoints SET {held}")
        asyncio.run(asyncio.wait_for(Rate(ledgers.endpoint(ENDPOINT), 100).acquire(), 30))


# One budget


def test_two_processes_share_one_budget_to_the_cent(
    model: FakeModel, tmp_path: Path, database_url: str, workers: Workers
) -> None:
    """Each works on slices of its own. Together they send what the budget covers, and no call more."""
    bench = Bench(tmp_path, model.url, rows=300, rows_per_slice=5, ledger=database_url)
    both = [workers.start(bench, 300.0, price="0.01", budget="0.555", slices=half) for half in ("::2", "1::2")]
    said = [failure_of(process) for process in both]
    assert all("0.55 of 0.555 spent on 55 calls" in failures for failures in said)
    assert len(model.requests) == 55
    assert {request.headers["x-who"] for request in model.requests} == {"::2", "1::2"}


def test_a_count_goes_on_with_the_records_where_there_is_none_and_gives_back_exactly(postgres: Cluster) -> None:
    price, most = 3 * 10**27, 10**30
    with opened(postgres.url(postgres.empty_database())) as ledgers:
        spent = ledgers.spent("r", lambda: Spent(10**15, 10**28))
        assert ledgers.spent("r", lambda: Spent()).peek() == spent.peek() == Spent(10**15, 10**28)

        async def spend(times: int) -> list[bool]:
            return await asyncio.gather(*(spent.spend(price, most) for _ in range(times)))

        paid = asyncio.run(spend(500))
        assert paid == [True] * 330 + [False] * 170
        spent.give_back(price)
        assert spent.peek() == Spent(10**15 + 329, 10**28 + 329 * price)
        assert asyncio.run(spend(2)) == [True, False]
        assert asyncio.run(spent.spend(price, None))
        assert not asyncio.run(spent.spend(0, 0)), "what is spent is more than the budget already"
        assert spent.peek() == Spent(10**15 + 331, 10**28 + 331 * price)


def test_a_count_over_a_line_that_breaks_is_never_too_low(postgres: Cluster, proxy: Proxy) -> None:
    with opened(postgres.url(postgres.empty_database(), port=proxy.port)) as ledgers:
        spent = ledgers.spent("r", Spent)

        async def spend() -> int:
            return sum([await spent.spend(1, 30) for _ in range(40) if proxy.cut() is None])

        sent = asyncio.run(spend())
        assert 0 < sent <= spent.peek().calls <= 30


# The address, and its password


def test_the_password_is_in_no_message_log_repr_or_traceback(
    postgres: Cluster, model: FakeModel, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG)
    url = postgres.url(postgres.empty_database())
    wrong = [
        url.replace(QUOTED, "wr0ng-canary"),
        url.replace("/postgres?", "/no_such_database?"),
        url.replace(f":{postgres.port}/", ":1/") + "&patience_s=0.1",
        url.replace(QUOTED, "wr0ng-canary/with-slash"),
        url.replace(QUOTED, "wr0ng-canary?with=question"),
        url.replace(QUOTED, "wr0ng-canary#with-hash"),
        url + "&nonsense=1",
    ]
    said = []
    for bad in wrong:
        bench = Bench(tmp_path, model.url, ledger=bad)
        try:
            invoker = bench.invoker()
            said.append(repr(invoker) + repr(vars(invoker)))
            with invoker:
                pass
        except (ConfigError, StorageError) as err:
            said += [str(err), repr(err), "".join(traceback.format_exception(err)), shown_ledger(bad)]
    assert len(said) >= 4 * len(wrong)
    assert "password authentication failed" in said[1]
    text = "\n".join([*said, caplog.text])
    for secret in (PASSWORD, QUOTED, "wr0ng-canary", "s3cr3t", "with-slash", "with=question", "with-hash"):
        assert secret not in text
    assert bench.rows
    sound = Bench(tmp_path, model.url, ledger=url)
    assert sound.one().failure is None
    stored = postgres.sql("postgres", "SELECT * FROM foundry_ledger.calls")
    assert "s3cr3t" not in str(stored) + caplog.text


def materialize(home: Path, ledger: str) -> subprocess.CompletedProcess[str]:
    environ = {name: value for name, value in os.environ.items() if not name.startswith(("FOUNDRY_", "DAGSTER_"))}
    return subprocess.run(
        [sys.executable, "-m", "assets", "materialize", "--home", str(home), "--workers", "2"],
        cwd=CHECKOUT,
        env={**environ, "FOUNDRY_LEDGER": ledger},
        capture_output=True,
        text=True,
        check=False,
        timeout=180,
    )


def test_dagster_works_on_it_in_several_processes_and_stores_no_password(tmp_path: Path, postgres: Cluster) -> None:
    url = postgres.url(postgres.empty_database())
    with FakeModel(mood_of) as model:
        home = write_mood_home(tmp_path / "home", model.url, ["fine", "bad", "good", "well", "so so"])
        refused = materialize(home, url.replace(QUOTED, "wr0ng-canary"))
        assert refused.returncode != 0
        assert "password authentication failed" in refused.stdout + refused.stderr
        assert model.requests == []
        done = materialize(home, url)
        assert done.returncode == 0, done.stdout + done.stderr
        assert len(model.requests) == 5
    assert list((home / "warehouse/responses/run=notes_mood").glob("*.parquet"))
    assert not (home / "ledger").exists()
    texts = [refused.stdout, refused.stderr, done.stdout, done.stderr]
    files = [file.read_bytes() for file in home.rglob("*") if file.is_file()]
    assert len(files) > 20
    for secret in ("s3cr3t", QUOTED, "wr0ng-canary"):
        assert not any(secret in text for text in texts)
        assert not any(secret.encode() in content for content in files)
    places = Places(home, str(home / "warehouse"), url, home / ".dagster")
    resources = code_location(load_home(home, {}), places).resources
    assert resources is not None
    assert resources["model_calls"].ledger == dg.EnvVar("FOUNDRY_LEDGER"), "the UI shows a resource's fields"
    assert "s3cr3t" not in repr(places)


@pytest.mark.parametrize(
    ("url", "problem"),
    [
        ("mysql://u:p@h/db", "expected a local folder or postgresql://"),
        ("postgresql://u:p/q@h/db", "special characters of the password are written like %2F"),
        ("postgresql://u:p#q@h/db", "special characters"),
        ("postgresql://u:p@h:port/db", "special characters"),
        ("postgresql://h/db", "names no user, and PGUSER is not set"),
        ("postgresql://u@h/db?sslmode=maybe", "sslmode: expected one of disable, prefer"),
        ("postgresql://u@h/db?patience_s=-1", "patience_s: expected seconds above 0"),
        ("postgresql://u@h/db?sslmode=verify-full&sslrootcert=/no/such.crt", "sslrootcert: /no/such.crt: No such file"),
        ("postgresql://u@h/db?lease=3", "lease is not known; there are host, sslmode"),
    ],
)
def test_a_wrong_address_is_said_before_anything_else(url: str, problem: str) -> None:
    with pytest.raises(ConfigError, match="FOUNDRY_LEDGER") as caught:
        ledgers_at(url, {})
    assert problem in str(caught.value)


def test_an_address_is_read_as_libpq_reads_it() -> None:
    environ = {"PGUSER": "ann", "PGPASSWORD": "pw"}
    found = ledger_place("postgresql://bob:x%2Fy%40@[::1]:7/d%20b?sslmode=require&patience_s=5&lease_s=9.5", environ)
    assert isinstance(found, LedgerDatabase)
    assert (found.host, found.port, found.database, found.user) == ("::1", 7, "d b", "bob")
    assert (found.tls, found.patience_s, found.lease_s) == ("require", 5, 9.5)
    assert found.password is not None
    assert found.password.reveal() == "x/y@"
    plain = ledger_place("postgres:///?host=/run/postgresql", environ)
    assert isinstance(plain, LedgerDatabase)
    assert (plain.host, plain.port, plain.database, plain.user) == ("/run/postgresql", 5432, "ann", "ann")
    assert plain.password is not None
    assert plain.password.reveal() == "pw"


def test_a_unix_socket_will_do(postgres: Cluster) -> None:
    database = postgres.empty_database()
    with opened(f"postgresql://foundry:{QUOTED}@:{postgres.port}/{database}?host={postgres.folder}") as ledgers:
        ledgers.lease("r", "00000").release()


def test_without_the_driver_the_extra_is_named() -> None:
    script = (
        "import sys; sys.modules['pg8000'] = None\n"
        "from foundry_pipeline.calls.ledgers import ledgers_at\n"
        "ledgers_at('postgresql://u:s3cr3t@h/db', {})"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=False, cwd=CHECKOUT)
    assert "ConfigError: FOUNDRY_LEDGER: $: PostgreSQL needs its driver" in done.stderr
    assert "pip install 'foundry-pipeline[postgres]'" in done.stderr
    assert "s3cr3t" not in done.stderr


def test_a_server_that_is_not_there_is_said_at_once_and_nothing_is_sent(model: FakeModel, tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as unused:
        port = unused.getsockname()[1]
    bench = Bench(tmp_path, model.url, ledger=f"postgresql://u:p@127.0.0.1:{port}/db?patience_s=0.2")
    with pytest.raises(StorageError, match=f"ledger postgresql://u@127.0.0.1:{port}/db: .*[Rr]efused"):
        bench.one()
    assert model.requests == []
