"""The demo's models give the numbers seen when they were chosen, in the right places of the picture and the text."""

from __future__ import annotations

import csv
import io
import json
import sys
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from itertools import pairwise
from pathlib import Path
from typing import Any

import jsonschema
import numpy as np
import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from PIL import Image
from pycocotools import mask as coco

from demo.make_clip import CLIP, FRAMES_A_PICTURE, FRAMES_PER_SECOND, SIZE_WH, frames
from demo.models import addresses, faces, open_images, selfie, texts
from demo.models.boxes import iou_ltrb, suppress
from demo.models.chat import OTHERWISE, answer_to, turned_around
from demo.models.params import ParameterError
from demo.models.pictures import MAX_SIDE, PictureError, read_picture
from demo.models.sessions import WEIGHTS
from demo.models.summary import summarize
from foundry_pipeline.rows.frames import VideoLimits
from foundry_pipeline.rows.video import Video

pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")  # pycocotools, decode

HOME = Path(open_images.__file__).resolve().parents[1] / "home"
PICTURES = HOME / "pictures"


@pytest.fixture(scope="module")
def objects() -> open_images.ObjectDetector:
    return open_images.ObjectDetector()


@pytest.fixture(scope="module")
def segmenter() -> selfie.PersonSegmenter:
    return selfie.PersonSegmenter()


@pytest.fixture(scope="module")
def face_detector() -> faces.FaceDetector:
    return faces.FaceDetector()


@pytest.fixture(scope="module")
def analyst() -> texts.TextAnalyst:
    return texts.TextAnalyst()


def picture(name: str) -> Image.Image:
    return read_picture((PICTURES / f"{name}.jpg").read_bytes())


def encoded(image: Image.Image, kind: str = "PNG", **options: object) -> bytes:
    content = io.BytesIO()
    image.save(content, kind, **options)
    return content.getvalue()


def best(reply: Mapping[str, Any], feature: str) -> tuple[list[float], float]:
    return reply[feature]["boxes"][0], reply[feature]["scores"][0]


@pytest.mark.parametrize(
    ("name", "feature", "score", "box_ltwh"),
    [
        ("chelsea", "Cat", 0.847, [3, 1, 421, 299]),
        ("astronaut", "Person", 0.592, [21, 17, 341, 490]),
        ("coffee", "Coffee cup", 0.564, [171, 21, 248, 304]),
    ],
)
def test_the_object_detector_sees_what_was_seen_when_it_was_chosen(
    objects: open_images.ObjectDetector, name: str, feature: str, score: float, box_ltwh: list[float]
) -> None:
    reply = objects.predict(picture(name), {"confidence": 0.4})
    assert list(reply) == [feature]
    assert best(reply, feature)[0] == pytest.approx(box_ltwh, abs=2)
    assert best(reply, feature)[1] == pytest.approx(score, abs=0.02)


@pytest.mark.parametrize("name", ["flower", "china", "rocket"])
def test_nothing_found_is_an_empty_reply(objects: open_images.ObjectDetector, name: str) -> None:
    assert objects.predict(picture(name), {"confidence": 0.4}) == {}


def test_boxes_are_pixels_of_the_picture_sent(objects: open_images.ObjectDetector) -> None:
    small = picture("chelsea")
    large = small.resize((small.width * 2, small.height * 3), Image.Resampling.BICUBIC)
    left, top, width, height = best(objects.predict(small, {}), "Cat")[0]
    assert best(objects.predict(large, {}), "Cat")[0] == pytest.approx(
        [left * 2, top * 3, width * 2, height * 3], abs=20
    )


def test_a_higher_confidence_keeps_the_surer_boxes_only(objects: open_images.ObjectDetector) -> None:
    low = objects.predict(picture("astronaut"), {"confidence": 0.25})
    high = objects.predict(picture("astronaut"), {"confidence": 0.5})
    assert low["Person"]["scores"] == sorted(low["Person"]["scores"], reverse=True)  # type: ignore[index]
    assert high["Person"]["scores"] == [low["Person"]["scores"][0]]  # type: ignore[index]
    assert "Bottle" in low
    assert "Bottle" not in high


def test_full_overlap_switches_suppression_off(objects: open_images.ObjectDetector) -> None:
    suppressed, all_boxes = (
        objects.predict(picture("chelsea"), {"overlap": overlap})["Cat"]["boxes"]  # type: ignore[index]
        for overlap in (0.5, 1.0)
    )
    assert len(suppressed) == 1 < len(all_boxes)


