"""How far a run is, for people: a bar on a terminal, a line now and then elsewhere. To standard error."""

import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Protocol, TextIO

from tqdm import tqdm

from assets.work import Decoded, News, Task
from foundry_pipeline.invoke import Progress, SliceReport
from foundry_pipeline.rows.datasets import DatasetReport, LoadProgress

LINE_EVERY_S = 10.0


class Display(Protocol):
    """Shows a state of things; is closed when the thing is done."""

    def show(self, done: int, total: int | None, words: str) -> None:
        """`total` is None where nobody knows it yet."""

    def say(self, text: str) -> None:
        """A line of its own, above what is shown."""

    def close(self) -> None:
        """No more is coming."""


class Bar:
    """A tqdm bar, with its rate and the time that is left."""

    def __init__(self, name: str, stream: TextIO) -> None:
        self._bar = tqdm(desc=name, unit=" rows", file=stream, dynamic_ncols=True, smoothing=0.1, leave=True)

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
        left_s = int(passed_s / (done - self._last_done) * (total - done))
        return f"about {left_s // 60}:{left_s % 60:02d} left"


def display_for(name: str, stream: TextIO) -> Display:
    """A bar where `stream` is a terminal, else lines."""
    return Bar(name, stream) if stream.isatty() else Lines(name, stream)


@dataclass(slots=True)
class Gauge:
    """Adds up the news of several workers on one thing, and shows the sum. `total` counts rows of `responses`, as far
    as they are known before conversations are read."""

    display: Display
    total: int | None = None
    calls: int = 0
    reused: int = 0
    repeated: int = 0
    loaded: DatasetReport | None = None
    _latest: dict[Task, Progress] = field(default_factory=dict)
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
                self._add(news.what)
            case Decoded():
                self._decoded += 1
                self._show()

    def _add(self, report: SliceReport) -> None:
        self.calls += report.calls
        self.reused += report.reused
        self.repeated += report.repeated
        if report.failure is not None:
            self.display.say(f"slice {report.slice_key} failed: {report.failure}")

    def _show(self) -> None:
        latest = list(self._latest.values())
        words = [f"{sum(p.failed for p in latest):,} failed, {sum(p.rate_per_s for p in latest):.1f} requests/s"]
        words += [f"{self._decoded:,} slices decoded"] if self._decoded else []
        words += [p.note for p in latest if p.note][:1]
        total = None if self.total is None else max(self.total, sum(p.rows for p in latest))
        self.display.show(sum(p.done for p in latest), total, ", ".join(words))
