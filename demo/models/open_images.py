"""SSD-MobileNetV2 on Open Images v4: 23 everyday classes, a box and a score each.

Weights, their origin and licence: `demo/weights/NOTICE`.
"""

from __future__ import annotations

from math import ceil, sqrt

import numpy as np
from PIL import Image

from demo.models.boxes import Floats, sigmoid, suppress, to_ltwh
from demo.models.params import Params, share
from demo.models.pictures import resized
from demo.models.sessions import WEIGHTS, open_weights

SIDE = 300
STRIDES = (16, 32, 64, 128, 256, 512)
SMALLEST_SCALE, LARGEST_SCALE = 0.2, 0.95
BOX_CODER = (10.0, 10.0, 5.0, 5.0)
"""What the model multiplied its offsets by in training: y, x, height, width."""
CONFIDENCE, OVERLAP = 0.25, 0.5


def read_classes() -> tuple[str, ...]:
    """The class names in the order of the model's logits, from 1: 0 is the background and left out."""
    return tuple((WEIGHTS / "oidv4_labelmap.txt").read_text("utf-8").split("\n")[1:24])


def anchors() -> Floats:
    """(1917, 4): centre y, centre x, height, width of every anchor, in shares of the picture's sides.

    Six layers of cells, row by row; three anchors a cell on the first layer, six on the others.
    """
    cells = []
    for layer, stride in enumerate(STRIDES):
        count = ceil(SIDE / stride)
        centres = [(i + 0.5) / count for i in range(count)]
        shapes = _anchor_shapes(layer)
        cells += [(y, x, height, width) for y in centres for x in centres for height, width in shapes]
    return np.array(cells)


def _anchor_shapes(layer: int) -> list[tuple[float, float]]:
    """Height and width of a cell's anchors. The last one is a square halfway to the next layer's scale."""
    steps = np.linspace(SMALLEST_SCALE, LARGEST_SCALE, len(STRIDES))
    scale, following = (*steps, 1.0)[layer : layer + 2]
    if layer == 0:
        shapes = [(0.1, 1.0), (scale, 2.0), (scale, 0.5)]
    else:
        shapes = [(scale, ratio) for ratio in (1.0, 2.0, 1 / 2, 3.0, 1 / 3)] + [(sqrt(scale * following), 1.0)]
    return [(size / sqrt(ratio), size * sqrt(ratio)) for size, ratio in shapes]


class ObjectDetector:
    """Finds objects of 23 classes. Safe to call from several threads."""

    def __init__(self) -> None:
        self._session = open_weights("oidv4.onnx")
        self._anchors = anchors()
        self.classes = read_classes()

    def predict(self, picture: Image.Image, params: Params) -> dict[str, object]:
        """The document's reply: class -> boxes (left, top, width, height) and scores, best first.

        Pixels of `picture`. Parameters: `confidence`, the least score; `overlap`, the IoU above which the weaker of
        two boxes of one class is dropped. Boxes are not clipped: the model may see an object go on past the edge.
        """
        least, overlap = share(params, "confidence", CONFIDENCE), share(params, "overlap", OVERLAP)
        boxes, scores = self._run(picture)
        reply: dict[str, object] = {}
        for place, name in enumerate(self.classes):
            sure = np.flatnonzero(scores[:, place] >= least)
            kept = sure[suppress(boxes[sure], scores[sure, place], overlap)]
            if kept.size:
                reply[name] = {
                    "boxes": [to_ltwh(box) for box in boxes[kept]],
                    "scores": [round(float(score), 4) for score in scores[kept, place]],
                }
        return reply

    def _run(self, picture: Image.Image) -> tuple[Floats, Floats]:
        """Every anchor's box (1917, 4), left, top, right, bottom in pixels, and its class scores (1917, 23)."""
        pixels = resized(picture, SIDE, SIDE)[np.newaxis] / 127.5 - 1.0
        encodings, logits = self._session.run(None, {"normalized_input_image_tensor": pixels})
        boxes = _decode(encodings[0].astype(np.float64), self._anchors) * [*picture.size, *picture.size]
        return boxes, sigmoid(logits[0, :, 1:].astype(np.float64))


def _decode(encodings: Floats, anchor: Floats) -> Floats:
    """(n, 4) offsets against anchors -> left, top, right, bottom in shares of the picture's sides."""
    y, x, height, width = (encodings / BOX_CODER).T
    centre_y, centre_x = y * anchor[:, 2] + anchor[:, 0], x * anchor[:, 3] + anchor[:, 1]
    half_height, half_width = np.exp(height) * anchor[:, 2] / 2, np.exp(width) * anchor[:, 3] / 2
    return np.stack(
        [centre_x - half_width, centre_y - half_height, centre_x + half_width, centre_y + half_height], axis=1
    )
