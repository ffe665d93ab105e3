"""Backups: copies a data folder, even while it is served, and restores the copy.

A copy is made under another name, checked like `logstep inspect` does, synced, and renamed into place. So a kill or a
power cut leaves a whole copy under its name, or none. A damaged copy is never put in place.
"""

from __future__ import annotations

import shutil
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from service.commands.inspect import Findings, examine
from service.commands.repair import write_mark
from service.commands.terminal import Failed, number, say, size
from service.storage.lock import FolderLock, open_to_others
from service.storage.log import LogReader
from service.storage.sync import sync_file, sync_folder
from service.storage.wal import encode_mark, read_mark

_LOG_FILES = ("log.db", "log.db-wal", "last-commit")


def backup(folder: Path, out: Path) -> int:
    """Copy a data folder to a new folder, which is a data folder too. Returns the exit code."""
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise Failed(f"{out} exists already; name a new folder")
    if out.is_mount():
        raise Failed(f"{out} is a mount point, and a copy cannot be renamed to it; name a folder inside")
    _require_log(folder)
    _make(out.absolute().parent)
    started = time.perf_counter()
    staging = out.absolute().with_name(f"{out.absolute().name}.partial")
    with _emptied(staging):
        findings = _copy(folder, staging)
        staging.rename(out)
        sync_folder(out.parent)
    (out / "lock").unlink()
    print(f"copied {_contents(findings, out, started)} to {out}")
    return 0


def restore(copy: Path, folder: Path) -> int:
    """Make a data folder from a backup. Returns the exit code."""
    _require_log(copy)
    started = time.perf_counter()
    made = not folder.exists()
    _make(folder.absolute())
    lock = FolderLock(folder)
    try:
        findings = _restore(copy, folder)
    except BaseException:
        if made:
            shutil.rmtree(folder)
        raise
    finally:
        lock.release()
    print(f"restored {_contents(findings, folder, started)} to {folder}")
    if warning := open_to_others(folder):
        say(warning)
    return 0


def _restore(copy: Path, folder: Path) -> Findings:
    found = [name for name in _LOG_FILES if (folder / name).exists()]
    killed_between_the_renames = found == ["last-commit"] and (folder / "restore.partial" / "log.db").exists()
    if found and not killed_between_the_renames:
        what = "has a log" if "log.db" in found else f"has the {found[0]} of a log that is gone"
        raise Failed(f"{folder} {what}; move it away, or name another folder. Nothing was changed")
    with _emptied(folder / "restore.partial") as staging:
        findings = _copy(copy, staging)
        # In this order: a service refuses a folder with a last-commit but no log. With only a log it could not tell
        # whether that is whole.
        for name in ("last-commit", "log.db"):
            (staging / name).rename(folder / name)
        sync_folder(folder)
        shutil.rmtree(staging)
    return findings


def _require_log(folder: Path) -> None:
    """Refuse a folder that is not a data folder, before anything is made."""
    LogReader(folder).close()


def _make(folder: Path) -> None:
    """Make a folder and its missing parents, and sync them against a power cut."""
    if not folder.exists():
        _make(folder.parent)
        folder.mkdir(exist_ok=True)
        sync_folder(folder.parent)


@contextmanager
def _emptied(staging: Path) -> Iterator[Path]:
    """An empty folder for a copy in progress. Removes what a killed copy left, and the folder if the copy fails."""
    staging.mkdir(parents=True, exist_ok=True)
    lock = FolderLock(staging)
    try:
        for left in staging.iterdir():
            if left.name != "lock":
                left.unlink()
        yield staging
    except BaseException:
        shutil.rmtree(staging, ignore_errors=True)
        raise
    finally:
        lock.release()


def _copy(folder: Path, staging: Path) -> Findings:
    """Copy a data folder's log to an empty folder, check all of it and sync it. Raises Failed if it is damaged."""
    mark = read_mark(folder) or read_mark(folder)  # before the log: a service marks a commit after logging it
    log = LogReader(folder)
    try:
        _require_room(folder, staging)
        log.db.copy_to(staging / "log.db")
    finally:
        log.close()
    if mark is not None:
        (staging / "last-commit").write_bytes(encode_mark(*mark))
    findings = examine(staging)
    _require_whole(folder, findings)
    for name in ("log.db-wal", "log.db-shm"):  # empty; reading makes them
        (staging / name).unlink(missing_ok=True)
    sync_file(staging / "log.db")
    if findings.end is not None:
        write_mark(staging, findings.end)
    sync_folder(staging)
    return findings


def _require_room(folder: Path, staging: Path) -> None:
    """Refuse a copy that would fill the disk; a service may be writing to it."""
    needed = sum((folder / name).stat().st_size for name in ("log.db", "log.db-wal") if (folder / name).exists())
    free = shutil.disk_usage(staging).free
    if needed > free:
        raise Failed(
            f"no room for a copy in {staging.parent}: it needs up to {size(needed)}, but {size(free)} are free"
        )


def _require_whole(folder: Path, findings: Findings) -> None:
    """Raise Failed if the copied log is damaged or has lost its end. Only report damaged ids and snapshots: the log has
    all events."""
    if wrong := [*findings.damage, *([findings.loss] if findings.loss else [])]:
        raise Failed(
            f"the log in {folder} is damaged, and no copy was put in place: {'; '.join(wrong)}. "
            f"`logstep inspect {folder}` shows more"
        )
    for reason in findings.bad_ids:
        say(f"DAMAGED, but copied unchanged: {reason}; `logstep inspect {folder}` says what to do")
    for reason in findings.bad_snapshots:
        say(f"DAMAGED, but not needed: {reason}")


def _contents(findings: Findings, folder: Path, started: float) -> str:
    models, events = len(findings.models), sum(model.seq - model.gone for model in findings.models)
    bytes_ = size((folder / "log.db").stat().st_size)
    seconds = time.perf_counter() - started
    return f"{number(models)} model(s), {number(events)} event(s), {bytes_} in {seconds:.1f} s"
