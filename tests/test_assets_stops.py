"""What a person sees in Dagster of rows without an answer, of runs that stopped, and of what they cost."""

import asyncio
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import dagster as dg
import pytest

from assets.descriptions import responses_description
from assets.keys import responses_key
from assets.unanswered import unanswered_metadata
from foundry_pipeline.asks import Ask
from foundry_pipeline.calls.ledger import Intent, Ledger
from foundry_pipeline.calls.tally import Unanswered
from foundry_pipeline.data_rows import rows_of
from foundry_pipeline.invoke import SliceReport
from foundry_pipeline.protocols.foundry import FoundryRequests
from foundry_pipeline.tables import DATA_ROWS
from tests.fake_model import FakeModel, Reply
from tests.home_folder import mood_of, write_file, write_mood_home, write_texts
from tests.place import Place, last_materialization

RESPONSES_KEY = responses_key("notes_mood")


@pytest.fixture
def place(tmp_path: Path) -> Iterator[Place]:
    with FakeModel(mood_of) as model, dg.DagsterInstance.ephemeral() as instance:
        yield Place(tmp_path, model, instance)


def load(place: Place, texts: list[str], *, model: str = "", run: str = "", rows_per_slice: int = 10) -> None:
    """A home whose model and run files have these lines more."""
    write_mood_home(place.root, place.model.url, texts, run)
    write_texts(place.root, texts, rows_per_slice=rows_per_slice)
    manifest = place.root / "models/mood.yaml"
    manifest.write_text(manifest.read_text() + model)
    assert place.execute("notes_data_rows").success


def call(place: Place, *slices: str, **config: Any) -> dg.ExecuteInProcessResult:
    return place.execute("notes_mood", [RESPONSES_KEY], slices or ("00000",), config or None)


def metadata(place: Place, slice_key: str = "00000") -> dict[str, Any]:
    found = last_materialization(place, RESPONSES_KEY, slice_key).metadata
    return {name: value.value for name, value in found.items()}


def failure(result: dg.ExecuteInProcessResult) -> tuple[str, dict[str, Any]]:
    """The failed step's description and metadata."""
    [event] = result.filter_events(lambda event: event.is_step_failure)
    data = event.step_failure_data.user_failure_data
    assert data is not None
    return data.description or "", {name: value.value for name, value in data.metadata.items()}


PRICE = "cost_per_call: {amount: 0.01, currency: USD}\nmax_concurrency: 1\n"


def test_a_spent_budget_fails_the_step_with_what_was_spent_what_is_left_and_what_to_do(place: Place) -> None:
    load(place, [f"text {at}" for at in range(30)], model=PRICE, run="budget: 0.12\n")
    description, said = failure(call(place, "00000", "00001", "00002"))
    assert description == (
        "budget: 0.12 of 0.12 USD spent on 12 calls, and the next one costs 0.01 USD; to go on, raise `budget` in "
        "runs/notes_mood.yaml. 12 of 30 rows have their answer and keep it: run again to go on with the 18 that are "
        "left (2 of the step's slices failed; the others are done)"
    )
    assert (said["rows"], said["answered"], said["not_sent"]) == (20, 2, 18)
    assert (said["spent"], said["budget"], said["currency"]) == (0.12, 0.12, "USD")
    assert said["error_codes"] == {"budget": 18}
    assert "| n12 | not sent | budget |" in said["rows_without_answer"]
    assert len(place.model.requests) == 12


def test_a_raised_budget_goes_on_from_the_ui_with_what_is_left(place: Place) -> None:
    load(place, [f"text {at}" for at in range(20)], model=PRICE, run="budget: 0.12\n")
    call(place, "00000", "00001")
    write_file(place.root / "runs/notes_mood.yaml", "model: mood\ndataset: notes\nbudget: 1\n")
    assert call(place, "00001").success
    said = metadata(place, "00001")
    assert (said["calls"], said["reused"], said["cost"], said["spent"]) == (8, 2, 0.08, 0.2)
    assert len(place.model.requests) == 20


