"""Workers of the command line: one thread of this process, or several processes that share ledger and rate."""

import multiprocessing
import os
import queue
import signal
import threading
from collections.abc import Callable, Sequence
from concurrent.futures import Executor, Future, ProcessPoolExecutor, ThreadPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from contextlib import suppress
from typing import Self

from assets.outcomes import ALL_SLICES
from assets.progress import Gauge
from assets.work import News, Result, Stop, Task, Worker
from foundry_pipeline.home import Home, load_home
from resources import Places

LISTEN_S = 0.2
LATE_S = 5.0
"""How long news of a task may be under way when its result has come."""


class Interrupted(Exception):
    """The person, or the machine, asked the command to stop; the workers have. Its text is what there is so far."""


class Crew:
    """Executes tasks and tells a gauge. Use as a context manager."""

    def __init__(self, home: Home, places: Places, workers: int, *, verbose: bool = False) -> None:
        """One worker is a thread; more of them are processes."""
        self.workers = workers
        if workers == 1:
            self._news: queue.Queue[News] | multiprocessing.Queue[News] = queue.Queue()
            self._stop: threading.Event | multiprocessing.synchronize.Event = threading.Event()
            worker = Worker(home, places, self._news.put, self._stop, verbose=verbose)
            self._execute: Callable[[Task], Result] = worker.execute
            self._pool: Executor = ThreadPoolExecutor(1)
        else:
            context = multiprocessing.get_context("spawn")
            self._news, self._stop = context.Queue(), context.Event()
            self._execute = _execute_in_process
            arguments = (places, self._news, self._stop, verbose)
            self._pool = ProcessPoolExecutor(workers, context, _begin_process, arguments)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc: object) -> None:
        self._stop.set()
        self._pool.shutdown(cancel_futures=True)

    def run(self, tasks: Sequence[Task], gauge: Gauge) -> list[Result]:
        """Results in the tasks' order. Raises Interrupted once everybody has stopped, after a signal to stop."""
        futures = [self._pool.submit(self._execute, task) for task in tasks]
        try:
            self._listen(futures, gauge)
        except KeyboardInterrupt:
            self._wait_for_the_last(futures, gauge)
            raise Interrupted(gauge.so_far) from None
        results = [_result(task, future) for task, future in zip(tasks, futures, strict=True)]
        if any(result.interrupted for result in results):
            raise Interrupted(gauge.so_far)
        return results

    def _listen(self, futures: Sequence[Future[Result]], gauge: Gauge) -> None:
        heard, waiting = 0, set(futures)
        while waiting:
            _, waiting = wait(waiting, timeout=LISTEN_S)
            heard += self._drain(gauge)
        told = sum(future.result().told for future in futures if future.exception() is None)
        while heard < told and (more := self._drain(gauge, LATE_S)):  # news and results travel by different pipes
            heard += more

    def _drain(self, gauge: Gauge, patience_s: float = 0.0) -> int:
        """Take in what there is, after waiting for the first of it. Gives the number of news."""
        heard = 0
        with suppress(queue.Empty):
            while True:
                gauge.hear(self._news.get(timeout=0.0 if heard else patience_s))
                heard += 1
        return heard

    def _wait_for_the_last(self, futures: Sequence[Future[Result]], gauge: Gauge) -> None:
        try:
            self._stop.set()
            gauge.display.say("stopping: calls in flight come home, for up to ten seconds. Again: leave at once")
            self._listen(futures, gauge)
        except KeyboardInterrupt:
            os._exit(130)  # a thread of calls would hold the interpreter back; every answer so far is on disk


def _result(task: Task, future: Future[Result]) -> Result:
    try:
        return future.result()
    except BrokenProcessPool:
        return Result(task, failures={ALL_SLICES: "a worker process died; every answer it had is kept, run again"})


_worker: Worker | None = None
"""What a process of the pool keeps between its tasks."""


def _begin_process(places: Places, news: "multiprocessing.Queue[News]", stop: Stop, verbose: bool) -> None:
    global _worker
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the command hears Ctrl-C, and says stop
    _worker = Worker(load_home(places.home, os.environ), places, news.put, stop, verbose=verbose)


def _execute_in_process(task: Task) -> Result:
    assert _worker is not None
    return _worker.execute(task)
