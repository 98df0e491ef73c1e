"""Where tables live: the warehouse, a local folder or an object store.

A file is written whole or not at all. Several tables of one slice are committed together on a local disk: a redo log
makes them all old or all new, whenever the process is killed. Every commit leaves a record with the sha256 of each
file beside the tables' folders, where no reader of Parquet looks.

Source of the commit rules: plain renames of several files are not a commit; Parquet without page checksums does not
notice bit rot; readers' globs also take temporary files that lie in a table's folder.
"""

from __future__ import annotations

import contextlib
import hashlib
import io
import json
import os
import re
import shutil
import socket
import tempfile
import uuid
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.dataset as pads
import pyarrow.fs as pafs
import pyarrow.parquet as pq

from foundry_pipeline.errors import StorageError
from foundry_pipeline.tables import DATA_ROWS, TABLES, TableSpec

ROW_GROUP_ROWS = 65_536
FILES_AT_ONCE = 16
FILES_IN_LINE = 256
"""A file that waits for its turn takes a kilobyte."""
RECORDS = "_commits"
STAGING = "_staging"
DAMAGED = "_damaged"

Write = Callable[[pq.ParquetWriter], None]
"""Fills one file: called with an open writer, in bounded pieces."""


@dataclass(frozen=True, slots=True)
class Written:
    """One committed file: rows, bytes and the sha256 of its content, hexadecimal."""

    path: str
    rows: int
    size_bytes: int
    sha256: str


