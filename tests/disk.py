"""What a power cut can leave on a disk: a recording of all that a process wrote and synced, and states built of it.

`strace` records the service's own system calls, and the replies among them: what had been acknowledged when. Of a file,
what was written and not synced may be on the disk or not: each write of its own, and of each write some of its sectors
of 512 bytes. Of a folder, each name that was made, renamed or removed since it was synced may be so or not.
"""

from __future__ import annotations

import errno
import os
import random
import re
import shutil
import subprocess
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path
from typing import TypeVar

import pytest

T = TypeVar("T")
SECTOR = 512
CALLS = "openat,?open,?creat,pwrite64,write,writev,?sendto,?sendmsg,fsync,fdatasync,ftruncate,fallocate,unlinkat"
RENAMES = "?rename,?renameat,?renameat2,?unlink"
END_SECONDS = 30.0
PASSING = ("lock", "log.db-shm")
"""Files in which nothing stands that must survive; SQLite makes its index of the write-ahead log anew."""

_LINE = re.compile(rb"^(\d+) +(\w+)\((.*)\) += (-?\d+|\?)")
_BEGUN = re.compile(rb"^(\d+) +(\w+)\((.*) <unfinished \.\.\.>$")
_RESUMED = re.compile(rb"^(\d+) +<\.\.\. \w+ resumed>(.*)\) += (-?\d+|\?)")
_TEXT = re.compile(rb'"((?:\\x[0-9a-f]{2})*)"')
_FD = re.compile(rb"^\d+<([^>]*)>")
_LAST_NUMBER = re.compile(rb", (\d+)$")


def strace_is_missing() -> str | None:
    """Why nothing can be recorded here, None where it can."""
    if shutil.which("strace") is None:
        return "strace is not installed"
    done = subprocess.run(["strace", "-f", "-e", "trace=write", "true"], capture_output=True, text=True, check=False)
    return None if done.returncode == 0 else f"strace cannot trace here: {done.stderr.strip()[-200:]}"


def needs_strace() -> pytest.MarkDecorator:
    reason = strace_is_missing()
    return pytest.mark.skipif(reason is not None, reason=reason or "")


# -- the recording


@dataclass(frozen=True, slots=True)
class Call:
    """Something that a process did. what: write, truncate, create, rename, unlink, sync, or sent (to a client).

    name: of a file in the folder, "" for the folder itself. to: its new name.
    """

    what: str
    name: str
    data: bytes = b""
    place: int = 0
    to: str = ""


def tracing(to: Path, kill_at_sync: int | None = None) -> list[str]:
    """How to record a service. kill_at_sync: it is killed just before it syncs a file for so manieth time."""
    more = [] if kill_at_sync is None else ["-e", f"inject=fdatasync:signal=KILL:when={kill_at_sync}"]
    options = ["-f", "-y", "-xx", "-s", "100000000", "-e", f"trace={CALLS},{RENAMES}"]
    return ["strace", *options, *more, "-o", str(to)]


def recorded(trace: Path, folder: Path) -> list[Call]:
    """What a traced process, which has ended, did to a folder and sent to clients, in order."""
    lines = _whole(trace)
    inside = str(folder).encode() + b"/"
    begun: dict[bytes, tuple[int, bytes, bytes]] = {}
    calls: list[tuple[float, Call]] = []
    for at, line in enumerate(lines):
        if match := _BEGUN.match(line):
            begun[match[1]] = at, match[2], match[3]
            continue
        if match := _LINE.match(line):
            began, call, arguments, result = at, match[2], match[3], match[4]
        elif (match := _RESUMED.match(line)) and match[1] in begun:
            began, call, arguments = begun.pop(match[1])
            arguments, result = arguments + match[2], match[3]
        else:
            continue
        if result == b"?":
            begun[match[1]] = began, call, arguments
        elif int(result) >= 0:
            # What is written may be on the disk, and what is sent with the client, from the beginning of the call on;
            # what is synced is on the disk at its end.
            calls += [(at if found.what == "sync" else began, found) for found in _understood(call, arguments, inside)]
    for at, call, arguments in begun.values():  # a kill came in the middle: what was being written may be there
        calls += [(at, found) for found in _understood(call, arguments, inside) if found.what != "sync"]
    return [call for _, call in sorted(calls, key=lambda pair: pair[0])]


def _whole(trace: Path) -> list[bytes]:
    """The lines of a trace whose tracer has seen the end of the process, which may be a moment after it."""
    deadline = time.monotonic() + END_SECONDS
    while True:
        lines = trace.read_bytes().splitlines()
        if lines and re.match(rb"^%s +\+\+\+ " % lines[0].split(b" ", 1)[0], lines[-1]):
            return lines
        assert time.monotonic() < deadline, f"{trace} does not end: {lines[-1:]}"
        time.sleep(0.01)


def _plain(escaped: bytes) -> bytes:
    return bytes.fromhex(escaped.replace(b"\\x", b"").decode())


def _understood(call: bytes, arguments: bytes, inside: bytes) -> Iterator[Call]:
    texts = [_plain(text) for text in _TEXT.findall(arguments)]
    if call.startswith((b"rename", b"unlink", b"open", b"creat")):
        names = [text.removeprefix(inside).decode() for text in texts if text.startswith(inside)]
        if names and not call.startswith((b"open", b"creat")):
            yield Call(call[:6].decode(), names[0], to=names[-1])
        elif names and (call == b"creat" or b"O_CREAT" in arguments):
            assert b"O_TRUNC" not in arguments, arguments
            yield Call("create", names[0])
        return
    of = _FD.match(arguments)
    path = _plain(of[1]) if of and of[1].startswith(b"\\x") else b""
    if not path.startswith(b"/"):
        if call in (b"write", b"writev", b"sendto", b"sendmsg"):
            yield Call("sent", "", b"".join(texts))
    elif path + b"/" == inside or path.startswith(inside):
        name = path.removeprefix(inside.rstrip(b"/")).removeprefix(b"/").decode()
        if name not in PASSING and not name.endswith("(deleted)"):
            yield _done_to(name, call, texts, arguments)


