"""The readable text of an HTML page: what a person would see, in lines. Entities' offsets refer to it.

A scanner of our own, and not a parser with a tree: the standard library's took two minutes for 60 KB of `<a `
(Python 3.11), and an HTML5 parser in C a second for 20,000 nested <div>, both growing with the square. This one reads
every character once, and gives the same text with every version of Python, so that offsets keep their meaning.
Source of the rules: HTML Standard, Tokenization; CSS Text, white space processing.
"""

from __future__ import annotations

import html
import re
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field

READABLE_TRANSFORM = "html-readable-v1"
"""Names what `readable_text` does; part of a request's identity, so that a change of it is a new call."""

_MARKUP = re.compile(r"<(?=[A-Za-z/!?])")
_NAME = re.compile(r"[A-Za-z][^\s/>]*")
_ATTRIBUTE = re.compile(r"""[\s/]*([^\s/>][^\s/>=]*)(?:\s*=\s*(?:"([^"]*)"|'([^']*)'|([^\s>"'][^\s>]*))?)?""")
_TAG_END = re.compile(r"[\s/]*>")
_BLANKS = re.compile(r"[ \t\n\f\r]+")
_NOT_SHOWN = re.compile(r"display\s*:\s*none", re.IGNORECASE)


def _elements(names: str) -> frozenset[str]:
    return frozenset(names.split())


_VOID = _elements("area base br col embed hr img input link meta param source track wbr")
_RAW = _elements("script style noscript iframe noembed noframes title")
"""Elements whose content is no page: passed over up to their end tag, whatever stands in it."""
_RAW_ENDS = {name: re.compile(rf"</{name}(?=[\s/>])", re.IGNORECASE) for name in _RAW}
_HIDDEN = _elements("template datalist object audio video canvas")
_LINES = _elements(
    "address article aside blockquote body caption center dd details dialog div dl dt fieldset figcaption figure "
    "footer form h1 h2 h3 h4 h5 h6 header hgroup hr html legend li main menu nav ol optgroup option p pre section "
    "select summary table tbody textarea tfoot thead tr ul"
)
"""Elements that begin and end a line."""
_CELLS = _elements("td th")
_KEEPS_BLANKS = _elements("pre textarea")
_ENDS_ITSELF = _elements("p li dt dd option optgroup tr td th thead tbody tfoot")
"""Elements that the next one of their kind ends."""


def readable_text(source: str) -> str:
    """The visible text of a page or a piece of one, whatever its markup is like.

    Character references are resolved. White space is one blank, or a line break where an element that begins a line
    or <br> stands, or a tab between the cells of a table; inside <pre> and <textarea> it stays. Comments, scripts,
    styles, titles, templates and elements marked `hidden` or `display: none` are left out. Time grows with the
    length, never faster.
    """
    page = _Page()
    for token in _tokens(source):
        page.take(token)
    return page.text()


@dataclass(frozen=True, slots=True)
class _Tag:
    name: str
    is_end: bool
    is_hidden: bool = False


def _tokens(source: str) -> Iterator[str | _Tag]:
    """Texts with their references resolved, and tags. What is not closed before the end of the source is dropped."""
    at = 0
    while (found := _MARKUP.search(source, at)) is not None:
        if found.start() > at:
            yield _resolved(source[at : found.start()])
        begun = source[found.end()]
        if begun in "!?" or not _NAME.match(source, found.end() + (begun == "/")):
            at = _after_comment(source, found.start())
            continue
        tag, at = _tag(source, found.end())
        if tag is None:
            return
        yield tag
        if not tag.is_end and tag.name in _RAW:
            at = _before_end_tag(source, at, tag.name)
    if at < len(source):
        yield _resolved(source[at:])


def _resolved(text: str) -> str:
    return html.unescape(text).replace("\0", "\ufffd")


def _after_comment(source: str, at: int) -> int:
    """Where a comment, doctype or instruction that begins at `at` ends."""
    if source.startswith("<!--", at):
        # `<!-->` is a whole comment.
        end = source.find("-->", at + 2)
        return len(source) if end < 0 else end + 3
    end = source.find(">", at)
    return len(source) if end < 0 else end + 1


