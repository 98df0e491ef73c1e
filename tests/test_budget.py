"""What a run costs and may cost: counted per request, over all processes, restarts and refreshes."""

from __future__ import annotations

import asyncio
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from dataclasses import replace
from decimal import Decimal
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from foundry_pipeline.calls.budget import Budget, Spent, SpentFile
from foundry_pipeline.config.money import Money
from foundry_pipeline.config.settings import Settings
from foundry_pipeline.errors import EndpointStopped, StorageError
from foundry_pipeline.invoke import CallOptions
from foundry_pipeline.tables import RESPONSES
from tests.fake_model import FakeModel, Reply
from tests.invoking import Bench

CAT = Reply({"label": "cat"})
NOTHING = Spent()
CENT = Money(Decimal("0.01"), "USD")


@pytest.fixture
def model() -> Iterator[FakeModel]:
    with FakeModel(lambda _: CAT) as served:
        yield served


def priced(bench: Bench, budget: str | None, price: Money = CENT) -> Bench:
    """The bench with a price for each call, and a budget for the run."""
    bench.model(cost_per_call=price)
    bench.run = replace(bench.run, budget=None if budget is None else Money(Decimal(budget)))
    return bench


def spent_file(path: Path, recorded: Spent = NOTHING, boot_id: str = "this boot") -> SpentFile:
    return SpentFile(path, lambda: recorded, boot_id)


def read(shared: SpentFile) -> Spent:
    return shared.update(lambda spent: (spent, spent))


def test_a_run_stops_before_the_call_that_its_budget_does_not_cover(
    model: FakeModel, tmp_path: Path, ledger_at: str
) -> None:
    report = priced(Bench(tmp_path, model.url, rows=20, ledger=ledger_at), "0.075").one()
    assert len(model.requests) == 7
    assert report.failure is not None
    assert report.failure.startswith("budget: 0.07 of 0.075 USD spent on 7 calls, and the next one costs 0.01 USD;")
    assert "raise `budget` in r.yaml" in report.failure
    assert "7 of 20 rows have their answer" in report.failure
    assert (report.ok, report.not_sent, report.errors) == (7, 13, {"budget": 13})


def test_a_raised_budget_goes_on_with_the_rows_that_are_left(model: FakeModel, tmp_path: Path, ledger_at: str) -> None:
    bench = priced(Bench(tmp_path, model.url, rows=20, ledger=ledger_at), "0.07")
    bench.one()
    again = priced(bench, "0.20").one()
    assert (again.failure, again.calls, again.reused) == (None, 13, 7)
    assert len({request.text for request in model.requests}) == len(model.requests) == 20
    assert str(again.cost) == "0.2 of 0.2 USD spent"


def test_a_spent_budget_stops_every_later_run_without_a_call(model: FakeModel, tmp_path: Path) -> None:
    bench = priced(Bench(tmp_path, model.url, rows=20), "0.07")
    bench.one()
    assert str(bench.one().failure).startswith("budget: ")
    assert len(model.requests) == 7


def test_a_budget_that_suffices_to_the_cent_lets_the_run_succeed(model: FakeModel, tmp_path: Path) -> None:
    """0.1 * 3 is more than 0.3 in floats."""
    bench = priced(Bench(tmp_path, model.url, rows=3), "0.3", Money(Decimal("0.1")))
    report = bench.one()
    assert report.failure is None
    assert str(report.cost) == "0.3 of 0.3 spent"


def test_a_budget_of_nothing_sends_nothing(model: FakeModel, tmp_path: Path) -> None:
    assert str(priced(Bench(tmp_path, model.url), "0").one().failure).startswith("budget: 0 of 0 USD spent on 0 calls")
    assert model.requests == []


def test_rows_with_an_answer_need_no_budget(model: FakeModel, tmp_path: Path) -> None:
    bench = Bench(tmp_path, model.url, rows=30, rows_per_slice=10)
    bench.go()
    bench.load([f"text {i}" for i in range(30)] + ["a new one"])
    reports = priced(bench, "0").go()
    assert [report.failure is None for report in reports] == [True, True, True, False]
    assert reports[-1].stop is not None
    assert len(model.requests) == 30


