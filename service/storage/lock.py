"""The lock on a data folder. It imports nothing slow: a second service on a folder is told at once."""

from __future__ import annotations

import fcntl
import os
import shlex
import socket
import stat
import time
from pathlib import Path

from service import errors


class FolderLock:
    """An exclusive lock on a data folder, held as long as the process lives. The file names the holder."""

    def __init__(self, folder: Path) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self._file = (folder / "lock").open("a+")
        try:
            fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            self._file.seek(0)
            holder = self._file.read().strip() or "another process"
            self._file.close()
            raise errors.FolderInUse(folder=str(folder), holder=holder) from None
        self._file.truncate(0)
        started = time.strftime("%Y-%m-%d %H:%M:%S %Z")
        self._file.write(f"process {os.getpid()} on {socket.gethostname()}, started {started}\n")
        self._file.flush()

    def release(self) -> None:
        self._file.close()


def open_to_others(folder: Path) -> str | None:
    """What to say of a folder that others than its owner may look into; None of one that is closed.

    One that is new is closed (cli.py). One that was there keeps its mode: some volumes cannot be changed.
    """
    mode = stat.S_IMODE(folder.stat().st_mode)
    if not mode & (stat.S_IRWXG | stat.S_IRWXO):
        return None
    return (
        f"others than its owner may look into {folder} (its mode is {mode:o}) and read every event: "
        f"`chmod -R go= {shlex.quote(str(folder))}` closes it"
    )
