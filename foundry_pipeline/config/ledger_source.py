"""FOUNDRY_LEDGER -> where calls are kept: a local folder, or a PostgreSQL database that several machines share.

Owns the address and its options. Only `LedgerDatabase.password` knows the password; no message quotes the address.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import NoReturn
from urllib.parse import SplitResult, parse_qsl, unquote, urlsplit

from foundry_pipeline.config.secrets import Secret
from foundry_pipeline.errors import ConfigError, Problem

VARIABLE = "FOUNDRY_LEDGER"
SCHEMES = ("postgresql", "postgres", "postgresql+pg8000")
TLS_MODES = ("disable", "prefer", "require", "verify-ca", "verify-full")
OPTIONS = ("host", "sslmode", "sslrootcert", "patience_s", "lease_s")
EXPECTED = "expected a local folder or postgresql://user:password@host/database"


@dataclass(frozen=True, slots=True)
class LedgerFolder:
    """A folder on a local disk."""

    path: Path

    def __str__(self) -> str:
        return str(self.path)


@dataclass(frozen=True, slots=True)
class LedgerDatabase:
    """A PostgreSQL database. A `host` that begins with / is the folder of a unix socket."""

    host: str
    port: int
    database: str
    user: str
    password: Secret | None = field(default=None, repr=False)
    tls: str = "prefer"
    """One of TLS_MODES, as libpq means them."""
    tls_roots: str | None = None
    """File of the authorities that may have signed the server's certificate; None: those of this machine."""
    patience_s: float = 60.0
    """How long a lost connection is tried again before the run stops."""
    lease_s: float = 30.0
    """After so long without a sign of life a slice is another process's."""

    def __str__(self) -> str:
        """The address without its password."""
        host = f"[{self.host}]" if ":" in self.host else self.host
        return f"postgresql://{self.user}@{host}:{self.port}/{self.database}"


def is_database(ledger: str) -> bool:
    """True where FOUNDRY_LEDGER's value is no folder."""
    return "://" in ledger


def ledger_place(ledger: str, environ: Mapping[str, str]) -> LedgerFolder | LedgerDatabase:
    """Read FOUNDRY_LEDGER's value; `environ` may hold PGUSER and PGPASSWORD. Raises ConfigError."""
    if not is_database(ledger):
        return LedgerFolder(Path(ledger))
    if ledger.split("://")[0] not in SCHEMES:
        _refuse(EXPECTED)
    parts = _split(ledger)
    if parts is None or parts.fragment or "@" in parts.path + parts.query:
        _refuse(f"{EXPECTED}, where special characters of the password are written like %2F; this is no such address")
    options = _options(parts)
    user, password = unquote(parts.username or environ.get("PGUSER", "")), _password(parts, environ)
    if not user:
        _refuse(f"{EXPECTED}; it names no user, and PGUSER is not set")
    database = unquote(parts.path.strip("/")) or user
    return LedgerDatabase(
        options.get("host") or parts.hostname or "localhost",
        parts.port or 5432,
        database,
        user,
        password,
        _tls_mode(options),
        options.get("sslrootcert"),
        _seconds(options, "patience_s", 60.0),
        _seconds(options, "lease_s", 30.0),
    )


def shown_ledger(ledger: str) -> str:
    """FOUNDRY_LEDGER's value for people: without a password, also where the value is malformed."""
    if not is_database(ledger):
        return ledger
    try:
        return str(ledger_place(ledger, {"PGUSER": "user"}))
    except ConfigError:
        return f"the database that {VARIABLE} names"


def _split(ledger: str) -> SplitResult | None:
    """None where it is malformed: what urllib says of that may quote a piece of the password."""
    try:
        parts = urlsplit(ledger)
        _ = parts.port
    except ValueError:
        return None
    return parts


def _password(parts: SplitResult, environ: Mapping[str, str]) -> Secret | None:
    value = unquote(parts.password) if parts.password else environ.get("PGPASSWORD")
    return Secret(value) if value else None


def _options(parts: SplitResult) -> dict[str, str]:
    options = dict(parse_qsl(parts.query, keep_blank_values=True))
    if unknown := sorted(name for name in options if name not in OPTIONS):
        # What looks like a name may be a piece of a password with a question mark in it.
        named = ", ".join(name for name in unknown if re.fullmatch(r"[a-z_]{1,30}", name)) or "the option"
        _refuse(f"{named} is not known; there are {', '.join(OPTIONS)}")
    return options


def _tls_mode(options: Mapping[str, str]) -> str:
    mode = options.get("sslmode", "prefer")
    if mode not in TLS_MODES:
        _refuse(f"sslmode: expected one of {', '.join(TLS_MODES)}")
    return mode


def _seconds(options: Mapping[str, str], name: str, default: float) -> float:
    text = options.get(name, "")
    if not text:
        return default
    if not re.fullmatch(r"\d{1,5}(\.\d{1,3})?", text) or float(text) <= 0:
        _refuse(f"{name}: expected seconds above 0")
    return float(text)


def _refuse(message: str) -> NoReturn:
    raise ConfigError([Problem(VARIABLE, message)])
