"""The evaluation as one HTML page: figures, curves, confusions, thresholds to take over, the worst data rows."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterator, Mapping

from foundry_pipeline.evaluation.compare import HEADLINES, PER_QUESTION, Comparison
from foundry_pipeline.evaluation.evaluate import Evaluation
from foundry_pipeline.evaluation.measures import Measure
from foundry_pipeline.evaluation.plots import confusion_matrix, precision_recall
from foundry_pipeline.html_page import Html, bullets, code, page, picture, section, table
from foundry_pipeline.store import Store, Written

WORST_ROWS = 20


def report_name(run: str) -> str:
    """Where in the warehouse the page is."""
    return f"evaluation/run={run}/report.html"


def write_report(evaluation: Evaluation, comparison: Comparison, store: Store) -> Written:
    """Write the page into the warehouse. Raises StorageError where it refuses."""
    return store.write_file(report_name(evaluation.run), report_page(evaluation, comparison).encode())


def report_page(evaluation: Evaluation, comparison: Comparison) -> str:
    """The page. The same evaluation makes the same page."""
    found = evaluation.findings
    compared = f"{evaluation.compared} data rows compared"
    without = f"; {evaluation.unanswered} more have ground truth and no good answer" if evaluation.unanswered else ""
    return page(
        f"Evaluation of {evaluation.run}",
        compared + without + ".",
        bullets(found.notes),
        section("In short", _measures([m for m in found.measures if is_headline(m)])),
        *_pictures(evaluation),
        *_thresholds(evaluation),
        *_worst(evaluation),
        *_side_by_side(comparison),
        section("All measures", _measures(found.measures)),
    )


def is_headline(measure: Measure) -> bool:
    """Whether it is one of the few that stand for the whole."""
    over_all = not measure.feature or measure.table in PER_QUESTION
    return over_all and not measure.answer and measure.metric in HEADLINES


def min_score_line(min_scores: Mapping[str, float]) -> str:
    """The line to paste into the run file: each feature's best threshold, rounded down so that its score passes."""
    each = ", ".join(
        f"{json.dumps(name, ensure_ascii=False)}: {int(score * 10_000) / 10_000:g}"
        for name, score in min_scores.items()
    )
    return f"min_score: {{{each}}}"


def _measures(measures: list[Measure] | tuple[Measure, ...]) -> Html:
    rows = (
        (m.table, m.feature or None, m.answer or None, m.metric, m.value, m.truths, m.predictions) for m in measures
    )
    return table(("table", "feature", "option", "measure", "value", "truths", "predictions"), rows)


def _pictures(evaluation: Evaluation) -> Iterator[Html]:
    found = evaluation.findings
    for name in sorted({curve.table for curve in found.curves}):
        of_table = [curve for curve in found.curves if curve.table == name]
        yield section(f"Precision and recall: {name}", picture(precision_recall(of_table), "image/png", name))
    for confusion in found.confusions:
        if confusion.labels:
            yield section(
                f"Taken for: {confusion.title}", picture(confusion_matrix(confusion), "image/png", confusion.title)
            )


def _thresholds(evaluation: Evaluation) -> Iterator[Html]:
    best = dict(evaluation.findings.min_scores)
    if best:
        yield section("Thresholds with the best F1 at IoU 0.5, for the run file", code(min_score_line(best)))


def _worst(evaluation: Evaluation) -> Iterator[Html]:
    faults: dict[str, Counter[str]] = {}
    for verdict in evaluation.findings.verdicts:
        if verdict.verdict != "match":
            faults.setdefault(verdict.global_key, Counter())[verdict.verdict] += 1
    worst = sorted(faults.items(), key=lambda item: (-item[1].total(), item[0]))[:WORST_ROWS]
    if worst:
        words = ("wrong", "missed", "extra", "partial")
        rows = ((key, *(counts[word] for word in words)) for key, counts in worst)
        yield section("Data rows with the most faults", table(("data row", *words), rows))


def _side_by_side(comparison: Comparison) -> Iterator[Html]:
    if len(comparison.runs) < 2:
        return
    lines = ((line.table, line.feature or None, line.metric, *line.values) for line in comparison.lines)
    yield section("Runs on this dataset", table(("table", "feature", "measure", *comparison.runs), lines))
    rows = (
        (row.global_key, *(f"{right} right, {wrong} not" for right, wrong in zip(row.right, row.faults, strict=True)))
        for row in comparison.disagreements
    )
    yield section("Where the runs disagree most", table(("data row", *comparison.runs), rows))