def test_an_endpoint_that_is_down_ends_the_step_with_since_when_and_how_many_are_stored(place: Place) -> None:
    place.model.answer = lambda request: mood_of(request) if len(place.model.requests) <= 12 else Reply(status=503)
    load(place, [f"text {at}" for at in range(30)], model="max_concurrency: 1\n")
    write_file(place.root / "foundry.yaml", "endpoint_patience_s: 1\n")
    description, said = failure(call(place, "00000", "00001", "00002"))
    assert description.startswith("endpoint_down: no answer for ")
    assert " UTC: 503" in description
    assert "12 of 30 rows have their answer and keep it: run again to go on with the 18 that are left" in description
    assert said["error_codes"] == {"endpoint_down": 18}
    place.model.answer = mood_of
    before = len(place.model.requests)
    assert call(place, "00001", "00002").success
    assert len(place.model.requests) - before <= 19, "a canary may open the gate"


def test_what_stopped_the_step_is_said_once_in_the_log(place: Place) -> None:
    load(place, [f"text {at}" for at in range(60)], model=PRICE, run="budget: 0.12\n")
    slices = [f"{at:05}" for at in range(6)]
    result = call(place, *slices)
    errors = [entry for entry in place.instance.all_logs(result.run_id) if "raise `budget`" in entry.user_message]
    assert len([entry for entry in errors if entry.dagster_event is None]) == 1


def test_every_row_without_an_answer_is_in_the_slices_table(place: Place) -> None:
    texts = [*["fine"] * 16, "broken", "refused", "refused", "http://127.0.0.1:9/private"]
    load(place, texts, run="max_failed_share: 0.5\n", rows_per_slice=20)
    assert call(place).success
    said = metadata(place)
    outcomes = ("ok", "failed", "rejected_by_model", "not_sent")
    assert [said[outcome] for outcome in outcomes] == [16, 1, 2, 1]
    failed, unsent, *refused = said["rows_without_answer"].splitlines()[2:]
    assert failed == "| n16 | failed | http\\_500 | 500 | 1 | 500 out of order |"
    assert unsent.startswith("| n19 | not sent | row\\_forbidden |  |  | http\\://127.0.0.1")
    assert refused == [f"| n{at} | rejected by model | http\\_400 | 400 | 1 | 400 not this one |" for at in (17, 18)]
    assert said["error_codes"] == {"http_400": 2, "http_500": 1, "row_forbidden": 1}
    assert said["worst_codes"].splitlines()[2] == "| http\\_400 | 2 | n17 | 400 not this one |"


def test_the_table_is_about_the_slice_as_it_is_not_about_the_calls_of_now(place: Place) -> None:
    load(place, ["fine", "refused"])
    call(place)
    call(place)
    said = metadata(place)
    assert (said["calls"], said["reused"]) == (0, 2)
    assert "n1" in said["rows_without_answer"]


def test_an_empty_answer_is_ok_and_counted_apart(place: Place) -> None:
    place.model.answer = lambda request: Reply({}) if request.text == "nothing" else mood_of(request)
    load(place, [*["fine"] * 18, "nothing", "broken"], run="max_failed_share: 0.5\n", rows_per_slice=20)
    assert call(place).success
    said = metadata(place)
    assert (said["ok"], said["empty"], said["failed"]) == (19, 1, 1)
    assert "n18" not in said["rows_without_answer"]
    assert call(place, retry="none").success
    assert metadata(place)["empty"] == 1, "also when the file stays as it is"


def test_a_refresh_that_fails_for_a_row_keeps_its_answer_and_says_so(place: Place) -> None:
    load(place, ["fine"] * 9 + ["fickle"])
    call(place)
    place.model.answer = lambda request: Reply(status=500) if request.text == "fickle" else mood_of(request)
    assert call(place, refresh=True).success
    said = metadata(place)
    assert (said["ok"], said["failed"], said["older_answer_stays"]) == (10, 0, 1)
    assert "| n9 | older answer stays | http\\_500 |" in said["rows_without_answer"]


