"""One request and its response, within limits of size and time. Knows HTTP, not models: no retries, no rate.

Each caller owns a client of one connection (`connection.py`); all of them share one TLS context. There is no session:
no cookie, redirect or proxy. The whole call has a deadline, since httpx's time-outs only limit each wait.
"""

from __future__ import annotations

import asyncio
import contextlib
import ssl
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import Enum

import httpx

from foundry_pipeline.calls.connection import Borrowed, Connection
from foundry_pipeline.calls.incoming import BadEncodingError, Incoming, RefusedBodyError, TooLargeError

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

    UNREACHABLE = "the endpoint's fault: refused, connect timed out"
    CUT = "reset, cut or illegal: the request may have been processed"
    CLOSED = "closed before the status line: mostly a kept-alive connection that had just been closed"
    TIMEOUT = "no whole response before the deadline"
    TOO_LARGE = "the body passed the size limit"
    ENCODING = "a content-encoding that is not understood"
    TLS = "the certificate is not trusted, or the other side does not speak our TLS"
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


class ModelClient:
    """POSTs JSON to one endpoint over one connection. Redirects are never followed, proxies never guessed."""

    def __init__(
        self,
        url: str,
        *,
        timeout_s: float,
        max_reply_bytes: int,
        tls: ssl.SSLContext | None,
        transport: httpx.AsyncBaseTransport | None = None,
    ) -> None:
        """`tls` is needed for https. A `transport` of one's own takes the connection's place, and brings its own."""
        self._url = httpx.URL(url)
        self._timeout_s = timeout_s
        self._max_bytes = max_reply_bytes
        self._unreachable = False
        connect_timeout_s = min(CONNECT_TIMEOUT_S, timeout_s / 2)
        self._connection: Connection | Borrowed
        if transport is None:
            self._connection = Connection(self._url, tls, connect_timeout_s)
        else:
            self._connection = Borrowed(transport, httpx.Timeout(timeout_s, connect=connect_timeout_s, pool=30))

    async def open(self) -> None:
        """Connect ahead, so that the request leaves at its send time. That nobody listens is told by `post`."""
        if not self._unreachable:
            with contextlib.suppress(httpx.TransportError, httpx.InvalidURL):
                await self._connection.open()

    async def post(self, body: bytes, headers: Mapping[str, str], params: Mapping[str, str]) -> Response | Fault:
        """Send once. Everything that can go wrong on the way is a Fault; only a cancelled call raises."""
        began = time.monotonic()
        url = self._url.copy_merge_params(dict(params)) if params else self._url
        incoming = Incoming(self._max_bytes)
        try:
            async with asyncio.timeout(self._timeout_s):
                await self._connection.exchange(url, _merged(headers), body, incoming)
        except (httpx.HTTPError, httpx.InvalidURL, TimeoutError, ssl.SSLError, RefusedBodyError) as err:
            broken, message = _explain(err, self._url, self._max_bytes, self._timeout_s)
            self._unreachable = broken is Broken.UNREACHABLE
            return Fault(broken, message, _ms_since(began), incoming.body[:65536])
        self._unreachable = False
        return Response(incoming.status, incoming.headers, incoming.body, _ms_since(began))

    async def close(self) -> None:
        """Give the connection back."""
        await self._connection.close()


def _merged(headers: Mapping[str, str]) -> dict[str, str]:
    """A header of the manifest takes the place of ours, however it is spelled."""
    given = {name.lower() for name in headers}
    return {**{name: value for name, value in _HEADERS.items() if name.lower() not in given}, **headers}


def _explain(err: Exception, url: httpx.URL, max_bytes: int, timeout_s: float) -> tuple[Broken, str]:
    if isinstance(err, TooLargeError):
        return Broken.TOO_LARGE, f"answer over {max_bytes:,} bytes"
    if isinstance(err, BadEncodingError):
        return Broken.ENCODING, f"content-encoding {err} is not accepted"
    if isinstance(err, httpx.ConnectTimeout):
        return Broken.UNREACHABLE, f"{_place(url)} does not accept the connection in time"
    if isinstance(err, TimeoutError | httpx.ReadTimeout | httpx.WriteTimeout | httpx.PoolTimeout):
        return Broken.TIMEOUT, f"no whole answer within {timeout_s:g} s"
    if isinstance(err, httpx.ConnectError):
        return _explain_connect(err, url)
    if isinstance(err, httpx.ProxyError):
        return Broken.UNREACHABLE, f"the proxy does not connect to {_place(url)}: {_plain(err)}"
    if isinstance(err, httpx.InvalidURL | httpx.UnsupportedProtocol):
        return Broken.NO_HOST, "the endpoint's URL cannot be used"
    if isinstance(err, httpx.RemoteProtocolError):
        return _explain_protocol(err)
    return Broken.CUT, f"the connection was cut: {type(err).__name__}: {_plain(err)}"


def _explain_connect(err: httpx.ConnectError, url: httpx.URL) -> tuple[Broken, str]:
    text = str(err).lower()
    if not text:  # what anyio says of a stream that ends or is reset within the handshake
        return Broken.CUT, f"{_place(url)} cut the TLS handshake"
    if "certificate" in text or "ssl" in text or "tls" in text:
        return Broken.TLS, f"TLS to {_place(url)}: {_plain(err)}"
    if any(hint in text for hint in ("name or service", "nodename", "getaddrinfo", "name resolution", "no address")):
        return Broken.NO_HOST, f"the host {url.host} does not resolve"
    return Broken.UNREACHABLE, f"{_place(url)} cannot be reached: {_plain(err)}"


def _explain_protocol(err: httpx.RemoteProtocolError) -> tuple[Broken, str]:
    text = _plain(err)
    if "without a response" in text or "without sending a response" in text:
        return Broken.CLOSED, "the endpoint closed the connection without an answer"
    if "peer closed" in text or "cut short" in text or "before the response was whole" in text:
        return Broken.CUT, f"the answer was cut: {text}"
    return Broken.CUT, f"the endpoint does not speak HTTP: {text}"


def _place(url: httpx.URL) -> str:
    return f"{url.host}:{url.port or (443 if url.scheme == 'https' else 80)}"


def _plain(err: Exception) -> str:
    return " ".join(str(err).split())[:120] or "no detail"


def _ms_since(began: float) -> float:
    return (time.monotonic() - began) * 1000.0
