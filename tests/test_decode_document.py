"""The replies of Labelbox's "Custom model integration", verbatim (its comments and trailing commas are no JSON)."""

from __future__ import annotations

from pathlib import Path

from foundry_pipeline.ontology import Classification, FeatureKind, Ontology, Tool
from tests.decoding import decode, ontology, options, rejected, text, values

FIXTURES = Path(__file__).parent / "fixtures"
SUMMARY = "Tom and Bob are happy to work at IBM"


def reply(name: str) -> str:
    return (FIXTURES / f"reply_{name}.json").read_text()


def tools(kind: FeatureKind, *names: str) -> Ontology:
    return ontology(*(Tool(name, kind) for name in names))


def test_object_detection() -> None:
    tables = decode(reply("object_detection"), tools(FeatureKind.RECTANGLE, "cat", "dog"), size_wh=(64, 48))
    assert list(tables) == ["boxes", "rejects"]
    assert values(tables["boxes"], "feature", "index", "score", "left", "top", "width", "height") == [
        ("cat", 0, 0.9, 0, 0, 10, 10),
        ("cat", 1, 0.7, 40, 40, 8, 10),
        ("dog", 0, 0.8, 20, 20, 5, 5),
    ]
    assert (
        values(tables["boxes"], "image_width", "image_height", "run", "model", "dataset", "global_key", "call_id")
        == [(64, 48, "run", "model", "dataset", "row", "call")] * 3
    )
    assert tables["rejects"] == []


def test_classification() -> None:
    known = ontology(
        text("summary"),
        Classification("sentiment", FeatureKind.RADIO, "sentiment", options("negative", "positive")),
        Classification("emotion", FeatureKind.CHECKLIST, "emotion", options("anger", "fear", "joy")),
    )
    tables = decode(reply("classification"), known, media_type="text", text=SUMMARY)
    assert values(tables["texts"], "feature", "answer", "parent_id") == [("summary", SUMMARY, None)]
    assert values(tables["classifications"], "feature", "index", "kind", "answer", "score") == [
        ("sentiment", 0, "radio", "positive", None),
        ("emotion", 0, "checklist", "joy", None),
        ("emotion", 1, "checklist", "fear", None),
    ]
    assert tables["rejects"] == []


def test_segmentation() -> None:
    tables = decode(reply("segmentation"), tools(FeatureKind.MASK, "cat"), size_wh=(8, 6))
    assert values(tables["masks"], "size_h", "size_w", "counts", "area", "left", "top", "width", "height", "score") == [
        (6, 8, "=3300000;", 12, 2, 1, 4, 3, None)
    ]
    assert tables["rejects"] == []


def test_named_entity_with_the_documents_own_mistake() -> None:
    """Bob is at 8..11, the document says 5..8."""
    tables = decode(reply("named_entity"), tools(FeatureKind.ENTITY, "person"), media_type="text", text=SUMMARY)
    assert values(tables["entities"], "feature", "index", "start", "end", "text", "anchor") == [
        ("person", 0, 0, 3, "Tom", "exact"),
        ("person", 1, 8, 11, "Bob", "moved"),
    ]
    assert tables["rejects"] == []


def test_a_string_with_the_raw_answer() -> None:
    known = ontology(text("answer"))
    assert values(decode('"=== Two people."', known)["texts"], "feature", "answer") == [("answer", "=== Two people.")]
    assert values(decode("=== Two people.", known)["texts"], "feature", "answer") == [("answer", "=== Two people.")]


def test_F058_the_documents_comments_and_trailing_commas_are_no_json() -> None:
    body = '// Object Detection\n{"cat": {"boxes": [[0, 0, 10, 10],]}}'
    tables = decode(body, tools(FeatureKind.RECTANGLE, "cat"))
    assert rejected(tables) == [("$", "unexpected_text")]
    tables = decode('{"cat": {"boxes": [[0, 0, 10, 10],]}}', tools(FeatureKind.RECTANGLE, "cat"))
    assert rejected(tables) == [("$", "not_json")]
    assert "character" in tables["rejects"][0]["message"]
