"""Inference parameters: defaults, validation, and schemas that must not fetch, loop or burn time."""

import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from foundry_pipeline.config.params import complete_params, completed, schema_faults
from foundry_pipeline.errors import ConfigError
from foundry_pipeline.manifest import Manifest

SCHEMA: dict[str, Any] = {
    "properties": {
        "prompt": {"type": "string", "default": ""},
        "confidence": {"type": "number", "default": 0.25, "minimum": 0.0, "maximum": 1.0},
        "steps": {"type": "integer"},
        "flip": {"type": "boolean", "default": False},
    },
    "required": ["prompt", "steps"],
}


def manifest(schema: dict[str, Any]) -> Manifest:
    return Manifest("m", "m", "m.yaml", "http://h/x", 1.0, params_schema=schema)


def faults(schema: dict[str, Any]) -> list[tuple[tuple[str | int, ...], str]]:
    return [(fault.path, fault.message) for fault in schema_faults(schema)]


def test_defaults_are_filled_in_also_for_required_parameters():
    expected = {"prompt": "", "confidence": 0.25, "steps": 3, "flip": False}
    assert complete_params(manifest(SCHEMA), {"steps": 3}) == expected


def test_a_given_value_wins_over_the_default():
    assert complete_params(manifest(SCHEMA), {"steps": 3, "flip": True})["flip"] is True


def test_F080_a_required_parameter_without_default_and_value_is_a_problem():
    with pytest.raises(ConfigError) as caught:
        complete_params(manifest(SCHEMA), {})
    (problem,) = caught.value.problems
    assert (problem.file, problem.path) == ("m.yaml", "$.inference_params.steps")
    assert "requires a value for 'steps'" in problem.message


def test_F080_all_problems_come_at_once_with_their_paths():
    with pytest.raises(ConfigError) as caught:
        complete_params(manifest(SCHEMA), {"confidence": 2, "flip": "no", "promt": "x"})
    found = {problem.path: problem.message for problem in caught.value.problems}
    assert set(found) == {f"$.inference_params.{name}" for name in ("confidence", "flip", "promt", "steps")}
    assert found["$.inference_params.confidence"] == "2 is greater than the maximum of 1.0"
    assert "did you mean 'prompt'" in found["$.inference_params.promt"]


def test_other_parameters_pass_where_the_schema_says_so_or_there_is_none():
    assert complete_params(manifest({}), {"anything": 1}) == {"anything": 1}
    open_schema = {**SCHEMA, "additionalProperties": True}
    assert complete_params(manifest(open_schema), {"steps": 1, "more": 2})["more"] == 2


def test_a_required_parameter_that_the_schema_does_not_describe_may_be_given():
    schema = {"properties": {"a": {}}, "required": ["b"]}
    assert complete_params(manifest(schema), {"b": 1}) == {"b": 1}


def test_a_long_value_is_cut_in_the_message_and_the_rule_is_kept():
    _, (fault,) = completed(SCHEMA, {"steps": "x" * 100_000})
    assert len(fault.message) < 200
    assert fault.message.endswith("is not of type 'integer'")


def test_defaults_are_filled_in_inside_a_given_object_and_through_a_reference():
    size = {"type": "object", "properties": {"w": {"default": 1}, "h": {"default": 2}}}
    schema = {"properties": {"size": {"$ref": "#/$defs/size"}}, "$defs": {"size": size}}
    assert schema_faults(schema) == []
    assert completed(schema, {"size": {"w": 5}}) == ({"size": {"w": 5, "h": 2}}, [])
    assert completed(schema, {}) == ({}, [])
    own = {"properties": {"size": {"$ref": "#/$defs/size", "default": {"w": 0}}}, "$defs": {"size": size}}
    assert completed(own, {}) == ({"size": {"w": 0}}, [])


def test_a_default_is_never_shared_between_calls():
    schema = {"properties": {"tags": {"default": []}}}
    first, _ = completed(schema, {})
    first["tags"].append("x")  # type: ignore[attr-defined]
    assert completed(schema, {}) == ({"tags": []}, [])


def test_a_default_of_null_is_a_default():
    schema = {"properties": {"a": {"default": None, "type": ["number", "null"]}}}
    assert schema_faults(schema) == []
    assert completed(schema, {}) == ({"a": None}, [])


@pytest.mark.parametrize(
    ("schema", "path"),
    [
        ({"properties": {"a": {"type": "number", "default": "x"}}}, ("properties", "a", "default")),
        ({"properties": {"a": {"maximum": 1, "default": 2}}}, ("properties", "a", "default")),
        (
            {"properties": {"a": {"$ref": "#/$defs/n", "default": 2}}, "$defs": {"n": {"maximum": 1}}},
            ("properties", "a", "default"),
        ),
        (
            {"properties": {"a": {"default": [1, "x"], "items": {"type": "integer"}}}},
            ("properties", "a", "default", 1),
        ),
        (
            {"properties": {"a": {"properties": {"b": {"minLength": 1, "default": ""}}}}},
            ("properties", "a", "properties", "b", "default"),
        ),
    ],
)
def test_a_default_that_breaks_its_own_schema_is_found_in_the_schema(schema: dict[str, Any], path: tuple[Any, ...]):
    ((found, message),) = faults(schema)
    assert found == path
    assert "breaks its own schema" in message


