"""`python -m demo.endpoint`: serve the demo models on 127.0.0.1 until SIGTERM or Ctrl-C."""

from __future__ import annotations

import argparse
import os
import signal
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import FrameType

from demo.endpoint.answers import Endpoint, load_models
from demo.endpoint.server import EndpointServer, open_server

PORT = 8321


def main(arguments: Sequence[str], environ: Mapping[str, str]) -> int:
    """Serve until a signal. The port file exists exactly while the endpoint answers."""
    options = _parser().parse_args(arguments)
    if options.token_env is not None and not environ.get(options.token_env):
        print(f"--token-env: expected a token in the environment variable {options.token_env}", file=sys.stderr)
        return 2
    signal.signal(signal.SIGTERM, _stop)
    try:
        _serve(options.port, options.port_file, environ[options.token_env] if options.token_env else None)
    except KeyboardInterrupt:
        print("stopped", flush=True)
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m demo.endpoint", description="Serve the demo models on 127.0.0.1.")
    parser.add_argument(
        "--port", type=_port, default=PORT, help="another is taken when it is not free (default: %(default)s)"
    )
    parser.add_argument("--port-file", type=Path, help="write the URL that is really used to this file")
    parser.add_argument("--token-env", metavar="NAME", help="ask for the bearer token in this environment variable")
    return parser


def _port(text: str) -> int:
    number = int(text)
    if not 0 <= number <= 65535:
        raise argparse.ArgumentTypeError("expected a number from 0 to 65535")
    return number


def _stop(_signal: int, _frame: FrameType | None) -> None:
    raise KeyboardInterrupt


def _serve(port: int, port_file: Path | None, token: str | None) -> None:
    with open_server(port, Endpoint(load_models(), token)) as server:
        try:
            _announce(server, port, port_file)
            server.serve_forever()
        finally:
            if port_file:
                port_file.unlink(missing_ok=True)


def _announce(server: EndpointServer, port: int, port_file: Path | None) -> None:
    if port_file:
        port_file.parent.mkdir(parents=True, exist_ok=True)
        written = port_file.with_name(port_file.name + ".new")
        written.write_text(server.url + "\n", "utf-8")
        written.replace(port_file)  # a reader sees all of the URL or no file
    if port and not server.url.endswith(f":{port}"):
        print(f"port {port} is taken", flush=True)
    print(f"demo models ready on {server.url}", flush=True)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:], os.environ))
