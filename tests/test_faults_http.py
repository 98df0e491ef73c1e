"""Faults F025 to F051 of docs/reliability.md: what an endpoint's status, headers and body say. Hours of outages are in
test_faults_outages.py."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from itertools import count
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from foundry_pipeline.calls.ledger import Intent, Ledger
from foundry_pipeline.calls.verdicts import LONGEST_WAIT_S, asked_wait_s
from foundry_pipeline.config.secrets import Secret
from foundry_pipeline.data_rows import rows_of
from foundry_pipeline.invoke import CallOptions
from foundry_pipeline.manifest import SecretRef
from foundry_pipeline.protocols.foundry import FoundryRequests
from foundry_pipeline.tables import DATA_ROWS
from tests.decoding import decode, rejected
from tests.fake_model import FakeModel, Reply, Request
from tests.invoking import Bench
from tests.misbehaving import CAT, MOST_ATTEMPTS, Misbehaved, misbehave

PAGE = b"<!DOCTYPE html>\n<html><head><title>Log in</title></head><body>Please log in</body></html>"
REFUSED = (400, 404, 405, 406, 410, 411, 413, 415, 422)
SENT_AGAIN = (408, 409, 421, 425, 500, 501, 999)
ERRORS = {
    "error": {"error": "CUDA out of memory"},
    "error beside other keys": {"error": {"message": "CUDA out of memory"}, "timestamp": 1, "path": "/predict"},
    "detail": {"detail": [{"msg": "CUDA out of memory"}]},
    "status": {"status": "failed", "message": "CUDA out of memory"},
    "code": {"code": 500, "message": "CUDA out of memory", "data": None},
}
REFUSALS = {
    "success": ({"success": False, "error": {"code": "INVALID_IMAGE"}}, "model_error", "INVALID_IMAGE"),
    "refusal": ({"refusal": "I will not look at this"}, "refusal", "I will not look at this"),
}
READ = {
    "as plain text": Reply({"label": "cat"}, headers={"Content-Type": "text/plain"}),
    "as a page": Reply({"label": "cat"}, headers={"Content-Type": "text/html"}),
    "as nothing": Reply(raw=b'HTTP/1.1 200 OK\r\nContent-Length: 16\r\n\r\n{"label": "cat"}'),
    "with a mark": Reply(b'\xef\xbb\xbf{"label": "cat"}'),
    "created": Reply({"label": "cat"}, status=201),
    "utf-16": Reply('{"label": "cat"}'.encode("utf-16"), headers={"Content-Type": "application/json; charset=utf-16"}),
    "unknown": Reply(b'{"label": "cat"}', headers={"Content-Type": "application/json; charset=klingon"}),
    "latin-1": Reply('{"summary": "é"}'.encode("latin-1"), headers={"Content-Type": 'text/json; charset="latin-1"'}),
}
UNREADABLE = {
    "latin-1 unsaid": Reply('{"summary": "é"}'.encode("latin-1")),
    "utf-16 unsaid": Reply('{"label": "cat"}'.encode("utf-16")),
    "another charset": Reply(b"\xff{}", headers={"Content-Type": "application/json; charset=ascii"}),
    "no charset": Reply(b'{"label": "cat"}', headers={"Content-Type": "application/json; charset=undefined"}),
}
FAULTS = {
    **{f"refused {status}": Reply({"detail": "cannot read this"}, status=status) for status in REFUSED},
    **{f"again {status}": Reply({"error": "not now"}, status=status) for status in SENT_AGAIN},
    **{f"odd {status}": Reply({"label": "cat"}, status=status) for status in (203, 205, 206, 226)},
    "no number": Reply(raw=b"HTTP/1.1 two OK\r\nContent-Length: 2\r\n\r\n{}"),
    "a page": Reply(PAGE, headers={"Content-Type": "text/html"}),
    "a page that says it is json": Reply(PAGE),
    "text in a page": Reply(b"Service is up", headers={"Content-Type": "text/html; charset=utf-8"}),
    "nothing": Reply(b""),
    "white space": Reply(b" \r\n"),
    "no content": Reply(raw=b"HTTP/1.1 204 No Content\r\n\r\n"),
    "cut": Reply(b'{"label": "ca'),
    "empty object": Reply({}),
    "empty list": Reply([]),
    **{f"error {name}": Reply(body) for name, body in ERRORS.items()},
    **{f"refusal {name}": Reply(body) for name, (body, _, _) in REFUSALS.items()},
    **{f"read {name}": reply for name, reply in READ.items()},
    **{f"unreadable {name}": reply for name, reply in UNREADABLE.items()},
}


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Misbehaved:
    return misbehave(tmp_path_factory.mktemp("http"), FAULTS)


@pytest.fixture
def model() -> Iterator[FakeModel]:
    with FakeModel(lambda _: CAT) as served:
        yield served


def test_no_odd_response_costs_another_row(run: Misbehaved) -> None:
    assert {seen.outcome for seen in run.fine} == {("ok", None)}
    assert {len(seen.requests) for seen in run.fine} == {1}


# Outcomes are different things


def test_the_six_outcomes_are_told_apart(run: Misbehaved, tmp_path: Path) -> None:
    """Answered, answered with nothing, refused for this row, given up, outcome unknown (repeated), not sent."""

    def outcome(name: str) -> Any:
        return run[name].outcome, run[name].reply

    assert outcome("read with a mark") == (("ok", None), '{"label": "cat"}')
    assert outcome("empty object") == (("ok", None), "{}")
    assert outcome("empty list") == (("ok", None), "[]")
    assert outcome("refused 422") == (("rejected_by_model", "http_422"), None)
    assert outcome("again 500") == (("failed", "http_500"), None)
    assert run.report.empty == 0, "counted at the commit alone"


def test_a_row_without_content_is_not_sent_and_one_of_unknown_outcome_is_counted(
    model: FakeModel, tmp_path: Path
) -> None:
    bench = Bench(tmp_path, model.url)
    bench.load(["text 0", "text 1", "http://127.0.0.1:9/private"])
    in_flight = FoundryRequests(bench.run).call_id(next(rows_of(bench.store.read(DATA_ROWS, "ds", "00000"))))
    asyncio.run(die_with_a_call_in_flight(tmp_path / "ledger/r/00000.sqlite", in_flight))
    report = bench.one()
    assert (report.ok, report.not_sent, report.repeated, report.calls) == (2, 1, 1, 2)
    assert [row["outcome"] for row in bench.responses().values()] == ["ok", "ok", "not_sent"]
    assert bench.responses()["k2"]["error"] == "row_forbidden"


async def die_with_a_call_in_flight(path: Path, call_id: str) -> None:
    """What a process that is killed while it waits for an answer leaves behind."""
    ledger = Ledger(path)
    await ledger.write(Intent(call_id, "k0", 0))
    ledger.close()


def test_no_body_of_another_status_is_an_answer(run: Misbehaved) -> None:
    """`odd` rows brought a perfect body with a status that promises none."""
    for name, seen in run.rows.items():
        if seen.outcome[0] == "ok":
            assert seen.response["http_status"] in (200, 201), name
        elif seen.response["http_status"] not in (200, 201):
            assert seen.reply is None, name


def test_a_failed_row_never_looks_like_an_empty_one(run: Misbehaved) -> None:
    failed = [seen for seen in run.rows.values() if seen.outcome[0] != "ok"]
    assert len(failed) > 30
    assert all(seen.reply not in ("{}", "[]", "null") and seen.outcome[1] and seen.message for seen in failed)


# Statuses


@pytest.mark.parametrize("status", REFUSED)
def test_F025_a_refusal_of_one_row_is_the_models_word_on_it(run: Misbehaved, status: int) -> None:
    assert run[f"refused {status}"].refused(f"http_{status}", f"{status} cannot read this")
    assert run[f"refused {status}"].attempts[0]["evidence"] == b'{"detail": "cannot read this"}'


@pytest.mark.parametrize("status", [400, 415, 422])
def test_F026_the_same_refusal_of_the_first_five_rows_stops_and_blames_none(
    model: FakeModel, tmp_path: Path, status: int
) -> None:
    model.answer = lambda _: Reply({"detail": "wrong shape"}, status=status)
    bench = Bench(tmp_path, model.url, rows=50)
    report = bench.one()
    assert str(report.failure).startswith(
        f"http_{status}: the endpoint answered none of the first 5 rows: {status} wrong shape"
    )
    assert (report.rejected_by_model, report.not_sent, bench.responses()) == (0, 50, {})
    model.answer = lambda _: CAT
    assert bench.one().ok == 50


@pytest.mark.parametrize("status", [404, 405, 410])
def test_F026_a_url_that_is_no_model_stops_at_the_first_row(model: FakeModel, tmp_path: Path, status: int) -> None:
    model.answer = lambda _: Reply({"detail": "Not Found"}, status=status)
    bench = Bench(tmp_path, model.url, rows=50)
    bench.model(max_concurrency=2)
    says = f"http_{status}: there is no model at this URL: {status} Not Found; check inference_endpoint"
    assert str(bench.one().failure).startswith(says)
    assert len(model.requests) <= 2


def test_F026_few_rows_that_are_all_refused_are_verdicts(model: FakeModel, tmp_path: Path) -> None:
    model.answer = lambda _: Reply({"detail": "no"}, status=422)
    report = Bench(tmp_path, model.url, rows=3).one()
    assert (report.rejected_by_model, report.failure) == (3, None)


@pytest.mark.parametrize("status", [401, 403])
@pytest.mark.parametrize(
    ("secret", "says"),
    [
        (SecretRef("MODEL_KEY"), "the secret came from MODEL_KEY"),
        (SecretRef(None, Secret("s3cr3t-value")), "the secret came from m.yaml"),
        (None, "m.yaml names no secret"),
    ],
)
def test_F027_refused_credentials_stop_and_say_where_they_came_from(
    model: FakeModel, tmp_path: Path, status: int, secret: SecretRef | None, says: str
) -> None:
    model.answer = lambda request: Reply({"error": f"bad key {request.headers.get('authorization')}"}, status=status)
    bench = Bench(tmp_path, model.url, rows=100, environ={"MODEL_KEY": "s3cr3t-value"})
    bench.model(max_concurrency=2, secret=secret)
    report = bench.one()
    assert str(report.failure).startswith("auth: the endpoint refuses the credentials")
    assert says in str(report.failure)
    assert "s3cr3t" not in str(report)
    assert len(model.requests) <= 4


def test_F027_after_the_key_is_replaced_the_run_goes_on_where_it_was(model: FakeModel, tmp_path: Path) -> None:
    def answer(request: Request) -> Reply:
        return CAT if len(model.requests) <= 20 or "new-key" in request.headers["authorization"] else Reply(status=401)

    model.answer = answer
    bench = Bench(tmp_path, model.url, rows=60, environ={"MODEL_KEY": "old-key"})
    bench.model(max_concurrency=2, secret=SecretRef("MODEL_KEY"))
    assert "20 of 60 rows have their answer, kept in the ledger and not asked again" in str(bench.one().failure)
    bench.environ = {"MODEL_KEY": "new-key"}
    report = bench.one()
    assert (report.failure, report.ok, report.calls) == (None, 60, 40)


QUOTA = {"error": {"code": "insufficient_quota", "message": "You exceeded your current quota, check your plan"}}


@pytest.mark.parametrize("reply", [Reply(QUOTA, status=402), Reply(QUOTA, status=429), Reply(QUOTA)])
def test_F028_a_used_up_quota_stops_and_is_not_waited_for(model: FakeModel, tmp_path: Path, reply: Reply) -> None:
    model.answer = lambda _: reply
    bench = Bench(tmp_path, model.url, rows=100)
    bench.model(max_concurrency=2)
    report = bench.one()
    assert str(report.failure).startswith("quota: the quota is used up: ")
    assert "check your plan" in str(report.failure)
    assert len(model.requests) <= 4


@pytest.mark.parametrize("status", [408, 421, 425])
def test_F029_what_may_pass_is_sent_again(run: Misbehaved, status: int) -> None:
    assert run[f"again {status}"].failed(f"http_{status}", MOST_ATTEMPTS, f"{status} not now")


def test_F030_a_key_in_use_is_sent_again_with_the_same_key(run: Misbehaved) -> None:
    assert run["again 409"].failed("http_409", MOST_ATTEMPTS, "409 not now")


def test_F031_a_row_that_is_too_large_is_refused_and_never_resized(run: Misbehaved) -> None:
    assert run["refused 413"].refused("http_413", "the row is more than the endpoint takes, and is never resized")


def test_F032_429_retry_after_holds_every_worker(model: FakeModel, tmp_path: Path) -> None:
    def answer(_: Request) -> Reply:
        return Reply(status=429, headers={"Retry-After": "2"}) if len(model.requests) == 5 else CAT

    model.answer = answer
    bench = Bench(tmp_path, model.url, rows=20)
    bench.model(max_concurrency=1, max_attempts=1)
    notes, report = bench.watched()
    assert report.ok == 20
    assert model.requests[5].at - model.requests[4].at >= 2.0
    assert any(note.startswith("held by the endpoint until ") for note in notes)


@given(
    st.text(max_size=30) | st.integers(-5, 10**12).map(str) | st.sampled_from(["7, 7", "1e9", "-1", "abc", "٣", "7s"])
)
@settings(max_examples=150, deadline=None)
def test_F035_any_retry_after_is_a_wait_within_bounds_or_none(said: str) -> None:
    wait_s = asked_wait_s({"retry-after": said})
    assert wait_s is None or 0 <= wait_s <= LONGEST_WAIT_S


@pytest.mark.parametrize(
    ("said", "wait_s"), [("-1", None), ("abc", None), ("7, 7", None), ("", None), ("99999999", 3600.0), ("0", 0.0)]
)
def test_F035_nonsense_counts_as_absent_and_too_much_is_an_hour(said: str, wait_s: float | None) -> None:
    assert asked_wait_s({"retry-after": said}) == wait_s


@pytest.mark.parametrize("ours_off_h", [-5, 0, 5])
def test_F034_a_date_is_read_against_the_answers_own(ours_off_h: int) -> None:
    """However wrong our clock is: only the difference of the endpoint's two times counts."""
    date = f"Wed, 21 Oct 2015 {12 + ours_off_h:02}:28:00 GMT"
    until = f"Wed, 21 Oct 2015 {12 + ours_off_h:02}:28:30 GMT"
    assert asked_wait_s({"retry-after": until, "date": date}) == 30
    assert asked_wait_s({"retry-after": date, "date": until}) == 0
    assert asked_wait_s({"retry-after": "Wed, 21 Oct 2065 07:28:00 GMT", "date": date}) == 3600
    assert asked_wait_s({"retry-after": date}) == 0, "without a Date, against our own clock"


