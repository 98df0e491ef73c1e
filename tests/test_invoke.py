"""Calls end to end, against a real server on 127.0.0.1 that answers or misbehaves as told."""

from __future__ import annotations

import contextlib
import gzip
import json
import signal
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import CancelledError
from dataclasses import replace
from pathlib import Path

import httpx
import pytest

from foundry_pipeline.config.settings import Settings
from foundry_pipeline.errors import ConfigError
from foundry_pipeline.invoke import CallOptions
from foundry_pipeline.manifest import Auth, SecretRef
from foundry_pipeline.tables import RESPONSES
from tests.fake_model import Answer, FakeModel, Reply, Request, windows
from tests.invoking import Bench

CAT = Reply({"label": "cat"})


@pytest.fixture
def model() -> Iterator[FakeModel]:
    with FakeModel(lambda _: CAT) as served:
        yield served


@pytest.fixture(params=["asyncio", "uvloop", "httpx"])
def calls_on(request: pytest.FixtureRequest) -> Callable[[Bench], Bench]:
    """Makes a bench's calls over our own connection on either event loop, or over httpx's transport."""

    def choose(bench: Bench) -> Bench:
        if request.param == "httpx":
            bench.transport = lambda: httpx.AsyncHTTPTransport(trust_env=False)
        else:
            bench.settings = replace(bench.settings, event_loop=request.param)
        return bench

    return choose


def poison(text: str, bad: Reply, good: Reply = CAT) -> Answer:
    """Answers everything but the row that says `text`."""
    return lambda request: bad if request.text == text else good


def test_every_row_is_asked_once_and_its_reply_kept_as_it_came(
    model: FakeModel, tmp_path: Path, calls_on: Callable[[Bench], Bench], ledger_at: str
) -> None:
    bench = calls_on(Bench(tmp_path, model.url, ledger=ledger_at))
    report = bench.one()
    assert (report.rows, report.ok, report.calls, report.failure) == (6, 6, 6, None)
    assert sorted(request.text for request in model.requests) == [f"text {i}" for i in range(6)]
    assert {r["reply"] for r in bench.responses().values()} == {'{"label": "cat"}'}
    assert bench.pending() == [], "the slice's ledger goes once its Parquet is durable"


def test_the_request_is_the_documents_body(model: FakeModel, tmp_path: Path) -> None:
    bench = Bench(tmp_path, model.url, rows=1)
    bench.run = replace(bench.run, inference_params={"prompt": "Be brief.", "confidence": 0.4})
    bench.model(max_tokens=99)
    bench.one()
    (request,) = model.requests
    assert request.body["prompt"] == [
        {"role": "system", "parts": [{"text": "Be brief."}]},
        {"role": "user", "parts": [{"text": "text 0"}]},
    ]
    assert request.body["inference_params"] == {"prompt": "Be brief.", "confidence": 0.4}
    assert request.body["max_tokens"] == 99
    assert [c["name"] for c in request.body["ontology"]["classifications"]] == ["label", "summary"]
    assert request.key == bench.responses()["k0"]["call_id"]


def test_a_second_run_makes_no_call_and_leaves_the_file_as_it_was(
    model: FakeModel, tmp_path: Path, ledger_at: str
) -> None:
    bench = Bench(tmp_path, model.url, ledger=ledger_at)
    first = bench.one()
    again = bench.one()
    assert (again.calls, again.reused, again.ok, again.data_version) == (0, 6, 6, first.data_version)
    assert len(model.requests) == 6


def test_a_changed_parameter_is_a_new_call_and_a_new_key_is_not(model: FakeModel, tmp_path: Path) -> None:
    bench = Bench(tmp_path, model.url, environ={"KEY": "one-secret"})
    bench.model(secret=SecretRef("KEY"))
    bench.one()
    bench.environ = {"KEY": "another-secret"}
    assert bench.one().calls == 0
    bench.run = replace(bench.run, inference_params={"confidence": 0.9})
    assert bench.one().calls == 6