class Store:
    """The tables under one root. `owner` is the dataset for `data_rows`, the run for every other table."""

    def __init__(self, root: str | Path) -> None:
        """`root` is a local path, or a URL that pyarrow's file systems know (s3://, gs://, abfs://)."""
        self.local = "://" not in str(root)
        self.root = str(Path(root).absolute()) if self.local else str(root).rstrip("/")
        self._fs: pafs.FileSystem = pafs.LocalFileSystem()
        self._base = self.root
        if not self.local:
            self._fs, self._base = pafs.FileSystem.from_uri(_pyarrow_url(self.root))

    def path(self, spec: TableSpec, owner: str, slice_key: str) -> str:
        """Where a slice's file is, in the store's own spelling."""
        return f"{self._base}/{_folder(spec, owner)}/{slice_key}.parquet"

    def uri(self, spec: TableSpec, owner: str) -> str:
        """The folder of a table's slices, as a person would open it."""
        return f"{self.root}/{_folder(spec, owner)}"

    def slices(self, spec: TableSpec, owner: str) -> list[str]:
        """Keys of the slices that have a file, sorted."""
        return sorted(
            name.removesuffix(".parquet") for name in self._names(_folder(spec, owner)) if name.endswith(".parquet")
        )

    def open(self, spec: TableSpec, owner: str, slice_key: str) -> pq.ParquetFile | None:
        """The slice's file with checksums verified on reading, or None where there is none."""
        path = self.path(spec, owner, slice_key)
        if self._fs.get_file_info(path).type != pafs.FileType.File:
            return None
        try:
            return pq.ParquetFile(self._fs.open_input_file(path), page_checksum_verification=True, pre_buffer=False)
        except (OSError, pa.ArrowInvalid) as err:
            raise StorageError(f"{path}: not a readable Parquet file: {err}") from err

    def snapshot(self, spec: TableSpec, owner: str, slice_key: str) -> pq.ParquetFile | None:
        """As `open`, for reading again and again: the content stays what it is now, whatever is committed meanwhile.

        A local file that is open outlives its replacement; an object is copied.
        """
        path = self.path(spec, owner, slice_key)
        if self.local or self._fs.get_file_info(path).type != pafs.FileType.File:
            return self.open(spec, owner, slice_key)
        copy = tempfile.TemporaryFile()  # noqa: SIM115  # the ParquetFile closes it
        with reading(path), self._fs.open_input_stream(path) as stream:
            shutil.copyfileobj(stream, copy, 1 << 20)
            return pq.ParquetFile(pa.PythonFile(copy, "r"), page_checksum_verification=True)

    def read(self, spec: TableSpec, owner: str, slice_key: str, columns: list[str] | None = None) -> pa.Table | None:
        """The slice's table in its declared schema, or None. Raises StorageError where the file is damaged."""
        file = self.open(spec, owner, slice_key)
        if file is None:
            return None
        with file, reading(self.path(spec, owner, slice_key)):
            return file.read(columns=columns)

    def read_all(self, spec: TableSpec, owner: str, columns: list[str] | None = None) -> Iterator[tuple[str, pa.Table]]:
        """Slice by slice, in order of their keys: (slice key, table)."""
        for slice_key in self.slices(spec, owner):
            table = self.read(spec, owner, slice_key, columns)
            if table is not None:
                yield slice_key, table

    def scan(self, spec: TableSpec) -> pads.Dataset:
        """The table over all owners and slices, unread: its columns, and its owner's column (`owner_column`)."""
        selector = pafs.FileSelector(f"{self._base}/{spec.name}", allow_not_found=True, recursive=True)
        owner = pa.field(owner_column(spec), pa.string())
        columns = spec.schema if owner.name in spec.schema.names else spec.schema.append(owner)
        options = pads.FileSystemFactoryOptions(
            partition_base_dir=f"{self._base}/{spec.name}",
            partitioning=pads.partitioning(pa.schema([owner]), flavor="hive"),
        )
        return pads.FileSystemDatasetFactory(self._fs, selector, pads.ParquetFileFormat(), options).finish(columns)

    def row_count(self, spec: TableSpec, owner: str, slice_key: str) -> int:
        """Rows of a slice's file, read from its footer; 0 where there is none."""
        file = self.open(spec, owner, slice_key)
        if file is None:
            return 0
        with file:
            rows: int = file.metadata.num_rows
            return rows

    def commit(
        self,
        owner: str,
        slice_key: str,
        tables: Mapping[str, pa.Table | Write],
        about: Mapping[str, object] | None = None,
        before_commit: Callable[[], None] = lambda: None,
    ) -> dict[str, Written]:
        """Write the slice's files, keyed by table name, together; give back what was written.

        A value is a table, or a function that fills an open writer piece by piece. `about` goes into the commit
        record. `before_commit` is called when all is written but not yet in its place, and may raise to leave it so.
        Raises StorageError where the disk refuses; the older files then stay as they were.
        """
        try:
            if self.local:
                return self._commit_local(owner, slice_key, tables, about or {}, before_commit)
            return self._commit_remote(owner, slice_key, tables, about or {}, before_commit)
        except OSError as err:
            raise StorageError(
                f"cannot write slice {slice_key} of {owner} under {self.root}: {err.strerror or err}; "
                "the older tables stay as they were"
            ) from err

    def record(self, owner: str, slice_key: str, table: str) -> dict[str, Any] | None:
        """The commit record that `table` of this slice was last written by, or None."""
        path = f"{self._base}/{_record_name(owner, slice_key, table)}"
        if self._fs.get_file_info(path).type != pafs.FileType.File:
            return None
        with self._fs.open_input_stream(path) as stream:
            found: dict[str, Any] = json.loads(stream.read())
        return found

    def check_intact(self, spec: TableSpec, owner: str, slice_key: str) -> str | None:
        """The sha256 of the slice's file, where its content is what was committed; None where there is no record.

        Raises StorageError where the file differs from its record.
        """
        record = self.record(owner, slice_key, spec.name)
        if record is None:
            return None
        path, digest = self.path(spec, owner, slice_key), hashlib.sha256()
        with reading(path), self._fs.open_input_stream(path) as stream:
            while piece := stream.read(1 << 20):
                digest.update(piece)
        if digest.hexdigest() != record["sha256"]:
            raise StorageError(f"{path}: damaged: its sha256 is not the one that was committed")
        return digest.hexdigest()

    def remove(self, spec: TableSpec, owner: str, slice_key: str) -> None:
        """Take a slice's file away; fine where there is none."""
        path = self.path(spec, owner, slice_key)
        if self._fs.get_file_info(path).type == pafs.FileType.File:
            self._fs.delete_file(path)

    def set_aside(self, spec: TableSpec, owner: str, slice_key: str) -> None:
        """Move a damaged file to where no reader looks: what can still be read of it is not lost."""
        target = f"{self._base}/{DAMAGED}/{_folder(spec, owner)}/{slice_key}-{uuid.uuid4().hex[:8]}.parquet"
        self._fs.create_dir(target.rpartition("/")[0], recursive=True)
        self._fs.move(self.path(spec, owner, slice_key), target)

    def recover(self) -> None:
        """Finish commits that a killed process left behind, drop those that had not reached their commit point.

        Raises StorageError where the disk refuses.
        """
        if not self.local:
            return
        try:
            for intent in sorted(Path(self.root, RECORDS).glob("*.intent")):
                self._publish(intent)
            self._drop_dead_staging()
        except OSError as err:
            raise StorageError(f"cannot finish earlier commits under {self.root}: {err.strerror or err}") from err

    def unfinished(self) -> list[tuple[str, str]]:
        """(run or dataset, slice) of the commits that `recover` would finish."""
        if not self.local:
            return []
        found = []
        for intent in sorted(Path(self.root, RECORDS).glob("*.intent")):
            with contextlib.suppress(FileNotFoundError):
                body = json.loads(intent.read_text())
                found.append((body["owner"], body["slice"]))
        return found

    def write_file(self, name: str, content: bytes) -> Written:
        """Write `content` under `name` (relative to the root), whole or not at all."""
        path = f"{self._base}/{name}"
        try:
            if self.local:
                target = Path(path)
                target.parent.mkdir(parents=True, exist_ok=True)
                staged = self._staging_folder() / "file"
                _write_synced(staged, content)
                staged.replace(target)
                _sync_folder(target.parent)
                shutil.rmtree(staged.parent, ignore_errors=True)
            else:
                with self._fs.open_output_stream(path) as stream:
                    stream.write(content)
        except OSError as err:
            raise StorageError(f"cannot write {path}: {err.strerror or err}") from err
        return Written(name, 0, len(content), hashlib.sha256(content).hexdigest())

    @contextlib.contextmanager
    def scratch(self) -> Iterator[Path]:
        """A local folder for files in the making, on the store's own disk where it has one; gone afterwards."""
        if not self.local:
            with tempfile.TemporaryDirectory() as temporary:
                yield Path(temporary)
            return
        try:
            folder = self._staging_folder()
        except OSError as err:
            raise StorageError(f"cannot write under {self.root}: {err.strerror or err}") from err
        try:
            yield folder
        finally:
            shutil.rmtree(folder, ignore_errors=True)

    def put_file(self, name: str, source: Path) -> Written:
        """`write_file` for a finished file of any size, which lies in `scratch` and may be moved away."""
        path = f"{self._base}/{name}"
        try:
            with source.open("rb+") as file:
                os.fsync(file.fileno())
                digest, size_bytes = hashlib.file_digest(file, "sha256").hexdigest(), source.stat().st_size
                if not self.local:
                    file.seek(0)
                    with self._fs.open_output_stream(path) as stream:
                        shutil.copyfileobj(file, stream, 1 << 20)
            if self.local:
                target = Path(path)
                target.parent.mkdir(parents=True, exist_ok=True)
                source.replace(target)
                _sync_folder(target.parent)
        except OSError as err:
            raise StorageError(f"cannot write {path}: {err.strerror or err}") from err
        return Written(name, 0, size_bytes, digest)

    def put_folder(self, name: str, source: Path) -> tuple[Written, ...]:
        """`put_file` for every file below `source`, under `name` with its path there, in the order of these paths.

        Several at a time: a folder may hold a file a picture, and each waits for the disk or the network.
        """
        names, written = files_below(source), list[Written]()
        with ThreadPoolExecutor(FILES_AT_ONCE) as pool:
            for first in range(0, len(names), FILES_IN_LINE):
                some = names[first : first + FILES_IN_LINE]
                targets = (f"{name}/{one}".lstrip("/") for one in some)
                written += pool.map(self.put_file, targets, (source / one for one in some))
        return tuple(written)

    def read_file(self, name: str) -> bytes | None:
        """The content of a file that `write_file` or `put_file` wrote, or None where there is none."""
        path = f"{self._base}/{name}"
        if self._fs.get_file_info(path).type != pafs.FileType.File:
            return None
        with reading(path), self._fs.open_input_stream(path) as stream:
            content: bytes = stream.read()
        return content

    def open_file(self, name: str) -> pa.NativeFile | None:
        """A file that `write_file` or `put_file` wrote, open to be read from any place, or None where there is none."""
        path = f"{self._base}/{name}"
        if self._fs.get_file_info(path).type != pafs.FileType.File:
            return None
        with reading(path):
            return self._fs.open_input_file(path)

    def stamps(self, spec: TableSpec, owner: str) -> dict[str, tuple[int, int, int]]:
        """What tells of every slice, without opening it, whether its file has been written again.

        Slice key -> size in bytes and time of change of the file, time of change of its record, in nanoseconds.
        """
        recorded = {info.base_name: info for info in self._files(f"{RECORDS}/{_folder(spec, owner)}")}
        stamps = {}
        for info in self._files(_folder(spec, owner)):
            key, suffix, _ = info.base_name.partition(".parquet")
            if suffix:
                record = recorded.get(f"{key}.json")
                stamps[key] = (info.size, info.mtime_ns or 0, (record.mtime_ns or 0) if record else 0)
        return stamps

    def file_names(self, folder: str) -> list[str]:
        """Names of the files directly in `folder` (relative to the root), sorted; none where it does not exist."""
        return sorted(self._names(folder))

    def read_lines(self, name: str) -> Iterator[bytes]:
        """The lines of a file that `write_file` or `put_file` wrote; none where there is no such file."""
        path = f"{self._base}/{name}"
        if self._fs.get_file_info(path).type != pafs.FileType.File:
            return
        with reading(path), self._fs.open_input_stream(path) as stream:
            yield from io.BufferedReader(stream)

    def remove_file(self, name: str) -> None:
        """Take away a file that `write_file` or `put_file` wrote."""
        with contextlib.suppress(FileNotFoundError):
            self._fs.delete_file(f"{self._base}/{name}")

    def check_writable(self) -> None:
        """Write and remove a small file. Raises StorageError naming the path and the reason."""
        self.write_file(f"{STAGING}/probe-{uuid.uuid4().hex}", b"")
        for name in self._names(STAGING):
            if name.startswith("probe-"):
                with contextlib.suppress(FileNotFoundError):
                    self._fs.delete_file(f"{self._base}/{STAGING}/{name}")

    def _names(self, folder: str) -> list[str]:
        return [info.base_name for info in self._files(folder)]

    def _files(self, folder: str) -> list[pafs.FileInfo]:
        selector = pafs.FileSelector(f"{self._base}/{folder}", allow_not_found=True)
        return [info for info in self._fs.get_file_info(selector) if info.type == pafs.FileType.File]

    def _staging_folder(self) -> Path:
        folder = Path(self.root, STAGING, f"{_host()}-{os.getpid()}-{uuid.uuid4().hex}")
        folder.mkdir(parents=True)
        return folder

    def _commit_local(
        self,
        owner: str,
        slice_key: str,
        tables: Mapping[str, pa.Table | Write],
        about: Mapping[str, object],
        before_commit: Callable[[], None],
    ) -> dict[str, Written]:
        self._finish_earlier(owner, slice_key)
        staging = self._staging_folder()
        intent = Path(self.root, RECORDS, f"{staging.name}.intent")
        try:
            written = {
                name: self._write_parquet(name, owner, slice_key, content, staging / f"{name}.parquet")
                for name, content in tables.items()
            }
            _sync_folder(staging)
            before_commit()
            self._write_intent(intent, owner, slice_key, staging, written, about)
        except BaseException:
            if not intent.exists():  # past the commit point, recovery finishes what was begun
                shutil.rmtree(staging, ignore_errors=True)
            raise
        self._publish(intent)
        return written

    def _write_parquet(self, name: str, owner: str, slice_key: str, content: pa.Table | Write, target: Path) -> Written:
        with pq.ParquetWriter(target, TABLES[name].schema, **_writer_options(name)) as writer:
            rows = _fill(writer, content)
        with target.open("rb+") as file:
            os.fsync(file.fileno())
            digest = hashlib.file_digest(file, "sha256").hexdigest()
        return Written(f"{_folder(TABLES[name], owner)}/{slice_key}.parquet", rows, target.stat().st_size, digest)

    def _write_intent(
        self,
        intent: Path,
        owner: str,
        slice_key: str,
        staging: Path,
        written: Mapping[str, Written],
        about: Mapping[str, object],
    ) -> None:
        """The commit point: once this file has its name, recovery finishes the commit."""
        intent.parent.mkdir(parents=True, exist_ok=True)
        body = {
            "staging": staging.name,
            "owner": owner,
            "slice": slice_key,
            "about": dict(about),
            "files": {
                name: {"path": w.path, "rows": w.rows, "size_bytes": w.size_bytes, "sha256": w.sha256}
                for name, w in written.items()
            },
        }
        temporary = staging / "intent"
        _write_synced(temporary, json.dumps(body, sort_keys=True, indent=1).encode())
        temporary.replace(intent)
        _sync_folder(intent.parent)

    def _finish_earlier(self, owner: str, slice_key: str) -> None:
        """Publish what a killed process had committed of this slice, so that it cannot overwrite the newer files."""
        for intent in Path(self.root, RECORDS).glob("*.intent"):
            with contextlib.suppress(FileNotFoundError):
                body = json.loads(intent.read_text())
                if (body["owner"], body["slice"]) == (owner, slice_key):
                    self._publish(intent)

    def _publish(self, intent: Path) -> None:
        """Move the staged files to their places. Safe to repeat, and to run in two processes at once."""
        try:
            body = json.loads(intent.read_text())
        except FileNotFoundError:
            return
        staging = Path(self.root, STAGING, body["staging"])
        folders = set()
        for name, file in body["files"].items():
            target = Path(self.root, file["path"])
            target.parent.mkdir(parents=True, exist_ok=True)
            try:
                (staging / f"{name}.parquet").replace(target)
            except FileNotFoundError:
                if not intent.exists():
                    return  # another process has finished this commit
                _check_published(target, file["sha256"])
            folders.add(target.parent)
        for folder in sorted(folders):
            _sync_folder(folder)
        self._write_records(body)
        intent.unlink(missing_ok=True)
        shutil.rmtree(staging, ignore_errors=True)

    def _write_records(self, body: Mapping[str, Any]) -> None:
        for name, file in body["files"].items():
            record = {"about": body["about"], "tables": sorted(body["files"]), **file}
            content = json.dumps(record, sort_keys=True, indent=1).encode()
            self.write_file(_record_name(body["owner"], body["slice"], name), content)

    def _drop_dead_staging(self) -> None:
        for folder in Path(self.root, STAGING).glob("*-*-*"):
            host, pid, _ = folder.name.rsplit("-", 2)
            if folder.is_dir() and host == _host() and pid.isdigit() and not _alive(int(pid)):
                shutil.rmtree(folder, ignore_errors=True)

    def _commit_remote(
        self,
        owner: str,
        slice_key: str,
        tables: Mapping[str, pa.Table | Write],
        about: Mapping[str, object],
        before_commit: Callable[[], None],
    ) -> dict[str, Written]:
        """One PUT a file, then the record. Several files of an object store are not one commit; the record names
        their sums, so that a reader who needs all of one moment can tell."""
        written = {}
        for name, content in tables.items():
            sink = pa.BufferOutputStream()
            with pq.ParquetWriter(sink, TABLES[name].schema, **_writer_options(name)) as writer:
                rows = _fill(writer, content)
            body = sink.getvalue()
            before_commit()
            with self._fs.open_output_stream(self.path(TABLES[name], owner, slice_key)) as stream:
                stream.write(body)
            digest = hashlib.sha256(body).hexdigest()
            written[name] = Written(f"{_folder(TABLES[name], owner)}/{slice_key}.parquet", rows, body.size, digest)
        files = {
            n: {"path": w.path, "rows": w.rows, "size_bytes": w.size_bytes, "sha256": w.sha256}
            for n, w in written.items()
        }
        self._write_records({"owner": owner, "slice": slice_key, "about": dict(about), "files": files})
        return written


