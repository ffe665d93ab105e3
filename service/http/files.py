"""Bodies that are Parquet or Arrow files. Their table of contents comes last, so they are spooled to the disk. A child
process reads them (service/decode/columnar.py)."""

from __future__ import annotations

import asyncio
import contextlib
import shutil
import tempfile
from collections.abc import AsyncGenerator, Callable
from importlib.util import find_spec
from typing import IO, cast

import msgspec

from service import errors
from service.children import command
from service.decode.columnar import MEMORY_BYTES, TOO_LARGE, TOO_MUCH, WRONG
from service.decode.compression import MOST_TIMES
from service.decode.text import Chunks
from service.settings import Settings

CHILDREN = 2
"""Files that are read at a time. Others wait on the disk."""
_CHUNK = 2**16


class Files:
    """Reads bodies that are files. Together they take at most `max_files_bytes` of the disk."""

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self._held = 0
        self._places = asyncio.Semaphore(CHILDREN)

    async def chunks(self, body: Chunks, index: Callable[[list[str]], None] | None) -> AsyncGenerator[bytes]:
        """The rows of a file: an Arrow stream if `index` is None. Else they are lines of NDJSON, and before the first
        `index` gets the columns that were a data frame's index."""
        if find_spec("pyarrow") is None:
            raise errors.ArrowNotInstalled
        size = 0
        try:
            with tempfile.TemporaryFile(dir=self._settings.data) as file:
                async with contextlib.aclosing(body):
                    async for chunk in body:
                        self._hold(size, len(chunk))
                        size += len(chunk)
                        await asyncio.to_thread(_write, file, chunk)
                as_lines, head = index is not None, b""
                async with self._places, contextlib.aclosing(self._read(file, size, as_lines)) as found:
                    async for chunk in found:
                        if index is None:
                            yield chunk
                            continue
                        head += chunk
                        names, end, rest = head.partition(b"\n")
                        if end:
                            index(msgspec.json.decode(names, type=list[str]))
                            index = None
                            yield rest
        finally:
            self._held -= size

    def _hold(self, size: int, more: int) -> None:
        limit = self._settings.max_files_bytes
        if size + more > limit:
            raise errors.FileTooLarge(limit=limit)
        if self._held + more > limit:
            raise errors.TooManyFiles(limit=limit)
        if self._held + more > shutil.disk_usage(self._settings.data).free:  # the log is on the same disk
            raise errors.NoRoomForFile()
        self._held += more

    async def _read(self, file: IO[bytes], size: int, as_lines: bool) -> AsyncGenerator[bytes]:
        """What a child reads from the file. Raises what is wrong with it."""
        free = self._settings.max_batch_bytes
        allowed = free + MOST_TIMES * size
        child = await asyncio.create_subprocess_exec(
            *command("service.decode.columnar", str(file.fileno()), "lines" if as_lines else "arrow", str(allowed)),
            stdin=asyncio.subprocess.PIPE,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.PIPE,
            pass_fds=[file.fileno()],
        )
        stdout, stderr = (cast("asyncio.StreamReader", stream) for stream in (child.stdout, child.stderr))
        came = 0
        try:
            while chunk := await stdout.read(_CHUNK):
                came += len(chunk)
                if came > allowed:
                    raise errors.ExpandsTooMuch(times=MOST_TIMES, limit=free)
                yield chunk
            told = (await stderr.read()).decode(errors="replace").strip().rpartition("\n")[2]
            code = await child.wait()
        finally:
            if child.returncode is None:
                child.kill()
                await child.wait()
        if code == TOO_MUCH:
            raise errors.ExpandsTooMuch(times=MOST_TIMES, limit=free)
        if code == TOO_LARGE:
            raise errors.RowGroupTooLarge(limit=MEMORY_BYTES)
        if code != 0:
            raise errors.MalformedFile(reason=told if code == WRONG else "pyarrow cannot read it")


def _write(file: IO[bytes], chunk: bytes) -> None:
    """Write and flush, as the child reads what is on the disk."""
    try:
        file.write(chunk)
        file.flush()
    except OSError:
        raise errors.NoRoomForFile from None