def test_the_detector_has_an_anchor_for_each_of_its_outputs() -> None:
    anchors = open_images.anchors()
    assert anchors.shape == (1917, 4)
    assert ((anchors[:, :2] > 0) & (anchors[:, :2] < 1)).all()
    assert anchors[0] == pytest.approx([0.5 / 19, 0.5 / 19, 0.1, 0.1])
    assert anchors[1] == pytest.approx([0.5 / 19, 0.5 / 19, 0.2 / 2**0.5, 0.2 * 2**0.5])  # twice as wide as high
    assert anchors[19 * 19 * 3 + 5] == pytest.approx([0.05, 0.05, (0.35 * 0.5) ** 0.5, (0.35 * 0.5) ** 0.5])
    assert anchors[-1] == pytest.approx([0.5, 0.5, 0.95**0.5, 0.95**0.5])
    assert faces.anchor_centres().shape == (896, 2)


BOXES = arrays(np.float64, st.tuples(st.integers(0, 12), st.just(4)), elements=st.integers(0, 20)).map(
    lambda corners: np.concatenate(
        [np.minimum(corners[:, :2], corners[:, 2:]), np.maximum(corners[:, :2], corners[:, 2:])], 1
    )
)


@given(boxes=BOXES, overlap=st.sampled_from([0.0, 0.3, 0.5, 1.0]), seed=st.integers(0, 9))
@settings(max_examples=60, deadline=None)
def test_suppression_keeps_boxes_apart_and_drops_only_what_a_better_one_covers(
    boxes: np.ndarray[Any, np.dtype[np.float64]], overlap: float, seed: int
) -> None:
    scores = np.random.default_rng(seed).random(len(boxes))
    kept = suppress(boxes, scores, overlap)
    assert all(scores[one] >= scores[other] for one, other in pairwise(kept))
    for place, kept_box in enumerate(kept):
        assert (iou_ltrb(boxes[kept_box], boxes[kept[place + 1 :]]) <= overlap).all()
    for dropped in set(range(len(boxes))) - set(kept):
        better = [k for k in kept if scores[k] >= scores[dropped]]
        assert (iou_ltrb(boxes[dropped], boxes[better]) > overlap).any()


@pytest.mark.parametrize(("name", "share"), [("astronaut", 0.545), ("grace_hopper", 0.578)])
def test_the_mask_covers_the_share_that_was_seen(segmenter: selfie.PersonSegmenter, name: str, share: float) -> None:
    image = picture(name)
    reply: Any = segmenter.predict(image, {})
    (mask,) = reply["person"]["masks"]
    assert mask["size"] == [image.height, image.width]
    assert coco.area(mask) / (image.width * image.height) == pytest.approx(share, abs=0.005)
    assert reply["person"]["scores"][0] == pytest.approx(
        segmenter.probability(image)[coco.decode(mask) == 1].mean(), abs=1e-3
    )


def test_the_mask_is_on_the_person_and_not_mirrored(segmenter: selfie.PersonSegmenter) -> None:
    reply: Any = segmenter.predict(picture("astronaut"), {})
    mask = coco.decode(reply["person"]["masks"][0])
    assert mask[130, 225] == 1  # the nose
    assert mask[100, 420] == 0  # the rocket on the right
    assert mask[480, 150] == 1  # the suit
    assert mask[30, 60] == 0  # the flag


def test_a_higher_threshold_gives_a_smaller_mask_and_then_none(segmenter: selfie.PersonSegmenter) -> None:
    image = picture("grace_hopper")
    replies: list[Any] = [segmenter.predict(image, {"threshold": threshold}) for threshold in (0.1, 0.9, 1)]
    loose, strict = (coco.area(reply["person"]["masks"][0]) for reply in replies[:2])
    assert strict < loose
    assert replies[2] == {}


def test_a_picture_without_anybody_has_no_mask(segmenter: selfie.PersonSegmenter) -> None:
    assert segmenter.predict(picture("rocket"), {}) == {}


@pytest.mark.parametrize(
    ("name", "score", "right_eye", "mouth"),
    [("astronaut", 0.921, [204, 103], [220, 147]), ("grace_hopper", 0.943, [220, 200], [272, 276])],
)
def test_the_face_and_its_points_are_where_they_are_in_the_picture(
    face_detector: faces.FaceDetector, name: str, score: float, right_eye: list[float], mouth: list[float]
) -> None:
    reply: Any = face_detector.predict(picture(name), {})
    assert list(reply) == ["face", *faces.POINTS]
    (left, top, width, height), found = best(reply, "face")
    assert found == pytest.approx(score, abs=0.005)
    assert reply["right_eye"]["points"][0] == pytest.approx(right_eye, abs=3)
    assert reply["mouth"]["points"][0] == pytest.approx(mouth, abs=3)
    for point in ("right_eye", "left_eye", "nose", "mouth"):
        x, y = reply[point]["points"][0]
        assert left < x < left + width
        assert top < y < top + height
    assert all(len(value["scores"]) == 1 for value in reply.values())


