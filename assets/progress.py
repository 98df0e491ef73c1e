"""How far a run is, for people: a bar on a terminal, a line now and then elsewhere. To standard error."""

import os
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing, contextmanager
from dataclasses import dataclass, field, replace
from typing import Protocol, TextIO

from tqdm import tqdm

from assets.progress_words import LINE_EVERY_S, progress_words, time_left
from assets.stops import Totals
from assets.work import Decoded, News, Task
from foundry_pipeline.calls.budget import Cost
from foundry_pipeline.invoke import Progress, SliceReport
from foundry_pipeline.rows.datasets import DatasetReport, LoadProgress

BAR = "{l_bar}{bar}| {n_fmt}/{total_fmt} rows [{elapsed}<{remaining}{postfix}]"
"""tqdm's own, without a rate: requests a second are among the words."""


class Display(Protocol):
    """Shows a state of things; is closed when the thing is done."""

    def show(self, done: int, total: int | None, words: str) -> None:
        """`total` is None where nobody knows it yet."""

    def say(self, text: str) -> None:
        """A line of its own, above what is shown."""

    def close(self) -> None:
        """No more is coming."""


class Bar:
    """A tqdm bar, with the time that is left."""

    def __init__(self, name: str, stream: TextIO) -> None:
        self._bar = tqdm(desc=name, file=stream, dynamic_ncols=True, smoothing=0.1, leave=True, bar_format=BAR)

    def show(self, done: int, total: int | None, words: str) -> None:
        """Move the bar."""
        self._bar.total = total
        self._bar.set_postfix_str(words, refresh=False)
        self._bar.update(done - self._bar.n)
        self._bar.refresh()

    def say(self, text: str) -> None:
        """Write above the bar."""
        self._bar.write(text, file=self._bar.fp)

    def close(self) -> None:
        """Leave the bar as it is."""
        self._bar.close()


class Lines:
    """A line every ten seconds, with the time that is left at the pace since the last one."""

    def __init__(self, name: str, stream: TextIO, clock: Callable[[], float] = time.monotonic) -> None:
        self._name = name
        self._stream = stream
        self._clock = clock
        self._last_s = clock()
        self._last_done = 0

    def show(self, done: int, total: int | None, words: str) -> None:
        """Write a line, if the last one is long enough ago."""
        passed_s = self._clock() - self._last_s
        if passed_s < LINE_EVERY_S:
            return
        known = f" of {total:,}" if total is not None else ""
        parts = [f"{self._name}: {done:,}{known} rows", words, self._left(done, total, passed_s)]
        self.say(", ".join(part for part in parts if part))
        self._last_s += passed_s
        self._last_done = done

    def say(self, text: str) -> None:
        """Write a line."""
        print(text, file=self._stream, flush=True)

    def close(self) -> None:
        """Nothing is open."""

    def _left(self, done: int, total: int | None, passed_s: float) -> str:
        if done <= self._last_done or total is None or done >= total:
            return ""
        return time_left(passed_s / (done - self._last_done) * (total - done))


@contextmanager
def display_for(name: str, stream: TextIO) -> Iterator[Display]:
    """A bar where `stream` is a terminal, else lines."""
    with _past_dagster(stream) as own, closing(Bar(name, own) if own.isatty() else Lines(name, own)) as display:
        yield display


@contextmanager
def _past_dagster(stream: TextIO) -> Iterator[TextIO]:
    """The stream by a descriptor of its own.

    While Dagster executes, it takes over the usual ones for its logs: no terminal, and a bar would fill them.
    """
    try:
        descriptor = os.dup(stream.fileno())
    except OSError:  # a stream in memory has none
        yield stream
        return
    with os.fdopen(descriptor, "w", encoding=stream.encoding, errors="backslashreplace") as own:
        yield own


@dataclass(slots=True)
class Gauge:
    """Adds up the news of several workers on one thing, and shows the sum. `total` counts rows."""

    display: Display
    total: int | None = None
    calls: int = 0
    reused: int = 0
    repeated: int = 0
    totals: Totals = field(default_factory=Totals)
    cost: Cost | None = None
    loaded: DatasetReport | None = None
    _latest: dict[Task, Progress] = field(default_factory=dict)
    _reported: Counter[Task] = field(default_factory=Counter)
    """Slices of each task whose calls are over."""
    _decoded: int = 0

    def hear(self, news: News) -> None:
        """Take the news in and show them."""
        match news.what:
            case LoadProgress(phase=phase, done=done, total=total):
                self.display.show(done, total, phase)
            case DatasetReport():
                self.loaded = news.what
            case Progress():
                self._latest[news.task] = news.what
                self._show()
            case SliceReport():
                self._reported[news.task] += 1
                self._add(news.what)
            case Decoded():
                self._decoded += 1
                self._show()

    @property
    def so_far(self) -> str:
        """What there is, for a person who stops the command; empty before anything was called."""
        if not self._latest or self.total is None:
            return ""
        done = sum(progress.done for progress in self._latest.values())
        return f"{done:,} of {self.total:,} rows have their answer, {self.total - done:,} are left"

    def _add(self, report: SliceReport) -> None:
        self.calls += report.calls
        self.reused += report.reused
        self.repeated += report.repeated
        self.cost = _more(self.cost, report.cost)
        is_news = report.failure is not None and (report.stop is None or self.totals.stop is None)
        self.totals.add(report)
        if is_news:
            self.display.say(f"slice {report.slice_key} failed: {report.failure}")

    def _show(self) -> None:
        if not self._latest:
            return
        sum_ = together([self._now(task, progress) for task, progress in self._latest.items()])
        words = progress_words(sum_) + (f", {self._decoded:,} slices decoded" if self._decoded else "")
        self.display.show(sum_.done, self.total, words)

    def _now(self, task: Task, latest: Progress) -> Progress:
        """The latest of a task; one whose slices are all reported sends nothing, and waits for nothing."""
        is_over = 0 < len(task.slices) <= self._reported[task]
        return replace(latest, rate_per_s=0.0, note="", allowed_per_s=None) if is_over else latest


def together(parts: Sequence[Progress]) -> Progress:
    """The progress of several workers on one run: they share the endpoint's limit and the run's budget."""
    errors: Counter[str] = Counter()
    cost: Cost | None = None
    for part in parts:
        errors.update(part.errors)
        cost = _more(cost, part.cost)
    limits = [part.allowed_per_s for part in parts if part.allowed_per_s is not None]
    return Progress(
        parts[0].run,
        sum(part.rows for part in parts),
        sum(part.done for part in parts),
        sum(part.failed for part in parts),
        sum(part.calls for part in parts),
        sum(part.rate_per_s for part in parts),
        next((part.note for part in reversed(parts) if part.note), ""),
        allowed_per_s=limits[-1] if limits else None,
        errors=errors,
        cost=cost,
    )


def _more(one: Cost | None, other: Cost | None) -> Cost | None:
    """The later of two looks at the same count."""
    if one is None or other is None:
        return one or other
    return one if one.calls >= other.calls else other
