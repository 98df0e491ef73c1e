"""Faults F001 to F024 of docs/reliability.md: what happens on the way to the endpoint and back."""

from __future__ import annotations

import asyncio
import gzip
import socket
import ssl
import zlib
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from foundry_pipeline.calls.client import Broken, Fault, ModelClient, Response
from foundry_pipeline.calls.proxy import proxy_for
from foundry_pipeline.config.settings import Settings
from foundry_pipeline.errors import ConfigError
from tests.fake_model import FakeModel, Reply, Request
from tests.invoking import Bench
from tests.misbehaving import CAT, MOST_ATTEMPTS, Misbehaved, misbehave
from tests.virtual_time import BEGIN_S, Sent, VirtualLoop, simulate

TLS = Path(__file__).parent / "fixtures/tls"
CHUNKED = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n"


def plain(head: bytes, body: bytes) -> Reply:
    return Reply(raw=b"HTTP/1.1 200 OK\r\n" + head + b"\r\n" + body)


def encoded(body: bytes, encoding: str) -> Reply:
    return Reply(body, headers={"Content-Encoding": encoding})


ZIPPED = gzip.compress(b'{"label": "cat"}')
FAULTS = {
    "reset before the first byte": Reply(raw=b"", reset=True),
    "closed without an answer": Reply(raw=b""),
    "closed once": [Reply(raw=b""), CAT],
    "reset in the body": Reply(raw=b'HTTP/1.1 200 OK\r\nContent-Length: 99\r\n\r\n{"label": "cat"', reset=True),
    "body too short": plain(b"Content-Length: 99\r\n", b'{"label": "cat"}'),
    "body too long": Reply(raw=b'HTTP/1.1 200 OK\r\nContent-Length: 12\r\n\r\n{"label": "cat"}', keeps_open=True),
    "chunk cut off": Reply(raw=CHUNKED + b'40\r\n{"label": "cat"}'),
    "last chunk missing": Reply(raw=CHUNKED + b'10\r\n{"label": "cat"}\r\n'),
    "illegal chunk size": Reply(raw=CHUNKED + b'cat\r\n{"label": "cat"}'),
    "illegal status line": Reply(raw=b"SSH-2.0-OpenSSH_9.2\r\n\r\n"),
    "headers over 100 KB": Reply(raw=b"HTTP/1.1 200 OK\r\n" + b"X: " + b"y" * 300_000 + b"\r\n\r\n{}"),
    "close-delimited and cut": plain(b"", b'{"label": "ca'),
    "gzip": encoded(ZIPPED, "gzip"),
    "gzip cut off": encoded(ZIPPED[:-12], "gzip"),
    "gzip damaged": encoded(ZIPPED[:12] + b"\xff\xff" + ZIPPED[14:], "gzip"),
    "gzip with more behind": encoded(ZIPPED + ZIPPED, "gzip"),
    "gzip in gzip": encoded(gzip.compress(ZIPPED), "gzip, gzip"),
    "deflate": encoded(zlib.compress(b'{"label": "cat"}'), "deflate"),
    "snappy": encoded(b"cat", "snappy"),
    "HTTP/1.0": Reply(raw=b'HTTP/1.0 200 OK\r\n\r\n{"label": "cat"}'),
    "closes each time": Reply(
        raw=b'HTTP/1.1 200 OK\r\nConnection: close\r\nContent-Length: 16\r\n\r\n{"label": "cat"}'
    ),
}


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Misbehaved:
    return misbehave(tmp_path_factory.mktemp("transport"), FAULTS)


def test_no_fault_of_the_transport_costs_another_row(run: Misbehaved) -> None:
    assert {seen.outcome for seen in run.fine} == {("ok", None)}
    assert {len(seen.requests) for seen in run.fine} == {1}
    failed = sum(1 for seen in run.rows.values() if seen.outcome[0] == "failed")
    assert run.report.failed == failed > 10
    assert run.report.ok + failed == run.report.rows == 3 * len(FAULTS)


# The name, the connection, the certificate


class Unreliable(httpx.AsyncBaseTransport):
    """The network in front of a real endpoint: the requests whose numbers are in `broken` do not get through."""

    def __init__(self, broken: Callable[[int], Exception | None], sent: list[float]) -> None:
        self._broken, self._sent = broken, sent
        self._real = httpx.AsyncHTTPTransport(trust_env=False)

    async def handle_async_request(self, request: httpx.Request) -> httpx.Response:
        self._sent.append(asyncio.get_running_loop().time())
        if (error := self._broken(len(self._sent))) is not None:
            raise error
        return await self._real.handle_async_request(request)

    async def aclose(self) -> None:
        await self._real.aclose()


