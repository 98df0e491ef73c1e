"""The store: a slice's tables are all old or all new, whenever the process dies, and damage is noticed."""

from __future__ import annotations

import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import polars as pl
import pyarrow as pa
import pyarrow.dataset
import pytest

from foundry_pipeline.errors import StorageError
from foundry_pipeline.store import Store
from foundry_pipeline.tables import BOXES, DATA_ROWS, REJECTS, TEXTS, build, empty


def texts(*answers: str) -> pa.Table:
    columns: dict[str, list[Any]] = {name: [] for name in TEXTS.schema.names}
    for at, answer in enumerate(answers):
        for name in columns:
            columns[name].append({"index": at, "answer": answer}.get(name, f"{name} {at}"))
    columns |= {"score": [0.5] * len(answers), "frame": [None] * len(answers), "parent_id": [None] * len(answers)}
    return build(TEXTS, columns)


def test_what_is_committed_is_read_back_in_its_declared_schema(tmp_path: Path) -> None:
    store = Store(tmp_path)
    store.commit("run", "00000", {"texts": texts("a", "b"), "rejects": empty(REJECTS)})
    found = store.read(TEXTS, "run", "00000")
    assert found is not None
    assert found.schema.equals(TEXTS.schema, check_metadata=True)
    assert found.equals(texts("a", "b"))
    assert store.slices(TEXTS, "run") == store.slices(REJECTS, "run") == ["00000"]
    assert store.read(BOXES, "run", "00000") is None


def test_polars_and_pyarrow_datasets_read_the_folders_as_they_are(tmp_path: Path) -> None:
    store = Store(tmp_path)
    store.commit("one", "00000", {"texts": texts("a")})
    store.commit("two", "00000", {"texts": texts("b", "c")})
    assert pl.scan_parquet(f"{tmp_path}/texts/**/*.parquet").collect().height == 3
    assert pyarrow.dataset.dataset(f"{tmp_path}/texts", partitioning="hive").to_table().num_rows == 3


def test_the_same_table_makes_the_same_bytes(tmp_path: Path) -> None:
    store = Store(tmp_path)
    first = store.commit("run", "00000", {"texts": texts("a")})
    again = store.commit("run", "00000", {"texts": texts("a")})
    assert first == again
    record = store.record("run", "00000", "texts")
    assert record is not None
    assert record["sha256"] == first["texts"].sha256


def test_no_temporary_file_lies_where_readers_look(tmp_path: Path) -> None:
    store = Store(tmp_path)
    store.commit("run", "00000", {"texts": texts("a")})
    assert [p.name for p in (tmp_path / "texts").rglob("*") if p.is_file()] == ["00000.parquet"]
    assert list((tmp_path / "_staging").iterdir()) == []


def test_F112_a_flipped_bit_is_refused_not_read(tmp_path: Path) -> None:
    store = Store(tmp_path)
    store.commit("run", "00000", {"texts": texts(*(f"answer {i}" for i in range(500)))})
    path = Path(store.path(TEXTS, "run", "00000"))
    content = bytearray(path.read_bytes())
    content[len(content) // 3] ^= 1
    path.write_bytes(content)
    with pytest.raises(StorageError, match=r"00000\.parquet"):
        store.read(TEXTS, "run", "00000")


def test_a_null_in_a_required_column_is_named() -> None:
    columns = {name: texts("a")[name].to_pylist() for name in TEXTS.schema.names}
    with pytest.raises(ValueError, match=r"texts\.answer: 1 nulls"):
        build(TEXTS, columns | {"answer": [None]})
    with pytest.raises(ValueError, match="differ from its schema"):
        build(TEXTS, columns | {"answers": ["a"]})


def test_a_folder_that_cannot_be_written_is_a_clear_error(tmp_path: Path) -> None:
    (tmp_path / "warehouse").write_text("a file where the folder should be")
    with pytest.raises(StorageError, match="cannot write"):
        Store(tmp_path / "warehouse").check_writable()


def test_data_rows_lie_under_their_dataset_and_tables_under_their_run(tmp_path: Path) -> None:
    store = Store(tmp_path)
    assert store.path(DATA_ROWS, "street", "00001").endswith("data_rows/dataset=street/00001.parquet")
    assert store.path(BOXES, "objects", "00001").endswith("boxes/run=objects/00001.parquet")


_KILL_AT_EVERY_STEP = """
import os, signal, sys
from pathlib import Path
sys.path[:0] = [sys.argv[2]]
from foundry_pipeline.store import Store
from foundry_pipeline.tables import REJECTS, TEXTS, empty
from tests.test_store import texts

STEPS = {"open", "os.rename", "os.remove", "os.mkdir", "os.rmdir", "shutil.rmtree"}
root = Path(sys.argv[1])

def commit(folder, answer, die_at):
    seen = 0
    def hook(event, _args):
        nonlocal seen
        if event in STEPS:
            seen += 1
            if seen == die_at:
                os.kill(os.getpid(), int(sys.argv[3]))
    store = Store(folder)
    if die_at:
        sys.addaudithook(hook)
    store.commit("run", "00000", {"texts": texts(answer), "rejects": empty(REJECTS)}, {"answer": answer})

def state(folder):
    store = Store(folder)
    store.recover()
    table = store.read(TEXTS, "run", "00000")
    record = store.record("run", "00000", "texts")
    rejects = store.record("run", "00000", "rejects")
    assert store.read(REJECTS, "run", "00000") is not None
    assert record["about"] == rejects["about"], "records of two commits are mixed"
    import hashlib
    assert hashlib.sha256(Path(store.path(TEXTS, "run", "00000")).read_bytes()).hexdigest() == record["sha256"]
    assert not list((folder / "_commits").glob("*.intent"))
    answer = table["answer"][0].as_py()
    assert record["about"]["answer"] == answer
    print(answer)

def child(action):
    pid = os.fork()
    if pid == 0:
        try:
            action()
            os._exit(0)
        except KeyboardInterrupt:
            os._exit(2)
        except BaseException as err:
            print("FAILED", err)
            os._exit(1)
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])

for step in range(1, 200):
    folder = root / str(step)
    assert child(lambda: commit(folder, "old", 0)) == 0
    died = child(lambda: commit(folder, "new", step))
    assert child(lambda: state(folder)) == 0, step
    sys.stdout.flush()
    if died == 0:
        break
"""


@pytest.mark.parametrize("how", [signal.SIGKILL, signal.SIGINT], ids=["killed", "interrupted"])
def test_F098_F125_stopped_at_any_step_of_a_commit_all_tables_are_old_or_all_new(
    tmp_path: Path, how: signal.Signals
) -> None:
    """Every file-system step of a commit is a moment to die in; a later process recovers."""
    checkout = str(Path(__file__).parent.parent)
    script = [sys.executable, "-u", "-c", _KILL_AT_EVERY_STEP, str(tmp_path), checkout, str(int(how))]
    done = subprocess.run(script, capture_output=True, text=True, check=False, timeout=120)
    assert done.returncode == 0, done.stdout + done.stderr
    states = done.stdout.split()
    assert len(states) > 10
    assert set(states) == {"old", "new"}
    assert states == sorted(states, reverse=True), "once new, never old again: there is one commit point"
