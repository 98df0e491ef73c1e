"""Load a dataset: its source -> the slices of its `data_rows` table, and a report of what was found.

Each row's content is looked at once, here: what it is, its size, its sha256. A row whose content cannot be had stays
in the table without them; calls then find out again, and record it as `not_sent`.
"""

from __future__ import annotations

import asyncio
import sqlite3
from collections import Counter, deque
from collections.abc import AsyncGenerator, Callable, Iterator, Mapping
from contextlib import aclosing, contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import httpx
import pyarrow as pa
import pyarrow.parquet as pq

from foundry_pipeline.data_rows import DataRow
from foundry_pipeline.errors import ConfigError, Problem, RowUnavailable, StorageError, shown
from foundry_pipeline.home import Dataset, Settings
from foundry_pipeline.rows.content import Content, ContentReader
from foundry_pipeline.rows.frames import check_decoder
from foundry_pipeline.rows.labels import LABELS_FILE, labels_folder
from foundry_pipeline.rows.records import LoadProblem, Record
from foundry_pipeline.rows.slices import EARLIER_COLUMNS, Known, Spool, Unread, same_table, slice_key
from foundry_pipeline.rows.sources import list_source
from foundry_pipeline.store import Store
from foundry_pipeline.tables import DATA_ROWS

PROBLEMS_KEPT = 100
ROWS_AHEAD = 256
"""Contents asked for before the oldest of them has come; few of these are in work at a time."""


@dataclass(frozen=True, slots=True)
class LoadProgress:
    """A moment of a load, for bars and logs. `phase` is `listing` (total unknown), `reading` or `writing`."""

    dataset: str
    phase: str
    done: int
    total: int | None = None


@dataclass(frozen=True, slots=True)
class DatasetReport:
    """What a load found and wrote. Slice keys are in order; counts are data rows unless said otherwise."""

    dataset: str
    rows: int
    slices: tuple[str, ...]
    """All slices of the dataset, empty ones included."""
    changed: tuple[str, ...]
    """Slices written now: new ones, and those whose rows changed."""
    emptied: tuple[str, ...]
    """Of `changed`: slices that lost their last row. Their file stays, with no rows."""
    data_versions: Mapping[str, str]
    """Slice key -> sha256 of its file."""
    mime_types: Mapping[str, int]
    """Type of content -> rows; `unknown` where the content cannot be had."""
    added: int
    vanished: int
    """Rows of earlier slices that the source no longer lists."""
    content_changed: int
    """Rows whose content is not what it was."""
    unavailable: int
    """Rows whose content cannot be had now."""
    bytes_read: int
    """Of contents, in this load."""
    labelled: int
    """Rows that the source has labels of: see `labels.stored_labels`."""
    problems: tuple[LoadProblem, ...]
    """The first 100."""
    problem_counts: Mapping[str, int]
    """Code -> problems, all of them."""

    @property
    def problem_count(self) -> int:
        """All problems, also those that `problems` has no room for."""
        return sum(self.problem_counts.values())


def load_dataset(
    dataset: Dataset,
    home_root: Path,
    settings: Settings,
    store: Store,
    *,
    reread: bool = False,
    on_progress: Callable[[LoadProgress], None] = lambda _: None,
    transport: httpx.AsyncBaseTransport | None = None,
    scratch: Path | None = None,
) -> DatasetReport:
    """Read a dataset's source, look at every row's content, and write the slices that changed.

    A URL whose content is known from an earlier load is not fetched again, unless `reread`. `transport` takes the
    place of the guarded one; `scratch` is a folder for temporary files. Runs an event loop of its own.

    Raises ConfigError where the source as a whole cannot be used, before anything is written; also where it lists
    nothing although the dataset has rows, since an unmounted disk must not empty every table. Raises StorageError
    where a disk refuses or an earlier slice is damaged; slices written until then stay.
    """
    _check_encoding(dataset)
    check_decoder(dataset.media_type, dataset.file)
    store.recover()
    reader = ContentReader(home_root, settings, encoding=dataset.encoding, transport=transport)
    try:
        with Spool(dataset.name, dataset.media_type, scratch) as spool:
            load = _Load(dataset, settings, store, spool, on_progress)
            load.list_rows(reader)
            load.place_rows(reread=reread)
            asyncio.run(load.read_and_write(reader))
            return load.report()
    except sqlite3.Error as err:
        raise StorageError(f"temporary files of loading {dataset.name}: {err}; slices already written stay") from err