def test_slices_with_answers_are_committed_after_the_stop_too(model: FakeModel, tmp_path: Path) -> None:
    """The first slice stops the run; that the others have all their answers is no matter of money."""
    bench = Bench(tmp_path, model.url, rows=30, rows_per_slice=10)
    bench.go()
    bench.store.remove(RESPONSES, "r", "00000")
    reports = priced(bench, "0").go()
    assert [report.failure is None for report in reports] == [False, True, True]


def test_slices_that_were_not_begun_count_their_rows_as_not_sent(model: FakeModel, tmp_path: Path) -> None:
    bench = priced(Bench(tmp_path, model.url, rows=200, rows_per_slice=10), "0.05")
    bench.model(max_concurrency=1)
    reports = bench.go()
    assert {report.rows for report in reports} == {10}
    assert sum(report.ok for report in reports) == 5
    assert sum(report.not_sent for report in reports) == 195
    assert all(str(report.stop).startswith("budget: ") for report in reports)


def test_retries_cost(model: FakeModel, tmp_path: Path) -> None:
    model.answer = lambda request: Reply(status=500) if request.text == "text 1" else CAT
    bench = priced(Bench(tmp_path, model.url, rows=30), None)
    report = bench.one()
    assert report.cost is not None
    assert report.cost.calls == len(model.requests) > 30
    assert report.cost.spent.amount == Decimal("0.01") * len(model.requests)


def test_probes_cost(model: FakeModel, tmp_path: Path) -> None:
    """The canary that tells an outage from bad rows is a request like any other."""
    model.answer = lambda request: CAT if int(request.text.split()[1]) < 20 else Reply(status=500)
    bench = priced(Bench(tmp_path, model.url, rows=40), None)
    bench.run = replace(bench.run, max_failed_share=1.0)
    bench.model(max_concurrency=1, max_attempts=1)
    report = bench.one()
    assert any("-probe-" in request.key for request in model.requests)
    assert report.cost is not None
    assert report.cost.calls == len(model.requests)


def test_a_refresh_costs_again(model: FakeModel, tmp_path: Path) -> None:
    bench = priced(Bench(tmp_path, model.url, rows=6), "0.10")
    assert bench.one().failure is None
    report = bench.one(CallOptions(refresh=True))
    assert str(report.failure).startswith("budget: ")
    assert len(model.requests) == 10
    assert len(bench.responses()) == 6, "the answers from before stay"


def test_a_connection_that_never_came_about_costs_nothing(tmp_path: Path, ledger_at: str) -> None:
    with socket.create_server(("127.0.0.1", 0)) as unused:
        port = unused.getsockname()[1]
    settings = Settings(preflight_patience_s=1.0)
    bench = Bench(tmp_path, f"http://127.0.0.1:{port}/", settings=settings, ledger=ledger_at)
    report = priced(bench, "0.05").one()
    assert str(report.failure).startswith("endpoint_down: ")
    assert report.cost is not None
    assert report.cost.calls == 0


def test_a_call_that_was_not_sent_leaves_no_trace_of_one(model: FakeModel, tmp_path: Path, ledger_at: str) -> None:
    """Its intent is taken back: the next run repeats nothing, and its attempts count requests that were sent."""
    bench = priced(Bench(tmp_path, model.url, rows=40, ledger=ledger_at), "0.07")
    bench.model(max_concurrency=16)
    bench.one()
    again = priced(bench, "1").one()
    assert (again.repeated, again.failure) == (0, None)
    assert {row["attempts"] for row in bench.responses().values()} == {1}


def test_without_a_price_nothing_is_counted(model: FakeModel, tmp_path: Path) -> None:
    assert Bench(tmp_path, model.url).one().cost is None
    assert not (tmp_path / "ledger" / "spent").exists()


