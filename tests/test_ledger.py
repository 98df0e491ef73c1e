"""The ledger: what is written is durable, what is damaged is asked again, one process works on a slice.

The tests of what both kinds have in common run on SQLite and on PostgreSQL.
"""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import os
import sqlite3
import subprocess
import sys
from collections.abc import Iterable, Iterator
from pathlib import Path
from urllib.parse import urlsplit

import pytest

from foundry_pipeline.calls.file_systems import REFUSED, file_system_type
from foundry_pipeline.calls.lease import FileLease, Lease
from foundry_pipeline.calls.ledger import GROUP_BYTES, Answer, Attempt, Entry, Intent, Ledger, Withdrawal
from foundry_pipeline.calls.ledgers import LedgerFiles, Ledgers, ledgers_at
from foundry_pipeline.errors import SliceBusy, StorageError
from tests.postgres import Cluster


class Place:
    """Opens the ledger of one slice again and again, and tampers with it."""

    def __init__(self, at: str, request: pytest.FixtureRequest) -> None:
        self.at = at
        self._request = request
        self.ledgers = ledgers_at(at, {})
        self.ledgers.open()
        self.lease = self.ledgers.lease("street", "00001")

    def open(self) -> Ledger:
        return self.ledgers.ledger("street", "00001", self.lease)

    def execute(self, statement: str) -> None:
        """On either, where bytes are written x'00' and the tables have no schema."""
        if isinstance(self.ledgers, LedgerFiles):
            with sqlite3.connect(self.ledgers.path("street", "00001")) as connection:
                connection.execute(statement)
            connection.close()
            return
        cluster: Cluster = self._request.getfixturevalue("postgres")
        database = urlsplit(self.at).path.strip("/")
        cluster.sql(database, "SET search_path = foundry_ledger; " + statement.replace("x'", r"'\x"))

    def close(self) -> None:
        self.lease.release()
        self.ledgers.close()


@pytest.fixture
def place(ledger_at: str, request: pytest.FixtureRequest) -> Iterator[Place]:
    opened = Place(ledger_at, request)
    yield opened
    opened.close()


def write(ledger: Ledger, entries: Iterable[Entry]) -> None:
    async def go() -> None:
        for entry in entries:
            await ledger.write(entry)

    asyncio.run(go())


def answered(call_id: str, reply: bytes = b"{}") -> list[Entry]:
    return [Intent(call_id, f"key {call_id}", 5), Answer(call_id, "ok", http_status=200, latency_ms=1.5, reply=reply)]


def test_an_answer_survives_reopening(place: Place) -> None:
    ledger = place.open()
    write(ledger, answered("a", b'{"cat": "yes"}'))
    ledger.close()
    again = place.open()
    assert again.outcomes() == {"a": "ok"}
    found = again.answers(["a"])["a"]
    assert (found.reply, found.attempts, found.sent_us, found.http_status) == (b'{"cat": "yes"}', 1, 5, 200)
    again.close()


def test_an_intent_without_an_answer_is_an_unknown_outcome(place: Place) -> None:
    ledger = place.open()
    write(ledger, [*answered("a"), Intent("b", "k", 6)])
    ledger.close()
    again = place.open()
    assert again.unknown == {"b"}
    assert again.outcomes() == {"a": "ok"}
    again.close()


def test_attempts_are_counted_over_all_sends_of_a_call(place: Place) -> None:
    ledger = place.open()
    intent = Intent("a", "k", 5)
    write(ledger, [intent, Attempt("a", 5, "timeout", "late"), intent, Attempt("a", 6, "http_500", "x", 500, b"body")])
    write(ledger, [intent, Answer("a", "ok", reply=b"[]")])
    assert ledger.answers(["a"])["a"].attempts == 3
    ledger.close()


def test_a_failed_refresh_leaves_the_earlier_answer(place: Place) -> None:
    ledger = place.open()
    write(ledger, [*answered("a", b"paid"), Intent("a", "k", 9), Attempt("a", 9, "http_500", "x")])
    assert ledger.answers(["a"])["a"].reply == b"paid"
    ledger.close()


def test_a_row_that_was_never_sent_has_an_outcome_too(place: Place) -> None:
    ledger = place.open()
    write(ledger, [Answer("a", "not_sent", error="row_missing", message="no such file")])
    found = ledger.answers(["a"])["a"]
    assert (found.outcome, found.attempts, found.error) == ("not_sent", 0, "row_missing")
    ledger.close()


def test_F111_a_flipped_bit_in_a_reply_makes_it_asked_again(place: Place) -> None:
    ledger = place.open()
    write(ledger, [*answered("a", b"x" * 50), *answered("b", b"y" * 50)])
    ledger.close()
    place.execute(f"UPDATE calls SET reply = x'{b'x'.hex() * 49}{b'z'.hex()}' WHERE call_id = 'a'")
    again = place.open()
    assert again.outcomes() == {"b": "ok"}
    again.close()


