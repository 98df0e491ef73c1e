"""`python -m demo.run demo`: the whole pipeline on the demo's home. `python -m demo.run dev`: the Dagster UI.

Starts and stops the demo endpoint around them; `make demo` and `make dev` call it.
"""

from __future__ import annotations

import argparse
import os
import signal
import subprocess
import sys
import tempfile
import time
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext, suppress
from pathlib import Path
from types import FrameType

import httpx
import polars as pl

from assets.instance import prepare_dagster_home
from assets.materialize import FAILED, FINE, STOPPED, materialize
from resources import CHECKOUT, DEMO_HOME, Places, places_of

PORT = 8321
"""Fixed, since an endpoint's address is part of a call's identity: the second time, no call is made."""
URL_VARIABLE = "FOUNDRY_DEMO_URL"
NEWEST_MODEL = "chat"
"""An endpoint that lacks it is another's, or an older one."""
START_S = 120.0
STOP_S = 20.0
BOXES_SHOWN = 12
PREVIEWED = "pictures_objects"


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command; its exit code."""
    parser = argparse.ArgumentParser(prog="python -m demo.run", description=__doc__)
    parser.add_argument("command", choices=("demo", "dev"))
    arguments, rest = parser.parse_known_args(argv)
    signal.signal(signal.SIGTERM, _interrupt)
    try:
        return _demo() if arguments.command == "demo" else _dev(rest)
    except KeyboardInterrupt:
        return STOPPED
    except EndpointError as error:
        print(error, file=sys.stderr)
        return FAILED


class EndpointError(Exception):
    """The demo endpoint does not start; the message says what it printed."""


def _demo() -> int:
    warnings.simplefilter("ignore")  # Dagster's notes to developers
    places = places_of(os.environ, DEMO_HOME)
    with demo_endpoint() as url:
        print(f"demo models answer at {url}", flush=True)
        os.environ[URL_VARIABLE] = url
        code = materialize(places, [], environ=os.environ, out=sys.stdout, err=sys.stderr)
        if code == FINE:  # every row has its answer now: this calls nobody
            print(flush=True)
            code = materialize(
                places, [PREVIEWED], only_previews=True, environ=os.environ, out=sys.stdout, err=sys.stderr
            )
    if code != STOPPED:
        _show_boxes(places)
        print(f"\ntables:     {places.warehouse}\nexports:    {places.warehouse}/annotations")
        print("the UI:     make dev, then http://127.0.0.1:3000/asset-groups")
    return code


def _dev(rest: Sequence[str]) -> int:
    """`dagster dev` until Ctrl-C, with the demo endpoint where the home is the demo's."""
    places = places_of(os.environ)
    prepare_dagster_home(places.dagster_home)
    is_demo = places.home.resolve() == DEMO_HOME.resolve()
    with demo_endpoint() if is_demo else nullcontext() as url:
        environ = {**os.environ, "DAGSTER_HOME": str(places.dagster_home), "FOUNDRY_HOME": str(places.home)}
        if url is not None:
            environ[URL_VARIABLE] = url
        command = [sys.executable, "-m", "dagster", "dev", "-w", str(CHECKOUT / "workspace.yaml"), *rest]
        # A session of its own: Ctrl-C is for us, and Dagster's five processes get one signal and not two.
        process = subprocess.Popen(command, env=environ, start_new_session=True)  # noqa: S603, our own command
        with _stopped_at_the_end(process, signal.SIGINT):
            return process.wait()


@contextmanager
def demo_endpoint() -> Iterator[str]:
    """The URL of a demo endpoint: of one that already runs on its port, or of one started here and stopped after."""
    running = f"http://127.0.0.1:{PORT}"
    if _is_healthy(running):
        yield running
        return
    with tempfile.TemporaryDirectory() as folder:
        url_file, log = Path(folder, "url"), Path(folder, "log")
        command = [sys.executable, "-m", "demo.endpoint", "--port", str(PORT), "--port-file", str(url_file)]
        with log.open("wb") as output:
            process = subprocess.Popen(  # noqa: S603, our own command
                command,
                cwd=CHECKOUT,
                stdout=output,
                stderr=subprocess.STDOUT,
                start_new_session=True,  # Ctrl-C is for us: calls in flight still want their answer
            )
        with _stopped_at_the_end(process):
            yield _url_of(process, url_file, log)


def _url_of(process: subprocess.Popen[bytes], url_file: Path, log: Path) -> str:
    deadline = time.monotonic() + START_S
    while time.monotonic() < deadline and process.poll() is None:
        with suppress(FileNotFoundError):
            url = url_file.read_text().strip()
            if url and _is_healthy(url):
                return url
        time.sleep(0.1)
    raise EndpointError(f"the demo endpoint does not start; it printed:\n{log.read_text(errors='replace')[-2000:]}")


def _is_healthy(url: str) -> bool:
    try:
        answer = httpx.get(f"{url}/health", timeout=2.0, trust_env=False)
        return answer.status_code == httpx.codes.OK and NEWEST_MODEL in answer.json()["calls"]
    except (httpx.HTTPError, ValueError, KeyError, TypeError):
        return False  # nobody, or somebody else's server


@contextmanager
def _stopped_at_the_end(process: subprocess.Popen[bytes], by: signal.Signals = signal.SIGTERM) -> Iterator[None]:
    try:
        yield
    finally:
        process.send_signal(by)
        try:
            process.wait(STOP_S)
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)  # each was started as a session of its own
            process.wait()


def _show_boxes(places: Places) -> None:
    """A few boxes, read as anybody would read them."""
    files = f"{places.warehouse}/boxes/**/*.parquet"
    columns = ["run", "global_key", "frame", "feature", "score", "left", "top", "width", "height"]
    try:
        boxes = pl.scan_parquet(files).select(columns).sort("score", descending=True).head(BOXES_SHOWN).collect()
    except (pl.exceptions.PolarsError, OSError):
        return
    print(f'\npolars.scan_parquet("{files}")')
    with pl.Config(
        tbl_formatting="ASCII_MARKDOWN", tbl_hide_dataframe_shape=True, tbl_rows=-1, tbl_cols=-1, tbl_width_chars=120
    ):
        print(boxes.with_columns(pl.col(pl.Float64).round(2)))


def _interrupt(_signal: int, _frame: FrameType | None) -> None:
    raise KeyboardInterrupt


if __name__ == "__main__":
    sys.exit(main())
