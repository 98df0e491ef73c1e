"""The keys about media in models, datasets and runs: what each may say, and where it means nothing."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from foundry_pipeline.home import Home, load_home
from foundry_pipeline.rows.frames import Sampling

MODEL = """name: watcher
inference_endpoint: http://127.0.0.1:8000/predict
requests_per_second: 5
ontology:
  classifications: [{name: note, instructions: note, type: text}]
  tools: [{name: car, tool: rectangle}]
"""
DATA = {"video": "clips/*.mp4", "conversational": "talks.ndjson", "image": "clips/*.mp4"}


def home(root: Path, media: str, *, model: str = "", dataset: str = "", run: str = "", base: str = MODEL) -> Home:
    files = {
        "models/watcher.yaml": base + model,
        "datasets/ds.yaml": f"media_type: {media}\nsource: {DATA[media]}\n{dataset}",
        "datasets/clips/a.mp4": "x",
        "datasets/talks.ndjson": "{}\n",
        "runs/r.yaml": f"model: watcher\ndataset: ds\n{run}",
    }
    for name, content in files.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(content)
    return load_home(root, {})


def test_defaults_are_what_the_readme_says(tmp_path: Path) -> None:
    loaded = home(tmp_path, "video")
    assert loaded.problems == ()
    run = loaded.runs["r"]
    assert (run.model.exif, run.model.html, run.model.frames_per_call) == ("upright", "source", 1)
    assert run.sampling == Sampling(1.0, ())
    assert (run.generate, run.dataset.roles, run.uses_image_attachments) == (None, {}, False)


def test_the_runs_frames_come_before_the_manifests(tmp_path: Path) -> None:
    manifest = "frames_per_second: 2\nframes_per_call: 8\nexif: keep\nhtml: readable\n"
    loaded = home(tmp_path, "video", model=manifest)
    assert loaded.problems == ()
    assert loaded.runs["r"].sampling == Sampling(2.0, ())
    assert loaded.runs["r"].model.frames_per_call == 8
    assert (loaded.runs["r"].model.exif, loaded.runs["r"].model.html) == ("keep", "readable")
    assert home(tmp_path, "video", model=manifest, run="frames: [0, 7]\n").runs["r"].sampling == Sampling(1.0, (0, 7))
    assert home(tmp_path, "video", model="frames: [3]\n", run="frames_per_second: 5\n").runs["r"].sampling == Sampling(
        5.0
    )


def test_a_conversations_roles_and_continuation(tmp_path: Path) -> None:
    loaded = home(
        tmp_path, "conversational", dataset='roles: {"7": user, bot: assistant, "*": system}\n', run="generate: every\n"
    )
    assert loaded.problems == ()
    assert loaded.datasets["ds"].roles == {"7": "user", "bot": "assistant", "*": "system"}
    assert loaded.runs["r"].generate == "every"


@pytest.mark.parametrize(
    ("media", "part", "text", "place", "why"),
    [
        ("video", "model", "exif: maybe\n", "$.exif", "upright, keep"),
        ("video", "model", "html: text\n", "$.html", "source, readable"),
        ("video", "model", "frames_per_call: 0\n", "$.frames_per_call", "1 to 256"),
        ("video", "model", "frames_per_second: 0\n", "$.frames_per_second", "over 0"),
        ("video", "model", "frames: [1]\nframes_per_second: 1\n", "$.frames", "one of the two"),
        ("video", "run", "frames: [1]\nframes_per_second: 1\n", "$.frames", "one of the two"),
        ("video", "run", "frames: [-1]\n", "$.frames[0]", "from 0"),
        ("video", "run", "frames: [1, 1]\n", "$.frames[1]", "twice"),
        ("video", "run", "frames: []\n", "$.frames", "at least one"),
        ("image", "run", "frames: [1]\n", "$.frames", "no effect"),
        ("image", "run", "generate: last\n", "$.generate", "no effect"),
        ("conversational", "run", "generate: all\n", "$.generate", "last, every"),
        ("image", "dataset", "roles: {a: user}\n", "$.roles", "no effect"),
        ("conversational", "dataset", "roles: {a: human}\n", "$.roles.a", "user, assistant, system"),
        ("conversational", "dataset", "roles: [user]\n", "$.roles", "a mapping"),
        ("conversational", "dataset", "roles: {}\n", "$.roles", "a mapping"),
    ],
)
def test_a_slip_is_named_with_its_place(media: str, part: str, text: str, place: str, why: str, tmp_path: Path) -> None:
    problems = home(tmp_path, media, **{part: text}).problems
    assert [problem.path for problem in problems if why in problem.message] == [place]


def test_only_a_model_with_free_text_can_continue_a_conversation(tmp_path: Path) -> None:
    base = MODEL.replace("  classifications: [{name: note, instructions: note, type: text}]\n", "")
    problems = home(tmp_path, "conversational", run="generate: last\n", base=base).problems
    assert [(problem.path, "no text feature" in problem.message) for problem in problems] == [("$.generate", True)]


def test_videos_without_pyav_are_a_warning_that_names_the_extra(tmp_path: Path) -> None:
    home(tmp_path, "video")
    code = (
        "import sys; sys.modules['av'] = None\n"
        "from foundry_pipeline.cli import main\n"
        "sys.exit(main(['check', '--home', sys.argv[1]]))\n"
    )
    done = subprocess.run([sys.executable, "-c", code, str(tmp_path)], capture_output=True, text=True, timeout=60)
    assert done.returncode == 0
    assert "warning: datasets/ds.yaml:1: $.media_type: " in done.stdout
    assert "pip install 'foundry-pipeline[video]'" in done.stdout
