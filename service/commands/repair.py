"""`logstep repair`: accepts a lost end of the log, or damaged ids."""

from __future__ import annotations

import os
import shutil
import time
from contextlib import closing
from pathlib import Path

from service.commands.inspect import DAMAGED_IDS, Findings, examine
from service.commands.terminal import Failed, confirm, say, show
from service.storage.folder import FolderLock, sync_file, sync_folder
from service.storage.store import Store
from service.storage.wal import encode_mark

_UNCOPIED = ("lock", "log.db-shm")
"""Files of a data folder that every process makes anew."""


def repair(folder: Path, yes: bool) -> int:
    """Accept a lost end of the log, or damaged ids. Returns the exit code.

    For a lost end, `last-commit` is set to the log's end, and the rest of the write-ahead log is cut off. For damaged
    ids, the readable ones count.
    """
    if _acceptable(folder) is None:
        print(f"nothing to repair in {folder}")
        return 0
    lock = FolderLock(folder)
    try:
        return _repair(folder, yes)
    finally:
        lock.release()


def _acceptable(folder: Path) -> Findings | None:
    """The findings, if there is something to accept. Raises Failed if the log has other damage."""
    findings = examine(folder)
    if findings.damage:
        reasons = "; ".join(findings.damage)
        raise Failed(f"the log in {folder} is damaged: {reasons}. Repair cannot mend this. Restore a backup")
    return findings if findings.loss or findings.bad_ids else None


def _repair(folder: Path, yes: bool) -> int:
    findings = _acceptable(folder)
    if findings is None or findings.end is None:
        print(f"nothing to repair in {folder}")
        return 0
    _say_what_is_lost(folder, findings)
    if not confirm("Accept the loss?", yes):
        say("nothing was changed")
        return 1
    copy = _copy(folder)
    if findings.loss:
        _accept_the_end(folder, findings, findings.end)
        print(f"Done: the log ends at commit {findings.end[0]:,}.")
    if findings.bad_ids:
        with closing(Store(folder)) as store:
            store.accept_ids()
        print("Done: the readable ids count, except those of events that never existed.")
    print(f"The original files are in {copy}.")
    return 0


def _say_what_is_lost(folder: Path, findings: Findings) -> None:
    for reason in [*([findings.loss] if findings.loss else []), *findings.bad_ids]:
        print(f"In {folder} {reason}.")
    show("What is whole", [(model.name, model.seq) for model in findings.models], ("model", "last seq"))
    if findings.loss:
        print("Later events are lost; clients that send ids can send them again. A backup may have more.")
    if findings.bad_ids:
        print(DAMAGED_IDS)


def _accept_the_end(folder: Path, findings: Findings, end: tuple[int, int]) -> None:
    if findings.tail.pages:
        os.truncate(folder / "log.db-wal", findings.tail.start)
        sync_file(folder / "log.db-wal")
    write_mark(folder, end)


def _copy(folder: Path) -> Path:
    """Copy the folder's files into a new subfolder and sync it, before anything changes."""
    copy = folder / f"before-repair-{time.strftime('%Y%m%d-%H%M%S')}"
    copy.mkdir()
    for path in folder.iterdir():
        if path.is_file() and path.name not in _UNCOPIED:
            shutil.copy2(path, copy)
            sync_file(copy / path.name)
    sync_folder(copy)
    sync_folder(folder)
    return copy


def write_mark(folder: Path, end: tuple[int, int]) -> None:
    """Write `last-commit` under another name and rename it, so that a power cut leaves the old or the new file."""
    new = folder / "last-commit.new"
    new.write_bytes(encode_mark(*end))
    sync_file(new)
    new.rename(folder / "last-commit")
    sync_folder(folder)
