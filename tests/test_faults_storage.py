"""Faults of storage (section F of docs/reliability.md): disks that fill up, refuse, rot or lose files."""

from __future__ import annotations

import asyncio
import hashlib
import random
import shutil
import sqlite3
import subprocess
import sys
from collections.abc import Iterator
from contextlib import closing, contextmanager
from dataclasses import replace
from pathlib import Path

import pyarrow.parquet as pq
import pytest

from foundry_pipeline.calls.ballast import Ballast
from foundry_pipeline.calls.ledger import Answer, Intent, Ledger
from foundry_pipeline.config.settings import Settings
from foundry_pipeline.errors import StorageError
from foundry_pipeline.invoke import CallOptions
from foundry_pipeline.predictions import decode_slice
from foundry_pipeline.rows.datasets import load_dataset
from foundry_pipeline.store import Store
from foundry_pipeline.tables import CLASSIFICATIONS, DATA_ROWS, REJECTS, RESPONSES, TEXTS
from tests.disks import needs_mounts, remount, small_disk
from tests.fake_model import FakeModel, Reply, Request
from tests.invoking import Bench

MIB = 1024 * 1024
CHECKOUT = Path(__file__).resolve().parents[1]


@pytest.fixture
def model() -> Iterator[FakeModel]:
    with FakeModel(lambda request: Reply({"summary": request.text, "label": "cat"})) as served:
        yield served


def long_answer(request: Request) -> Reply:
    """40 KB that do not compress."""
    noise = random.Random(request.text).randbytes(20_000).hex()
    return Reply({"summary": f"{request.text} {noise}"}, delay_s=0.02)


def sums(bench: Bench) -> dict[str, str]:
    """Every Parquet file of the warehouse, with its sha256."""
    files = sorted(Path(bench.store.root).rglob("*.parquet"))
    return {str(path.relative_to(bench.store.root)): hashlib.sha256(path.read_bytes()).hexdigest() for path in files}


def decode(bench: Bench) -> None:
    decode_slice(bench.run, "00000", bench.store, lambda row: row.row_data)


@needs_mounts
def test_F107_a_full_disk_stops_sending_and_loses_no_answer_that_was_under_way(
    model: FakeModel, tmp_path: Path
) -> None:
    model.answer = long_answer
    with small_disk(tmp_path / "disk", 6 * 1024) as disk:
        bench = Bench(tmp_path, model.url, rows=300, ledger=disk / "ledger", settings=Settings(ballast_bytes=2 * MIB))
        bench.model(max_concurrency=8)
        report = bench.one()
        assert report.failure is not None
        assert report.failure.startswith(f"disk full at {disk}/ledger/r/00000.sqlite")
        answered = len(model.requests)
        assert 20 < answered < 200
        assert f"{answered} of 300 rows have their answer, kept in the ledger" in report.failure
        assert bench.responses() == {}
        assert not (disk / "ledger/ballast").exists(), "it is made again by the next run"
        assert "kept in reserve" in refused(bench), "a disk that is still full is said before the first request"
        assert len(model.requests) == answered
        remount(disk, "size=40m")
        again = bench.one()
        assert (again.ok, again.failure) == (300, None)
        assert len(model.requests) == 300, "no answer was paid twice"
        assert list((disk / "ledger/r").iterdir()) == []


def refused(bench: Bench) -> str:
    """What is said where nothing begins."""
    with pytest.raises(StorageError) as caught:
        bench.one()
    return str(caught.value)


def test_F107_the_ballast_is_given_up_once_and_removed_by_the_last_that_uses_it(tmp_path: Path) -> None:
    path = tmp_path / "ledger" / "ballast"
    one, other = Ballast(path, MIB), Ballast(path, MIB)
    assert path.stat().st_blocks * 512 >= MIB, "the space is taken, and not only promised"
    one.free()
    assert path.stat().st_blocks == 0
    one.release()
    assert path.exists()
    other.release()
    assert list(path.parent.iterdir()) == []