def test_two_runs_at_once_do_not_overspend_together(model: FakeModel, tmp_path: Path, ledger_at: str) -> None:
    model.answer = lambda _: replace(CAT, delay_s=0.02)
    bench = priced(Bench(tmp_path, model.url, rows=200, rows_per_slice=20, ledger=ledger_at), "0.55")
    bench.model(max_concurrency=8)
    threads = [threading.Thread(target=bench.go) for _ in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(model.requests) == 55


_CHILD = """
import sys
from dataclasses import replace
from decimal import Decimal
from pathlib import Path
sys.path[:0] = [{checkout!r}]
from foundry_pipeline.config.money import Money
from tests.invoking import Bench
bench = Bench(Path({root!r}), {url!r}, rows=200, ledger={ledger!r})
bench.model(max_concurrency=8, requests_per_second=200.0, cost_per_call=Money(Decimal("0.01")))
bench.run = replace(bench.run, budget=Money(Decimal("1.20")))
print(bench.one().failure)
"""


def test_kill_9_loses_no_count_and_the_budget_holds_over_the_lives(
    model: FakeModel, tmp_path: Path, ledger_at: str
) -> None:
    model.answer = lambda _: replace(CAT, delay_s=0.05)
    checkout = str(Path(__file__).parents[1])
    child = _CHILD.format(checkout=checkout, root=str(tmp_path), url=model.url, ledger=ledger_at)
    for kill_at in (40, 80):
        process = subprocess.Popen([sys.executable, "-c", child])
        while len(model.requests) < kill_at and process.poll() is None:
            time.sleep(0.005)
        process.send_signal(signal.SIGKILL)
        assert process.wait() == -signal.SIGKILL
        time.sleep(0.1)
    last = subprocess.run([sys.executable, "-c", child], capture_output=True, text=True, check=True)
    assert last.stdout.startswith("budget: 1.2 of 1.2 spent on 120 calls")
    assert 120 - 2 * 8 <= len(model.requests) <= 120, "a killed process may have counted a call it did not send"


def test_a_lost_count_goes_on_with_what_tables_and_ledgers_record(model: FakeModel, tmp_path: Path) -> None:
    bench = priced(Bench(tmp_path, model.url, rows=40, rows_per_slice=20), "0.25")
    bench.model(max_concurrency=1)
    bench.go()
    assert (len(bench.responses()), len(model.requests)) == (20, 25), "one slice is committed, one is in its ledger"
    (tmp_path / "ledger/spent/r").unlink()
    assert "0.25 of 0.25 USD spent on 25 calls" in str(bench.go()[1].failure)
    assert len(model.requests) == 25


def test_calls_from_before_there_was_a_price_count(model: FakeModel, tmp_path: Path) -> None:
    bench = Bench(tmp_path, model.url, rows=10)
    bench.one()
    bench.load([f"text {i}" for i in range(20)])
    priced(bench, "0.15").go()
    assert len(model.requests) == 15


def test_a_ledger_that_a_killed_process_left_empty_is_no_obstacle(model: FakeModel, tmp_path: Path) -> None:
    bench = priced(Bench(tmp_path, model.url), "1")
    (tmp_path / "ledger/r").mkdir(parents=True)
    (tmp_path / "ledger/r/00000.sqlite").touch()
    assert bench.one().failure is None


def test_doctors_single_call_is_counted_and_stopped_like_any_other(model: FakeModel, tmp_path: Path) -> None:
    bench = priced(Bench(tmp_path, model.url), "0.01")
    with bench.invoker() as invoker:
        assert list(invoker.ask("00000", ["k3"])) == ["k3"]
        with pytest.raises(EndpointStopped, match="budget"):
            invoker.ask("00000", ["k4"])
    assert len(model.requests) == 1


def test_progress_tells_what_is_spent(model: FakeModel, tmp_path: Path) -> None:
    model.answer = lambda _: replace(CAT, delay_s=0.05)
    bench = priced(Bench(tmp_path, model.url, rows=20), "1")
    bench.model(max_concurrency=2)
    heard = []
    with bench.invoker() as invoker:
        list(invoker.invoke(["00000"], on_progress=heard.append))
    costs = [progress.cost.spent.amount for progress in heard if progress.cost is not None]
    assert costs == sorted(costs)
    assert costs[-1] == Decimal("0.2")


# The count itself


@given(st.lists(st.sampled_from(["spend", "give back", "open again"]), max_size=60), st.integers(0, 12))
@settings(max_examples=40, deadline=None)
def test_no_order_of_events_spends_more_than_the_budget(
    tmp_path_factory: pytest.TempPathFactory, events: list[str], calls: int
) -> None:
    path = tmp_path_factory.mktemp("spent") / "r"
    shared = spent_file(path)
    budget = Budget(shared, CENT, Money(CENT.amount * calls), "r.yaml")
    sent = 0
    for event in events:
        if event == "open again":
            shared.close()
            shared = spent_file(path)
            budget = Budget(shared, CENT, Money(CENT.amount * calls), "r.yaml")
        elif event == "give back" and sent:
            budget.give_back()
            sent -= 1
        elif event == "spend":
            try:
                asyncio.run(budget.spend())
                sent += 1
            except EndpointStopped:
                assert sent == calls
        assert budget.cost().calls == sent <= calls
    shared.close()


def test_threads_and_files_of_one_count_lose_none_of_it(tmp_path: Path) -> None:
    def spend() -> None:
        shared = spent_file(tmp_path / "r")
        for _ in range(200):
            shared.update(lambda spent: (Spent(spent.calls + 1, spent.billionths + 3), None))
        shared.close()

    threads = [threading.Thread(target=spend) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert read(spent_file(tmp_path / "r")) == Spent(800, 2400)


@pytest.mark.parametrize("damage", [b"", b"short", b"x" * 64, b"\0" * 4096])
def test_a_damaged_count_is_taken_from_the_records(tmp_path: Path, damage: bytes) -> None:
    (tmp_path / "r").write_bytes(damage)
    assert read(spent_file(tmp_path / "r", Spent(7, 70))) == Spent(7, 70)


def test_a_count_damaged_under_a_running_process_does_not_go_back(tmp_path: Path) -> None:
    shared = spent_file(tmp_path / "r", Spent(1, 10))
    shared.update(lambda _: (Spent(5, 50), None))
    (tmp_path / "r").write_bytes(b"garbage")
    assert read(shared) == Spent(5, 50)


def test_after_a_reboot_the_larger_of_count_and_records_holds(tmp_path: Path) -> None:
    """The last writes before a power failure may be lost; a refresh's calls are in no record any more."""
    shared = spent_file(tmp_path / "r", boot_id="one")
    shared.update(lambda _: (Spent(5, 50), None))
    assert read(spent_file(tmp_path / "r", Spent(7, 70), "two")) == Spent(7, 70)
    assert read(spent_file(tmp_path / "r", Spent(2, 20), "three")) == Spent(7, 70)


def test_records_are_not_looked_at_while_the_count_is_sound(tmp_path: Path) -> None:
    def recorded() -> Spent:
        raise AssertionError("every slice would be read")

    spent_file(tmp_path / "r").close()
    assert read(SpentFile(tmp_path / "r", recorded, "this boot")) == Spent()


def test_a_count_that_cannot_be_kept_stops_before_anything_is_sent(model: FakeModel, tmp_path: Path) -> None:
    bench = priced(Bench(tmp_path, model.url), "1")
    (tmp_path / "ledger").mkdir()
    (tmp_path / "ledger/spent").write_text("in the way")
    with pytest.raises(StorageError, match="the count of what is spent"):
        bench.one()
    assert model.requests == []


def test_an_amount_that_no_machine_word_holds_is_counted(tmp_path: Path) -> None:
    shared = spent_file(tmp_path / "r")
    budget = Budget(shared, Money(Decimal(10_000)), None, "r.yaml")
    shared.update(lambda _: (Spent(10**15, 10**28), None))
    asyncio.run(budget.spend())
    assert str(budget.cost()) == "10,000,000,000,000,010,000 spent"


@given(st.decimals(0, 10**9, places=9))
def test_money_is_exact(amount: Decimal) -> None:
    assert Money.of_billionths(Money(amount, "EUR").billionths, "EUR") == Money(amount, "EUR")
