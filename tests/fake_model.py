"""A model endpoint on 127.0.0.1 that answers, or misbehaves, as it is told. It remembers every request.

In a test: `with FakeModel(lambda request: Reply({"label": "cat"})) as model: ... model.url ... model.requests`.
As a process of its own, which a test or benchmark may load and kill around:
`python -m tests.fake_model --port-file F --log F --latency 0.05`.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import signal
import socket
import ssl
import struct
import sys
import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any


@dataclass(frozen=True)
class Request:
    """One request as it arrived. `at` is on the machine's monotonic clock; `client_port` tells connections apart."""

    at: float
    path: str
    headers: Mapping[str, str]
    raw: bytes
    client_port: int = 0

    @property
    def body(self) -> Any:
        return json.loads(self.raw)

    @property
    def key(self) -> str:
        return self.headers.get("idempotency-key", "")

    @property
    def text(self) -> str:
        """All text parts of the prompt's user turns."""
        turns = [turn for turn in self.body["prompt"] if turn["role"] == "user"]
        return "\n".join(part["text"] for turn in turns for part in turn["parts"] if "text" in part)


@dataclass(frozen=True)
class Reply:
    """What to answer. `raw` replaces the whole response, byte by byte, and ends the connection unless `keeps_open`;
    `reset` cuts it. `drip_s` is the pause after each byte, of the body alone where `drips_body`; `endless` is sent
    after all the rest, again and again, until the client has had enough."""

    body: Any = field(default_factory=dict)
    status: int = 200
    headers: Mapping[str, str] = field(default_factory=dict)
    delay_s: float = 0.0
    raw: bytes | None = None
    drip_s: float = 0.0
    drips_body: bool = False
    endless: bytes = b""
    keeps_open: bool = False
    reset: bool = False

    def encoded(self) -> bytes:
        if self.raw is not None:
            return self.raw
        body = self.body if isinstance(self.body, bytes) else json.dumps(self.body).encode()
        headers = {"Content-Type": "application/json", "Content-Length": str(len(body)), **self.headers}
        head = "".join(f"{name}: {value}\r\n" for name, value in headers.items())
        return f"HTTP/1.1 {self.status} X\r\n{head}\r\n".encode() + body


Answer = Callable[[Request], Reply]


class FakeModel:
    """`tls` makes it https; the first `cuts` connections are closed and reset, in turn, at the client's first bytes."""

    def __init__(
        self, answer: Answer | None = None, port: int = 0, tls: ssl.SSLContext | None = None, cuts: int = 0
    ) -> None:
        self.answer = answer or (lambda _: Reply())
        self._tls = tls
        self._cuts = cuts
        self._writers: set[asyncio.StreamWriter] = set()
        self.requests: list[Request] = []
        self.in_flight = 0
        self.most_in_flight = 0
        self._socket = socket.create_server(("127.0.0.1", port), backlog=1024, reuse_port=False)
        self.port = self._socket.getsockname()[1]
        self.url = f"{'https' if tls else 'http'}://127.0.0.1:{self.port}/predict"
        self._server: asyncio.Server | None = None
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, daemon=True)

    def __enter__(self) -> FakeModel:
        self._thread.start()
        self._loop.call_soon_threadsafe(lambda: self._loop.create_task(self._begin()))
        return self

    def down_for(self, seconds: float) -> None:
        """Nobody listens for so long, and connections are cut. To be called by `answer`."""
        self._server.close()
        for writer in self._writers:
            writer.transport.abort()
        self._socket = None
        self._loop.call_later(seconds, lambda: self._loop.create_task(self._listen()))

    def __exit__(self, *_: object) -> None:
        asyncio.run_coroutine_threadsafe(self._hush(), self._loop).result()
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()

    async def _begin(self) -> None:
        self._socket.setblocking(False)
        for number in range(self._cuts):
            connection, _ = await self._loop.sock_accept(self._socket)
            await self._loop.sock_recv(connection, 65536)
            if number % 2:
                connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            connection.close()
        await self._listen()

    async def _listen(self) -> None:
        at = self._socket or socket.create_server(("127.0.0.1", self.port), backlog=1024)
        self._server = await asyncio.start_server(self._serve, sock=at, limit=64 * 1024 * 1024, ssl=self._tls)

    async def _hush(self) -> None:
        if self._server is not None:
            self._server.close()
        elif self._socket is not None:
            self._socket.close()
        others = [task for task in asyncio.all_tasks() if task is not asyncio.current_task()]
        for task in others:
            task.cancel()
        await asyncio.gather(*others, return_exceptions=True)

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._writers.add(writer)
        try:
            while (request := await self._read(reader, writer)) is not None:
                self.requests.append(request)
                self.in_flight += 1
                self.most_in_flight = max(self.most_in_flight, self.in_flight)
                try:
                    keep = await self._write(writer, self.answer(request))
                finally:
                    self.in_flight -= 1
                if not keep:
                    break
        except (ConnectionError, asyncio.IncompleteReadError, asyncio.CancelledError):
            pass
        finally:
            self._writers.discard(writer)
            writer.close()

    async def _read(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> Request | None:
        try:
            head = await reader.readuntil(b"\r\n\r\n")
        except asyncio.IncompleteReadError:
            return None
        at = time.monotonic()
        first, *lines = head.decode("latin-1").split("\r\n")
        headers = {n.lower(): v.strip() for n, _, v in (line.partition(":") for line in lines) if n}
        raw = await reader.readexactly(int(headers.get("content-length", "0")))
        return Request(at, first.split(" ")[1], headers, raw, writer.get_extra_info("peername")[1])

    async def _write(self, writer: asyncio.StreamWriter, reply: Reply) -> bool:
        if reply.delay_s:
            await asyncio.sleep(reply.delay_s)
        content = reply.encoded()
        at_once = content.index(b"\r\n\r\n") + 4 if reply.drips_body else 0 if reply.drip_s else len(content)
        writer.write(content[:at_once])
        await writer.drain()
        for byte in content[at_once:]:
            writer.write(bytes((byte,)))
            await writer.drain()
            await asyncio.sleep(reply.drip_s)
        while reply.endless:
            writer.write(reply.endless)
            await writer.drain()
            await asyncio.sleep(0)
        if reply.reset:
            sock = writer.get_extra_info("socket")
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            writer.transport.abort()
        return reply.raw is None or reply.keeps_open


def windows(arrivals: list[float], width_s: float = 1.0) -> int:
    """The most arrivals in any window of `width_s`."""
    ordered = sorted(arrivals)
    most = first = 0
    for last, at in enumerate(ordered):
        while at - ordered[first] >= width_s:
            first += 1
        most = max(most, last - first + 1)
    return most


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--port-file", type=Path, required=True)
    parser.add_argument("--log", type=Path, required=True, help="a line per request: monotonic time, key, client port")
    parser.add_argument("--latency", type=float, default=0.0)
    parser.add_argument("--reply", default='{"label": "cat"}')
    given = parser.parse_args()
    log = given.log.open("a", buffering=1)

    def answer(request: Request) -> Reply:
        log.write(f"{request.at:.6f} {request.key} {request.headers.get('x-who', '-')}\n")
        return Reply(given.reply.encode(), delay_s=given.latency)

    with FakeModel(answer) as model:
        given.port_file.write_text(model.url)
        signal.sigwait({signal.SIGTERM, signal.SIGINT})
    sys.exit(0)


if __name__ == "__main__":
    main()