@needs_mounts
def test_F108_a_full_disk_at_the_commit_leaves_the_old_tables_and_keeps_the_ledger(
    model: FakeModel, tmp_path: Path
) -> None:
    with small_disk(tmp_path / "disk", 1024) as disk:
        bench = Bench(tmp_path, model.url, rows=60, loads=False)
        bench.store = Store(disk / "warehouse")
        bench.load([f"text {i}" for i in range(60)])
        bench.one()
        decode(bench)
        before = sums(bench)
        model.answer = long_answer
        report = bench.one(CallOptions(refresh=True))
        assert report.failure is not None
        assert "No space left on device; the older tables stay as they were" in report.failure
        assert "60 of 60 rows have their answer, kept in the ledger" in report.failure
        assert sums(bench) == before
        assert list((disk / "warehouse/_staging").iterdir()) == []
        remount(disk, "size=40m")
        again = bench.one()
        assert (again.calls, again.ok, again.failure) == (0, 60, None)
        assert "text 7 " in bench.responses()["k7"]["reply"]


_FILE_SIZE_LIMIT = """
import resource, signal, sys
from pathlib import Path
from foundry_pipeline.config.settings import Settings
from tests.invoking import Bench
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
bench = Bench(Path(sys.argv[1]), sys.argv[2], rows=100, settings=Settings(ballast_bytes=0))
bench.model(max_concurrency=4)
resource.setrlimit(resource.RLIMIT_FSIZE, (700_000, 700_000))
print(bench.one().failure)
"""


def test_F109_after_an_io_error_answers_go_to_a_new_file_and_nothing_more_is_sent(
    model: FakeModel, tmp_path: Path
) -> None:
    """SQLite sees a file that may grow no further as an I/O error of the device, like a disk's."""
    model.answer = long_answer
    script = [sys.executable, "-c", _FILE_SIZE_LIMIT, str(tmp_path), model.url]
    done = subprocess.run(script, cwd=CHECKOUT, capture_output=True, text=True, check=False, timeout=120)
    assert "00000.sqlite: disk I/O error" in done.stdout, done.stderr
    answered = len(model.requests)
    assert 4 < answered < 40
    assert f"{answered} of 100 rows have their answer" in done.stdout
    folder = tmp_path / "ledger" / "r"
    assert (folder / "00000.spare.sqlite").exists()
    bench = Bench(tmp_path, model.url, rows=100, loads=False)
    again = bench.one()
    assert (again.ok, again.calls, again.failure) == (100, 100 - answered, None)
    assert list(folder.iterdir()) == []


def test_F109_where_there_is_no_place_at_all_those_who_wait_hear_of_it(tmp_path: Path) -> None:
    """The database has lost its tables, and a folder stands where its spare would be."""
    path = tmp_path / "s.sqlite"
    ledger = Ledger(path)
    with closing(sqlite3.connect(path)) as connection:
        connection.execute("DROP TABLE calls")
    (tmp_path / "s.spare.sqlite").mkdir()
    with pytest.raises(StorageError, match=r"s\.sqlite.*nothing more is sent"):
        asyncio.run(ledger.write(Answer("a", "ok", reply=b"{}")))
    ledger.close()


@pytest.mark.parametrize("place", ["ledger", "warehouse"])
@pytest.mark.parametrize(
    ("fault", "reason"),
    [
        pytest.param("read-only", "Read-only file system", marks=needs_mounts),
        ("a file in the way", "Not a directory"),
        ("x" * 300, "File name too long"),
    ],
    ids=["read-only", "a file in the way", "name too long"],
)
def test_F110_a_place_that_cannot_be_written_is_said_before_the_first_request(
    model: FakeModel, tmp_path: Path, place: str, fault: str, reason: str
) -> None:
    bench = Bench(tmp_path, model.url)
    with broken_place(tmp_path, fault) as broken:
        bench.ledger = broken / "ledger"
        if place == "warehouse":
            bench.ledger, bench.store = None, Store(broken / "warehouse")
        with pytest.raises(StorageError) as caught, bench.invoker():
            pass
    assert str(broken) in str(caught.value)
    assert reason in str(caught.value)
    assert model.requests == []


@contextmanager
def broken_place(root: Path, fault: str) -> Iterator[Path]:
    if fault == "read-only":
        with small_disk(root / "disk", 1024) as disk:
            remount(disk, "ro")
            yield disk
    else:
        if fault == "a file in the way":
            (root / fault).write_text("")
        yield root / fault


