"""A moment of a run in words, and when Dagster's log wants to hear of it."""

import time
from collections import Counter
from collections.abc import Callable

from foundry_pipeline.invoke import Progress

LINE_EVERY_S = 10.0
MOST_LINES = 16
CODES_NAMED = 3


def time_left(seconds: float) -> str:
    """`about 2:03 left`, `about 5:02:03 left`"""
    minutes, rest = divmod(int(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"about {hours}:{minutes:02d}:{rest:02d} left" if hours else f"about {minutes}:{rest:02d} left"


def progress_words(progress: Progress) -> str:
    """What is waited for, how fast it goes and may go, what it has cost, what failed and why: a narrow terminal cuts
    off the end."""
    limit = f" of {_short(progress.allowed_per_s)}" if progress.allowed_per_s is not None else ""
    cost = "" if progress.cost is None else str(progress.cost)
    words = (progress.note, f"{progress.rate_per_s:.1f}{limit} requests/s", cost, _trouble(progress))
    return ", ".join(word for word in words if word)


def _trouble(progress: Progress) -> str:
    """The codes count refused and unreadable rows beside failed ones, and so does their sum."""
    errors = Counter(progress.errors)
    if not errors:
        return f"{progress.failed:,} failed"
    most = ", ".join(f"{code} {count:,}" for code, count in errors.most_common(CODES_NAMED))
    return f"{errors.total():,} without an answer ({most})"


def _short(number: float) -> str:
    return f"{number:.1f}".removesuffix(".0") if number >= 1 else f"{number:.2g}"


class LogPace:
    """When a line about a step's progress is due in Dagster's log, where every line is an event that stays for ever.

    Every ten seconds at first, then ever more rarely: 14 lines in an hour, 20 in ten. After ten seconds again where
    what is waited for changes, up to MOST_LINES in all. A slice that is done begins anew.
    """

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._note = ""
        self.slice_done()

    def slice_done(self) -> None:
        """The next slice has its own lines."""
        self._began = self._last = self._clock()
        self._lines = 0

    def is_due(self, note: str) -> bool:
        """Ask often; True means that the line is written now. `note` is what is waited for."""
        now = self._clock()
        is_news = _kind_of_wait(note) != _kind_of_wait(self._note) and self._lines < MOST_LINES
        patience_s = LINE_EVERY_S if is_news else max(LINE_EVERY_S, (now - self._began) / 3)
        if now - self._last < patience_s:
            return False
        self._last, self._note = now, note
        self._lines += 1
        return True


def _kind_of_wait(note: str) -> str:
    """`held`, `paused`, or nothing: a note without its times and reasons. That some row is retried is no news."""
    word = note.partition(" ")[0]
    return word if word in ("held", "paused") else ""