def test_forgotten_calls_are_gone_and_others_stay(place: Place) -> None:
    ledger = place.open()
    write(ledger, [*answered("a"), *answered("b")])
    ledger.forget(["a"])
    assert not ledger.is_empty()
    ledger.forget(["b"])
    assert ledger.is_empty()
    ledger.remove()
    place.lease.release()
    assert place.ledgers.pending() == []
    place.lease = place.ledgers.lease("street", "00001")


def test_many_writers_share_commits_and_all_become_durable(place: Place) -> None:
    ledger = place.open()

    async def go() -> None:
        await asyncio.gather(*(ledger.write(Answer(f"c{i}", "ok", reply=b"{}")) for i in range(700)))

    asyncio.run(go())
    ledger.close()
    again = place.open()
    assert len(again.outcomes()) == 700
    again.close()


def test_texts_of_any_origin_are_storable(place: Place) -> None:
    """NUL is no text to PostgreSQL, half a surrogate pair none to either."""
    ledger = place.open()
    odd = "a\0b\ud800c\u00e9\U0001f600"
    write(ledger, [Intent("a", odd, 5), Attempt("a", 5, odd, odd), Answer("a", "failed", error=odd, message=odd)])
    found = ledger.answers(["a"])["a"]
    assert found.message == found.error == "a\\x00b\\ud800c\u00e9\U0001f600"
    ledger.close()


def test_a_withdrawn_call_was_not_sent(place: Place) -> None:
    ledger = place.open()
    write(ledger, [Intent("a", "k", 5), Withdrawal("a")])
    ledger.close()
    again = place.open()
    assert again.unknown == frozenset()
    write(again, answered("a"))
    assert again.answers(["a"])["a"].attempts == 1
    again.close()


