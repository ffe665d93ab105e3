"""Reads columnar files: Parquet, and Arrow files and streams, whose parts may be compressed.

Where a stranger sent the file, a child process reads it, with a limit on its memory. So a file that would become
gigabytes ends the child, and nothing else. The child writes what it reads as an Arrow stream, or as lines of NDJSON, of
which the first lists the columns that were a data frame's index.
"""

from __future__ import annotations

import contextlib
import math
import os
import re
import sys
from collections.abc import Callable, Iterator
from itertools import islice
from typing import IO, Any

import msgspec

MEMORY_BYTES = 2**30
"""Memory of a child for what it reads."""
BATCH_ROWS, BATCH_CELLS = 8_192, 131_072
"""Most rows and cells that are read at a time, about."""
WRONG, TOO_LARGE, TOO_MUCH = 3, 4, 5
"""Exit codes of the child. Its last line on standard error says what is wrong."""
PARQUET, ARROW, _STREAM = b"PAR1", b"ARROW1", b"\xff\xff\xff\xff"
"""How they begin."""
BATCH_BYTES = 2**24
"""A batch with more bytes is written in parts."""
_INDEX = re.compile(r"__index_level_[0-9]+__")
"""pandas' name for an unnamed index."""
_LEVELS, _LONGEST_NAME = 64, 256
"""Of an index, at most so many columns of names of at most so many characters are known, so that a file cannot make the
service look through megabytes of them."""


class WrongFile(Exception):
    """Why a file cannot be read."""


class ExpandsTooMuch(Exception):
    """What is in a file takes more bytes than are allowed."""


def batches(file: IO[bytes], allowed: float = math.inf) -> Iterator[Any]:
    """The record batches of a file. Raises WrongFile; or ExpandsTooMuch before the first, if a file says that all take
    more bytes than `allowed`."""
    import pyarrow as pa

    file.seek(0)  # who wrote it may share its position
    start = file.read(len(ARROW))
    file.seek(0)
    try:
        if start.startswith(PARQUET):
            yield from _of_parquet(file, allowed)
        elif start == ARROW:
            reader = pa.ipc.open_file(file, options=pa.ipc.IpcReadOptions(use_threads=False))
            yield from _cut(reader.get_batch(i) for i in range(reader.num_record_batches))
        elif start[:4] != _STREAM:
            raise WrongFile("it does not begin like one")
        else:
            yield from _cut(pa.ipc.open_stream(file, options=pa.ipc.IpcReadOptions(use_threads=False)))
    except (pa.ArrowMemoryError, MemoryError):
        raise MemoryError from None
    except (pa.ArrowException, OSError, ValueError, StopIteration) as error:
        raise WrongFile((str(error).splitlines() or ["it ends early"])[0][:200]) from None