@pytest.mark.parametrize(
    ("schema", "path", "says"),
    [
        ({"properties": {"a": {"pattern": "^(a+)+$"}}}, ("properties", "a", "pattern"), "not supported"),
        ({"properties": {"a": {"format": "regex"}}}, ("properties", "a", "format"), "not supported"),
        ({"patternProperties": {"(a+)+$": {}}}, ("patternProperties",), "not supported"),
        ({"properties": {"a": {"anyOf": [{}]}}}, ("properties", "a", "anyOf"), "type: [number, 'null']"),
        ({"properties": {"a": {"defualt": 1}}}, ("properties", "a", "defualt"), "did you mean 'default'"),
        ({"properties": {"a": {"$ref": "http://127.0.0.1:1/x"}}}, ("properties", "a", "$ref"), "into this schema"),
        ({"properties": {"a": {"$ref": "file:///etc/passwd"}}}, ("properties", "a", "$ref"), "into this schema"),
        ({"properties": {"a": {"$ref": "other.json#/a"}}}, ("properties", "a", "$ref"), "into this schema"),
        ({"properties": {"a": {"$ref": 5}}}, ("properties", "a", "$ref"), "into this schema"),
        ({"properties": {"a": {"$ref": "#/$defs/none"}}}, ("properties", "a", "$ref"), "leads to no schema"),
        ({"properties": {"a": {"$ref": "#/properties/a"}}}, ("properties", "a", "$ref"), "back to itself"),
        ({"$ref": "#"}, ("$ref",), "back to itself"),
        ({"$id": "http://h/"}, ("$id",), "not supported"),
        ({"properties": {"a": {"$schema": "http://h/"}}}, ("properties", "a", "$schema"), "at the top"),
        ({"type": "array"}, ("type",), "object"),
        ({"properties": {"a": {"type": "nmuber"}}}, ("properties", "a", "type"), "'nmuber'"),
        ({"properties": {"required": ["a"]}}, ("properties", "required"), "object"),
        ({"required": "a"}, ("required",), "array"),
        ({"properties": {"a": {"multipleOf": 0}}}, ("properties", "a", "multipleOf"), "0"),
    ],
)
def test_a_schema_that_is_wrong_or_dangerous_is_refused_at_its_place(
    schema: dict[str, Any], path: tuple[Any, ...], says: str
):
    found = faults(schema)
    assert any(place == path and says in message for place, message in found), found


def test_a_reference_may_not_lead_into_values_whose_keywords_nobody_checked():
    schema = {"properties": {"a": {"default": {"pattern": "^(a+)+$"}}, "b": {"$ref": "#/properties/a/default"}}}
    ((path, message),) = faults(schema)
    assert path == ("properties", "b", "$ref")
    assert "leads to no schema" in message


def test_two_references_that_lead_to_each_other_are_both_refused():
    schema = {"$defs": {"a": {"$ref": "#/$defs/b"}, "b": {"$ref": "#/$defs/a"}}}
    assert {path for path, _ in faults(schema)} == {("$defs", "a", "$ref"), ("$defs", "b", "$ref")}


def test_a_recursive_schema_ends_with_the_value():
    schema = {"properties": {"child": {"$ref": "#"}, "n": {"type": "integer", "default": 0}}}
    assert schema_faults(schema) == []
    assert completed(schema, {"child": {"child": {}}}) == ({"child": {"child": {"n": 0}, "n": 0}, "n": 0}, [])


@pytest.mark.parametrize("depth", [30, 5000])
def test_schemas_and_values_that_are_too_deep_are_refused(depth: int):
    schema: dict[str, Any] = {}
    value: dict[str, Any] = {}
    for _ in range(depth):
        schema = {"properties": {"a": schema}}
        value = {"a": value, "b": 1}
    assert any("deeper" in message for _, message in faults(schema))
    if depth > 32:
        _, (fault,) = completed({"properties": {"a": {"$ref": "#"}}}, value)
        assert "deeper" in fault.message


@pytest.mark.parametrize("value", [float("nan"), float("inf"), {1: 2}, (1, 2), b"x", object()])
def test_what_json_cannot_hold_is_refused(value: object):
    _, (fault,) = completed({}, {"a": [value]})
    assert fault.path == ("a", 0)


class _Counting(BaseHTTPRequestHandler):
    hits = 0

    def do_GET(self) -> None:
        type(self).hits += 1
        self.send_response(404)
        self.end_headers()

    def log_message(self, format: str, *args: object) -> None:  # noqa: A002
        pass


@pytest.fixture
def server() -> Iterator[str]:
    _Counting.hits = 0
    with HTTPServer(("127.0.0.1", 0), _Counting) as http:
        thread = threading.Thread(target=http.serve_forever, args=(0.01,))
        thread.start()
        yield f"http://127.0.0.1:{http.server_port}/schema.json"
        http.shutdown()
        thread.join()


def test_no_reference_and_no_dialect_is_ever_fetched(server: str):
    schema = {"$schema": server, "properties": {"a": {"$ref": server, "default": 1}, "b": {"$ref": f"{server}#/x"}}}
    assert schema_faults(schema)
    completed({"$schema": server, "properties": {"a": {"default": 1}}}, {})
    assert _Counting.hits == 0


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(
            st.sampled_from(
                ["properties", "items", "default", "type", "$ref", "required", "a", "enum", "minimum", "$defs", "const"]
            ),
            inner | st.sampled_from(["number", "object", "#", "#/properties/a", "#/$defs/a", "integer", 0, 1e-300]),
            max_size=4,
        )
    ),
    max_leaves=20,
)


@settings(deadline=None, max_examples=300)
@given(st.dictionaries(st.sampled_from(["properties", "$defs", "required", "items", "type", "$ref"]), JSON, max_size=4))
def test_any_schema_is_judged_without_a_foreign_exception_and_a_sound_one_completes_anything(schema: dict[str, Any]):
    if not schema_faults(schema):
        for value in ({}, {"a": 1}, {"a": {"a": []}}, {"a": "x"}):
            filled, found = completed(schema, value)
            assert found or completed(schema, filled) == (filled, [])
