"""`foundry-pipeline ledger`: what is pending, and what `--recover` finishes without a call; on both kinds of ledger."""

from __future__ import annotations

import argparse
import asyncio
import io
import random
import subprocess
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path

import pytest

from foundry_pipeline.calls.ledger import Answer, Attempt, Intent, Ledger
from foundry_pipeline.calls.ledger_tables import apply
from foundry_pipeline.calls.salvage import is_damaged
from foundry_pipeline.calls.sqlite import SqliteFile, spare_of
from foundry_pipeline.cli import main, show_ledger
from foundry_pipeline.errors import StorageError
from foundry_pipeline.home import load_home
from foundry_pipeline.invoke import Invoker
from foundry_pipeline.recovery import Recovered, recover, waiting_answers
from foundry_pipeline.rows.datasets import load_dataset
from foundry_pipeline.store import Store
from tests.fake_model import FakeModel, Reply
from tests.home_folder import mood_of, write_mood_home
from tests.invoking import Bench

CHECKOUT = Path(__file__).parent.parent


@pytest.fixture
def model() -> Iterator[FakeModel]:
    with FakeModel(lambda request: Reply({"summary": request.text})) as served:
        yield served


def ask(bench: Bench, *rows: int) -> None:
    """Call rows as a preview does: their answers stay in the ledger."""
    with bench.invoker() as invoker:
        invoker.ask("00000", [f"k{row}" for row in rows])


def recovered(bench: Bench, *, without_run: bool = False) -> list[Recovered]:
    with bench.ledgers() as ledgers:
        return list(recover({} if without_run else {"r": bench.run}, bench.store, ledgers))


def test_a_slice_whose_rows_all_have_an_answer_is_committed_without_a_call(
    model: FakeModel, tmp_path: Path, ledger_at: str
) -> None:
    bench = Bench(tmp_path, model.url, rows=4, ledger=ledger_at)
    ask(bench, 0, 1, 2, 3)
    (done,) = recovered(bench)
    assert done.words == "committed to responses: 4 ok; materialize r to decode it, without a call"
    assert len(model.requests) == 4
    assert {row["outcome"] for row in bench.responses().values()} == {"ok"}
    assert bench.pending() == []
    assert bench.one().calls == 0


def test_a_slice_that_still_needs_calls_keeps_its_answers(model: FakeModel, tmp_path: Path, ledger_at: str) -> None:
    bench = Bench(tmp_path, model.url, rows=4, ledger=ledger_at)
    ask(bench, 0, 1, 2)
    (done,) = recovered(bench)
    assert done.words.startswith("3 of 4 rows have their answer, kept here: materialize r")
    assert bench.responses() == {}
    assert bench.one().calls == 1


def test_a_slice_with_too_many_failures_is_not_committed(model: FakeModel, tmp_path: Path, ledger_at: str) -> None:
    model.answer = lambda request: Reply(status=500) if request.text == "text 0" else Reply({"summary": "x"})
    bench = Bench(tmp_path, model.url, rows=4, ledger=ledger_at)
    ask(bench, 0, 1, 2, 3)
    (done,) = recovered(bench)
    assert "1 of 4 rows failed (25.0%, max_failed_share is 5.0%)" in done.words
    assert bench.responses() == {}


_DIES_WHILE_PUBLISHING = """
import os, signal, sys
from pathlib import Path
sys.path.insert(0, sys.argv[1])
from tests.invoking import Bench
def hook(event, args):
    if event == "os.rename" and str(args[1]).endswith("responses/run=r/00000.parquet"):
        os.kill(os.getpid(), signal.SIGKILL)
sys.addaudithook(hook)
Bench(Path(sys.argv[2]), sys.argv[3], rows=4, ledger=sys.argv[4]).one()
"""


