"""Limits and outages, which take hours, on a clock that jumps (virtual_time.py): no healthy row is given up, every run
ends, and an endpoint that is down is left alone. Faults F032, F033, F036, F038 to F041 of docs/reliability.md."""

from __future__ import annotations

import random
from collections.abc import Callable
from itertools import pairwise

import httpx
import pytest

from tests.virtual_time import Outcome, Sent, simulate

PATIENT = {"endpoint_patience_s": 6 * 3600.0, "preflight_patience_s": 6 * 3600.0, "refused_patience_s": 6 * 3600.0}
TWO_HOURS = (30.0, 7230.0)


def response(status: int, body: bytes = b"{}", **headers: str) -> httpx.Response:
    return httpx.Response(
        status, content=body, headers={name.replace("_", "-"): text for name, text in headers.items()}
    )


def gaps_s(outcome: Outcome) -> list[float]:
    return [later.at - earlier.at for earlier, later in pairwise(outcome.sent)]


# Limits


def test_F032_429_retry_after_holds_everybody_for_its_seven_seconds() -> None:
    """Some are in flight when the first refusal comes; nothing else is sent before the seven seconds are over."""

    def endpoint(sent: Sent) -> httpx.Response | int:
        return response(429, retry_after="7") if 5.0 <= sent.at < 5.2 else 200

    outcome = simulate(endpoint, rows=100, latency_s=0.5, max_concurrency=8, max_attempts=1)
    assert outcome.rows("ok") == set(range(100))
    refused = outcome.attempts("http_429")
    assert 1 <= refused <= 3
    assert max(gaps_s(outcome)) >= 6.3
    assert not [sent for sent in outcome.sent if 5.3 < sent.at < 12.0]


def test_F033_429_alone_halves_the_pace_and_time_brings_it_back() -> None:
    outcome = simulate(lambda sent: 429 if 20 <= sent.at < 21 else 200, rows=900, max_attempts=1)
    assert outcome.rows("ok") == set(range(900))
    before, after, later = (sum(1 for sent in outcome.sent if begin <= sent.at < begin + 10) for begin in (10, 21, 75))
    assert before >= 98
    assert after <= 0.66 * before
    assert later >= 98


def test_F033_an_endpoint_that_says_429_for_long_gets_a_tenth_of_the_rate_and_no_row_is_charged() -> None:
    outcome = simulate(lambda sent: 429 if 10 <= sent.at < 910 else 200, rows=200, max_attempts=1, **PATIENT)
    assert outcome.rows("ok") == set(range(200))
    assert outcome.refused <= 0.15 * 10 * 900
    assert outcome.seconds < 910 + 300


@pytest.mark.parametrize("limit", [429, response(429, retry_after="5"), response(503, retry_after="5")])
def test_F033_a_limit_that_one_row_alone_meets_is_that_rows(limit: httpx.Response | int) -> None:
    """Some endpoints answer a request that is larger than a minute's quota with 429: it would be tried for ever."""
    outcome = simulate(lambda sent: limit if sent.row == 7 and not sent.is_probe else 200, rows=100)
    assert outcome.rows("failed") == {7}
    assert outcome.rows("ok") == set(range(100)) - {7}
    assert outcome.refused <= 40


@pytest.mark.parametrize("every", [5, 20, 21])
def test_F033_a_limit_that_lets_few_through_is_no_rows_fault(every: int) -> None:
    """One request in so many is taken, whatever it is: rows fail often, and all are answered in the end."""
    taken = [0]

    def endpoint(_: Sent) -> int:
        taken[0] += 1
        return 200 if taken[0] % every == 0 else 429

    outcome = simulate(endpoint, rows=60, max_attempts=1, **PATIENT)
    assert outcome.rows("ok") == set(range(60))


def test_F036_a_rate_limit_header_with_nothing_left_is_a_hint_to_everybody() -> None:
    def endpoint(sent: Sent) -> httpx.Response:
        return response(200, ratelimit='"minute";r=0;t=30') if 4.9 < sent.at < 5.05 else response(200)

    outcome = simulate(endpoint, rows=100)
    assert outcome.refused == 0
    assert 29 <= max(gaps_s(outcome)) <= 31


# Cold starts and outages


def test_F038_a_model_that_loads_is_waited_for_as_long_as_it_says() -> None:
    def endpoint(sent: Sent) -> httpx.Response | int:
        loading = b'{"error": "Model is loading", "estimated_time": 20.0}'
        return response(503, loading) if sent.at < 60 else 200

    outcome = simulate(endpoint, rows=50, max_attempts=1)
    assert outcome.rows("ok") == set(range(50))
    assert outcome.refused <= 8, "each of the first few hears the estimate and waits"
    assert all("Model is loading" in note for note in outcome.notes)


