"""Disk space held in reserve beside the ledgers, so that a full disk can still take the answers that are under way.

One file for all processes that use a ledger folder. Each holds a shared lock on it; the last to leave removes it.
"""

from __future__ import annotations

import errno
import fcntl
import os
from pathlib import Path

from foundry_pipeline.errors import StorageError

_NOT_POSSIBLE = frozenset({errno.EOPNOTSUPP, errno.EINVAL})
"""What file systems say that cannot reserve space: then there is none, and nothing else changes."""


class Ballast:
    """A file of `size_bytes` that may be given up once. Making it is also the test that the folder can be written."""

    def __init__(self, path: Path, size_bytes: int) -> None:
        """Raises StorageError where the folder cannot be written or has no room."""
        self._path = path
        try:
            path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
            self._descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
        except OSError as err:
            raise StorageError(f"ledger folder {path.parent}: {err.strerror or err}") from err
        fcntl.flock(self._descriptor, fcntl.LOCK_SH)
        try:
            self._fill(size_bytes)
        except OSError as err:
            self.release()
            raise StorageError(
                f"ledger folder {path.parent}: {err.strerror or err}; {size_bytes:,} bytes are kept in reserve there "
                "(ballast_bytes in foundry.yaml)"
            ) from err

    def _fill(self, size_bytes: int) -> None:
        if not size_bytes:
            return
        try:
            os.posix_fallocate(self._descriptor, 0, size_bytes)
        except OSError as err:
            if err.errno not in _NOT_POSSIBLE:
                raise

    def free(self) -> None:
        """Give the space to whoever needs it."""
        os.ftruncate(self._descriptor, 0)

    def release(self) -> None:
        """Leave the file to the others that use it; the last one removes it."""
        try:
            fcntl.flock(self._descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            self._path.unlink(missing_ok=True)
        except OSError:
            pass  # somebody else uses it, or the folder has become read-only: it stays
        os.close(self._descriptor)