def test_F037_a_poison_row_has_its_attempts_and_is_given_up(run: Misbehaved) -> None:
    assert run["again 500"].failed("http_500", MOST_ATTEMPTS, "500 not now")


# What a 200 may be


@pytest.mark.parametrize("fault", ["a page", "a page that says it is json"])
def test_F041_a_web_page_is_sent_again_twice_and_is_no_answer(run: Misbehaved, fault: str) -> None:
    says = "a web page instead of an answer: <!DOCTYPE html> <html><head><title>Log in</title>"
    assert run[fault].failed("not_json", 3, says)
    assert run[fault].reply == PAGE.decode(), "kept for people to look at"


def test_F041_text_that_calls_itself_a_page_is_one(run: Misbehaved) -> None:
    assert run["text in a page"].failed("not_json", 3, "a web page instead of an answer: Service is up")


def test_F041_a_page_for_the_first_five_rows_stops(model: FakeModel, tmp_path: Path) -> None:
    model.answer = lambda _: FAULTS["a page"]
    report = Bench(tmp_path, model.url, rows=20).one()
    says = "not_json: the endpoint answered none of the first 5 rows: a web page instead of an answer"
    assert str(report.failure).startswith(says)
    assert (report.failed, report.not_sent) == (0, 20)


def test_F041_cut_json_is_no_answer_although_the_model_may_write_text(run: Misbehaved) -> None:
    assert run["cut"].failed("not_json", 3, 'neither JSON nor an expected text: {"label": "ca')


