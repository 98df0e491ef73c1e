"""What a person does in the UI of `make dev`: looks at the graph, previews, materializes, backfills, cancels, resumes.

One server and one browser for all. The two backfills are launched first and looked at last: Dagster's daemon takes up
what concerns backfills every 30 s, and the other tests fill the wait.
"""

from __future__ import annotations

import math
import re
import threading
import time
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import polars as pl
import pytest
from PIL import Image

from foundry_pipeline.draw import colour_of
from foundry_pipeline.preview.gallery import page_name
from tests.browsing import Pixels, Ui, file_url, open_page
from tests.dev_server import DevServer
from tests.fake_model import FakeModel, Reply, Request, windows
from tests.home_folder import mood_of, write_box_model, write_file, write_mood_model, write_run, write_texts

PICTURE_WH = (600, 400)
GREY = (128, 128, 128)
BOX_LTWH = (150, 200, 300, 120)

SLICES = 200
PER_SECOND = 20
SLOW_AFTER = 80
SLOW_S = 5.0
IN_FLIGHT = 2
"""Calls in flight of one Dagster run."""

FEW = 6
ONE_RUN_A_SLICE = "requests_per_second: 0.001\nburst: 100"
"""At this rate a slice is half an hour of calls, which is one Dagster run; the burst lets these few go at once."""


@dataclass
class Moods:
    """The model of both backfills' texts. After 80 answers about the many it is slow, until it is told otherwise."""

    is_slow: bool = True
    many: int = 0

    def __call__(self, request: Request) -> Reply:
        self.many += request.path == "/predict"
        is_late = self.is_slow and self.many > SLOW_AFTER and request.path == "/predict"
        return replace(mood_of(request), delay_s=SLOW_S if is_late else 0.0)


class Stalls(threading.Thread):
    """How busy this machine is: the longest time by which a sleeper was woken late."""

    def __init__(self) -> None:
        super().__init__(daemon=True)
        self.longest_s = 0.0
        self._end = threading.Event()

    def run(self) -> None:
        while not self._end.is_set():
            before = time.monotonic()
            time.sleep(0.005)
            self.longest_s = max(self.longest_s, time.monotonic() - before - 0.005)

    def stop(self) -> None:
        self._end.set()
        self.join()


@dataclass
class World:
    home: Path
    ui: Ui
    server: DevServer
    finder: FakeModel
    texts: FakeModel
    moods: Moods
    stalls: Stalls

    def requests(self, path: str) -> list[Request]:
        return [request for request in self.texts.requests if request.path == path]


def box_of(_: Request) -> Reply:
    return Reply({"thing": {"boxes": [list(BOX_LTWH)], "scores": [0.9]}})


def write_home(root: Path, finder: FakeModel, texts: FakeModel) -> None:
    """Pictures to preview, many texts in slices of one, and a few whose every slice takes a Dagster run of its own."""
    for at in range(6):
        path = root / f"pictures/{at}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", PICTURE_WH, (*GREY[:2], GREY[2] + at)).save(path)
    write_file(root / "datasets/street.yaml", "media_type: image\nsource: ../pictures/*.png\nrows_per_slice: 2\n")
    write_box_model(root, finder.url)
    write_run(root, "street_things", "finder", "street", "exports: [labelbox]\n")
    write_texts(root, [f"text {n}" for n in range(SLICES)], "notes", rows_per_slice=1)
    write_mood_model(root, texts.url)
    pace(root / "models/mood.yaml", f"requests_per_second: {PER_SECOND}\nmax_concurrency: {IN_FLIGHT}")
    write_run(root, "notes_mood", "mood", "notes")
    write_texts(root, [f"letter {n}" for n in range(FEW)], "letters", rows_per_slice=1)
    write_mood_model(root, f"{texts.url}/few", "careful")
    pace(root / "models/careful.yaml", ONE_RUN_A_SLICE)
    write_run(root, "letters_mood", "careful", "letters")


def pace(manifest: Path, lines: str) -> None:
    manifest.write_text(manifest.read_text().replace("requests_per_second: 1000\nburst: 100", lines))


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Iterator[World]:
    """`make dev` with all data rows loaded, from the UI."""
    folder, moods, stalls = tmp_path_factory.mktemp("ui"), Moods(), Stalls()
    home = folder / "home"
    with open_page() as page, FakeModel(box_of) as finder, FakeModel(moods) as texts:
        write_home(home, finder, texts)
        stalls.start()
        try:
            with DevServer(home, folder / "log") as server:
                made = World(home, Ui(page, server), server, finder, texts, moods, stalls)
                load(made.ui)
                yield made
        finally:
            stalls.stop()


