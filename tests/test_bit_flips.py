"""A flipped bit anywhere in a data folder: the same weights, or a refusal that says what to do; never other weights."""

from __future__ import annotations

import asyncio
import os
import random
import shutil
import sqlite3
from collections import Counter
from collections.abc import Sequence
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
from effort import amount
from examples import Example, flip, make_example, opened
from processes import copied

from service import errors, failures
from service.commands.inspect import examine
from service.storage import indexing, log
from service.storage.id_pieces import PIECES
from service.storage.log import LogReader
from service.storage.schema import PAGE_BYTES


@pytest.fixture(scope="module")
def example(tmp_path_factory: pytest.TempPathFactory) -> Example:
    return asyncio.run(make_example(tmp_path_factory.mktemp("example")))


SAME, DAMAGED_IDS = "the same", "the same weights, damaged ids"


def places(size: int, a_page: int, pages: Sequence[int], numbers: random.Random) -> list[tuple[int, int]]:
    """Bytes and bits to flip: so many in each of these pages, every other one near its start, where its headers are."""
    found = []
    for page, start in enumerate(number * PAGE_BYTES for number in pages):
        for i in range(a_page):
            within = numbers.randrange(min(size - start, 120 if (page + i) % 2 else PAGE_BYTES))
            found.append((start + within, numbers.randrange(8)))
    return found


def check_flips(
    example: Example, folder: Path, name: str, a_page: int, to: Path, pages: Sequence[int] | None = None
) -> Counter[str]:
    """Flip bits of a file, one at a time, and start each time: what came of it, by kind. pages: by default all, in
    quick only some."""
    # Another kind of file must not be what refuses: the mark of the killed folder fits its log.
    size = (folder / name).stat().st_size
    if pages is None:
        pages = range(0, -(-size // PAGE_BYTES), amount(quick=5, checks=1, long=1))
    seed = int(os.environ.get("FLIP_SEED", "1"))
    found: Counter[str] = Counter()
    whole_ids = ids_in(folder)
    for i, (place, bit) in enumerate(places(size, a_page, pages, random.Random(seed))):
        damaged = copied(folder, to / str(i))
        flip(damaged / name, place, bit)
        told, ids = examine_tells(damaged), ids_in(damaged)
        result = asyncio.run(opened(damaged))
        where = f"bit {bit} of byte {place} of {name}: {result}"
        if isinstance(result, errors.LogstepError):
            assert str(damaged) in str(result), where  # what is damaged
            if not isinstance(result, failures.NewerFormat | failures.NotADataFolder):
                commands = (f"`logstep {command} {damaged}`" for command in ("inspect", "repair"))
                assert any(command in str(result) for command in commands), where
            assert told, where
            found[type(result).__name__] += 1
        else:
            assert result == example.state, where
            assert told or ids == whole_ids, where
            found[SAME if ids == whole_ids else DAMAGED_IDS] += 1
        shutil.rmtree(damaged)
    print(name, dict(found))
    return found


def ids_in(folder: Path) -> list[tuple[Any, ...]] | str:
    """All that stands in the tables of ids, or why that cannot be told."""
    try:
        with closing(sqlite3.connect(f"file:{folder}/log.db?mode=ro", uri=True)) as db:
            of_predictions = "SELECT model, CAST(id AS BLOB), seq, fingerprint, kind, label FROM ids"
            return db.execute(of_predictions).fetchall() + db.execute(PIECES).fetchall()
    except (sqlite3.Error, UnicodeDecodeError) as error:
        return str(error)


def examine_tells(folder: Path) -> bool:
    """Whether `logstep inspect` finds something wrong too."""
    try:
        return bool(examine(folder).wrong)
    except errors.LogstepError:
        return True


FILES = [("closed", "log.db"), ("killed", "log.db-wal"), ("closed", "last-commit")]


@pytest.mark.parametrize(("folder", "name"), FILES)
def test_a_flipped_bit_gives_the_same_weights_or_a_refusal(
    example: Example, tmp_path: Path, folder: str, name: str
) -> None:
    a_page = {
        "log.db": amount(quick=4, checks=10, long=40),
        "log.db-wal": amount(quick=1, checks=1, long=10),  # it has each page many times
        "last-commit": amount(quick=10, checks=40, long=160),
    }[name]
    found = check_flips(example, getattr(example, folder), name, a_page, tmp_path)
    assert found.keys() - {SAME, DAMAGED_IDS}  # some were refused: the flips are no dry run


def test_a_flipped_bit_where_the_log_is_indexed_gives_the_same_weights_or_a_refusal(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Some rows are in the index, some are not, and the last row of one model is old."""
    monkeypatch.setattr(indexing, "INDEXED_ROWS", 30)
    monkeypatch.setattr(log, "NEWEST_ROWS", 5)
    example = asyncio.run(make_example(tmp_path))
    with closing(LogReader(example.closed)) as reader:
        assert reader.index.refresh().indexed
        assert reader.index.new_rows
    with closing(sqlite3.connect(example.closed / "log.db")) as db:
        try:
            found = db.execute("SELECT pageno - 1 FROM dbstat WHERE name IN ('batches', 'log_index', 'indexed')")
        except sqlite3.OperationalError as error:
            pytest.skip(f"this SQLite does not tell which page is whose: {error}")
        pages = [page for (page,) in found]
    check_flips(example, example.closed, "log.db", amount(quick=10, checks=30, long=1_000), tmp_path, pages)
