"""The README is true: its files make a home that passes `check`, its commands run, its code reads what they made."""

from __future__ import annotations

import contextlib
import io
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from foundry_pipeline.home import Dataset, Run
from foundry_pipeline.manifest import Manifest
from tests.fake_model import FakeModel, Reply

CHECKOUT = Path(__file__).parent.parent
README = (CHECKOUT / "README.md").read_text()


def blocks(language: str) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", README, re.DOTALL)


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The README's own three files, and the demo's pictures."""
    root = tmp_path_factory.mktemp("home")
    for block in blocks("yaml"):
        name = re.match(r"# (\S+\.yaml)", block)
        assert name is not None, "every YAML block of the README begins with its file name"
        (root / name.group(1)).parent.mkdir(exist_ok=True)
        (root / name.group(1)).write_text(block)
    shutil.copytree(CHECKOUT / "demo/home/pictures", root / "pictures")
    return root


@pytest.fixture(scope="module")
def materialized(home: Path) -> Iterator[Path]:
    answer = {"person": {"boxes": [[1, 2, 30, 40]], "scores": [0.9]}}
    with FakeModel(lambda _: Reply(answer)) as model:
        os.environ |= {"MODEL_URL": model.url, "MODEL_KEY": "a-key-for-the-readme", "FOUNDRY_HOME": str(home)}
        try:
            for command in shell_commands():
                done = subprocess.run(command, cwd=CHECKOUT, capture_output=True, text=True, check=False, timeout=300)
                assert done.returncode == 0, done.stdout + done.stderr
            yield home
        finally:
            for name in ("MODEL_URL", "MODEL_KEY", "FOUNDRY_HOME"):
                del os.environ[name]


def shell_commands() -> Iterator[list[str]]:
    """The commands of the second shell block but `make dev`, with this Python in place of the checkout's."""
    lines = [line.split("#")[0].split() for line in blocks("sh")[1].splitlines()]
    for words in lines:
        if words[0].endswith("foundry-pipeline"):
            yield [sys.executable, "-m", "foundry_pipeline.cli", *words[1:]]
        elif words[0].endswith("python"):
            yield [sys.executable, *words[1:]]


def test_the_commands_run_and_the_python_reads_the_tables(materialized: Path) -> None:
    (code,) = blocks("python")
    printed = io.StringIO()
    with contextlib.redirect_stdout(printed):
        exec(compile(code, "README.md", "exec"), {"warehouse": str(materialized / "warehouse")})
    assert "person" in printed.getvalue()
    assert "astronaut.jpg" in printed.getvalue()


def test_the_files_that_the_readme_names_are_made(materialized: Path) -> None:
    for place in ("data_rows/dataset=street", "responses/run=street_objects", "boxes/run=street_objects"):
        assert list((materialized / "warehouse" / place).glob("*.parquet")), place
    for exported in ("labelbox", "coco"):
        assert (materialized / f"warehouse/annotations/run=street_objects/{exported}/manifest.json").is_file()


def test_every_make_target_that_the_readme_names_exists() -> None:
    targets = set(re.findall(r"^([a-z]+):", (CHECKOUT / "Makefile").read_text(), re.MULTILINE))
    named = set(re.findall(r"(?:`|^)make ([a-z]+)", README, re.MULTILINE))
    assert {"demo", "dev", "test", "bench"} <= named <= targets


def test_every_key_in_the_readmes_tables_is_one_that_check_knows() -> None:
    known = {name for of in (Manifest, Run, Dataset) for name in of.__dataclass_fields__}
    tables = README.split("### Keys the document does not have")[1].split("`foundry.yaml`")[0]
    keys = set(re.findall(r"^\| `(\w+)` \|", tables, re.MULTILINE))
    assert len(keys) > 12
    assert keys <= known