@pytest.mark.parametrize("offset", [(0, 60), (30, 0)])
def test_the_bars_of_the_letterbox_do_not_move_the_face(
    face_detector: faces.FaceDetector, offset: tuple[int, int]
) -> None:
    original = picture("astronaut")
    wider = Image.new("RGB", (original.width + 2 * offset[0], original.height + offset[1]))
    wider.paste(original, offset)
    nose, moved = (face_detector.predict(image, {})["nose"]["points"][0] for image in (original, wider))  # type: ignore[index]
    assert moved == pytest.approx([nose[0] + offset[0], nose[1] + offset[1]], abs=8)


def test_doubtful_faces_are_answered_below_their_score_only(face_detector: faces.FaceDetector) -> None:
    assert best(face_detector.predict(picture("flower"), {}), "face")[1] == pytest.approx(0.555, abs=0.005)
    assert face_detector.predict(picture("flower"), {"confidence": 0.6}) == {}


def test_a_turned_picture_is_read_as_people_see_it(objects: open_images.ObjectDetector) -> None:
    upright = picture("coffee")
    exif = Image.Exif()
    exif[274] = 6  # turn a quarter clockwise to display
    turned = encoded(upright.transpose(Image.Transpose.ROTATE_90), exif=exif)
    assert read_picture(turned).size == upright.size
    assert objects.predict(read_picture(turned), {}) == objects.predict(upright, {})


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"not a picture",
        (PICTURES / "coffee.jpg").read_bytes()[:5000],
        encoded(Image.new("1", (MAX_SIDE + 1, 1))),
        encoded(Image.new("1", (9000, 8000))),
    ],
    ids=["empty", "text", "cut", "too long", "too large"],
)
def test_what_is_no_usable_picture_is_refused_as_such(content: bytes) -> None:
    with pytest.raises(PictureError):
        read_picture(content)


SAMPLES = [encoded(Image.new("RGB", (9, 7), "teal"), kind) for kind in ("JPEG", "PNG", "GIF", "BMP", "WEBP")]


@given(sample=st.sampled_from(SAMPLES), place=st.integers(0, 400), byte=st.integers(0, 255), cut=st.integers(0, 3))
@settings(max_examples=80, deadline=None)
def test_damaged_bytes_are_a_picture_or_a_picture_error(sample: bytes, place: int, byte: int, cut: int) -> None:
    damaged = bytearray(sample)
    damaged[place % len(damaged)] = byte
    try:
        assert read_picture(bytes(damaged[: len(damaged) - cut])).mode == "RGB"
    except PictureError as err:
        assert str(err)


@pytest.mark.parametrize("mode", ["L", "1", "P", "LA", "RGBA", "CMYK", "I;16"])
def test_pictures_of_any_mode_are_read_as_colour(mode: str) -> None:
    kind = "TIFF" if mode in ("CMYK", "I;16") else "PNG"
    assert read_picture(encoded(Image.new(mode, (4, 3)), kind)).mode == "RGB"


@pytest.mark.parametrize("value", [1.01, -0.1, float("nan"), float("inf"), "0.5", True, None, [0.5]])
def test_a_parameter_outside_its_range_is_refused_by_name(objects: open_images.ObjectDetector, value: object) -> None:
    with pytest.raises(ParameterError, match=r"inference_params\.confidence: expected a number from 0 to 1"):
        objects.predict(Image.new("RGB", (8, 8)), {"confidence": value})


@pytest.mark.parametrize("value", ["address", ["addres"], [["address"]], {}, None])
def test_a_task_that_does_not_exist_is_refused(analyst: texts.TextAnalyst, value: object) -> None:
    with pytest.raises(ParameterError, match=r"inference_params\.tasks: expected a list of language, sentiment"):
        analyst.predict("Hello there.", {"tasks": value})


def reviews() -> list[dict[str, str]]:
    return [json.loads(line) for line in (HOME / "texts/reviews.ndjson").read_text("utf-8").splitlines()]


def address_rows() -> list[dict[str, str]]:
    with (HOME / "texts/addresses.csv").open(encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))