@pytest.mark.parametrize("status", [502, 503, 504, 529])
def test_F038_a_cold_start_without_an_estimate_charges_no_row(status: int) -> None:
    outcome = simulate(lambda sent: status if sent.at < 300 else 200, rows=50, max_attempts=1)
    assert outcome.rows("ok") == set(range(50))
    assert outcome.refused < 100
    assert outcome.seconds < 300 + 120


def test_F038_a_model_that_never_comes_up_ends_the_run_after_its_patience() -> None:
    outcome = simulate(lambda _: 503, rows=50)
    (said,) = outcome.stopped
    assert said.startswith("endpoint_down: no answer for 60")
    assert 600 < outcome.seconds < 700
    assert not outcome.rows("failed")


def down(kind: str) -> int:
    if kind == "refused":
        raise httpx.ConnectError("All connection attempts failed")
    if kind == "silent":
        raise httpx.ReadTimeout("")
    if kind == "reset":
        raise httpx.ReadError("")
    if kind == "closed":
        raise httpx.RemoteProtocolError("Server disconnected without sending a response.")
    return int(kind)


@pytest.mark.parametrize("kind", ["refused", "500"])
def test_F039_two_hours_down_cost_no_healthy_row_and_few_requests(kind: str) -> None:
    """2 % of the rows are poison: they alone are given up, each with its attempts."""
    poison = set(range(7, 350, 50))

    def endpoint(sent: Sent) -> int:
        if TWO_HOURS[0] <= sent.at < TWO_HOURS[1]:
            return down(kind)
        return 500 if sent.row in poison else 200

    outcome = simulate(endpoint, rows=350, max_concurrency=2, **PATIENT)
    assert outcome.rows("failed") == poison
    assert outcome.rows("ok") == set(range(350)) - poison
    assert all(8 <= outcome.ledger.attempts[f"c{row}"] <= 16 for row in poison), "8 charged, others in the outage"
    in_outage = sum(1 for sent in outcome.sent if TWO_HOURS[0] <= sent.at < TWO_HOURS[1])
    assert in_outage < 400, "a canary each half minute or so, and those that were in flight"
    assert outcome.seconds < TWO_HOURS[1] + 400, "it goes on as soon as it can"


def test_F008_an_endpoint_that_closes_every_connection_is_down_although_the_first_time_is_not_charged() -> None:
    """Were the first time of every row no failure at all, each row would be sent once before anybody noticed."""
    outcome = simulate(lambda sent: down("closed") if 30 <= sent.at < 930 else 200, rows=1000, **PATIENT)
    assert outcome.rows("ok") == set(range(1000))
    assert sum(1 for sent in outcome.sent if 30 <= sent.at < 930) < 120


@pytest.mark.parametrize("kind", ["500", "reset", "closed", "404", "422"])
def test_F026_an_endpoint_that_never_answers_costs_few_requests_however_many_rows_there_are(kind: str) -> None:
    """Until the first answer only a few rows are tried again; the others wait for them."""
    outcome = simulate(lambda _: down(kind), rows=2000)
    (said,) = outcome.stopped
    assert "the first 5 rows" in said or "no model at this URL" in said
    assert len(outcome.sent) < 200
    assert outcome.seconds < 120


def test_F037_a_poison_row_at_the_very_beginning_holds_up_nobody() -> None:
    outcome = simulate(lambda sent: 500 if sent.row == 0 else 200, rows=50, max_concurrency=1)
    assert outcome.rows("ok") == set(range(1, 50))
    assert outcome.rows("failed") == {0}
    assert outcome.sent[1].row == 1


def test_F037_more_poison_rows_at_the_beginning_than_are_tried_at_once_do_not_keep_the_others_waiting_for_ever() -> (
    None
):
    """Each has a code of its own, or five of them would be the endpoint's."""
    codes = dict(enumerate((500, 408, 409, 421, 425, 501, 422)))
    outcome = simulate(lambda sent: codes.get(sent.row, 200), rows=50, max_concurrency=2)
    assert outcome.rows("ok") == set(range(7, 50))
    assert outcome.rows("failed") == set(range(6))
    assert outcome.rows("rejected_by_model") == {6}


def test_F039_more_poison_than_healthy_rows_and_an_outage_end_all_the_same() -> None:
    """What defeats a breaker that probes with the next row in line: it meets poison again and again."""

    def endpoint(sent: Sent) -> int:
        return 500 if 30 <= sent.at < 630 or sent.row % 5 < 3 else 200

    outcome = simulate(endpoint, rows=300, max_concurrency=2, max_attempts=3, **PATIENT)
    assert outcome.rows("failed") == {row for row in range(300) if row % 5 < 3}
    assert len(outcome.rows("ok")) == 120


