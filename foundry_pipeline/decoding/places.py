"""Where in a reply something stands: as keys to go down, and as people read it."""

from __future__ import annotations

import json
import re
from typing import NamedTuple

MAX_NAME_CHARS = 200
_FRAME = re.compile(r"0|[1-9][0-9]{0,9}")
_MAX_FRAME = 2**31 - 1

Path = tuple[str | int, ...]
"""Keys and places that lead from the whole reply to a part of it."""


class Place(NamedTuple):
    """A part of a reply, and what the rows that come from it have in common. `path` starts at the whole reply.

    A tuple, because one is made for every feature of every reply.
    """

    path: Path = ()
    feature: str | None = None
    frame: int | None = None
    message_id: str | None = None
    parent_id: str | None = None

    def at(self, *steps: str | int) -> Place:
        """The same, further down."""
        return self._replace(path=(*self.path, *steps))

    def named(self, feature: str, parent_id: str | None = None) -> Place:
        """The feature of this name, as a member of the object here."""
        return Place((*self.path, feature), feature, self.frame, self.message_id, parent_id)


class Sent(NamedTuple):
    """The part of a data row that a call was about. `frames` are those of a video that it held (None: all of it).

    `frame` and `message_id` are of whatever the reply says about all of what was sent: the frame where it was one, the
    first of them where the video took several calls, None where it was the whole video; the message it answers.
    """

    frame: int | None = None
    frames: frozenset[int] | None = None
    message_id: str | None = None


WHOLE_ROW = Sent()


def json_path(path: Path) -> str:
    """`$.dog.boxes[1]`; names that are no identifiers are quoted: `$["big dog"].boxes[1]`."""
    return "$" + "".join(map(_step, path))


def _step(part: str | int) -> str:
    if isinstance(part, int):
        return f"[{part}]"
    return f".{part}" if part.isidentifier() and len(part) <= MAX_NAME_CHARS else f"[{quoted(part, MAX_NAME_CHARS)}]"


def frame_number(key: str) -> int | None:
    """A frame's number, as in the request; None where the key is no plain decimal integer that fits the table."""
    return int(key) if _FRAME.fullmatch(key) is not None and int(key) <= _MAX_FRAME else None


def quoted(text: str, limit: int = 80) -> str:
    """A foreign string for a message: quoted, escaped, cut."""
    return json.dumps(text if len(text) <= limit else f"{text[: limit - 1]}…", ensure_ascii=not is_text(text))


def is_text(text: str) -> bool:
    """Whether UTF-8 can hold the string: half a surrogate pair cannot be written."""
    if text.isascii():
        return True
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True
