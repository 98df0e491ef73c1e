"""A PostgreSQL cluster of the tests' own, in a temporary folder, and a proxy that can lose its connections.

Debian's binaries are looked for where its packages put them, else in PATH. PostgreSQL refuses to run as root, so then
it runs as another user. A test gets a database of its own.
"""

from __future__ import annotations

import contextlib
import os
import pwd
import shutil
import signal
import socket
import subprocess
import tempfile
import threading
import time
from pathlib import Path
from typing import Self

import pg8000.native

REQUIRED = "FOUNDRY_TEST_POSTGRES"
"""Set to `required`, a missing PostgreSQL is a failure and no reason to skip."""
ABSENT = "PostgreSQL's binaries are neither under /usr/lib/postgresql nor in PATH: apt-get install postgresql"
USER, PASSWORD = "foundry", "s3cr3t/p@ss word"
QUOTED = "s3cr3t%2Fp%40ss%20word"


def binaries() -> Path | None:
    """The folder of initdb and postgres, newest version first."""
    versions = sorted(Path("/usr/lib/postgresql").glob("*/bin/postgres"), key=lambda p: -int(p.parts[-3]))
    found = versions[0] if versions else shutil.which("postgres")
    return Path(found).resolve().parent if found else None


def _other_user() -> str | None:
    if os.getuid() != 0:
        return None
    names = {entry.pw_name for entry in pwd.getpwall()}
    return next(name for name in ("postgres", "nobody") if name in names)


class Cluster:
    """A server on 127.0.0.1 and on a unix socket in `folder`. Use as a context manager."""

    def __init__(self, bin_folder: Path) -> None:
        self._bin = bin_folder
        self._user = _other_user()
        self.folder = Path(tempfile.mkdtemp(prefix="foundry-pg-"))
        self._data = self.folder / "data"
        with socket.create_server(("127.0.0.1", 0)) as free:
            self.port: int = free.getsockname()[1]

    def __enter__(self) -> Self:
        password = self.folder / "password"
        password.write_text(PASSWORD)
        if self._user is not None:
            for path in (self.folder, password):
                shutil.chown(path, self._user)
        command = ["initdb", "-D", str(self._data), "-U", USER, "-A", "scram-sha-256", "--no-sync", "-E", "UTF8"]
        done = self._run([*command, "--locale=C", f"--pwfile={password}"])
        assert done.returncode == 0, done.stdout + done.stderr
        self.start()
        return self

    def __exit__(self, *exc: object) -> None:
        self.stop(signal.SIGQUIT)
        shutil.rmtree(self.folder)

    def start(self) -> None:
        settings = {
            "port": self.port,
            "listen_addresses": "127.0.0.1",
            "unix_socket_directories": str(self.folder),
            "fsync": "off",
            "shared_buffers": "32MB",
            "max_connections": 50,
        }
        command = [str(self._bin / "postgres"), "-D", str(self._data)]
        command += [word for name, value in settings.items() for word in ("-c", f"{name}={value}")]
        with (self.folder / "log").open("ab") as log:
            self._server = subprocess.Popen(command, stdout=log, stderr=log, cwd="/", user=self._user)
        deadline = time.monotonic() + 60
        while True:
            try:
                self.connect("postgres").close()
                return
            except (pg8000.native.Error, OSError):
                assert self._server.poll() is None, (self.folder / "log").read_text()
                assert time.monotonic() < deadline, (self.folder / "log").read_text()
                time.sleep(0.02)

    def stop(self, how: signal.Signals = signal.SIGINT) -> None:
        """SIGINT: connections are ended, what is committed is written. SIGQUIT: at once, as in a crash."""
        self._server.send_signal(how)
        self._server.wait()

    def connect(self, database: str) -> pg8000.native.Connection:
        sock = socket.create_connection(("127.0.0.1", self.port), 10)
        try:
            return pg8000.native.Connection(USER, database=database, password=PASSWORD, sock=sock, ssl_context=False)
        except BaseException:
            sock.close()
            raise

    def empty_database(self) -> str:
        """The name of a database that nobody uses and that holds nothing: one for all tests, since making one costs
        eight megabytes."""
        others = "FROM pg_stat_activity WHERE datname = 'postgres' AND pid <> pg_backend_pid()"
        self.sql("postgres", f"SELECT pg_terminate_backend(pid) {others}")
        self.sql("postgres", "DROP SCHEMA IF EXISTS foundry_ledger CASCADE")
        return "postgres"

    def url(self, database: str, options: str = "", port: int | None = None) -> str:
        return f"postgresql://{USER}:{QUOTED}@127.0.0.1:{port or self.port}/{database}?sslmode=disable{options}"

    def sql(self, database: str, statement: str) -> list[list[object]]:
        with contextlib.closing(self.connect(database)) as connection:
            return list(connection.run(statement) or [])

    def _run(self, words: list[str]) -> subprocess.CompletedProcess[str]:
        command = [str(self._bin / words[0]), *words[1:]]
        return subprocess.run(command, capture_output=True, text=True, check=False, cwd="/", user=self._user)


class Proxy:
    """Sits between a client and a server on 127.0.0.1; the test says when it loses what."""

    def __init__(self, port: int) -> None:
        self._target = port
        self.round_trip_s = 0.0
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.port: int = self._listener.getsockname()[1]
        self._pairs: list[tuple[socket.socket, socket.socket]] = []
        self._lock = threading.Lock()
        self.commits_to_lose = 0
        """So many commits are delivered, and their connection dies before the server's answer comes."""

    def __enter__(self) -> Self:
        threading.Thread(target=self._accept, daemon=True).start()
        return self

    def __exit__(self, *exc: object) -> None:
        self._listener.close()
        self.cut()

    def stop_listening(self) -> None:
        """No new connection is let through."""
        self._target = 1

    def cut(self) -> None:
        """Every connection dies."""
        with self._lock:
            pairs = list(self._pairs)
        for pair in pairs:
            for end in pair:
                with contextlib.suppress(OSError):
                    end.shutdown(socket.SHUT_RDWR)

    def _accept(self) -> None:
        with contextlib.suppress(OSError):
            while True:
                client, _ = self._listener.accept()
                threading.Thread(target=self._serve, args=(client,), daemon=True).start()

    def _serve(self, client: socket.socket) -> None:
        try:
            server = socket.create_connection(("127.0.0.1", self._target))
        except OSError:
            client.close()
            return
        pair = (client, server)
        for end in pair:
            end.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        with self._lock:
            self._pairs.append(pair)
        answers = threading.Thread(target=self._pass_on, args=(server, client, False), daemon=True)
        answers.start()
        self._pass_on(client, server, True)
        answers.join()
        with self._lock:
            self._pairs.remove(pair)
        for end in pair:
            end.close()

    def _pass_on(self, source: socket.socket, target: socket.socket, asks: bool) -> None:
        is_commit = False
        with contextlib.suppress(OSError):
            while piece := source.recv(1 << 16):
                time.sleep(self.round_trip_s / 2)
                if asks and b"P\x00" in piece:
                    is_commit = b"commit\x00" in piece
                if is_commit and self.commits_to_lose and _EXECUTE in piece:
                    self.commits_to_lose -= 1
                    source.shutdown(socket.SHUT_RDWR)
                    target.sendall(piece)
                    time.sleep(0.2)
                    break
                target.sendall(piece)
        for end in (source, target):
            with contextlib.suppress(OSError):
                end.shutdown(socket.SHUT_RDWR)


_EXECUTE = b"E\x00\x00\x00\x09\x00\x00\x00\x00\x00"
"""The message that runs what was parsed."""
