"""One HTTP/1.1 connection to an endpoint: asyncio's transport, and the parser that uvicorn uses.

It costs a fraction of httpx's client and pool, and may be opened before a request's send time has come. It knows no
redirects, proxies and cookies, and no time-outs but that of connecting: the deadline of a call is `client.py`'s.
Errors are httpx's, so that they are judged in one way whatever the transport.
"""

from __future__ import annotations

import asyncio
import re
import ssl
import time
from collections.abc import Mapping
from typing import cast

import httptools
import httpx

from foundry_pipeline.calls.incoming import Incoming

MOST_HEAD_BYTES = 100 * 1024
"""Status line and headers may be so long together, and so may all that surrounds the chunks of a body."""
IDLE_S = 30.0
"""A connection that was idle for longer is not used again: middleboxes forget it without a word."""
_FRAMING = {"content-length", "transfer-encoding"}
"""Without them a body ends with its connection."""
_ONE_WRITE_BYTES = 64 * 1024
_HEADER_LINE = re.compile(r"[!#$%&'*+.^_`|~0-9A-Za-z-]+: [\t\x20-\x7e]*")


class Connection:
    """At most one connection, opened when it is needed and kept for the next request. One request at a time."""

    def __init__(self, url: httpx.URL, tls: ssl.SSLContext | None, connect_timeout_s: float) -> None:
        """`tls` is needed for https; without it, ValueError."""
        if url.scheme == "https" and tls is None:
            raise ValueError("https without a TLS context")
        self._host = url.raw_host.decode("ascii")
        self._port = url.port or (443 if url.scheme == "https" else 80)
        self._tls = tls if url.scheme == "https" else None
        self._connect_timeout_s = connect_timeout_s
        self._wire: _Wire | None = None

    async def open(self) -> None:
        """Connect, unless that has been done. Raises httpx.ConnectError, ConnectTimeout and InvalidURL."""
        if self._wire is None or not self._wire.is_reusable:
            await self.close()
            self._wire = await self._connected()

    async def exchange(self, url: httpx.URL, headers: Mapping[str, str], body: bytes, incoming: Incoming) -> None:
        """Send a POST and return once its whole response is in `incoming`.

        Raises httpx.TransportError, and what `incoming` raises. After anything but a whole response the connection
        is cut: a late answer must not become that of the next request.
        """
        head = request_head(url, headers, len(body))
        await self.open()
        assert self._wire is not None
        try:
            await self._wire.exchange(head, body, incoming)
        except BaseException:
            await self.close()
            raise

    async def close(self) -> None:
        """Cut the connection, whatever is on its way."""
        wire, self._wire = self._wire, None
        if wire is not None:
            wire.cut()

    async def _connected(self) -> _Wire:
        name = self._host if self._tls else None
        loop = asyncio.get_running_loop()
        try:
            async with asyncio.timeout(self._connect_timeout_s):
                _, wire = await loop.create_connection(
                    _Wire, self._host, self._port, ssl=self._tls, server_hostname=name
                )
        except TimeoutError as err:
            raise httpx.ConnectTimeout("no connection in time") from err
        except UnicodeError as err:
            raise httpx.InvalidURL("no such host name") from err
        except OSError as err:
            raise httpx.ConnectError(str(err)) from err
        return wire


class Borrowed:
    """A Connection's methods over a transport of httpx's kind, which brings its own connections and TLS."""

    def __init__(self, transport: httpx.AsyncBaseTransport, timeout: httpx.Timeout) -> None:
        self._transport = transport
        self._extensions = {"timeout": timeout.as_dict()}

    async def open(self) -> None:
        """The transport connects when it sends."""

    async def exchange(self, url: httpx.URL, headers: Mapping[str, str], body: bytes, incoming: Incoming) -> None:
        """See Connection."""
        request = httpx.Request("POST", url, headers=headers, content=body, extensions=self._extensions)
        response = await self._transport.handle_async_request(request)
        assert isinstance(response.stream, httpx.AsyncByteStream)
        try:
            incoming.begin(response.status_code, dict(response.headers.items()))
            async for raw in response.stream:
                incoming.add(raw)
        finally:
            await response.aclose()
        incoming.end()

    async def close(self) -> None:
        """Give the transport back."""
        await self._transport.aclose()