def files_below(folder: Path) -> list[str]:
    """Every file in the folder and in folders in it: paths relative to it, parted by `/`, sorted."""
    names = []
    for place, _, files in os.walk(folder):
        inside = Path(place).relative_to(folder).as_posix()
        names += files if inside == "." else [f"{inside}/{file}" for file in files]
    return sorted(names)


@contextlib.contextmanager
def reading(place: str) -> Iterator[None]:
    """Turn what pyarrow says of a damaged file into a StorageError that names it."""
    try:
        yield
    except (OSError, pa.ArrowException) as err:
        raise StorageError(f"{place}: damaged: {err}") from err


def _fill(writer: pq.ParquetWriter, content: pa.Table | Write) -> int:
    counted = _CountingWriter(writer)
    if isinstance(content, pa.Table):
        counted.write_table(content, row_group_size=ROW_GROUP_ROWS)
    else:
        content(counted)
    return counted.rows


class _CountingWriter:
    """A ParquetWriter's `write_table` that counts rows."""

    def __init__(self, writer: pq.ParquetWriter) -> None:
        self._writer = writer
        self.rows = 0

    def write_table(self, table: pa.Table, row_group_size: int | None = None) -> None:
        self._writer.write_table(table, row_group_size=row_group_size)
        self.rows += table.num_rows