@pytest.fixture
def model() -> Iterator[FakeModel]:
    with FakeModel(lambda _: CAT) as served:
        yield served


def test_F001_a_host_that_does_not_resolve_stops_before_anything_is_sent(tmp_path: Path) -> None:
    report = Bench(tmp_path, "http://no-such-host.invalid/").one()
    assert str(report.failure).startswith(
        "connection: the host no-such-host.invalid does not resolve; check inference_endpoint in m.yaml"
    )
    assert (report.ok, report.failed, report.not_sent) == (0, 0, 6)


def test_F002_a_name_that_stops_resolving_is_waited_for_and_charges_no_row(model: FakeModel, tmp_path: Path) -> None:
    sent: list[float] = []
    error = httpx.ConnectError("[Errno -3] Temporary failure in name resolution")
    bench = Bench(tmp_path, model.url, rows=30)
    bench.model(max_concurrency=2, max_attempts=1)
    bench.transport = lambda: Unreliable(lambda number: error if 10 <= number < 22 else None, sent)
    notes, report = bench.watched()
    assert (report.ok, report.failed, report.failure) == (30, 0, None)
    assert any("does not resolve" in note and note.startswith(("retrying for ", "paused since ")) for note in notes)


def test_F002_what_the_resolver_says_is_recognised() -> None:
    class NoName(asyncio.SelectorEventLoop):
        async def getaddrinfo(self, *_: Any, **__: Any) -> Any:
            raise socket.gaierror(socket.EAI_AGAIN, "Temporary failure in name resolution")

    assert faults_of(NoName, "http://models.test/")[0].broken is Broken.NO_HOST


def test_F003_an_endpoint_that_goes_away_is_waited_for_and_charges_no_row(model: FakeModel, tmp_path: Path) -> None:
    def answer(request: Request) -> Reply:
        if len(model.requests) == 10:
            model.down_for(0.7)
        return CAT

    model.answer = answer
    bench = Bench(tmp_path, model.url, rows=30)
    bench.model(max_concurrency=2, max_attempts=1)
    notes, report = bench.watched()
    assert (report.ok, report.failure) == (30, None)
    assert any(f"127.0.0.1:{model.port} cannot be reached" in note for note in notes)


