"""YAML that a person wrote -> items that know their place, in a strict and safe subset.

Owns what YAML itself gets wrong: aliases and tags (bombs, objects), duplicate keys (the last wins), keys and numbers
that are not what they look like (`no`, `12:30`, `010`, `.inf`), size and depth. What a key means is its reader's
matter (`fields.py`). Source of the rules: PyYAML reads YAML 1.1 and follows it to the letter.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from foundry_pipeline.errors import Problem, shown

MAX_BYTES = 256 * 1024
MAX_DEPTH = 32
_MAX_NUMBER_CHARS = 40

Scalar = str | int | float | bool | None


@dataclass(frozen=True, slots=True)
class Item:
    """One value of a YAML file. `path` is `$.a.b[0]`; `line` counts from 1; `text` is a scalar as it was written.

    Its repr shows no value: a value may be a secret.
    """

    value: Scalar | tuple[Item, ...] | Mapping[str, Item] = field(repr=False)
    path: str
    line: int
    text: str = field(default="", repr=False)

    def plain(self) -> object:
        """The value as JSON has it: dict, list, str, int, float, bool or None."""
        if isinstance(self.value, tuple):
            return [item.plain() for item in self.value]
        if isinstance(self.value, Mapping):
            return {key: item.plain() for key, item in self.value.items()}
        return self.value

    def nearest(self, parts: tuple[str | int, ...]) -> Item:
        """The item at `parts` below this one, or the deepest one on the way that exists."""
        if not parts:
            return self
        step, rest = parts[0], parts[1:]
        if isinstance(self.value, Mapping) and isinstance(step, str) and step in self.value:
            return self.value[step].nearest(rest)
        if isinstance(self.value, tuple) and isinstance(step, int) and step < len(self.value):
            return self.value[step].nearest(rest)
        return self


def path_below(path: str, step: str | int) -> str:
    """The path of a child: `$.a`, `$[0]`, or `$['a b']` where the key is not a plain word."""
    if isinstance(step, int):
        return f"{path}[{step}]"
    return f"{path}.{step}" if re.fullmatch(r"[A-Za-z_][\w-]*", step) else f"{path}[{shown(step)}]"


class Findings:
    """The problems and warnings of one file, gathered while it is read. `file` is how messages call it."""

    def __init__(self, file: str) -> None:
        self.file = file
        self._problems: list[Problem] = []
        self._warnings: list[Problem] = []
        self._broken: set[str] = set()

    def problem(self, message: str, path: str = "$", line: int | None = None) -> None:
        """Something that makes the file unsound."""
        if path not in self._broken:
            self._problems.append(Problem(self.file, message, path, line))

    def broken(self, message: str, path: str, line: int) -> None:
        """A problem of a scalar that has no value: what its reader finds wrong there would only repeat it."""
        self.problem(message, path, line)
        self._broken.add(path)

    def warn(self, message: str, path: str = "$", line: int | None = None) -> None:
        """Something a person should know, that stops nothing."""
        self._warnings.append(Problem(self.file, message, path, line))

    @property
    def problems(self) -> tuple[Problem, ...]:
        """In reading order."""
        return tuple(sorted(self._problems, key=_reading_order))

    @property
    def warnings(self) -> tuple[Problem, ...]:
        """In reading order."""
        return tuple(sorted(self._warnings, key=_reading_order))


def _reading_order(problem: Problem) -> int:
    return problem.line or 0


def read_yaml(path: Path, found: Findings, *, may_be_empty: bool = False) -> Item | None:
    """The file's top-level mapping. None where it cannot be read at all; whatever is wrong goes into `found`.

    Refused: anything but one UTF-8 document whose top is a mapping, over 256 KB, deeper than 32 levels, with anchors,
    aliases, tags, duplicate keys, keys that are not text, or numbers JSON does not have.
    """
    text = _read_text(path, found)
    node = None if text is None else _compose(text, found)
    if node is None and not found.problems and may_be_empty:
        return Item({}, "$", 1)
    if node is None:
        if not found.problems:
            found.problem("is empty")
        return None
    item = _item(node, "$", _line_of(node), found)
    if not isinstance(item.value, Mapping):
        found.problem("expected `key: value` lines at the top of the file", line=item.line)
        return None
    return item


def _read_text(path: Path, found: Findings) -> str | None:
    try:
        with path.open("rb") as file:
            content = file.read(MAX_BYTES + 1)
    except OSError as error:
        found.problem(f"cannot be read: {error.strerror}")
        return None
    if len(content) > MAX_BYTES:
        line = content[:MAX_BYTES].count(b"\n") + 1
        found.problem(f"is over {MAX_BYTES // 1024} KB, the limit for a file that a person writes", line=line)
        return None
    try:
        return content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        found.problem("is not UTF-8 text", line=content[: error.start].count(b"\n") + 1)
        return None


class _Refusal(yaml.MarkedYAMLError):
    """YAML that is legal and not read here."""


class _StrictLoader(yaml.SafeLoader):
    """Composes nodes one by one and stops at the first alias, anchor, tag or level too deep, before it is built."""

    depth = 0

    def compose_node(self, parent: yaml.Node | None, index: int) -> yaml.Node | None:
        event: Any = self.peek_event()  # type: ignore[no-untyped-call]
        if isinstance(event, yaml.AliasEvent) or event.anchor is not None:
            raise _refusal("anchors and aliases (&, *) are not read; quote the text", event)
        if event.tag is not None:
            raise _refusal("tags (!) are not read; quote the text", event)
        self.depth += isinstance(event, yaml.CollectionStartEvent)
        if self.depth > MAX_DEPTH:
            raise _refusal(f"is nested deeper than {MAX_DEPTH} levels", event)
        node = super().compose_node(parent, index)
        self.depth -= isinstance(event, yaml.CollectionStartEvent)
        return node


def _refusal(why: str, event: Any) -> _Refusal:
    return _Refusal(problem=why, problem_mark=event.start_mark)


def _compose(text: str, found: Findings) -> yaml.Node | None:
    """The document's root node; None where it is empty, or not YAML, which is reported."""
    try:
        loader = _StrictLoader(text)
    except yaml.reader.ReaderError as error:
        line = text[: error.position].count("\n") + 1
        found.problem(f"the character U+{int(error.character):04X} may not stand in YAML", line=line)
        return None
    try:
        node: yaml.Node | None = loader.get_single_node()
    except yaml.MarkedYAMLError as error:
        _report_syntax(error, found)
        return None
    except (ValueError, OverflowError):  # what PyYAML hands to chr and int unchecked: `"\UFFFFFFFF"`, `%YAML 1.999…`
        found.problem("not YAML: an escape or number out of range", line=loader.get_mark().line + 1)
        return None
    return node


