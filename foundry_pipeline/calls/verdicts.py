"""What one HTTP response says about its data row: an answer, a refusal, a reason to try again, or to stop.

Pure functions of status, headers and body. The order matters: status first, then whether there is a body, then what
the body is, whatever its Content-Type claims.
"""

from __future__ import annotations

import codecs
import email.utils
import html
import json
import re
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from enum import Enum

import orjson

MESSAGE_CHARS = 200
LONGEST_WAIT_S = 3600.0


class Next(Enum):
    """What the caller does with a response."""

    KEEP = "an answer: store it"
    REFUSED = "the model's verdict on this row: store the reason, never retry"
    RETRY = "may succeed next time; charged to the row unless the endpoint turns out to be down"
    WAIT = "the endpoint's fault, not the row's: wait and try again"
    STOP = "no request can succeed: stop sending"


@dataclass(frozen=True, slots=True)
class Verdict:
    """`resends` bounds how often this very fault is retried; None leaves it to `max_attempts`.

    `hold_s` is how long the endpoint asked everybody to wait. `before_success` marks faults that mean a wrong
    endpoint as long as it has answered nothing, and a bad row afterwards.
    """

    next: Next
    code: str | None = None
    message: str | None = None
    resends: int | None = None
    hold_s: float | None = None
    before_success: bool = False


_RETRIED = frozenset({408, 409, 421, 425, 500})
_UNAVAILABLE = frozenset({502, 503, 504, 529})
_NOT_HERE = frozenset({404, 405, 410})
_QUOTA = re.compile(
    r"insufficient.?(quota|funds|credit)|quota.{0,30}(exceed|exhaust|used up)|(exceed|exhaust)\w*.{0,30}quota"
    r"|billing|credit balance|payment required",
    re.I,
)
_ERROR_KEYS = frozenset(
    {"error", "errors", "detail", "message", "status", "code", "success", "type", "trace", "traceback", "request_id"}
    | {"data", "refusal"}
)
_PAGE_STARTS = ("<!doctype", "<html", "<head", "<body", "<title", "<?xml", "<!--")


def judge(
    status: int, headers: Mapping[str, str], body: bytes, *, features: Collection[str] | None, takes_text: bool
) -> Verdict:
    """The verdict on a whole response. `features` are the names the model was given, None without an ontology;
    `takes_text` says whether a reply may be free text."""
    if status in (200, 201):
        return _judge_success(headers, body, features, takes_text)
    said = said_by(body)
    if status in (401, 403):
        return Verdict(Next.STOP, "auth", f"the endpoint refuses the credentials, or wants some: {status} {said}")
    if status == 402 or (status == 429 and says_quota(body)):
        return Verdict(Next.STOP, "quota", f"the quota is used up: {status} {said}")
    if 300 <= status < 400:
        return Verdict(Next.STOP, "redirect", f"the endpoint redirects ({status}) to {_host_of(headers)}: redirects "
                       "are never followed with a secret; put that URL into the manifest")  # fmt: skip
    if status == 202:
        return Verdict(Next.STOP, "http_202", "the endpoint answers asynchronously (202), and polling is not supported")
    if status == 407:
        return Verdict(
            Next.STOP,
            "http_407",
            "a proxy asks for credentials (407): with `endpoint_proxy: environment` in foundry.yaml they are those in "
            "the URL of HTTPS_PROXY or HTTP_PROXY",
        )
    return _judge_failure(status, headers, body, said)


def _judge_failure(status: int, headers: Mapping[str, str], body: bytes, said: str) -> Verdict:
    code, message = f"http_{status}", f"{status} {said}".strip()
    if status == 429 or status in _UNAVAILABLE:
        return Verdict(Next.WAIT, code, message, hold_s=asked_wait_s(headers, body))
    if status in _RETRIED or status >= 500:
        return Verdict(Next.RETRY, code, message)
    if status in _NOT_HERE:
        return Verdict(Next.REFUSED, code, message, before_success=True)
    if status == 204:
        return Verdict(Next.RETRY, "empty_body", "204 without a body is no answer", resends=1)
    if status == 413:
        return Verdict(Next.REFUSED, code, f"{message}; the row is more than the endpoint takes, and is never resized")
    if 400 <= status < 500:
        return Verdict(Next.REFUSED, code, message)
    return Verdict(Next.RETRY, code, f"unexpected status {message}", resends=0)