def _of_parquet(file: IO[bytes], allowed: float) -> Iterator[Any]:
    import pyarrow as pa
    from pyarrow import parquet

    # Texts stay in dictionaries: else a long one in each of many rows would become as many copies.
    names = [
        field.name
        for field in parquet.read_schema(file)
        if pa.types.is_string(field.type) or pa.types.is_large_string(field.type)
    ]
    file.seek(0)
    found = parquet.ParquetFile(file, read_dictionary=names, pre_buffer=False, buffer_size=2**16)
    if found.metadata.num_rows * sum(_width(field.type) for field in found.schema_arrow) > allowed:
        raise ExpandsTooMuch
    rows = max(1, min(BATCH_ROWS, BATCH_CELLS // max(1, found.metadata.num_columns)))
    yield from found.iter_batches(batch_size=rows, use_threads=False)


def _width(kind: Any) -> float:
    """The least bytes that a value of this type takes."""
    try:
        return float(kind.bit_width) / 8
    except ValueError:  # it varies
        return 4.0


def _cut(found: Any) -> Iterator[Any]:
    """Batches, each with its offsets checked, in parts that are not too large."""
    for batch in found:
        batch.validate(full=True)  # else an offset outside of it would read foreign memory
        rows = max(1, min(BATCH_ROWS, BATCH_CELLS // max(1, batch.num_columns)))
        rows = max(1, min(rows, batch.num_rows * BATCH_BYTES // max(1, batch.nbytes)))
        for start in range(0, batch.num_rows, rows):
            yield batch.slice(start, rows)


class _Pandas(msgspec.Struct):
    """pandas' metadata of a table: the columns of its index. A range index has no column, only a description."""

    index_columns: list[str | dict[str, Any]] = msgspec.field(default_factory=list)


def index_of(schema: Any) -> list[str]:
    """The columns that were a data frame's index, by the schema's metadata or by pandas' name for it."""
    try:
        told = msgspec.json.decode((schema.metadata or {}).get(b"pandas", b"{}"), type=_Pandas).index_columns
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        told = []  # not written by pandas
    names = {name for name in told[:_LEVELS] if isinstance(name, str)}
    found = (name for name in schema.names if name in names or _INDEX.fullmatch(name))
    return [*islice((name for name in found if len(name) <= _LONGEST_NAME), _LEVELS)]


def lines(batch: Any, first_row: int) -> bytes:
    """Rows as lines of NDJSON: a flat object each. Times are text, as in a CSV file. Raises WrongFile for an infinity,
    which JSON does not have, and for two columns of one name."""
    names = batch.schema.names
    if len(set(names)) < len(names):
        raise WrongFile(f"two columns have the name {next(name for name in names if names.count(name) > 1)!r}")
    rows = batch.to_pylist()
    for j, field in enumerate(batch.schema):
        if str(field.type) in ("float", "double", "halffloat"):
            for i, row in enumerate(rows):
                if row[names[j]] is not None and math.isinf(row[names[j]]):
                    raise WrongFile(f"row {first_row + i}: column {names[j]!r} has an infinity")
    return msgspec.json.Encoder(decimal_format="number").encode_lines(rows)


def lines_of(file: IO[bytes], index: Callable[[list[str]], None]) -> Iterator[bytes]:
    """The rows of a file as lines of NDJSON. Before the first, `index` gets the columns that were a data frame's index.
    Raises WrongFile."""
    row = 1
    for batch in batches(file):
        if row == 1:
            index(index_of(batch.schema))
        yield from lines(batch, row).splitlines(keepends=True)
        row += batch.num_rows


def _write(file: IO[bytes], out: IO[bytes], as_lines: bool, allowed: int) -> None:
    import pyarrow as pa

    writer, row = None, 1
    for batch in batches(file, allowed):
        if as_lines:
            if row == 1:
                out.write(msgspec.json.encode(index_of(batch.schema)) + b"\n")
            out.write(lines(batch, row))
            row += batch.num_rows
            continue
        if writer is None:
            writer = pa.ipc.new_stream(out, batch.schema)
        writer.write_batch(batch)
    if writer is not None:
        writer.close()


def _child(descriptor: int, as_lines: bool, allowed: int) -> int:
    """Read a file and write what is in it to standard output. Returns the exit code."""
    from service.children import end_with_parent

    end_with_parent(lambda: os._exit(1))
    if sys.platform == "linux":
        import resource

        resource.setrlimit(resource.RLIMIT_DATA, (MEMORY_BYTES, MEMORY_BYTES))
    with os.fdopen(descriptor, "rb") as file, contextlib.suppress(BrokenPipeError):
        try:
            _write(file, sys.stdout.buffer, as_lines, allowed)
            sys.stdout.buffer.flush()
        except MemoryError:
            return TOO_LARGE
        except ExpandsTooMuch:
            return TOO_MUCH
        except WrongFile as wrong:
            print(wrong, file=sys.stderr)
            return WRONG
    return 0


if __name__ == "__main__":
    code = _child(int(sys.argv[1]), sys.argv[2] == "lines", int(sys.argv[3]))
    sys.stderr.flush()
    os._exit(code)  # at once: freeing what is left may fail where memory has run out
