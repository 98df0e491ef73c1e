"""MediaPipe selfie segmentation: one mask, the person in front of the camera.

Weights, their origin and licence: `demo/weights/NOTICE`.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from pycocotools import mask as coco

from demo.models.params import Params, share
from demo.models.pictures import Pixels, resized
from demo.models.sessions import open_weights

SIDE = 256
FEATURE = "person"
THRESHOLD = 0.5


class PersonSegmenter:
    """Tells a person's pixels from the others. Safe to call from several threads."""

    def __init__(self) -> None:
        self._session = open_weights("selfie.onnx")

    def predict(self, picture: Image.Image, params: Params) -> dict[str, object]:
        """The document's reply: `person` -> one mask of the picture's size, run-length encoded by pycocotools.

        Parameter: `threshold`, the probability above which a pixel is the person. The score is the mean probability
        of the mask's pixels. No pixel above the threshold: nothing found.
        """
        threshold = share(params, "threshold", THRESHOLD)
        probability = self.probability(picture)
        person = probability > threshold
        if not person.any():
            return {}
        score = min(float(probability[person].mean(dtype=np.float64)), 1.0)
        return {FEATURE: {"masks": [encode(person)], "scores": [round(score, 4)]}}

    def probability(self, picture: Image.Image) -> Pixels:
        """(height, width) of the picture: how sure the model is that a pixel is the person, 0 to 1."""
        pixels = resized(picture, SIDE, SIDE)[np.newaxis] / 255.0
        (output,) = self._session.run(None, {"input_1:0": pixels})
        small = Image.fromarray(output[0, :, :, 0])
        return np.asarray(small.resize(picture.size, Image.Resampling.BILINEAR))


def encode(mask: NDArray[np.bool_]) -> dict[str, object]:
    """A (height, width) mask as the document's `{"size": [height, width], "counts": ...}`, compressed COCO runs."""
    encoded = coco.encode(np.asfortranarray(mask, dtype=np.uint8))
    return {"size": [int(side) for side in encoded["size"]], "counts": encoded["counts"].decode("ascii")}
