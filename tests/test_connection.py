"""One call over our own connection, against servers that say odd things; and over httpx's transport, alike."""

from __future__ import annotations

import asyncio
import contextlib
import gzip
import shutil
import socket
import ssl
import subprocess
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path

import httpx
import pytest
import uvloop

from foundry_pipeline.calls.client import Broken, Fault, ModelClient, Response
from foundry_pipeline.calls.connection import MOST_HEAD_BYTES, request_head

OK = b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: 2\r\n\r\n{}"
Serve = Callable[[asyncio.StreamReader, asyncio.StreamWriter], Awaitable[None]]
Post = Callable[..., Awaitable[Response | Fault]]


@pytest.fixture(params=["asyncio", "uvloop"])
def loops(request: pytest.FixtureRequest) -> Callable[[], asyncio.AbstractEventLoop]:
    return {"asyncio": asyncio.new_event_loop, "uvloop": uvloop.new_event_loop}[request.param]


@pytest.fixture(params=["ours", "httpx"])
def transport(request: pytest.FixtureRequest) -> Callable[[], httpx.AsyncBaseTransport | None]:
    return {"ours": lambda: None, "httpx": lambda: httpx.AsyncHTTPTransport(trust_env=False)}[request.param]


async def read_request(reader: asyncio.StreamReader) -> bytes:
    """A whole request, b"" where the client has gone."""
    try:
        head = await reader.readuntil(b"\r\n\r\n")
    except asyncio.IncompleteReadError:
        return b""
    (length,) = (int(line.split(b":")[1]) for line in head.lower().split(b"\r\n") if line.startswith(b"content-length"))
    return head + await reader.readexactly(length)


