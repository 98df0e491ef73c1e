"""Inference parameters: the manifest's JSON Schema checked, its defaults filled in, a run's values validated.

The dialect is JSON Schema Draft 2020-12, cut down to keywords that cannot fetch, loop or take exponential time:
a manifest may come from anywhere. Source: Labelbox "Custom model integration", `inference_params_json_schema`.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any
from urllib.parse import unquote

from jsonschema import Draft202012Validator
from jsonschema.exceptions import ValidationError
from referencing import Registry

from foundry_pipeline.config.fields import near
from foundry_pipeline.config.yaml_source import MAX_DEPTH, path_below
from foundry_pipeline.errors import ConfigError, Problem, shown

if TYPE_CHECKING:
    from foundry_pipeline.manifest import Manifest

MAX_SCHEMA_STEPS = 24
"""Steps from the top to the innermost schema; `properties` and a name are two. jsonschema recurses over them."""

MAX_REFS = 8
"""Steps from one `$ref` to the next until a schema without."""

# `pattern` and `format: regex` run a backtracking engine; anyOf and its kin multiply along a `$ref`; `$id`, `$anchor`
# and `$dynamicRef` change what a `$ref` means.
KEYWORDS = frozenset(
    {"type", "enum", "const", "minimum", "maximum", "exclusiveMinimum", "exclusiveMaximum", "multipleOf"}
    | {"minLength", "maxLength", "minItems", "maxItems", "items", "properties", "required", "additionalProperties"}
    | {"default", "description", "title", "examples", "format", "deprecated"}
    | {"$ref", "$defs", "definitions", "$comment", "$schema"}
)
_NAMED_SCHEMAS = ("properties", "$defs", "definitions")
_SCHEMAS = ("items", "additionalProperties")

Path = tuple[str | int, ...]
Schema = Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class Fault:
    """One thing wrong in a schema or in parameters; `path` is relative to them."""

    path: Path
    message: str


def complete_params(manifest: Manifest, given: Mapping[str, object]) -> dict[str, object]:
    """`given` with the schema's defaults filled in, valid under the schema.

    Raises ConfigError with every problem, at `$.inference_params...` of the manifest's file.
    """
    params, faults = completed(manifest.params_schema, given)
    if faults:
        raise ConfigError(
            Problem(manifest.file, fault.message, params_path("$.inference_params", fault.path)) for fault in faults
        )
    return params


def params_path(start: str, path: Path) -> str:
    """`$.inference_params.size[1]` from its start and its steps."""
    for step in path:
        start = path_below(start, step)
    return start


def completed(schema: Schema, given: Mapping[str, object]) -> tuple[dict[str, object], list[Fault]]:
    """(parameters with defaults filled in, what is wrong with them). `schema` has no faults of its own.

    A parameter that the schema does not name is a fault unless it says `additionalProperties`: it is a typing error
    far more often than an extension.
    """
    if fault := _not_json(given, ()):
        return {}, [fault]
    filled = _with_defaults(schema, schema, given)
    faults = list(_unknown(schema, given))
    for error in _validator(schema).iter_errors(filled):
        faults += (fault for fault in _faults_of(error) if fault not in faults)
    return filled, faults


def schema_faults(schema: Schema) -> list[Fault]:
    """What makes the schema unusable: keywords not allowed, unresolvable or circular `$ref`, depth, bad defaults."""
    found = list(_subschemas(schema, ()))
    faults = [fault for path, sub in found for fault in _keyword_faults(path, sub)]
    faults += _ref_faults(dict(found))
    if any(len(path) > MAX_SCHEMA_STEPS for path, _ in found):
        return [*faults, Fault((), f"schemas are nested deeper than {MAX_SCHEMA_STEPS} steps")]
    meta = Draft202012Validator(Draft202012Validator.META_SCHEMA)
    faults += (Fault(tuple(error.absolute_path), _message(error)) for error in meta.iter_errors(schema))
    if schema.get("type", "object") != "object":
        faults.append(Fault(("type",), "inference parameters are an object: expected `type: object`, or no type"))
    return faults or [fault for path, sub in found for fault in _default_faults(schema, path, sub)]


def _subschemas(schema: object, path: Path) -> Iterator[tuple[Path, Schema]]:
    """The schema and all inside it, outermost first. Stops a little below the depth that is refused."""
    if not isinstance(schema, Mapping) or len(path) > MAX_SCHEMA_STEPS + 2:
        return
    yield path, schema
    for keyword in _SCHEMAS:
        yield from _subschemas(schema.get(keyword), (*path, keyword))
    for keyword in _NAMED_SCHEMAS:
        named = schema.get(keyword)
        for name, sub in named.items() if isinstance(named, Mapping) else ():
            yield from _subschemas(sub, (*path, keyword, name))


def _keyword_faults(path: Path, schema: Schema) -> Iterator[Fault]:
    for keyword in schema:
        if keyword == "$schema" and path:
            yield Fault((*path, keyword), "$schema may only stand at the top")
        elif keyword == "anyOf":
            yield Fault((*path, keyword), "anyOf is not supported here; several types are `type: [number, 'null']`")
        elif keyword not in KEYWORDS:
            yield Fault(
                (*path, keyword), f"the keyword {shown(keyword)} is not supported here{near(keyword, KEYWORDS)}"
            )
    if schema.get("format") == "regex":
        yield Fault((*path, "format"), "format: regex is not supported here")


def _ref_faults(schemas: Mapping[Path, Schema]) -> Iterator[Fault]:
    """A `$ref` must lead to a schema of this file, over few others to one without `$ref`.

    What it leads to must be a place for a schema: the keywords of a `default` or `enum` have not been checked.
    """
    for path, schema in schemas.items():
        if "$ref" not in schema:
            continue
        ref, target, passed = schema["$ref"], schemas.get(_pointer(schema["$ref"])), 1
        while target is not None and "$ref" in target and passed <= MAX_REFS:
            target, passed = schemas.get(_pointer(target["$ref"])), passed + 1
        if not isinstance(ref, str) or not ref.startswith("#"):
            yield Fault((*path, "$ref"), f"a $ref may only lead into this schema (`#/$defs/...`); got {shown(ref)}")
        elif target is None:
            yield Fault((*path, "$ref"), f"$ref leads to no schema of this file: {shown(ref)}")
        elif passed > MAX_REFS:
            yield Fault(
                (*path, "$ref"), f"$ref leads back to itself, or over more than {MAX_REFS} others: {shown(ref)}"
            )


def _pointer(ref: object) -> Path:
    """The steps of `#/a/b`; ("",), which is no schema's path, for anything else."""
    if ref == "#":
        return ()
    if not isinstance(ref, str) or not ref.startswith("#/"):
        return ("",)
    return tuple(unquote(step).replace("~1", "/").replace("~0", "~") for step in ref[2:].split("/"))


