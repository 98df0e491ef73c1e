"""What a response says about its row: status first, then what the body is, whatever its Content-Type claims."""

from __future__ import annotations

import json

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from foundry_pipeline.calls.verdicts import Next, asked_wait_s, judge, said_by, spent_until_s

FEATURES = frozenset({"cat", "summary"})


def verdict(status: int, body: object = b"", takes_text: bool = False, **headers: str):  # type: ignore[no-untyped-def]
    raw = body if isinstance(body, bytes) else json.dumps(body).encode()
    named = {name.replace("_", "-"): value for name, value in headers.items()}
    return judge(status, named, raw, features=FEATURES, takes_text=takes_text)


@pytest.mark.parametrize(
    "body",
    [
        {},
        [],
        {"cat": {"boxes": []}},
        None,
        "a plain answer",
        {"cat": None},
        {"nose": {"points": []}},
        [1],
        b'{"cat": NaN}',
    ],
)
def test_any_json_is_an_answer_unless_it_says_error(body: object) -> None:
    assert verdict(200, body).next is Next.KEEP


@pytest.mark.parametrize(
    ("status", "following"),
    [
        (400, Next.REFUSED),
        (413, Next.REFUSED),
        (415, Next.REFUSED),
        (422, Next.REFUSED),
        (404, Next.REFUSED),
        (401, Next.STOP),
        (402, Next.STOP),
        (403, Next.STOP),
        (301, Next.STOP),
        (202, Next.STOP),
        (407, Next.STOP),
        (408, Next.RETRY),
        (409, Next.RETRY),
        (425, Next.RETRY),
        (500, Next.RETRY),
        (999, Next.RETRY),
        (206, Next.RETRY),
        (429, Next.WAIT),
        (502, Next.WAIT),
        (503, Next.WAIT),
        (504, Next.WAIT),
        (529, Next.WAIT),
    ],
)
def test_a_status_that_is_no_success_is_never_an_answer(status: int, following: Next) -> None:
    assert verdict(status, {"cat": {"boxes": []}}).next is following


def test_F028_a_used_up_quota_is_no_rate_limit() -> None:
    assert verdict(429, {"error": {"code": "insufficient_quota"}}).next is Next.STOP
    exceeded = {"error": {"message": "You exceeded your current quota", "code": "insufficient_quota"}}
    assert verdict(429, exceeded).next is Next.STOP
    assert verdict(429, {"error": {"message": "no", "type": "insufficient_quota"}}).next is Next.STOP
    assert verdict(200, exceeded).code == "quota"
    assert verdict(429, {"error": {"code": "rate_limit_exceeded"}}).next is Next.WAIT


def test_a_404_means_a_wrong_url_only_before_the_first_answer() -> None:
    assert verdict(404).before_success
    assert not verdict(422).before_success


@pytest.mark.parametrize(
    ("body", "following"),
    [
        ({"error": "out of memory"}, Next.RETRY),
        ({"detail": "nope"}, Next.RETRY),
        ({"status": "failed"}, Next.RETRY),
        ({"success": False, "error": {"code": "INVALID_IMAGE"}}, Next.REFUSED),
        ({"refusal": "I cannot help with that"}, Next.REFUSED),
        ({"error": None, "cat": {"boxes": []}}, Next.KEEP),
        ({"status": "ok", "data": {}}, Next.KEEP),
    ],
)
def test_F042_a_200_can_be_an_error(body: object, following: Next) -> None:
    assert verdict(200, body).next is following


def test_F042_a_feature_named_like_an_error_is_a_feature() -> None:
    assert judge(200, {}, b'{"error": "typo"}', features={"error"}, takes_text=True).next is Next.KEEP


def test_zero_bytes_are_no_empty_answer() -> None:
    assert verdict(200, b"").code == "empty_body"
    assert verdict(204, b"").code == "empty_body"


def test_F041_a_web_page_is_no_answer_whatever_its_type() -> None:
    page = b"<!DOCTYPE html><html>Log in</html>"
    assert verdict(200, page, takes_text=True, content_type="text/plain").code == "not_json"
    assert verdict(200, b"hello", takes_text=True, content_type="text/html").code == "not_json"


def test_plain_text_is_an_answer_where_the_model_may_write_text() -> None:
    assert verdict(200, b"It is a cat.", takes_text=True, content_type="text/plain").next is Next.KEEP
    assert verdict(200, b"It is a cat.", takes_text=False, content_type="text/plain").code == "not_json"
    assert verdict(200, b'```json\n{"cat": {}}\n```', content_type="text/plain").next is Next.KEEP


