"""The ledger: what is written is durable, what is damaged is asked again, one process works on a slice."""

from __future__ import annotations

import asyncio
import sqlite3
import subprocess
import sys
from collections.abc import Iterable
from pathlib import Path

import pytest

from foundry_pipeline.calls.ledger import Answer, Attempt, Entry, Intent, Lease, Ledger
from foundry_pipeline.errors import SliceBusy, StorageError


def write(ledger: Ledger, entries: Iterable[Entry]) -> None:
    async def go() -> None:
        for entry in entries:
            await ledger.write(entry)

    asyncio.run(go())


def answered(call_id: str, reply: bytes = b"{}") -> list[Entry]:
    return [Intent(call_id, f"key {call_id}", 5), Answer(call_id, "ok", http_status=200, latency_ms=1.5, reply=reply)]


def test_an_answer_survives_reopening(tmp_path: Path) -> None:
    ledger = Ledger(tmp_path / "s.sqlite")
    write(ledger, answered("a", b'{"cat": "yes"}'))
    ledger.close()
    again = Ledger(tmp_path / "s.sqlite")
    assert again.outcomes() == {"a": "ok"}
    found = again.answers(["a"])["a"]
    assert (found.reply, found.attempts, found.sent_us, found.http_status) == (b'{"cat": "yes"}', 1, 5, 200)
    again.close()


def test_an_intent_without_an_answer_is_an_unknown_outcome(tmp_path: Path) -> None:
    ledger = Ledger(tmp_path / "s.sqlite")
    write(ledger, [*answered("a"), Intent("b", "k", 6)])
    ledger.close()
    again = Ledger(tmp_path / "s.sqlite")
    assert again.unknown == {"b"}
    assert again.outcomes() == {"a": "ok"}
    again.close()


def test_attempts_are_counted_over_all_sends_of_a_call(tmp_path: Path) -> None:
    ledger = Ledger(tmp_path / "s.sqlite")
    intent = Intent("a", "k", 5)
    write(ledger, [intent, Attempt("a", 5, "timeout", "late"), intent, Attempt("a", 6, "http_500", "x", 500, b"body")])
    write(ledger, [intent, Answer("a", "ok", reply=b"[]")])
    assert ledger.answers(["a"])["a"].attempts == 3
    ledger.close()


def test_a_failed_refresh_leaves_the_earlier_answer(tmp_path: Path) -> None:
    ledger = Ledger(tmp_path / "s.sqlite")
    write(ledger, [*answered("a", b"paid"), Intent("a", "k", 9), Attempt("a", 9, "http_500", "x")])
    assert ledger.answers(["a"])["a"].reply == b"paid"
    ledger.close()


def test_a_row_that_was_never_sent_has_an_outcome_too(tmp_path: Path) -> None:
    ledger = Ledger(tmp_path / "s.sqlite")
    write(ledger, [Answer("a", "not_sent", error="row_missing", message="no such file")])
    found = ledger.answers(["a"])["a"]
    assert (found.outcome, found.attempts, found.error) == ("not_sent", 0, "row_missing")
    ledger.close()


def test_F111_a_flipped_bit_in_a_reply_makes_it_asked_again(tmp_path: Path) -> None:
    path = tmp_path / "s.sqlite"
    ledger = Ledger(path)
    write(ledger, [*answered("a", b"x" * 50), *answered("b", b"y" * 50)])
    ledger.close()
    with sqlite3.connect(path) as connection:
        connection.execute("UPDATE calls SET reply = ? WHERE call_id = 'a'", (b"x" * 49 + b"z",))
    connection.close()
    again = Ledger(path)
    assert again.outcomes() == {"b": "ok"}
    again.close()


def test_forgotten_calls_are_gone_and_others_stay(tmp_path: Path) -> None:
    ledger = Ledger(tmp_path / "s.sqlite")
    write(ledger, [*answered("a"), *answered("b")])
    ledger.forget(["a"])
    assert not ledger.is_empty()
    ledger.forget(["b"])
    assert ledger.is_empty()
    ledger.remove()
    assert list(tmp_path.iterdir()) == []


def test_many_writers_share_commits_and_all_become_durable(tmp_path: Path) -> None:
    ledger = Ledger(tmp_path / "s.sqlite")

    async def go() -> None:
        await asyncio.gather(*(ledger.write(Answer(f"c{i}", "ok", reply=b"{}")) for i in range(700)))

    asyncio.run(go())
    ledger.close()
    again = Ledger(tmp_path / "s.sqlite")
    assert len(again.outcomes()) == 700
    again.close()


def test_a_file_that_is_no_ledger_is_named(tmp_path: Path) -> None:
    path = tmp_path / "s.sqlite"
    path.write_bytes(b"not a database at all" * 100)
    with pytest.raises(StorageError, match=r"s\.sqlite.*not a database"):
        Ledger(path)


_KILLED = """
import asyncio, os, signal, sys
from pathlib import Path
from foundry_pipeline.calls.ledger import Answer, Intent, Ledger
async def go():
    ledger = Ledger(Path(sys.argv[1]))
    for i in range(10_000):
        await ledger.write(Intent(f"c{i}", "k", i))
        await ledger.write(Answer(f"c{i}", "ok", reply=b"{}"))
        print(i, flush=True)
        if i == 30:
            os.kill(os.getpid(), signal.SIGKILL)
asyncio.run(go())
"""


def test_F096_after_kill_9_every_acknowledged_answer_is_there(tmp_path: Path) -> None:
    path = tmp_path / "s.sqlite"
    done = subprocess.run([sys.executable, "-c", _KILLED, str(path)], capture_output=True, text=True, check=False)
    assert done.returncode == -9, done.stderr
    acknowledged = {f"c{line}" for line in done.stdout.split()}
    ledger = Ledger(path)
    assert acknowledged <= set(ledger.outcomes())
    ledger.close()


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


def test_F116_the_second_to_take_a_lease_is_told_who_has_it(tmp_path: Path) -> None:
    lease = Lease(tmp_path / "00001.lock", "street")
    with pytest.raises(SliceBusy, match=r"00001 of street.*pid"):
        Lease(tmp_path / "00001.lock", "street")
    lease.release()
    Lease(tmp_path / "00001.lock", "street").release()
    assert list(tmp_path.iterdir()) == []


def test_F117_a_dead_holder_leaves_its_lease_free(tmp_path: Path) -> None:
    path = tmp_path / "00001.lock"
    script = (
        "import os,sys;from pathlib import Path;from foundry_pipeline.calls.ledger import Lease;"
        "lease=Lease(Path(sys.argv[1]),'r');os.kill(os.getpid(),9)"
    )
    subprocess.run([sys.executable, "-c", script, str(path)], check=False)
    assert path.exists()
    Lease(path, "r").release()


def test_files_are_private(tmp_path: Path) -> None:
    folder = tmp_path / "ledger" / "run"
    ledger = Ledger(folder / "s.sqlite")
    ledger.close()
    assert folder.stat().st_mode & 0o077 == 0
