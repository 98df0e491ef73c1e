"""One HTTP/1.1 connection to an endpoint, as a transport of httpx's kind: h11 on an asyncio protocol.

It costs a quarter of httpx's client and its pool, and may be opened before the request's send time has come. It knows
no redirects, proxies and cookies, and no time-outs but that of connecting: the deadline of a call is `client.py`'s.
"""

from __future__ import annotations

import asyncio
import ssl
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import contextmanager
from typing import cast

import h11
import httpx

MOST_HEAD_BYTES = 100 * 1024
"""A status line and headers may be so long together."""
IDLE_S = 30.0
"""A connection that was idle for longer is not used again: middleboxes forget it without a word."""
_READ_AHEAD_BYTES = 256 * 1024
_PARTS_A_TURN = 1000
"""A body in tiny chunks must not keep the event loop from everybody else."""
_ONE_WRITE_BYTES = 64 * 1024


class Connection(httpx.AsyncBaseTransport):
    """At most one connection, opened when it is needed and kept for the next request. One request at a time."""

    def __init__(self, tls: ssl.SSLContext, connect_timeout_s: float) -> None:
        self._tls = tls
        self._connect_timeout_s = connect_timeout_s
        self._wire: _Wire | None = None

    async def open(self, url: httpx.URL) -> None:
        """Connect to the host of `url`, unless that has been done. Raises httpx.ConnectError and ConnectTimeout."""
        if self._wire is not None and self._wire.is_reusable:
            return
        self._drop()
        self._wire = await self._connected(url)

    async def handle_async_request(self, request: httpx.Request) -> httpx.Response:
        """Send the request; its response's body is still to be read. Raises httpx.TransportError."""
        await self.open(request.url)
        wire = self._wire
        assert wire is not None
        body = await request.aread()
        try:
            with _as_httpx_errors():
                wire.send(request, body)
                head = await wire.head()
        except BaseException:
            self._drop()
            raise
        return httpx.Response(head.status_code, headers=list(head.headers.raw_items()), stream=_Body(self, wire))

    async def aclose(self) -> None:
        """Give the connection back."""
        self._drop()

    def release(self) -> None:
        """A response is done with: keep the connection where it was read to its end, else cut it."""
        if self._wire is not None and not self._wire.rest():
            self._drop()

    def _drop(self) -> None:
        wire, self._wire = self._wire, None
        if wire is not None:
            wire.cut()

    async def _connected(self, url: httpx.URL) -> _Wire:
        is_secure = url.scheme == "https"
        host = url.raw_host.decode("ascii")
        port = url.port or (443 if is_secure else 80)
        tls, name = (self._tls, host) if is_secure else (None, None)
        loop = asyncio.get_running_loop()
        try:
            async with asyncio.timeout(self._connect_timeout_s):
                _, wire = await loop.create_connection(_Wire, host, port, ssl=tls, server_hostname=name)
        except TimeoutError as err:
            raise httpx.ConnectTimeout("no connection in time") from err
        except UnicodeError as err:
            raise httpx.InvalidURL("no such host name") from err
        except OSError as err:
            raise httpx.ConnectError(str(err)) from err
        return wire


class _Body(httpx.AsyncByteStream):
    """A response's body as it comes. Closing it frees the connection for the next request."""

    def __init__(self, connection: Connection, wire: _Wire) -> None:
        self._connection = connection
        self._wire = wire

    async def __aiter__(self) -> AsyncIterator[bytes]:
        parts = 0
        with _as_httpx_errors():
            while isinstance(event := await self._wire.event(), h11.Data):
                yield event.data
                parts += 1
                if parts % _PARTS_A_TURN == 0:
                    await asyncio.sleep(0)
            if not isinstance(event, h11.EndOfMessage):
                raise httpx.RemoteProtocolError("the connection changed its protocol")

    async def aclose(self) -> None:
        self._connection.release()


class _Wire(asyncio.Protocol):
    """A connection that is, or was, open."""

    def __init__(self) -> None:
        self._http = h11.Connection(h11.CLIENT, max_incomplete_event_size=MOST_HEAD_BYTES)
        self._idle_since: float | None = time.monotonic()
        self._waiter: asyncio.Future[None] | None = None
        self._unread_bytes = 0
        self._is_lost = False
        self._error: Exception | None = None

    @property
    def is_reusable(self) -> bool:
        """True where a request may be sent."""
        return self._idle_since is not None and not self._is_lost and time.monotonic() - self._idle_since < IDLE_S

    def send(self, request: httpx.Request, body: bytes) -> None:
        """Write a whole request. h11 refuses what is no legal header."""
        head = h11.Request(method=request.method, target=request.url.raw_path, headers=request.headers.raw)
        self._idle_since = None
        first = self._http.send(head) or b""
        if body:
            self._http.send_with_data_passthrough(h11.Data(data=body))
        self._http.send(h11.EndOfMessage())
        if len(body) <= _ONE_WRITE_BYTES:
            self._transport.write(first + body)
        else:
            self._transport.write(first)
            self._transport.write(body)

    async def head(self) -> h11.Response:
        """The response's status and headers."""
        while isinstance(event := await self.event(), h11.InformationalResponse):
            if event.status_code == 101:
                break
        if not isinstance(event, h11.Response):
            raise httpx.RemoteProtocolError("the connection was closed, or changed its protocol, without a response")
        return event

    async def event(self) -> h11.Event | type[h11.NEED_DATA] | type[h11.PAUSED]:
        """The next part of the response, never NEED_DATA."""
        while (event := self._http.next_event()) is h11.NEED_DATA:
            if self._is_lost:
                raise httpx.ReadError(str(self._error or "the connection was closed"))
            self._read_on()
            self._waiter = asyncio.get_running_loop().create_future()
            await self._waiter
        return event

    def rest(self) -> bool:
        """True where both sides are done: the connection waits for the next request."""
        http = self._http
        if self._idle_since is not None:
            return True
        both_done = http.our_state is h11.DONE and http.their_state is h11.DONE
        if self._is_lost or not both_done or http.trailing_data != (b"", False):
            return False
        self._read_on()
        http.start_next_cycle()
        self._idle_since = time.monotonic()
        return True

    def _read_on(self) -> None:
        """What has come is digested."""
        if self._unread_bytes > _READ_AHEAD_BYTES:
            self._transport.resume_reading()
        self._unread_bytes = 0

    def cut(self) -> None:
        """Close at once, whatever is on its way."""
        self._is_lost = True
        self._transport.abort()

    # asyncio's side

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)

    def data_received(self, data: bytes) -> None:
        if self._idle_since is not None:
            # An answer that nobody asked for must not become that of the next request.
            self.cut()
            return
        self._http.receive_data(data)
        self._unread_bytes += len(data)
        if self._unread_bytes > _READ_AHEAD_BYTES:
            self._transport.pause_reading()
        self._wake()

    def eof_received(self) -> None:
        if self._idle_since is not None:
            self._is_lost = True
            return
        self._http.receive_data(b"")
        self._wake()

    def connection_lost(self, exc: Exception | None) -> None:
        self._is_lost = True
        self._error = exc
        self._wake()

    def _wake(self) -> None:
        if self._waiter is not None and not self._waiter.done():
            self._waiter.set_result(None)


@contextmanager
def _as_httpx_errors() -> Iterator[None]:
    try:
        yield
    except h11.LocalProtocolError as err:
        raise httpx.LocalProtocolError(str(err)) from err
    except h11.RemoteProtocolError as err:
        raise httpx.RemoteProtocolError(str(err)) from err