def written_ledger(path: Path, answers: int) -> dict[str, Answer]:
    """A closed ledger with so many answers of 2 KB, and what it said."""
    ledger = Ledger(path)

    async def go() -> None:
        for at in range(answers):
            await ledger.write(Intent(f"{at:064}", f"key {at}", 5))
            reply = random.Random(at).randbytes(1000).hex().encode()
            answer = Answer(f"{at:064}", "ok", http_status=200, sent_us=7, latency_ms=1.5, reply=reply)
            await ledger.write(answer)

    asyncio.run(go())
    said = ledger.answers([f"{at:064}" for at in range(answers)])
    ledger.close()
    return said


def test_F111_a_flipped_bit_anywhere_in_a_ledger_gives_no_answer_that_was_not_written(tmp_path: Path) -> None:
    """Whichever bit it is: the answer is whole, or dropped and counted, or the file is refused by its name."""
    said = written_ledger(tmp_path / "whole.sqlite", 12)
    content = (tmp_path / "whole.sqlite").read_bytes()
    dropped = 0
    for seed in range(120):
        path = tmp_path / f"{seed}.sqlite"
        path.write_bytes(flipped(content, seed))
        try:
            dropped += assert_nothing_else_is_said(path, said)
        except StorageError as err:
            assert path.name in str(err)
    assert dropped > 20