def _done_to(name: str, call: bytes, texts: list[bytes], arguments: bytes) -> Call:
    if call in (b"fsync", b"fdatasync"):
        return Call("sync", name)
    place = _LAST_NUMBER.search(arguments)
    assert place is not None
    if call == b"pwrite64":
        return Call("write", name, texts[0], int(place[1]))
    assert call == b"ftruncate", f"{call!r} of {name} is not understood"
    return Call("truncate", name, place=int(place[1]))


# -- the disk


@dataclass(slots=True)
class File:
    """A file: what of it is on the disk for sure, and what was done to it since it was synced."""

    synced: bytearray = field(default_factory=bytearray)
    unsynced: list[Call] = field(default_factory=list)


@dataclass(slots=True)
class Disk:
    """A folder as its processes see it (`names`), and as it may be after a power cut."""

    names: dict[str, File] = field(default_factory=dict)
    synced: dict[str, File] = field(default_factory=dict)
    unsynced: list[dict[str, File | None]] = field(default_factory=list)

    @classmethod
    def of(cls, folder: Path) -> Disk:
        """A folder all of which is on the disk."""
        files = {path.name: File(bytearray(path.read_bytes())) for path in folder.iterdir() if path.name not in PASSING}
        return cls(files, dict(files))

    def apply(self, call: Call) -> None:
        """Do what a process did."""
        if call.what == "sent" or call.name in PASSING:
            return
        if call.what == "sync":
            self._sync(call.name)
        elif call.what in ("create", "rename", "unlink"):
            self._rename(call)
        else:
            self.names[call.name].unsynced.append(call)

    def _sync(self, name: str) -> None:
        if name == "":
            self.synced, self.unsynced = dict(self.names), []
        else:
            file = self.names[name]
            _apply(file.synced, file.unsynced)
            file.unsynced.clear()

    def _rename(self, call: Call) -> None:
        change: dict[str, File | None]
        if call.what == "create":
            if call.name in self.names:
                return
            change = {call.name: File()}
        elif call.what == "rename":
            change = {call.name: None, call.to: self.names[call.name]}
        else:
            change = {call.name: None}
        _change(self.names, change)
        self.unsynced.append(change)

    def state(self, how: str, numbers: random.Random) -> dict[str, bytes]:
        """The files after a power cut. how: what of the unsynced is there."""
        names = dict(self.synced)
        for change in _chosen(self.unsynced, "some" if how == "torn" else how, numbers):
            _change(names, change)
        files = {}
        for name, file in names.items():
            contents = bytearray(file.synced)
            if how == "torn":
                for call in file.unsynced:
                    _apply(contents, _sectors(call, numbers))
            else:
                _apply(contents, _chosen(file.unsynced, how, numbers))
            files[name] = bytes(contents)
        return files


HOW = ("nothing", "all", "first", "some", "torn")
"""What of the unsynced a power cut leaves: nothing; all, as a kill does; the first so many; any; and any sectors."""


def _chosen(all_of_them: list[T], how: str, numbers: random.Random) -> list[T]:
    if how == "all":
        return all_of_them
    if how == "first":
        return all_of_them[: numbers.randint(0, len(all_of_them))]
    if how == "nothing":
        return []
    share = numbers.random()
    return [one for one in all_of_them if numbers.random() < share]


def _change(names: dict[str, File], change: Mapping[str, File | None]) -> None:
    for name, file in change.items():
        if file is None:
            names.pop(name, None)
        else:
            names[name] = file


def _apply(contents: bytearray, calls: list[Call]) -> None:
    for call in calls:
        if call.what == "truncate":
            del contents[call.place :]
            contents.extend(bytes(call.place - len(contents)))
        else:
            contents.extend(bytes(max(0, call.place - len(contents))))
            contents[call.place : call.place + len(call.data)] = call.data


def _sectors(call: Call, numbers: random.Random) -> list[Call]:
    """Some of the sectors of a write, or all, or none."""
    if call.what == "truncate" or numbers.random() < 0.3:
        return _chosen([call], "some", numbers)
    end = call.place + len(call.data)
    borders = [call.place, *range(call.place // SECTOR * SECTOR + SECTOR, end, SECTOR), end]
    pieces = [
        Call("write", call.name, call.data[start - call.place : stop - call.place], start)
        for start, stop in pairwise(borders)
    ]
    return _chosen(pieces, "some", numbers)


def lay(files: Mapping[str, bytes], folder: Path) -> Path:
    """Make a folder of these files."""
    folder.mkdir()
    for name, contents in files.items():
        (folder / name).write_bytes(contents)
    return folder


# -- a disk that is full


@contextmanager
def small_disk(folder: Path, size: str) -> Iterator[Path]:
    """A file system of its own, of so many bytes."""
    folder.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", f"size={size}", "tmpfs", str(folder)]
    if subprocess.run(mount, capture_output=True, check=False).returncode:
        pytest.skip("a small file system cannot be mounted here: it takes root")
    try:
        yield folder
    finally:
        subprocess.run(["umount", "-l", str(folder)], check=True)


def fill(path: Path) -> None:
    """Write to a file until there is no room."""
    fd = os.open(path, os.O_WRONLY | os.O_CREAT)
    try:
        while os.write(fd, bytes(4096)):
            continue
    except OSError as error:
        if error.errno != errno.ENOSPC:
            raise
    finally:
        os.close(fd)