def truth(name: str) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (HOME / "texts" / name).read_text("utf-8").splitlines()]


@pytest.mark.parametrize("row", reviews(), ids=lambda row: row["global_key"])
def test_reviews_are_answered_as_they_were_meant(analyst: texts.TextAnalyst, row: dict[str, str]) -> None:
    reply: Any = analyst.predict(row["row_data"], {"tasks": ["language", "sentiment"]})
    expected = {
        line["name"]: line["answer"]["name"]
        for line in truth("reviews_truth.ndjson")
        if line["dataRow"]["globalKey"] == row["global_key"]
    }
    assert {name: value["answer"] for name, value in reply.items()} == expected
    assert all(0 <= value["score"] <= 1 for value in reply.values())


def test_only_english_gets_a_sentiment(analyst: texts.TextAnalyst) -> None:
    assert "sentiment" in analyst.predict("What a lovely and happy morning it was.", {})
    assert "sentiment" not in analyst.predict("Was für ein schöner und glücklicher Morgen das war.", {})


@pytest.mark.parametrize("row", address_rows(), ids=lambda row: row["global_key"])
def test_addresses_are_found_to_the_character(analyst: texts.TextAnalyst, row: dict[str, str]) -> None:
    run = yaml.safe_load((HOME / "runs/addresses_entities.yaml").read_text("utf-8"))
    reply: Any = analyst.predict(row["row_data"], run["inference_params"])
    found = {
        (run["ontology_mapping"].get(feature, feature), item["start"], item["end"] - 1)
        for feature, items in reply.items()
        for item in items
    }
    assert found == {
        (line["name"], line["location"]["start"], line["location"]["end"])
        for line in truth("addresses_truth.ndjson")
        if line["dataRow"]["globalKey"] == row["global_key"]
    }


@pytest.mark.parametrize("prefix", ["", "😀 ", "é", "日本 ", "Order 66 left; "])
def test_entities_are_code_points_of_the_whole_text(analyst: texts.TextAnalyst, prefix: str) -> None:
    text = f"{prefix}It went to 12 A &amp; B Street, Reno, NV 89501."
    reply: Any = analyst.predict(text, {"tasks": ["address"]})
    items = [item for items in reply.values() for item in items]
    assert [text[item["start"] : item["end"]] for item in items] == [item["text"] for item in items]
    assert reply["zip_code"][0]["text"] == "89501"
    assert reply["city"][0]["start"] == text.index("Reno")


ADDRESS_LIKE = st.lists(
    st.sampled_from(
        [
            "12",
            "9B",
            " ",
            "\n",
            ", ",
            "Main St.",
            "&amp;",
            "&#38;",
            "#",
            "(",
            ")",
            "Apt 4",
            "NV",
            " 89501",
            "é😀",
            "-",
            "1st",
        ]
    )
).map("".join)


@given(text=st.text(max_size=60) | ADDRESS_LIKE | ADDRESS_LIKE.map(lambda middle: f"7 Elm {middle} NV 89501"))
@settings(max_examples=150, deadline=None)
def test_no_text_breaks_the_analyst_and_every_span_says_its_text(analyst: texts.TextAnalyst, text: str) -> None:
    reply: Any = analyst.predict(text, {})
    for feature in set(addresses.FEATURE_OF_LABEL.values()) & set(reply):
        for item in reply[feature]:
            assert item["text"] == text[item["start"] : item["end"]] != ""
            assert 0 <= item["score"] <= 1
    assert reply.get("summary", "") in text


def test_a_text_without_a_letter_has_no_answer(analyst: texts.TextAnalyst) -> None:
    assert analyst.predict("", {}) == analyst.predict(" 12 ... 😀", {}) == {}


def test_the_address_tagger_answers_the_same_from_several_threads(analyst: texts.TextAnalyst) -> None:
    rows = [row["row_data"] for row in address_rows()] * 10
    params = {"tasks": ["address"]}
    alone = [analyst.predict(text, params) for text in rows]
    interval = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)  # threads change places inside a call
    try:
        with ThreadPoolExecutor(4) as pool:
            together = list(pool.map(lambda text: analyst.predict(text, params), rows))
    finally:
        sys.setswitchinterval(interval)
    assert together == alone


def test_the_summary_is_the_sentence_that_the_text_keeps_coming_back_to() -> None:
    text = "It rained. The museum of glass has glass from every glass maker. We had lunch in a nice place."
    assert summarize(text) == "The museum of glass has glass from every glass maker."
    assert summarize("Only one sentence") == "Only one sentence"
    assert summarize(" ... ") is None