def test_another_endpoint_shares_no_answers(model: FakeModel, tmp_path: Path) -> None:
    bench = Bench(tmp_path, model.url)
    bench.one()
    bench.model(inference_endpoint=model.url + "2")
    assert bench.one().calls == 6


def test_adding_rows_pays_for_those_rows_only(model: FakeModel, tmp_path: Path) -> None:
    bench = Bench(tmp_path, model.url)
    bench.one()
    bench.load([f"text {i}" for i in range(9)])
    report = bench.one()
    assert (report.calls, report.reused, report.ok) == (3, 6, 9)


def test_rows_with_the_same_content_share_one_call(model: FakeModel, tmp_path: Path) -> None:
    bench = Bench(tmp_path, model.url)
    bench.load(["same", "same", "other"])
    report = bench.one()
    assert (report.calls, report.ok) == (2, 3)
    assert [r["outcome"] for r in bench.responses().values()] == ["ok"] * 3


def test_a_refresh_that_fails_leaves_the_answer_that_was_paid_for(
    model: FakeModel, tmp_path: Path, ledger_at: str
) -> None:
    bench = Bench(tmp_path, model.url, rows=30, ledger=ledger_at)
    bench.one()
    model.answer = poison("text 3", Reply(status=500), Reply({"label": "dog"}))
    report = bench.one(CallOptions(refresh=True))
    assert report.failure is None
    assert report.errors == {"http_500": 1}
    replies = {key: row["reply"] for key, row in bench.responses().items()}
    assert replies.pop("k3") == '{"label": "cat"}'
    assert set(replies.values()) == {'{"label": "dog"}'}


def test_refresh_asks_every_row_again(model: FakeModel, tmp_path: Path) -> None:
    bench = Bench(tmp_path, model.url)
    bench.one()
    model.answer = lambda _: Reply({"label": "dog"})
    assert bench.one(CallOptions(refresh=True)).calls == 6
    assert {r["reply"] for r in bench.responses().values()} == {'{"label": "dog"}'}


@pytest.mark.parametrize("body", [{}, [], {"label": None}])
def test_an_empty_reply_is_an_answer(model: FakeModel, tmp_path: Path, body: object) -> None:
    model.answer = lambda _: Reply(body)
    report = Bench(tmp_path, model.url).one()
    assert (report.ok, report.failed, report.calls) == (6, 0, 6)


def test_F037_a_poison_row_is_given_up_and_costs_its_neighbours_nothing(
    model: FakeModel, tmp_path: Path, ledger_at: str
) -> None:
    model.answer = poison("text 3", Reply({"error": "boom"}, status=500))
    bench = Bench(tmp_path, model.url, rows=30, ledger=ledger_at)
    report = bench.one()
    assert (report.ok, report.failed, report.failure) == (29, 1, None)
    bad = bench.responses()["k3"]
    assert (bad["outcome"], bad["error"], bad["reply"]) == ("failed", "http_500", None)
    assert bad["attempts"] == 3
    assert "boom" in bad["message"]


def test_failed_rows_of_a_committed_slice_are_asked_again(model: FakeModel, tmp_path: Path) -> None:
    model.answer = poison("text 3", Reply(status=500))
    bench = Bench(tmp_path, model.url, rows=30)
    bench.one()
    model.answer = lambda _: CAT
    report = bench.one()
    assert (report.calls, report.ok, report.failed) == (1, 30, 0)


