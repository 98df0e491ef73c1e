"""`ontology: project.json` of a run -> ProjectOntology: an ontology as Labelbox exports it, as far as imports need it.

Taken as it is: tools and questions that nothing here fits may be there, and unknown keys. A wrapper with the key
`normalized`, as the API and SDK hand it out, is opened.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, TypeVar

import orjson

from foundry_pipeline.config.fields import Reader, refuse, text
from foundry_pipeline.config.ontology_source import KIND_ALIASES
from foundry_pipeline.config.yaml_source import Findings, Item
from foundry_pipeline.errors import RowUnavailable, shown
from foundry_pipeline.project_ontology import ProjectOntology, ProjectOption, ProjectQuestion, ProjectTool
from foundry_pipeline.rows.local_files import LocalFiles

MAX_BYTES = 32 * 1024 * 1024
MAX_DEPTH = 20
SCHEMA_ID_CHARS = 25
"""Of a cuid, as Labelbox has them; its import refuses others."""

T = TypeVar("T", ProjectTool, ProjectQuestion, ProjectOption)
Say = Callable[[str], None]


def project_ontology(base: Path, files: LocalFiles) -> Reader[ProjectOntology]:
    """A path relative to `base`, of a file that may be read; all that is wrong with its content is one problem each."""

    def read(item: Item, found: Findings) -> ProjectOntology | None:
        word = text(4096)(item, found)
        if word is None:
            return None
        try:
            content = files.read(os.path.normpath(base / word), MAX_BYTES)
            parsed = orjson.loads(content.removeprefix(b"\xef\xbb\xbf"))
        except RowUnavailable as err:
            refuse(item, found, err.message)
            return None
        except orjson.JSONDecodeError as err:
            refuse(item, found, f"{word}: not JSON: {err}")
            return None
        before = len(found.problems)
        project = _Reader(word, lambda message: refuse(item, found, f"{word}: {message}")).project(parsed)
        if project.unwritable:
            count = len(project.unwritable)
            message = f"{word}: {count} schema ids have not {SCHEMA_ID_CHARS} characters and are not written, such as "
            found.warn(message + shown(project.unwritable[0]), item.path, item.line)
        return project.ontology if len(found.problems) == before else None

    return read


class _Read:
    """What was read, and ids that an import would refuse."""

    def __init__(self, ontology: ProjectOntology, unwritable: list[str]) -> None:
        self.ontology, self.unwritable = ontology, unwritable


class _Reader:
    """Reads the parsed JSON; `say` is told what is wrong, and where."""

    def __init__(self, file: str, say: Say) -> None:
        self._file, self._say = file, say
        self._unwritable: list[str] = []

    def project(self, parsed: Any) -> _Read:
        root = parsed.get("normalized", parsed) if isinstance(parsed, dict) else parsed
        if not isinstance(root, dict) or not ({"tools", "classifications"} & root.keys()):
            self._say("expected an ontology: an object with tools and classifications")
            root = {}
        tools = self._named(root.get("tools"), "$.tools", self._tool)
        questions = self._questions(root.get("classifications"), "$.classifications", 0)
        return _Read(ProjectOntology(self._file, tools, questions), self._unwritable)

    def _tool(self, entry: Mapping[str, Any], path: str) -> tuple[str, ProjectTool] | None:
        name, kind = self._text(entry, path, "name"), self._text(entry, path, "tool")
        questions = self._questions(entry.get("classifications"), f"{path}.classifications", 1)
        if name is None or kind is None:
            return None
        return name, ProjectTool(name, KIND_ALIASES.get(kind, kind), self._schema_id(entry), questions)

    def _questions(self, entries: Any, path: str, depth: int) -> dict[str, ProjectQuestion]:
        if depth > MAX_DEPTH:
            self._say(f"{path}: nested deeper than {MAX_DEPTH} levels")
            return {}

        def question(entry: Mapping[str, Any], at: str) -> tuple[str, ProjectQuestion] | None:
            name, kind = self._text(entry, at, "name", "instructions"), self._text(entry, at, "type")
            options = self._named(entry.get("options"), f"{at}.options", option)
            return (
                None
                if name is None or kind is None
                else (
                    name,
                    ProjectQuestion(name, kind, self._schema_id(entry), options, _scope(entry)),
                )
            )

        def option(entry: Mapping[str, Any], at: str) -> tuple[str, ProjectOption] | None:
            value, label = self._text(entry, at, "value", "label"), entry.get("label")
            nested = self._questions(entry.get("options"), f"{at}.options", depth + 1)
            return (
                None
                if value is None
                else (
                    value,
                    ProjectOption(value, label if isinstance(label, str) else value, self._schema_id(entry), nested),
                )
            )

        return self._named(entries, path, question)

    def _named(
        self, entries: Any, path: str, read: Callable[[Mapping[str, Any], str], tuple[str, T] | None]
    ) -> dict[str, T]:
        """Name -> what `read` makes of the entry; a name that stands twice is a problem."""
        named: dict[str, T] = {}
        for at, entry in self._objects(entries, path):
            pair = read(entry, at)
            if pair is not None and pair[0] in named:
                self._say(f"{at}: {shown(pair[0])} stands twice")
            elif pair is not None:
                named[pair[0]] = pair[1]
        return named

    def _objects(self, entries: Any, path: str) -> Iterator[tuple[str, Mapping[str, Any]]]:
        if entries is not None and not isinstance(entries, list):
            self._say(f"{path}: expected a list; got {shown(entries)}")
            return
        for number, entry in enumerate(entries or ()):
            if isinstance(entry, dict):
                yield f"{path}[{number}]", entry
            else:
                self._say(f"{path}[{number}]: expected an object; got {shown(entry)}")

    def _text(self, entry: Mapping[str, Any], path: str, *keys: str) -> str | None:
        """The first of these keys that has something."""
        value = next((entry[key] for key in keys if entry.get(key) not in (None, "")), None)
        if isinstance(value, str):
            return value
        self._say(f"{path}.{keys[0]}: expected text; got {shown(value)}")
        return None

    def _schema_id(self, entry: Mapping[str, Any]) -> str | None:
        value = entry.get("featureSchemaId") or entry.get("schemaId")
        if value is None or (isinstance(value, str) and len(value) == SCHEMA_ID_CHARS):
            return value
        self._unwritable.append(str(value))
        return None


def _scope(entry: Mapping[str, Any]) -> str | None:
    return entry["scope"] if entry.get("scope") in ("global", "index") else None