def _check_encoding(dataset: Dataset) -> None:
    try:
        # Not of no bytes: those decode in any encoding. One blank is not UTF-16, which does not matter here.
        b" ".decode(dataset.encoding, errors="ignore")
    except LookupError:
        message = f"expected the name of a text encoding such as utf-8, got {shown(dataset.encoding)}"
        raise ConfigError([Problem(dataset.file, message, "$.encoding")]) from None


@dataclass(slots=True)
class _Load:
    """One load on its way: the counts, and the steps in their order."""

    dataset: Dataset
    settings: Settings
    store: Store
    spool: Spool
    on_progress: Callable[[LoadProgress], None]
    problems: list[LoadProblem] = field(default_factory=list)
    problem_counts: Counter[str] = field(default_factory=Counter)
    in_order: bool = True
    existing: tuple[int, ...] = ()
    numbers: tuple[int, ...] = ()
    changed: list[str] = field(default_factory=list)
    emptied: list[str] = field(default_factory=list)
    versions: dict[str, str] = field(default_factory=dict)
    added: int = 0
    vanished: int = 0
    bytes_read: int = 0
    labelled: int = 0

    def list_rows(self, reader: ContentReader) -> None:
        listing = list_source(self.dataset, reader.files, self.settings)
        self.in_order = listing.in_order
        for count, listed in enumerate(listing.records, 1):
            if isinstance(listed, LoadProblem):
                self._problem(listed)
            else:
                self._add(listed, reader)
            if count % 1000 == 0:
                self._tell("listing", count)

    def _add(self, record: Record, reader: ContentReader) -> None:
        """Content that stands in the record is looked at now: later it would have to be held for many rows at once."""
        known, problem = self._in_row(record, reader) if record.kind.is_in_row else (None, None)
        problem = self.spool.add(record, known) or problem
        if problem is not None:
            self._problem(problem)
        if record.labels_lost:
            message = f"labels that no line of ground truth can hold: {record.labels_lost}"
            self._problem(LoadProblem(record.place, "label_left_out", message))

    def _in_row(self, record: Record, reader: ContentReader) -> tuple[Known, LoadProblem | None]:
        row = DataRow("", record.global_key, self.dataset.media_type, record.row_data)
        try:
            content = reader.in_row(row, record.kind)
        except RowUnavailable as err:
            return Known(), LoadProblem(record.place, err.code, err.message)
        self.bytes_read += len(content.data)
        return _known(content), None

    def place_rows(self, *, reread: bool) -> None:
        """Give every listed row its slice."""
        self.existing = tuple(map(int, self.store.slices(DATA_ROWS, self.dataset.name)))
        for number in self.existing:
            self.vanished += self.spool.keep(number, self._earlier_rows(number), reuse=not reread)
        if self.vanished and not self.spool.row_count():
            message = (
                f"{shown(self.dataset.source, 200)}: lists no data row, while the dataset has {self.vanished:,}; "
                "is a disk missing? To start anew, remove the dataset's data_rows folder from the warehouse"
            )
            raise ConfigError([Problem(self.dataset.file, message, "$.source")])
        try:
            self.added = self.spool.append_new(self.existing, self.dataset.rows_per_slice, in_order=self.in_order)
        except OverflowError as err:
            message = f"{err} of {self.dataset.rows_per_slice} rows; use larger ones"
            raise ConfigError([Problem(self.dataset.file, message, "$.rows_per_slice")]) from None
        self.numbers = tuple(sorted({*self.existing, *self.spool.numbers()}))

    def _earlier_rows(self, number: int) -> Iterator[Mapping[str, object]]:
        file = self.store.open(DATA_ROWS, self.dataset.name, slice_key(number))
        if file is None:
            return
        with file, _damage_named(self.store.path(DATA_ROWS, self.dataset.name, slice_key(number))):
            for batch in file.iter_batches(batch_size=1024, columns=list(EARLIER_COLUMNS)):
                yield from batch.to_pylist()

    async def read_and_write(self, reader: ContentReader) -> None:
        """Look at contents in the order of slices, and write each slice as soon as all of it is known."""
        waiting = deque(self.numbers)
        done, total = 0, self.spool.row_count()
        async with reader, aclosing(_contents(reader, self.spool.unread())) as contents:
            async for unread, known, problem, size in contents:
                while waiting[0] < unread.slice_number:
                    self._write(waiting.popleft())
                self.spool.learn(unread.seq, known)
                self.bytes_read += size
                if problem is not None:
                    self._problem(problem)
                done += 1
                self._tell("reading", done, total)
        while waiting:
            self._write(waiting.popleft())
        self._write_labels()

    def _write_labels(self) -> None:
        """Keep what the source says about its rows as one file, or none: see `labels.py`."""
        name = f"{labels_folder(self.dataset.name)}/{LABELS_FILE}"
        with self.store.scratch() as folder:
            path = folder / LABELS_FILE
            try:
                with path.open("w", encoding="utf-8") as file:
                    for lines in self.spool.labels():
                        file.write(lines)
                        self.labelled += 1
            except OSError as err:
                raise StorageError(f"cannot write {path}: {err.strerror or err}; the older labels stay") from err
            if self.labelled:
                self.store.put_file(name, path)
            else:
                self.store.remove_file(name)

    def _write(self, number: int) -> None:
        key, name = slice_key(number), self.dataset.name
        record = self.store.record(name, key, DATA_ROWS.name) if number in self.existing else None
        if record is not None and self._is_written(number):
            self.versions[key] = str(record["sha256"])
        else:
            written = self.store.commit(name, key, {DATA_ROWS.name: self._fill(number)})[DATA_ROWS.name]
            self.versions[key] = written.sha256
            self.changed.append(key)
            if written.rows == 0:
                self.emptied.append(key)
        self._tell("writing", len(self.versions), len(self.numbers))

    def _is_written(self, number: int) -> bool:
        file = self.store.open(DATA_ROWS, self.dataset.name, slice_key(number))
        if file is None:
            return False
        with file, _damage_named(self.store.path(DATA_ROWS, self.dataset.name, slice_key(number))):
            return same_table(self.spool.chunks(number), file)

    def _fill(self, number: int) -> Callable[[pq.ParquetWriter], None]:
        def fill(writer: pq.ParquetWriter) -> None:
            for chunk in self.spool.chunks(number):
                if chunk.num_rows:
                    writer.write_table(chunk)

        return fill

    def report(self) -> DatasetReport:
        mime_types = self.spool.mime_types()
        return DatasetReport(
            dataset=self.dataset.name,
            rows=self.spool.row_count(),
            slices=tuple(map(slice_key, self.numbers)),
            changed=tuple(self.changed),
            emptied=tuple(self.emptied),
            data_versions=dict(self.versions),
            mime_types=mime_types,
            added=self.added,
            vanished=self.vanished,
            content_changed=self.spool.changed_contents(),
            unavailable=mime_types.get("unknown", 0),
            bytes_read=self.bytes_read,
            labelled=self.labelled,
            problems=tuple(self.problems),
            problem_counts=dict(sorted(self.problem_counts.items())),
        )

    def _problem(self, problem: LoadProblem) -> None:
        self.problem_counts[problem.code] += 1
        if len(self.problems) < PROBLEMS_KEPT:
            self.problems.append(problem)

    def _tell(self, phase: str, done: int, total: int | None = None) -> None:
        self.on_progress(LoadProgress(self.dataset.name, phase, done, total))


