"""Where Dagster finds the code location: the home folder that FOUNDRY_HOME names, or the demo's."""

import os

from assets.code_location import code_location
from foundry_pipeline.home import load_home
from resources import places_of

places = places_of(os.environ)
defs = code_location(load_home(places.home, os.environ), places)
