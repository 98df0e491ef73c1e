"""The ontology of an annotation project: what an import into it may name, and the ids that the platform has for it.

Owns what fits into what, and how a message says what does not. Reading an export of it is `config/project_source.py`.
Source: Labelbox's normalized ontology JSON: an import's `name` is a tool's or classification's name, an answer's name
is its option's `value`.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass, field

from foundry_pipeline.config.fields import near
from foundry_pipeline.errors import shown
from foundry_pipeline.ontology import Classification, Tool

SHOWN_NAMES = 12
"""More are not listed where a name is missing and none is like it."""


@dataclass(frozen=True, slots=True)
class ProjectOption:
    """One choice. `questions` are those asked once it is chosen."""

    value: str
    label: str
    schema_id: str | None = None
    questions: Mapping[str, ProjectQuestion] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class ProjectQuestion:
    """A classification. `kind` is the platform's word for it: radio, checklist, text, or one that nothing here fits."""

    name: str
    kind: str
    schema_id: str | None = None
    options: Mapping[str, ProjectOption] = field(default_factory=dict)
    scope: str | None = None
    """`global`: about the whole data row; `index`: about a message or frame; None where the export does not say."""


@dataclass(frozen=True, slots=True)
class ProjectTool:
    """A tool. `kind` is the platform's word for it: rectangle, polygon, ..."""

    name: str
    kind: str
    schema_id: str | None = None
    questions: Mapping[str, ProjectQuestion] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class ProjectOntology:
    """Tools and questions by name. `file` is how messages call it."""

    file: str
    tools: Mapping[str, ProjectTool] = field(default_factory=dict)
    questions: Mapping[str, ProjectQuestion] = field(default_factory=dict)

    def tool(self, name: str, kind: str) -> ProjectTool | str:
        """The tool that takes objects of this kind, or what is wrong."""
        tool = self.tools.get(name)
        if tool is None:
            elsewhere = "; it is a question there" if name in self.questions else _hint(name, self.tools)
            return f"there is no tool {shown(name)} ({kind}){elsewhere}"
        return tool if tool.kind == kind else f"the tool {shown(name)} is for {tool.kind}, not for {kind}"

    def names(self) -> set[str]:
        """Of every tool and question, those that are nested, too."""
        nested = (question for tool in self.tools.values() for question in _all_questions(tool.questions))
        return {*self.tools, *(q.name for q in _all_questions(self.questions)), *(q.name for q in nested)}

    def schema_ids(self) -> list[str]:
        """Of every tool, question and option, as far as they are known."""
        questions = [*_all_questions(self.questions)]
        for tool in self.tools.values():
            questions += _all_questions(tool.questions)
        options = [option for question in questions for option in question.options.values()]
        everything: list[ProjectTool | ProjectQuestion | ProjectOption] = [*self.tools.values(), *questions, *options]
        return [one.schema_id for one in everything if one.schema_id is not None]


def question_in(
    questions: Mapping[str, ProjectQuestion], name: str, kind: str, where: str = ""
) -> ProjectQuestion | str:
    """The question that takes answers of this kind, or what is wrong. `where` is the way to it: "tool 'car': "."""
    question = questions.get(name)
    if question is None:
        return f"{where}there is no question {shown(name)} ({kind}){_hint(name, questions)}"
    return question if question.kind == kind else f"{where}the question {shown(name)} is {question.kind}, not {kind}"


def option_in(question: ProjectQuestion, value: str, where: str = "") -> ProjectOption | str:
    """The option of this value, or what is wrong."""
    option = question.options.get(value)
    if option is not None:
        return option
    labelled = next((one.value for one in question.options.values() if one.label == value), None)
    hint = _hint(value, question.options) if labelled is None else f"; it is the label of the value {shown(labelled)}"
    return f"{where}the question {shown(question.name)} has no option {shown(value)}{hint}"


def under(where: str, kind: str, name: str) -> str:
    """The way to what is nested under this."""
    return f"{where}{kind} {shown(name)}: "


def _hint(name: str, known: Collection[str]) -> str:
    if close := near(name, known):
        return close
    listed = [shown(one) for one in list(known)[:SHOWN_NAMES]]
    more = ", ..." if len(known) > SHOWN_NAMES else ""
    return f"; there is {', '.join(listed)}{more}" if listed else "; there is none"


def _all_questions(questions: Mapping[str, ProjectQuestion]) -> Iterator[ProjectQuestion]:
    for question in questions.values():
        yield question
        for option in question.options.values():
            yield from _all_questions(option.questions)


FeatureOf = Mapping[str, str | None]
"""Model's class -> your feature, None where it is left out; a class that is not there keeps its name."""


def unfit_features(
    project: ProjectOntology, features: Iterable[Tool | Classification], mapping: FeatureOf
) -> Iterator[str]:
    """What of a model's ontology, under your names, has no place in the project, with everything nested."""
    for feature in features:
        name = mapping.get(feature.name, feature.name)
        if name is None:
            continue
        if isinstance(feature, Classification):
            yield from _unfit_questions(project.questions, [feature], mapping, "")
            continue
        tool = project.tool(name, feature.kind.value)
        if isinstance(tool, str):
            yield tool
        else:
            yield from _unfit_questions(tool.questions, feature.classifications, mapping, under("", "tool", name))


def _unfit_questions(
    questions: Mapping[str, ProjectQuestion], asked: Iterable[Classification], mapping: FeatureOf, where: str
) -> Iterator[str]:
    for classification in asked:
        name = mapping.get(classification.name, classification.name)
        if name is None:
            continue
        question = question_in(questions, name, classification.kind.value, where)
        if isinstance(question, str):
            yield question
            continue
        for option in classification.options:
            found = option_in(question, option.value, where)
            if isinstance(found, str):
                yield found
            else:
                way = under(under(where, "question", name), "option", option.value)
                yield from _unfit_questions(found.questions, option.classifications, mapping, way)