def _writer_options(table: str) -> dict[str, Any]:
    """zstd-1; no dictionary where every value differs: it only costs bytes there."""
    unlike = {"prediction_id", "counts", "call_id", "reply", "content_sha256"}
    return {
        "compression": "zstd",
        "compression_level": 1,
        "write_page_checksum": True,
        "use_dictionary": [name for name in _leaf_names(TABLES[table].schema) if name not in unlike],
    }


def _leaf_names(schema: pa.Schema) -> list[str]:
    return [field.name for field in schema if not pa.types.is_nested(field.type)]


def owner_column(spec: TableSpec) -> str:
    """The hive column that a table's folders name: whose slices they hold."""
    return "dataset" if spec is DATA_ROWS else "run"


def _folder(spec: TableSpec, owner: str) -> str:
    return f"{spec.name}/{owner_column(spec)}={owner}"


def _record_name(owner: str, slice_key: str, table: str) -> str:
    return f"{RECORDS}/{_folder(TABLES[table], owner)}/{slice_key}.json"


def _pyarrow_url(url: str) -> str:
    """`az://container/path` is what fsspec and polars call what pyarrow calls `abfs://`."""
    return re.sub(r"^az://", "abfs://", url)


def _write_synced(path: Path, content: bytes) -> None:
    with path.open("wb") as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())


def _sync_folder(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _check_published(target: Path, sha256: str) -> None:
    """Raise StorageError where a staged file has gone without having been published."""
    try:
        with target.open("rb") as file:
            found = hashlib.file_digest(file, "sha256").hexdigest()
    except FileNotFoundError:
        found = ""
    if found != sha256:
        raise StorageError(f"{target}: its new content has vanished from {STAGING}; materialize this slice again")


def _host() -> str:
    """This machine's name, which tells its process ids from another's on a shared folder."""
    return re.sub(r"[^A-Za-z0-9]+", "_", socket.gethostname()) or "host"


def _alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True