def test_too_many_failures_fail_the_slice_and_leave_its_older_tables(
    model: FakeModel, tmp_path: Path, ledger_at: str
) -> None:
    bench = Bench(tmp_path, model.url, rows=10, ledger=ledger_at)
    before = bench.one().data_version
    bench.run = replace(bench.run, inference_params={"confidence": 0.9})
    model.answer = lambda r: Reply(status=500) if r.text in ("text 1", "text 2") else CAT
    report = bench.one()
    assert report.failure is not None
    assert "2 of 10 rows failed (20.0%, max_failed_share is 5.0%)" in report.failure
    record = bench.store.record("r", "00000", RESPONSES.name)
    assert record is not None
    assert record["sha256"] == before
    model.answer = lambda _: CAT
    assert bench.one().calls == 2, "the ledger kept the other eight"


def test_what_failed_earlier_counts_for_max_failed_share(model: FakeModel, tmp_path: Path) -> None:
    model.answer = lambda r: Reply(status=500) if r.text != "text 0" else CAT
    bench = Bench(tmp_path, model.url, rows=10)
    assert bench.one().failure is not None
    report = bench.one(CallOptions(retry="none"))
    assert report.failure is not None
    assert "rows failed" in report.failure


def test_a_damaged_slice_fails_alone_and_is_asked_again_on_request(model: FakeModel, tmp_path: Path) -> None:
    bench = Bench(tmp_path, model.url, rows=30, rows_per_slice=10)
    bench.go()
    path = Path(bench.store.path(RESPONSES, "r", "00001"))
    content = bytearray(path.read_bytes())
    content[100] ^= 1
    path.write_bytes(content)
    reports = bench.go()
    assert [report.failure is None for report in reports] == [True, False, True]
    assert "00001.parquet" in str(reports[1].failure)
    assert [report.calls for report in bench.go(CallOptions(refresh=True))] == [10, 10, 10]


def test_a_slice_that_fails_fails_alone(model: FakeModel, tmp_path: Path, ledger_at: str) -> None:
    model.answer = lambda r: Reply(status=500) if r.text in ("text 0", "text 1") else CAT
    reports = Bench(tmp_path, model.url, rows=30, rows_per_slice=10, ledger=ledger_at).go()
    assert [report.failure is None for report in reports] == [False, True, True]


def test_F025_a_refused_row_is_a_verdict_that_is_not_asked_again(model: FakeModel, tmp_path: Path) -> None:
    model.answer = poison("text 2", Reply({"detail": "cannot read this"}, status=422))
    bench = Bench(tmp_path, model.url)
    report = bench.one()
    assert (report.ok, report.rejected_by_model, report.failure) == (5, 1, None)
    assert bench.responses()["k2"]["error"] == "http_422"
    assert bench.one().calls == 0
    assert bench.one(CallOptions(retry="rejected")).calls == 1


def test_F027_after_a_stop_the_next_run_goes_on_where_it_was(model: FakeModel, tmp_path: Path, ledger_at: str) -> None:
    model.answer = lambda _: CAT if len(model.requests) <= 20 else Reply(status=401)
    bench = Bench(tmp_path, model.url, rows=60, ledger=ledger_at)
    bench.model(max_concurrency=2)
    assert bench.one().failure is not None
    model.answer = lambda _: CAT
    report = bench.one()
    assert report.failure is None
    assert report.calls == 40


def test_F033_a_limit_charges_no_row_however_often_it_is_hit(model: FakeModel, tmp_path: Path, ledger_at: str) -> None:
    def answer(_: Request) -> Reply:
        busy = len(model.requests) % 40 < 20
        return Reply(status=429, headers={"Retry-After": "0"}) if busy else CAT

    model.answer = answer
    bench = Bench(tmp_path, model.url, rows=60, ledger=ledger_at)
    bench.model(max_concurrency=16, max_attempts=1)
    report = bench.one()
    assert (report.ok, report.failed) == (60, 0)


def test_stopping_does_not_wait_for_a_hold(model: FakeModel, tmp_path: Path, ledger_at: str) -> None:
    model.answer = lambda _: Reply(status=429, headers={"Retry-After": "3000"})
    bench = Bench(tmp_path, model.url, ledger=ledger_at)
    with bench.invoker() as invoker:
        threading.Timer(0.5, invoker.stop).start()
        (report,) = invoker.invoke(["00000"])
    assert str(report.failure).startswith("cancelled")
    assert len(model.requests) < 12


