"""How a manifest says where its endpoint is and what opens it: URL, secret, authentication, headers.

No message here shows a secret, nor a part of a URL or header that may be one.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping

import httpx

from foundry_pipeline.config.fields import Block, Reader, choice, one_of, refuse, text
from foundry_pipeline.config.secrets import ENV_PREFIX, Auth, Secret, SecretRef
from foundry_pipeline.config.yaml_source import Findings, Item
from foundry_pipeline.errors import shown

SCHEMES = ("bearer", "header", "basic", "query")
_VARIABLE = r"[A-Za-z_][A-Za-z0-9_]*"
_REFERENCE = re.compile(rf"\$\{{({_VARIABLE})(?::-([^{{}}]*))?\}}")
_HEADER_NAME = re.compile(r"[!#$%&'*+.^_`|~0-9A-Za-z-]{1,100}")
_OF_THE_CLIENT = frozenset(
    {"accept-encoding", "connection", "content-encoding", "content-length", "content-type", "host", "idempotency-key"}
    | {"te", "trailer", "transfer-encoding", "upgrade"}
)
_SECRET_NAME = re.compile(r"auth|cookie|credential|key|passw|secret|sig(nature)?$|token", re.IGNORECASE)


def endpoint(environ: Mapping[str, str]) -> Reader[str]:
    """An http or https URL, with `${NAME}` and `${NAME:-default}` filled in from the environment.

    As in a shell, the default also stands in for a variable that is empty.
    """

    def read(item: Item, found: Findings) -> str | None:
        written = text(2000)(item, found)
        url = None if written is None else _filled_in(written, environ, item, found)
        if url is None:
            return None
        if fault := _url_fault(url):
            showable = url == written and not set(url) & {"@", "?"}
            refuse(item, found, f"{fault}; got {shown(url)}" if showable else fault)
            return None
        _warn_of_key_in_query(url, item, found)
        return url

    return read


def _filled_in(written: str, environ: Mapping[str, str], item: Item, found: Findings) -> str | None:
    if "${" in _REFERENCE.sub("", written):
        refuse(item, found, "expected ${NAME} or ${NAME:-default}: a reference is not closed, or holds more than that")
        return None
    missing = [m[1] for m in _REFERENCE.finditer(written) if not environ.get(m[1]) and m[2] is None]
    for name in dict.fromkeys(missing):
        refuse(item, found, f"the environment variable {name} is not set; write ${{{name}:-...}} to give a default")
    return None if missing else _REFERENCE.sub(lambda m: environ.get(m[1]) or m[2] or "", written)


def _url_fault(url: str) -> str | None:
    expected = "expected an http or https URL with a host, such as https://models.example.com/predict"
    if not url.isprintable() or " " in url:
        return expected
    try:
        parsed = httpx.URL(url)
    except httpx.InvalidURL:
        return expected
    port = 80 if parsed.port is None else parsed.port
    if parsed.scheme not in ("http", "https") or not parsed.host or not 0 < port < 65536:
        return expected
    if parsed.userinfo:
        return "a URL may not hold a user or password, which would be logged: use `secrets` with `auth: basic`"
    return "a URL of an endpoint has no fragment (#...)" if parsed.fragment else None


def _warn_of_key_in_query(url: str, item: Item, found: Findings) -> None:
    for name in httpx.URL(url).params:
        if _SECRET_NAME.search(name):
            message = (
                f"the query holds {shown(name)}; a secret there is shown with the URL: use `secrets` and `auth: query`"
            )
            found.warn(message, item.path, item.line)


def secret(environ: Mapping[str, str]) -> Reader[SecretRef]:
    """`env:NAME`, `${NAME}`, or a bare NAME that is set in the environment; else the text itself is the secret."""

    def read(item: Item, found: Findings) -> SecretRef | None:
        if not isinstance(item.value, str) or not item.value.strip():
            refuse(item, found, "expected text: env:NAME; quote it if it is one")
            return None
        word = item.value.strip()
        if word.startswith((ENV_PREFIX, "$")):
            name = _variable_of(word, item, found)
            return None if name is None else SecretRef(name)
        if re.fullmatch(_VARIABLE, word) and environ.get(word):
            return SecretRef(word)
        message = "a secret stands here in the clear; write env:NAME and set that variable"
        if re.fullmatch(_VARIABLE, word):
            message += " (if this is a variable's name already, the variable is not set)"
        found.warn(message, item.path, item.line)
        return SecretRef(None, Secret(word))

    def _variable_of(word: str, item: Item, found: Findings) -> str | None:
        match = re.fullmatch(rf"env:\s*({_VARIABLE})|\$\{{({_VARIABLE})\}}", word)
        if match is None:
            refuse(item, found, "expected env:NAME, with the name of an environment variable")
            return None
        name = match[1] or match[2]
        if not environ.get(name, "").strip():
            found.warn(f"the environment variable {name} is not set: calls will fail", item.path, item.line)
        return str(name)

    return read


def auth(item: Item, found: Findings) -> Auth | None:
    """`bearer` or `basic`, or a mapping with `scheme` and `name`. header and query need the name."""
    if not isinstance(item.value, Mapping):
        scheme = choice(SCHEMES)(item, found)
        if scheme in ("header", "query"):
            refuse(item, found, f"{scheme} needs a name: {{scheme: {scheme}, name: ...}}")
        return Auth(scheme) if scheme in ("bearer", "basic") else None
    block = Block(item.value, item, found)
    scheme = block.read("scheme", choice(SCHEMES), required=True)
    name = block.read("name", _auth_name, required=scheme in ("header", "query"))
    block.close()
    if scheme is None or (name is None and scheme in ("header", "query")):
        return None
    return Auth(scheme, name) if name else Auth(scheme)


def _auth_name(item: Item, found: Findings) -> str | None:
    if isinstance(item.value, str) and _HEADER_NAME.fullmatch(item.value) and item.value.lower() not in _OF_THE_CLIENT:
        return item.value
    refuse(item, found, "expected the name of a header or query parameter that the client does not set itself")
    return None


def headers(environ: Mapping[str, str]) -> Reader[tuple[tuple[str, str], ...]]:
    """Header name -> value. A value `env:NAME` stays a reference and is read at the moment of sending."""

    def read(item: Item, found: Findings) -> tuple[tuple[str, str], ...] | None:
        if not isinstance(item.value, Mapping):
            refuse(item, found, "expected a mapping (`Name: value`)")
            return None
        return tuple(_header_lines(item.value, environ, found))

    return read


def _header_lines(
    entries: Mapping[str, Item], environ: Mapping[str, str], found: Findings
) -> Iterator[tuple[str, str]]:
    names: set[str] = set()
    for name, item in entries.items():
        if fault := _header_fault(name, item, names):
            refuse(item, found, fault)
            continue
        names.add(name.lower())
        if warning := _header_warning(name, str(item.value), environ):
            found.warn(warning, item.path, item.line)
        yield name, str(item.value)


def _header_fault(name: str, item: Item, names: set[str]) -> str | None:
    value = item.value
    if not _HEADER_NAME.fullmatch(name):
        return "is not a header's name"
    if name.lower() in _OF_THE_CLIENT:
        return f"the client sets this header itself, as all of {one_of(sorted(_OF_THE_CLIENT))}"
    if name.lower() in names:
        return "the header stands twice; capitals do not matter"
    if not isinstance(value, str):
        return "expected text: quote it"
    if not value.isascii() or not value.isprintable() or len(value) > 4000 or value != value.strip():
        return "a header's value is printable ASCII without white space around it, at most 4000 characters"
    if value.startswith(ENV_PREFIX) and not re.fullmatch(rf"env:{_VARIABLE}", value):
        return "expected env:NAME, with the name of an environment variable"
    return "write env:NAME, as the whole value, for a variable" if "${" in value else None


def _header_warning(name: str, value: str, environ: Mapping[str, str]) -> str | None:
    if value.startswith(ENV_PREFIX):
        variable = value.removeprefix(ENV_PREFIX)
        is_set = bool(environ.get(variable, "").strip())
        return None if is_set else f"the environment variable {variable} is not set: calls will fail"
    return (
        "looks like a secret in the clear; write env:NAME and set that variable" if _SECRET_NAME.search(name) else None
    )
