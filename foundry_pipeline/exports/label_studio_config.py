"""The labeling configuration for a Label Studio project: every control that predictions name, from ontology and data.

Without it a project has no place for the predictions: `from_name` and `to_name` have to be in it.
Source: Label Studio's documentation, tags.
"""

from __future__ import annotations

import hashlib
import re
import xml.etree.ElementTree as ET
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

from foundry_pipeline.exports.overview import Overview
from foundry_pipeline.exports.xml_text import child, xml_bytes, xml_safe
from foundry_pipeline.home import Run
from foundry_pipeline.ontology import Classification, FeatureKind
from foundry_pipeline.tables import EDGES, TABLE_OF_KIND, TABLES

OBJECTS: Mapping[str, tuple[str, str]] = {
    "image": ("image", "Image"),
    "text": ("text", "Text"),
    "conversational": ("dialogue", "Paragraphs"),
    "html": ("html", "HyperText"),
    "video": ("video", "Video"),
}
"""Media type -> what is labeled: its name, which is also the key of its data, and its tag."""

LABEL_TAGS: Mapping[str, Mapping[str, str]] = {
    "image": {
        "boxes": "RectangleLabels",
        "masks": "BrushLabels",
        "polygons": "PolygonLabels",
        "points": "KeyPointLabels",
    },
    "text": {"entities": "Labels"},
    "conversational": {"entities": "ParagraphLabels"},
    "html": {},
    "video": {},
}
"""Media type -> table -> the tag of its labels. The control is called as the table."""

RESERVED = {"relations", *(name for name, _ in OBJECTS.values()), *(t for tags in LABEL_TAGS.values() for t in tags)}
_NAME = re.compile(r"[A-Za-z][A-Za-z0-9_]{0,40}")

Path = tuple[str, ...]
"""The way to a question: what it is about (a feature, then answers and questions in turn), then the question."""


def control_name(path: Path, *, is_text: bool) -> str:
    """The name of a question's control: the question itself where it is a plain name about the whole data row."""
    if len(path) == 1 and _NAME.fullmatch(path[0]) and path[0] not in RESERVED:
        name = path[0]
    else:
        word = re.sub(r"[^A-Za-z0-9_]+", "_", path[-1])[:40].strip("_") or "question"
        name = f"{word}_{hashlib.sha256(repr(path).encode()).hexdigest()[:8]}"
    return f"{name}_text" if is_text else name


@dataclass(slots=True)
class _Question:
    """One control for answers. `table` and `label` say which objects it is asked about, None for the data row."""

    path: Path
    table: str | None
    is_text: bool
    is_multiple: bool = False
    options: dict[str, None] = field(default_factory=dict)


class LabelingConfig:
    """Grows with the questions that are met; begins with those of the ontology."""

    def __init__(self, run: Run, overview: Overview) -> None:
        self._run = run
        self._media_type = run.dataset.media_type
        self._labels = {table: overview.feature_names([TABLES[table]]) for table in LABEL_TAGS[self._media_type]}
        self._relations = overview.feature_names([EDGES])
        self._questions: dict[str, _Question] = {}
        if run.model.ontology is not None:
            for tool in run.model.ontology.tools:
                self._ask(tool.classifications, (run.feature_of(tool.name),), TABLE_OF_KIND[tool.kind].name)
            self._ask(run.model.ontology.classifications, (), None)

    def add(self, path: Path, table: str | None, *, is_text: bool, is_multiple: bool, answers: Iterable[str]) -> None:
        """There is this question, and it has these answers among its options."""
        name = control_name(path, is_text=is_text)
        question = self._questions.setdefault(name, _Question(path, table, is_text))
        question.is_multiple |= is_multiple
        question.options.update(dict.fromkeys(answers))

    def xml(self) -> bytes:
        """The configuration."""
        object_name, tag = OBJECTS[self._media_type]
        view = ET.Element("View")
        more = {"layout": "dialogue"} if tag == "Paragraphs" else {}
        child(view, tag, name=object_name, value=f"${object_name}", **more)
        for table, labels in self._labels.items():
            if labels:
                control = child(view, LABEL_TAGS[self._media_type][table], name=table, toName=object_name)
                for label in labels:
                    child(control, "Label", value=label)
        for name, question in self._questions.items():
            self._add_question(view, name, question, object_name)
        if self._relations:
            relations = child(view, "Relations")
            for relation in self._relations:
                child(relations, "Relation", value=relation)
        return xml_bytes(view)

    def _ask(self, asked: Iterable[Classification], about: tuple[str | None, ...], table: str | None) -> None:
        """The ontology's questions, those under its answers too; what the run maps to null is not asked."""
        for classification in asked:
            path = (*about, self._run.feature_of(classification.name))
            if None in path or (table is not None and table not in self._labels):
                continue
            is_text = classification.kind is FeatureKind.TEXT
            is_multiple = classification.kind is FeatureKind.CHECKLIST
            options = [option.value for option in classification.options]
            known = tuple(name for name in path if name is not None)
            self.add(known, table, is_text=is_text, is_multiple=is_multiple, answers=options)
            for option in classification.options:
                self._ask(option.classifications, (*known, option.value), table)

    def _add_question(self, view: ET.Element, name: str, question: _Question, object_name: str) -> None:
        when = {}
        if question.table is not None:
            when = {"perRegion": "true", "visibleWhen": "region-selected", "whenTagName": question.table}
            if "," not in question.path[0]:  # commas separate labels there
                when["whenLabelValue"] = question.path[0]
        child(view, "Header", value=question.path[-1])
        if question.is_text:
            child(view, "TextArea", name=name, toName=object_name, **when)
            return
        choice = "multiple" if question.is_multiple else "single"
        choices = child(view, "Choices", name=name, toName=object_name, choice=choice, **when)
        for option in dict.fromkeys(map(xml_safe, question.options)):
            child(choices, "Choice", value=option)
