"""Videos from data row to table: frames as pictures, a call each or several a call, and every answer kept by frame."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from foundry_pipeline.asks import calls_of_slice
from foundry_pipeline.config.settings import Settings
from foundry_pipeline.exports.labelbox import lines_of
from foundry_pipeline.exports.rows import annotated_rows
from foundry_pipeline.exports.tally import Tally
from foundry_pipeline.invoke import Progress
from foundry_pipeline.preview.preview import dataset_rows, named_rows, preview_run
from foundry_pipeline.quality.audit import audit_answers
from foundry_pipeline.rows.content import RowReader
from foundry_pipeline.tables import DATA_ROWS
from tests.fake_model import FakeModel, Reply, Request
from tests.media_bench import CHECKOUT, SLICE, MediaBench, kill_at, pictures_in, turns_in
from tests.row_server import Answer, RowServer
from tests.videos import number_in, turned_video, video


def numbers(request: Request) -> list[int]:
    """The frames in a request, read from their pixels."""
    return [number_in(picture) for picture in pictures_in(request)]


def box_of(number: int) -> dict[str, Any]:
    return {"car": {"boxes": [[0, 0, 8 * (number + 1), 48]], "scores": [0.5]}}


def as_picture(request: Request) -> Reply:
    """A model of pictures that knows nothing of videos."""
    (number,) = numbers(request)
    return Reply(box_of(number))


def by_frame(request: Request) -> Reply:
    """A model of videos: believes the numbers in the text, and answers by them."""
    ((_, text),) = turns_in(request)
    named = [int(number) for number in text.removeprefix("frames: ").split(", ")]
    assert named == numbers(request)
    return Reply({"frames": {str(number): box_of(number) for number in named}, "weather": "sun"})


@pytest.fixture
def model() -> Iterator[FakeModel]:
    with FakeModel(as_picture) as served:
        yield served


def bench_of(tmp_path: Path, model: FakeModel, *clips: bytes, **changes: Any) -> MediaBench:
    for at, data in enumerate(clips):
        (tmp_path / f"{at}.mp4").write_bytes(data)
    records = [{"row_data": f"{at}.mp4"} for at in range(len(clips))]
    bench = MediaBench(tmp_path, model.url, "video", records)
    bench.model(**changes)
    return bench


def test_a_frame_a_call_looks_like_a_picture_and_its_answer_says_which_frame(model: FakeModel, tmp_path: Path) -> None:
    bench = bench_of(tmp_path, model, video(12))
    report = bench.go()
    assert (report.rows, report.calls, report.ok) == (3, 3, 3)
    assert sorted(map(numbers, model.requests)) == [[0], [4], [8]]
    assert {len(request.body["prompt"][0]["parts"]) for request in model.requests} == {1}
    boxes = bench.table("boxes")
    assert [(b["frame"], b["width"], b["image_width"], b["image_height"]) for b in boxes] == [
        (0, 8, 128, 48),
        (4, 40, 128, 48),
        (8, 72, 128, 48),
    ]
    assert [r["frames"] for r in bench.responses()] == [[0], [4], [8]]
    assert len({b["prediction_id"] for b in boxes}) == 3
    (row,) = bench.table("data_rows")
    assert (row["frame_count"], row["frames_per_second"], row["width"], row["height"]) == (12, 4.0, 128, 48)


def test_the_run_says_which_frames_and_else_the_manifest(model: FakeModel, tmp_path: Path) -> None:
    bench = bench_of(tmp_path, model, video(12), frames_per_second=2.0)
    assert bench.go().calls == 6
    bench.runs(frames=(0, 7, 40))
    report = bench.go()
    assert (report.calls, report.reused, report.rows) == (1, 1, 2), "frame 0 was asked before, and there is no frame 40"
    assert [r["frames"] for r in bench.responses()] == [[0], [7]]


def test_other_frames_of_the_same_video_pay_for_themselves_only(model: FakeModel, tmp_path: Path) -> None:
    bench = bench_of(tmp_path, model, video(12))
    bench.go()
    bench.runs(frames_per_second=2.0)
    report = bench.go()
    assert (report.calls, report.reused) == (3, 3)
    again = bench.go()
    assert (again.calls, again.reused) == (0, 6)


def test_several_frames_a_call_are_named_in_a_text_before_them(model: FakeModel, tmp_path: Path) -> None:
    model.answer = by_frame
    bench = bench_of(tmp_path, model, video(12), frames_per_second=2.0, frames_per_call=4)
    assert bench.go().calls == 2
    assert sorted(turns_in(request)[0][1] for request in model.requests) == ["frames: 0, 2, 4, 6", "frames: 8, 10"]
    assert [b["frame"] for b in bench.table("boxes")] == [0, 2, 4, 6, 8, 10]
    # What is said about a call's frames stands at the first of them.
    assert [(c["answer"], c["frame"]) for c in bench.table("classifications")] == [("sun", 0), ("sun", 8)]
    assert bench.table("rejects") == []


def test_a_video_in_one_call_may_be_spoken_of_as_a_whole(model: FakeModel, tmp_path: Path) -> None:
    model.answer = by_frame
    bench = bench_of(tmp_path, model, video(12), frames_per_call=10)
    bench.go()
    assert [(c["answer"], c["frame"]) for c in bench.table("classifications")] == [("sun", None)]


def test_a_frame_that_was_not_sent_is_refused_and_a_feature_said_twice_too(model: FakeModel, tmp_path: Path) -> None:
    model.answer = lambda _: Reply({"frames": {"0": {"weather": "sun"}, "3": {"weather": "rain"}}, "weather": "rain"})
    bench = bench_of(tmp_path, model, video(12))
    bench.runs(frames=(0, 4))
    bench.go()
    rejects = [(r["path"], r["reason"], r["frame"]) for r in bench.table("rejects")]
    assert rejects == [
        ('$.frames["3"]', "bad_frame", None),
        ("$.weather", "duplicate_key", 0),
        ('$.frames["0"]', "bad_frame", None),
        ('$.frames["3"]', "bad_frame", None),
    ]
    assert [(c["answer"], c["frame"]) for c in bench.table("classifications")] == [("sun", 0), ("rain", 4)]
    assert len({r["prediction_id"] for r in bench.table("rejects")}) == 4


def test_one_reply_that_is_no_json_costs_its_own_frame(model: FakeModel, tmp_path: Path) -> None:
    model.answer = lambda request: Reply({"car": 3}) if numbers(request) == [4] else as_picture(request)
    bench = bench_of(tmp_path, model, video(12))
    bench.go()
    assert [b["frame"] for b in bench.table("boxes")] == [0, 8]
    assert [(r["reason"], r["frame"]) for r in bench.table("rejects")] == [("wrong_type", 4)]


@pytest.mark.parametrize(("exif", "size"), [("upright", (48, 128)), ("keep", (128, 48))])
def test_a_turned_video_is_sent_upright_unless_the_manifest_keeps_it(
    exif: str, size: tuple[int, int], model: FakeModel, tmp_path: Path
) -> None:
    model.answer = lambda _: Reply(box_of(0))
    bench = bench_of(tmp_path, model, turned_video(video(4), 90), exif=exif)
    bench.go()
    assert pictures_in(model.requests[0])[0].size == size
    assert [(b["image_width"], b["image_height"]) for b in bench.table("boxes")] == [size]
    (row,) = bench.table("data_rows")
    assert (row["width"], row["height"], row["exif_orientation"]) == (48, 128, 6)


def broken_clips() -> dict[str, bytes]:
    sound = video(12)
    return {
        "cut": sound[: len(sound) // 2],
        "no frames": video(0),
        "no video": b"\0\0\0\x20ftypisom" + bytes(400),
        "a picture": b"\xff\xd8\xff" + bytes(99),
    }


def test_a_video_that_is_none_is_one_row_that_is_not_sent(model: FakeModel, tmp_path: Path) -> None:
    bench = bench_of(tmp_path, model, *broken_clips().values(), video(4))
    report = bench.go()
    assert (report.rows, report.ok, report.not_sent, report.calls) == (5, 1, 4, 1)
    codes = {r["error"] for r in bench.responses() if r["outcome"] == "not_sent"}
    assert codes <= {"row_truncated", "row_not_media"}
    assert all(r["message"] and r["frames"] is None for r in bench.responses() if r["outcome"] == "not_sent")
    assert bench.load().unavailable == 4


def test_a_video_bomb_is_not_sent(model: FakeModel, tmp_path: Path) -> None:
    bench = bench_of(tmp_path, model, video(60), video(4, size=(512, 512)))
    bench.settings = Settings(max_video_frames=50, max_row_pixels=500 * 500)
    bench.go()
    assert [(r["outcome"], r["error"]) for r in bench.responses()] == [("not_sent", "row_too_large")] * 2


def test_a_video_without_any_of_the_frames_says_so(model: FakeModel, tmp_path: Path) -> None:
    bench = bench_of(tmp_path, model, video(4))
    bench.runs(frames=(90, 100))
    bench.call()
    (response,) = bench.responses()
    assert (response["outcome"], response["error"]) == ("not_sent", "row_no_frames")
    assert "4 frames" in response["message"]


def test_a_frame_that_fails_is_asked_again_alone(model: FakeModel, tmp_path: Path) -> None:
    bench = bench_of(tmp_path, model, video(40))
    bench.runs(frames_per_second=4.0)
    boom = Reply({"error": "boom"}, status=500)
    model.answer = lambda request: boom if numbers(request) == [7] else as_picture(request)
    bench.model(max_attempts=1)
    report = bench.go()
    assert (report.rows, report.ok, report.failed) == (40, 39, 1)
    assert [r["frames"] for r in bench.responses() if r["outcome"] == "failed"] == [[7]]
    (annotated,) = annotated_rows(bench.run, bench.store, SLICE, Tally())
    assert (annotated.outcome, annotated.calls_unanswered, len(annotated.predictions)) == ("ok", 1, 39)
    model.answer = as_picture
    report = bench.go()
    assert (report.calls, report.reused, report.ok) == (1, 39, 40)


def test_answered_equals_asked_counts_every_call(model: FakeModel, tmp_path: Path) -> None:
    bench = bench_of(tmp_path, model, video(12), video(8), broken_clips()["cut"])
    bench.go()
    assert calls_of_slice(bench.run, bench.store, SLICE) == 6
    found = audit_answers(bench.run, bench.store)
    assert (found.rows, found.outcomes, found.unequal) == (3, Counter(ok=5, not_sent=1), [])
    bench.runs(frames_per_second=2.0)
    assert audit_answers(bench.run, bench.store).unequal == [SLICE], "the run asks for more by now"


def test_progress_counts_calls(model: FakeModel, tmp_path: Path) -> None:
    bench = bench_of(tmp_path, model, video(12), video(8))
    bench.load()
    seen: list[Progress] = []
    with bench.invoker() as invoker:
        list(invoker.invoke([SLICE], on_progress=seen.append))
    assert (seen[-1].done, seen[-1].rows) == (5, 5)


def test_frames_are_exported_for_the_platform_by_their_numbers(model: FakeModel, tmp_path: Path) -> None:
    bench = bench_of(tmp_path, model, video(12))
    bench.go()
    (annotated,) = annotated_rows(bench.run, bench.store, SLICE, Tally())
    lines = list(lines_of(bench.run, annotated, Tally()))
    assert [line["segments"][0]["keyframes"][0]["frame"] for line in lines] == [0, 4, 8]


def test_a_video_behind_a_url_is_fetched_once_for_all_its_frames(model: FakeModel, tmp_path: Path) -> None:
    with RowServer() as host:
        for name in "abcdef":
            host.routes[f"/{name}.mp4"] = Answer(video(12, size=(128, 48 + 2 * ord(name))))
        records = [{"row_data": host.url(f"/{name}.mp4")} for name in "abcdef"]
        bench = MediaBench(tmp_path, model.url, "video", records, settings=Settings(("127.0.0.1",)))
        bench.runs(frames_per_second=4.0)
        assert bench.go().calls == 72
        # Once to load it, once to call.
        assert Counter(host.asked) == {f"/{name}.mp4": 2 for name in "abcdef"}
        bench.go()
        assert len(host.asked) == 12


def test_a_preview_asks_about_the_first_frames_and_draws_what_was_said_of_them(
    model: FakeModel, tmp_path: Path
) -> None:
    bench = bench_of(tmp_path, model, video(12))
    bench.load()
    sample = named_rows(dataset_rows(bench.run, bench.store), ["0.mp4"])
    with bench.invoker() as invoker, RowReader(tmp_path, bench.settings) as reader:
        found = preview_run(bench.run, bench.store, sample, invoker.ask, reader)
    (shown,) = found.rows
    assert (found.seen.asked, len(model.requests), shown.error) == (1, 1, None)
    assert shown.drawn is not None
    assert shown.drawn.size == (128, 48)
    assert [(p.table, p.values["frame"]) for p in shown.annotated.predictions] == [("boxes", 0)]
    assert bench.call().reused == 1, "the run pays for the other frames only"


_CHILD = """
import sys
from pathlib import Path
sys.path.insert(0, {checkout!r})
from tests.media_bench import MediaBench
bench = MediaBench(Path({root!r}), {url!r}, "video", [{{"row_data": "0.mp4"}}])
bench.model(max_concurrency=4, requests_per_second=200.0)
bench.runs(frames_per_second=4.0)
print(bench.call().failure)
"""


def test_kill_9_in_the_middle_of_a_video_buys_no_frame_twice(model: FakeModel, tmp_path: Path) -> None:
    """Two kills over 120 frames; the server's own log is the judge."""

    def slowly(request: Request) -> Reply:
        return Reply(as_picture(request).body, delay_s=0.03)

    model.answer = slowly
    (tmp_path / "0.mp4").write_bytes(video(120, size=(1024, 48)))
    child = _CHILD.format(checkout=str(CHECKOUT), root=str(tmp_path), url=model.url)
    kill_at(model, child, (30, 70))
    bench = MediaBench(tmp_path, model.url, "video", [{"row_data": "0.mp4"}])
    bench.model(max_concurrency=4, requests_per_second=200.0)
    bench.runs(frames_per_second=4.0)
    report = bench.go()
    assert (report.failure, report.rows, report.ok) == (None, 120, 120)
    assert [(b["frame"], b["width"]) for b in bench.table("boxes")] == [(n, 8 * (n + 1)) for n in range(120)]
    asked = Counter(request.key for request in model.requests)
    assert len(asked) == 120
    assert sum(asked.values()) - 120 <= 2 * 4
    replies = [json.loads(r["reply"]) for r in bench.responses()]
    assert replies == [box_of(n) for n in range(120)]


def test_the_tables_are_read_by_the_columns_that_are_documented(model: FakeModel, tmp_path: Path) -> None:
    bench = bench_of(tmp_path, model, video(4))
    bench.go()
    assert bench.store.read(DATA_ROWS, "ds", SLICE, ["frame_count"]).to_pylist() == [{"frame_count": 4}]