def test_F099_leaving_with_a_call_that_does_not_end_takes_ten_seconds_and_frees_the_lease(
    model: FakeModel, tmp_path: Path, ledger_at: str
) -> None:
    model.answer = lambda _: replace(CAT, delay_s=60)
    bench = Bench(tmp_path, model.url, rows=2, ledger=ledger_at)
    with bench.invoker() as invoker:
        reports = invoker.invoke(["00000"])

        def consume() -> None:
            with contextlib.suppress(CancelledError):
                list(reports)

        threading.Thread(target=consume, daemon=True).start()
        while not model.requests:
            time.sleep(0.01)
        assert [pending.holder is None for pending in bench.pending()] == [False]
    assert [pending.holder is None for pending in bench.pending()] == [True]


@pytest.mark.parametrize(
    ("bad", "code"),
    [
        (Reply(b"<html><body>Log in</body></html>", headers={"Content-Type": "text/html"}), "not_json"),
        (Reply(b'{"label": "ca'), "not_json"),
        (Reply(b""), "empty_body"),
        (Reply({"error": "CUDA out of memory"}), "model_error"),
        (Reply(raw=b"HTTP/1.1 200 OK\r\nContent-Length: 99\r\n\r\n{}"), "connection"),
        (Reply(raw=b"garbage\r\n\r\n"), "connection"),
        (Reply(raw=b"", reset=True), "connection"),
        (Reply(b"x", headers={"Content-Encoding": "snappy"}), "content_encoding"),
    ],
)
def test_what_is_no_answer_is_a_failed_row_and_never_an_empty_one(
    model: FakeModel, tmp_path: Path, calls_on: Callable[[Bench], Bench], bad: Reply, code: str
) -> None:
    model.answer = poison("text 7", bad)
    bench = calls_on(Bench(tmp_path, model.url, rows=30))
    report = bench.one()
    assert (report.ok, report.failed, report.failure) == (29, 1, None)
    row = bench.responses()["k7"]
    assert (row["outcome"], row["error"]) == ("failed", code)


def test_a_gzip_answer_is_read_all_the_same(
    model: FakeModel, tmp_path: Path, calls_on: Callable[[Bench], Bench]
) -> None:
    model.answer = lambda _: Reply(gzip.compress(b'{"label": "cat"}'), headers={"Content-Encoding": "gzip"})
    bench = calls_on(Bench(tmp_path, model.url))
    assert bench.one().ok == 6
    assert bench.responses()["k0"]["reply"] == '{"label": "cat"}'


def test_a_gzip_bomb_is_cut_at_the_limit(model: FakeModel, tmp_path: Path, calls_on: Callable[[Bench], Bench]) -> None:
    bomb = Reply(gzip.compress(b" " * 50_000_000), headers={"Content-Encoding": "gzip"})
    model.answer = poison("text 7", bomb)
    bench = calls_on(Bench(tmp_path, model.url, rows=30, settings=Settings(max_reply_bytes=1_000_000)))
    bench.one()
    assert bench.responses()["k7"]["error"] == "too_large"


def test_a_dripping_answer_ends_at_the_deadline(
    model: FakeModel, tmp_path: Path, calls_on: Callable[[Bench], Bench]
) -> None:
    model.answer = poison("text 7", Reply({"label": "cat"}, drip_s=0.1))
    bench = calls_on(Bench(tmp_path, model.url, rows=30))
    bench.model(timeout_s=0.5, max_attempts=2)
    bench.one()
    assert bench.responses()["k7"]["error"] == "timeout"


