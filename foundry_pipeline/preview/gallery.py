"""The preview as one HTML page: each data row with what the model said of it, drawn or highlighted, and its rejects."""

from __future__ import annotations

import io
from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise

from PIL import Image

from foundry_pipeline.draw import colour_of
from foundry_pipeline.exports.annotated import AnnotatedRow, Prediction
from foundry_pipeline.html_page import Html, bullets, code, escaped, page, picture, section, table
from foundry_pipeline.preview.forecast import Forecast, duration
from foundry_pipeline.rows.conversations import Message

SHOWN_CHARS = 6_000
ANSWER_TABLES = ("classifications", "texts")


@dataclass(frozen=True, slots=True)
class Shown:
    """One data row of a preview. `error` says why there is no answer; `rejects` are (path, reason, message).

    `drawn` is the picture with its predictions on it; `text` or `messages` what a text's or conversation's answers are
    about. What could not be had is None.
    """

    annotated: AnnotatedRow
    stratum: str
    error: str | None = None
    rejects: tuple[tuple[str, str, str], ...] = ()
    drawn: Image.Image | None = None
    text: str | None = None
    messages: tuple[Message, ...] = ()


def page_name(run: str) -> str:
    """Where in the warehouse a run's page is."""
    return f"preview/run={run}/preview.html"


def gallery_page(run: str, rows: Sequence[Shown], about: Sequence[str], foreseen: Forecast, paste: str | None) -> str:
    """The page. `about` are lines on the sample; `paste` a line for the run file, where something was tried out."""
    tried = [section("Tried out: the line for the run file", code(paste))] if paste else []
    return page(
        f"Preview of {run}",
        bullets(about),
        section("The whole run", forecast_table(foreseen)),
        *tried,
        section("Data rows", *map(_row, rows)),
    )


def forecast_table(foreseen: Forecast) -> Html:
    """The forecast, a line a figure."""
    return table(("", ""), forecast_lines(foreseen))


def forecast_lines(foreseen: Forecast) -> list[tuple[str, str]]:
    """(what, how much), in words."""
    several = f" in {foreseen.rows:,} calls" if foreseen.rows > foreseen.data_rows else ""
    what = "calls" if several else "data rows"
    lines = [
        ("data rows", f"{foreseen.data_rows:,}{several}, of which {foreseen.rows_answered:,} have their answer"),
        ("calls", f"{foreseen.calls:,}"),
        ("time", f"{duration(foreseen.seconds)}, limited by the {foreseen.limited_by}"),
        ("failures to expect", f"{foreseen.failed_low:,} to {foreseen.failed_high:,} {what}"),
    ]
    return lines + ([] if foreseen.cost is None else [("cost", str(foreseen.cost))])


def _row(shown: Shown) -> Html:
    row = shown.annotated.row
    parts = [f"<h3>{escaped(row.global_key)}</h3>", f"<p>{escaped(_outcome(shown))}</p>"]
    if shown.drawn is not None:
        parts.append(picture(_jpeg(shown.drawn), "image/jpeg", row.global_key).markup)
    if shown.messages:
        parts.extend(_message(message, shown.annotated.predictions) for message in shown.messages)
    elif shown.text is not None:
        parts.append(f"<p class=text>{highlighted(shown.text, _entities(shown.annotated.predictions, None))}</p>")
    parts.append(_answers(shown.annotated.predictions).markup)
    if shown.rejects:
        parts.append(table(("refused", "reason", "why"), shown.rejects).markup)
    return Html("<article>" + "\n".join(parts) + "</article>")


def _outcome(shown: Shown) -> str:
    annotated = shown.annotated
    if not annotated.answered:
        return f"{annotated.outcome}: {shown.error or 'no answer'}"
    counts: defaultdict[str, int] = defaultdict(int)
    for prediction in annotated.predictions:
        counts[prediction.table] += 1
    return ", ".join(f"{count} {name}" for name, count in counts.items()) or "answered with nothing"


def _answers(predictions: Sequence[Prediction]) -> Html:
    rows = [
        (p.feature, p.values["answer"], p.values["score"], p.values.get("message_id"))
        for p in _flat(predictions)
        if p.table in ANSWER_TABLES
    ]
    return table(("question", "answer", "score", "message"), rows) if rows else Html("")


def _flat(predictions: Sequence[Prediction]) -> Iterator[Prediction]:
    for prediction in predictions:
        yield prediction
        yield from _flat(prediction.nested)


def _message(message: Message, predictions: Sequence[Prediction]) -> str:
    said = highlighted(message.content, _entities(predictions, message.message_id))
    speaker = escaped(message.user_name or message.user_id)
    return f"<p class=text><b>{speaker}</b> <small>{escaped(message.message_id)}</small>\n{said}</p>"


@dataclass(frozen=True, slots=True)
class Span:
    """A stretch of text, in code points, half open, with the feature that colours it and what stands beside it."""

    start: int
    end: int
    feature: str
    label: str


def _entities(predictions: Sequence[Prediction], message_id: str | None) -> list[Span]:
    return [
        Span(p.values["start"], p.values["end"], p.feature, _label(p.feature, p.values["score"]))
        for p in predictions
        if p.table == "entities" and p.values.get("message_id") == message_id
    ]


def _label(feature: str, score: float | None) -> str:
    return feature if score is None else f"{feature} {score:.2f}"


def highlighted(text: str, spans: Sequence[Span]) -> str:
    """Markup of a text with its spans marked. Where several overlap, each stretch names all it lies in."""
    shown = text[:SHOWN_CHARS]
    edges = sorted({0, len(shown), *(min(at, len(shown)) for span in spans for at in (span.start, span.end))})
    parts = []
    for begin, end in pairwise(edges):
        over = [span for span in spans if span.start <= begin and end <= span.end]
        piece = escaped(shown[begin:end])
        parts.append(_mark(piece, over, last=any(span.end == end for span in over)) if over else piece)
    return "".join(parts) + ("…" if len(text) > SHOWN_CHARS else "")


def _mark(piece: str, spans: Sequence[Span], *, last: bool) -> str:
    """The label stands once, where the span ends."""
    red, green, blue = colour_of(spans[0].feature)
    title = escaped(", ".join(span.label for span in spans))
    label = f"<sub>{title}</sub>" if last else ""
    return f'<mark style="background:rgba({red},{green},{blue},.35)" title="{title}">{piece}{label}</mark>'


def _jpeg(image: Image.Image) -> bytes:
    out = io.BytesIO()
    image.convert("RGB").save(out, "JPEG", quality=80)
    return out.getvalue()
