"""`foundry-pipeline sql`: every table under its name, the questions of docs/queries.md, and three ways to print."""

from __future__ import annotations

import csv
import io
import json
import re
from pathlib import Path

import pytest

from foundry_pipeline.cli import main
from foundry_pipeline.errors import ConfigError
from foundry_pipeline.sql import VIEWS, Questions, write_csv, write_json, write_table
from foundry_pipeline.store import Store
from foundry_pipeline.tables import TABLES
from tests.warehouse import fill, make_run

PAGE = (Path(__file__).parent.parent / "docs/queries.md").read_text()
QUERIES = re.findall(r"```sql\n(.*?)```", PAGE, re.DOTALL)


@pytest.fixture
def store(tmp_path: Path) -> Store:
    store = Store(tmp_path / "warehouse")
    for name, width in (("first", 3.0), ("second", 9.0)):
        box = {"global_key": "a.jpg", "feature": "cat", "left": 1.0, "top": 2.0, "width": width, "height": 4.0}
        rows = [{"global_key": "a.jpg", "width": 60, "height": 40}, {"global_key": "b.jpg"}, {"global_key": "c.jpg"}]
        fill(
            store,
            make_run(name, features={"cat": "rectangle"}),
            "000000",
            data_rows=rows,
            outcomes={"b.jpg": "failed"},
            boxes=[box | {"score": 0.5}, box | {"score": None}],
            polygons=[{"global_key": "a.jpg", "feature": "cat", "points": [{"x": 1.0, "y": 2.0}]}],
        )
    return store


def asked(store: Store, query: str) -> list[tuple[object, ...]]:
    with Questions(store) as questions:
        return [tuple(row.values()) for row in questions.ask(query).read_all().to_pylist()]


def test_the_page_has_its_ten_questions() -> None:
    assert len(QUERIES) == 10


@pytest.mark.parametrize("query", QUERIES)
def test_every_question_of_the_page_is_answered(store: Store, query: str) -> None:
    asked(store, query)


def test_a_table_holds_all_runs_and_says_which(store: Store) -> None:
    assert asked(store, "select run, width from boxes where score is not null order by run") == [
        ("first", 3.0),
        ("second", 9.0),
    ]


def test_failed_rows_are_those_without_a_good_answer(store: Store) -> None:
    assert asked(store, "select run, global_key, outcome from failed_rows order by run") == [
        ("first", "b.jpg", "failed"),
        ("second", "b.jpg", "failed"),
    ]


def test_calls_about_one_data_row_are_told_apart_and_it_counts_once(tmp_path: Path) -> None:
    store = Store(tmp_path / "warehouse")
    run = make_run("clips", features={"cat": "rectangle"}, media_type="video")
    calls = [{"frames": [0]}, {"frames": [2, 3], "outcome": "failed"}, {"frames": [4], "outcome": "failed"}]
    fill(store, run, "000000", data_rows=[{"global_key": "a"}, {"global_key": "b"}], calls={"a": calls})
    assert asked(store, "select global_key, frames from failed_rows") == [("a", [2, 3]), ("a", [4])]
    progress, nothing = QUERIES[0], next(query for query in QUERIES if "anti join" in query)
    assert asked(store, progress) == [("clips", "failed", 1, 2, 2), ("clips", "ok", 2, 2, 2)]
    assert asked(store, nothing) == [("clips", "b")], "of the other one not everything is known"


def test_predictions_hold_every_table(store: Store) -> None:
    assert asked(store, 'select "table", count(*) from predictions group by all order by all') == [
        ("boxes", 4),
        ("polygons", 2),
    ]


def test_a_row_that_was_answered_with_nothing_is_not_a_failed_one(store: Store) -> None:
    (query,) = (query for query in QUERIES if "anti join" in query)
    assert asked(store, query) == [("first", "c.jpg"), ("second", "c.jpg")]


@pytest.mark.parametrize("name", [*TABLES, *VIEWS])
def test_every_table_is_there_before_anything_was_written(tmp_path: Path, name: str) -> None:
    assert asked(Store(tmp_path / "nothing"), f"select * from {name}") == []


@pytest.mark.parametrize(
    ("query", "said"),
    [("selec", "syntax error"), ("select * from nothing", "nothing"), ("", "expected a query that gives rows")],
)
def test_a_wrong_query_is_said_in_duckdbs_words(store: Store, query: str, said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        asked(store, query)


def test_csv_has_a_header_and_lists_as_json(store: Store) -> None:
    with Questions(store) as questions:
        out = io.StringIO()
        write_csv(questions.ask("select run, score, points from polygons where run = 'first'"), out)
    header, line = csv.reader(io.StringIO(out.getvalue()))
    assert header == ["run", "score", "points"]
    assert line[:2] == ["first", ""]
    assert json.loads(line[2]) == [{"x": 1.0, "y": 2.0}]


def test_json_is_one_object_a_line(store: Store) -> None:
    with Questions(store) as questions:
        out = io.StringIO()
        write_json(questions.ask("select run, count(*) as n from boxes group by run order by run"), out)
    assert [json.loads(line) for line in out.getvalue().splitlines()] == [
        {"run": "first", "n": 2},
        {"run": "second", "n": 2},
    ]


def test_the_table_for_people_says_how_many_rows_there_are(store: Store) -> None:
    with Questions(store) as questions:
        out = io.StringIO()
        write_table(questions.ask("select run, feature from boxes"), out)
    assert "| first " in out.getvalue()
    assert out.getvalue().endswith("4 rows\n")


def test_the_command_asks_the_homes_warehouse(tmp_path: Path, store: Store, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["sql", "select count(*) as n from boxes", "--format", "csv", "--home", str(tmp_path)]) == 0
    assert capsys.readouterr().out == "n\n4\n"
