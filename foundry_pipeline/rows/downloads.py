"""Content behind http and https URLs of data rows, fetched under the rules of `addresses.py` and under limits.

Requests carry no cookies, no proxies and nothing from the environment; httpx's client, which would also log whole
URLs, is left out. A host that does not answer is left alone for a while, so that its rows fail fast and others go on;
until it has been down for a set time, the error says when to ask again.
"""

from __future__ import annotations

import asyncio
import time
import zlib
from base64 import b64encode
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from urllib.parse import unquote_to_bytes

import httpx

from foundry_pipeline.errors import RowUnavailable, shown
from foundry_pipeline.rows.addresses import shown_url

MAX_REDIRECTS = 3
CONNECT_TIMEOUT_S = 10.0
HOST_FAILURES = 3
"""Failed connections in a row after which a host counts as down."""
FIRST_PAUSE_S, LONGEST_PAUSE_S = 1.0, 30.0
"""How long a host that is down is left alone: twice as long after each try that failed."""

_REDIRECTS = frozenset({301, 302, 303, 307, 308})
_TRY_AGAIN = frozenset({408, 425, 429, 500, 502, 503, 504})
_STATUS_CODES = {
    404: ("row_missing", "there is no such file"),
    410: ("row_missing", "the file is gone"),
    401: ("row_expired", "the link needs a login or has expired: export the links again"),
    403: ("row_expired", "the link is not allowed or has expired: export the links again"),
}


class _TransientError(Exception):
    """Worth another try soon."""

    def __init__(self, code: str, message: str, wait_s: float | None = None) -> None:
        self.code = code
        self.message = message
        self.wait_s = wait_s
        super().__init__(message)


@dataclass(slots=True)
class _HostState:
    failures: int = 0
    first_at: float = 0.0
    leave_until: float = 0.0

    @property
    def pause_s(self) -> float:
        return min(LONGEST_PAUSE_S, FIRST_PAUSE_S * 2.0 ** min(self.failures - HOST_FAILURES, 10))


class _Hosts:
    """Which hosts do not answer: a breaker for each."""

    def __init__(self, clock: Callable[[], float], patience_s: float) -> None:
        self._clock = clock
        self._patience_s = patience_s
        self._failing: dict[str, _HostState] = {}
        self._known: set[str] = set()
        """Hosts that have answered. Datasets are full of hosts that never will: their rows do not wait."""

    def check(self, host: str) -> None:
        """Raises RowUnavailable (`row_host_down`) while the host is left alone. After that, one request may try."""
        state = self._failing.get(host)
        if state is None:
            return
        now = self._clock()
        if now < state.leave_until:
            seconds = now - state.first_at
            message = f"host {shown(host)} has not answered for {seconds:.0f} s"
            raise RowUnavailable("row_host_down", message, self.wait_s(host))
        if state.leave_until:
            state.leave_until = now + state.pause_s

    def answered(self, host: str) -> None:
        self._known.add(host)
        self._failing.pop(host, None)

    def failed(self, host: str) -> None:
        now = self._clock()
        state = self._failing.setdefault(host, _HostState(first_at=now))
        state.failures += 1
        if state.failures >= HOST_FAILURES:
            state.leave_until = now + state.pause_s

    def wait_s(self, host: str) -> float | None:
        """When to ask again for a row of a host that does not answer any more; None where that is not worth it."""
        state, now = self._failing.get(host), self._clock()
        if state is None or host not in self._known or now - state.first_at >= self._patience_s:
            return None
        return max(state.leave_until - now, FIRST_PAUSE_S)


