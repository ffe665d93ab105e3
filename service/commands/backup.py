"""Backups: copies a data folder, even while it is served, and restores the copy.

A copy is made under another name, checked like `logstep inspect` does, synced, and renamed into place. So a kill or a
power cut leaves a whole copy under its name, or none. A damaged copy is never put in place.

On standard output a copy is a tar of the same two files. `last-commit` is its last member, and a restore requires it.
So a tar that was cut short is never taken for a whole one.
"""

from __future__ import annotations

import shutil
import sys
import tarfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from service.commands.inspect import Findings, examine
from service.commands.repair import write_mark
from service.commands.terminal import Failed, WrongUsage, number, say, size
from service.storage.folder import FolderLock, note_backup, open_to_others, sync_file, sync_folder
from service.storage.log import LogReader
from service.storage.wal import encode_mark, read_mark

_LOG_FILES = ("log.db", "log.db-wal", "last-commit")
_COPIED = ("log.db", "last-commit")


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
    note_backup(folder)
    print(f"copied {_contents(findings, out, started)} to {out}")
    return int(bool(findings.bad_ids))  # so that a job that removes older copies stops


def backup_to_output(folder: Path) -> int:
    """Write a copy of a data folder to standard output, as a tar. Returns the exit code.

    The copy is made and checked in the data folder first, so nothing is written of a damaged one.
    """
    if sys.stdout.isatty():
        raise WrongUsage("standard output is a terminal; write the backup to a file or a pipe")
    _require_log(folder)
    started = time.perf_counter()
    with _emptied(folder / "backup.partial") as staging:
        findings = _copy(folder, staging)
        with tarfile.open(fileobj=sys.stdout.buffer, mode="w|") as archive:
            for name in _COPIED:
                archive.add(staging / name, name)
        sys.stdout.buffer.flush()
        say(f"copied {_contents(findings, staging, started)} to standard output")
        shutil.rmtree(staging)
    note_backup(folder)
    return int(bool(findings.bad_ids))


def restore(copy: Path | None, folder: Path) -> int:
    """Make a data folder from a backup; None: from the tar on standard input. Returns the exit code."""
    if copy is not None:
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


def _restore(copy: Path | None, folder: Path) -> Findings:
    found = [name for name in _LOG_FILES if (folder / name).exists()]
    killed_between_the_renames = found == ["last-commit"] and (folder / "restore.partial" / "log.db").exists()
    if found and not killed_between_the_renames:
        what = "has a log" if "log.db" in found else f"has the {found[0]} of a log that is gone"
        raise Failed(f"{folder} {what}; move it away, or name another folder. Nothing was changed")
    with _emptied(folder / "restore.partial") as staging:
        findings = _unpack(staging) if copy is None else _copy(copy, staging)
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
    return _checked(staging, f"the log in {folder}", f". `logstep inspect {folder}` shows more")


def _unpack(staging: Path) -> Findings:
    """Unpack the tar on standard input to an empty folder, check all of it and sync it."""
    try:
        with tarfile.open(fileobj=sys.stdin.buffer, mode="r|") as archive:
            for name, member in zip(_COPIED, archive, strict=False):
                data = archive.extractfile(member) if member.name == name else None
                if data is None:
                    break
                _require_free(member.size, staging)
                with (staging / name).open("wb") as file:
                    shutil.copyfileobj(data, file, 1 << 20)
    except tarfile.TarError as error:
        raise Failed(f"standard input is not a whole backup: {error}. Nothing was restored") from None
    if missing := [name for name in _COPIED if not (staging / name).exists()]:
        raise Failed(f"standard input is not a whole backup: it has no {missing[0]}. Nothing was restored")
    return _checked(staging, "the backup", "")


def _checked(staging: Path, what: str, advice: str) -> Findings:
    """Check all of a copied log and sync it. Raises Failed if `what` was copied is damaged."""
    findings = examine(staging)
    _require_whole(findings, what, advice)
    for name in ("log.db-wal", "log.db-shm"):  # empty; reading makes them
        (staging / name).unlink(missing_ok=True)
    sync_file(staging / "log.db")
    if findings.end is not None:
        write_mark(staging, findings.end)
    sync_folder(staging)
    return findings


def _require_room(folder: Path, staging: Path) -> None:
    """Refuse a copy that would fill the disk; a service may be writing to it."""
    _require_free(
        sum((folder / name).stat().st_size for name in ("log.db", "log.db-wal") if (folder / name).exists()), staging
    )


def _require_free(needed: int, staging: Path) -> None:
    free = shutil.disk_usage(staging).free
    if needed > free:
        raise Failed(
            f"no room for a copy in {staging.parent}: it needs up to {size(needed)}, but {size(free)} are free"
        )


def _require_whole(findings: Findings, what: str, advice: str) -> None:
    """Raise Failed if the copied log is damaged or has lost its end. Only report damaged ids and snapshots: the log has
    all events."""
    if wrong := [*findings.damage, *([findings.loss] if findings.loss else [])]:
        raise Failed(f"{what} is damaged, and no copy was put in place: {'; '.join(wrong)}{advice}")
    for reason in findings.bad_ids:
        say(f"DAMAGED, but copied unchanged: {reason}; `logstep inspect` says what to do")
    for reason in findings.bad_snapshots:
        say(f"DAMAGED, but not needed: {reason}")


def _contents(findings: Findings, folder: Path, started: float) -> str:
    models, events = len(findings.models), sum(model.seq - model.gone for model in findings.models)
    bytes_ = size((folder / "log.db").stat().st_size)
    seconds = time.perf_counter() - started
    return f"{number(models)} model(s), {number(events)} event(s), {bytes_} in {seconds:.1f} s"
