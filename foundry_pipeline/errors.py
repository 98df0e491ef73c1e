"""The errors callers tell apart, split by what they do next.

    FoundryError
    ├── ConfigError        a person fixes a file; holds every problem found in it
    ├── RowUnavailable     the data row's content cannot be had: record it as `not_sent`, go on
    ├── EndpointStopped    going on is pointless for now: stop sending, keep everything, tell the person
    ├── SliceBusy          another process works on this slice: wait, or try later
    └── StorageError       a disk, ledger or warehouse refuses or is damaged: stop, nothing is lost
        └── AccountingError    what was counted in is not what would be written: a bug of ours, so nothing is written

What a model says about one row is never an exception: it is an outcome (`replies.py`) or a reject
(`decode.py`). Anything else that is raised is a bug and travels.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

SHOWN_CHARS = 80


def shown(value: object, limit: int = SHOWN_CHARS) -> str:
    """`repr` of a foreign value, cut to `limit` characters, so that no message carries a picture or a page."""
    text = repr(value[: 4 * limit] if isinstance(value, str | bytes) else value)
    return text if len(text) <= limit else f"{text[: limit - 1]}…"


@dataclass(frozen=True, slots=True)
class Problem:
    """One thing wrong in a file that a person edits. `line` counts from 1; `path` is `$.a.b[0]`."""

    file: str
    message: str
    path: str = "$"
    line: int | None = None

    def __str__(self) -> str:
        place = self.file if self.line is None else f"{self.file}:{self.line}"
        return f"{place}: {self.path}: {self.message}"


class FoundryError(Exception):
    """The root: everything this package raises on purpose."""


class ConfigError(FoundryError):
    """Files that a person edits are wrong. `problems` holds all of them, in reading order."""

    def __init__(self, problems: Iterable[Problem]) -> None:
        self.problems: tuple[Problem, ...] = tuple(problems)
        super().__init__("\n".join(str(problem) for problem in self.problems))


class RowUnavailable(FoundryError):
    """A data row's content cannot be had. `code` is a `row_*` code of `responses.error`.

    `wait_s`: it may be had after so many seconds; None where nothing speaks for that.
    """

    def __init__(self, code: str, message: str, wait_s: float | None = None) -> None:
        self.code = code
        self.message = message
        self.wait_s = wait_s
        super().__init__(f"{code}: {message}")


class EndpointStopped(FoundryError):
    """Sending more is pointless. `code` goes into `responses.error`; `message` says why and what to do."""

    def __init__(self, code: str, message: str) -> None:
        self.code = code
        self.message = message
        super().__init__(f"{code}: {message}")


class SliceBusy(FoundryError):
    """Another process holds the lease of this slice; the message names it."""


class StorageError(FoundryError):
    """A disk, ledger or warehouse refuses or is damaged; the message says where and what is kept."""


class AccountingError(StorageError):
    """The sums of a slice do not add up; the message has them. Nothing of the slice is committed, nothing deleted."""

    def __init__(self, what: str, came: int, parts: Mapping[str, int]) -> None:
        """`parts` are where what `came` should have gone: name -> count."""
        sums = " + ".join(f"{count:,} {name}" for name, count in parts.items())
        super().__init__(
            f"accounting: {came:,} {what} are not {sums}: a bug of ours; nothing was written, the replies are kept"
        )


def check_sums(what: str, came: int, parts: Mapping[str, int]) -> None:
    """Raise AccountingError where `came` is not the sum of its parts."""
    if came != sum(parts.values()):
        raise AccountingError(what, came, parts)
