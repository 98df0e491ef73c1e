from __future__ import annotations

import asyncio
import socket
from collections.abc import Iterable

import httpcore
import httpx
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from foundry_pipeline.errors import RowUnavailable
from foundry_pipeline.rows.addresses import (
    AddressRules,
    GuardedBackend,
    guarded_transport,
    is_public,
    resolve,
    shown_url,
)

REFUSED = [
    "100.64.0.1",
    "100.100.100.200",
    "168.63.129.16",
    "192.0.0.192",
    "224.0.0.1",
    "ff02::1",
    "64:ff9b::a9fe:a9fe",
    "64:ff9b:1::a9fe:a9fe",
    "2002:a9fe:a9fe::",
    "::127.0.0.1",
    "169.254.169.254",
    "127.0.0.1",
    "127.255.255.254",
    "10.0.0.1",
    "172.16.0.1",
    "172.31.255.255",
    "192.168.1.1",
    "0.0.0.0",
    "198.18.0.1",
    "240.0.0.1",
    "255.255.255.255",
    "::1",
    "::",
    "fe80::1",
    "fe80::1%eth0",
    "fc00::1",
    "fd00:ec2::254",
    "::ffff:127.0.0.1",
    "::ffff:169.254.169.254",
    "2001::1",
    "2001:db8::1",
    "192.0.2.1",
    "198.51.100.1",
    "203.0.113.1",
    "3fff::1",
    "192.88.99.1",
    "ff0e::1",
]
PUBLIC = [
    "8.8.8.8",
    "2606:4700::1111",
    "93.184.216.34",
    "::ffff:8.8.8.8",
    "172.32.0.1",
    "100.63.255.255",
    "100.128.0.1",
]


@pytest.mark.parametrize("address", REFUSED)
def test_an_address_that_is_not_public_unicast_is_refused(address: str) -> None:
    assert not is_public(address)


@pytest.mark.parametrize("address", PUBLIC)
def test_a_public_address_is_allowed(address: str) -> None:
    assert is_public(address)


@pytest.mark.parametrize(
    ("listed", "host", "address"),
    [
        ("127.0.0.1", "localhost", "127.0.0.1"),
        ("127.0.0.1", "x", "::ffff:127.0.0.1"),
        ("10.0.0.0/8", "minio", "10.9.8.7"),
        ("fd00::/8", "minio", "fd00::1"),
        ("Minio.Internal.", "minio.internal", "10.9.8.7"),
    ],
)
def test_a_deployment_may_list_hosts_addresses_and_networks(listed: str, host: str, address: str) -> None:
    assert AddressRules.of([listed]).allow(host, address)
    assert not AddressRules.of([]).allow(host, address)
    assert not AddressRules.of([listed]).allow("other", "192.168.0.1")


class RecordingTCP(httpcore.AsyncNetworkBackend):
    """Connections that only remember where they would have gone; `dead` addresses do not answer."""

    def __init__(self, dead: Iterable[str] = ()) -> None:
        self.connected: list[str] = []
        self._dead = set(dead)

    async def connect_tcp(self, host: str, port: int, *args: object, **kwargs: object) -> httpcore.AsyncNetworkStream:
        self.connected.append(host)
        if host in self._dead:
            raise httpcore.ConnectError("refused")
        return httpcore.AsyncMockStream([b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nhi"])


def _connect(answers: list[list[str]], tcp: RecordingTCP) -> list[str]:
    """Fetch http://pictures.example/ over a resolver that gives `answers` in turn; the hosts it was asked for."""
    asked = []

    async def resolver(host: str, port: int) -> list[str]:
        asked.append(host)
        return answers[min(len(asked), len(answers)) - 1]

    async def fetch() -> None:
        backend = GuardedBackend(AddressRules(), resolver, tcp)
        async with httpcore.AsyncConnectionPool(network_backend=backend) as pool:
            await pool.request("GET", "http://pictures.example/")

    asyncio.run(fetch())
    return asked


def test_the_connection_goes_to_the_address_that_was_judged() -> None:
    """A name that is public when checked and private when connected gets nowhere: it is resolved once."""
    tcp = RecordingTCP()
    asked = _connect([["93.184.216.34"], ["127.0.0.1"]], tcp)
    assert asked == ["pictures.example"]
    assert tcp.connected == ["93.184.216.34"]


def test_one_private_address_among_public_ones_refuses_the_host() -> None:
    tcp = RecordingTCP()
    with pytest.raises(RowUnavailable, match=r"row_forbidden.*10\.0\.0\.1.*allow_private_hosts"):
        _connect([["93.184.216.34", "10.0.0.1"]], tcp)
    assert tcp.connected == []


def test_the_next_address_is_tried_when_the_first_does_not_answer() -> None:
    tcp = RecordingTCP(dead=["2606:4700::1111"])
    _connect([["2606:4700::1111", "93.184.216.34"]], tcp)
    assert tcp.connected == ["2606:4700::1111", "93.184.216.34"]


@pytest.mark.parametrize("spelling", ["0x7f.1", "2130706433", "0177.0.0.1", "127.1", "0", "127.0.0.1"])
def test_spellings_of_loopback_are_judged_by_what_they_resolve_to(spelling: str) -> None:
    addresses = asyncio.run(resolve(spelling, 80))
    assert addresses
    assert not any(AddressRules().allow(spelling, address) for address in addresses)


def test_a_host_without_an_address_is_a_failed_connection() -> None:
    async def nobody(host: str, port: int) -> list[str]:
        return []

    with pytest.raises(httpcore.ConnectError):
        asyncio.run(GuardedBackend(AddressRules(), nobody).connect_tcp("x", 80))
    with pytest.raises(httpcore.ConnectError):
        asyncio.run(resolve("a" * 70, 80))  # no name has so long a part: no server is asked


def test_a_guarded_transport_really_connects_through_the_guard() -> None:
    """It reaches into httpx, whose minor version is pinned for it: this fails when that breaks."""

    async def ask() -> None:
        transport = guarded_transport(GuardedBackend(AddressRules()), 2)
        try:
            await transport.handle_async_request(httpx.Request("GET", f"http://127.0.0.1:{free.getsockname()[1]}/"))
        finally:
            await transport.aclose()

    with socket.create_server(("127.0.0.1", 0)) as free, pytest.raises(RowUnavailable, match="row_forbidden"):
        asyncio.run(ask())


@pytest.mark.parametrize(
    ("url", "shown"),
    [
        ("https://h/a.jpg", "https://h/a.jpg"),
        ("https://user:pw@h/a.jpg", "https://***@h/a.jpg"),
        ("https://h/a?sig=abc&e=1#frag", "https://h/a?sig=***&e=***"),
        ("https://h/a?token", "https://h/a?***"),
        ("https://h/@you/a.jpg", "https://h/@you/a.jpg"),
        ("http://h/\x1b[31m", "http://h/\\x1b[31m"),
        ("http://h/" + "a" * 300, "http://h/" + "a" * 190 + "…"),
    ],
)
def test_a_url_is_shown_without_user_info_and_query_values(url: str, shown: str) -> None:
    assert shown_url(url) == shown


@settings(max_examples=60, deadline=None)
@given(st.text(min_size=0, max_size=30), st.text(min_size=0, max_size=30))
def test_no_query_value_is_ever_shown(before: str, after: str) -> None:
    before = before.replace("#", "").replace("?", "")
    assert "S3CRET" not in shown_url(f"http://h/{before}?key=S3CRET{after}")
    assert "S3CRET" not in shown_url(f"http://user:S3CRET@h/{before}?{after}")
