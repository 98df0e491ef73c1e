"""Brings a ledger file of the first layout to the present one: it had no run and slice, and sums of replies alone."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from typing import Any

import sqlalchemy as sa

from foundry_pipeline.calls.ledger_tables import ANSWER_COLUMNS, CALLS, METADATA, Answer, sha256_of

_AT_ONCE = 64
_COLUMNS = (*ANSWER_COLUMNS, "global_key", "in_flight")
_RESULT = ("outcome", "http_status", "latency_ms", "reply", "error", "message")


def upgrade(connection: sa.Connection) -> None:
    """Copy what is in tables of the first layout, in one transaction. Does nothing where there are none.

    A reply that has rotted is not copied: it is asked again.
    """
    columns = {row[1] for row in connection.exec_driver_sql("PRAGMA table_info(calls)")}
    if "reply_sha256" not in columns:
        return
    connection.exec_driver_sql("BEGIN IMMEDIATE")  # Python's driver would begin before the first INSERT only
    for table in ("calls", "attempts"):
        connection.exec_driver_sql(f"ALTER TABLE {table} RENAME TO first_{table}")
    METADATA.create_all(connection)
    found = connection.exec_driver_sql(f"SELECT {', '.join(_COLUMNS)}, reply_sha256 FROM first_calls")  # noqa: S608
    while rows := found.fetchmany(_AT_ONCE):
        connection.execute(sa.insert(CALLS), [_as_now(row) for row in rows])
    attempts = "call_id, attempt, sent_us, http_status, error, message, evidence"
    connection.exec_driver_sql(
        f"INSERT INTO attempts (run, slice, {attempts}) SELECT '', '', {attempts} FROM first_attempts"  # noqa: S608
    )
    for table in ("calls", "attempts"):
        connection.exec_driver_sql(f"DROP TABLE first_{table}")


def _as_now(row: Sequence[Any]) -> dict[str, Any]:
    values = dict(zip(_COLUMNS, row, strict=False))
    reply, digest = values["reply"], row[-1]
    if reply is not None and hashlib.sha256(reply).digest() != digest:
        values |= dict.fromkeys(_RESULT)
    answer = Answer(**{name: values[name] for name in ANSWER_COLUMNS})
    return {**values, "run": "", "slice": "", "sha256": None if answer.outcome is None else sha256_of(answer)}
