"""Which addresses a data row's URL may reach, and connections that go nowhere else.

A host name is resolved once, every address it has is judged, and the connection goes to a judged address, so that a
name cannot point elsewhere a moment later. Also how a URL is shown: without user info and query values.
"""

from __future__ import annotations

import asyncio
import contextlib
import ipaddress
import re
import socket
from collections.abc import Awaitable, Callable, Iterable
from dataclasses import dataclass

import httpcore
import httpx

from foundry_pipeline.errors import RowUnavailable, shown

Resolve = Callable[[str, int], Awaitable[list[str]]]
"""Host name and port -> its addresses as text, in the order to try them."""

IPAddress = ipaddress.IPv4Address | ipaddress.IPv6Address
IPNetwork = ipaddress.IPv4Network | ipaddress.IPv6Network

_V6_UNICAST = ipaddress.ip_network("2000::/3")
_DENIED = tuple(
    ipaddress.ip_network(network)
    for network in (
        "100.64.0.0/10",  # carrier-grade NAT; 100.100.100.200 is a cloud's metadata service
        "168.63.129.16/32",  # a cloud's host service, formally public
        "192.0.0.0/24",  # protocol assignments; 192.0.0.192 is a cloud's metadata service
        "192.88.99.0/24",  # relay to 6to4
        "2001::/32",  # Teredo carries an IPv4 address
        "2002::/16",  # 6to4 carries an IPv4 address
        "3fff::/20",  # documentation; older standard libraries do not know it
    )
)


def is_public(address: str) -> bool:
    """Whether `address` is public unicast: what a stranger's URL may reach.

    The standard library's `is_global` and `is_private` alone let metadata services, multicast and IPv4 addresses in
    IPv6 clothes pass. Raises ValueError where `address` is not an IP address.
    """
    return _is_public(_parsed(address))


def _is_public(ip: IPAddress) -> bool:
    if any(ip in network for network in _DENIED if network.version == ip.version):
        return False
    if ip.version == 6 and ip not in _V6_UNICAST:
        return False
    special = ip.is_multicast or ip.is_reserved or ip.is_unspecified or ip.is_loopback or ip.is_link_local
    return ip.is_global and not ip.is_private and not special


def _parsed(address: str) -> IPAddress:
    """The address without its zone; an IPv4 address mapped into IPv6 counts as the IPv4 address it is."""
    ip = ipaddress.ip_address(address.partition("%")[0])
    return ip.ipv4_mapped or ip if isinstance(ip, ipaddress.IPv6Address) else ip


@dataclass(frozen=True, slots=True)
class AddressRules:
    """Public addresses, and what the deployment lists: host names (whatever they resolve to) and networks."""

    hosts: frozenset[str] = frozenset()
    networks: tuple[IPNetwork, ...] = ()

    @classmethod
    def of(cls, allow_private_hosts: Iterable[str]) -> AddressRules:
        """Read `foundry.yaml`'s list: each entry is a host name, an address or a network (CIDR)."""
        hosts, networks = set(), []
        for entry in allow_private_hosts:
            try:
                networks.append(ipaddress.ip_network(entry, strict=False))
            except ValueError:
                hosts.add(_plain_host(entry))
        return cls(frozenset(hosts), tuple(networks))

    def allow(self, host: str, address: str) -> bool:
        """Whether a connection meant for `host` may go to `address`."""
        ip = _parsed(address)
        listed = any(ip in network for network in self.networks if network.version == ip.version)
        return listed or _plain_host(host) in self.hosts or _is_public(ip)


def _plain_host(host: str) -> str:
    return host.strip().rstrip(".").lower()


async def resolve(host: str, port: int) -> list[str]:
    """The system's answer for a host name. Raises httpcore.ConnectError where there is none."""
    loop = asyncio.get_running_loop()
    try:
        found = await loop.getaddrinfo(host, port, type=socket.SOCK_STREAM)
    except (OSError, UnicodeError, OverflowError) as err:
        raise httpcore.ConnectError(f"the name does not resolve: {err}") from None
    return list(dict.fromkeys(str(item[4][0]) for item in found))


class GuardedBackend(httpcore.AsyncNetworkBackend):
    """TCP connections to judged addresses only. TLS and the Host header above it still carry the name."""

    def __init__(
        self, rules: AddressRules, resolve: Resolve = resolve, tcp: httpcore.AsyncNetworkBackend | None = None
    ) -> None:
        self._rules = rules
        self._resolve = resolve
        self._tcp = tcp or httpcore.AnyIOBackend()

    async def connect_tcp(
        self,
        host: str,
        port: int,
        timeout: float | None = None,
        local_address: str | None = None,
        socket_options: Iterable[httpcore.SOCKET_OPTION] | None = None,
    ) -> httpcore.AsyncNetworkStream:
        """Connect to the first of the host's addresses that answers.

        Raises RowUnavailable (`row_forbidden`) where even one of its addresses may not be reached.
        """
        addresses = await self._judged(host, port)
        for address in addresses[:-1]:
            with contextlib.suppress(httpcore.ConnectError, httpcore.ConnectTimeout):
                return await self._tcp.connect_tcp(address, port, timeout, local_address, socket_options)
        return await self._tcp.connect_tcp(addresses[-1], port, timeout, local_address, socket_options)

    async def _judged(self, host: str, port: int) -> list[str]:
        addresses = await self._resolve(host, port)
        if not addresses:
            raise httpcore.ConnectError("the name has no address")
        for address in addresses:
            if not self._rules.allow(host, address):
                raise RowUnavailable(
                    "row_forbidden",
                    f"host {shown(host)} has the address {address}, which is not public; data rows are fetched from "
                    "it only when allow_private_hosts in foundry.yaml lists it",
                )
        return addresses

    async def sleep(self, seconds: float) -> None:
        """Wait, as the pool asks for."""
        await self._tcp.sleep(seconds)


def guarded_transport(backend: GuardedBackend, max_connections: int) -> httpx.AsyncHTTPTransport:
    """HTTP over `backend`; no proxy and nothing else is taken from the environment."""
    context = httpx.create_ssl_context(trust_env=False)
    transport = httpx.AsyncHTTPTransport(verify=context, trust_env=False)
    # httpx has no public way to hand over a network backend; pyproject.toml pins the minor version for this line.
    transport._pool = httpcore.AsyncConnectionPool(
        ssl_context=context, network_backend=backend, max_connections=max_connections, keepalive_expiry=5.0
    )
    return transport


def shown_url(url: str, limit: int = 200) -> str:
    """The URL for a message: user info and query values are `***`, no fragment, control characters escaped."""
    head, question, query = url.partition("#")[0].partition("?")
    head = re.sub(r"(?<=//)[^/\\@]*@", "***@", head)
    names = [name + "=***" if equals else "***" for name, equals, _ in (p.partition("=") for p in query.split("&"))]
    text = (head + question + "&".join(names) if question else head)[: 4 * limit]
    text = text.encode("unicode_escape").decode("ascii") if not text.isprintable() else text
    return text if len(text) <= limit else f"{text[: limit - 1]}…"