@contextlib.asynccontextmanager
async def calling(
    serve: Serve,
    *,
    timeout_s: float = 5.0,
    max_bytes: int = 1_000_000,
    transport: httpx.AsyncBaseTransport | None = None,
    tls: tuple[ssl.SSLContext, ssl.SSLContext] | None = None,
    scheme: str = "http",
) -> AsyncIterator[ModelClient]:
    """A client of a server that treats every connection as `serve` does. `tls` is (server's, client's)."""

    serving: list[asyncio.Task[None] | None] = []

    async def guarded(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        serving.append(asyncio.current_task())
        with contextlib.suppress(ConnectionError, asyncio.CancelledError):
            await serve(reader, writer)
            writer.close()
            await writer.wait_closed()
        writer.transport.abort()

    server = await asyncio.start_server(guarded, "127.0.0.1", 0, ssl=tls[0] if tls else None)
    port = server.sockets[0].getsockname()[1]
    client = ModelClient(
        f"{scheme}://localhost:{port}/predict",
        timeout_s=timeout_s,
        max_reply_bytes=max_bytes,
        tls=tls[1] if tls else ssl.create_default_context(),
        transport=transport,
    )
    try:
        yield client
    finally:
        await client.close()
        server.close()
        for task in filter(None, serving):
            task.cancel()
            await task
        await asyncio.sleep(0.01)


def answering(*responses: bytes, then_close: bool = True) -> Serve:
    """Gives one response a request, in order; then closes the connection, or leaves it open."""

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        for response in responses:
            if not await read_request(reader):
                return
            writer.write(response)
            await writer.drain()
        if not then_close:
            await reader.read()

    return serve


def posts(
    loops: Callable[[], asyncio.AbstractEventLoop], serve: Serve, times: int = 1, **options: object
) -> list[object]:
    """The outcomes of some posts, one after the other."""

    async def go() -> list[object]:
        async with calling(serve, **options) as client:  # type: ignore[arg-type]
            return [await client.post(b"{}", {}, {}) for _ in range(times)]

    with asyncio.Runner(loop_factory=loops) as runner:
        return runner.run(go())


def chunked(*chunks: bytes, trailer: bytes = b"") -> bytes:
    body = b"".join(b"%x\r\n%b\r\n" % (len(chunk), chunk) for chunk in chunks)
    return b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n" + body + b"0\r\n" + trailer + b"\r\n"


@pytest.mark.parametrize(
    ("response", "body"),
    [
        (OK, b"{}"),
        (b"HTTP/1.1 200 OK\nContent-Length: 2\n\n{}", b"{}"),
        (b"HTTP/1.1 200\r\nContent-Length: 2\r\n\r\n{}", b"{}"),
        (b"HTTP/1.0 200 OK\r\n\r\n{}", b"{}"),
        (b"HTTP/1.1 200 OK\r\nConnection: close\r\n\r\n{}", b"{}"),
        (b"HTTP/1.1 200 OK\r\nX-Empty:\r\nX-Twice: a\r\nX-Twice: b\r\nContent-Length: 2\r\n\r\n{}", b"{}"),
        (b"HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 103 Early Hints\r\nLink: x\r\n\r\n" + OK, b"{}"),
        (b"HTTP/1.1 204 No Content\r\n\r\n", b""),
        (chunked(b"{", b"}"), b"{}"),
        (chunked(*[b"x"] * 3000), b"x" * 3000),
        (chunked(b"{}", trailer=b"X-Late: 1\r\n"), b"{}"),
    ],
)
def test_every_legal_way_to_answer_is_understood(
    loops: Callable[[], asyncio.AbstractEventLoop], response: bytes, body: bytes
) -> None:
    (result,) = posts(loops, answering(response))
    assert isinstance(result, Response), result
    assert (result.status, result.body) == (204 if not body else 200, body)
    assert result.headers.get("x-twice", "a, b") == "a, b"
    assert result.headers.get("x-empty", "") == ""
    assert "x-late" not in result.headers


@pytest.mark.parametrize(
    "response",
    [
        b"garbage\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nContent-Length: 99\r\n\r\n{}",
        b"HTTP/1.1 200 OK\r\nContent-Length: -1\r\n\r\n{}",
        b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\nContent-Length: 3\r\n\r\n{}",
        b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\nTransfer-Encoding: chunked\r\n\r\n2\r\n{}\r\n0\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n2\r\n{}\r\n",
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\nxyz\r\n",
        b"HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: h2c\r\n\r\n{}",
        b"HTTP/1.1 200 OK\r\nContent-Le",
        b"HTTP/1.1 100 Continue\r\n\r\n",
        b"HTTP/9.9 200 OK\r\nContent-Length: 2\r\n\r\n{}",
    ],
)
def test_what_is_no_legal_response_is_a_cut_call(
    loops: Callable[[], asyncio.AbstractEventLoop], response: bytes
) -> None:
    (result,) = posts(loops, answering(response))
    assert isinstance(result, Fault), result
    assert result.broken is Broken.CUT


@pytest.mark.parametrize(
    "endless",
    [
        (b"HTTP/1.1 200 OK\r\nX: ", b"x" * 4096),
        (b"HTTP/1.1 200 OK\r\n", b"X: y\r\n" * 512),
        (b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n0\r\nX: ", b"x" * 4096),
        (b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n2;", b"x" * 4096),
        (b"", b"HTTP/1.1 100 Continue\r\n\r\n" * 100),
    ],
)
def test_what_surrounds_a_body_is_bounded(
    loops: Callable[[], asyncio.AbstractEventLoop], endless: tuple[bytes, bytes]
) -> None:
    sent = 0

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        nonlocal sent
        await read_request(reader)
        writer.write(endless[0])
        while sent < 50_000_000:
            writer.write(endless[1])
            sent += len(endless[1])
            await writer.drain()

    (result,) = posts(loops, serve)
    assert isinstance(result, Fault), result
    assert result.broken is Broken.CUT
    assert sent < 100 * MOST_HEAD_BYTES, "buffers of the kernel included"


def test_the_size_limit_holds_for_the_body_as_it_is_and_as_it_inflates(
    loops: Callable[[], asyncio.AbstractEventLoop], transport: Callable[[], httpx.AsyncBaseTransport | None]
) -> None:
    bomb = gzip.compress(b" " * 20_000_000)
    plain = b"HTTP/1.1 200 OK\r\nContent-Length: 1000001\r\n\r\n" + b" " * 1_000_001
    inflating = b"HTTP/1.1 200 OK\r\nContent-Encoding: gzip\r\nContent-Length: %d\r\n\r\n" % len(bomb) + bomb
    for response in (plain, inflating):
        (result,) = posts(loops, answering(response), transport=transport())
        assert isinstance(result, Fault), result
        assert (result.broken, len(result.partial) <= 65536) == (Broken.TOO_LARGE, True)


@pytest.mark.parametrize(
    ("encoding", "body", "broken"),
    [
        (b"gzip", gzip.compress(b"{}", mtime=0), None),
        (b"x-gzip", gzip.compress(b"{}", mtime=0), None),
        (b"identity", b"{}", None),
        (b"gzip", gzip.compress(b"{}", mtime=0)[:-9], Broken.CUT),
        (b"gzip", b"{}", Broken.ENCODING),
        (b"br", b"{}", Broken.ENCODING),
        (b"gzip, gzip", b"{}", Broken.ENCODING),
    ],
)
def test_a_compressed_body_is_read_whole_or_not_at_all(
    transport: Callable[[], httpx.AsyncBaseTransport | None], encoding: bytes, body: bytes, broken: Broken | None
) -> None:
    head = b"HTTP/1.1 200 OK\r\nContent-Encoding: %b\r\nContent-Length: %d\r\n\r\n" % (encoding, len(body))
    (result,) = posts(asyncio.new_event_loop, answering(head + body), transport=transport())
    if broken is None:
        assert isinstance(result, Response), result
        assert result.body == b"{}"
    else:
        assert isinstance(result, Fault), result
        assert result.broken is broken


@pytest.mark.parametrize("drip", [b"HTTP/1.1 200 OK\r\nX: " + b"x" * 200, OK[:-2] + b" " * 200])
def test_a_server_that_drips_is_cut_at_the_deadline(
    loops: Callable[[], asyncio.AbstractEventLoop],
    transport: Callable[[], httpx.AsyncBaseTransport | None],
    drip: bytes,
) -> None:
    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await read_request(reader)
        for byte in drip.replace(b"Content-Length: 2", b"Content-Length: 200"):
            writer.write(bytes([byte]))
            await writer.drain()
            await asyncio.sleep(0.05)

    (result,) = posts(loops, serve, timeout_s=0.4, transport=transport())
    assert isinstance(result, Fault), result
    assert (result.broken, result.message) == (Broken.TIMEOUT, "no whole answer within 0.4 s")


def test_a_redirect_is_an_answer_and_is_not_followed(
    transport: Callable[[], httpx.AsyncBaseTransport | None],
) -> None:
    away = b"HTTP/1.1 307 X\r\nLocation: /other\r\nContent-Length: 0\r\n\r\n"
    (result,) = posts(asyncio.new_event_loop, answering(away, OK), transport=transport())
    assert isinstance(result, Response), result
    assert (result.status, result.headers["location"]) == (307, "/other")


def test_a_cookie_is_not_sent_back(transport: Callable[[], httpx.AsyncBaseTransport | None]) -> None:
    requests = []

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while request := await read_request(reader):
            requests.append(request)
            writer.write(OK.replace(b"\r\n", b"\r\nSet-Cookie: a=b\r\n", 1))

    posts(asyncio.new_event_loop, serve, times=2, transport=transport())
    assert len(requests) == 2
    assert b"cookie" not in requests[1].lower()


def test_one_connection_serves_many_requests(loops: Callable[[], asyncio.AbstractEventLoop]) -> None:
    connections = 0

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        nonlocal connections
        connections += 1
        await answering(*[OK] * 9)(reader, writer)

    results = posts(loops, serve, times=5)
    assert all(isinstance(result, Response) for result in results)
    assert connections == 1


def test_a_connection_that_the_server_closed_meanwhile_is_opened_anew(
    loops: Callable[[], asyncio.AbstractEventLoop],
) -> None:
    async def go() -> list[Response | Fault]:
        async with calling(answering(OK)) as client:
            first = await client.post(b"{}", {}, {})
            await asyncio.sleep(0.1)
            return [first, await client.post(b"{}", {}, {})]

    with asyncio.Runner(loop_factory=loops) as runner:
        assert all(isinstance(result, Response) for result in runner.run(go()))


def test_a_connection_that_closes_as_a_request_comes_is_told_from_a_response_that_was_cut(
    loops: Callable[[], asyncio.AbstractEventLoop],
) -> None:
    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await answering(OK, b"")(reader, writer)

    first, second = posts(loops, serve, times=2)
    assert isinstance(first, Response)
    assert isinstance(second, Fault)
    assert second.broken is Broken.CLOSED
    (only,) = posts(loops, answering(OK[:-1]))
    assert isinstance(only, Fault)
    assert only.broken is Broken.CUT


@pytest.mark.parametrize("more", [OK.replace(b"{}", b"[]"), b"junk"])
def test_an_answer_that_nobody_asked_for_is_not_that_of_the_next_request(
    loops: Callable[[], asyncio.AbstractEventLoop], more: bytes
) -> None:
    async def at_once(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await answering(OK + more, OK, then_close=False)(reader, writer)

    async def later(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await answering(OK)(reader, writer)
        await asyncio.sleep(0.05)
        writer.write(more)
        await answering(OK)(reader, writer)

    async def go(serve: Serve) -> list[Response | Fault]:
        async with calling(serve) as client:
            results = []
            for _ in range(3):
                results.append(await client.post(b"{}", {}, {}))
                await asyncio.sleep(0.1)
            return results

    with asyncio.Runner(loop_factory=loops) as runner:
        for serve in (at_once, later):
            assert [getattr(result, "body", result) for result in runner.run(go(serve))] == [b"{}"] * 3


def test_an_answer_that_comes_after_the_deadline_is_not_that_of_the_next_request(
    loops: Callable[[], asyncio.AbstractEventLoop],
) -> None:
    slow = True

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        nonlocal slow
        while await read_request(reader):
            await asyncio.sleep(0.5 if slow else 0)
            writer.write(OK.replace(b"{}", b"[]") if slow else OK)
            slow = False

    async def go() -> list[Response | Fault]:
        async with calling(serve, timeout_s=0.3) as client:
            first = await client.post(b"{}", {}, {})
            await asyncio.sleep(0.4)
            return [first, await client.post(b"{}", {}, {})]

    with asyncio.Runner(loop_factory=loops) as runner:
        first, second = runner.run(go())
    assert isinstance(first, Fault)
    assert isinstance(second, Response)
    assert second.body == b"{}"


def test_a_refusal_before_the_body_was_read_is_read(loops: Callable[[], asyncio.AbstractEventLoop]) -> None:
    too_large = b"HTTP/1.1 413 Too Large\r\nContent-Length: 2\r\n\r\n{}"

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        writer.write(too_large)
        await writer.drain()
        await asyncio.sleep(0.2)

    async def go() -> Response | Fault:
        async with calling(serve) as client:
            return await client.post(b"x" * 20_000_000, {}, {})

    with asyncio.Runner(loop_factory=loops) as runner:
        result = runner.run(go())
    assert isinstance(result, Response), result
    assert result.status == 413


def test_a_large_body_arrives_whole(
    loops: Callable[[], asyncio.AbstractEventLoop], transport: Callable[[], httpx.AsyncBaseTransport | None]
) -> None:
    body = bytes(range(256)) * 20_000
    seen = []

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        seen.append((await read_request(reader)).partition(b"\r\n\r\n")[2])
        writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n" % len(body) + body)
        await writer.drain()

    async def go() -> Response | Fault:
        async with calling(serve, max_bytes=len(body), transport=transport()) as client:
            return await client.post(body, {}, {})

    with asyncio.Runner(loop_factory=loops) as runner:
        result = runner.run(go())
    assert isinstance(result, Response), result
    assert (result.body == body, seen == [body]) == (True, True)


def test_nobody_listens_is_told_from_no_such_host(
    loops: Callable[[], asyncio.AbstractEventLoop], transport: Callable[[], httpx.AsyncBaseTransport | None]
) -> None:
    with socket.create_server(("127.0.0.1", 0)) as unused:
        port = unused.getsockname()[1]

    async def go(url: str) -> Response | Fault:
        client = ModelClient(
            url, timeout_s=5, max_reply_bytes=99, tls=ssl.create_default_context(), transport=transport()
        )
        await client.open()
        try:
            return await client.post(b"{}", {}, {})
        finally:
            await client.close()

    with asyncio.Runner(loop_factory=loops) as runner:
        refused = runner.run(go(f"http://127.0.0.1:{port}/"))
        unknown = runner.run(go("http://no-such-host.invalid/"))
    assert isinstance(refused, Fault)
    assert isinstance(unknown, Fault)
    assert (refused.broken, unknown.broken) == (Broken.UNREACHABLE, Broken.NO_HOST)


@pytest.fixture(scope="module")
def certificate(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A key and a certificate for localhost that only itself has signed, in one file."""
    if shutil.which("openssl") is None:
        pytest.skip("openssl makes the certificate")
    path = tmp_path_factory.mktemp("tls") / "localhost.pem"
    command = ["openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes"]
    subject = ["-subj", "/CN=localhost", "-addext", "subjectAltName=DNS:localhost", "-days", "2"]
    subprocess.run([*command, *subject, "-keyout", path, "-out", f"{path}.crt"], check=True, capture_output=True)
    path.write_text(path.read_text() + Path(f"{path}.crt").read_text())
    return path


def test_a_trusted_certificate_is_taken_and_an_unknown_one_refused(
    loops: Callable[[], asyncio.AbstractEventLoop], certificate: Path
) -> None:
    server = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    server.load_cert_chain(certificate)
    trusting = ssl.create_default_context(cafile=str(certificate))
    (good,) = posts(loops, answering(OK), tls=(server, trusting), scheme="https")
    (bad,) = posts(loops, answering(OK), tls=(server, ssl.create_default_context()), scheme="https")
    assert isinstance(good, Response), good
    assert isinstance(bad, Fault), bad
    assert bad.broken is Broken.TLS
    assert "certificate" in bad.message


def test_a_server_without_tls_behind_https_is_a_tls_fault(
    loops: Callable[[], asyncio.AbstractEventLoop], transport: Callable[[], httpx.AsyncBaseTransport | None]
) -> None:
    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.read(100)
        writer.write(b"HTTP/1.1 400 Bad Request\r\nContent-Length: 0\r\n\r\n")
        await writer.drain()

    (result,) = posts(loops, serve, scheme="https", transport=transport())
    assert isinstance(result, Fault), result
    assert result.broken is Broken.TLS


def test_a_header_that_would_end_its_line_is_refused_and_not_shown() -> None:
    for headers in ({"X-Key": "s3cret\r\nX-More: 1"}, {"X-Key\r\nX-More": "s3cret"}, {"X-Key": "s3cr\u00e9t"}):
        with pytest.raises(httpx.LocalProtocolError) as caught:
            request_head(httpx.URL("http://h/p?q=1"), headers, 2)
        assert "s3cr" not in str(caught.value)


def test_the_request_says_what_http_asks_for() -> None:
    head = request_head(httpx.URL("http://[::1]:8000/a%20b?q=\u00e9"), {"Accept": "x"}, 12)
    assert head == (b"POST /a%20b?q=%C3%A9 HTTP/1.1\r\nHost: [::1]:8000\r\nContent-Length: 12\r\nAccept: x\r\n\r\n")