def _tag(source: str, at: int) -> tuple[_Tag | None, int]:
    """The tag whose name or slash is at `at`, and the place behind it; None where it is not closed."""
    is_end = source[at] == "/"
    name = _NAME.match(source, at + is_end)
    assert name is not None
    at, hidden = name.end(), False
    while (end := _TAG_END.match(source, at)) is None:
        attribute = _ATTRIBUTE.match(source, at)
        if attribute is None or (attribute[0].endswith("=") and source[attribute.end() : attribute.end() + 1] in "\"'"):
            return None, len(source)
        hidden = hidden or _hides(attribute[1], attribute[2] or attribute[3] or attribute[4] or "")
        at = attribute.end()
    return _Tag(name[0].lower(), is_end, hidden), end.end()


def _hides(attribute: str, value: str) -> bool:
    name = attribute.lower()
    return name == "hidden" or (name == "style" and _NOT_SHOWN.search(value) is not None)


def _before_end_tag(source: str, at: int, name: str) -> int:
    end = _RAW_ENDS[name].search(source, at)
    return len(source) if end is None else end.start()


@dataclass(slots=True)
class _Page:
    """The text so far, and what the elements that are open mean for what comes."""

    _pieces: list[str] = field(default_factory=list)
    _gap: str = ""
    """What stands between the last piece and the next: nothing, a blank, a tab, or line breaks."""
    _kept_blanks: int = 0
    """Elements open that keep their white space."""
    _unseen: list[str] = field(default_factory=list)
    """Elements open from the hidden one on."""
    _unseen_count: Counter[str] = field(default_factory=Counter)

    def take(self, token: str | _Tag) -> None:
        if isinstance(token, str):
            if not self._unseen:
                self._write(token)
        elif self._unseen:
            self._leave_hidden(token)
            if not self._unseen and not (token.is_end and token.name in _HIDDEN):
                self._mark(token)
        elif not token.is_end and (token.is_hidden or token.name in _HIDDEN) and token.name not in _VOID:
            self._enter(token.name)
            self._break(token.name)
        else:
            self._mark(token)

    def text(self) -> str:
        return "".join(self._pieces)

    def _enter(self, name: str) -> None:
        self._unseen.append(name)
        self._unseen_count[name] += 1

    def _leave_hidden(self, tag: _Tag) -> None:
        """Follow the elements inside a hidden one. It ends with its end tag, with that of an element around it, or
        where the next element of its kind begins and the end tag may be left out."""
        if not tag.is_end:
            if tag.name == self._unseen[0] and len(self._unseen) == 1 and tag.name in _ENDS_ITSELF:
                self._clear_hidden()
                if tag.is_hidden:
                    self._enter(tag.name)
            elif tag.name not in _VOID:
                self._enter(tag.name)
        elif not self._unseen_count[tag.name]:
            if tag.name not in _VOID:
                self._clear_hidden()
        else:
            while (name := self._unseen.pop()) != tag.name:
                self._unseen_count[name] -= 1
            self._unseen_count[name] -= 1

    def _clear_hidden(self) -> None:
        self._unseen.clear()
        self._unseen_count.clear()

    def _mark(self, tag: _Tag) -> None:
        """What a tag does to the lines."""
        if tag.name in _KEEPS_BLANKS:
            self._kept_blanks = max(0, self._kept_blanks + (-1 if tag.is_end else 1))
        if tag.name == "br":
            self._gap = self._gap.strip(" \t") + "\n" if self._pieces else ""
        else:
            self._break(tag.name, is_end=tag.is_end)

    def _break(self, name: str, *, is_end: bool = False) -> None:
        if name in _LINES and self._pieces and "\n" not in self._gap:
            self._gap = "\n"
        elif name in _CELLS and is_end and "\n" not in self._gap:
            self._gap = "\t"

    def _write(self, text: str) -> None:
        if self._kept_blanks:
            self._put(text)
            return
        words = _BLANKS.sub(" ", text)
        if words.startswith(" ") and self._pieces and not self._gap:
            self._gap = " "
        if core := words.strip(" "):
            self._put(core)
            self._gap = " " if words.endswith(" ") else ""

    def _put(self, text: str) -> None:
        if text:
            self._pieces.append(self._gap + text)
            self._gap = ""
