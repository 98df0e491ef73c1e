"""`python -m assets materialize`, in this process and as a command of its own, against a real endpoint."""

import io
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import dagster as dg
import pytest

from assets.__main__ import main
from assets.instance import PROCESS, fail_runs_of_the_dead, open_instance, sign_of_life
from assets.keys import responses_key
from assets.materialize import materialize
from assets.partitions import slices_of
from assets.progress import Gauge, Lines
from assets.work import News, Task
from foundry_pipeline.home import load_home
from foundry_pipeline.invoke import Progress, SliceReport
from foundry_pipeline.store import Store
from foundry_pipeline.tables import CLASSIFICATIONS, RESPONSES
from resources import places_of
from tests.fake_model import FakeModel, Reply
from tests.home_folder import mood_of, write_file, write_mood_home, write_run, write_texts

CHECKOUT = Path(__file__).resolve().parents[1]


@dataclass
class Said:
    """What the command gave and printed."""

    code: int
    out: str
    err: str


@dataclass
class Home:
    root: Path
    model: FakeModel
    environ: dict[str, str] = field(default_factory=dict)

    @property
    def store(self) -> Store:
        return Store(self.root / "warehouse")

    def materialize(self, *names: str) -> Said:
        out, err = io.StringIO(), io.StringIO()
        code = materialize(places_of({}, self.root), names, environ={}, out=out, err=err)
        return Said(code, out.getvalue(), err.getvalue())

    def command(self, *arguments: str) -> subprocess.Popen[str]:
        environ = {key: value for key, value in os.environ.items() if not key.startswith(("FOUNDRY_", "DAGSTER_"))}
        return subprocess.Popen(
            [sys.executable, "-m", "assets", "materialize", "--home", str(self.root), *arguments],
            cwd=CHECKOUT,
            env=environ,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            start_new_session=True,
        )


@pytest.fixture
def home(tmp_path: Path) -> Iterator[Home]:
    with FakeModel(mood_of) as model:
        yield Home(tmp_path, model)


def wait_for_requests(model: FakeModel, count: int, process: subprocess.Popen[str]) -> None:
    deadline = time.monotonic() + 60
    while len(model.requests) < count:
        assert process.poll() is None, process.communicate()
        assert time.monotonic() < deadline, "the command does not call"
        time.sleep(0.02)


def test_everything_is_made_and_the_second_time_nothing_is_called(home: Home) -> None:
    write_mood_home(home.root, home.model.url, ["nice", "bad", "fine"])
    first = home.materialize()
    assert first.code == 0, first.err
    assert "notes: 3 data rows in 2 slices" in first.out
    assert "notes_mood: 3 data rows (3 ok); 3 calls, 0 answers reused" in first.out
    assert re.search(rf"3 classifications +{home.root}/warehouse/classifications/run=notes_mood\n", first.out)
    assert re.search(rf"labelbox annotations +{home.root}/warehouse/annotations/run=notes_mood/labelbox\n", first.out)
    assert (home.root / "warehouse/annotations/run=notes_mood/labelbox/manifest.json").exists()
    second = home.materialize("notes_mood")
    assert second.code == 0
    assert "0 calls: every row had its answer" in second.out
    assert len(home.model.requests) == 3
    with open_instance(places_of({}, home.root)) as instance:
        statuses = instance.get_status_by_partition(
            responses_key("notes_mood"), ["00000", "00001"], slices_of(load_home(home.root, {}).datasets["notes"])
        )
        assert {key: status and status.value for key, status in (statuses or {}).items()} == {
            "00000": "MATERIALIZED",
            "00001": "MATERIALIZED",
        }


def test_a_failed_slice_is_said_and_the_others_are_decoded_and_exported(home: Home) -> None:
    write_mood_home(home.root, home.model.url, ["nice", "bad", "broken", "fine", "well"])
    said = home.materialize()
    assert said.code == 1
    assert "slice 00001 failed: 1 of 2 rows failed" in said.out
    assert home.store.slices(RESPONSES, "notes_mood") == ["00000", "00002"]
    assert home.store.slices(CLASSIFICATIONS, "notes_mood") == ["00000", "00002"]
    assert (home.root / "warehouse/annotations/run=notes_mood/labelbox/manifest.json").exists()
    home.model.answer = lambda _: Reply({"mood": "good"})
    again = home.materialize()
    assert again.code == 0
    assert "1 call, 4 answers reused" in again.out
    assert home.store.slices(CLASSIFICATIONS, "notes_mood") == ["00000", "00001", "00002"]


def test_a_run_that_there_is_not_is_a_matter_of_spelling(home: Home) -> None:
    write_mood_home(home.root, home.model.url, ["nice"])
    said = home.materialize("notes_moood")
    assert said.code == 2
    assert "there is no run 'notes_moood'" in said.err
    assert "did you mean 'notes_mood'" in said.err
    assert home.model.requests == []


