"""The way to an endpoint through a proxy, where `foundry.yaml` says `endpoint_proxy: environment`.

httpx' transport carries such requests; without a proxy they go over our own `connection.py`.
"""

from __future__ import annotations

import ssl
from collections.abc import Mapping
from urllib.parse import urlsplit

import httpx

from foundry_pipeline.errors import ConfigError, Problem


def proxy_for(url: str, environ: Mapping[str, str]) -> str | None:
    """The proxy's URL by HTTPS_PROXY or HTTP_PROXY, then ALL_PROXY; None where none is named or NO_PROXY has the host.

    Small letters come first. NO_PROXY lists hosts and domains, or is `*`, as with curl.
    """
    parts = urlsplit(url)
    if _is_direct(parts.hostname or "", _either(environ, "no_proxy")):
        return None
    return _either(environ, f"{parts.scheme}_proxy") or _either(environ, "all_proxy") or None


def _is_direct(host: str, no_proxy: str) -> bool:
    names = [name.strip().lower().lstrip(".") for name in no_proxy.split(",") if name.strip()]
    return any(name == "*" or host == name or host.endswith("." + name) for name in names)


def _either(environ: Mapping[str, str], name: str) -> str:
    return environ.get(name) or environ.get(name.upper()) or ""


def through(proxy_url: str, tls: ssl.SSLContext) -> httpx.AsyncHTTPTransport:
    """One connection through the proxy. Raises ConfigError for a URL that is none, without showing it."""
    limits = httpx.Limits(max_connections=1, max_keepalive_connections=1, keepalive_expiry=30)
    try:
        return httpx.AsyncHTTPTransport(verify=tls, limits=limits, trust_env=False, proxy=proxy_url)
    except (ValueError, httpx.InvalidURL, ImportError):
        expected = "the proxy's variable: expected http://host:port or https://host:port"
        raise ConfigError([Problem("foundry.yaml", expected, "$.endpoint_proxy")]) from None
