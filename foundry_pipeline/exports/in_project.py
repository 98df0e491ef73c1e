"""Labelbox import lines against the ontology of the project that they are for.

What the project has is named by its schema id, too; what it lacks is noted, with everything else that it lacks, before
any file is in its place.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from foundry_pipeline.exports.annotated import KINDS
from foundry_pipeline.project_ontology import (
    ProjectOntology,
    ProjectQuestion,
    option_in,
    question_in,
    under,
)

Line = dict[str, Any]
Say = Callable[[str], None]
PARTED_MEDIA = frozenset({"conversational", "video"})
"""Their questions are about the whole data row (scope global), or about a message or frame (scope index)."""


def placed(project: ProjectOntology, media_type: str, table: str, line: Line, say: Say) -> Line:
    """The line with schema ids where the project's ontology has some; `say` is told what it lacks."""
    if "answer" in line:
        if media_type in PARTED_MEDIA:
            _check_scope(project, line, say)
        return _question(project.questions, line, "", say)
    if "masks" in line:  # of a video: an instance has its name alone
        for instance in line["masks"]["instances"]:
            _tell(project.tool(instance["name"], KINDS[table]), say)
        return line
    tool = project.tool(line["name"], KINDS[table])
    if isinstance(tool, str):
        say(tool)
        return line
    where = under("", "tool", tool.name)
    return _named(_with_nested(line, tool.questions, where, say), tool.schema_id)


def _check_scope(project: ProjectOntology, line: Line, say: Say) -> None:
    question = project.questions.get(line["name"])
    if question is None or question.scope is None:
        return
    answered = "index" if _is_about_a_part(line) else "global"
    if answered != question.scope:
        say(f"the question {question.name!r} has the scope {question.scope}; its answers have {answered}")


def _is_about_a_part(line: Line) -> bool:
    """Of a message or of frames, and not of the whole data row."""
    answer = line["answer"]
    in_answer = isinstance(answer, list) and any("frames" in one for one in answer)
    return "messageId" in line or "frames" in line or in_answer


def _with_nested(line: Line, questions: Mapping[str, ProjectQuestion], where: str, say: Say) -> Line:
    """The line with its nested answers placed: its own, or those of its key frames."""
    if "segments" in line:
        segments = [
            segment | {"keyframes": [_with_nested(one, questions, where, say) for one in segment["keyframes"]]}
            for segment in line["segments"]
        ]
        return line | {"segments": segments}
    if "classifications" not in line:
        return line
    return line | {"classifications": [_question(questions, one, where, say) for one in line["classifications"]]}


def _question(questions: Mapping[str, ProjectQuestion], line: Line, where: str, say: Say) -> Line:
    question = question_in(questions, line["name"], _kind_of(line["answer"]), where)
    if isinstance(question, str):
        say(question)
        return line
    answer, way = line["answer"], under(where, "question", question.name)
    if question.kind == "text":
        return _named(_with_nested(line, {}, way, say), question.schema_id)
    chosen = [_chosen(question, one, where, way, say) for one in (answer if isinstance(answer, list) else [answer])]
    return _named(line | {"answer": chosen if isinstance(answer, list) else chosen[0]}, question.schema_id)


def _chosen(question: ProjectQuestion, answer: Line, where: str, way: str, say: Say) -> Line:
    option = option_in(question, answer["name"], where)
    if isinstance(option, str):
        say(option)
        return answer
    return _named(_with_nested(answer, option.questions, under(way, "option", option.value), say), option.schema_id)


def _kind_of(answer: object) -> str:
    """Radio has one option, a checklist several; texts about frames are values in a list."""
    if isinstance(answer, dict):
        return "radio"
    return "checklist" if isinstance(answer, list) and all("name" in one for one in answer) else "text"


def _named(line: Line, schema_id: str | None) -> Line:
    """The line with the id behind its name. Both may stand there; the name is what people read."""
    if schema_id is None:
        return line
    named: Line = {}
    for key, value in line.items():
        named[key] = value
        if key == "name":
            named["schemaId"] = schema_id
    return named


def _tell(found: object, say: Say) -> None:
    if isinstance(found, str):
        say(found)