@pytest.mark.parametrize("name", ERRORS)
def test_F042_a_200_that_says_error_is_sent_again_twice(run: Misbehaved, name: str) -> None:
    assert run[f"error {name}"].failed("model_error", 3, "CUDA out of memory")


@pytest.mark.parametrize("name", REFUSALS)
def test_F042_a_200_that_refuses_is_not_sent_again(run: Misbehaved, name: str) -> None:
    _, code, says = REFUSALS[name]
    assert run[f"refusal {name}"].refused(code, says)


@pytest.mark.parametrize("fault", ["nothing", "white space", "no content"])
def test_F043_zero_bytes_are_no_empty_answer(run: Misbehaved, fault: str) -> None:
    assert run[fault].failed("empty_body", 2, "without a body is no answer")


def test_F044_an_asynchronous_endpoint_stops_the_run(model: FakeModel, tmp_path: Path) -> None:
    model.answer = lambda _: Reply({"id": "job-1"}, status=202, headers={"Location": "/jobs/1"})
    report = Bench(tmp_path, model.url).one()
    says = "http_202: the endpoint answers asynchronously (202), and polling is not supported"
    assert str(report.failure).startswith(says)
    assert report.not_sent == 6


@pytest.mark.parametrize("status", [203, 205, 206, 226])
def test_F045_another_success_than_200_is_no_answer_however_good_its_body(run: Misbehaved, status: int) -> None:
    assert run[f"odd {status}"].failed(f"http_{status}", 1, f"unexpected status {status}")


