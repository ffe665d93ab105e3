"""Syncs files and folders, and says what a failed write means."""

from __future__ import annotations

import errno
import os
import sqlite3
from pathlib import Path

from service import errors


def failure_of(error: sqlite3.Error | OSError) -> errors.LogstepError:
    """The error for the caller: no room, or writing cannot be trusted any more."""
    if getattr(error, "sqlite_errorcode", None) == sqlite3.SQLITE_FULL or getattr(error, "errno", None) == errno.ENOSPC:
        return errors.DiskFull()
    if getattr(error, "sqlite_errorcode", 0) & 0xFF == sqlite3.SQLITE_CORRUPT:
        return errors.StorageDamaged(reason=str(error))
    return errors.StorageFailed(reason=str(error))


def sync_file(path: Path) -> None:
    """Sync a file, no matter which process wrote it."""
    with path.open("rb") as file:
        os.fsync(file.fileno())


def sync_folder(folder: Path) -> None:
    """Sync a folder's entries. Otherwise a power cut may lose a new or renamed file."""
    fd = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)
