"""A model that answers after a fixed time, cheaply, as a process of its own: `python -m benchmarks.stub ...`.

It remembers when each request arrived, on the machine's monotonic clock, and who sent it (header X-Who); asked to end
(SIGTERM), it writes that down, a line per request: time, a space, who.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import httptools

CHECKOUT = Path(__file__).parent.parent


class Arrival(NamedTuple):
    """A request at the server: monotonic seconds, and its X-Who."""

    at: float
    who: str


class Model:
    """The stub while it runs, and its arrivals once it has ended."""

    def __init__(self, url: str, log: Path) -> None:
        self.url = url
        self._log = log

    @property
    def arrivals(self) -> list[Arrival]:
        """In order; only after the stub has ended."""
        lines = (line.split(" ", 1) for line in self._log.read_text().splitlines())
        return sorted(Arrival(float(at), who) for at, who in lines)


@contextlib.contextmanager
def model(folder: Path, latency_s: float, reply: str = '{"label": "cat"}') -> Iterator[Model]:
    """Run the stub; `folder` takes its files."""
    folder.mkdir(parents=True, exist_ok=True)
    url, log = folder / "url", folder / "arrivals"
    (folder / "reply").write_text(reply)
    command = [sys.executable, "-m", "benchmarks.stub", url, log, str(latency_s), folder / "reply"]
    process = subprocess.Popen(command, cwd=CHECKOUT)
    try:
        while not (url.exists() and url.read_text()):
            assert process.poll() is None
            time.sleep(0.02)
        yield Model(url.read_text(), log)
    finally:
        process.terminate()
        process.wait()


class _Connection(asyncio.Protocol):
    """One client. The parser calls its `on_` methods."""

    def __init__(self, latency_s: float, answer: bytes, arrivals: list[Arrival]) -> None:
        self._parser = httptools.HttpRequestParser(self)
        self._latency_s = latency_s
        self._answer = answer
        self._arrivals = arrivals
        self._who = "-"
        self._at = 0.0

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = transport

    def data_received(self, data: bytes) -> None:
        self._parser.feed_data(data)

    def on_message_begin(self) -> None:
        self._at = time.monotonic()

    def on_header(self, name: bytes, value: bytes) -> None:
        if name.lower() == b"x-who":
            self._who = value.decode()

    def on_message_complete(self) -> None:
        self._arrivals.append(Arrival(self._at, self._who))
        asyncio.get_running_loop().call_later(self._latency_s, self._transport.write, self._answer)


async def _serve(url: Path, log: Path, latency_s: float, reply: bytes) -> None:
    head = b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: %d\r\n\r\n" % len(reply)
    arrivals: list[Arrival] = []
    loop = asyncio.get_running_loop()
    server = await loop.create_server(
        lambda: _Connection(latency_s, head + reply, arrivals), "127.0.0.1", 0, backlog=1024
    )
    ended = asyncio.Event()
    loop.add_signal_handler(signal.SIGTERM, ended.set)
    url.write_text(f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}/predict")
    await ended.wait()
    log.write_text("".join(f"{arrival.at:.6f} {arrival.who}\n" for arrival in arrivals))


def main() -> None:
    """Serve until SIGTERM. On a busy machine the clock of the log is only as good as the stub's turn to run."""
    with contextlib.suppress(PermissionError):
        os.setpriority(os.PRIO_PROCESS, 0, -15)
    parser = argparse.ArgumentParser()
    parser.add_argument("url", type=Path, help="file that takes the URL")
    parser.add_argument("log", type=Path, help="file that takes the arrivals")
    parser.add_argument("latency", type=float, help="seconds")
    parser.add_argument("reply", type=Path, help="file that holds the body of every answer")
    given = parser.parse_args()
    asyncio.run(_serve(given.url, given.log, given.latency, given.reply.read_bytes()))


if __name__ == "__main__":
    main()
