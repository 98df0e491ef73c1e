"""Many slices of a run decoded, in this process while little is left to do, else side by side in processes.

A worker is a fresh interpreter that imports nothing but this package. It is told slices on its standard input and
answers on its standard output, and ends when its input does: none outlives the process that started it, whatever ends
that. Each slice is committed by whoever decodes it, as a whole or not at all, so a worker may be killed at any moment.
"""

from __future__ import annotations

import contextlib
import dataclasses
import os
import pickle
import queue
import subprocess
import sys
from collections.abc import Generator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

from foundry_pipeline.config.settings import Settings
from foundry_pipeline.errors import StorageError
from foundry_pipeline.home import Run
from foundry_pipeline.predictions import DecodeReport, decode_slice
from foundry_pipeline.rows.content import RowReader
from foundry_pipeline.store import Store

PAYS_FROM_S = 10.0
"""Work from which on processes are started: each takes about a second of its core before it decodes anything."""
MOST_PROCESSES = 4
"""Each holds some 200 MB."""
EXIT_S = 5.0

_START = """\
import sys
sys.path[:] = sys.argv[1:]
from foundry_pipeline.decode_processes import work
work()
"""

Result = DecodeReport | StorageError
Results = Generator[tuple[str, Result], None, None]


@dataclass(frozen=True, slots=True)
class DecodeJob:
    """What decoding a run's slices takes: values alone, and no secret. `warehouse` is the store's root."""

    run: Run
    warehouse: str
    home_root: Path
    settings: Settings

    def reader(self) -> RowReader:
        """Reads the texts that entities stand in, under the home's rules."""
        return RowReader(self.home_root, self.settings, encoding=self.run.dataset.encoding)

    def without_secrets(self) -> DecodeJob:
        """The same, for another process. Decoding never calls the model."""
        model = dataclasses.replace(self.run.model, secret=None, headers=())
        return dataclasses.replace(self, run=dataclasses.replace(self.run, model=model))


def useful_processes() -> int:
    """How many processes may decode side by side here: one for each core that this one may use, up to a few."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return min(cores, MOST_PROCESSES)


def decode_slices(
    job: DecodeJob, slice_keys: Sequence[str], processes: int = 1, pays_from_s: float = PAYS_FROM_S
) -> Results:
    """Decode the slices, as `decode_slice` does: (slice key, what became of it), in their order.

    The first ones are decoded here. Once those that are left would take longer than `pays_from_s` at their pace, they
    go to so many `processes`.
    """
    spent_s = 0.0
    with job.reader() as reader:
        for done, slice_key in enumerate(slice_keys):
            left = len(slice_keys) - done
            if done and min(processes, left) > 1 and spent_s / done * left > pays_from_s:
                yield from _side_by_side(job, slice_keys[done:], min(processes, left))
                return
            result = _decoded(job, slice_key, Store(job.warehouse), reader)
            spent_s += 0.0 if isinstance(result, StorageError) else result.seconds
            yield slice_key, result


def _decoded(job: DecodeJob, slice_key: str, store: Store, reader: RowReader) -> Result:
    try:
        return decode_slice(job.run, slice_key, store, reader.text)
    except StorageError as err:
        return err


def _side_by_side(job: DecodeJob, slice_keys: Sequence[str], processes: int) -> Results:
    message = pickle.dumps(job.without_secrets())
    with contextlib.ExitStack() as stack:
        idle: queue.SimpleQueue[Worker] = queue.SimpleQueue()
        threads = stack.enter_context(ThreadPoolExecutor(processes))
        for _ in range(processes):
            idle.put(stack.enter_context(Worker(message)))
        stack.callback(threads.shutdown, wait=False, cancel_futures=True)

        def decode(slice_key: str) -> Result:
            worker = idle.get()
            try:
                return worker.decode(slice_key)
            finally:
                idle.put(worker)

        futures = [threads.submit(decode, slice_key) for slice_key in slice_keys]
        for slice_key, future in zip(slice_keys, futures, strict=True):
            yield slice_key, future.result()


class Worker:
    """A process that decodes one slice at a time. Use as a context manager, which ends it at once."""

    def __init__(self, job: bytes) -> None:
        self._job = job
        self._is_over = False
        self._start()

    def _start(self) -> None:
        """A session of its own: Ctrl-C is the starting process's to hear."""
        self._process = subprocess.Popen(  # noqa: S603, this interpreter and this package
            [sys.executable, "-c", _START, *sys.path],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            start_new_session=True,
        )
        self._is_told = False

    def _end(self) -> int:
        """End it, if it has not ended itself. Gives its exit status."""
        self._process.kill()
        for pipe in (self._process.stdin, self._process.stdout):
            with contextlib.suppress(OSError):  # what was not sent yet goes nowhere
                assert pipe is not None
                pipe.close()
        return self._process.wait()

    def __enter__(self) -> Worker:
        return self

    def __exit__(self, *exc: object) -> None:
        self._is_over = True
        self._end()

    def decode(self, slice_key: str) -> Result:
        """What became of the slice. Where the process dies of it, the next slice gets a new one."""
        stdin, stdout = self._process.stdin, self._process.stdout
        assert stdin is not None
        assert stdout is not None
        try:
            if not self._is_told:
                stdin.write(self._job)
                self._is_told = True
            stdin.write(pickle.dumps(slice_key))
            stdin.flush()
            result: Result = pickle.load(stdout)  # noqa: S301, from a process of ours
        except (EOFError, OSError, ValueError, pickle.UnpicklingError):
            with contextlib.suppress(subprocess.TimeoutExpired):
                self._process.wait(EXIT_S)
            status = self._end()
            if not self._is_over:
                self._start()
            return StorageError(
                f"the process that decoded slice {slice_key} ended with status {status}; the older tables stay as "
                "they were. Where it was killed (-9) there was too little memory"
            )
        return result


def work() -> None:
    """What a worker does: read a job, then slice keys, each answered with what became of the slice."""
    answers = os.fdopen(os.dup(sys.stdout.fileno()), "wb")
    os.dup2(sys.stderr.fileno(), sys.stdout.fileno())  # whatever prints must not come between the answers
    job: DecodeJob = pickle.load(sys.stdin.buffer)  # noqa: S301, from the process that started this one
    store = Store(job.warehouse)
    with job.reader() as reader, contextlib.suppress(EOFError, BrokenPipeError):
        while True:
            slice_key = pickle.load(sys.stdin.buffer)  # noqa: S301
            pickle.dump(_decoded(job, slice_key, store, reader), answers)
            answers.flush()