def flipped(content: bytes, seed: int) -> bytes:
    damaged = bytearray(content)
    bit = random.Random(seed).randrange(8 * len(damaged))
    damaged[bit // 8] ^= 1 << bit % 8
    return bytes(damaged)


def assert_nothing_else_is_said(path: Path, said: dict[str, Answer]) -> int:
    """How many answers were found to be damaged."""
    ledger = Ledger(path)
    try:
        known = ledger.outcomes()
        for call_id, answer in ledger.answers(said.keys() & known.keys()).items():
            assert replace(answer, attempts=1, sent_us=7) == said[call_id]
        return ledger.damaged
    finally:
        ledger.close()


def test_F111_a_damaged_answer_is_asked_again_and_counted(model: FakeModel, tmp_path: Path) -> None:
    bench = Bench(tmp_path, model.url, rows=20)
    model.answer = lambda _: Reply({"label": "cat"}) if len(model.requests) <= 10 else Reply(status=401)
    bench.model(max_concurrency=1)
    assert bench.one().failure is not None
    path = tmp_path / "ledger/r/00000.sqlite"
    content = path.read_bytes()
    assert content.count(b'{"label": "cat"}') == 10
    path.write_bytes(content.replace(b'{"label": "cat"}', b'{"label": "dog"}', 2))
    model.answer = lambda _: Reply({"label": "cat"})
    report = bench.one()
    assert (report.ok, report.calls, report.damaged) == (20, 12, 2)
    assert {row["reply"] for row in bench.responses().values()} == {'{"label": "cat"}'}


def committed(model: FakeModel, root: Path, rows: int = 40) -> Bench:
    bench = Bench(root, model.url, rows=rows)
    bench.one()
    decode(bench)
    return bench


def damage(path: str | Path) -> None:
    """Flip a bit in the last page of the longest column."""
    with pq.ParquetFile(path) as file:
        group = file.metadata.row_group(0)
        longest = max((group.column(i) for i in range(group.num_columns)), key=lambda c: c.total_compressed_size)
        end = (longest.dictionary_page_offset or longest.data_page_offset) + longest.total_compressed_size
    content = bytearray(Path(path).read_bytes())
    content[end - 2] ^= 1
    Path(path).write_bytes(content)


def test_F112_a_damaged_prediction_table_is_made_again_without_a_call(model: FakeModel, tmp_path: Path) -> None:
    bench = committed(model, tmp_path)
    before = sums(bench)
    for spec in (TEXTS, CLASSIFICATIONS, REJECTS):
        damage(bench.store.path(spec, "r", "00000"))
        with pytest.raises(StorageError, match=rf"{spec.name}/run=r/00000\.parquet.*its sha256 is not the one"):
            bench.store.check_intact(spec, "r", "00000")
    decode(bench)
    assert sums(bench) == before
    assert len(model.requests) == 40


@pytest.mark.parametrize("where", ["a page", "the end"])
def test_F112_damaged_responses_are_refused_and_asked_again_only_on_request(
    model: FakeModel, tmp_path: Path, where: str
) -> None:
    bench = committed(model, tmp_path)
    path = Path(bench.store.path(RESPONSES, "r", "00000"))
    damage(path) if where == "a page" else path.write_bytes(path.read_bytes()[:-9])
    report = bench.one()
    assert report.failure is not None
    assert str(path) in report.failure
    assert "with `refresh` its rows are asked again" in report.failure
    with pytest.raises(StorageError, match="responses/run=r/00000"):
        decode(bench)
    assert len(model.requests) == 40
    again = bench.one(CallOptions(refresh=True))
    assert (again.ok, again.calls, again.failure) == (40, 40, None)
    decode(bench)
    assert [p.name[:6] for p in (tmp_path / "warehouse/_damaged").rglob("*.parquet")] == ["00000-"]


def test_F112_a_truncated_file_is_refused_wherever_it_ends(model: FakeModel, tmp_path: Path) -> None:
    bench = committed(model, tmp_path)
    path = Path(bench.store.path(RESPONSES, "r", "00000"))
    content = path.read_bytes()
    for length in range(0, len(content), len(content) // 14):
        path.write_bytes(content[:length])
        with pytest.raises(StorageError, match=r"00000\.parquet"):
            bench.store.read(RESPONSES, "r", "00000")


def test_F113_deleted_tables_are_made_again_without_a_call(model: FakeModel, tmp_path: Path) -> None:
    bench = committed(model, tmp_path)
    before = sums(bench)
    for spec in (TEXTS, CLASSIFICATIONS, REJECTS):
        shutil.rmtree(Path(bench.store.root, spec.name))
    decode(bench)
    assert sums(bench) == before
    Path(bench.store.path(DATA_ROWS, "ds", "00000")).unlink()
    load_dataset(bench.dataset, bench.root, bench.settings, bench.store)
    assert bench.one().calls == 0
    assert sums(bench) == before
    assert len(model.requests) == 40


def test_F113_a_deleted_ledger_costs_only_the_answers_that_were_in_no_table(model: FakeModel, tmp_path: Path) -> None:
    bench = Bench(tmp_path, model.url, rows=40, rows_per_slice=20)
    bench.model(max_concurrency=1)
    model.answer = lambda _: Reply({"label": "cat"}) if len(model.requests) <= 30 else Reply(status=401)
    assert [report.failure is None for report in bench.go()] == [True, False]
    shutil.rmtree(tmp_path / "ledger")
    model.answer = lambda _: Reply({"label": "cat"})
    assert [(report.calls, report.failure) for report in bench.go()] == [(0, None), (20, None)]


@needs_mounts
def test_F114_a_ledger_on_a_disk_of_this_machine_or_in_its_memory_is_taken(model: FakeModel, tmp_path: Path) -> None:
    with small_disk(tmp_path / "disk", 9 * 1024) as disk:
        bench = Bench(tmp_path, model.url, ledger=disk / "ledger", settings=Settings(ballast_bytes=MIB))
        assert bench.one().ok == 6


def url_store(root: Path) -> Store:
    """The road of object stores: no folders to be made, no renames, one PUT a file."""
    for spec in (RESPONSES, TEXTS, CLASSIFICATIONS, REJECTS):
        for folder in (f"{spec.name}/run=r", f"_commits/{spec.name}/run=r", "_staging"):
            (root / folder).mkdir(parents=True, exist_ok=True)
    return Store(f"file://{root}")


def test_F115_on_an_object_store_the_records_tell_tables_of_two_commits_apart(model: FakeModel, tmp_path: Path) -> None:
    """One PUT makes one file. Between two of them a reader may see one new and one old table: their sums say so."""
    bench = committed(model, tmp_path, rows=4)
    bench.store = url_store(tmp_path / "warehouse")
    decode(bench)
    for spec in (TEXTS, CLASSIFICATIONS, REJECTS):
        assert bench.store.check_intact(spec, "r", "00000") is not None
    model.answer = lambda _: Reply({"label": "dog", "summary": "another"})
    bench.one(CallOptions(refresh=True))
    old = Path(tmp_path, "warehouse/classifications/run=r/00000.parquet").read_bytes()
    decode(bench)
    Path(tmp_path, "warehouse/classifications/run=r/00000.parquet").write_bytes(old)
    assert bench.store.check_intact(TEXTS, "r", "00000") is not None
    with pytest.raises(StorageError, match="its sha256 is not the one that was committed"):
        bench.store.check_intact(CLASSIFICATIONS, "r", "00000")
    decode(bench)
    assert bench.store.check_intact(CLASSIFICATIONS, "r", "00000") is not None
    assert len(model.requests) == 8