def test_a_run_whose_files_name_is_wrong_is_a_problem_and_no_matter_of_spelling(home: Home) -> None:
    write_mood_home(home.root, home.model.url, ["nice"])
    write_run(home.root, "my-run", "mood", "notes")
    said = home.materialize("my-run")
    assert said.code == 1
    assert "rename it to my_run.yaml" in said.err


@pytest.mark.parametrize("name", ["../runs/notes_mood", "", "a/b"])
def test_a_name_that_is_a_path_is_no_run(home: Home, name: str) -> None:
    write_mood_home(home.root, home.model.url, ["nice"])
    assert home.materialize(name).code == 2


def test_sound_runs_go_on_when_another_file_has_problems(home: Home) -> None:
    write_mood_home(home.root, home.model.url, ["nice"])
    write_file(home.root / "runs/other.yaml", "model: moood\ndataset: notes\n")
    everything = home.materialize()
    assert everything.code == 1
    assert everything.err.count("runs/other.yaml") == 2, "at the start and at the end"
    assert "notes_mood: 1 data row (1 ok)" in everything.out
    assert home.materialize("notes_mood").code == 0, "that file was not asked for"
    assert home.materialize("other").code == 1, "there is such a file, with problems: no matter of spelling"


def test_a_home_without_runs_is_no_success(home: Home) -> None:
    said = home.materialize()
    assert said.code == 1
    assert "there are no runs" in said.err


@pytest.mark.parametrize("missing", ["home", "dagster"])
def test_what_cannot_be_read_or_written_is_said_in_a_line(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, missing: str
) -> None:
    (tmp_path / "file").write_text("in the way")
    monkeypatch.setenv("DAGSTER_HOME", str(tmp_path / "file" if missing == "dagster" else tmp_path / "dagster"))
    home = tmp_path / "nowhere" if missing == "home" else tmp_path
    assert main(["materialize", "--home", str(home)]) == 1
    [line] = capsys.readouterr().err.splitlines()
    assert ("there is no such folder" if missing == "home" else str(tmp_path / "file")) in line


def test_a_secret_that_is_not_set_is_said_before_anything_is_called(home: Home) -> None:
    write_mood_home(home.root, home.model.url, ["nice"])
    manifest = home.root / "models/mood.yaml"
    manifest.write_text(manifest.read_text() + "secrets: env:NO_SUCH_TOKEN\n")
    said = home.materialize()
    assert said.code == 1
    assert "NO_SUCH_TOKEN" in said.out + said.err
    assert home.model.requests == []


def test_an_empty_or_damaged_source_fails_its_runs_and_no_others(home: Home) -> None:
    write_mood_home(home.root, home.model.url, ["nice"])
    write_texts(home.root, ["a"], dataset="torn")
    torn = home.root / "datasets/torn.yaml"
    torn.write_text(torn.read_text().replace("torn.ndjson", "torn.parquet"))
    (home.root / "texts/torn.parquet").write_bytes(b"PAR1 and no more")
    write_texts(home.root, [], dataset="empty")
    write_run(home.root, "empty_mood", "mood", "empty")
    write_run(home.root, "torn_mood", "mood", "torn")
    said = home.materialize()
    assert said.code == 1
    assert "empty_mood: 0 data rows (none answered)" in said.out
    assert "empty has no data rows" in said.out
    assert "the data rows of torn could not be loaded" in said.out
    assert "notes_mood: 1 data row (1 ok); 1 call" in said.out


def test_rows_that_cannot_be_loaded_are_named(home: Home) -> None:
    write_mood_home(home.root, home.model.url, ["nice"])
    with (home.root / "texts/notes.ndjson").open("a") as file:
        file.write('{"row_data": "again", "global_key": "n0"}\n')
    said = home.materialize()
    assert "duplicate_key" in said.out
    assert said.code == 0, "every slice succeeded"


def test_F099_ctrl_c_ends_it_cleanly_and_no_row_is_called_for_twice(home: Home) -> None:
    slow_home(home, rows=12)
    process = home.command()
    wait_for_requests(home.model, 4, process)
    os.kill(process.pid, signal.SIGINT)
    said = re.search(r"stopped: (\d+) of 12 rows have their answer, (\d+) are left", assert_stopped(process))
    assert said is not None
    assert 2 <= int(said[1]) == 12 - int(said[2])
    assert len(home.model.requests) < 12
    assert home.materialize().code == 0
    assert len(home.model.requests) == 12


def test_F099_several_processes_stop_together(home: Home) -> None:
    slow_home(home, rows=10)
    process = home.command("--workers", "2")
    wait_for_requests(home.model, 2, process)
    os.kill(process.pid, signal.SIGTERM)
    assert_stopped(process)
    assert len(home.model.requests) < 10
    assert home.materialize().code == 0
    assert len(home.model.requests) == 10, "no row was called for twice"