def test_F039_an_outage_charges_no_row(model: FakeModel, tmp_path: Path, ledger_at: str) -> None:
    """Every request fails for a while; with attempts counted per row, all rows in flight would be given up."""

    down_from: list[float] = []

    def answer(request: Request) -> Reply:
        if len(model.requests) == 20:
            down_from.append(request.at)
        return Reply(status=500) if down_from and request.at < down_from[0] + 1.5 else CAT

    model.answer = answer
    bench = Bench(tmp_path, model.url, rows=60, ledger=ledger_at)
    bench.model(max_concurrency=8, max_attempts=2)
    report = bench.one()
    assert (report.ok, report.failed) == (60, 0)


def test_an_unreadable_row_is_not_sent_and_the_rest_goes_on(model: FakeModel, tmp_path: Path) -> None:
    bench = Bench(tmp_path, model.url)
    bench.load([f"text {i}" for i in range(5)] + ["http://127.0.0.1:9/private"])
    report = bench.one()
    assert (report.ok, report.not_sent, report.failure) == (5, 1, None)
    assert bench.responses()["k5"]["error"] == "row_forbidden"


def test_the_secret_is_sent_and_is_nowhere_else(
    model: FakeModel, tmp_path: Path, calls_on: Callable[[Bench], Bench]
) -> None:
    def echo(request: Request) -> Reply:
        said = {"error": f"bad {request.headers['authorization']}"}
        return Reply(said, status=422) if request.text == "text 2" else Reply({"summary": str(request.headers)})

    model.answer = echo
    bench = calls_on(Bench(tmp_path, model.url, environ={"MODEL_KEY": "s3cr3t-canary-value"}))
    bench.model(secret=SecretRef("MODEL_KEY"))
    bench.one()
    assert {r.headers["authorization"] for r in model.requests} == {"Bearer s3cr3t-canary-value"}
    for file in tmp_path.rglob("*"):
        assert not file.is_file() or b"s3cr3t-canary-value" not in file.read_bytes(), file
    assert "s3cr3t" not in json.dumps(list(bench.responses().values()), default=str)


def test_a_secret_that_is_echoed_is_in_no_message_and_in_no_ledger_that_stays(
    model: FakeModel, tmp_path: Path, ledger_at: str
) -> None:
    def echo(request: Request) -> Reply:
        said = request.headers["authorization"].replace("/", "\\/")
        raw = f'{{"error": "bad {said}"}}'.encode()
        return (
            Reply(raw, status=401) if len(model.requests) > 6 else Reply({"summary": request.headers["authorization"]})
        )

    model.answer = echo
    bench = Bench(tmp_path, model.url, rows=30, environ={"MODEL_KEY": "s3cr3t/canary/value"}, ledger=ledger_at)
    bench.model(secret=SecretRef("MODEL_KEY"), max_concurrency=1)
    report = bench.one()
    assert "auth: " in str(report.failure)
    assert "s3cr3t" not in str(report)
    (pending,) = bench.pending()
    assert pending.outcomes, "a stopped slice keeps its ledger"
    for file in (file for file in (tmp_path / "ledger").rglob("*") if file.is_file()):
        assert b"s3cr3t" not in file.read_bytes(), file
    kept = [answer.reply for answer in bench.kept_answers()]
    assert len(kept) == 6
    assert all(b"s3cr3t" not in (reply or b"") for reply in kept)


def test_auth_can_be_a_header_of_its_own(model: FakeModel, tmp_path: Path) -> None:
    bench = Bench(tmp_path, model.url, rows=1, environ={"K": "value-of-key"})
    bench.model(secret=SecretRef("K"), auth=Auth("header", "X-Api-Key"))
    bench.one()
    assert model.requests[0].headers["x-api-key"] == "value-of-key"


def test_a_secret_that_is_not_set_is_said_before_anything_is_sent(model: FakeModel, tmp_path: Path) -> None:
    bench = Bench(tmp_path, model.url)
    bench.model(secret=SecretRef("NOT_SET"))
    with pytest.raises(ConfigError, match="NOT_SET"):
        bench.one()
    assert model.requests == []


