"""A moment of a run in words, and when Dagster's log wants to hear of it."""

import time
from collections import Counter
from collections.abc import Callable, Mapping

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
    """What failed and why, how fast it goes and may go, what it has cost, what is waited for."""
    limit = progress.allowed_per_s
    rate = f"{progress.rate_per_s:.1f}" + (f" of {_short(limit)}" if limit is not None else "") + " requests/s"
    cost = [str(progress.cost)] if progress.cost is not None else []
    note = [progress.note] if progress.note else []
    return ", ".join([f"{progress.failed:,} failed{_codes(progress.errors)}", rate, *cost, *note])


def _codes(errors: Mapping[str, int]) -> str:
    """The most frequent of them. They count refused and unreadable rows, too."""
    most = Counter(errors).most_common(CODES_NAMED)
    return f" ({', '.join(f'{code} {count:,}' for code, count in most)})" if most else ""


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
    """`held`, `paused`, `waiting`, or nothing: a note without its times and reasons."""
    return note.partition(" ")[0]