def load(ui: Ui) -> None:
    runs = []
    for dataset in ("notes", "letters", "street"):
        ui.open_asset(dataset, "data_rows")
        ui.press("Materialize")
        runs.append(ui.follow_launch())
    for run in runs:
        ui.open(run)
        ui.see_run_succeed()


@pytest.fixture(scope="module")
def launched(world: World) -> tuple[str, str]:
    """The pages of two backfills: of the many slices, and of the few."""
    return launch_backfill(world.ui, SLICES, "notes_mood"), launch_backfill(world.ui, FEW, "letters_mood")


def launch_backfill(ui: Ui, slices: int, run: str) -> str:
    ui.open_asset(run, "responses")
    ui.press("Materialize…")
    ui.press("All")
    ui.see(f"{slices} partitions selected")
    ui.press("Launch backfill")
    return ui.follow_launch()


@pytest.mark.usefixtures("launched")
def test_the_graph_shows_every_run_as_a_group_of_its_assets_and_no_error(world: World) -> None:
    ui = world.ui
    ui.open("/asset-groups")
    for group in ("notes", "notes_mood", "letters_mood", "street", "street_things"):
        ui.see(ui.page.get_by_text(group, exact=True))
    ui.open("/locations/foundry_pipeline/asset-groups/street_things/lineage")
    for asset in ("data_rows", "preview", "responses", "boxes", "rejects", "annotations"):
        ui.see(ui.page.get_by_text(asset, exact=True))
    ui.see("3 partitions")
    assert not re.search(r"\b(errors?|failed|warnings?)\b", ui.text(), re.IGNORECASE)


@pytest.mark.usefixtures("launched")
def test_an_assets_page_says_what_it_is_where_it_is_and_what_its_columns_mean(world: World) -> None:
    ui = world.ui
    ui.open_asset("street_things", "boxes")
    ui.see("One row per predicted box, decoded from the answers of finder about street.")
    ui.see(f"{world.home}/warehouse/boxes/run=street_things")
    ui.see("from the picture's left edge (pixel)")
    ui.open_asset("street_things", "responses")
    ui.see("Every answer of finder about the data rows of street, as it came.")
    ui.see("Intended use")
    assert ui.page.locator("img[src*=evil]").count() == 0
    assert ui.strangers == [], "neither the UI nor a stranger's readme fetches anything from elsewhere"


@pytest.mark.usefixtures("launched")
def test_a_preview_tries_a_parameter_refuses_a_wrong_one_and_shows_pictures_and_a_forecast(world: World) -> None:
    ui = world.ui
    ui.open_asset("street_things", "preview")
    ui.choose("Open launchpad")
    editor = ui.see(ui.page.locator(".CodeMirror"))
    ui.see(editor.get_by_text("strictness"))
    assert "count: 12" in editor.inner_text()
    write_config(ui, "high")
    ui.see(re.compile('Value "high" .* is not valid for expected type "Float"'))
    assert ui.button("Materialize").is_disabled()
    write_config(ui, "0.75")
    ui.press("Materialize")
    ui.see_run_succeed()
    assert [request.body["inference_params"] for request in world.finder.requests] == [{"strictness": 0.75}] * 4
    ui.open_asset("street_things", "preview")
    assert re.search(r"data rows\s+6, of which 4 have their answer\s+calls\s+2", ui.value("forecast"))
    assert ui.value("rows").count("thing") == 4
    assert ui.value("for_the_run_file") == 'inference_params: {"strictness": 0.75}'
    ui.see(ui.page.locator("tr").filter(has_text="picture_1").get_by_text("[Show Markdown]")).click()
    small = Pixels(ui.see(ui.page.get_by_role("dialog").locator("img")), PICTURE_WH[0])
    assert share_of_colour(small.at(150, 260)) > 0.25, "the box's left edge, thinner than a pixel"
    assert share_of_colour(small.at(300, 260)) < 0.05, "inside the box"


def write_config(ui: Ui, strictness: str) -> None:
    ui.page.locator(".CodeMirror").click()
    ui.page.keyboard.press("Control+A")
    ui.page.keyboard.insert_text(
        "ops:\n  street_things__preview:\n    config:\n      count: 4\n"
        f"      inference_params:\n        strictness: {strictness}\n"
    )


