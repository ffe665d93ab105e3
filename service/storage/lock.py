"""The lock on a data folder. It imports nothing slow, so a second service on a folder fails at once."""

from __future__ import annotations

import fcntl
import os
import shlex
import socket
import stat
import time
from pathlib import Path

from service import failures


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
    """A warning if other users can read the folder, else None.

    A new folder is closed to them (cli.py). An existing one keeps its mode, because some volumes cannot change it.
    """
    mode = stat.S_IMODE(folder.stat().st_mode)
    if not mode & (stat.S_IRWXG | stat.S_IRWXO):
        return None
    return (
        f"users other than the owner of {folder} can read every event (its mode is {mode:o}): "
        f"`chmod -R go= {shlex.quote(str(folder))}` stops that"
    )
