"""Pictures of an evaluation, as PNG: precision over recall, and who was taken for whom."""

from __future__ import annotations

import io
from collections.abc import Sequence

import numpy as np
from matplotlib.figure import Figure

from foundry_pipeline.evaluation.measures import Confusion, Curve

SHOWN_LABELS = 30
SHOWN_CURVES = 20
_RECALLS = np.linspace(0, 1, 101)
_DOTS_PER_INCH = 110


def precision_recall(curves: Sequence[Curve]) -> bytes:
    """One line a feature, at IoU 0.5; of many features the first `SHOWN_CURVES`."""
    figure = Figure(figsize=(6, 4.2), layout="constrained")
    axes = figure.subplots()
    for curve in curves[:SHOWN_CURVES]:
        axes.plot(_RECALLS, np.clip(curve.precision, 0, 1), label=_plain(curve.feature), linewidth=1.8)
    axes.set(xlim=(0, 1.005), ylim=(0, 1.02), xlabel="recall", ylabel="precision", title=f"{curves[0].table}, IoU 0.5")
    axes.grid(alpha=0.3)
    axes.legend(fontsize=8, loc="lower left")
    return _png(figure)


def confusion_matrix(confusion: Confusion) -> bytes:
    """Rows are the truth, columns what the model said; shades are shares of a row, figures are counts."""
    labels = [_plain(label) for label in confusion.labels[:SHOWN_LABELS]]
    counts = np.array(confusion.counts, float)[: len(labels), : len(labels)]
    side = max(3.5, 0.55 * len(labels) + 2)
    figure = Figure(figsize=(side + 0.5, side), layout="constrained")
    axes = figure.subplots()
    shares = counts / np.maximum(counts.sum(axis=1, keepdims=True), 1)
    axes.imshow(shares, cmap="Blues", vmin=0, vmax=1)
    axes.set_xticks(range(len(labels)), labels, rotation=45, ha="right", fontsize=8)
    axes.set_yticks(range(len(labels)), labels, fontsize=8)
    axes.set(xlabel="said", ylabel="true", title=_plain(confusion.title))
    for row, column in np.argwhere(counts > 0):
        colour = "white" if shares[row, column] > 0.5 else "black"
        axes.text(column, row, f"{counts[row, column]:.0f}", ha="center", va="center", color=colour, fontsize=8)
    return _png(figure)


def _plain(label: str) -> str:
    """A model's word as it is: no mathematics between dollar signs, no line breaks, not endless."""
    return " ".join(label.split()).replace("$", r"\$")[:30]


def _png(figure: Figure) -> bytes:
    out = io.BytesIO()
    figure.savefig(out, format="png", dpi=_DOTS_PER_INCH, metadata={"Software": None})
    return out.getvalue()
