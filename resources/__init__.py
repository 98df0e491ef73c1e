"""Dagster resources: configuration -> domain objects, opened and closed per run."""

from __future__ import annotations

from resources.contents import Contents, ContentsResource
from resources.home import HomeResource
from resources.listener import Listener
from resources.model_calls import ModelCalls, ModelCallsResource
from resources.places import CHECKOUT, DEMO_HOME, Places, places_of
from resources.warehouse import WarehouseResource

__all__ = [
    "CHECKOUT",
    "DEMO_HOME",
    "Contents",
    "ContentsResource",
    "HomeResource",
    "Listener",
    "ModelCalls",
    "ModelCallsResource",
    "Places",
    "WarehouseResource",
    "places_of",
]