def test_F039_after_its_patience_the_run_ends_with_what_it_has() -> None:
    outcome = simulate(lambda sent: 502 if sent.at >= 30 else 200, rows=1000, max_concurrency=2)
    (said,) = outcome.stopped
    assert said.startswith("endpoint_down: no answer for 36")
    assert said.endswith("502 {}; run again to go on")
    assert 250 < len(outcome.rows("ok")) < 320
    assert not outcome.rows("failed")
    assert 3600 < outcome.seconds < 3800
    assert any(note.startswith("for ") and note.endswith("502 {}") for note in outcome.notes), "what a person sees"


@pytest.mark.parametrize("seed", range(3))
def test_F039_rows_whose_attempts_are_spent_send_no_canaries_of_their_own(seed: int) -> None:
    """They wait at the breaker like all others: each with its own canary, they sent five a second."""

    def endpoint(sent: Sent) -> int:
        if 21 <= sent.at < 1221:
            return down("silent")
        return 503 if sent.row < 3 and not sent.is_probe else 200

    outcome = simulate(endpoint, rows=60, seed=seed, max_concurrency=8, max_attempts=2, **PATIENT)
    assert outcome.rows("failed") == {0, 1, 2}
    assert sum(1 for sent in outcome.sent if 21 <= sent.at < 1221) < 100


def test_F040_an_endpoint_that_refuses_every_second_request_is_used_at_half_its_rate_and_better() -> None:
    """At 10/s, 5/s could be answered; the rate gives way to refusals, but not to those that come by chance."""
    dice = random.Random(3)
    outcome = simulate(lambda _: 503 if dice.random() < 0.5 else 200, rows=500)
    assert outcome.rows("ok") == set(range(500))
    assert 400 / outcome.answered_at[399] >= 0.4 * 5.0, "the last rows wait for their back-off"


def test_F040_an_endpoint_that_takes_three_a_second_gets_fewer_than_ten() -> None:
    taken: list[float] = []

    def endpoint(sent: Sent) -> int:
        taken[:] = [at for at in taken if at > sent.at - 1.0]
        if len(taken) >= 3:
            return 503
        taken.append(sent.at)
        return 200

    outcome = simulate(endpoint, rows=200)
    assert outcome.rows("ok") == set(range(200))
    assert 160 / outcome.answered_at[159] >= 0.4 * 3.0
    assert len(outcome.sent) / outcome.seconds < 7.5, "no herd"


def test_F041_a_login_page_from_the_middle_of_a_run_is_an_outage_and_blames_no_row() -> None:
    page = response(200, b"<html>Your session has expired</html>", content_type="text/html")
    outcome = simulate(lambda sent: page if sent.at >= 30 else 200, rows=1000, max_concurrency=4)
    assert not outcome.rows("failed")
    (said,) = outcome.stopped
    assert "a web page instead of an answer: <html>Your session has expired</html>" in said


# By chance

OUTAGES = ("refused", "silent", "500", "502", "503", "504", "529", "429")
POISONS: tuple[Callable[[], httpx.Response | int], ...] = (
    lambda: 500,
    lambda: 502,
    lambda: 503,
    lambda: 429,
    lambda: 400,
    lambda: response(200, b""),
    lambda: response(200, b"<html></html>"),
    lambda: down("reset"),
)


@pytest.mark.parametrize("seed", range(8))
def test_whatever_outages_and_poison_rows_come_every_healthy_row_is_answered_and_the_run_ends(seed: int) -> None:
    """Up to three outages of a second to an hour, of any kind; none to 60 % poison rows, of any kind."""
    dice = random.Random(seed)
    rows, at, outages = 150, dice.uniform(0, 10), []
    for _ in range(dice.randint(1, 3)):
        length_s = dice.choice([1, 20, 300, 3000])
        outages.append((at, at + length_s, dice.choice(OUTAGES)))
        at += length_s + dice.uniform(5, 60)
    share = dice.choice([0.0, 0.02, 0.1, 0.3, 0.6])
    poison = {row: dice.choice(POISONS) for row in range(rows) if dice.random() < share}

    def endpoint(sent: Sent) -> httpx.Response | int:
        for begin, end, kind in outages:
            if begin <= sent.at < end:
                return down(kind)
        return poison[sent.row]() if sent.row in poison and not sent.is_probe else 200

    outcome = simulate(endpoint, rows=rows, seed=seed, max_concurrency=3, **PATIENT)
    assert outcome.rows("ok") == set(range(rows)) - set(poison)
    assert outcome.rows("failed") | outcome.rows("rejected_by_model") == set(poison)
    limited_s = sum(end - begin for begin, end, kind in outages if kind == "429")
    down_s = sum(end - begin for begin, end, _ in outages)
    assert outcome.refused <= 25 * len(poison) + 80 * len(outages) + down_s / 20 + 1.5 * limited_s
