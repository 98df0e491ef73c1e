"""One request and its response, within limits of size and time. Knows HTTP, not models: no retries, no rate.

Each caller owns a client of one connection (`connection.py`); all of them share one TLS context. There is no session:
no cookie, redirect or proxy. The whole call has a deadline, since httpx's time-outs only limit each wait.
"""

from __future__ import annotations

import asyncio
import contextlib
import ssl
import time
import zlib
from collections.abc import AsyncIterator, Mapping
from dataclasses import dataclass, field
from enum import Enum

import httpx

from foundry_pipeline.calls.connection import Connection
from foundry_pipeline.errors import shown

CONNECT_TIMEOUT_S = 10.0
_HEADERS = {
    "Accept": "application/json",
    "Accept-Encoding": "identity",
    "Connection": "keep-alive",
    "Content-Type": "application/json",
    "User-Agent": "foundry-pipeline",
}


class Broken(Enum):
    """Why no whole response came, by who is to blame."""

    UNREACHABLE = "the endpoint's fault: refused, not resolved, connect timed out"
    CUT = "reset, cut or illegal: the request may have been processed"
    STALE = "a kept-alive connection that had been closed: nothing was processed"
    TIMEOUT = "no whole response before the deadline"
    TOO_LARGE = "the body passed the size limit"
    ENCODING = "a content-encoding that is not understood"
    TLS = "the certificate or handshake was refused"
    NO_HOST = "the host's name does not resolve"


@dataclass(frozen=True, slots=True)
class Response:
    """A whole response. Header names are lower case; `latency_ms` runs from sending to the last byte."""

    status: int
    headers: Mapping[str, str]
    body: bytes = field(repr=False)
    latency_ms: float


@dataclass(frozen=True, slots=True)
class Fault:
    """No whole response. `partial` is what came of the body: evidence, never an answer."""

    broken: Broken
    message: str
    latency_ms: float
    partial: bytes = field(default=b"", repr=False)


class _RefusedBodyError(Exception):
    """A body that is not read to its end."""


class _TooLargeError(_RefusedBodyError):
    """The body passed the size limit."""


class _BadEncodingError(_RefusedBodyError):
    """The body is encoded in a way that is not understood."""


class ModelClient:
    """POSTs JSON to one endpoint over one connection. Redirects are never followed, proxies never guessed."""

    def __init__(
        self,
        url: str,
        *,
        timeout_s: float,
        max_reply_bytes: int,
        tls: ssl.SSLContext,
        transport: httpx.AsyncBaseTransport | None = None,
    ) -> None:
        """A `transport` of one's own takes the place of the connection, and brings its own TLS."""
        connect_timeout_s = min(CONNECT_TIMEOUT_S, timeout_s)
        self._url = httpx.URL(url)
        self._timeout_s = timeout_s
        self._max_bytes = max_reply_bytes
        self._fresh = True
        self._unreachable = False
        self._transport = transport or Connection(tls, connect_timeout_s)
        self._extensions = {"timeout": httpx.Timeout(timeout_s, connect=connect_timeout_s, pool=30).as_dict()}

    async def open(self) -> None:
        """Connect ahead, so that the request leaves at its send time. That nobody listens is told by `post`."""
        if isinstance(self._transport, Connection) and not self._unreachable:
            with contextlib.suppress(httpx.TransportError, httpx.InvalidURL):
                await self._transport.open(self._url)

    async def post(self, body: bytes, headers: Mapping[str, str], params: Mapping[str, str]) -> Response | Fault:
        """Send once. Everything that can go wrong on the way is a Fault; only a cancelled call raises."""
        began = time.monotonic()
        partial: list[bytes] = []
        try:
            async with asyncio.timeout(self._timeout_s):
                response = await self._transport.handle_async_request(self._request(body, headers, params))
                try:
                    async for chunk in _plain_chunks(response, self._max_bytes):
                        partial.append(chunk)  # noqa: PERF401  # what has come must survive an exception
                finally:
                    await response.aclose()
        except (httpx.HTTPError, httpx.InvalidURL, TimeoutError, ssl.SSLError, _RefusedBodyError) as err:
            return self._fault(err, _ms_since(began), b"".join(partial)[:65536])
        self._fresh = self._unreachable = False
        return Response(response.status_code, dict(response.headers.items()), b"".join(partial), _ms_since(began))

    def _request(self, body: bytes, headers: Mapping[str, str], params: Mapping[str, str]) -> httpx.Request:
        """The URL is parsed once, and not for every call."""
        url = self._url.copy_merge_params(dict(params)) if params else self._url
        return httpx.Request("POST", url, headers={**_HEADERS, **headers}, content=body, extensions=self._extensions)

    def _fault(self, err: Exception, latency_ms: float, partial: bytes) -> Fault:
        broken, message = _explain(err, self._max_bytes, self._timeout_s)
        if isinstance(err, httpx.RemoteProtocolError) and not self._fresh and not partial:
            broken = Broken.STALE
        self._fresh = True
        self._unreachable = broken is Broken.UNREACHABLE
        return Fault(broken, message, latency_ms, partial)

    async def close(self) -> None:
        """Give the connection back."""
        await self._transport.aclose()


