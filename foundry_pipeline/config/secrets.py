"""Secrets: a value that shows itself nowhere, read at the moment of sending, and only for hosts it may go to.

Owns references and their lookup in the environment, and the headers and query parameters that carry a secret.
Reading a reference from a manifest is `endpoint_source.py`; which hosts are allowed, `settings.py`.
"""

from __future__ import annotations

import base64
import html
import json
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, NamedTuple, NoReturn
from urllib.parse import quote

import httpx

from foundry_pipeline.errors import ConfigError, Problem

if TYPE_CHECKING:
    from foundry_pipeline.config.settings import Settings
    from foundry_pipeline.manifest import Manifest

SCRUBBED_FROM_CHARS = 6
"""A shorter value is no secret worth the name, and would tear holes into ordinary replies."""
ENV_PREFIX = "env:"
"""`env:NAME`, as the whole value of `secrets` or of a header, stands for the variable NAME."""


class Secret:
    """A secret's value. Only `reveal` shows it: repr, str and formatting are redacted, pickling is refused."""

    __slots__ = ("_value",)

    def __init__(self, value: str) -> None:
        self._value = value

    def reveal(self) -> str:
        """The value, for the request and nothing else."""
        return self._value

    def __repr__(self) -> str:
        return "Secret(***)"

    def __copy__(self) -> Secret:
        return self

    def __deepcopy__(self, memo: dict[int, object]) -> Secret:
        return self

    def __getstate__(self) -> NoReturn:
        raise TypeError("a secret is not pickled")

    def __reduce__(self) -> NoReturn:
        raise TypeError("a secret is not pickled")


@dataclass(frozen=True, slots=True)
class SecretRef:
    """Where a secret is, never what it is: a variable's name, or None for a literal that stands in the manifest.

    The value is read at the moment of sending (`auth_headers`). Two manifests that differ in a literal only are equal.
    """

    name: str | None
    literal: Secret | None = field(default=None, repr=False, compare=False)


@dataclass(frozen=True, slots=True)
class Auth:
    """How the secret travels. `scheme` is bearer, header, basic or query; `name` the header's or parameter's name."""

    scheme: str = "bearer"
    name: str = "Authorization"


class SentWith(NamedTuple):
    """What a request carries beside its body. Its repr shows names only."""

    headers: dict[str, str]
    params: dict[str, str]

    def __repr__(self) -> str:
        return f"SentWith(headers={sorted(self.headers)}, params={sorted(self.params)})"

    def __reduce__(self) -> NoReturn:
        raise TypeError("a secret is not pickled")


def auth_headers(manifest: Manifest, environ: Mapping[str, str], settings: Settings) -> SentWith:
    """The manifest's headers and its secret as (headers, query parameters), for a request to its endpoint.

    Raises ConfigError where a variable is not set, a secret may not go to the endpoint's host, or a value does not
    fit where it has to go.
    """
    if refusal := forbidden_host(manifest, settings):
        raise ConfigError([Problem(manifest.file, refusal, "$.inference_endpoint")])
    headers = dict(_own_headers(manifest, environ))
    if manifest.secret is None:
        return SentWith(headers, {})
    secret = resolve(manifest.secret, environ, manifest.file).reveal()
    if manifest.auth.scheme == "query":
        return SentWith(headers, {manifest.auth.name: secret})
    headers[manifest.auth.name] = _authorization(manifest, secret)
    return SentWith(headers, {})


def scrubber(manifest: Manifest, environ: Mapping[str, str]) -> Callable[[bytes], bytes]:
    """A function that takes the manifest's secrets out of what an endpoint sends back: some echo the request.

    Each is found as it is, base64, URL-encoded and JSON-escaped, and becomes `***`. Raises ConfigError where a
    variable is not set.
    """
    return _scrubber_of(_secrets_sent(manifest, environ))


def bearer(
    name: str, url: str, environ: Mapping[str, str], settings: Settings
) -> tuple[SentWith, Callable[[bytes], bytes]]:
    """(what a request to `url` carries, a scrubber) for a key that is no model's: the variable `name`, as bearer token.

    Raises ConfigError where it is not set, may not go to the URL's host, or does not fit into a header.
    """
    if refusal := _forbidden([name], url, settings, "the platform"):
        raise ConfigError([Problem("foundry.yaml", refusal, "$.secret_hosts")])
    value = _header_value(_variable(name, environ, "environment", "$").reveal(), "environment", f"$.{name}")
    return SentWith({"Authorization": f"Bearer {value}"}, {}), _scrubber_of([value])