def manifests() -> dict[str, dict[str, Any]]:
    return {path.stem: yaml.safe_load(path.read_text("utf-8")) for path in sorted((HOME / "models").glob("*.yaml"))}


def test_the_manifests_name_every_feature_the_models_can_answer(objects: open_images.ObjectDetector) -> None:
    features = {
        name: [feature["name"] for key in ("tools", "classifications") for feature in manifest["ontology"][key]]
        for name, manifest in manifests().items()
    }
    assert features["objects"] == list(objects.classes)
    assert features["person_mask"] == [selfie.FEATURE]
    assert features["faces"] == [faces.FACE, *faces.POINTS]
    assert (features["moods"], features["chat"]) == (["mood"], ["reply"])
    assert set(features["texts"]) == {*addresses.FEATURE_OF_LABEL.values(), "language", "sentiment", "summary"}


def test_the_languages_of_the_manifest_are_those_of_the_model() -> None:
    language = manifests()["texts"]["ontology"]["classifications"][0]
    assert tuple(option["value"] for option in language["options"]) == texts.LANGUAGES


def test_the_manifests_defaults_are_the_models_own() -> None:
    defaults = {
        name: {key: value["default"] for key, value in manifest["inference_params_json_schema"]["properties"].items()}
        for name, manifest in manifests().items()
    }
    assert defaults == {
        "objects": {"confidence": open_images.CONFIDENCE, "overlap": open_images.OVERLAP},
        "person_mask": {"threshold": selfie.THRESHOLD},
        "faces": {"confidence": faces.CONFIDENCE, "overlap": faces.OVERLAP},
        "texts": {"tasks": list(texts.TASKS)},
        "moods": {},
        "chat": {},
    }


def test_every_run_names_a_model_and_a_dataset_and_fits_the_schema() -> None:
    datasets = {path.stem for path in (HOME / "datasets").glob("*.yaml")}
    for path in (HOME / "runs").glob("*.yaml"):
        run = yaml.safe_load(path.read_text("utf-8"))
        assert run["dataset"] in datasets
        jsonschema.validate(run["inference_params"], manifests()[run["model"]]["inference_params_json_schema"])


def test_the_truth_of_the_pictures_lists_each_of_them_with_its_size() -> None:
    drawn = json.loads((PICTURES / "truth.json").read_text("utf-8"))
    sizes = {image["file_name"]: (image["width"], image["height"]) for image in drawn["images"]}
    assert sizes == {path.name: read_picture(path.read_bytes()).size for path in PICTURES.glob("*.jpg")}


@pytest.mark.parametrize("folder", [PICTURES, WEIGHTS], ids=["pictures", "weights"])
def test_every_file_of_others_is_named_in_the_notice(folder: Path) -> None:
    notice = (folder / "NOTICE").read_text("utf-8")
    assert [path.name for path in folder.iterdir() if path.name != "NOTICE" and path.name not in notice] == []


def test_the_clip_is_small_and_shows_what_its_script_makes(objects: open_images.ObjectDetector) -> None:
    data = CLIP.read_bytes()
    assert len(data) < 200_000
    clip = Video(data, "video/mp4", VideoLimits(1_000_000, 100, 60.0))
    facts = clip.facts
    assert (facts.width, facts.height) == SIZE_WH
    assert (facts.frame_count, facts.frames_per_second) == (2 * FRAMES_A_PICTURE, FRAMES_PER_SECOND)
    for number, made in enumerate(frames()):
        seen = np.asarray(clip.picture(number), np.float32)
        assert np.abs(seen - np.asarray(made, np.float32)).mean() < 12, f"frame {number}"
    for number, feature in ((0, "Cat"), (FRAMES_A_PICTURE, "Coffee cup")):
        assert feature in objects.predict(clip.picture(number), {"confidence": 0.4})
    clip.close()


def test_the_speakers_words_are_turned_around() -> None:
    assert turned_around("my old lamp and I") == "your old lamp and you"
    assert answer_to("I need a cable for my lamp.", ()) == "Why do you need a cable for your lamp?"
    assert answer_to("Order 4711 is late", ()) == "Order 4711: I have it here. What happened to it?"
    assert answer_to("Hm.", OTHERWISE) == OTHERWISE[0]


@given(st.text(max_size=80), st.lists(st.text(max_size=20)))
def test_the_chat_always_has_something_to_say(text: str, said_before: list[str]) -> None:
    assert answer_to(text, said_before)
