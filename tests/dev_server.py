"""`make dev` as a process of a test's own: started on a free port, spoken to by GraphQL, ended with all it began.

In a test: `with DevServer(home, log) as server: ... server.url ... server.ask(query) ... server.wait_until(...)`.
"""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any, Self, TypeVar

import httpx

from resources import CHECKOUT

START_S = 180.0
STOP_S = 40.0
PATIENCE_S = 300.0
"""Far above what an idle machine needs: only a state that never comes is waited for so long."""

_LOADED = """{ workspaceOrError { ... on Workspace { locationEntries {
    loadStatus locationOrLoadError { __typename ... on PythonError { message } } } } } }"""

Seen = TypeVar("Seen")


class DevServer:
    """`python -m demo.run dev` on a home folder. Leaving the context ends it and every process that it started."""

    def __init__(self, home: Path, log: Path) -> None:
        self.home = home
        self.log = log
        self.dagster_home = home / ".dagster"
        self.port = _free_port()
        self.url = f"http://127.0.0.1:{self.port}"
        self._client = httpx.Client(base_url=self.url, timeout=60.0, trust_env=False)

    def __enter__(self) -> Self:
        command = [sys.executable, "-m", "demo.run", "dev", "--host", "127.0.0.1", "--port", str(self.port)]
        others = {n: v for n, v in os.environ.items() if not n.startswith(("FOUNDRY_", "DAGSTER_"))}
        with self.log.open("wb") as output:
            self._process = subprocess.Popen(
                command,
                cwd=CHECKOUT,
                env={**others, "FOUNDRY_HOME": str(self.home), "DAGSTER_HOME": str(self.dagster_home)},
                stdout=output,
                stderr=subprocess.STDOUT,
                stdin=subprocess.DEVNULL,
                start_new_session=True,
            )
        try:
            self.wait_until("the code location is loaded", self._is_loaded, START_S)
        except BaseException:
            self.__exit__()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        self._client.close()
        self._process.send_signal(signal.SIGTERM)
        with suppress(subprocess.TimeoutExpired):
            self._process.wait(STOP_S)
        while left := self.processes():
            for process_id in left:
                with suppress(ProcessLookupError):
                    os.kill(process_id, signal.SIGKILL)
            time.sleep(0.05)
        self._process.wait()

    def processes(self) -> list[int]:
        """Those that work on this home: they were given its name in their environment."""
        mark = f"DAGSTER_HOME={self.dagster_home}".encode()
        found = []
        for place in Path("/proc").iterdir():
            with suppress(OSError):
                if place.name.isdigit() and mark in (place / "environ").read_bytes().split(b"\0"):
                    found.append(int(place.name))
        return found

    def ask(self, query: str, **variables: object) -> Mapping[str, Any]:
        """The data of a GraphQL answer."""
        answer = self._client.post("/graphql", json={"query": query, "variables": variables})
        answer.raise_for_status()
        content = answer.json()
        assert not content.get("errors"), content["errors"]
        data: Mapping[str, Any] = content["data"]
        return data

    def wait_until(self, what: str, look: Callable[[], Seen], patience_s: float = PATIENCE_S) -> Seen:
        """What `look` gives once it is true. Where it never is, or the server ends, the log's tail is in the error."""
        deadline = time.monotonic() + patience_s
        while True:
            self.check()
            with suppress(httpx.HTTPError):
                if seen := look():
                    return seen
            if time.monotonic() > deadline:
                raise AssertionError(f"not seen in {patience_s:g} s: {what}; {self.tail()}")
            time.sleep(0.25)

    def check(self) -> None:
        """Raises AssertionError where the server has ended."""
        code = self._process.poll()
        assert code is None, f"`make dev` ended with exit code {code}; {self.tail()}"

    def tail(self) -> str:
        """The end of what the server printed."""
        return f"its log ends with:\n{self.log.read_text(errors='replace')[-4000:]}"

    def _is_loaded(self) -> bool:
        entries = self.ask(_LOADED)["workspaceOrError"].get("locationEntries", [])
        if not entries or any(entry["loadStatus"] != "LOADED" for entry in entries):
            return False
        problems = [entry["locationOrLoadError"].get("message") for entry in entries]
        assert not any(problems), problems
        return True


def _free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as free:
        return int(free.getsockname()[1])
