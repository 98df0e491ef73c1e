"""`foundry.yaml` -> Settings: what this deployment allows, and its limits."""

from __future__ import annotations

import ipaddress
import os
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from foundry_pipeline.config.fields import Block, Reader, choice, list_of, number, refuse, text, whole
from foundry_pipeline.config.yaml_source import Findings, Item, read_yaml
from foundry_pipeline.errors import shown

_HOST_NAME = re.compile(r"(?!-)[a-z0-9_-]{1,63}(?<!-)(\.(?!-)[a-z0-9_-]{1,63}(?<!-))*")
_GIB = 1024**3


@dataclass(frozen=True, slots=True)
class Settings:
    """`foundry.yaml`: what this deployment allows. Sizes are bytes, times seconds."""

    allow_private_hosts: tuple[str, ...] = ()
    """Host names, addresses or networks (CIDR) that data-row URLs may reach although they are private."""
    allow_folders: tuple[Path, ...] = ()
    """Absolute folders outside the home that data rows may be read from."""
    secret_hosts: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    """Secret's variable name -> hosts it may go to. A name that is not listed may go anywhere."""
    max_row_bytes: int = 64 * 1024 * 1024
    max_row_pixels: int = 64_000_000
    max_reply_bytes: int = 32 * 1024 * 1024
    row_timeout_s: float = 60.0
    endpoint_patience_s: float = 3600.0
    """How long a run waits for an endpoint that had answered and is down, before it ends to be resumed later."""
    preflight_patience_s: float = 600.0
    """The same for an endpoint that has not answered yet: a model may have to load first."""
    event_loop: str = "asyncio"
    """What calls run on: `asyncio`, or `uvloop` (the extra `fast`), which takes less CPU a call."""
    endpoint_proxy: str = "none"
    """`environment`: calls go through the proxy that HTTPS_PROXY, HTTP_PROXY or ALL_PROXY name, but for NO_PROXY."""
    row_host_patience_s: float = 60.0
    """How long the rows of a host that has answered and is down wait for it, while others go on."""
    ballast_bytes: int = 64 * 1024 * 1024
    """Held in reserve beside the ledger, so that a full disk can still take the answers that are under way."""


def read_settings(path: Path, found: Findings) -> Settings | None:
    """The settings in this file; None where it has problems. Relative folders are relative to the file's own."""
    root = read_yaml(path, found, may_be_empty=True)
    block = None if root is None else Block.of(root, found)
    if block is None:
        return None
    readers: Mapping[str, Reader[Any]] = {
        "allow_private_hosts": list_of(_private_host, empty=True),
        "allow_folders": list_of(_folder(path.parent), empty=True),
        "secret_hosts": _secret_hosts,
        "max_row_bytes": whole(1, 16 * _GIB),
        "max_row_pixels": whole(1, 4_000_000_000),
        "max_reply_bytes": whole(1, 2 * _GIB),
        "row_timeout_s": number(above=0, most=3600),
        "endpoint_patience_s": number(above=0, most=7 * 86400),
        "preflight_patience_s": number(above=0, most=86400),
        "event_loop": choice(("asyncio", "uvloop")),
        "endpoint_proxy": choice(("none", "environment")),
        "row_host_patience_s": number(least=0, most=86400),
        "ballast_bytes": whole(0, 16 * _GIB),
    }
    settings = Settings(**block.given(readers))
    block.close()
    return None if found.problems else settings


def real_path(path: Path) -> Path:
    """The absolute path with its links followed. Path.resolve raises on links that go round in circles."""
    return Path(os.path.realpath(path))


def _private_host(item: Item, found: Findings) -> str | None:
    """A host name, an address, or a network such as 10.0.0.0/8; lower case."""
    word = text(253)(item, found)
    if word is None:
        return None
    host = word.lower()
    try:
        ipaddress.ip_network(host)
    except ValueError:
        if "/" in host or not _is_host_name(host):
            refuse(item, found, f"expected a host name, an address or a network (10.0.0.0/8); got {shown(word)}")
            return None
    return host


def _is_host_name(host: str) -> bool:
    """Not `1.2.3`: what ends in a number is an address, and one that `ip_network` did not understand."""
    return bool(_HOST_NAME.fullmatch(host)) and not host.rpartition(".")[2].isdigit()


def _folder(home: Path) -> Reader[Path]:
    def read(item: Item, found: Findings) -> Path | None:
        word = text(4096)(item, found)
        if word is None:
            return None
        if word.startswith("~"):
            refuse(item, found, "~ is not expanded here: write the folder's full path")
            return None
        folder = real_path(home / word)
        if not folder.is_dir():
            found.warn(f"there is no folder {shown(word)}", item.path, item.line)
        return folder

    return read


def _secret_hosts(item: Item, found: Findings) -> dict[str, tuple[str, ...]] | None:
    """Variable name -> list of `host` or `host:port`, lower case."""
    if not isinstance(item.value, Mapping):
        refuse(item, found, "expected a mapping (`NAME: [host, ...]`)")
        return None
    hosts = {}
    for name, entry in item.value.items():
        if not re.fullmatch(r"[A-Za-z_][A-Za-z0-9_]*", name):
            refuse(entry, found, "expected the name of an environment variable, without `env:`")
        hosts[name] = list_of(_host_and_port, empty=True)(entry, found) or ()
    return hosts


def _host_and_port(item: Item, found: Findings) -> str | None:
    word = text(260)(item, found)
    if word is None:
        return None
    host, colon, port = word.lower().rpartition(":") if re.search(r":[0-9]+$", word) else (word.lower(), "", "")
    if (colon and int(port) > 65535) or not (_is_address(host) or _is_host_name(host)):
        refuse(item, found, f"expected host or host:port, an IPv6 address in brackets; got {shown(word)}")
        return None
    return word.lower()


def _is_address(host: str) -> bool:
    bare = host[1:-1] if host.startswith("[") and host.endswith("]") else host
    try:
        return ipaddress.ip_address(bare).version == (6 if bare != host else 4)
    except ValueError:
        return False