def test_cut_json_is_no_text() -> None:
    assert verdict(200, b'{"cat": {"bo', takes_text=True, content_type="application/json").code == "not_json"


def test_F049_a_charset_is_read_from_the_header_and_utf8_may_have_a_mark() -> None:
    assert (
        verdict(200, '{"summary": "é"}'.encode("latin-1"), content_type="application/json; charset=latin-1").next
        is Next.KEEP
    )
    assert verdict(200, b"\xef\xbb\xbf{}").next is Next.KEEP
    assert verdict(200, b'{"summary": "\xe9"}').code == "not_json"


def test_a_body_too_deep_to_parse_is_left_to_the_decoder() -> None:
    assert verdict(200, b"[" * 100_000 + b"]" * 100_000).next is Next.KEEP


@pytest.mark.parametrize(
    ("headers", "wait_s"),
    [
        ({"retry-after": "7"}, 7),
        ({"retry-after": "99999999"}, 3600),
        ({"retry-after": "-1"}, None),
        ({"retry-after": "abc"}, None),
        ({"retry-after": "Wed, 21 Oct 2015 07:28:30 GMT", "date": "Wed, 21 Oct 2015 07:28:00 GMT"}, 30),
        ({"retry-after": "Wed, 21 Oct 2015 07:27:00 GMT", "date": "Wed, 21 Oct 2015 07:28:00 GMT"}, 0),
        ({}, None),
    ],
)
def test_F034_retry_after_comes_in_seconds_or_as_a_date_against_the_answers_own(
    headers: dict[str, str], wait_s: float | None
) -> None:
    assert asked_wait_s(headers) == wait_s


def test_F038_a_loading_models_estimate_is_obeyed() -> None:
    assert verdict(503, {"error": "loading", "estimated_time": 20.0}).hold_s == 20


@pytest.mark.parametrize(
    ("headers", "wait_s"),
    [
        ({"ratelimit": '"default";r=0;t=30'}, 30),
        ({"ratelimit": '"default";r=5;t=30'}, None),
        ({"x-ratelimit-remaining-requests": "0", "x-ratelimit-reset-requests": "6m0s"}, 360),
        ({"x-ratelimit-remaining": "0", "x-ratelimit-reset": "12"}, 12),
        ({"x-ratelimit-remaining": "3", "x-ratelimit-reset": "12"}, None),
    ],
)
def test_F036_spent_requests_are_a_hint_to_wait(headers: dict[str, str], wait_s: float | None) -> None:
    assert spent_until_s(headers) == wait_s


def test_a_message_is_one_short_line_without_codes() -> None:
    said = said_by(b'{"error": "bad\\r\\n\\u001b[31mimage ' + b"QUJD" * 100 + b'"}')
    assert said == "bad [31mimage [long code]"
    assert len(said_by(b"x y " * 5000)) <= 200


@pytest.mark.parametrize(
    ("body", "headers"),
    [
        (b"{}", {"content-type": "application/json; charset=undefined"}),
        (b"+2AA-", {"content-type": "text/plain; charset=utf-7"}),
        (b'{"error":' + b"[" * 990 + b"]" * 990 + b"}", {}),
        (b'{"refusal":' + b"[" * 990 + b"1" + b"]" * 990 + b"}", {}),
        (b'{"estimated_time": 1' + b"0" * 400 + b"}", {}),
        (b'{"cat": ' + b"9" * 5000 + b"}", {}),
        (b"", {"retry-after": "Wed, 21111111111111111111 Oct 2015 07:28:00 GMT"}),
    ],
)
@pytest.mark.parametrize("status", [200, 400, 429, 503])
def test_hostile_responses_are_judged_like_others(body: bytes, headers: dict[str, str], status: int) -> None:
    assert judge(status, headers, body, features=FEATURES, takes_text=True).next in Next


def test_a_number_too_long_for_python_is_the_decoders_business() -> None:
    assert verdict(200, b'{"cat": {"boxes": [[1, 1, 5, ' + b"9" * 5000 + b"]]}}").next is Next.KEEP


@given(
    st.binary(max_size=300),
    st.integers(100, 999),
    st.dictionaries(
        st.sampled_from(["retry-after", "content-type", "ratelimit", "location", "date"]), st.text(max_size=40)
    ),
)
@settings(max_examples=200, deadline=None)
def test_no_response_makes_it_raise(body: bytes, status: int, headers: dict[str, str]) -> None:
    assert judge(status, headers, body, features=FEATURES, takes_text=True).next in Next