def test_a_commit_that_was_killed_after_its_commit_point_is_finished(
    model: FakeModel, tmp_path: Path, ledger_at: str
) -> None:
    words = [str(CHECKOUT), str(tmp_path), model.url, ledger_at]
    killed = subprocess.run([sys.executable, "-c", _DIES_WHILE_PUBLISHING, *words], check=False)
    assert killed.returncode == -9
    bench = Bench(tmp_path, model.url, rows=4, ledger=ledger_at, loads=False)
    assert bench.responses() == {}
    assert [one.words for one in recovered(bench, without_run=True)] == [
        "a commit that was interrupted after its commit point is finished",
        "removed: its 4 answers are in tables",
    ]
    assert len(bench.responses()) == 4
    assert bench.pending() == []
    assert bench.one().calls == 0


def test_only_answers_that_are_in_tables_word_for_word_are_removed(
    model: FakeModel, tmp_path: Path, ledger_at: str
) -> None:
    bench = Bench(tmp_path, model.url, rows=3, ledger=ledger_at)
    bench.one()
    calls = {key: row["call_id"] for key, row in bench.responses().items()}
    same = [Answer(calls["k0"], "ok", reply=b'{"summary": "text 0"}'), Answer(calls["k2"], "failed", error="x")]
    write(
        bench, *same, Answer(calls["k1"], "ok", reply=b'{"summary": "another"}'), Answer("old call", "ok", reply=b"{}")
    )
    (done,) = recovered(bench, without_run=True)
    assert not done.done
    assert "there is no sound run 'r' in this home" in done.words
    assert {answer.call_id for answer in bench.kept_answers()} == {calls["k1"], "old call"}


def write(bench: Bench, *entries: Answer | Attempt | Intent) -> None:
    with bench.ledgers() as ledgers:
        lease = ledgers.lease("r", "00000")
        ledger = ledgers.ledger("r", "00000", lease)

        async def go() -> None:
            for entry in entries:
                await ledger.write(entry)

        asyncio.run(go())
        ledger.close()
        lease.release()


def test_calls_of_unknown_outcome_are_left_for_the_run_that_asks_again(
    model: FakeModel, tmp_path: Path, ledger_at: str
) -> None:
    bench = Bench(tmp_path, model.url, rows=3, ledger=ledger_at)
    write(bench, Intent("a", "k0", 5))
    (done,) = recovered(bench)
    assert done.words == "no answers: 1 calls whose outcome nobody knows; a run asks them again"
    assert [pending.unknown for pending in bench.pending()] == [1]


def test_a_slice_that_somebody_works_on_is_left_alone(model: FakeModel, tmp_path: Path, ledger_at: str) -> None:
    bench = Bench(tmp_path, model.url, rows=3, ledger=ledger_at)
    ask(bench, 0, 1, 2)
    with bench.ledgers() as ledgers:
        lease = ledgers.lease("r", "00000")
        (done,) = recovered(bench)
        lease.release()
    assert done.words.startswith("left alone: run r (pid ")
    assert bench.responses() == {}


# What a disk that failed has left beside a ledger


def set_aside(bench: Bench) -> None:
    """Move the slice's last answer to where it had gone, had the ledger's disk been full."""
    with bench.ledgers() as ledgers:
        lease = ledgers.lease("r", "00000")
        ledger = ledgers.ledger("r", "00000", lease)
        *_, last = ledger.answers(ledger.outcomes()).values()
        ledger.forget([last.call_id])
        asyncio.run(ledger.write(Intent(last.call_id, "k", 5)))
        ledger.close()
        spare = SqliteFile(spare_of(bench.root / "ledger/r/00000.sqlite"))
        spare.commit(lambda connection: apply(connection, spare.scope, [last]))
        spare.close()
        lease.release()


def test_a_spare_is_no_slice_and_its_answers_count(model: FakeModel, tmp_path: Path) -> None:
    bench = Bench(tmp_path, model.url, rows=3)
    ask(bench, 0, 1, 2)
    set_aside(bench)
    (pending,) = bench.pending()
    assert (pending.slice_key, pending.outcomes, pending.unknown, pending.in_spare) == ("00000", {"ok": 3}, 0, 1)
    with bench.ledgers() as ledgers:
        assert waiting_answers(pending, ledgers, bench.store) == 3
        assert ledgers.requests("r") == 3
    assert spare_of(tmp_path / "ledger/r/00000.sqlite").exists(), "looking takes nothing in"
    (done,) = recovered(bench)
    assert done.words.startswith("committed to responses: 3 ok")
    assert list((tmp_path / "ledger/r").iterdir()) == []
    assert len(model.requests) == 3