def _judge_success(
    headers: Mapping[str, str], body: bytes, features: Collection[str] | None, takes_text: bool
) -> Verdict:
    if not body.strip():
        return Verdict(Next.RETRY, "empty_body", "200 without a body is no answer", resends=1)
    try:
        text = decode_text(body, headers)
    except UnicodeError as err:
        return Verdict(Next.RETRY, "not_json", f"no readable text: {_short(str(err))}", resends=0)
    is_json, value = parse_leniently(text)
    if not is_json:
        return _judge_text(headers, text, takes_text)
    if isinstance(value, dict) and value:
        return _judge_object(value, features)
    return Verdict(Next.KEEP)


def _judge_text(headers: Mapping[str, str], text: str, takes_text: bool) -> Verdict:
    content_type = headers.get("content-type", "").split(";")[0].strip().lower()
    page = text.lstrip()[:200].lower()
    if content_type == "text/html" or page.startswith(_PAGE_STARTS):
        return Verdict(Next.RETRY, "not_json", f"a web page instead of an answer: {_short(text)}", resends=2)
    is_cut_json = page.startswith(("{", "[")) and content_type != "text/plain"
    if (takes_text and not content_type.endswith("json") and not is_cut_json) or "```" in text:
        return Verdict(Next.KEEP)
    return Verdict(Next.RETRY, "not_json", f"neither JSON nor an expected text: {_short(text)}", resends=2)


def _judge_object(value: Mapping[str, object], features: Collection[str] | None) -> Verdict:
    """A 200 can be an error: no name in it is a feature, and it says so.

    Without an ontology any name may be a feature, so then all of them must be names of errors.
    """
    names = set(value)
    may_answer = not names <= _ERROR_KEYS if features is None else "frames" in names or not names.isdisjoint(features)
    if may_answer:
        return Verdict(Next.KEEP)
    if value.get("refusal"):
        return Verdict(Next.REFUSED, "refusal", _short(_as_text(value["refusal"])))
    said = value.get("error") or value.get("errors") or value.get("detail") or value.get("message")
    if value.get("success") is False:
        return Verdict(Next.REFUSED, "model_error", _short(_as_text(said)))
    if said and _QUOTA.search(_as_text(said)):
        return Verdict(Next.STOP, "quota", f"the quota is used up: {_short(_as_text(said))}")
    if _says_failed(value) or any(value.get(key) for key in ("error", "errors", "detail")):
        return Verdict(Next.RETRY, "model_error", _short(_as_text(said or value)), resends=2)
    return Verdict(Next.KEEP)


def _says_failed(value: Mapping[str, object]) -> bool:
    """True where a status in the body is a word of failure, or a number that HTTP has for errors."""
    for key in ("status", "status_code", "code"):
        said = value.get(key)
        if str(said).lower() in {"failed", "failure", "error"} or (type(said) is int and 400 <= said < 600):
            return True
    return False


def parse_leniently(text: str) -> tuple[bool, object]:
    """(is it JSON, its value). NaN and Infinity count as JSON here: the decoder rejects the items that hold them.

    A document too deep to be read is JSON with the value None; the decoder says `too_deep`.
    """
    try:
        return True, orjson.loads(text)
    except ValueError:
        pass
    try:
        return True, json.loads(text, parse_int=float)  # int refuses numbers of more than 4,300 digits
    except RecursionError:
        return True, None
    except ValueError:
        return False, None


def decode_text(body: bytes, headers: Mapping[str, str]) -> str:
    """The body as text: in the charset that the header names, else UTF-8, with or without its mark.

    Raises UnicodeError where it is not, or holds what UTF-8 cannot.
    """
    charset = _charset(headers)
    if charset == "utf-8":
        return body.decode("utf-8-sig")
    try:
        text = body.decode(charset)
    except LookupError:
        text = body.decode("utf-8-sig")
    text.encode()
    return text


def kept_as(body: bytes, headers: Mapping[str, str]) -> bytes:
    """A body that `judge` keeps, in UTF-8 without its mark: as a rule, the body as it came."""
    if _charset(headers) == "utf-8":
        return body.removeprefix(codecs.BOM_UTF8)
    return decode_text(body, headers).encode()