class Downloads:
    """Fetches one URL at a time for any number of callers; `transport` decides where connections may go."""

    def __init__(
        self,
        transport: httpx.AsyncBaseTransport,
        *,
        max_bytes: int,
        timeout_s: float,
        retry_waits_s: Sequence[float] = (0.5, 2.0),
        clock: Callable[[], float] = time.monotonic,
        host_patience_s: float = 0.0,
    ) -> None:
        """`timeout_s` covers everything a URL needs: redirects, retries and the waits between them.

        `host_patience_s` is how long a host that has answered may be down and its rows still be worth waiting for.
        """
        self._transport = transport
        self._max_bytes = max_bytes
        self._timeout_s = timeout_s
        self._retry_waits_s = tuple(retry_waits_s)
        self._hosts = _Hosts(clock, host_patience_s)

    async def get(self, url: str) -> bytes:
        """The body of a 200 answer, at most 3 redirects away.

        Raises RowUnavailable: `row_missing` (404, 410), `row_expired` (401, 403), `row_host_down`, `row_timeout`,
        `row_too_large`, `row_forbidden` (address, scheme or redirect not allowed), `row_unreadable`.
        """
        try:
            async with asyncio.timeout(self._timeout_s):
                return await self._patiently(url)
        except TimeoutError:
            message = f"no whole answer within row_timeout_s = {self._timeout_s:g} s"
            raise RowUnavailable("row_timeout", f"{shown_url(url)}: {message}") from None
        except RowUnavailable as err:
            raise RowUnavailable(err.code, f"{shown_url(url)}: {err.message}", err.wait_s) from None

    async def close(self) -> None:
        """Close all connections."""
        await self._transport.aclose()

    async def _patiently(self, url: str) -> bytes:
        for wait_s in self._retry_waits_s:
            try:
                return await self._follow(url)
            except _TransientError:
                await asyncio.sleep(wait_s)
        try:
            return await self._follow(url)
        except _TransientError as err:
            raise RowUnavailable(err.code, err.message, err.wait_s) from None

    async def _follow(self, url: str) -> bytes:
        target = _parsed(url)
        authorization = _basic(target)
        for _ in range(MAX_REDIRECTS + 1):
            answer = await self._once(target, authorization)
            if isinstance(answer, bytes):
                return answer
            target, authorization = _next_hop(target, answer), None
        raise RowUnavailable("row_unreadable", f"more than {MAX_REDIRECTS} redirects")

    async def _once(self, url: httpx.URL, authorization: str | None) -> bytes | str:
        """One request: the body, or where a redirect points."""
        self._hosts.check(url.host)
        headers = {"Accept": "*/*", "Accept-Encoding": "identity", "User-Agent": "foundry-pipeline"}
        if authorization:
            headers["Authorization"] = authorization
        waits = httpx.Timeout(self._timeout_s, connect=CONNECT_TIMEOUT_S).as_dict()
        request = httpx.Request("GET", url.copy_with(userinfo=b""), headers=headers, extensions={"timeout": waits})
        try:
            response = await self._transport.handle_async_request(request)
            self._hosts.answered(url.host)
            try:
                return await self._answer(response)
            finally:
                await response.aclose()
        except (httpx.ConnectError, httpx.ConnectTimeout) as err:
            self._hosts.failed(url.host)
            reason = shown(str(err), 160) if str(err) else "the connection is not answered"
            message = f"host {shown(url.host)}: {reason}"
            raise _TransientError("row_host_down", message, self._hosts.wait_s(url.host)) from None
        except httpx.TimeoutException:
            raise RowUnavailable("row_timeout", f"no answer within {self._timeout_s:g} s") from None
        except httpx.TransportError as err:
            raise _TransientError("row_host_down", f"the connection broke: {type(err).__name__}") from None

    async def _answer(self, response: httpx.Response) -> bytes | str:
        status = response.status_code
        if status in _REDIRECTS:
            return str(response.headers.get("location", ""))
        if status in _TRY_AGAIN:
            raise _TransientError("row_host_down", f"the host answers {status}")
        if status in _STATUS_CODES:
            code, reason = _STATUS_CODES[status]
            raise RowUnavailable(code, f"answers {status}: {reason}")
        if status != 200:
            code = "row_host_down" if status >= 500 else "row_unreadable"
            raise RowUnavailable(code, f"answers {status}, expected 200")
        return self._plain(await self._body(response), response.headers.get("content-encoding", ""))

    async def _body(self, response: httpx.Response) -> bytes:
        assert isinstance(response.stream, httpx.AsyncByteStream)
        length = response.headers.get("content-length", "")
        if length.isascii() and length.isdigit() and len(length) < 20 and int(length) > self._max_bytes:
            raise self._too_large()
        chunks, size = [], 0
        async for chunk in response.stream:
            size += len(chunk)
            if size > self._max_bytes:
                raise self._too_large()
            chunks.append(chunk)
        return b"".join(chunks)

    def _plain(self, body: bytes, encoding: str) -> bytes:
        """The body without gzip, which object stores send for files stored that way, whatever was asked for."""
        name = encoding.strip().lower()
        if name in ("", "identity"):
            return body
        if name not in ("gzip", "x-gzip"):
            raise RowUnavailable("row_unreadable", f"content-encoding {shown(encoding)} is not accepted")
        unzip = zlib.decompressobj(wbits=31)
        try:
            data = unzip.decompress(body, self._max_bytes + 1)
        except zlib.error:
            raise RowUnavailable("row_unreadable", "the gzip body is damaged") from None
        if len(data) > self._max_bytes:
            raise self._too_large()
        if not unzip.eof:
            raise RowUnavailable("row_truncated", "the gzip body is cut off")
        return data

    def _too_large(self) -> RowUnavailable:
        return RowUnavailable("row_too_large", f"over max_row_bytes = {self._max_bytes:,} bytes")


def _parsed(url: str) -> httpx.URL:
    try:
        target = httpx.URL(url)
    except (httpx.InvalidURL, ValueError) as err:
        reason = "not a possible URL" if isinstance(err, UnicodeError) else shown(str(err), 120)
        raise RowUnavailable("row_forbidden", reason) from None
    if target.scheme not in ("http", "https") or not target.host:
        raise RowUnavailable("row_forbidden", "expected an http or https URL with a host")
    if target.port is not None and not 0 < target.port < 65536:
        raise RowUnavailable("row_forbidden", f"port {target.port} does not exist")
    return target


def _basic(url: httpx.URL) -> str | None:
    """The Authorization header of a URL with user info; it goes to the first host only, never along a redirect."""
    if not url.userinfo:
        return None
    return f"Basic {b64encode(unquote_to_bytes(url.userinfo)).decode('ascii')}"


def _next_hop(current: httpx.URL, location: str) -> httpx.URL:
    if not location:
        raise RowUnavailable("row_unreadable", "a redirect without a location")
    try:
        target = _parsed(str(current.join(location)))
    except (httpx.InvalidURL, ValueError):
        raise RowUnavailable("row_forbidden", "a redirect to what is not a possible URL") from None
    if current.scheme == "https" and target.scheme == "http":
        raise RowUnavailable("row_forbidden", "a redirect from https to http")
    return target
