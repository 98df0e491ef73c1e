"""BlazeFace, short range: faces within two metres or so, each a box and six points.

Weights, their origin and licence: `demo/weights/NOTICE`.
"""

from __future__ import annotations

import numpy as np
from PIL import Image

from demo.models.boxes import Floats, sigmoid, suppress, to_ltwh
from demo.models.params import Params, share
from demo.models.pictures import letterboxed
from demo.models.sessions import open_weights

SIDE = 128
GRIDS = ((16, 2), (8, 6))
"""Cells a side, and anchors a cell."""
FACE = "face"
POINTS = ("right_eye", "left_eye", "nose", "mouth", "right_ear", "left_ear")
"""In the model's order; right and left are the person's own."""
CONFIDENCE, OVERLAP = 0.5, 0.3


def anchor_centres() -> Floats:
    """(896, 2): x, y of every anchor, in shares of the square; cells row by row."""
    centres = [
        ((column + 0.5) / count, (row + 0.5) / count)
        for count, anchors in GRIDS
        for row in range(count)
        for column in range(count)
        for _ in range(anchors)
    ]
    return np.array(centres)


class FaceDetector:
    """Finds faces and the six points of each. Safe to call from several threads."""

    def __init__(self) -> None:
        self._session = open_weights("face_detection_short_range.onnx")
        self._centres = anchor_centres()

    def predict(self, picture: Image.Image, params: Params) -> dict[str, object]:
        """`face` -> boxes (left, top, width, height) and scores; `right_eye` and so on -> points and scores.

        Pixels of `picture`. All lists are parallel: the n-th point of each name belongs to the n-th face and carries
        its score, the only one the model gives. Parameters: `confidence`, the least score; `overlap`, the IoU above
        which the weaker of two faces is dropped.
        """
        least, overlap = share(params, "confidence", CONFIDENCE), share(params, "overlap", OVERLAP)
        boxes, points, scores = self._run(picture)
        sure = np.flatnonzero(scores >= least)
        kept = sure[suppress(boxes[sure], scores[sure], overlap)]
        if not kept.size:
            return {}
        rounded = [round(float(score), 4) for score in scores[kept]]
        reply: dict[str, object] = {FACE: {"boxes": [to_ltwh(box) for box in boxes[kept]], "scores": rounded}}
        for place, name in enumerate(POINTS):
            reply[name] = {"points": points[kept, place].round(2).tolist(), "scores": rounded}
        return reply

    def _run(self, picture: Image.Image) -> tuple[Floats, Floats, Floats]:
        """Every anchor's box (896, 4), left, top, right, bottom, its points (896, 6, 2), x, y, and its score (896,)."""
        pixels, extent, corner = letterboxed(picture, SIDE)
        regressors, logits = self._session.run(None, {"input": pixels[np.newaxis] / 127.5 - 1.0})
        pairs = regressors[0].astype(np.float64).reshape(-1, 8, 2) / SIDE
        centres = self._centres + pairs[:, 0]
        boxes = np.stack([centres - pairs[:, 1] / 2, centres + pairs[:, 1] / 2], axis=1)
        points = self._centres[:, np.newaxis] + pairs[:, 2:]
        scores = sigmoid(logits[0, :, 0].astype(np.float64))
        return (boxes * extent + corner).reshape(-1, 4), points * extent + corner, scores
