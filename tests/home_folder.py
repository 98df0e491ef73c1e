"""A small home folder for tests of the code location: texts or pictures, a model with one question, a run."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

from PIL import Image

from tests.fake_model import Reply, Request

MODEL = """\
name: {name}
inference_endpoint: {url}
requests_per_second: 1000
burst: 100
max_attempts: 1
description: Says how a text sounds.
readme: |
  ### Intended use
  Short texts. ![spy](https://evil.example/pixel.png) <img src="https://evil.example/tag.png">
allowed_asset_types: [{media}]
allowed_feature_kinds: [{kind}]
ontology:
  media_type: {media}
{features}
inference_params_json_schema:
  properties:
    strictness: {{type: number, default: 0.5, minimum: 0, maximum: 1}}
"""
MOOD = """\
  classifications:
    - {name: mood, instructions: mood, type: radio,
       options: [{label: good, value: good, position: 0}, {label: bad, value: bad, position: 1}]}
  tools: []
"""
BOXES = """\
  classifications: []
  tools: [{name: thing, tool: rectangle}]
"""
RUN = "model: {model}\ndataset: {dataset}\n"


def write_file(path: Path, text: str) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)
    return path


def write_texts(root: Path, texts: Sequence[str], dataset: str = "notes", rows_per_slice: int = 2) -> None:
    """A dataset of texts, each with its place as its global key: n0, n1, ..."""
    lines = [json.dumps({"row_data": text, "global_key": f"n{at}"}) for at, text in enumerate(texts)]
    write_file(root / f"texts/{dataset}.ndjson", "\n".join(lines) + "\n")
    write_file(
        root / f"datasets/{dataset}.yaml",
        f"media_type: text\nsource: ../texts/{dataset}.ndjson\nrows_per_slice: {rows_per_slice}\n",
    )


def write_pictures(root: Path, count: int, dataset: str = "street", rows_per_slice: int = 2) -> None:
    for at in range(count):
        path = root / f"pictures/{at}.jpg"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (60 + at, 40), (200, 30 * at, 90)).save(path)
    write_file(
        root / f"datasets/{dataset}.yaml",
        f"media_type: image\nsource: ../pictures/*.jpg\nrows_per_slice: {rows_per_slice}\n",
    )


def write_mood_model(root: Path, url: str, name: str = "mood") -> None:
    text = MODEL.format(name=name, url=url, media="text", kind="radio", features=MOOD)
    write_file(root / f"models/{name}.yaml", text)


def write_box_model(root: Path, url: str, name: str = "finder") -> None:
    text = MODEL.format(name=name, url=url, media="image", kind="rectangle", features=BOXES)
    write_file(root / f"models/{name}.yaml", text)


def write_run(root: Path, run: str, model: str, dataset: str, more: str = "") -> None:
    write_file(root / f"runs/{run}.yaml", RUN.format(model=model, dataset=dataset) + more)


def write_mood_home(root: Path, url: str, texts: Sequence[str], more: str = "exports: [labelbox]\n") -> Path:
    """Model `mood`, dataset `notes` in slices of two, run `notes_mood`."""
    write_mood_model(root, url)
    write_texts(root, texts)
    write_run(root, "notes_mood", "mood", "notes", more)
    return root


def mood_of(request: Request) -> Reply:
    """Good, unless the text says otherwise: `bad`, `broken` (the endpoint fails), `refused` (the model says no)."""
    if "broken" in request.text:
        return Reply({"error": "out of order"}, status=500)
    if "refused" in request.text:
        return Reply({"error": "not this one"}, status=400)
    return Reply({"mood": "bad" if "bad" in request.text else "good"})


def boxes_of(_: Request) -> Reply:
    return Reply({"thing": {"boxes": [[1, 2, 30, 20]], "scores": [0.9]}})