@pytest.mark.usefixtures("launched")
def test_the_gallery_shows_a_box_in_its_place_in_its_colour(world: World) -> None:
    ui = world.ui
    ui.materialize("street_things", "preview")
    ui.page.goto(file_url(world.home / "warehouse" / page_name("street_things")))
    pictures = ui.page.locator("img").all()
    assert len(pictures) == 6
    shown = Pixels(pictures[0], PICTURE_WH[0])
    left, top, width, height = BOX_LTWH
    right, bottom, middle = left + width - 1, top + height - 1, (left + width / 2, top + height / 2)
    for edge in ((left, middle[1]), (right, middle[1]), (middle[0], bottom)):
        assert share_of_colour(shown.at(*edge)) > 0.6, edge
    for place in (middle, (left - 20, middle[1]), (right + 20, middle[1]), (middle[0], bottom + 20)):
        assert share_of_colour(shown.at(*place)) < 0.05, place


def share_of_colour(pixel: tuple[int, ...]) -> float:
    """How far a pixel is from the pictures' grey to the box's colour, 0 to 1: scaling and JPEG mix neighbours."""
    way = [end - start for start, end in zip(GREY, colour_of("thing"), strict=True)]
    gone = [now - start for start, now in zip(GREY, pixel, strict=True)]
    return sum(a * b for a, b in zip(way, gone, strict=True)) / sum(a * a for a in way)


@pytest.mark.usefixtures("launched")
def test_one_slice_of_responses_and_of_boxes_is_materialized_and_counted(world: World) -> None:
    ui = world.ui
    for table, rows in (("responses", "2"), ("boxes", "2")):
        ui.open_asset("street_things", table)
        ui.press("Materialize…")
        ui.see("Select a partition").click()
        ui.see(ui.page.locator("span").filter(has_text=re.compile("^00001$")).last).click()
        ui.press("Launch 1 run")
        ui.follow_launch()
        ui.see_run_succeed()
        ui.open_asset("street_things", table, view="partitions")
        ui.see(ui.page.get_by_text("Materialized (1)"))
        ui.see(ui.page.get_by_text("00001", exact=True)).click()
        assert ui.value("dagster/partition_row_count") == rows


def test_a_backfill_cancelled_in_the_middle_is_resumed_and_pays_for_no_row_twice(
    world: World, launched: tuple[str, str]
) -> None:
    ui = world.ui
    ui.open(launched[0])
    world.server.wait_until("the model is slow", lambda: len(world.requests("/predict")) > SLOW_AFTER)
    ui.choose("Cancel backfill")
    ui.press("Cancel backfill")
    ui.see(ui.page.get_by_text("Canceled", exact=True))
    cancelled_at = len(world.requests("/predict"))
    assert cancelled_at < SLICES
    world.moods.is_slow = False
    ui.choose("Re-execute from failure")
    ui.follow_launch()
    ui.see_backfill_succeed()
    ui.open_asset("notes_mood", "responses", view="partitions")
    ui.see(f"Materialized ({SLICES})")
    asked = Counter(request.text for request in world.requests("/predict"))
    assert len(asked) == SLICES
    assert sum(asked.values()) - SLICES <= 2 * IN_FLIGHT, "only what was in flight may be asked again"
    responses = pl.read_parquet(world.home / "warehouse/responses/run=notes_mood/*.parquet")
    assert responses["outcome"].to_list() == ["ok"] * SLICES


@pytest.mark.usefixtures("launched")
def test_the_rate_is_held_at_the_server_over_all_dagster_runs(world: World) -> None:
    world.server.wait_until("the calls go out", lambda: len(world.requests("/predict")) > SLOW_AFTER)
    arrivals = [request.at for request in world.requests("/predict")]
    late = math.ceil(PER_SECOND * world.stalls.longest_s)
    assert windows(arrivals) <= PER_SECOND + 1 + late, "what a busy machine holds up arrives in a bunch"


def test_a_small_backfill_of_one_dagster_run_a_slice_finishes(world: World, launched: tuple[str, str]) -> None:
    ui = world.ui
    ui.open(launched[1])
    ui.see_backfill_succeed()
    assert sorted(request.text for request in world.requests("/predict/few")) == [f"letter {n}" for n in range(FEW)]
    ui.press("Runs")
    ui.see(ui.page.get_by_text("Success"))
    assert ui.page.get_by_text("Success", exact=True).count() == FEW