_Found = tuple[Unread, Known, LoadProblem | None, int]
"""A row, what its content is, the problem where it cannot be had, and its bytes."""


async def _contents(reader: ContentReader, rows: Iterator[Unread]) -> AsyncGenerator[_Found, None]:
    """Contents in the order of `rows`, several of them looked at at once."""
    ahead: deque[asyncio.Task[_Found]] = deque()
    try:
        for unread in rows:
            ahead.append(asyncio.create_task(_content(reader, unread)))
            if len(ahead) >= ROWS_AHEAD:
                yield await ahead.popleft()
        while ahead:
            yield await ahead.popleft()
    finally:
        for task in ahead:
            task.cancel()
        await asyncio.gather(*ahead, return_exceptions=True)


async def _content(reader: ContentReader, unread: Unread) -> _Found:
    try:
        content = await reader.read(unread.row)
    except RowUnavailable as err:
        return unread, Known(), LoadProblem(unread.place, err.code, err.message), 0
    return unread, _known(content), None, len(content.data)


def _known(content: Content) -> Known:
    return Known(
        content.mime_type,
        content.width,
        content.height,
        content.exif_orientation,
        content.sha256,
        content.frame_count,
        content.frames_per_second,
    )


@contextmanager
def _damage_named(path: str) -> Iterator[None]:
    try:
        yield
    except (OSError, pa.ArrowException) as err:
        raise StorageError(f"{path}: damaged: {err}; remove the file to have its rows loaded into new slices") from err