def test_a_damaged_spare_is_saved_like_a_damaged_ledger(model: FakeModel, tmp_path: Path) -> None:
    bench = Bench(tmp_path, model.url, rows=3)
    ask(bench, 0, 1, 2)
    set_aside(bench)
    spare_of(tmp_path / "ledger/r/00000.sqlite").write_bytes(b"junk" * 3000)
    (pending,) = bench.pending()
    assert "not a database" in str(pending.damage)
    saved, kept = recovered(bench)
    assert saved.words.startswith("damaged: 0 answers")
    assert kept.words.startswith("2 of 3 rows have their answer")
    assert bench.one().calls == 1


# A damaged SQLite file


def fill(path: Path, calls: int) -> None:
    async def call(ledger: Ledger, number: int) -> None:
        await ledger.write(Intent(f"{number:064x}", "k", 5))
        await ledger.write(Attempt(f"{number:064x}", 5, "http_500", "x", 500, b"evidence"))
        await ledger.write(Answer(f"{number:064x}", "ok", reply=b"%d " % number * (100 + number)))

    async def go(ledger: Ledger) -> None:
        await asyncio.gather(*(call(ledger, number) for number in range(calls)))

    ledger = Ledger(path)
    asyncio.run(go(ledger))
    ledger.close()


@pytest.mark.parametrize(
    ("damage", "least"),
    [
        (lambda content: bytes(4096) + content[4096:], 60),
        (lambda content: bytes(100) + content[100:], 60),
        (lambda content: content[: len(content) // 2], 5),
        (lambda content: with_bad_page(content, 1), 40),
        (lambda content: with_bad_page(content, 2), 40),
        (lambda content: with_bad_page(content, 3), 40),
        (lambda content: b"junk" * 3000, 0),
    ],
    ids=["no first page", "no header", "cut in half", "bad page", "bad page", "bad page", "all junk"],
)
def test_F111_what_can_be_read_of_a_damaged_ledger_is_saved_and_the_file_kept_aside(
    model: FakeModel, tmp_path: Path, damage: object, least: int
) -> None:
    bench = Bench(tmp_path, model.url, rows=3)
    path = tmp_path / "ledger/r/00000.sqlite"
    fill(path, 60)
    damaged = damage(path.read_bytes())  # type: ignore[operator]
    path.write_bytes(damaged)
    assert is_damaged(path)
    saved, _ = recovered(bench)
    assert saved.words.startswith("damaged: ")
    kept = {answer.call_id: answer for answer in bench.kept_answers()}
    assert len(kept) >= least
    assert all(answer.reply == b"%d " % int(c, 16) * (100 + int(c, 16)) for c, answer in kept.items())
    (aside,) = path.parent.glob("00000.sqlite.damaged-*")
    assert aside.read_bytes() == damaged
    assert not is_damaged(path)
    assert sorted(file.name for file in path.parent.iterdir()) == ["00000.sqlite", aside.name]


def with_bad_page(content: bytes, seed: int) -> bytes:
    """One page after the first is noise."""
    noise = random.Random(seed)
    at = noise.randrange(5, len(content) // 4096) * 4096
    return content[:at] + noise.randbytes(4096) + content[at + 4096 :]


def test_F111_a_run_on_a_damaged_ledger_says_what_saves_it(model: FakeModel, tmp_path: Path) -> None:
    bench = Bench(tmp_path, model.url, rows=3)
    ask(bench, 0, 1)
    path = tmp_path / "ledger/r/00000.sqlite"
    path.write_bytes(bytes(100) + path.read_bytes()[100:])
    report = bench.one()
    assert "foundry-pipeline ledger --recover" in str(report.failure)
    recovered(bench)
    assert bench.one().calls == 1


# The command


@pytest.fixture
def home(tmp_path: Path) -> Iterator[tuple[Path, FakeModel]]:
    with FakeModel(mood_of) as served:
        root = write_mood_home(tmp_path / "home", served.url, ["fine", "bad", "good", "well", "so so"])
        yield root, served


def ledger(
    home: Path, ledger_at: str, *, run: str | None = None, slice_key: str | None = None, recover: bool = False
) -> tuple[int, str]:
    out = io.StringIO()
    arguments = argparse.Namespace(home=home, run=run, slice=slice_key, recover=recover)
    code = show_ledger(arguments, {"FOUNDRY_LEDGER": ledger_at}, out)
    return code, out.getvalue()


def preview(root: Path, ledger_at: str, environ: Mapping[str, str]) -> None:
    """Two rows of the first slice and one of the second are asked for."""
    home = load_home(root, environ)
    run, store = home.runs["notes_mood"], Store(root / "warehouse")
    load_dataset(run.dataset, root, home.settings, store)
    with Invoker(run, store, home.settings, home_root=root, ledger=ledger_at, environ=environ) as invoker:
        invoker.ask("00000", ["n0", "n1"])
        invoker.ask("00001", ["n2"])


def test_the_command_shows_what_is_pending_and_recovers_it(home: tuple[Path, FakeModel], ledger_at: str) -> None:
    root, model = home
    code, said = ledger(root, ledger_at)
    assert code == 0
    assert said.endswith(": nothing is pending\n")
    preview(root, ledger_at, {})
    code, said = ledger(root, ledger_at)
    assert code == 0
    place, heads, *rows = said.splitlines()
    assert "s3cr3t" not in place
    assert heads.split("  ")[0] == "run"
    assert [row.split()[:5] for row in rows] == [
        ["notes_mood", "00000", "2", "ok", "2"],
        ["notes_mood", "00001", "1", "ok", "1"],
    ]
    assert all(row.endswith("nobody") for row in rows)
    code, said = ledger(root, ledger_at, run="notes_mood", slice_key="00001", recover=True)
    assert said.startswith("notes_mood 00001: 1 of 2 rows have their answer")
    code, said = ledger(root, ledger_at, recover=True)
    assert code == 0
    assert "notes_mood 00000: committed to responses: 2 ok" in said
    assert [row.split()[1] for row in ledger(root, ledger_at)[1].splitlines()[2:]] == ["00001"]
    assert len(model.requests) == 3


def test_the_ledger_of_a_run_that_is_gone_is_shown_and_kept(home: tuple[Path, FakeModel], ledger_at: str) -> None:
    root, _ = home
    preview(root, ledger_at, {})
    (root / "runs/notes_mood.yaml").unlink()
    assert len(ledger(root, ledger_at, run="notes_mood")[1].splitlines()) == 4
    code, said = ledger(root, ledger_at, recover=True)
    assert code == 1
    assert said.count("its answers stay: there is no sound run 'notes_mood' in this home") == 2
    assert len(ledger(root, ledger_at)[1].splitlines()) == 4


def test_a_damaged_ledger_is_explained(home: tuple[Path, FakeModel], tmp_path: Path) -> None:
    root, _ = home
    at = str(tmp_path / "ledger")
    preview(root, at, {})
    Path(at, "notes_mood/00000.sqlite").write_bytes(b"junk" * 2000)
    code, said = ledger(root, at)
    assert code == 1
    assert "notes_mood  00000  damaged" in said
    assert "file is not a database" in said
    assert "`foundry-pipeline ledger --recover` saves what can be read" in said
    code, said = ledger(root, at, recover=True)
    assert "notes_mood 00000: damaged: 0 answers and 0 failed attempts could be read" in said


def test_a_ledger_that_cannot_be_had_is_one_line(
    home: tuple[Path, FakeModel], capsys: pytest.CaptureFixture[str]
) -> None:
    root, _ = home
    with pytest.raises(StorageError, match=r"ledger postgresql://u@127.0.0.1:1/db"):
        ledger(root, "postgresql://u:s3cr3t@127.0.0.1:1/db?patience_s=0.1")
    assert main(["ledger", "--home", str(root)]) == 0
    assert "nothing is pending" in capsys.readouterr().out