def test_F003_an_endpoint_that_never_was_there_ends_the_run_after_a_set_time(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as unused:
        port = unused.getsockname()[1]
    bench = Bench(tmp_path, f"http://127.0.0.1:{port}/", settings=Settings(preflight_patience_s=1.0))
    report = bench.one()
    assert str(report.failure).startswith("endpoint_down: no answer for ")
    assert f"127.0.0.1:{port} cannot be reached" in str(report.failure)
    assert "run again to go on" in str(report.failure)
    assert report.not_sent == 6


def test_F004_a_connection_that_nobody_accepts_ends_at_half_the_deadline_and_is_the_endpoints_fault() -> None:
    class Swallows(asyncio.SelectorEventLoop):
        async def sock_connect(self, *_: Any) -> None:
            await asyncio.sleep(60)

        async def create_connection(self, *_: Any, **__: Any) -> Any:
            await asyncio.sleep(60)

    fault = faults_of(Swallows, "http://127.0.0.1:9/", timeout_s=0.6)[0]
    assert fault.broken is Broken.UNREACHABLE
    assert fault.message == "127.0.0.1:9 does not accept the connection in time"


def test_F004_the_connect_limit_is_ten_seconds() -> None:
    ended_at: list[float] = []

    class Swallows(VirtualLoop):
        async def create_connection(self, *_: Any, **__: Any) -> Any:
            try:
                await asyncio.sleep(60)
            finally:
                ended_at.append(self.time() - BEGIN_S)

    fault = faults_of(Swallows, "http://127.0.0.1:9/", timeout_s=120)[0]
    assert (fault.broken, ended_at) == (Broken.UNREACHABLE, [pytest.approx(10, abs=0.1)])


def faults_of(
    loop: Callable[[], asyncio.AbstractEventLoop], url: str, timeout_s: float = 5.0
) -> list[Fault | Response]:
    """What one request to `url` brings, in an event loop with a network of its own."""

    async def ask() -> list[Fault | Response]:
        client = ModelClient(url, timeout_s=timeout_s, max_reply_bytes=1000, tls=ssl.create_default_context())
        try:
            return [await client.post(b"{}", {}, {})]
        finally:
            await client.close()

    with asyncio.Runner(loop_factory=loop) as runner:
        return runner.run(ask())


def tls_server(certificate: str) -> ssl.SSLContext:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(TLS / f"{certificate}.pem", TLS / "key.pem")
    return context


@pytest.mark.parametrize(
    ("certificate", "is_trusted", "says"),
    [
        ("self_signed", False, "self-signed certificate"),
        ("expired", True, "certificate has expired"),
        ("other_host", True, "IP address mismatch"),
    ],
)
def test_F005_a_certificate_that_is_not_good_stops_at_once(
    certificate: str, is_trusted: bool, says: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    if is_trusted:
        monkeypatch.setenv("SSL_CERT_FILE", str(TLS / f"{certificate}.pem"))
    with FakeModel(lambda _: CAT, tls=tls_server(certificate)) as model:
        report = Bench(tmp_path, model.url).one()
    assert model.requests == []
    assert str(report.failure).startswith(f"tls: TLS to 127.0.0.1:{model.port}: ")
    assert says in str(report.failure)
    assert "name its bundle in SSL_CERT_FILE" in str(report.failure)
    assert (report.ok, report.not_sent) == (0, 6)


def test_F005_a_ca_bundle_can_be_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SSL_CERT_FILE", str(TLS / "self_signed.pem"))
    with FakeModel(lambda _: CAT, tls=tls_server("self_signed")) as model:
        assert Bench(tmp_path, model.url).one().ok == 6


def test_F006_a_tls_handshake_that_is_cut_is_tried_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SSL_CERT_FILE", str(TLS / "self_signed.pem"))
    with FakeModel(lambda _: CAT, tls=tls_server("self_signed"), cuts=3) as model:
        bench = Bench(tmp_path, model.url)
        bench.model(max_concurrency=1)
        report = bench.one()
    assert report.ok == 6
    assert 6 < report.calls <= 9, "some connections are opened ahead of their request"


def test_F006_one_that_is_always_cut_is_the_endpoints_fault_and_not_the_certificates(tmp_path: Path) -> None:
    with FakeModel(cuts=10_000) as model:
        report = Bench(tmp_path, model.url.replace("http:", "https:"), rows=20).one()
    assert str(report.failure).startswith("connection: the endpoint answered none of the first 5 rows: ")
    assert f"127.0.0.1:{model.port} cut the TLS handshake" in str(report.failure)
    assert report.not_sent == 20


# Resets and cuts


def test_F007_a_reset_before_the_first_byte_is_sent_again_with_the_same_key(run: Misbehaved) -> None:
    assert run["reset before the first byte"].failed("connection", MOST_ATTEMPTS, "the connection was cut")


def test_F008_a_connection_closed_without_an_answer_is_not_charged_the_first_time(run: Misbehaved) -> None:
    says = "closed the connection without an answer"
    assert run["closed without an answer"].failed("connection", MOST_ATTEMPTS + 1, says)
    once = run["closed once"]
    assert once.outcome == ("ok", None)
    first, second = once.requests
    assert first.client_port != second.client_port, "a fresh connection"


def test_F008_a_kept_connection_that_was_closed_meanwhile_costs_nothing(model: FakeModel, tmp_path: Path) -> None:
    """As by a server that says nothing about the keep-alive time it grants."""
    ports: Counter[int] = Counter()
    met: set[str] = set()

    def answer(request: Request) -> Reply:
        ports[request.client_port] += 1
        if ports[request.client_port] < 3 or request.text in met:
            return CAT
        met.add(request.text)
        return Reply(raw=b"")

    model.answer = answer
    bench = Bench(tmp_path, model.url, rows=20)
    bench.model(max_concurrency=1, max_attempts=1)
    report = bench.one()
    assert (report.ok, report.failed) == (20, 0)
    assert len(met) > 5


def test_F009_a_reset_in_the_middle_of_the_body_is_never_decoded(run: Misbehaved) -> None:
    assert run["reset in the body"].failed("connection", MOST_ATTEMPTS, "the connection was cut")
    assert run["reset in the body"].reply is None


def test_F010_a_body_shorter_than_its_length_is_evidence_and_no_answer(run: Misbehaved) -> None:
    row = run["body too short"]
    assert row.failed("connection", MOST_ATTEMPTS, "the answer was cut")
    assert row.reply is None
    assert {attempt["evidence"] for attempt in row.attempts} == {b'{"label": "cat"}'}


def test_F011_a_body_longer_than_its_length_is_read_to_its_length(run: Misbehaved) -> None:
    row = run["body too long"]
    assert row.failed("not_json", 3, "neither JSON nor an expected text")
    assert row.reply == '{"label": "c'


def test_F011_what_stands_behind_a_response_is_never_taken_for_the_next_rows_answer(
    model: FakeModel, tmp_path: Path
) -> None:
    def twice(body: bytes) -> bytes:
        response = b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n" % len(body)
        return response + body + response + b'{"summary": "of another row"}'[: len(body)]

    model.answer = lambda request: Reply(raw=twice(b'{"summary": "%s"}' % request.text.encode()), keeps_open=True)
    bench = Bench(tmp_path, model.url, rows=12)
    bench.model(max_concurrency=1)
    assert bench.one().ok == 12
    replies = [row["reply"] for row in bench.responses().values()]
    assert replies == [f'{{"summary": "text {at}"}}' for at in range(12)]
    assert len({request.client_port for request in model.requests}) == 12, "such a connection is not used again"


@pytest.mark.parametrize("fault", ["chunk cut off", "last chunk missing"])
def test_F012_chunks_that_are_cut_off_are_no_answer(run: Misbehaved, fault: str) -> None:
    assert run[fault].failed("connection", MOST_ATTEMPTS, "the answer was cut")


@pytest.mark.parametrize("fault", ["illegal chunk size", "illegal status line", "headers over 100 KB"])
def test_F013_what_is_no_http_is_sent_again_and_then_given_up(run: Misbehaved, fault: str) -> None:
    assert run[fault].failed("connection", MOST_ATTEMPTS, "the endpoint does not speak HTTP")


def test_F013_an_endpoint_that_speaks_no_http_at_all_stops_the_run(model: FakeModel, tmp_path: Path) -> None:
    model.answer = lambda _: FAULTS["illegal status line"]
    report = Bench(tmp_path, model.url, rows=20).one()
    assert "answered none of the first 5 rows: the endpoint does not speak HTTP" in str(report.failure)
    assert report.not_sent == 20


def test_F014_a_close_delimited_body_that_is_cut_fails_as_json(run: Misbehaved) -> None:
    assert run["close-delimited and cut"].failed("not_json", 3, "neither JSON nor an expected text")


@pytest.mark.parametrize("fault", ["gzip", "deflate"])
def test_F015_an_answer_compressed_unasked_is_read_all_the_same(run: Misbehaved, fault: str) -> None:
    assert run[fault].outcome == ("ok", None)
    assert run[fault].reply == '{"label": "cat"}'
    assert {request.headers["accept-encoding"] for request in run[fault].requests} == {"identity"}


@pytest.mark.parametrize("fault", ["gzip damaged", "gzip with more behind", "gzip in gzip", "snappy"])
def test_F015_an_encoding_that_is_not_understood_is_sent_again_once(run: Misbehaved, fault: str) -> None:
    assert run[fault].failed("content_encoding", 2, "is not accepted")


def test_F016_gzip_that_was_cut_short_is_a_cut_answer_and_no_shorter_one(run: Misbehaved) -> None:
    assert run["gzip cut off"].failed("connection", MOST_ATTEMPTS, "the compressed body was cut short")


# Time and size

SLOW = {
    "never answers": Reply(delay_s=60),
    "drips its body": Reply({"label": "cat"}, drip_s=0.3, drips_body=True),
    "drips its headers": Reply({"label": "cat"}, drip_s=0.3),
    "endless body": Reply(raw=CHUNKED, endless=b"8000\r\n" + b" " * 0x8000 + b"\r\n"),
    "endless headers": Reply(raw=b"HTTP/1.1 200 OK\r\n", endless=b"X: y\r\n" * 1000),
}


@pytest.fixture(scope="module")
def slow(tmp_path_factory: pytest.TempPathFactory) -> Misbehaved:
    """Rows whose answers take too long or are too large, several in flight; the others are answered."""
    settings = Settings(max_reply_bytes=200_000)
    root = tmp_path_factory.mktemp("slow")
    return misbehave(root, SLOW, settings, max_attempts=2, max_concurrency=8, timeout_s=2.0)


def test_F017_an_endpoint_that_accepts_and_never_answers_frees_its_place_at_the_deadline(slow: Misbehaved) -> None:
    assert slow["never answers"].failed("timeout", 2, "no whole answer within 2 s")
    assert slow.report.ok == len(slow.fine), "with several in flight, one that waits holds up nobody"


def test_F018_a_body_that_drips_ends_at_the_deadline_of_the_whole_call(slow: Misbehaved) -> None:
    row = slow["drips its body"]
    assert row.failed("timeout", 2, "no whole answer within 2 s")
    assert all(0 < len(attempt["evidence"]) < 16 for attempt in row.attempts)
    first, second = row.requests
    assert first.client_port != second.client_port, "the connection is not used again"


def test_F018_no_call_takes_longer_than_its_deadline() -> None:
    with FakeModel(lambda _: Reply({"label": "cat"}, drip_s=0.05)) as model:
        (fault,) = faults_of(asyncio.SelectorEventLoop, model.url, timeout_s=0.4)
    assert isinstance(fault, Fault)
    assert fault.broken is Broken.TIMEOUT
    assert fault.latency_ms >= 400


def test_F019_headers_that_drip_end_at_the_deadline_too(slow: Misbehaved) -> None:
    assert slow["drips its headers"].failed("timeout", 2, "no whole answer within 2 s")


def test_F020_an_endless_body_is_cut_at_the_limit_and_sent_again_once(slow: Misbehaved) -> None:
    assert slow["endless body"].failed("too_large", 2, "answer over 200,000 bytes")


def test_F020_headers_without_end_are_no_http(slow: Misbehaved) -> None:
    assert slow["endless headers"].failed("connection", 2, "the endpoint does not speak HTTP")


def test_F020_a_gzip_bomb_is_cut_at_the_limit_of_what_it_unpacks_to(tmp_path: Path) -> None:
    bomb = encoded(gzip.compress(b" " * 20_000_000), "gzip")
    run = misbehave(tmp_path, {"bomb": bomb}, Settings(max_reply_bytes=1_000_000))
    assert len(bomb.body) < 50_000
    assert run["bomb"].failed("too_large", 2, "answer over 1,000,000 bytes")


def test_F017_an_endpoint_that_does_not_read_the_request_ends_at_the_deadline() -> None:
    """The write limit: a picture that does not fit the kernel's buffers waits for its reader."""
    with socket.create_server(("127.0.0.1", 0)) as deaf:
        url = f"http://127.0.0.1:{deaf.getsockname()[1]}/"

        async def ask() -> Fault | Response:
            client = ModelClient(url, timeout_s=0.5, max_reply_bytes=1000, tls=ssl.create_default_context())
            try:
                return await client.post(b"x" * 50_000_000, {}, {})
            finally:
                await client.close()

        fault = asyncio.run(ask())
    assert isinstance(fault, Fault)
    assert fault.broken is Broken.TIMEOUT


# What works, and what the worker's surroundings may do


@pytest.mark.parametrize("way", ["HTTP/1.0", "closes each time"])
def test_F021_older_servers_and_those_that_close_each_time_just_work(run: Misbehaved, way: str) -> None:
    assert run[way].outcome == ("ok", None)
    assert run[way].reply == '{"label": "cat"}'


def test_F021_http_2_is_not_offered(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SSL_CERT_FILE", str(TLS / "self_signed.pem"))
    chooses = tls_server("self_signed")
    chooses.set_alpn_protocols(["h2", "http/1.1"])
    with FakeModel(lambda _: CAT, tls=chooses) as model:
        assert Bench(tmp_path, model.url).one().ok == 6


def test_F022_proxies_of_the_environment_are_not_used(
    model: FakeModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("HTTP_PROXY", "http_proxy", "ALL_PROXY", "all_proxy"):
        monkeypatch.setenv(name, "http://127.0.0.1:9/")
    assert Bench(tmp_path, model.url).one().ok == 6


def test_F022_a_proxy_that_wants_credentials_stops_the_run(model: FakeModel, tmp_path: Path) -> None:
    model.answer = lambda _: Reply(status=407)
    report = Bench(tmp_path, model.url).one()
    assert str(report.failure).startswith("http_407: a proxy asks for credentials (407)")
    assert "endpoint_proxy: environment" in str(report.failure)


def test_F022_a_proxy_is_used_where_foundry_yaml_asks_for_it(model: FakeModel, tmp_path: Path) -> None:
    """A proxy gets the whole URL of a plain request; the model's host need not resolve here."""
    settings = Settings(endpoint_proxy="environment")
    bench = Bench(tmp_path, "http://model.invalid/predict", settings=settings, environ={"HTTP_PROXY": model.url})
    assert bench.one().ok == 6
    assert {request.path for request in model.requests} == {"http://model.invalid/predict"}


def test_F022_a_proxy_that_refuses_the_tunnel_is_the_endpoints_fault(model: FakeModel, tmp_path: Path) -> None:
    model.answer = lambda _: Reply(status=407)
    patience = Settings(endpoint_proxy="environment", preflight_patience_s=0.5)
    secret = model.url.replace("http://", "http://me:pa55word@")
    bench = Bench(tmp_path, "https://model.invalid/", settings=patience, environ={"https_proxy": secret})
    report = bench.one()
    assert str(report.failure).startswith("endpoint_down: ")
    assert "the proxy does not connect to model.invalid:443" in str(report.failure)
    assert "pa55word" not in str(report)


@pytest.mark.parametrize(
    ("environ", "proxy"),
    [
        ({}, None),
        ({"HTTPS_PROXY": "http://p:1"}, "http://p:1"),
        ({"https_proxy": "http://q:1", "HTTPS_PROXY": "http://p:1"}, "http://q:1"),
        ({"HTTP_PROXY": "http://p:1"}, None),
        ({"ALL_PROXY": "http://p:1"}, "http://p:1"),
        ({"HTTPS_PROXY": "http://p:1", "NO_PROXY": "localhost,.example.com"}, None),
        ({"HTTPS_PROXY": "http://p:1", "no_proxy": "example.org"}, "http://p:1"),
        ({"HTTPS_PROXY": "http://p:1", "NO_PROXY": "*"}, None),
    ],
)
def test_F022_the_environment_names_the_proxy_of_a_host(environ: dict[str, str], proxy: str | None) -> None:
    assert proxy_for("https://models.example.com/predict", environ) == proxy


def test_F022_a_proxy_that_cannot_be_one_is_told_without_showing_it(tmp_path: Path) -> None:
    bench = Bench(
        tmp_path, "http://m/", settings=Settings(endpoint_proxy="environment"), environ={"http_proxy": "ftp://s3cr3t"}
    )
    with pytest.raises(ConfigError, match="expected http://host:port") as told:
        bench.one()
    assert "s3cr3t" not in str(told.value)


def test_F023_of_several_addresses_the_next_one_is_tried(model: FakeModel) -> None:
    class Several(asyncio.SelectorEventLoop):
        """A resolver that knows an IPv6 address without a route, one where nobody listens, and the right one."""

        async def getaddrinfo(self, host: Any, port: Any, **_: Any) -> Any:
            tcp = (socket.SOCK_STREAM, socket.IPPROTO_TCP, "")
            v6 = (socket.AF_INET6, *tcp, ("::1", port, 0, 0))
            return [v6, *((socket.AF_INET, *tcp, (address, port)) for address in ("127.0.0.2", "127.0.0.1"))]

    (response,) = faults_of(Several, f"http://models.test:{model.port}/predict")
    assert isinstance(response, Response)
    assert response.body == b'{"label": "cat"}'


def test_F024_a_network_that_is_gone_for_ten_minutes_loses_and_charges_nothing() -> None:
    """16 in flight, of which none comes back; afterwards every row is answered, at the first or second attempt."""
    gone = (20.0, 620.0)

    def endpoint(sent: Sent) -> int:
        if gone[0] <= sent.at < gone[1]:
            raise httpx.ReadError("")
        return 200

    outcome = simulate(endpoint, rows=400, per_s=20.0, latency_s=0.7, max_attempts=2)
    assert outcome.rows("ok") == set(range(400))
    in_trouble = [sent for sent in outcome.sent if gone[0] <= sent.at < gone[1]]
    assert 16 <= len(in_trouble) <= 80, "one canary now and then, instead of every row again"
    assert any(note.startswith("for ") for note in outcome.notes)
    assert outcome.seconds < gone[1] + 120, "it goes on as soon as it can"
