"""One request and its response, within limits of size and time. Knows HTTP, not models: no retries, no rate.

A pool of many connections is slow in httpcore (every request scans it), so each caller owns a client of one connection;
all of them share one TLS context. The whole call has a deadline, since httpx's time-outs only limit each wait.
"""

from __future__ import annotations

import asyncio
import logging
import ssl
import time
import zlib
from collections.abc import AsyncIterator, Mapping
from dataclasses import dataclass, field
from enum import Enum

import httpcore
import httpx

from foundry_pipeline.errors import shown

CONNECT_TIMEOUT_S = 10.0
_HEADERS = {
    "Accept": "application/json",
    "Accept-Encoding": "identity",
    "Connection": "keep-alive",
    "Content-Type": "application/json",
    "User-Agent": "foundry-pipeline",
}

# httpx logs every URL at INFO, and a secret may travel in the query.
logging.getLogger("httpx").setLevel(logging.WARNING)


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


class _RefusedBodyError(Exception):
    """A body that is not read to its end."""


class _TooLargeError(_RefusedBodyError):
    """The body passed the size limit."""


class _BadEncodingError(_RefusedBodyError):
    """The body is encoded in a way that is not understood."""


async def warm_up() -> None:
    """Load what the first request would load: tens of milliseconds, which would make its slot late at the server."""
    await httpcore.AnyIOBackend().sleep(0)
    await asyncio.get_running_loop().getaddrinfo("127.0.0.1", 80)


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
        self._url = httpx.URL(url)
        self._timeout_s = timeout_s
        self._max_bytes = max_reply_bytes
        self._transport = transport or _one_connection(tls)
        self._client = httpx.AsyncClient(
            transport=self._transport,
            timeout=httpx.Timeout(timeout_s, connect=min(CONNECT_TIMEOUT_S, timeout_s / 2), pool=30),
            follow_redirects=False,
            trust_env=False,
        )

    async def post(self, body: bytes, headers: Mapping[str, str], params: Mapping[str, str]) -> Response | Fault:
        """Send once. Everything that can go wrong on the way is a Fault; only a cancelled call raises."""
        began = time.monotonic()
        partial: list[bytes] = []
        try:
            async with asyncio.timeout(self._timeout_s):
                request = self._request(body, headers, params)
                response = await self._client.send(request, stream=True)
                try:
                    async for chunk in _plain_chunks(response, self._max_bytes):
                        partial.append(chunk)  # noqa: PERF401  # what has come must survive an exception
                finally:
                    await response.aclose()
                if _has_more_bytes(self._transport):
                    await self._transport.aclose()
        except (httpx.HTTPError, httpx.InvalidURL, TimeoutError, ssl.SSLError, _RefusedBodyError) as err:
            broken, message = _explain(err, self._url, self._max_bytes, self._timeout_s)
            return Fault(broken, message, _ms_since(began), b"".join(partial)[:65536])
        headers_seen = {name.lower(): value for name, value in response.headers.items()}
        return Response(response.status_code, headers_seen, b"".join(partial), _ms_since(began))

    def _request(self, body: bytes, headers: Mapping[str, str], params: Mapping[str, str]) -> httpx.Request:
        """Built here and not by the client, which would parse and merge the same URL again for every call."""
        url = self._url.copy_merge_params(dict(params)) if params else self._url
        timeout = self._client.timeout.as_dict()
        return httpx.Request(
            "POST", url, headers={**_HEADERS, **headers}, content=body, extensions={"timeout": timeout}
        )

    async def close(self) -> None:
        """Give the connection back."""
        await self._client.aclose()


def _one_connection(tls: ssl.SSLContext) -> httpx.AsyncHTTPTransport:
    limits = httpx.Limits(max_connections=1, max_keepalive_connections=1, keepalive_expiry=30)
    return httpx.AsyncHTTPTransport(verify=tls, limits=limits, trust_env=False)


def _has_more_bytes(transport: httpx.AsyncBaseTransport) -> bool:
    """Whether bytes stand behind the response just read: httpcore would take them for the next request's answer.

    Nothing public tells, so this reads httpcore's own state, as pinned in pyproject.toml; a test holds that it works.
    """
    if not isinstance(transport, httpx.AsyncHTTPTransport):
        return False
    http11 = (getattr(connection, "_connection", None) for connection in transport._pool.connections)
    return any(open_one is not None and open_one._h11_state.trailing_data[0] for open_one in http11)


async def _plain_chunks(response: httpx.Response, max_bytes: int) -> AsyncIterator[bytes]:
    """The body in pieces, inflated where the server compressed it unasked, never past `max_bytes`."""
    inflater = _Inflater(response.headers.get("content-encoding", "identity").strip().lower())
    total = 0
    async for raw in response.aiter_raw():
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
            chunk = self._inflate.decompress(raw, room)
        except zlib.error as err:
            raise _BadEncodingError(f"{self._encoding}, damaged,") from err
        if self._inflate.unused_data:
            raise _BadEncodingError(f"{self._encoding} with more behind its end")
        return chunk

    def check_whole(self) -> None:
        """httpx takes a compressed body that was cut short for a whole one."""
        if self._inflate is not None and not self._inflate.eof:
            raise httpx.RemoteProtocolError("the compressed body was cut short")


def _explain(err: Exception, url: httpx.URL, max_bytes: int, timeout_s: float) -> tuple[Broken, str]:
    if isinstance(err, _TooLargeError):
        return Broken.TOO_LARGE, f"answer over {max_bytes:,} bytes"
    if isinstance(err, _BadEncodingError):
        return Broken.ENCODING, f"content-encoding {err} is not accepted"
    if isinstance(err, httpx.ConnectTimeout):
        return Broken.UNREACHABLE, f"{_place(url)} does not accept the connection in time"
    if isinstance(err, TimeoutError | httpx.ReadTimeout | httpx.WriteTimeout | httpx.PoolTimeout):
        return Broken.TIMEOUT, f"no whole answer within {timeout_s:g} s"
    if isinstance(err, httpx.ConnectError):
        return _explain_connect(err, url)
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
    if "without sending a response" in text:
        return Broken.CLOSED, "the endpoint closed the connection without an answer"
    if "peer closed" in text or "cut short" in text:
        return Broken.CUT, f"the answer was cut: {text}"
    return Broken.CUT, f"the endpoint does not speak HTTP: {text}"


def _place(url: httpx.URL) -> str:
    return f"{url.host}:{url.port or (443 if url.scheme == 'https' else 80)}"


def _plain(err: Exception) -> str:
    return " ".join(str(err).split())[:120] or "no detail"


def _ms_since(began: float) -> float:
    return (time.monotonic() - began) * 1000.0
