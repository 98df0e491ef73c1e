"""The endpoint on a socket of 127.0.0.1: HTTP/1.1 with connections that stay open."""

from __future__ import annotations

import errno
import json
import sys
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

from demo.endpoint.answers import Answer, Endpoint

HOST = "127.0.0.1"
MAX_BODY_BYTES = 64 * 1024 * 1024
MAX_LENGTH_DIGITS = 12
IDLE_S = 75


class EndpointServer(ThreadingHTTPServer):
    """One thread a connection. Closing it does not wait for connections that are open and idle."""

    request_queue_size = 128
    daemon_threads = True

    def __init__(self, port: int, endpoint: Endpoint) -> None:
        self.endpoint = endpoint
        super().__init__((HOST, port), RequestHandler)

    def handle_error(self, request: object, client_address: object) -> None:
        """A client that hangs up is no news; anything else is a bug, and its traceback goes to stderr."""
        if not isinstance(sys.exception(), ConnectionError):
            super().handle_error(request, client_address)  # type: ignore[arg-type]

    @property
    def url(self) -> str:
        """Where it really listens, without a slash at the end."""
        return f"http://{HOST}:{self.server_address[1]}"


def open_server(port: int, endpoint: Endpoint) -> EndpointServer:
    """A server on `port`, or on a free one where that is taken; 0 asks for a free one."""
    try:
        return EndpointServer(port, endpoint)
    except OSError as err:
        if err.errno != errno.EADDRINUSE:
            raise
        return EndpointServer(0, endpoint)


class RequestHandler(BaseHTTPRequestHandler):
    """HTTP around `Endpoint`: lengths, methods and limits."""

    server: EndpointServer
    protocol_version = "HTTP/1.1"
    server_version = "foundry-demo"
    sys_version = ""
    timeout = IDLE_S
    wbufsize = -1  # head and body leave in one packet
    disable_nagle_algorithm = True

    def do_GET(self) -> None:
        """`/health`; a model's path says how it wants to be asked. A body is not read, and so costs the connection."""
        if self.headers.get("Content-Length", "0") != "0" or "Transfer-Encoding" in self.headers:
            self.close_connection = True
        if self._path() == "/health":
            self._send(self.server.endpoint.health())
        else:
            self._send((404, {"error": "GET /health, or POST to a model"}))

    def do_POST(self) -> None:
        """A model's path. A body that is not read costs the connection: its bytes would pass for the next request."""
        length = self.headers.get("Content-Length") or ""
        if not (length.isascii() and length.isdigit()):
            self._refuse(411, "expected a Content-Length")
        elif len(length) > MAX_LENGTH_DIGITS or int(length) > MAX_BODY_BYTES:
            self._refuse(413, f"at most {MAX_BODY_BYTES} bytes")
        else:
            self._answer(int(length))

    def _answer(self, length: int) -> None:
        body = self.rfile.read(length)
        if len(body) < length:  # the client went away
            self.close_connection = True
            return
        headers = {name.title(): value for name, value in self.headers.items()}
        self._send(self.server.endpoint.answer(self._path(), body, headers))

    def _path(self) -> str:
        return self.path.partition("?")[0]

    def _refuse(self, status: int, message: str) -> None:
        self.close_connection = True
        self._send((status, {"error": message}))

    def _send(self, answer: Answer) -> None:
        status, reply = answer
        content = json.dumps(reply, allow_nan=False).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(content)))
        if self.close_connection:
            self.send_header("Connection", "close")
        self.end_headers()
        self.wfile.write(content)

    def log_message(self, format: str, *args: object) -> None:  # noqa: A002 (the base class names it)
        """Nothing: `/health` counts the calls, and a line a call would drown the pipeline's progress."""