def test_F116_two_commands_at_once_on_a_new_home_call_once_for_each_row(home: Home) -> None:
    slow_home(home, rows=6)
    processes = [home.command("--workers", "2"), home.command()]
    said = [process.communicate(timeout=120) for process in processes]
    assert [process.returncode for process in processes] == [0, 0], said
    assert len(home.model.requests) == 6


def test_F099_a_second_signal_leaves_at_once(home: Home) -> None:
    """The first one waits for ten seconds for calls that are under way; this call would take a minute."""
    write_mood_home(home.root, home.model.url, ["slow", "text"])
    home.model.answer = lambda _: Reply({"mood": "good"}, delay_s=60)
    process = home.command()
    wait_for_requests(home.model, 1, process)
    os.kill(process.pid, signal.SIGTERM)
    assert process.stderr is not None
    while "Again: leave at once" not in (line := process.stderr.readline()):
        assert line, "it ended without a word"
    os.kill(process.pid, signal.SIGTERM)
    _, err = process.communicate(timeout=60)
    assert process.returncode == 130
    assert "stopped" not in err, "it did not stay to say so"


def slow_home(home: Home, rows: int) -> None:
    write_mood_home(home.root, home.model.url, [f"text {at}" for at in range(rows)])
    manifest = home.root / "models/mood.yaml"
    text = manifest.read_text().replace("requests_per_second: 1000", "requests_per_second: 5")
    manifest.write_text(text.replace("burst: 100", "burst: 1"))


def assert_stopped(process: subprocess.Popen[str]) -> str:
    out, err = process.communicate(timeout=60)
    assert process.returncode == 130, out + err
    assert "the same command goes on where this one stopped" in err
    assert "Traceback" not in err
    return err


def test_a_killed_commands_run_is_not_left_as_started(home: Home) -> None:
    write_mood_home(home.root, home.model.url, ["slow", "text"])
    home.model.answer = lambda _: Reply({"mood": "good"}, delay_s=5)
    process = home.command()
    wait_for_requests(home.model, 1, process)
    process.kill()
    process.communicate(timeout=60)
    places = places_of({}, home.root)
    with open_instance(places) as instance:
        started = dg.RunsFilter(statuses=[dg.DagsterRunStatus.STARTED])
        assert instance.get_runs_count(started) == 1
        assert fail_runs_of_the_dead(instance, places) == 1
        assert instance.get_runs_count(started) == 0
        [run] = instance.get_runs(dg.RunsFilter(statuses=[dg.DagsterRunStatus.FAILURE]))
        assert not (places.dagster_home / "processes" / run.tags[PROCESS]).exists()


def test_a_living_commands_run_is_left_alone(home: Home) -> None:
    places = places_of({}, home.root)

    @dg.op
    def nothing() -> None: ...

    @dg.job
    def job() -> None:
        nothing()

    with open_instance(places) as instance, sign_of_life(places) as name:
        instance.create_run_for_job(job, status=dg.DagsterRunStatus.STARTED, tags={PROCESS: name})
        instance.create_run_for_job(job, status=dg.DagsterRunStatus.STARTED)
        assert fail_runs_of_the_dead(instance, places) == 0


@pytest.mark.parametrize(
    "arguments", [[], ["paint"], ["materialize", "--workers", "0"], ["materialize", "--workers", "x"]]
)
def test_a_command_line_that_makes_no_sense_is_usage(arguments: Sequence[str]) -> None:
    with pytest.raises(SystemExit) as exited:
        main(list(arguments))
    assert exited.value.code == 2


def test_a_spent_budget_says_once_what_was_spent_what_is_left_and_what_to_do(home: Home) -> None:
    write_mood_home(home.root, home.model.url, [f"text {at}" for at in range(12)], "budget: 0.05\n")
    manifest = home.root / "models/mood.yaml"
    manifest.write_text(manifest.read_text() + "cost_per_call: {amount: 0.01, currency: USD}\nmax_concurrency: 1\n")
    said = home.materialize()
    assert said.code == 1
    assert "12 data rows (4 ok); 5 calls, 0 answers reused; 0.05 of 0.05 USD spent" in said.out
    assert (
        "  stopped: budget: 0.05 of 0.05 USD spent on 5 calls, and the next one costs 0.01 USD; to go on, raise "
        "`budget` in runs/notes_mood.yaml. 5 of 12 rows have their answer and keep it: run again to go on with the 7 "
        "that are left\n"
    ) in said.out
    assert "\n  slice 00002 and 3 more not done\n" in said.out
    assert (said.out.count("raise `budget`"), said.err.count("raise `budget`")) == (1, 1)
    write_run(home.root, "notes_mood", "mood", "notes", "budget: 1\n")
    again = home.materialize()
    assert (again.code, len(home.model.requests)) == (0, 12)
    assert "7 calls, 5 answers reused; 0.12 of 1 USD spent" in again.out


