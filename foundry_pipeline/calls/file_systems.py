"""Which file systems a ledger may not be on: those whose locks and memory maps other machines do not see."""

from __future__ import annotations

import ctypes
import os
import sys
from collections.abc import Callable
from pathlib import Path

from foundry_pipeline.errors import StorageError

# The first word of Linux' `struct statfs`, from linux/magic.h and each file system's own header.
REFUSED = {
    0x6969: "NFS",
    0x517B: "SMB",
    0xFE534D42: "SMB",
    0xFF534D42: "SMB",
    0x65735546: "FUSE",
    0x5346414F: "AFS",
    0x00C36400: "Ceph",
}
_STATFS_BYTES = 256
"""More than the structure has on any machine."""


def file_system_type(folder: Path) -> int | None:
    """The number that says what `folder` is on; None where the system does not tell it."""
    if sys.platform != "linux":
        return None
    told = ctypes.create_string_buffer(_STATFS_BYTES)
    if ctypes.CDLL(None, use_errno=True).statfs(os.fsencode(folder), told) != 0:
        return None
    word = ctypes.sizeof(ctypes.c_long)
    return int.from_bytes(told.raw[:word], sys.byteorder) & 0xFFFF_FFFF


def refuse_shared(folder: Path, type_of: Callable[[Path], int | None] = file_system_type) -> None:
    """Raise StorageError where `folder`, which exists, is on a file system of a network or of a program."""
    if name := REFUSED.get(type_of(folder) or 0):
        raise StorageError(
            f"ledger folder {folder}: it is on {name}, where neither SQLite nor the locks of a rate are safe; "
            "use PostgreSQL or a local FOUNDRY_LEDGER"
        )