def _charset(headers: Mapping[str, str]) -> str:
    content_type = headers.get("content-type", "").lower()
    found = re.search(r"charset=\"?([\w.:-]+)", content_type) if "charset" in content_type else None
    charset = found.group(1) if found else "utf-8"
    return "utf-8" if charset == "utf8" else charset


def asked_wait_s(headers: Mapping[str, str], body: bytes = b"") -> float | None:
    """How long the endpoint asks to wait, 0 to 3600 s: Retry-After in seconds or as a date (against the answer's
    own Date), or a model loader's `estimated_time`. None where it does not say, or says nonsense."""
    said = headers.get("retry-after")
    if said is not None:
        return _retry_after_s(said.strip(), headers.get("date"))
    is_json, value = parse_leniently(body[:65536].decode("utf-8", errors="replace"))
    estimate = value.get("estimated_time") if is_json and isinstance(value, dict) else None
    if isinstance(estimate, int | float) and not isinstance(estimate, bool) and estimate >= 0:
        return float(min(estimate, LONGEST_WAIT_S))
    return None


def _retry_after_s(said: str, date: str | None) -> float | None:
    if re.fullmatch(r"\d{1,12}(\.\d+)?", said):
        return min(float(said), LONGEST_WAIT_S)
    try:
        until = email.utils.parsedate_to_datetime(said)
        now = email.utils.parsedate_to_datetime(date) if date else datetime.now(UTC)
        wait_s = (until - now).total_seconds()
    except (TypeError, ValueError, OverflowError):
        return None
    return min(max(wait_s, 0.0), LONGEST_WAIT_S)


def spent_until_s(headers: Mapping[str, str]) -> float | None:
    """Seconds until an endpoint that says it has no requests left takes some again, or None.

    Reads `RateLimit: ...r=0;t=30` and `x-ratelimit-remaining(-requests): 0` with its reset (seconds or `6m0s`).
    """
    compact = headers.get("ratelimit", "")
    if re.search(r"\br=0\b", compact) and (found := re.search(r"\bt=(\d{1,6})", compact)):
        return min(float(found.group(1)), LONGEST_WAIT_S)
    for suffix in ("-requests", ""):
        if headers.get(f"x-ratelimit-remaining{suffix}", "").strip() == "0":
            return _duration_s(headers.get(f"x-ratelimit-reset{suffix}", ""))
    return None


def _duration_s(text: str) -> float | None:
    units = {"ms": 0.001, "s": 1.0, "m": 60.0, "h": 3600.0, "": 1.0}
    parts = re.findall(r"(\d+(?:\.\d+)?)(ms|s|m|h|)", text.strip())
    total = sum(float(number) * units[unit] for number, unit in parts)
    return min(total, LONGEST_WAIT_S) if parts and total < 10 * LONGEST_WAIT_S else None


def says_quota(body: bytes) -> bool:
    """True where an error body says that no requests are left, which waiting does not mend."""
    return _QUOTA.search(body[:2048].decode("utf-8", errors="replace")) is not None


def said_by(body: bytes) -> str:
    """The message in an error body, short and escaped, for people."""
    text = body[:2048].decode("utf-8", errors="replace")
    is_json, value = parse_leniently(body.decode("utf-8", errors="replace")) if len(body) < 65536 else (False, None)
    if is_json and isinstance(value, dict):
        for key in ("error", "detail", "message", "errors"):
            if value.get(key):
                inner = value[key]
                return _short(_as_text(inner.get("message", inner) if isinstance(inner, dict) else inner))
    return _short(re.sub(r"<[^>]*>", " ", text) if "<" in text else text)


def _as_text(value: object) -> str:
    try:
        return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False, default=str)
    except (RecursionError, ValueError):
        return "an error that cannot be shown"


def _short(text: str) -> str:
    """One line without control characters or base64, cut: foreign text never forges a log line."""
    readable = html.unescape(text[: 8 * MESSAGE_CHARS])
    flat = " ".join("".join(c if c.isprintable() else " " for c in readable).split())
    flat = re.sub(r"[A-Za-z0-9+/=_-]{80,}", "[long code]", flat)
    return flat if len(flat) <= MESSAGE_CHARS else flat[: MESSAGE_CHARS - 1] + "…"


def _host_of(headers: Mapping[str, str]) -> str:
    found = re.match(r"https?://([^/?#]*)", headers.get("location", ""), re.I)
    return f"host {found.group(1).rpartition('@')[2]}" if found else "another place"