def test_a_failed_slices_rows_are_in_the_failures_metadata(place: Place) -> None:
    load(place, ["fine", "broken", "broken", "refused"], rows_per_slice=2)
    description, said = failure(call(place, "00000", "00001"))
    assert "2 of the step's slices failed" in description
    assert "| n1 | failed | http\\_500 | 500 | 1 | 500 out of order |" in said["rows_without_answer"]
    assert "http\\_500 | 2 | n1" in said["worst_codes"]
    assert (said["failed"], said["rejected_by_model"]) == (2, 1)


def test_the_failed_share_check_warns_and_names_the_worst_codes(place: Place) -> None:
    load(place, ["fine"] * 8 + ["broken"] * 2, run="max_failed_share: 0.5\n")
    result = place.execute("notes_mood", None, ("00000",))
    [check] = [found for found in result.get_asset_check_evaluations() if found.check_name == "failed_share"]
    assert (check.passed, check.severity) == (False, dg.AssetCheckSeverity.WARN)
    assert check.description == "2 of 10 rows failed (20.0%): http_500 2. They are asked again next time."
    assert "| http\\_500 | 2 | n8 | 500 out of order |" in str(check.metadata["worst_codes"].value)


def test_what_the_endpoint_really_allows_is_told(place: Place) -> None:
    """A 429 halves the pace; it recovers by a hundredth a second."""
    place.model.answer = lambda request: mood_of(request) if len(place.model.requests) > 1 else Reply(status=429)
    load(place, ["fine"] * 10)
    assert call(place).success
    assert metadata(place)["allowed_per_second"] < 900


def test_calls_that_a_killed_process_left_in_flight_are_counted_and_named(place: Place) -> None:
    load(place, ["fine", "slow"])
    requests, rows = FoundryRequests(place.run()), place.store.read(DATA_ROWS, "notes", "00000")
    assert rows is not None
    lost = next(row for row in rows_of(rows) if row.global_key == "n1")

    async def die_in_flight() -> None:
        ledger = Ledger(place.root / "ledger/notes_mood/00000.sqlite")
        await ledger.write(Intent(requests.call_id(Ask(lost)), lost.global_key, 1))
        ledger.close()

    asyncio.run(die_in_flight())
    assert call(place).success
    said = metadata(place)
    assert (said["repeated"], said["calls"]) == (1, 2)
    assert said["repeated_rows"].splitlines()[2:] == ["| n1 |"]


def test_price_and_budget_stand_in_the_assets_description(place: Place) -> None:
    load(place, ["fine"], model=PRICE, run="budget: 12.5\n")
    said = responses_description(place.run())
    assert "A call costs 0.01 USD; the run stops before it has cost more than 12.5 USD in all." in said


@pytest.mark.parametrize("rows", [1, 20, 3000])
def test_hostile_messages_make_no_markdown_and_no_large_event(rows: int) -> None:
    bad = Unanswered("k|" * 300, "failed", "http_500", 500, 8, "![x](http://e/p.png)|\n<img src=x>`" * 40)
    report = SliceReport("00000", rows=rows, failed=rows, errors={"http_500": rows}, examples={"http_500": bad},
                         unanswered=(bad,) * min(rows, 20))  # fmt: skip
    said = unanswered_metadata([report])
    for name in ("rows_without_answer", "worst_codes"):
        table = str(said[name].value)
        assert "![" not in table.replace("\\!\\[", "")
        assert "<img" not in table
        assert len(table) < 2100
        assert len({line.replace("\\|", "").count("|") for line in table.split("\n\n")[0].splitlines()}) == 1
    if rows == 3000:
        assert str(said["rows_without_answer"].value).endswith("more")