def test_F045_a_flood_of_interim_responses_ends(tmp_path: Path) -> None:
    flood = Reply(raw=b"", endless=b"HTTP/1.1 100 Continue\r\n\r\n" * 100)
    run = misbehave(tmp_path, {"flood": flood}, max_attempts=1, timeout_s=1.0)
    assert run["flood"].failed("connection", 1, "the headers are too long")


@pytest.mark.parametrize("status", [301, 302, 303, 307, 308])
def test_F046_a_redirect_is_never_followed_and_its_target_hears_nothing(
    model: FakeModel, tmp_path: Path, status: int
) -> None:
    with FakeModel(lambda _: CAT) as elsewhere:
        place = elsewhere.url.replace("http://", "http://user:pw@") + "?signature=s3cr3t"
        model.answer = lambda _: Reply(status=status, headers={"Location": place})
        bench = Bench(tmp_path, model.url, environ={"MODEL_KEY": "s3cr3t-value"})
        bench.model(secret=SecretRef("MODEL_KEY"), max_concurrency=1)
        report = bench.one()
    assert elsewhere.requests == []
    assert len(model.requests) == 1
    assert str(report.failure).startswith(f"redirect: the endpoint redirects ({status}) to host 127.0.0.1:")
    assert "put that URL into the manifest" in str(report.failure)
    assert not any(part in str(report) for part in ("s3cr3t", "user", "pw"))


