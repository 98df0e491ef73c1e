"""`foundry-pipeline doctor` and `export`, and what `materialize` asks again, against a real server."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import pytest

from assets.__main__ import main as assets_main
from foundry_pipeline.cli import main
from tests.fake_model import FakeModel, Reply

MODEL = """
name: mood
inference_endpoint: {url}
requests_per_second: 200
allowed_asset_types: [text]
allowed_feature_kinds: [radio, named-entity]
ontology:
  classifications:
    - {{name: mood, type: radio, options: [{{value: glad}}, {{value: sad}}]}}
  tools: [{{name: person, tool: named-entity}}]
"""
GOOD = {"mood": "glad", "person": [{"start": 0, "end": 3, "text": "Ann"}]}


@pytest.fixture
def model() -> Iterator[FakeModel]:
    with FakeModel(lambda _: Reply(GOOD)) as served:
        yield served


@pytest.fixture
def home(tmp_path: Path, model: FakeModel) -> Path:
    files = {
        "models/mood.yaml": MODEL.format(url=model.url),
        "datasets/notes.yaml": "media_type: text\nsource: notes.csv\nrows_per_slice: 2\n",
        "datasets/notes.csv": "global_key,row_data\na,Ann is glad\nb,Ann is sad\nc,Ann\n",
        "runs/moods.yaml": "model: mood\ndataset: notes\nexports: [labelbox]\n",
    }
    for name, content in files.items():
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(content)
    return tmp_path


def doctor(home: Path, capsys: pytest.CaptureFixture[str], *more: str) -> tuple[int, str]:
    code = main(["doctor", "moods", "--home", str(home), *more])
    return code, capsys.readouterr().out


def test_doctor_says_that_a_good_answer_keeps_the_contract(home: Path, capsys: pytest.CaptureFixture[str]) -> None:
    code, said = doctor(home, capsys)
    assert code == 0
    assert "data row a: ok (HTTP 200" in said
    assert "entities: 1" in said
    assert said.endswith("the answer keeps the contract\n")


def test_doctor_names_every_part_that_breaks_it(
    home: Path, model: FakeModel, capsys: pytest.CaptureFixture[str]
) -> None:
    model.answer = lambda _: Reply({"mood": "happy", "person": [{"start": 0, "end": 3, "text": "Zed"}]})
    code, said = doctor(home, capsys, "--row", "b")
    assert code == 1
    assert "refused $.mood: unknown_option" in said
    assert "refused $.person[0]: span_mismatch" in said
    assert "data row b" in said
    assert said.endswith("the answer breaks the contract\n")


@pytest.mark.parametrize(
    ("status", "said_at_last"),
    [(500, "there is no answer to judge\n"), (422, "the model refused this row; --row takes another\n")],
)
def test_doctor_soon_gives_up_on_a_row_without_an_answer(
    home: Path, model: FakeModel, capsys: pytest.CaptureFixture[str], status: int, said_at_last: str
) -> None:
    model.answer = lambda _: Reply({"error": "boom"}, status=status)
    code, said = doctor(home, capsys)
    assert code == 1
    assert len(model.requests) <= 2
    assert said.endswith(said_at_last)


def test_doctor_knows_no_such_row_or_run(home: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert doctor(home, capsys, "--row", "nope") == (
        1,
        "problem: datasets/notes.yaml: $: the dataset has no data row 'nope'\n",
    )
    assert main(["doctor", "mods", "--home", str(home)]) == 1
    assert "did you mean 'moods'" in capsys.readouterr().out


def test_what_doctor_asked_is_not_paid_again(home: Path, model: FakeModel, capsys: pytest.CaptureFixture[str]) -> None:
    doctor(home, capsys)
    assert assets_main(["materialize", "--home", str(home)]) == 0
    assert len(model.requests) == 3
    assert "2 calls, 1 answer reused" in capsys.readouterr().out


def test_export_writes_a_format_again_without_a_call(
    home: Path, model: FakeModel, capsys: pytest.CaptureFixture[str]
) -> None:
    assert assets_main(["materialize", "--home", str(home)]) == 0
    asked = len(model.requests)
    out = home / "out"
    assert main(["export", "moods", "labelbox", "--home", str(home), "--out", str(out)]) == 0
    assert "labelbox: 6 of 6 predictions, 3 data rows answered, 0 not" in capsys.readouterr().out
    in_warehouse = home / "warehouse/annotations/run=moods/labelbox"
    assert {p.name: p.read_bytes() for p in out.iterdir()} == {p.name: p.read_bytes() for p in in_warehouse.iterdir()}
    assert len(model.requests) == asked


def test_texts_in_files_stand_in_the_exports_of_dagster_and_of_the_command(
    home: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (home / "datasets/a.txt").write_text("Ann is in a file")
    (home / "datasets/notes.csv").write_text("global_key,row_data\na,a.txt\n")
    run = home / "runs/moods.yaml"
    run.write_text("model: mood\ndataset: notes\nexports: [spacy, conll, huggingface, label_studio, csv]\n")
    assert assets_main(["materialize", "--home", str(home)]) == 0
    (line,) = (home / "warehouse/annotations/run=moods/spacy/documents-00001.jsonl").read_text().splitlines()
    assert (json.loads(line)["text"], json.loads(line)["spans"][0]["label"]) == ("Ann is in a file", "person")
    capsys.readouterr()
    assert main(["export", "moods", "spacy", "--home", str(home), "--out", str(home / "out")]) == 0
    said = capsys.readouterr().out
    assert "spacy: 1 of 2 predictions, 1 data rows answered, 0 not" in said
    assert "left out, kind_not_representable: 1" in said
    assert (home / "out/documents-00001.jsonl").read_text() == line + "\n"


def test_refused_rows_are_said_with_their_reason_and_asked_again_on_request(
    home: Path, model: FakeModel, capsys: pytest.CaptureFixture[str]
) -> None:
    model.answer = lambda r: Reply({"detail": "no"}, status=422) if r.text == "Ann" else Reply(GOOD)
    assert assets_main(["materialize", "--home", str(home)]) == 0
    assert "without an answer: http_422 1; rows that the model refused are asked again" in capsys.readouterr().out
    model.answer = lambda _: Reply(GOOD)
    asked = len(model.requests)
    assert assets_main(["materialize", "--home", str(home)]) == 0
    assert len(model.requests) == asked
    assert assets_main(["materialize", "--retry", "rejected", "--home", str(home)]) == 0
    assert len(model.requests) == asked + 1
    assert assets_main(["materialize", "--refresh", "--home", str(home)]) == 0
    assert len(model.requests) == asked + 4