def test_several_processes_keep_one_budget(home: Home) -> None:
    write_mood_home(home.root, home.model.url, [f"text {at}" for at in range(40)], "budget: 0.17\n")
    manifest = home.root / "models/mood.yaml"
    manifest.write_text(manifest.read_text() + "cost_per_call: 0.01\n")
    process = home.command("--workers", "2")
    out, err = process.communicate(timeout=120)
    assert process.returncode == 1, out + err
    assert len(home.model.requests) == 17
    assert "17 of 40 rows have their answer and keep it" in out


def test_answers_that_say_nothing_are_counted_apart(home: Home) -> None:
    home.model.answer = lambda request: Reply({}) if request.text == "empty" else Reply({"mood": "good"})
    write_mood_home(home.root, home.model.url, ["nice", "empty", "empty"])
    assert "3 data rows (3 ok with 2 empty); 3 calls" in home.materialize().out


def test_what_is_shown_on_the_way_does_not_fill_dagsters_own_logs(home: Home) -> None:
    """While Dagster executes, it copies what comes on standard error: of a bar, megabytes an hour."""
    write_mood_home(home.root, home.model.url, ["nice", "broken"])
    process = home.command()
    _, err = process.communicate(timeout=120)
    assert "slice 00000 failed" in err
    logs = [path.read_text() for path in (home.root / ".dagster").rglob("compute_logs/*.err")]
    assert logs
    assert not any("slice 00000 failed" in log for log in logs)


def test_a_worker_that_is_done_sends_nothing_more() -> None:
    now, stream = [0.0], io.StringIO()
    gauge = Gauge(Lines("notes_mood", stream, lambda: now[0]), total=100)
    done, going = Task("notes_mood", (), ("00000",)), Task("notes_mood", (), ("00001",))
    gauge.hear(News(done, Progress("notes_mood", 50, 50, 0, 50, 9.0, "retrying: x")))
    gauge.hear(News(done, SliceReport("00000", rows=50, ok=50, calls=50, data_version="v")))
    now[0] = 10.0
    gauge.hear(News(going, Progress("notes_mood", 50, 10, 0, 10, 2.0)))
    assert stream.getvalue() == "notes_mood: 60 of 100 rows, 2.0 requests/s, 0 failed, about 0:06 left\n"


def test_without_a_terminal_progress_is_a_line_now_and_then() -> None:
    now, stream = [0.0], io.StringIO()
    gauge = Gauge(Lines("notes_mood", stream, lambda: now[0]), total=100)
    one, other = Task("notes_mood", ()), Task("notes_mood", (), ("00001",))
    for second in range(1, 21):
        now[0] = float(second)
        gauge.hear(News(one, Progress("notes_mood", 50, second * 2, 1, second * 2, 2.0)))
        gauge.hear(News(other, Progress("notes_mood", 50, second, 0, second, 1.0, "held by the endpoint for 9 s")))
    assert stream.getvalue().splitlines() == [
        "notes_mood: 29 of 100 rows, held by the endpoint for 9 s, 3.0 requests/s, 1 failed, about 0:24 left",
        "notes_mood: 59 of 100 rows, held by the endpoint for 9 s, 3.0 requests/s, 1 failed, about 0:13 left",
    ]


def test_a_preview_calls_for_its_rows_says_where_the_page_is_and_commits_nothing(home: Home) -> None:
    write_mood_home(home.root, home.model.url, [f"text {at}" for at in range(40)])
    out, err = io.StringIO(), io.StringIO()
    code = materialize(places_of({}, home.root), [], only_previews=True, environ={}, out=out, err=err)
    assert code == 0, out.getvalue() + err.getvalue()
    page = home.root / "warehouse/preview/run=notes_mood/preview.html"
    assert f"notes_mood: preview {page}\n" in out.getvalue()
    assert page.is_file()
    assert len(home.model.requests) == 12
    assert home.store.slices(RESPONSES, "notes_mood") == []


def test_a_preview_that_fails_says_why(home: Home) -> None:
    write_mood_home(home.root, "http://127.0.0.1:1/", ["a"])
    write_file(home.root / "foundry.yaml", "preflight_patience_s: 1\n")
    out, err = io.StringIO(), io.StringIO()
    code = materialize(places_of({}, home.root), [], only_previews=True, environ={}, out=out, err=err)
    assert code == 1
    assert "notes_mood: preview failed: " in out.getvalue()
    assert "cannot be reached" in out.getvalue()