async def _plain_chunks(response: httpx.Response, max_bytes: int) -> AsyncIterator[bytes]:
    """The body in pieces, inflated where the server compressed it unasked, never past `max_bytes`."""
    inflater = _Inflater(response.headers.get("content-encoding", "identity").strip().lower())
    total = 0
    assert isinstance(response.stream, httpx.AsyncByteStream)
    async for raw in response.stream:
        chunk = inflater.plain(raw, max_bytes - total + 1)
        total += len(chunk)
        if total > max_bytes:
            raise _TooLargeError
        yield chunk
    inflater.check_whole()


class _Inflater:
    """Undoes one content-encoding, giving at most the bytes there is room for."""

    def __init__(self, encoding: str) -> None:
        self._encoding = encoding
        self._inflate = None
        if encoding not in ("", "identity"):
            if encoding not in ("gzip", "x-gzip", "deflate"):
                raise _BadEncodingError(shown(encoding))
            self._inflate = zlib.decompressobj(wbits=zlib.MAX_WBITS | (32 if "gzip" in encoding else 0))

    def plain(self, raw: bytes, room: int) -> bytes:
        if self._inflate is None:
            return raw
        try:
            return self._inflate.decompress(raw, room)
        except zlib.error as err:
            raise _BadEncodingError(f"{self._encoding}, damaged") from err

    def check_whole(self) -> None:
        """httpx takes a compressed body that was cut short for a whole one."""
        if self._inflate is not None and not self._inflate.eof:
            raise httpx.RemoteProtocolError("the compressed body was cut short")


def _explain(err: Exception, max_bytes: int, timeout_s: float) -> tuple[Broken, str]:
    if isinstance(err, _TooLargeError):
        return Broken.TOO_LARGE, f"answer over {max_bytes:,} bytes"
    if isinstance(err, _BadEncodingError):
        return Broken.ENCODING, f"content-encoding {err} is not accepted"
    if isinstance(err, TimeoutError | httpx.ReadTimeout | httpx.WriteTimeout | httpx.PoolTimeout):
        return Broken.TIMEOUT, f"no whole answer within {timeout_s:g} s"
    if isinstance(err, httpx.ConnectTimeout):
        return Broken.UNREACHABLE, "the endpoint does not accept the connection in time"
    if isinstance(err, httpx.ConnectError):
        return _explain_connect(err)
    if isinstance(err, httpx.InvalidURL | httpx.UnsupportedProtocol):
        return Broken.NO_HOST, "the endpoint's URL cannot be used"
    return Broken.CUT, f"{type(err).__name__}: {_plain(err)}"


def _explain_connect(err: httpx.ConnectError) -> tuple[Broken, str]:
    text = str(err).lower()
    if "certificate" in text or "ssl" in text or "tls" in text:
        return Broken.TLS, f"TLS: {_plain(err)}"
    if any(hint in text for hint in ("name or service", "nodename", "getaddrinfo", "name resolution", "no address")):
        return Broken.NO_HOST, "the endpoint's host name does not resolve"
    return Broken.UNREACHABLE, "the endpoint cannot be reached: " + _plain(err)


def _plain(err: Exception) -> str:
    return " ".join(str(err).split())[:120] or "no detail"


def _ms_since(began: float) -> float:
    return (time.monotonic() - began) * 1000.0