def test_replies_of_many_megabytes_are_written_in_several_commits(place: Place) -> None:
    ledger = place.open()
    reply = b"x" * (GROUP_BYTES // 3)

    async def go() -> None:
        await asyncio.gather(*(ledger.write(Answer(f"c{i}", "ok", reply=reply)) for i in range(8)))

    asyncio.run(go())
    assert set(ledger.outcomes()) == {f"c{i}" for i in range(8)}
    ledger.close()


def test_what_is_pending_is_counted_by_slice(place: Place) -> None:
    ledger = place.open()
    failed = [Intent("f", "k", 3), Attempt("f", 3, "http_500", "x", 500, b"12345"), Answer("f", "failed", error="x")]
    write(ledger, [*answered("a", b"1234567890"), *failed, Intent("b", "k", 6)])
    ledger.close()
    (pending,) = place.ledgers.pending()
    assert (pending.run, pending.slice_key) == ("street", "00001")
    assert pending.outcomes == {"ok": 1, "failed": 1}
    assert (pending.unknown, pending.failed_attempts, pending.size_bytes, pending.since_us) == (1, 1, 15, 3)
    assert pending.holder is not None
    assert pending.holder.pid == os.getpid()


def test_a_file_that_is_no_ledger_is_named(tmp_path: Path) -> None:
    path = tmp_path / "s.sqlite"
    path.write_bytes(b"not a database at all" * 100)
    with pytest.raises(StorageError, match=r"s\.sqlite.*not a database.*ledger --recover"):
        Ledger(path)


_KILLED = """
import asyncio, os, signal, sys
from foundry_pipeline.calls.ledger import Answer, Intent
from foundry_pipeline.calls.ledgers import ledgers_at
async def go():
    ledgers = ledgers_at(sys.argv[1], {})
    ledgers.open()
    ledger = ledgers.ledger("street", "00001", ledgers.lease("street", "00001"))
    for i in range(10_000):
        await ledger.write(Intent(f"c{i}", "k", i))
        await ledger.write(Answer(f"c{i}", "ok", reply=b"{}"))
        print(i, flush=True)
        if i == 30:
            os.kill(os.getpid(), signal.SIGKILL)
asyncio.run(go())
"""


def killed(ledger_at: str) -> set[str]:
    """What a process that was killed at work had been told to be durable."""
    done = subprocess.run([sys.executable, "-c", _KILLED, ledger_at], capture_output=True, text=True, check=False)
    assert done.returncode == -9, done.stderr
    return {f"c{line}" for line in done.stdout.split()}


def test_F096_F117_after_kill_9_every_acknowledged_answer_is_there_and_the_slice_is_free_at_once(
    ledger_at: str, request: pytest.FixtureRequest
) -> None:
    acknowledged = killed(ledger_at)
    place = Place(ledger_at, request)
    ledger = place.open()
    assert len(acknowledged) == 31
    assert acknowledged <= set(ledger.outcomes())
    ledger.close()
    place.close()


_FULL = """
import asyncio, resource, signal, sys
from pathlib import Path
from foundry_pipeline.errors import StorageError
from foundry_pipeline.calls.ledger import Answer, Ledger
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
async def go():
    ledger = Ledger(Path(sys.argv[1]))
    await ledger.write(Answer("kept", "ok", reply=b"{}"))
    resource.setrlimit(resource.RLIMIT_FSIZE, (400_000, 400_000))
    try:
        for i in range(100):
            await ledger.write(Answer(f"c{i}", "ok", reply=b"x" * 50_000))
    except StorageError as err:
        print(err)
asyncio.run(go())
"""


def test_F107_a_file_size_limit_is_a_clear_error_and_loses_nothing_written(tmp_path: Path) -> None:
    path = tmp_path / "s.sqlite"
    done = subprocess.run([sys.executable, "-c", _FULL, str(path)], capture_output=True, text=True, check=False)
    assert "s.sqlite" in done.stdout, done.stderr
    assert "nothing more is sent" in done.stdout
    ledger = Ledger(path)
    assert "kept" in ledger.outcomes()
    ledger.close()


def test_F116_the_second_to_take_a_slice_is_told_who_has_it(place: Place) -> None:
    with pytest.raises(SliceBusy, match=rf"run street \(pid {os.getpid()}, host .+, since .+Z\) works on slice 00001"):
        place.ledgers.lease("street", "00001")
    place.ledgers.lease("street", "00002").release()
    place.lease.release()
    place.lease = place.ledgers.lease("street", "00001")
    place.lease.check()


def test_a_released_lease_leaves_nothing_behind(tmp_path: Path) -> None:
    FileLease(tmp_path / "00001.lock", "street").release()
    assert list(tmp_path.iterdir()) == []


def test_a_lease_whose_file_was_removed_is_lost_and_harms_nobody_elses(tmp_path: Path) -> None:
    path = tmp_path / "00001.lock"
    loser = FileLease(path, "street")
    path.unlink()
    winner: Lease = FileLease(path, "street")
    with pytest.raises(SliceBusy, match="lost slice 00001"):
        loser.check()
    loser.release()
    winner.check()
    winner.release()


def test_files_are_private(tmp_path: Path) -> None:
    folder = tmp_path / "ledger" / "run"
    ledger = Ledger(folder / "s.sqlite")
    ledger.close()
    assert folder.stat().st_mode & 0o077 == 0


@pytest.mark.parametrize("magic", REFUSED, ids=hex)
def test_F114_a_network_file_system_is_refused(tmp_path: Path, magic: int) -> None:
    ledgers: Ledgers = LedgerFiles(tmp_path / "ledger", file_system=lambda _: magic)
    with pytest.raises(StorageError, match=f"on {REFUSED[magic]}.*use PostgreSQL or a local FOUNDRY_LEDGER"):
        ledgers.open()


def test_the_file_system_is_the_one_that_the_system_tells(tmp_path: Path) -> None:
    told = subprocess.run(["stat", "-f", "-c", "%t", str(tmp_path)], capture_output=True, text=True, check=True)
    assert file_system_type(tmp_path) == int(told.stdout, 16)
    assert file_system_type(Path("/proc")) == 0x9FA0
    assert file_system_type(tmp_path / "missing") is None


_FIRST_LAYOUT = """
    CREATE TABLE calls (call_id VARCHAR(64) NOT NULL PRIMARY KEY, global_key TEXT NOT NULL, attempts INTEGER NOT NULL,
        in_flight BOOLEAN NOT NULL, outcome VARCHAR(24), http_status INTEGER, sent_us BIGINT, latency_ms FLOAT,
        reply BLOB, reply_sha256 BLOB, error TEXT, message TEXT);
    CREATE TABLE attempts (call_id VARCHAR(64) NOT NULL, attempt INTEGER NOT NULL, sent_us BIGINT NOT NULL,
        http_status INTEGER, error TEXT NOT NULL, message TEXT NOT NULL, evidence BLOB, PRIMARY KEY (call_id, attempt));
    INSERT INTO attempts VALUES ('failed', 1, 5, 500, 'http_500', 'no', x'00');
"""


def test_answers_in_a_ledger_of_the_first_layout_are_used_and_one_that_has_rotted_is_asked_again(
    tmp_path: Path,
) -> None:
    path = tmp_path / "00001.sqlite"
    digest = hashlib.sha256(b"{}").digest()
    with contextlib.closing(sqlite3.connect(path)) as connection:
        connection.executescript(_FIRST_LAYOUT)
        connection.executemany(
            "INSERT INTO calls VALUES (?, 'k', 1, ?, ?, 200, 5, 1.5, ?, ?, NULL, NULL)",
            [
                ("fine", 0, "ok", b"{}", digest),
                ("rotten", 0, "ok", b"{]", digest),
                ("failed", 0, "failed", None, None),
                ("open", 1, None, None, None),
            ],
        )
        connection.commit()
    for _ in range(2):
        ledger = Ledger(path)
        assert ledger.outcomes() == {"fine": "ok", "failed": "failed"}
        assert ledger.answers(["fine"])["fine"] == Answer("fine", "ok", 1, 200, 5, 1.5, b"{}")
        assert (ledger.unknown, ledger.damaged) == (frozenset({"open"}), 0)
        ledger.close()
    with contextlib.closing(sqlite3.connect(path)) as connection:
        assert connection.execute("SELECT call_id, error FROM attempts").fetchall() == [("failed", "http_500")]