def _report_syntax(error: yaml.MarkedYAMLError, found: Findings) -> None:
    mark = error.problem_mark or error.context_mark
    message = error.problem or error.context or "broken"
    if isinstance(error, _Refusal):
        text = message
    elif "'\\t'" in message:
        text = "not YAML: a tab; YAML is indented with spaces"
    else:
        text = f"not YAML: {message}"
    if mark is None:
        found.problem(text)
    else:
        found.problem(f"{text} (column {mark.column + 1})", line=mark.line + 1)


def _item(node: yaml.Node, path: str, line: int, found: Findings) -> Item:
    if isinstance(node, yaml.MappingNode):
        return Item(dict(_entries(node, path, found)), path, line)
    if isinstance(node, yaml.SequenceNode):
        items = (_item(c, path_below(path, i), _line_of(c), found) for i, c in enumerate(node.value))
        return Item(tuple(items), path, line)
    value, fault = _scalar(node.tag.rpartition(":")[2], node.value)
    if fault:
        found.broken(fault, path, line)
    return Item(value, path, line, node.value)


def _line_of(node: yaml.Node) -> int:
    return node.start_mark.line + 1


def _entries(node: yaml.MappingNode, path: str, found: Findings) -> Iterator[tuple[str, Item]]:
    """The mapping's entries in order; of a key that stands twice, the first."""
    lines: dict[str, int] = {}
    for key_node, value_node in node.value:
        line = _line_of(key_node)
        fault, key = _key(key_node)
        if fault is None and key in lines:
            fault = f"{shown(key)} stands twice; first in line {lines[key]}"
        if fault:
            found.problem(fault, path, line)
            continue
        lines[key] = line
        yield key, _item(value_node, path_below(path, key), line, found)  # a person looks for the key's line


def _key(node: yaml.Node) -> tuple[str | None, str]:
    """(what is wrong with the key or None, the key)."""
    if not isinstance(node, yaml.ScalarNode):
        return "a key must be text, not a list or mapping", ""
    kind = node.tag.rpartition(":")[2]
    if kind == "merge":
        return "merge keys (<<) are not read; write the keys out", ""
    value, fault = _scalar(kind, node.value)
    if not isinstance(value, str):
        return f"the key {shown(node.value)} is not text in YAML: quote it", ""
    if fault:
        return f"the key {shown(node.value)}: {fault}", ""
    return None, value


def _scalar(kind: str, text: str) -> tuple[Scalar, str | None]:
    """(value, what is wrong with it or None). `kind` is the end of YAML's tag, such as `int`."""
    match kind:
        case "null":
            return None, None
        case "bool":
            return text.lower() in {"yes", "true", "on"}, None
        case "int":
            return _whole(text)
        case "float":
            return _decimal(text)
        case _:  # text, and what YAML alone would make a date of
            fault = _bad_text(text)
            return ("?" if fault else text), fault


def _whole(text: str) -> tuple[int, str | None]:
    if not re.fullmatch(r"[-+]?(0|[1-9][0-9_]*)", text):
        return 0, f"YAML reads {shown(text)} as a number in another base: write it in decimals, or quote it"
    if len(text) > _MAX_NUMBER_CHARS or not -(2**63) <= int(text.replace("_", "")) < 2**63:
        return 0, "a whole number must fit into 64 bits"
    return int(text.replace("_", "")), None


def _decimal(text: str) -> tuple[float, str | None]:
    if ":" in text:
        return 0.0, f"YAML reads {shown(text)} as a number in base 60: quote it"
    if len(text) > _MAX_NUMBER_CHARS:
        return 0.0, f"a number may have {_MAX_NUMBER_CHARS} characters"
    if text.lower().lstrip("+-") in {".inf", ".nan"}:
        return 0.0, f"expected a finite number; got {text}"
    value = float(text.replace("_", ""))
    return (value, None) if abs(value) != float("inf") else (0.0, f"expected a finite number; got {text}")


def _bad_text(text: str) -> str | None:
    if "\0" in text:
        return "text may not hold the character NUL"
    if any("\ud800" <= character <= "\udfff" for character in text):
        return "is not Unicode text: half of a surrogate pair"
    return None