def _scrubber_of(secrets: Iterable[str]) -> Callable[[bytes], bytes]:
    shapes = sorted(_shapes_of(secrets), key=len, reverse=True)

    def scrub(body: bytes) -> bytes:
        for shape in shapes:
            body = body.replace(shape, b"***")
        return body

    return scrub


def resolve(ref: SecretRef, environ: Mapping[str, str], file: str) -> Secret:
    """The secret that `ref` stands for. Raises ConfigError where its variable is not set."""
    return ref.literal if ref.literal is not None else _variable(str(ref.name), environ, file, "$.secrets")


def _variable(name: str, environ: Mapping[str, str], file: str, path: str) -> Secret:
    """Without white space around it: a value that was read from a file often ends with a line break."""
    value = environ.get(name, "").strip()
    if not value:
        raise ConfigError([Problem(file, f"the environment variable {name} is not set", path)])
    return Secret(value)


def secret_names(manifest: Manifest) -> Iterator[str]:
    """The variables whose values the manifest sends."""
    if manifest.secret is not None and manifest.secret.name is not None:
        yield manifest.secret.name
    for _, value in manifest.headers:
        if value.startswith(ENV_PREFIX):
            yield value.removeprefix(ENV_PREFIX)


def forbidden_host(manifest: Manifest, settings: Settings) -> str | None:
    """Why a secret of the manifest may not go to its endpoint; None where all may.

    The manifest says which variable is sent where; `secret_hosts` of `foundry.yaml` is the deployment's word on it.
    """
    return _forbidden(secret_names(manifest), manifest.inference_endpoint, settings, "the endpoint")


def _forbidden(names_of_secrets: Iterable[str], address: str, settings: Settings, what: str) -> str | None:
    limited = [name for name in names_of_secrets if name in settings.secret_hosts]
    if not limited:
        return None
    url = httpx.URL(address)
    host = f"[{url.host}]" if ":" in url.host else url.host
    names = {host, f"{host}:{url.port or (443 if url.scheme == 'https' else 80)}"}
    for name in limited:
        allowed = settings.secret_hosts[name]
        if names.isdisjoint(allowed):
            return f"foundry.yaml lets the secret {name} go to {', '.join(allowed)} only; {what} is on {url.host}"
    return None


def _secrets_sent(manifest: Manifest, environ: Mapping[str, str]) -> Iterator[str]:
    if manifest.secret is not None:
        yield resolve(manifest.secret, environ, manifest.file).reveal()
    for name, value in manifest.headers:
        if value.startswith(ENV_PREFIX):
            yield _header_variable(name, value, environ, manifest.file).reveal()


def _shapes_of(secrets: Iterable[str]) -> set[bytes]:
    """Each secret in every spelling; for basic authentication the base64 is what is sent."""
    shapes: set[bytes] = set()
    for secret in secrets:
        if len(secret) >= SCRUBBED_FROM_CHARS:
            escaped = json.dumps(secret)[1:-1]
            unicode_escaped = "".join(c if c.isalnum() else f"\\u{ord(c):04x}" for c in secret)
            spellings = (
                secret,
                quote(secret, safe=""),
                html.escape(secret),
                escaped,
                escaped.replace("/", "\\/"),
                unicode_escaped,
            )
            shapes |= {spelling.encode() for spelling in spellings} | {base64.b64encode(secret.encode())}
    return shapes


def _own_headers(manifest: Manifest, environ: Mapping[str, str]) -> Iterator[tuple[str, str]]:
    for name, value in manifest.headers:
        if value.startswith(ENV_PREFIX):
            secret = _header_variable(name, value, environ, manifest.file)
            yield name, _header_value(secret.reveal(), manifest.file, f"$.headers.{name}")
        else:
            yield name, value


def _header_variable(name: str, value: str, environ: Mapping[str, str], file: str) -> Secret:
    return _variable(value.removeprefix(ENV_PREFIX), environ, file, f"$.headers.{name}")


def _authorization(manifest: Manifest, secret: str) -> str:
    if manifest.auth.scheme == "basic" and ":" not in secret:
        message = "basic authentication needs a secret of the form user:password"
        raise ConfigError([Problem(manifest.file, message, "$.secrets")])
    if manifest.auth.scheme == "basic":
        return f"Basic {base64.b64encode(secret.encode()).decode()}"
    value = _header_value(secret, manifest.file, "$.secrets")
    return f"Bearer {value}" if manifest.auth.scheme == "bearer" else value


def _header_value(value: str, file: str, path: str) -> str:
    # httpx would raise UnicodeEncodeError, which carries the value; h11 refuses line breaks and shows them.
    if not (value.isascii() and value.isprintable()):
        raise ConfigError([Problem(file, "the secret holds a character that a header may not have", path)])
    return value
