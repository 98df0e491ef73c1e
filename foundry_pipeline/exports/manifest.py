"""`manifest.json` of an export: what went in, what came out, what was lost or changed, and how to read the files."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

from foundry_pipeline.exports.annotated import NOT_ASKED
from foundry_pipeline.exports.format import Exporter
from foundry_pipeline.exports.tally import Change, Loss, RowLoss, Tally, by_reason
from foundry_pipeline.home import Run
from foundry_pipeline.tables import OUTCOMES


def manifest_of(
    run: Run,
    exporter: Exporter[Any],
    tally: Tally,
    files: Sequence[Mapping[str, object]],
    sums: Mapping[str, Mapping[str, str]],
) -> dict[str, object]:
    """The manifest. For all predictions and for each feature, `in` = `out` + the sum of `lost`; changes are in `out`.

    For data rows, the sum of `outcomes` = `written` + the sum of `left_out`. `calls_unanswered` are calls about data
    rows of which others were answered: what is said of these rows is not all. `files` are name, size and sha256 of
    each; `sums` are slice -> table -> the sha256 that its last commit recorded.
    """
    return {
        "format": exporter.name,
        "format_version": exporter.version,
        "run": run.name,
        "model": run.model.name,
        "dataset": run.dataset.name,
        "media_type": run.dataset.media_type,
        "ontology_mapping": dict(sorted(run.ontology_mapping.items())),
        "min_score": {"default": run.min_score.default, **dict(sorted(run.min_score.by_feature.items()))},
        "keep_empty": run.keep_empty,
        **_split(run, exporter, tally),
        "conventions": dict(exporter.conventions),
        "data_rows": _row_counts(tally),
        "predictions": {
            "in": tally.came.total(),
            "out": written_predictions(tally),
            "features": {feature: _feature_counts(tally, feature) for feature in sorted(tally.came)},
        },
        "lost": by_reason(tally.lost.values(), Loss),
        "changed": by_reason(tally.changed.values(), Change),
        "files": files,
        "inputs": [{"slice": slice_key, "sha256": of_slice} for slice_key, of_slice in sums.items()],
    }


def _split(run: Run, exporter: Exporter[Any], tally: Tally) -> dict[str, object]:
    """The shares that the run asks for, how the format says which row is in which part, and the rows of each."""
    if run.split is None:
        return {}
    rows = {part: tally.rows_of_split[part] for part in run.split.parts}
    return {"split": {"shares": dict(run.split.shares), "written_as": exporter.split, "data_rows": rows}}


def written_predictions(tally: Tally) -> int:
    """How many predictions are in the export."""
    return tally.came.total() - sum(of_feature.total() for of_feature in tally.lost.values())


def _row_counts(tally: Tally) -> dict[str, object]:
    answered = tally.outcomes["ok"]
    return {
        "answered": answered,
        "answered_with_predictions": tally.rows_with_predictions,
        "answered_without_predictions": answered - tally.rows_with_predictions,
        "unanswered": tally.outcomes.total() - answered,
        "outcomes": {name: tally.outcomes[name] for name in (*OUTCOMES, NOT_ASKED)},
        **({"calls_unanswered": tally.calls_unanswered} if tally.calls_unanswered else {}),
        "written": tally.rows_written,
        "left_out": {why.value: tally.rows_lost[why] for why in RowLoss if tally.rows_lost[why]},
    }


def _feature_counts(tally: Tally, feature: str) -> dict[str, object]:
    """The feature's counts; what was neither lost nor changed needs no empty lists."""
    lost, changed = tally.lost.get(feature, Counter()), tally.changed.get(feature, Counter())
    reasons = {"lost": by_reason([lost], Loss), "changed": by_reason([changed], Change)}
    came = tally.came[feature]
    return {"in": came, "out": came - lost.total()} | {name: counts for name, counts in reasons.items() if counts}