def test_F047_a_status_beyond_http_is_sent_again(run: Misbehaved) -> None:
    assert run["again 999"].failed("http_999", MOST_ATTEMPTS, "999 not now")
    assert run["no number"].failed("connection", MOST_ATTEMPTS, "the endpoint does not speak HTTP")


@pytest.mark.parametrize("name", ["as plain text", "as a page", "as nothing", "created"])
def test_F048_json_is_an_answer_whatever_it_calls_itself(run: Misbehaved, name: str) -> None:
    assert (run[f"read {name}"].outcome, run[f"read {name}"].reply) == (("ok", None), '{"label": "cat"}')


@pytest.mark.parametrize(
    ("name", "reply"),
    [
        ("with a mark", '{"label": "cat"}'),
        ("unknown", '{"label": "cat"}'),
        ("utf-16", '{"label": "cat"}'),
        ("latin-1", '{"summary": "é"}'),
    ],
)
def test_F049_a_charset_is_read_where_the_header_names_it(run: Misbehaved, name: str, reply: str) -> None:
    assert (run[f"read {name}"].outcome, run[f"read {name}"].reply) == (("ok", None), reply)


@pytest.mark.parametrize(
    ("name", "says", "kept"),
    [
        ("latin-1 unsaid", "in position 13", '{"summary": "\\xe9"}'),
        ("utf-16 unsaid", "in position 0", "\\xff\\xfe{\0"),
        ("another charset", "in position 0", "\\xff{}"),
        ("no charset", "undefined encoding", '{"label": "cat"}'),
    ],
)
def test_F049_bytes_that_are_no_text_are_kept_escaped_and_not_asked_for_again(
    run: Misbehaved, name: str, says: str, kept: str
) -> None:
    row = run[f"unreadable {name}"]
    assert row.failed("not_json", 1, says)
    assert row.message.startswith("no readable text: ")
    assert (row.reply or "").startswith(kept)


def test_F050_an_answer_for_another_text_shows_in_its_entities() -> None:
    """Nothing in HTTP says whose an answer is; the connection is watched (F011), and entities quote their text."""
    said = {"person": [{"start": 0, "end": 3, "text": "Tom"}]}
    tables = decode(said, media_type="text", text="Ann lives in Paris")
    assert tables["entities"] == []
    assert rejected(tables) == [("$.person[0]", "span_mismatch")]


def test_F051_of_a_model_that_never_says_the_same_twice_the_first_durable_answer_stays(
    model: FakeModel, tmp_path: Path
) -> None:
    numbers = count()
    model.answer = lambda request: Reply({"summary": f"{request.text}, {next(numbers)}"}, delay_s=0.02)
    bench = Bench(tmp_path, model.url, rows=40)
    bench.model(max_concurrency=4)
    assert bench.stop_when(lambda: len(model.requests) >= 15).failure is not None
    kept = bench.kept()
    assert 10 < len(kept) < 40
    assert bench.one().failure is None
    replies = {key: row["reply"] for key, row in bench.responses().items()}
    assert len(replies) == 40
    assert {key: replies[key] for key in kept} == kept
    assert bench.one(CallOptions()).calls == 0
