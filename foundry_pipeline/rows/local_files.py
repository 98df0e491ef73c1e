"""Files that data rows name: opened only under the home folder and the folders that `foundry.yaml` allows.

The path is walked component by component without following links: a check on the path's text is not enough, since
what it names may change between the check and the opening.
"""

from __future__ import annotations

import errno
import os
import stat
from collections.abc import Sequence
from pathlib import Path, PurePosixPath
from typing import BinaryIO

from foundry_pipeline.errors import RowUnavailable, shown

_FOLDER = os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC
_FILE = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC  # non-blocking: opening a FIFO must not wait

_REASONS = {
    errno.ENOENT: ("row_missing", "no such file"),
    errno.ENOTDIR: ("row_missing", "no such file: part of the path is not a folder"),
    errno.EACCES: ("row_unreadable", "no permission"),
    errno.EPERM: ("row_unreadable", "no permission"),
    errno.ENAMETOOLONG: ("row_unreadable", "the path is too long"),
}


class LocalFiles:
    """Guarded reading below a few roots. A root itself may be reached through a symbolic link; nothing below may."""

    def __init__(self, home_root: Path, allow_folders: Sequence[Path] = ()) -> None:
        """`home_root` and `allow_folders` are the roots; `~` is not expanded."""
        folders = (home_root, *allow_folders)
        named = [os.path.normpath(folder.absolute()) for folder in folders]
        resolved = [str(folder.resolve()) for folder in folders]
        self._roots = tuple(sorted(dict.fromkeys(named + resolved), key=len, reverse=True))

    def root_of(self, path: str) -> str | None:
        """The innermost root that `path` (absolute, normalised) lies in, by its text alone; None where in none."""
        for root in self._roots:
            if path == root or path.startswith(root.rstrip("/") + "/"):
                return root
        return None

    def read(self, path: str, max_bytes: int) -> bytes:
        """The whole content of a regular file.

        A file that changes while being read is read once more. Raises RowUnavailable: `row_forbidden` outside the
        roots and behind links, `row_missing`, `row_unreadable` (empty, not a regular file, no permission),
        `row_too_large`, `row_changed`.
        """
        for _ in range(2):
            with self.open(path) as file:
                before = os.fstat(file.fileno())
                if before.st_size > max_bytes:
                    raise _too_large(path, max_bytes)
                data = _read(file, path, max_bytes)
                after = os.fstat(file.fileno())
            if before.st_mtime_ns == after.st_mtime_ns and len(data) == after.st_size:
                break
        else:
            raise RowUnavailable("row_changed", f"{shown(path, 200)}: changes while it is being read")
        if not data:
            raise RowUnavailable("row_unreadable", f"{shown(path, 200)}: the file is empty")
        return data

    def open(self, path: str) -> BinaryIO:
        """A regular file, opened for reading. Raises RowUnavailable as `read` does."""
        descriptor = self._open(path, _FILE)
        if not stat.S_ISREG(os.fstat(descriptor).st_mode):
            os.close(descriptor)
            raise RowUnavailable("row_unreadable", f"{shown(path, 200)}: not a regular file")
        return os.fdopen(descriptor, "rb")

    def check_folder(self, path: str) -> None:
        """Raises RowUnavailable where `path` is not a folder below a root, reached without links."""
        os.close(self._open(path, _FOLDER | os.O_NOFOLLOW))

    def _open(self, path: str, flags: int) -> int:
        root = self.root_of(path)
        if root is None:
            raise RowUnavailable(
                "row_forbidden",
                f"{shown(path, 200)}: outside the home folder; allow_folders in foundry.yaml lists what else is read",
            )
        parts = PurePosixPath(path).relative_to(root).parts
        try:
            return _descend(root, parts, flags)
        except OSError as err:
            code, reason = _REASONS.get(err.errno or 0, ("row_unreadable", err.strerror or "cannot be opened"))
            if err.errno in (errno.ELOOP, errno.ENOTDIR) and (link := _first_link(root, parts)):
                code, reason = _refused_link(link)
            raise RowUnavailable(code, f"{shown(path, 200)}: {reason}") from None
        except ValueError:
            raise RowUnavailable("row_unreadable", f"{shown(path, 200)}: not a possible path") from None


def _descend(root: str, parts: Sequence[str], flags: int) -> int:
    if not parts:
        return os.open(root, flags & ~os.O_NOFOLLOW)
    folder = os.open(root, _FOLDER)
    try:
        for name in parts[:-1]:
            inner = os.open(name, _FOLDER | os.O_NOFOLLOW, dir_fd=folder)
            os.close(folder)
            folder = inner
        return os.open(parts[-1], flags, dir_fd=folder)
    finally:
        os.close(folder)


def _first_link(root: str, parts: Sequence[str]) -> str | None:
    path = root
    for name in parts:
        path = f"{path}/{name}"
        if Path(path).is_symlink():
            return path
    return None


def _refused_link(link: str) -> tuple[str, str]:
    if not Path(link).exists():
        return "row_unreadable", f"{shown(link, 200)} is a symbolic link to nothing"
    return "row_forbidden", (
        f"{shown(link, 200)} is a symbolic link, and links below the home folder are not followed; "
        "name the real path and list its folder in allow_folders in foundry.yaml"
    )


def _read(file: BinaryIO, path: str, max_bytes: int) -> bytes:
    try:
        data = file.read(max_bytes + 1)
    except OSError as err:
        raise RowUnavailable("row_unreadable", f"{shown(path, 200)}: {err.strerror or 'cannot be read'}") from None
    if len(data) > max_bytes:
        raise _too_large(path, max_bytes)
    return data


def _too_large(path: str, max_bytes: int) -> RowUnavailable:
    return RowUnavailable("row_too_large", f"{shown(path, 200)}: over max_row_bytes = {max_bytes:,} bytes")
