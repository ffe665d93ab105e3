"""When a data folder was last backed up: the time of an empty file in it, so that the service can tell Prometheus."""

from __future__ import annotations

import contextlib
from pathlib import Path

_NAME = "last-backup"


def note_backup(folder: Path) -> None:
    """Note that the folder has been backed up now. Does nothing where it cannot be written to."""
    with contextlib.suppress(OSError):
        (folder / _NAME).touch()


def backed_up_at(folder: Path) -> float:
    """When the folder was last backed up, in seconds since 1970; 0 if it never was."""
    try:
        return (folder / _NAME).stat().st_mtime
    except OSError:
        return 0.0
