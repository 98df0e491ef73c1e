"""What the UI says about an asset: where it comes from, the run's parameters, the manifest's readme.

The catalogue lists the first words of each as they are, so the first sentence of none has Markdown in it.
"""

import json
import re
from collections.abc import Iterable, Mapping, Sequence
from itertools import count

from foundry_pipeline.config.money import Money
from foundry_pipeline.errors import shown
from foundry_pipeline.home import Dataset, Run
from foundry_pipeline.rows.addresses import shown_url
from foundry_pipeline.tables import TableSpec

CELL_CHARS = 100
TABLE_CHARS = 2500
"""An event's metadata is kept for ever: a table in it stays below 4 KB with everything else."""

_MARKDOWN = re.compile(r"([\\`*_{}\[\]()!|~$:@])")


def safe_markdown(text: str) -> str:
    """Markdown of a stranger that loads nothing: pictures become links to them, HTML becomes text."""
    without_pictures = re.sub(r"!+\[", "[", text)
    return re.sub(r"<(?=[A-Za-z/!?])", "&lt;", without_pictures)


def cell(value: object) -> str:
    """Any value as the text of one table cell: one line, at most 100 characters, nothing in it is Markdown."""
    text = "".join(c if c.isprintable() else " " for c in str(value)[: 4 * CELL_CHARS])
    text = text if len(text) <= CELL_CHARS else f"{text[: CELL_CHARS - 1]}…"
    return _MARKDOWN.sub(r"\\\1", text.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;"))


def markdown_table(
    header: Sequence[str], rows: Iterable[Sequence[object]], total: int | None = None, most_chars: int = TABLE_CHARS
) -> str:
    """A table of as many rows as fit, one at least, and a line that says how many of `total` do not."""
    lines = [_line(header), _line(["---"] * len(header))]
    size = 0
    for row in rows:
        line = _line([cell(value) for value in row])
        size += len(line)
        if size > most_chars and len(lines) > 2:
            break
        lines.append(line)
    left = (total or 0) - (len(lines) - 2)
    return "\n".join(lines) + (f"\n\nand {left:,} more" if left > 0 else "")


def _line(cells: Sequence[str]) -> str:
    return f"| {' | '.join(cells)} |"


def dataset_description(dataset: Dataset) -> str:
    """For [<dataset>, data_rows]."""
    return (
        f"The data rows of {dataset.name} ({dataset.media_type}), in slices of {dataset.rows_per_slice:,}. "
        "Materializing it registers the slices as partitions. "
        f"{_code(dataset.file)} reads them from {_code(dataset.source)}."
    )


def responses_description(run: Run) -> str:
    """For [<run>, responses]: what is called, how fast, with which parameters; then the manifest's own words."""
    model = run.model
    return _paragraphs(
        f"Every answer of {model.key} about the data rows of {run.dataset.name}, as it came. Calls "
        f"{_code(shown_url(model.inference_endpoint))}, at most {model.requests_per_second:g} requests per second over "
        "all processes. Materialized again, it calls only for rows that have no good answer to the same request."
        f"{_price(run)}",
        safe_markdown(model.description),
        _parameters(run.inference_params),
        safe_markdown(model.readme),
    )


def _price(run: Run) -> str:
    price, budget = run.model.cost_per_call, run.budget
    if price is None:
        return ""
    if budget is None:
        return f" A call costs {cell(price)}."
    most = Money(budget.amount, budget.currency or price.currency)
    return f" A call costs {cell(price)}; the run stops before it has cost more than {cell(most)} in all."


def table_description(run: Run, spec: TableSpec) -> str:
    """For [<run>, <table>]: the table's grain, then the manifest's own words."""
    return _paragraphs(
        f"{spec.grain[0].upper()}{spec.grain[1:]}, decoded from the answers of {run.model.key} about "
        f"{run.dataset.name}. Materializing it calls nobody.",
        safe_markdown(run.model.readme),
    )


def annotations_description(run: Run) -> str:
    """For [<run>, annotations]."""
    mapped = [
        (model_class, "left out" if feature is None else feature)
        for model_class, feature in run.ontology_mapping.items()
    ]
    return _paragraphs(
        f"The predictions of {run.name} as annotation files: {', '.join(run.exports)}. Materializing calls nobody.",
        markdown_table(("model's class", "your feature"), mapped, len(mapped)) if mapped else "",
    )


def preview_description(run: Run) -> str:
    """For [<run>, preview]."""
    return (
        f"A few data rows of {run.dataset.name}, called and drawn before the whole run is paid for, and what "
        "that would take. Parameters can be tried out in the launchpad. The whole run does not call again for what was "
        "called here with its own parameters."
    )


def evaluation_description(run: Run) -> str:
    """For [<run>, evaluation]."""
    return (
        f"{run.name} against the ground truth of {run.dataset.name}: the tables metrics and matches, pictures, and one "
        f"HTML report. The truth is in {_code(run.dataset.ground_truth or '')}. Materializing calls nobody."
    )


def _parameters(params: Mapping[str, object]) -> str:
    if not params:
        return ""
    rows = [(name, json.dumps(value, ensure_ascii=False)) for name, value in params.items()]
    return "**Parameters**\n\n" + markdown_table(("parameter", "value"), rows, len(rows))


def _paragraphs(*texts: str) -> str:
    return "\n\n".join(text.strip() for text in texts if text.strip())


def _code(text: str) -> str:
    """Inline code, fenced by more backticks than are in it."""
    fence = next("`" * n for n in count(1) if "`" * n not in text)
    return f"{fence}{text[:200]}{fence}" if text.isprintable() else f"`{shown(text)}`"
