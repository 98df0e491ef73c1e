"""`foundry-pipeline check`: what a person sees and the exit code, through the real command."""

import subprocess
import sys
from pathlib import Path

import pytest

from foundry_pipeline.cli import main

MODEL = "name: objects\ninference_endpoint: http://127.0.0.1:8000/x\nrequests_per_second: 5\n"
DATASET = "media_type: image\nsource: ../pictures\n"


@pytest.fixture
def home(tmp_path: Path) -> Path:
    for name, content in {
        "models/objects.yaml": MODEL,
        "datasets/street.yaml": DATASET,
        "runs/street_objects.yaml": "model: objects\ndataset: street\n",
        "pictures/a.jpg": "",
    }.items():
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(content)
    return tmp_path


def test_a_sound_home_exits_with_0_and_is_counted(home: Path, capsys: pytest.CaptureFixture[str]):
    assert main(["check", "--home", str(home)]) == 0
    assert capsys.readouterr().out == f"{home}: 0 problems, 0 warnings; fine: 1 model, 1 dataset, 1 run\n"


def test_every_problem_is_a_line_with_file_and_place_and_the_exit_code_is_1(
    home: Path, capsys: pytest.CaptureFixture[str]
):
    (home / "models/objects.yaml").write_text(MODEL.replace("5", "0") + "burst: 0\n")
    (home / "datasets/other.yaml").write_text("media_type: image\n")
    assert main(["check", "--home", str(home)]) == 1
    *lines, summary = capsys.readouterr().out.splitlines()
    assert [line.split(" ")[:3] for line in lines] == [
        ["problem:", "models/objects.yaml:3:", "$.requests_per_second:"],
        ["problem:", "models/objects.yaml:4:", "$.burst:"],
        ["problem:", "datasets/other.yaml:1:", "$.source:"],
        ["problem:", "runs/street_objects.yaml:1:", "$:"],
    ]
    assert summary == f"{home}: 4 problems, 0 warnings; fine: 0 models, 1 dataset, 0 runs"


def test_a_warning_names_the_line_of_a_literal_secret_and_is_no_failure(home: Path, capsys: pytest.CaptureFixture[str]):
    (home / "models/objects.yaml").write_text(MODEL + "secrets: sesame-1\n")
    assert main(["check", "--home", str(home)]) == 0
    out = capsys.readouterr().out
    assert out.startswith("warning: models/objects.yaml:4: $.secrets: ")
    assert "1 warning;" in out
    assert "sesame" not in out


def test_a_home_that_is_not_there_is_a_problem_and_not_a_traceback(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    assert main(["check", "--home", str(tmp_path / "nowhere")]) == 1
    captured = capsys.readouterr()
    assert captured.out.startswith("problem: ") and "nowhere" in captured.out
    assert captured.err == ""


def test_without_a_command_there_is_help_and_exit_code_2(capsys: pytest.CaptureFixture[str]):
    with pytest.raises(SystemExit) as caught:
        main([])
    assert caught.value.code == 2
    assert "usage: foundry-pipeline" in capsys.readouterr().err


def test_as_a_module_it_reads_foundry_home_and_shows_any_name_on_any_terminal(home: Path):
    (home / "models/objects.yaml").write_text(MODEL + "\u00fc: 1\n", encoding="utf-8")
    done = subprocess.run(
        [sys.executable, "-m", "foundry_pipeline.cli", "check"],
        env={"FOUNDRY_HOME": str(home), "PYTHONIOENCODING": "ascii", "PYTHONPATH": str(Path(__file__).parents[1])},
        cwd=home,
        capture_output=True,
        text=True,
        check=False,
    )
    assert (done.returncode, done.stderr) == (1, "")
    assert r"unknown key '\xfc'" in done.stdout


def test_without_home_and_foundry_home_it_looks_for_the_demo_below_the_current_folder(tmp_path: Path):
    done = subprocess.run(
        [sys.executable, "-m", "foundry_pipeline.cli", "check"],
        env={"PYTHONPATH": str(Path(__file__).parents[1])},
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 1
    assert str(tmp_path / "demo" / "home") in done.stdout