def test_max_concurrency_requests_are_in_flight_at_once(model: FakeModel, tmp_path: Path) -> None:
    model.answer = lambda _: replace(CAT, delay_s=0.3)
    bench = Bench(tmp_path, model.url, rows=12)
    bench.model(max_concurrency=4)
    bench.one()
    assert model.most_in_flight == 4


def test_the_rate_holds_over_two_runs_at_once(model: FakeModel, tmp_path: Path, ledger_at: str) -> None:
    benches = []
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        bench = Bench(tmp_path / name, model.url, rows=40, ledger=ledger_at)
        bench.model(requests_per_second=30.0)
        bench.run = replace(bench.run, name=name)
        benches.append(bench)
    threads = [threading.Thread(target=bench.one) for bench in benches]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(model.requests) == 80
    most = windows([request.at for request in model.requests])
    assert most <= 40, "each run alone may send 30 a second; a busy machine bunches arrivals, two rates would be 60"


def test_F116_two_runs_of_one_slice_at_once_pay_once(model: FakeModel, tmp_path: Path, ledger_at: str) -> None:
    model.answer = lambda _: replace(CAT, delay_s=0.05)
    bench = Bench(tmp_path, model.url, rows=30, ledger=ledger_at)
    reports = []
    threads = [threading.Thread(target=lambda: reports.append(bench.one())) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted((r.calls, r.reused, r.failure) for r in reports) == [(0, 30, None), (30, 0, None)]
    assert len(model.requests) == 30


def test_leaving_early_brings_home_what_is_in_flight(model: FakeModel, tmp_path: Path, ledger_at: str) -> None:
    model.answer = lambda _: replace(CAT, delay_s=0.2)
    bench = Bench(tmp_path, model.url, rows=40, ledger=ledger_at)
    bench.model(max_concurrency=4)
    with bench.invoker() as invoker:
        reports = invoker.invoke(["00000"])
        threading.Timer(0.5, invoker.stop).start()
        (report,) = reports
    assert report.failure is not None
    assert report.failure.startswith("cancelled")
    asked = len(model.requests)
    assert 0 < asked < 40
    assert bench.one().calls == 40 - asked


_CHILD = """
import sys
from pathlib import Path
sys.path[:0] = [{tests!r}, {checkout!r}]
from tests.invoking import Bench
bench = Bench.__new__(Bench)
Bench.__init__(bench, Path({root!r}), {url!r}, rows=200, ledger={ledger!r})
bench.model(max_concurrency=8, requests_per_second=200.0)
print(bench.one().failure)
"""


def test_F096_kill_9_in_the_middle_repeats_at_most_what_was_in_flight(
    model: FakeModel, tmp_path: Path, ledger_at: str
) -> None:
    """Three kills over a slice of 200 rows; the server's own log is the judge."""
    model.answer = lambda r: Reply({"summary": r.text}, delay_s=0.05)
    here = Path(__file__).parent
    child = _CHILD.format(
        tests=str(here), checkout=str(here.parent), root=str(tmp_path), url=model.url, ledger=ledger_at
    )
    for kill_at in (40, 90, 140):
        process = subprocess.Popen([sys.executable, "-c", child])
        while len(model.requests) < kill_at and process.poll() is None:
            time.sleep(0.005)
        process.send_signal(signal.SIGKILL)
        assert process.wait() == -signal.SIGKILL
        time.sleep(0.1)
    bench = Bench(tmp_path, model.url, rows=200, ledger=ledger_at)
    report = bench.one()
    assert report.failure is None
    answered = bench.responses()
    assert len(answered) == 200
    assert all(json.loads(r["reply"])["summary"] == f"text {k[1:]}" for k, r in answered.items())
    asked = Counter(request.key for request in model.requests)
    assert len(asked) == 200
    assert sum(asked.values()) - 200 <= 3 * 8
    assert report.repeated <= 8