def _default_faults(root: Schema, path: Path, schema: Schema) -> Iterator[Fault]:
    if "default" not in schema:
        return
    if fault := _not_json(schema["default"], ()):
        yield Fault((*path, "default", *fault.path), fault.message)
        return
    for error in _validator(root).descend(schema["default"], schema):
        yield Fault((*path, "default", *error.absolute_path), f"the default breaks its own schema: {_message(error)}")


def _validator(schema: Schema) -> Draft202012Validator:
    """An empty registry: jsonschema would otherwise fetch a remote `$ref`."""
    own = {keyword: value for keyword, value in schema.items() if keyword != "$schema"}
    return Draft202012Validator(own, registry=Registry())


def _with_defaults(root: Schema, schema: object, given: Mapping[str, object]) -> dict[str, object]:
    """A copy of `given` with defaults, also inside the objects that it holds; a default itself is taken as it is."""
    filled: dict[str, object] = copy.deepcopy(dict(given))
    for name, sub in _properties(root, schema).items():
        value = filled.get(name)
        if name in filled and isinstance(value, Mapping):
            filled[name] = _with_defaults(root, sub, value)
        elif name not in filled and (default := _default(root, sub)) is not None:
            filled[name] = copy.deepcopy(default[0])
    return filled


def _properties(root: Schema, schema: object) -> Schema:
    found: dict[str, Any] = {}
    for one in _along_refs(root, schema):
        found = {**one.get("properties", {}), **found}
    return found


def _default(root: Schema, schema: object) -> tuple[object] | None:
    """The default in a tuple, since it may be None; the schema's own wins over that of its `$ref`."""
    return next(((one["default"],) for one in _along_refs(root, schema) if "default" in one), None)


def _along_refs(root: Schema, schema: object) -> Iterator[Schema]:
    """The schema, then what its `$ref` leads to, and so on; `_ref_faults` has seen that this ends."""
    while isinstance(schema, Mapping):
        yield schema
        if "$ref" not in schema:
            return
        target: Any = root
        for step in _pointer(schema["$ref"]):
            target = target[step]
        schema = target


def _unknown(schema: Schema, given: Mapping[str, object]) -> Iterator[Fault]:
    named = _properties(schema, schema)
    if not named or any("additionalProperties" in one for one in _along_refs(schema, schema)):
        return
    known = [*named, *schema.get("required", ())]
    for name in given:
        if name not in known:
            yield Fault((name,), f"the model has no parameter {shown(name)}{near(name, known)}")


def _faults_of(error: ValidationError) -> Iterator[Fault]:
    path = tuple(error.absolute_path)
    if error.validator != "required":
        yield Fault(path, _message(error))
        return
    required: Any = error.validator_value
    present: Any = error.instance
    for name in required:
        if name not in present:
            yield Fault((*path, name), f"the model requires a value for {name!r}, and its schema has no default")


def _message(error: ValidationError) -> str:
    """jsonschema's own message, which starts with the value; a long value is cut, the rule is kept."""
    value = repr(error.instance)
    rule = error.message.removeprefix(value)
    return f"{shown(error.instance)}{rule[:300]}" if rule != error.message else error.message[:300]


def _not_json(value: object, path: Path) -> Fault | None:
    """The first place where the value is not what JSON can hold, or is nested too deep to be checked safely."""
    if len(path) > MAX_DEPTH:
        return Fault((), f"is nested deeper than {MAX_DEPTH} levels")
    if isinstance(value, Mapping):
        if not all(isinstance(key, str) for key in value):
            return Fault(path, "expected text as keys")
        children: Iterator[tuple[str | int, object]] = iter(value.items())
    elif isinstance(value, list):
        children = iter(enumerate(value))
    elif isinstance(value, float) and not math.isfinite(value):
        return Fault(path, f"expected a finite number; got {value}")
    elif value is not None and not isinstance(value, str | int | float):
        return Fault(path, f"{type(value).__name__} is not a JSON type")
    else:
        return None
    return next((fault for step, child in children if (fault := _not_json(child, (*path, step)))), None)