def request_head(url: httpx.URL, headers: Mapping[str, str], body_bytes: int) -> bytes:
    """Request line and headers of a POST. Raises httpx.LocalProtocolError, which shows no value."""
    lines = [f"Host: {url.netloc.decode('ascii')}", f"Content-Length: {body_bytes}"]
    lines += (f"{name}: {value}" for name, value in headers.items())
    if not all(map(_HEADER_LINE.fullmatch, lines)):
        raise httpx.LocalProtocolError("a header's name or value is not one")
    return "\r\n".join((f"POST {url.raw_path.decode('ascii')} HTTP/1.1", *lines, "", "")).encode("ascii")


class _Wire(asyncio.Protocol):
    """A connection that is, or was, open. The parser calls its `on_` methods."""

    def __init__(self) -> None:
        self._parser = httptools.HttpResponseParser(self)
        # A server that ends lines with LF alone is understood by every other client.
        self._parser.set_dangerous_leniencies(lenient_optional_cr_before_lf=True)
        self._idle_since = time.monotonic()
        self._is_lost = False
        self._incoming: Incoming | None = None
        self._done: asyncio.Future[None] | None = None
        self._headers: dict[str, str] = {}
        self._in_body = False
        self._has_begun = False
        self._overhead_bytes = 0

    @property
    def is_reusable(self) -> bool:
        """True where a request may be sent."""
        return not self._is_lost and time.monotonic() - self._idle_since < IDLE_S

    async def exchange(self, head: bytes, body: bytes, incoming: Incoming) -> None:
        self._incoming = incoming
        self._in_body = self._has_begun = False
        self._overhead_bytes = 0
        self._done = asyncio.get_running_loop().create_future()
        if len(body) <= _ONE_WRITE_BYTES:
            self._transport.write(head + body)
        else:
            self._transport.write(head)
            self._transport.write(body)
        await self._done
        self._idle_since = time.monotonic()

    def cut(self) -> None:
        """Close at once."""
        self._is_lost = True
        self._transport.abort()

    # asyncio's side

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)

    def data_received(self, data: bytes) -> None:
        if self._incoming is None:
            self.cut()  # An answer that nobody asked for.
            return
        self._has_begun = True
        self._overhead_bytes += len(data)
        try:
            self._parser.feed_data(data)
        except httptools.HttpParserCallbackError as err:
            self._fail(err.__context__ or err)
        except (httptools.HttpParserError, httptools.HttpParserUpgrade) as err:
            self._fail(httpx.RemoteProtocolError(f"no legal HTTP: {err}"))
        else:
            if self._overhead_bytes > MOST_HEAD_BYTES:
                self._fail(httpx.RemoteProtocolError("the headers are too long"))

    def eof_received(self) -> None:
        self._is_lost = True
        if self._incoming is not None and self._in_body and not self._headers.keys() & _FRAMING:
            self._finish()
        else:
            when = "before the response was whole" if self._has_begun else "without a response"
            self._fail(httpx.RemoteProtocolError(f"the connection was closed {when}"))

    def connection_lost(self, exc: Exception | None) -> None:
        self._is_lost = True
        self._fail(httpx.ReadError(str(exc or "the connection was closed")))

    # the parser's side

    def on_message_begin(self) -> None:
        if self._incoming is None:
            raise httpx.RemoteProtocolError("a response that nobody asked for")
        self._headers = {}
        self._in_body = False

    def on_header(self, name: bytes, value: bytes) -> None:
        if not self._in_body:  # Trailers are not.
            key, text = name.decode("latin-1").lower(), value.decode("latin-1").strip()
            self._headers[key] = f"{self._headers[key]}, {text}" if key in self._headers else text

    def on_headers_complete(self) -> None:
        status = self._parser.get_status_code()
        if status >= 200 and self._incoming is not None:
            self._in_body = True
            self._incoming.begin(status, self._headers)

    def on_body(self, data: bytes) -> None:
        assert self._incoming is not None
        # A chunk of one byte has five around it, and some leave more; without end nobody may send what is no body.
        self._overhead_bytes = max(0, self._overhead_bytes - 16 * len(data))
        self._incoming.add(data)

    def on_message_complete(self) -> None:
        if self._in_body:  # Not after 100 Continue and its like.
            self._finish()

    def _finish(self) -> None:
        incoming, self._incoming = self._incoming, None
        assert incoming is not None
        assert self._done is not None
        if not self._parser.should_keep_alive() or self._transport.get_write_buffer_size():
            self._is_lost = True
        try:
            incoming.end()
        except httpx.RemoteProtocolError as err:
            self._fail(err)
        if not self._done.done():
            self._done.set_result(None)

    def _fail(self, error: BaseException) -> None:
        self._is_lost = True
        self._incoming = None
        if self._done is not None and not self._done.done():
            self._done.set_exception(error)
