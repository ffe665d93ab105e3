"""A data folder: the lock on it, syncs, what a failed write means, and when it was last backed up.

It imports nothing slow, so a second service on a folder fails at once.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import shlex
import socket
import sqlite3
import stat
import time
from pathlib import Path

from service import errors, failures

LAST_BACKUP = "last-backup"
"""An empty file in the folder. The time of it is that of the last backup, so that the service can tell Prometheus."""


class FolderLock:
    """An exclusive lock on a data folder. The process holds it until it ends. The lock file names the holder."""

    def __init__(self, folder: Path) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self._file = (folder / "lock").open("a+")
        try:
            fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            self._file.seek(0)
            holder = self._file.read().strip() or "another process"
            self._file.close()
            raise failures.FolderInUse(folder=str(folder), holder=holder) from None
        self._file.truncate(0)
        started = time.strftime("%Y-%m-%d %H:%M:%S %Z")
        self._file.write(f"process {os.getpid()} on {socket.gethostname()}, started {started}\n")
        self._file.flush()

    def release(self) -> None:
        self._file.close()


def open_to_others(folder: Path) -> str | None:
    """A warning if other users can read the folder, else None. A new folder is closed to them (cli.py). An existing one
    keeps its mode, because some volumes cannot change it."""
    mode = stat.S_IMODE(folder.stat().st_mode)
    if not mode & (stat.S_IRWXG | stat.S_IRWXO):
        return None
    return (
        f"users other than the owner of {folder} can read every event (its mode is {mode:o}): "
        f"`chmod -R go= {shlex.quote(str(folder))}` stops that"
    )


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


def note_backup(folder: Path) -> None:
    """Note that the folder has been backed up now. Does nothing where it cannot be written to."""
    with contextlib.suppress(OSError):
        (folder / LAST_BACKUP).touch()


def backed_up_at(folder: Path) -> float:
    """When the folder was last backed up, in seconds since 1970; 0 if it never was."""
    try:
        return (folder / LAST_BACKUP).stat().st_mtime
    except OSError:
        return 0.0
