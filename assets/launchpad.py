"""A run's parameters as Dagster config, from the manifest's JSON Schema: the launchpad shows and checks them.

Dagster checks types, choices and names while a person types. It knows no bounds: they stand in the description, and
are checked before the first call.
"""

import json
import re
from collections.abc import Mapping
from typing import Any

import dagster as dg

from foundry_pipeline.home import Run

_SCALARS: Mapping[str, type] = {"number": float, "integer": int, "boolean": bool, "string": str}
_BOUNDS = (
    "minimum", "maximum", "exclusiveMinimum", "exclusiveMaximum", "multipleOf",
    "minLength", "maxLength", "minItems", "maxItems", "enum", "format",
)  # fmt: skip


def params_field(run: Run) -> dg.Field:
    """The field `inference_params`: every parameter of the run, with its value there as default. None is required."""
    properties = run.model.params_schema.get("properties")
    properties = properties if isinstance(properties, Mapping) else {}
    names = [*properties, *(name for name in run.inference_params if name not in properties)]
    fields = {name: _field(run, name, properties.get(name, {})) for name in names}
    return dg.Field(fields, description=f"To try values out; what is good goes into {run.file}.")


def _field(run: Run, name: str, schema: Mapping[str, Any]) -> dg.Field:
    description = _description(schema)
    kind = _kind(schema, f"{run.name}__{re.sub(r'[^A-Za-z0-9_]', '_', name)}")
    if name not in run.inference_params:
        return dg.Field(kind, is_required=False, description=description)
    return dg.Field(kind, default_value=run.inference_params[name], description=description)


def _kind(schema: Mapping[str, Any], enum_name: str) -> Any:
    """Dagster's type for values of this schema; Any where it has none."""
    choices, kind = schema.get("enum"), schema.get("type")
    if isinstance(choices, list) and choices and all(isinstance(choice, str) for choice in choices):
        return dg.Enum(enum_name, [dg.EnumValue(choice) for choice in choices])
    if isinstance(kind, list) and len(kind) == 2 and "null" in kind:
        [other] = [name for name in kind if name != "null"]
        return dg.Noneable(_kind({**schema, "type": other}, enum_name))
    if kind == "array":
        items = schema.get("items")
        return dg.Array(_kind(items, f"{enum_name}_items") if isinstance(items, Mapping) else dg.Any)
    if kind == "object":
        return dict
    return _SCALARS.get(kind, dg.Any) if isinstance(kind, str) else dg.Any


def _description(schema: Mapping[str, Any]) -> str:
    words = [str(schema[key]) for key in ("title", "description") if schema.get(key)]
    bounds = [f"{key}: {json.dumps(schema[key], ensure_ascii=False)}" for key in _BOUNDS if key in schema]
    return ". ".join([*words, ", ".join(bounds)] if bounds else words)
