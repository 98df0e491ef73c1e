"""Inference parameters of the demo models: read with their default, or refused with a message."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from math import isfinite

Params = Mapping[str, object]


class ParameterError(ValueError):
    """A parameter has the wrong type or is out of its range; the message names it and what was expected."""


def share(params: Params, name: str, default: float) -> float:
    """A number from 0 to 1, both included."""
    value = params.get(name, default)
    if isinstance(value, bool) or not isinstance(value, int | float) or not isfinite(value) or not 0 <= value <= 1:
        raise ParameterError(f"inference_params.{name}: expected a number from 0 to 1")
    return float(value)


def chosen(params: Params, name: str, options: Sequence[str]) -> frozenset[str]:
    """Some of `options`; all of them where the parameter is absent."""
    value = params.get(name, list(options))
    if not isinstance(value, list) or not all(isinstance(item, str) and item in options for item in value):
        raise ParameterError(f"inference_params.{name}: expected a list of {', '.join(options)}")
    return frozenset(value)
