"""Files are read as their owners meant them, or refused with a line: kinds of columns, quotes, labels, formats."""

from __future__ import annotations

import bz2
import csv
import gzip
import io
import itertools
import json
import lzma
import math
import os
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from datetime import UTC, datetime
from decimal import Decimal
from pathlib import Path
from typing import Any, Literal

import pyarrow
import pytest
from effort import examples
from harness import Model, NewModel, Service
from hypothesis import given
from hypothesis import strategies as st
from patience import PATIENCE, eventually
from pyarrow import feather, parquet

from service.commands import cli
from service.commands.files import OpenSource, Source
from service.commands.rows import Row
from service.commands.terminal import WrongUsage
from service.decode.compression import zstd
from service.rows.columns import Kept

Y: dict[str, Any] = {"label": "y"}

# -- helpers


def rows_of(content: bytes | str, name: str = "a.csv", **how: Any) -> list[Row]:
    """The rows of a file with this name and content."""
    data = content.encode() if isinstance(content, str) else content
    return list(OpenSource(Source(name, **how), io.BytesIO(data), len(data)).rows())


def x_of(row: Row) -> dict[str, Any]:
    assert isinstance(row.event.x, dict)
    return row.event.x


def events_of(content: bytes | str, name: str = "a.csv", **how: Any) -> list[tuple[dict[str, Any], int]]:
    return [(x_of(row), int(row.event.y)) for row in rows_of(content, name, **how)]


def xs_of(content: bytes | str, name: str = "a.csv", **how: Any) -> list[dict[str, Any]]:
    return [x for x, _ in events_of(content, name, **how)]


def kinds_of(content: bytes | str, name: str = "a.csv", **how: Any) -> dict[str, str] | None:
    data = content.encode() if isinstance(content, str) else content
    opened = OpenSource(Source(name, **how), io.BytesIO(data), len(data))
    opened.look()
    return opened.kinds()


def refusal(content: bytes | str, name: str = "a.csv", **how: Any) -> str:
    with pytest.raises(WrongUsage) as wrong:
        rows_of(content, name, **how)
    return str(wrong.value)


def table(columns: Mapping[str, Any], delimiter: str = ",", **how: Any) -> str:
    """Columns as a file; a label alternates where there is none."""
    length = len(next(iter(columns.values())))
    columns = {**columns, "y": columns.get("y") or [n % 2 for n in range(length)]}
    text = io.StringIO()
    writer = csv.writer(text, delimiter=delimiter, **{"lineterminator": "\n", **how})
    writer.writerow(columns)
    writer.writerows(zip(*columns.values(), strict=True))
    return text.getvalue()


# -- a column is one thing


@pytest.mark.parametrize(
    "cells",
    [
        ["05db9164", "19772693", "7e5c2ff4", "1989e165"],
        ["01234", "1234"],
        ["1234567890123456", "12"],
        ["+49", "+049"],
        ["1e101", "1"],
        ["1_000", "1"],
        ["0x1F", "1"],
        ["FR", "DE", "FR"],
        ["2024-05-01", "2024-05-02"],
        ["١٢", "1"],
    ],
    ids=lambda cells: cells[0],
)
def test_a_column_with_a_cell_that_is_no_number_is_text(cells: list[str]) -> None:
    content = table({"c": cells})
    assert xs(content) == [{"c": cell} for cell in cells]
    assert kinds_of(content, **Y) == {"c": "text"}


def test_numbers_are_numbers_however_they_are_written() -> None:
    cells = ["0", "-0.5", "+1", "1.", ".5", "1e3", "1E-300", "0.10638299999999999", "123456789012345", "-0", "0.0"]
    assert [x["c"] for x in xs(table({"c": cells}))] == [float(cell) for cell in cells]
    spaced = "c, y\n" + "".join(f" {cell} , 1\n" for cell in cells)
    assert [x["c"] for x in xs_of(spaced, **Y)] == [float(cell) for cell in cells]


def xs(content: str) -> list[dict[str, Any]]:
    return xs_of(content, **Y)


def test_what_is_missing_decides_nothing_is_left_out_and_is_counted(capsys: pytest.CaptureFixture[str]) -> None:
    missing = ["", "NA", "N/A", "NaN", "nan", "null", "NULL", "?", "\\N", " "]
    content = table({"number": [*missing, 7], "text": ["x", *missing]})
    data = content.encode()
    opened = OpenSource(Source("a.csv", **Y), io.BytesIO(data), len(data))
    assert [row.event.x for row in opened.rows()] == [{"text": "x"}, *[{}] * 9, {"number": 7.0}]
    assert opened.missing == 20
    opened.tell_what_was_left_out()
    output, error = capsys.readouterr()
    assert [line.split()[:4] for line in output.splitlines()[2:4]] == [
        ["number", "number", "7", "10"],
        ["text", "text", "x", "10"],
    ]
    assert "20 cell(s) of a.csv were missing" in error


def test_truth_values_are_numbers_as_they_are_in_json() -> None:
    cells = ["True", "False", "TRUE", "false"]
    assert xs(table({"vip": cells})) == [{"vip": 1.0}, {"vip": 0.0}, {"vip": 1.0}, {"vip": 0.0}]
    lines = "".join(f'{{"vip": {cell.lower()}, "y": 1}}\n' for cell in cells)
    assert xs_of(lines, "a.ndjson", **Y) == xs(table({"vip": cells}))
    assert xs(table({"vip": ["True", "2"]})) == [{"vip": 1.0}, {"vip": 2.0}]
    assert xs(table({"vip": ["True", "maybe"]})) == [{"vip": "True"}, {"vip": "maybe"}]


@pytest.mark.parametrize(
    ("cell", "advice"),
    [
        ("inf", "numbers must be finite"),
        ("-Infinity", "numbers must be finite"),
        ("1,234", "write 1234, without a comma"),
        ("1,234.5", "write 1234, without a comma"),
        ("12,5", "write 12.5, with a point"),
        ("12%", "write 12, without a percent sign"),
        ("$5", "write 5, without a currency sign"),
        ("5 €", "write 5, without a currency sign"),
        ("₹ 1,500.00", "write 5, without a currency sign"),
        ("14 USD", "write 5, without a currency sign"),
        ("(12.50)", "write -5, without brackets"),
        ("−12", "write -5, with the minus sign of the keyboard"),
        ("1 234", "write 1234, without spaces"),
        ("unknown", "leave the cell empty"),
    ],
)
def test_a_cell_that_is_no_number_among_numbers_is_a_question(cell: str, advice: str) -> None:
    content = table({"price": [*range(30), cell, *range(30)]})
    for flags in [dict[str, Any](), {"asked": {"price": "number"}}]:
        told = refusal(content, **Y, **flags)
        assert "a.csv line 32: column 'price'" in told
        assert repr(cell) in told
        assert advice in told
        assert "--text price" in told
        assert "--ignore price" in told
    assert xs_of(content, **Y, asked={"price": "text"})[30] == {"price": cell}
    # After the rows that are looked at, it ends there.
    opened = OpenSource(Source("a.csv", look=10, **Y), io.BytesIO(content.encode()), len(content))
    seen: list[Row] = []
    with pytest.raises(WrongUsage, match=r"a\.csv line 32: column 'price' has numbers \(so far\)"):
        seen.extend(opened.rows())  # what came before the error is there
    assert refusal(content, look=10, **Y).count(advice) == 1


def test_a_cell_that_is_nearly_a_number_is_a_question_in_the_smallest_file() -> None:
    for cell in ("inf", "1,234", "12%"):
        assert f"line 3: column 'a' looks like numbers (2 of 3 cells are), but '{cell}' is not one" in refusal(
            table({"a": ["1", cell, "2"]}), **Y
        )


@pytest.mark.parametrize("word", ["None", "<NA>", "#N/A", "#DIV/0!", "NaT", "-", ".", "unknown", "(null)", "n.a."])
def test_a_word_for_an_unknown_number_does_not_make_a_text_of_numbers(word: str) -> None:
    ages = [word if n % 3 == 0 else n for n in range(60)]
    told = refusal(table({"age": ages}), **Y)
    assert told.startswith(
        f"a.csv line 2: column 'age' looks like numbers (40 of 60 cells are), but {word!r} is not one"
    )
    assert "leave the cell empty" in told
    assert kinds_of(table({"age": ages}), **Y, asked={"age": "text"}) == {"age": "text"}
    assert kinds_of(table({"answer": [word, "yes", "yes"] * 9}), **Y) == {"answer": "text"}
    assert kinds_of(table({"answer": [word] * 9}), **Y) == {"answer": "text"}, "there is no number in it"


def test_spaces_that_do_not_break_a_line_are_spaces() -> None:
    content = "a,b,y\n" + "\u00a01.5\u202f,\u00a0,0\n2\u00a0,\u3000x\u00a0,1\n"
    assert xs_of(content, **Y) == [{"a": 1.5}, {"a": 2.0, "b": "x"}]


def test_a_code_after_the_rows_that_are_looked_at_is_a_question() -> None:
    told = refusal(table({"zip": [10_000, 10_001, "01234"]}), **Y, look=2)
    assert "line 4: column 'zip' has numbers (so far), but '01234' is not one: a leading zero" in told
    assert "--text zip" in told


def test_a_code_among_numbers_makes_it_text_and_no_question() -> None:
    assert kinds_of(table({"zip": [*range(10_000, 10_060), "01234"]}), **Y, asked={"zip": "text"}) == {"zip": "text"}
    zips = [str(number) for number in range(10_000, 10_010)] * 6 + ["01234"]
    assert xs_of(table({"zip": zips}), **Y)[-1] == {"zip": "01234"}
    assert xs_of(table({"zip": zips}), **Y)[0] == {"zip": "10000"}


@pytest.mark.parametrize("odd", ["007.50", "007", "1e300", "1e+101", "12345678901234567.5"])
def test_an_odd_cell_among_decimals_is_a_question_and_makes_no_text(odd: str) -> None:
    """Codes have no decimal point: here the column would be left out, as text in which nearly every cell differs."""
    amounts = [f"{numbers:.3f}" for numbers in map(math.sqrt, range(2, 101))]
    told = refusal(table({"amount": [*amounts, odd], "a": range(100)}), **Y)
    assert told.startswith(f"a.csv line 101: column 'amount' looks like numbers (99 of 100 cells are), but {odd!r}")
    assert "--text amount reads the column as text" in told
    signed = refusal(table({"delta": [*range(-50, 50), "007"], "a": range(101)}), **Y)
    assert "column 'delta' looks like numbers" in signed
    many = table({"code": ["250.0", "V58.1", "007.5"] * 9})  # ICD
    assert kinds_of(many, **Y) == {"code": "text"}


def test_a_text_of_which_nine_in_ten_differ_is_left_out_and_kept_by_a_flag(capsys: pytest.CaptureFixture[str]) -> None:
    ids = [f"e-{n}" for n in range(100)]
    columns = {"event_id": ids, "city": [f"c{n % 90}" for n in range(100)], "a": list(range(100))}
    assert kinds_of(table(columns), **Y) == {"event_id": "ignore", "city": "text", "a": "number"}
    output = capsys.readouterr().out
    assert "event_id  left out  e-0" in output
    assert "100 different values in 100: an id or free text; --text event_id keeps it" in output
    assert xs_of(table(columns), **Y)[0] == {"city": "c0", "a": 0.0}
    assert xs_of(table(columns), **Y, asked={"event_id": "text"})[0] == {"event_id": "e-0", "city": "c0", "a": 0.0}
    few = {"event_id": ids[:9], "a": list(range(9))}
    assert kinds_of(table(few), **Y) == {"event_id": "text", "a": "number"}
    assert "too few rows to detect an id" in capsys.readouterr().out


def test_a_column_that_counts_the_rows_is_pointed_at(capsys: pytest.CaptureFixture[str]) -> None:
    rows_of(table({"row": list(range(1, 40)), "a": [3] * 39}), **Y)
    assert "numbers the rows; --ignore row leaves it out" in capsys.readouterr().out


def test_kinds_can_be_said(capsys: pytest.CaptureFixture[str]) -> None:
    columns = {"zip": [1234, 9999], "code": ["1", "2"], "note": ["x", "y"], "w": [2, 0.5], "key": ["k1", "k2"]}
    asked = {"zip": "text", "code": "number", "note": "ignore", "w": "weight", "key": "id"}
    first, second = (row.event for row in rows_of(table(columns), **Y, asked=asked))
    assert (first.x, first.weight, first.id) == ({"zip": "1234", "code": 1.0}, 2.0, "k1")
    assert (second.x, second.weight, second.id) == ({"zip": "9999", "code": 2.0}, 0.5, "k2")
    output = capsys.readouterr().out
    assert "--weight-column" in output
    assert "--text" in output


@pytest.mark.parametrize(
    ("asked", "message"),
    [
        ({"zap": "text"}, "a.csv has no column 'zap'; it has a, w, y"),
        ({"y": "text"}, "has the label in column 'y'"),
        ({"a": "ignore", "w": "weight"}, "a.csv has no column to learn from; left out: a"),
        ({"w": "weight"}, "a.csv line 4: its weight '' is not a number, 0 or more"),
        ({"w": "id"}, "a.csv line 4: it has no id"),
    ],
)
def test_what_makes_no_sense_of_columns_is_told(asked: dict[str, str], message: str) -> None:
    assert message in refusal("a,w,y\n1,2,1\n1,0,1\n1,,0\n", **Y, asked=asked)


# -- the rows that are looked at


class Chunks(io.RawIOBase):
    """Bytes as a pipe may give them: some at a time. Read past the end of them is an error if `more` would come."""

    def __init__(self, data: bytes, sizes: Iterator[int], more: bool = False) -> None:
        self._data, self._sizes, self._more = data, sizes, more

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: memoryview) -> int:  # type: ignore[override]  # a memoryview is what a reader gives
        assert self._data or not self._more, "it waits for what is not needed"
        size = min(next(self._sizes), len(buffer))
        part, self._data = self._data[:size], self._data[size:]
        buffer[: len(part)] = part
        return len(part)


def piped(data: bytes, size: int, more: bool = False, **how: Any) -> OpenSource:
    file = io.BufferedReader(Chunks(data, itertools.repeat(size), more))
    return OpenSource(Source("-", **how), file, None)


@pytest.mark.parametrize("size", [1, 2, 7, 4096])
def test_however_the_bytes_come_the_events_are_the_same(size: int) -> None:
    content = table({"zip": ["01234", 1234, 'a "b"\nc', "NA"] * 8, "n": [1, 2.5, "", 4] * 8}).encode()
    expected = rows_of(content, **Y)
    assert list(piped(content, size, **Y).rows()) == expected
    assert list(piped(gzip.compress(content), size, **Y).rows()) == expected
    assert rows_of(gzip.compress(content), "A.CSV.GZ", **Y) == expected


def test_the_rows_that_are_looked_at_decide_and_no_others() -> None:
    content = "a,y\n1,1\n2,0\nx,1\n"
    assert xs_of(content, **Y) == [{"a": "1"}, {"a": "2"}, {"a": "x"}]
    assert "a.csv line 4: column 'a' has numbers (so far), but 'x' is not one" in refusal(content, **Y, look=2)
    assert xs_of("a,y\nx,1\n2,0\n3,1\n", **Y, look=1) == [{"a": "x"}, {"a": "2"}, {"a": "3"}]


def test_of_wide_rows_fewer_are_looked_at_unless_it_is_said_how_many(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("service.rows.readers.MOST_CELLS", 30)
    content = "a,b,y\n" + "1,2,1\n" * 20
    assert len(rows_of(content, **Y)) == 20
    assert "by its first 10 row(s)" in capsys.readouterr().out
    assert len(rows_of(content, **Y, look=15)) == 20
    assert "by its first 15 row(s)" in capsys.readouterr().out
    assert rows_of(content, **Y) == list(piped(content.encode(), 1, **Y).rows())


def test_a_wide_table_says_of_each_column_what_is_worth_saying(capsys: pytest.CaptureFixture[str]) -> None:
    columns: dict[str, Sequence[object]] = {f"c{n}": [1, 2] for n in range(150)}
    rows_of(table({**columns, "zip": ["01", "2"]}), **Y)
    output = capsys.readouterr().out
    assert "zip     text" in output
    assert "c17" not in output
    assert "and 150 more: 150 number" in output


def test_with_all_columns_given_nothing_is_waited_for() -> None:
    content = b"a,b,w,y\n1,x,1,1\n2,y,1,0\n"
    asked = {"a": "number", "b": "text", "w": "weight"}
    rows = piped(content, 1, more=True, **Y, asked=asked).rows()
    assert [next(rows).event.x for _ in range(2)] == [{"a": 1.0, "b": "x"}, {"a": 2.0, "b": "y"}]
    rows = piped(b'{"x": {"a": 1}, "y": 1}\n', 1, more=True).rows()
    assert next(rows).event.x == {"a": 1.0}
    with pytest.raises(AssertionError, match="waits for what is not needed"):
        piped(content, 1, more=True, **Y, asked={"a": "number"}).look()


def test_what_came_of_a_pipe_is_learned_while_more_is_waited_for(
    model: Model, shared: Service, monkeypatch: pytest.MonkeyPatch
) -> None:
    ours, theirs = os.pipe()
    with os.fdopen(ours, "rb") as read_end, os.fdopen(theirs, "wb") as write_end:
        monkeypatch.setattr("sys.stdin", io.TextIOWrapper(read_end))
        flags = ("-", "--label=y", "--number=a", f"--model={model.name}", f"--url=http://127.0.0.1:{shared.port}")
        replay = threading.Thread(target=cli.main, args=(["replay", *flags],))
        replay.start()
        for data, seq in ((b"a,y\n1,1\n2,0\n", 2), (b"3,1\n4,0\n5,", 4), (b"1\n", 5)):
            write_end.write(data)
            write_end.flush()
            eventually(lambda: model.state()["seq"] == seq, "what came to be learned")  # noqa: B023  # at once
        write_end.close()
        replay.join(PATIENCE)


def test_a_slow_input_is_told_what_is_waited_for(monkeypatch: pytest.MonkeyPatch) -> None:
    told: list[str] = []
    is_told = threading.Semaphore(0)
    monkeypatch.setattr("service.commands.files.SLOW_SECONDS", 0.3)

    def say(what: str) -> None:
        told.append(what)
        is_told.release()

    monkeypatch.setattr("service.commands.files.say", say)
    ours, theirs = os.pipe()
    with os.fdopen(ours, "rb") as read_end, os.fdopen(theirs, "wb") as write_end:

        def write() -> None:
            is_told.acquire(timeout=PATIENCE)
            write_end.write(b"a,y\n" + b"1,1\n" * 12)
            write_end.flush()
            is_told.acquire(timeout=PATIENCE)
            write_end.close()

        writer = threading.Thread(target=write)
        writer.start()
        assert len(list(OpenSource(Source("-", **Y), read_end, None).rows())) == 12
        writer.join()
    assert told == ["waiting for the first row", "have read 12 rows, waiting for 10,000; --look 100"]


# -- what is written by a program is read as it was meant

names = st.lists(st.text("abcxyzÄß_ .,;\t'\"-", min_size=1, max_size=6).map(lambda text: f"n{text}n"), unique=True)
numbers = st.one_of(
    st.integers(-(10**15) + 1, 10**15 - 1),
    st.floats(-1e100, 1e100, allow_subnormal=False).filter(lambda value: abs(value) < 1e15 or "e" in repr(value)),
    st.booleans(),
)
texts = st.text("abcÄ€ ,;\t|'\"\n0123.-", max_size=8).map(lambda text: f"k{text}k")


@st.composite
def typed_tables(draw: st.DrawFn) -> tuple[list[str], list[list[Any]]]:
    """Names of columns, and rows of numbers, texts and None; each column has at least one cell that is there."""
    columns = draw(names.filter(bool).map(lambda found: found[:4]))
    kinds = [draw(st.sampled_from([numbers, texts])) for _ in columns]
    first = [draw(kind) for kind in kinds]
    count = draw(st.integers(0, 8))
    rows = [[draw(st.one_of(st.none(), kind)) for kind in kinds] for _ in range(count)]
    return columns, [first, *rows]


@examples(150)
@given(
    typed_tables(),
    st.sampled_from([",", ";", "\t", "|"]),
    st.sampled_from([csv.QUOTE_MINIMAL, csv.QUOTE_ALL]),
    st.sampled_from(["\n", "\r\n"]),
    st.sampled_from(["", "NA", "?", "null"]),
)
def test_a_typed_table_that_was_written_is_read_as_it_was_meant(
    typed: tuple[list[str], list[list[Any]]], delimiter: str, quoting: Literal[0, 1], end: str, missing: str
) -> None:
    columns, rows = typed
    text = io.StringIO()
    writer = csv.writer(text, delimiter=delimiter, quoting=quoting, lineterminator=end)
    writer.writerow(["label", *columns])
    for number, row in enumerate(rows):
        writer.writerow([number % 2, *(missing if cell is None else cell for cell in row)])
    expected = [
        (
            {
                name: cell if isinstance(cell, str) else float(cell)
                for name, cell in zip(columns, row, strict=True)
                if cell is not None
            },
            number % 2,
        )
        for number, row in enumerate(rows)
    ]
    data = text.getvalue().encode()
    how: dict[str, Any] = {"label": "label", "delimiter": delimiter, "quoted": True, "header": True}
    assert events_of(data, **how) == expected
    assert [(row.event.x, row.event.y) for row in piped(data, 3, **how).rows()] == expected


# -- quotes


def test_quotes_are_characters_in_tsv() -> None:
    content = 'y\ta\tb\n1\t"hello\t3\n0\tx\t4\n1\tend"\t5\n0\ty\t6\n'
    assert xs_of(content, "a.tsv", **Y) == [
        {"a": '"hello', "b": 3.0},
        {"a": "x", "b": 4.0},
        {"a": 'end"', "b": 5.0},
        {"a": "y", "b": 6.0},
    ]
    assert xs_of(content, "a.txt", **Y) == xs_of(content, "a.tsv", **Y)


def test_a_cell_of_tsv_that_begins_and_ends_with_a_quote_is_told(capsys: pytest.CaptureFixture[str]) -> None:
    content = 'y\ta\n1\tx\n0\t"two words"\n1\t"more"\n'
    assert xs_of(content, "a.tsv", **Y)[1] == {"a": '"two words"'}
    error = capsys.readouterr().err
    assert 'a.tsv line 3: the cell "two words" begins and ends with a quote' in error
    assert "--quoted" in error
    assert error.count("\n") == 1
    assert xs_of(content, "a.tsv", **Y, quoted=True)[1] == {"a": "two words"}


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ('1,5" pipe', "a quote comes in the middle of a cell, after '5'"),
        ('1,x"', "a quote comes in the middle of a cell, after 'x'"),
        ('1,"x"y', "text comes after the quoted cell 'x'"),
        ('1,"x" "y"', "a quote comes after the quoted cell 'x'"),
        ('1,"x', "a quoted cell begins here but is never closed"),
        ('1,"x' + "\nx" * 120 + '"', "a quoted cell begins here but is not closed within 100 lines"),
        ("1,x\rx", "it has a carriage return in the middle"),
    ],
)
def test_a_quote_out_of_place_is_refused_with_its_line(line: str, message: str) -> None:
    told = refusal(f"y,a\n0,x\n{line}\n", **Y)
    assert f"a.csv line 3: {message}" in told
    assert refusal(f'y,a\n0,"x\ny"\n{line}\n', **Y).startswith(f"a.csv line 4: {message}")
    if '"' in line and "\n" not in line:
        assert "--no-quoted" in told
        assert xs_of(f"y,a\n0,x\n{line}\n", **Y, quoted=False)[1] == {"a": line[2:]}


def test_a_quoted_cell_has_up_to_a_hundred_lines_and_more_than_one_are_told(capsys: pytest.CaptureFixture[str]) -> None:
    cell = "x" + "\n" * 98 + "x"
    (x,) = xs_of(f'y,a\n1,"{cell}\n"\n', **Y)
    assert x == {"a": f"{cell}\n"}
    assert "a.csv line 2: a quoted cell begins here and ends on line 101" in capsys.readouterr().err
    assert "not closed within 100 lines" in refusal(f'y,a\n1,"{cell}\n\n"\n', **Y)


# -- labels


@pytest.mark.parametrize("label", ["", "NA", "?", "null", "NaN", "N/A", "\\N"])
def test_a_row_without_a_label_is_left_out_and_counted(label: str, capsys: pytest.CaptureFixture[str]) -> None:
    content = f"a,y\n1,>50K\n2,{label}\n3,<=50K\n"
    data = content.encode()
    opened = OpenSource(Source("a.csv", **Y, positive=[">50K"]), io.BytesIO(data), len(data))
    assert [(row.number, row.event.x, row.event.y) for row in opened.rows()] == [(1, {"a": 1.0}, 1), (3, {"a": 3.0}, 0)]
    opened.tell_what_was_left_out()
    assert "1 row(s) of a.csv had no label" in capsys.readouterr().err


def test_null_labels_of_json_are_left_out() -> None:
    flat = '{"a": 1, "y": null}\n{"a": 2, "y": 1}\n'
    assert [row.number for row in rows_of(flat, "a.ndjson", **Y)] == [2]
    assert [row.number for row in rows_of('{"x": {"a": 1}, "y": null}\n{"x": {"a": 2}, "y": 1}\n', "a.ndjson")] == [2]


def labelled(*labels: str) -> str:
    return "a,y\n" + "".join(f"1,{label}\n" for label in labels)


@pytest.mark.parametrize(
    ("labels", "how", "message"),
    [
        (
            ["<=50K", "<=50K", ">50K."],
            {"positive": [">50K"]},
            "none of the first 3 labels is '>50K'; they are '<=50K' (2)",
        ),
        (["a", "b"], {"negative": ["c"]}, "none of the first 2 labels is 'c'"),
        (
            ["a", "b", "c"],
            {"positive": ["a"], "negative": ["b"]},
            "line 4: neither --positive nor --negative names the label 'c'",
        ),
        (["a"], {"positive": ["A"], "negative": ["a"]}, "cannot be both --positive and --negative"),
        (
            ["a"],
            {"positive": ["NA"]},
            "'NA' is not a label: it means that a row has no label",
        ),
        (["0", "1", "-1"], {}, "line 4: with '-1' there are more than two labels"),
        (["0", "1", "2"], {}, "line 4: the label '2' is not 0, 1, -1, +1, true or false; labels before it are 0 (1)"),
        (["yes", "no"], {}, "line 2: the label 'yes' is not 0, 1"),
    ],
)
def test_labels_that_cannot_be_meant_are_refused_before_anything_is_learned(
    labels: list[str], how: dict[str, Any], message: str
) -> None:
    assert message in refusal(labelled(*labels), **Y, **how)


def test_which_label_is_1_can_be_said_in_every_way() -> None:
    ways: list[dict[str, Any]] = [
        {"positive": ["a", "b"]},
        {"negative": ["c"]},
        {"positive": ["a", "b"], "negative": ["c"]},
        {"positive": ["a", "b"], "negative": ["c", "d"]},
    ]
    for how in ways:
        assert [y for _, y in events_of(labelled("a", "c", "B", "c"), **Y, **how)] == [1, 0, 1, 0]


def test_a_rare_label_is_a_warning_and_one_that_never_came_is_told(capsys: pytest.CaptureFixture[str]) -> None:
    for labels, code in ((["ok"] * 30 + ["fraud"], 0), (["ok"] * 31, 1)):
        data = labelled(*labels).encode()
        opened = OpenSource(Source("a.csv", **Y, positive=["fraud"], look=10), io.BytesIO(data), len(data))
        assert len(list(opened.rows())) == 31
        assert (
            "none of the first 10 labels of a.csv is 'fraud' (--positive); they are 'ok' (10)"
            in capsys.readouterr().err
        )
        assert opened.check_labels() == code
    assert "no label of a.csv is 'fraud' (--positive): they are 'ok' (31), and all 31 were read as 0" in (
        capsys.readouterr().err
    )


def test_what_else_is_read_as_0_is_told(capsys: pytest.CaptureFixture[str]) -> None:
    content = table({"a": range(8), "y": ["yes", "no", "no", "None", "yes", "no", "no", "None"]})
    assert [y for _, y in events_of(content, label="y", positive=["yes"])] == [1, 0, 0, 0, 1, 0, 0, 0]
    assert "of the labels of a.csv, 'yes' is 1 and all others are 0: 'no' (4), 'None' (2)" in capsys.readouterr().err
    events_of(content, label="y", positive=["yes", "None"])
    assert not capsys.readouterr().err, "one other is what is meant"


def test_labels_that_are_all_the_same_are_told(capsys: pytest.CaptureFixture[str]) -> None:
    for count, told in ((99, ""), (100, "logstep: all 100 labels of a.csv are 0: there is nothing to learn\n")):
        content = table({"a": range(count), "y": [0] * count})
        opened = OpenSource(Source("a.csv", **Y), io.BytesIO(content.encode()), len(content))
        assert len(list(opened.rows())) == count
        assert opened.check_labels() == 0
        assert capsys.readouterr().err == told


def test_labels_of_a_pipe_that_nobody_waits_for_are_checked_as_they_come() -> None:
    data = labelled("a", "b", "a", "b", "a", "b").encode()
    rows = piped(data, 1, **Y, positive=["c"], asked={"a": "number"}, look=3).rows()
    assert len(list(itertools.islice(rows, 3))) == 3
    with pytest.raises(WrongUsage, match="none of the first 3 labels is 'c'"):
        next(rows)


# -- headers, and what programs make of them


@pytest.mark.parametrize(
    ("content", "why"),
    [
        (",a,y\n0,1,1\n1,2,0\n", "an unnamed index, as pandas writes it"),
        (",,a,y\nx,0,1,1\nx,1,2,0\n", "an unnamed index, as pandas writes it"),
        ('"a","y"\n"1",1,1\n"2",2,0\n', "row names without a header cell, as R writes them"),
        ('"","a","y"\n"1",1,1\n"2",2,0\n', "an unnamed index"),
        ("Unnamed: 0,a,y\n0,1,1\n1,2,0\n", "pandas' name for an index"),
        ("a,y,\n1,1,\n2,0,\n", "it is empty and has no name"),
        ("a,y\n1,1,\n2,0,\n", "it is empty and has no name"),
    ],
)
def test_columns_without_a_name_are_said_and_left_out(
    content: str, why: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert events_of(content, **Y) == [({"a": 1.0}, 1), ({"a": 2.0}, 0)]
    assert why in capsys.readouterr().out


def test_row_names_differ_or_there_is_a_comma_too_many() -> None:
    content = "price,y\n" + "".join(f"{n % 7},{n % 10},{n % 2}\n" for n in range(30))
    assert refusal(content, **Y) == "a.csv line 2: it has 3 cells, but the header has 2 (a comma between cells)"


@pytest.mark.parametrize("look", [None, 5])
def test_a_header_that_comes_again_is_no_row(look: int | None) -> None:
    content = table({"plan": ["A", "B", "A"] * 4, "y": ["yes", "no", "no"] * 4})
    told = refusal(content * 2, label="y", positive=["yes"], header=True, look=look)
    assert told.startswith("a.csv line 14: it is the header again, perhaps because files were joined")
    assert len(rows_of("1,1\n" * 9, label="2", header=False)) == 9, "without a header every line is a row"


ADULT = "39, State-gov, 77516, ?, <=50K\n50, Private, 83311, Sales, >50K\n"


def test_a_file_without_a_header() -> None:
    how: dict[str, Any] = {"label": "5", "positive": [">50K"]}
    told = refusal(ADULT, "adult.data", **how)
    assert "adult.data line 1: looks like a row, not a header: '39', 'State-gov'" in told
    assert "--no-header" in told
    assert "--label N" in told
    assert events_of(ADULT, "adult.data", **how, header=False) == [
        ({"1": 39.0, "2": "State-gov", "3": 77516.0}, 0),
        ({"1": 50.0, "2": "Private", "3": 83311.0, "4": "Sales"}, 1),
    ]
    assert [row.number for row in rows_of(ADULT, "adult.data", **how, header=False)] == [1, 2]


@pytest.mark.parametrize(
    ("content", "label"),
    [
        ("spam\thello\nham\tyou\nspam\tme\n", "1"),
        ("5.1,3.5,setosa\n4.9,3.0,setosa\n", "3"),
        ("5.1,3.5,setosa\n4.9,3.0,setosa\n", "setosa"),
        ("0.1,1\n0.2,0\n", "2"),
    ],
)
def test_a_first_line_that_looks_like_a_row_is_a_question(content: str, label: str) -> None:
    assert "looks like a row, not a header" in refusal(content, "a.txt", label=label, positive=["spam"])


@pytest.mark.parametrize("header", ["2019,2020,y", "0,1,y", "a,b,y", "red,blue,y"])
def test_a_header_of_numbers_over_a_label_with_a_name_is_a_header(header: str) -> None:
    assert len(rows_of(f"{header}\n0.5,1.5,1\n0.7,2.5,0\n", **Y)) == 2


def test_a_header_that_is_said_to_be_one_is_one() -> None:
    assert xs_of("1,2\n1,0\n3,1\n", label="2", header=True) == [{"1": 1.0}, {"1": 3.0}]


# -- formats


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        ("a;b;y\n1;x,y;1\n", {"a": 1.0, "b": "x,y"}),
        ("sep=;\na;b;y\n1;x,y;1\n", {"a": 1.0, "b": "x,y"}),
        ('"sep=|"\r\na|b|y\r\n1|x,y|1\r\n', {"a": 1.0, "b": "x,y"}),
        ('a, b, y\n1, "x,y", 1\n', {"a": 1.0, "b": "x,y"}),
        ("a\tb\ty\n1\tx,y\t1\n", {"a": 1.0, "b": "x,y"}),
        ("\ufeffa,b,y\r\n1,x,1\r\n", {"a": 1.0, "b": "x"}),
        ("a   b y\n1   x  1\n", {"a": 1.0, "b": "x"}),
        ('{"a": 1, "b": "x", "y": 1}\n', {"a": 1, "b": "x"}),
    ],
)
@pytest.mark.parametrize("name", ["a.txt", "A.CSV", "a.data.gz"])
def test_the_content_tells_the_format_and_the_delimiter(content: str, expected: dict[str, Any], name: str) -> None:
    if name == "A.CSV" and content.startswith("{"):
        name = "a"
    data = gzip.compress(content.encode()) if name.endswith(".gz") else content.encode()
    assert xs_of(data, name, **Y) == [expected]


def test_white_space_is_a_delimiter_where_it_is_said_to_be_one() -> None:
    assert xs_of("  a b,c\ty\n  1 x    1\n", **Y, delimiter=" ") == [{"a": 1.0, "b,c": "x"}]


def test_libsvm_is_told_by_its_content_too() -> None:
    content = "+1 1:0.5 3:2 # a comment\n-1 2:1e-3\n+1\n-1 4:nan\n"
    expected: list[Any] = [({"1": 0.5, "3": 2.0}, 1), ({"2": 0.001}, 0), ({}, 1), ({}, 0)]
    for name in ("a.txt", "a.libsvm", "a"):
        assert events_of(content, name) == expected
        assert events_of(f"# a comment\n{content}", name) == expected
    assert xs_of("#a\ty\n1\t1\n", "a.txt", **Y) == [{"#a": 1.0}]
    assert "it has the index 1 twice" in refusal("1 1:1 1:2\n", "a.libsvm")
    assert "leave out --label" in refusal("1 1:1\n", "a.libsvm", **Y)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("a,y\n1,1\n".encode("utf-16"), "a.csv is text in UTF-16; `iconv"),
        ("a,y\n1,1\n".encode("utf-16-le"), "a.csv has zero bytes, so it is not UTF-8 text"),
        ("a,y\n1,1\né,0\n".encode("latin-1"), "a.csv line 3: it is not UTF-8 text (byte 1 of the line is 0xe9)"),
        (b"PK\x03\x04 and more", "a.csv is a zip file or a spreadsheet"),
        (b"PAR1 and more", "a.csv is not a Parquet or Arrow file that can be read"),
        (b"\xd0\xcf\x11\xe0\xa1\xb1\x1a\xe1\x00\x00", "a.csv is not a text file"),
        (b"\x89PNG\r\n\x1a\n\x00\x00\x00\rIHDR", "a.csv is not a text file"),
        (b"\x80\x04\x95\x0f\x00\x00\x00]\x94(K\x01K\x02e.", "a.csv is not a text file"),
        (b"\x28\xb5\x2f\xfd and more", "a.csv, after line 0: its compression is broken"),
        (b"BZh9 and more", "a.csv, after line 0: its compression is broken"),
        (b"\xfd7zXZ\x00 and more", "a.csv, after line 0: its compression is broken"),
        (b"a,y\r1,1\r2,0\r", "a.csv has carriage returns as line ends"),
        (b"a,y\n", "a.csv has a header but no rows"),
        (b"\n\n", "a.csv is empty"),
        (b"a,b,y\n1,1\n", "a.csv line 2: it has 2 cells, but the header has 3 (a comma between cells)"),
        (b"a,b,y\n1,1,1\n1;1;1\n", "a.csv line 3: it has 1 cells, but the header has 3"),
    ],
)
def test_what_cannot_be_read_is_told_in_a_sentence(content: bytes, message: str) -> None:
    assert refusal(content, **Y).startswith(message)


def test_json_says_what_its_values_are_and_ids_are_left_out() -> None:
    lines = [f'{{"id": "e{n}", "a": {n}, "b": "1", "c": null, "y": {n % 2}}}\n' for n in range(30)]
    content = "".join(lines)
    assert xs_of(content, "a.ndjson", **Y)[7] == {"a": 7, "b": "1"}
    assert xs_of(content, "a.ndjson", **Y, asked={"id": "text", "a": "text", "b": "number"})[7] == {
        "id": "e7",
        "a": "7",
        "b": 1.0,
    }
    assert rows_of(content, "a.ndjson", **Y, asked={"id": "id"})[7].event.id == "e7"
    assert refusal('{"a": 1, "y": 1}\n', "a.ndjson", **Y, asked={"w": "weight"}) == "a.ndjson line 1: it has no weight"
    assert rows_of(content[len(lines[0]) :], "a.ndjson", **Y, asked={"a": "weight"})[6].event.weight == 7.0


def test_what_stands_in_json_is_one_thing_too_and_kept(capsys: pytest.CaptureFixture[str]) -> None:
    rows = [
        {"city": f"c{n % 5}", "user": 10**18 + n, "account": 10**15 + n % 3, "n": n, "price": "1.5"} for n in range(30)
    ]
    mixed = [{**row, "y": n % 2, "mixed": 1 if n % 2 else "1"} for n, row in enumerate(rows)]
    content = "".join(json.dumps(row) + "\n" for row in mixed)
    kinds = {"city": "text", "user": "ignore", "account": "text", "n": "number", "price": "text"}
    assert kinds_of(content, "a.ndjson", **Y) == kinds
    told = capsys.readouterr().out
    assert "30 different values in 30: an id or free text; --text user keeps it" in told
    assert "each is a number in quotes, so a text; --number price reads the numbers" in told
    assert "--text mixed or --number mixed makes them one kind" in told
    x = {"city": "c4", "account": "1000000000000002", "n": 29, "price": "1.5", "mixed": 1}
    assert xs_of(content, "a.ndjson", **Y)[29] == x
    # Another file, in which each city comes once: what the model keeps decides.
    other = "".join(json.dumps({"city": f"c{n}", "n": str(n) if n else "", "y": n % 2}) + "\n" for n in range(12))
    opened = OpenSource(Source("a.ndjson", **Y), io.BytesIO(other.encode()), len(other))
    opened.look(Kept("model 'm'", kinds))
    assert [row.event.x for row in opened.rows()] == [
        {"city": f"c{n}", "n": float(n)} if n else {"city": "c0"} for n in range(12)
    ]
    assert "line 3: column 'n' has numbers (so far), but 'x' is not one" in refusal(
        '{"n": 1, "y": 1}\n{"n": "2", "y": 1}\n{"n": "x", "y": 1}\n', "a.ndjson", **Y, look=1
    )


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (
            '{\n  "a": 1,\n  "y": 1\n}\n',
            "line 1: it is not JSON: Input data was truncated; each line must be one object: `jq",
        ),
        ('{"a": NaN, "y": 1}\n', "JSON has no NaN or Infinity: write null if there is no number"),
        ('{"x": {"a": 1}, "y": 1}\n', '{"x": ..., "y": ...} is already an event: leave out --label'),
        ('{"a": {"b": 1}, "y": 1}\n', "--ignore a leaves it out"),
        ('{"": 1, "y": 1}\n', "line 1: x: a feature's name must not be empty"),
        ('{"a": 1e101, "y": 1}\n', "line 1: x.a: must be within 1e100; --ignore a leaves it out"),
    ],
)
def test_what_is_wrong_in_json_is_told_with_what_to_do(content: str, message: str) -> None:
    assert message in refusal(content, "a.ndjson", **Y)


# -- the whole command


Call = Callable[..., tuple[int, str, str]]


@pytest.fixture
def replay(shared: Service, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> Iterator[Call]:
    """`logstep replay` of a file with some content; exit code, standard output, standard error. What it makes goes."""
    before = {found["model"] for found in shared.get("/models")["models"]}

    def run(name: str, content: str, *flags: str) -> tuple[int, str, str]:
        path = tmp_path / name
        path.write_text(content)
        code = cli.main(["replay", str(path), f"--url=http://127.0.0.1:{shared.port}", *flags])
        return code, *capsys.readouterr()

    yield run
    for found in shared.get("/models")["models"]:
        if found["model"] not in before:
            assert shared.model(found["model"]).delete().status_code == 204


ZIPS = table({"zip": ["01234", 1234, 1234, 99], "n": [1, 2, "", 4], "row": ["x", "y", "y", "x"]})


def test_a_model_keeps_the_kinds_of_its_columns(shared: Service, replay: Call) -> None:
    kept = {"zip": "text", "n": "number", "row": "ignore"}
    code, output, error = replay("zips.csv", ZIPS, "--label=y", "--ignore=row")
    assert code == 0, error
    assert output.startswith("Columns of zips.csv, by its first 4 row(s)\n")
    assert shared.model("zips").state()["spec"]["columns"] == kept
    # The next day has no zip with a zero in front. It is read as the first was, and the command says so.
    day = table({"zip": [1234, 99], "n": [1, 2], "row": [1, 2]})
    code, output, error = replay("day2.csv", day, "--label=y", "--model=zips")
    assert code == 0, error
    assert "the columns are read as model 'zips' keeps them" in error
    assert "as model 'zips' keeps it" in output
    before = shared.model("zips").state()
    assert before["features"] == 4, "three zips and n; with a number among them there were one more"
    for flags, message in (
        (("--number=zip",), "--number zip, but model 'zips' keeps column 'zip' as 'text'"),
        (("--weight-column=n",), "--weight-column n, but model 'zips' keeps column 'n' as 'number'"),
    ):
        code, _, error = replay("day3.csv", day, "--label=y", "--model=zips", *flags)
        assert code == 2
        assert message in error
    code, _, error = replay("day3.csv", table({"zip": [1], "new": [2]}), "--label=y", "--model=zips")
    assert code == 2
    assert "day3.csv has columns that model 'zips' does not know: new. --number new, --text new or" in error
    assert shared.model("zips").state()["seq"] == before["seq"]
    code, _, error = replay("day3.csv", table({"zip": [1], "new": [2]}), "--label=y", "--model=zips", "--ignore=new")
    assert code == 0
    assert "day3.csv lacks columns that model 'zips' knows: n, row" in error


def test_models_side_by_side_keep_the_same_kinds(shared: Service, replay: Call) -> None:
    flags = ("--label=y", "--model=zips", "--spec={}", '--spec={"rule": "adam"}')
    assert replay("zips.csv", ZIPS, *flags)[0] == 0
    for name in ("zips-sgd", "zips-adam"):
        assert shared.model(name).state()["spec"]["columns"] == {"zip": "text", "n": "number", "row": "text"}
    assert "zip=1234" in shared.model("zips-sgd").weights()["weights"]
    code, _, error = replay("zips.csv", ZIPS, *flags)
    assert code == 0
    assert "the columns are read as model 'zips-sgd' keeps them" in error
    code, _, error = replay(
        "zips.csv",
        ZIPS,
        "--label=y",
        "--model=zips",
        "--spec={}",
        '--spec={"rule": "ftrl", "columns": {"zip": "number"}}',
    )
    assert code == 2
    assert "model 'zips-sgd' and" in error
    assert "keep different kinds of columns" in error


def test_a_model_that_keeps_no_kinds_has_them_worked_out_and_it_is_said(model: Model, replay: Call) -> None:
    code, _, error = replay("zips.csv", ZIPS, "--label=y", f"--model={model.name}")
    assert code == 0
    assert f"model '{model.name}' keeps no kinds of columns: each file decides them anew" in error
    assert "columns" not in model.state()["spec"]
    assert set(model.weights()["weights"]) == {"zip=01234", "zip=1234", "zip=99", "n", "row=x", "row=y"}
    mark = model.mark()
    assert replay("zips.csv", ZIPS, "--label=y", f"--model={model.name}")[0] == 0
    assert model.mark() == mark, "the same events under the same ids"


def test_nothing_is_made_or_learned_where_the_first_rows_are_wrong(shared: Service, replay: Call) -> None:
    content = table({"price": [*range(30), "inf"]})
    before = shared.get("/models")["models"]
    code, _, error = replay("prices.csv", content, "--label=y")
    assert code == 2
    assert "prices.csv line 32: column 'price' looks like numbers (30 of 31 cells are), but 'inf' is not one" in error
    assert "Nothing was learned" in error
    code, _, error = replay("prices.csv", content, "--label=y", "--spec={}", '--spec={"learning_rat": 1}')
    assert code == 1
    assert "learning_rat" in error
    for content, flags, reason in (
        (table({"a": ["v" * 300] * 3}), [], "a.csv line 2: x.a: a string value has at most 256 characters; --ignore a"),
        (table({"a": ["u", "v", "v\0"]}), [], "a.csv line 4: x: a feature's name must not contain a zero byte"),
        ("a,y\n1,1\n", ["--spec=auto"], """the rule auto is given as '{"rule": "auto"}'"""),
    ):
        code, _, error = replay("a.csv", content, "--label=y", "--model=unmade", *flags)
        assert code == 2
        assert reason in error
    assert shared.get("/models")["models"] == before


def test_an_id_that_comes_again_with_another_row_says_what_ids_are_for(model: Model, replay: Call) -> None:
    content = table({"user": ["u1", "u2", "u1"], "a": [1, 2, 3]})
    code, _, error = replay("a.csv", content, "--label=y", "--id-column=user", f"--model={model.name}")
    assert code == 1
    assert "a.csv line 4 (event 3)" in error
    assert "An id names one event. If --id-column names an owner of rows, leave it out" in error


def test_a_label_that_never_came_is_exit_code_1(new_model: NewModel, replay: Call) -> None:
    name = new_model().name
    labels = table({"a": [1, 2, 3], "y": ["ok", "ok", "NA"]})
    code, output, error = replay("a.csv", labels, "--label=y", "--positive=fraud", f"--model={name}")
    assert code == 1
    assert "no label of a.csv is 'fraud' (--positive)" in error
    assert "1 row(s) of a.csv had no label and were left out" in error
    assert "learned" in output


def test_a_cross_check_of_a_file_reads_it_as_a_replay_does(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "zips.csv"
    path.write_text(ZIPS)
    assert cli.main(["crosscheck", str(path), "--label=y", "--ignore=row"]) == 0
    output = capsys.readouterr().out
    assert "row     left out  x" in output
    assert "weights compared            5" in output, "three zips, n and the bias"
    assert cli.main(["crosscheck", str(path), "--label=row", "--positive=z", "--negative=x", "--negative=y"]) == 1
    assert "no label of zips.csv is 'z' (--positive)" in capsys.readouterr().err
    path.write_text(table({"price": [*range(30), "inf"]}))
    assert cli.main(["crosscheck", str(path), "--label=y"]) == 2
    assert "line 32: column 'price'" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--label=y", "--text=a", "--number=a"], "column 'a' cannot be both"),
        (["--label=y", "--look=0"], "must be a whole number, 1 or more"),
        (["--label=y", "--delimiter=ab"], "must be one character"),
    ],
)
def test_flags_that_make_no_sense_are_told(flags: list[str], message: str, capsys: pytest.CaptureFixture[str]) -> None:
    try:
        code: object = cli.main(["replay", "a.csv", *flags])
    except SystemExit as left:
        code = left.code
    assert code == 2
    assert message in capsys.readouterr().err


def test_every_number_that_is_read_is_what_python_reads() -> None:
    values = [math.pi * 10.0**power for power in (*range(-60, 15), *range(16, 60))]  # between them it has 16 digits
    assert [x["c"] for x in xs(table({"c": values}))] == values


# -- compressed files, arrays, and columns

AGES = [{"age": 3, "country": "FR", "y": 1}, {"age": 4, "country": "DE", "y": 0}, {"age": 5.5, "country": "FR", "y": 1}]


PACKS = {"gz": gzip.compress, "bz2": bz2.compress, "xz": lzma.compress, "zst": zstd.compress}


@pytest.mark.parametrize("pack", PACKS.values(), ids=PACKS)
def test_a_compressed_file_is_read_as_the_file(pack: Callable[[bytes], bytes]) -> None:
    content = table({"age": [3, 4, 5], "country": ["FR", "DE", "FR"]}).encode()
    assert rows_of(pack(content[:20]) + pack(content[20:]), **Y) == rows_of(content, **Y)
    assert "a.csv, after line" in refusal(pack(content)[:-9], **Y)


@pytest.mark.parametrize("indent", [None, 2])
def test_a_json_array_is_read_as_its_objects(indent: int | None, monkeypatch: pytest.MonkeyPatch) -> None:
    lines = "".join(json.dumps(row) + "\n" for row in AGES * 50)
    events = xs_of(lines, "a.ndjson", **Y)
    array = "\ufeff" + json.dumps(AGES * 50, indent=indent) + "\n"
    assert xs_of(array, "a.json", **Y) == events
    monkeypatch.setattr("service.rows.formats._CHUNK", 7)  # as in a file of many chunks
    assert xs_of(array, "a", **Y) == events
    assert xs_of('[{"x": {"a": 1}, "y": 1}]', "a.json") == [{"a": 1}]
    assert xs_of("[]", "a.json", **Y) == []


@pytest.mark.parametrize("end", ["", ",", "]]", "] 7", ",]", ' {"age": 1, "y": 1}]', "[]"])
def test_an_array_that_does_not_end_as_it_should_is_refused(end: str) -> None:
    assert "it is not JSON, or the array does not end" in refusal(json.dumps(AGES)[:-1] + end, "a.json", **Y)


def columns_file(write: Callable[[Any, Any], None], columns: Any) -> bytes:
    sink = io.BytesIO()
    write(columns if isinstance(columns, pyarrow.Table) else pyarrow.table(columns), sink)
    return sink.getvalue()


@pytest.mark.parametrize("write", [parquet.write_table, feather.write_feather], ids=["parquet", "arrow"])
def test_a_file_of_columns_is_read_as_the_objects_in_its_rows(write: Callable[[Any, Any], None]) -> None:
    columns = {name: [row[name] for row in AGES] for name in AGES[0]}
    assert xs_of(columns_file(write, columns), "a.parquet", **Y) == xs_of(json.dumps(AGES), "a.json", **Y)
    dates = [datetime(2024, 5, 1, tzinfo=UTC)] * 2
    odd = {"when": dates, "n": [math.nan, 2.5], "d": [Decimal("1.5"), None], "y": [1, 0]}
    when = {"when": "2024-05-01T00:00:00Z"}
    assert xs_of(columns_file(write, odd), "a", **Y) == [{**when, "d": 1.5}, {**when, "n": 2.5}]
    lists = {"l": [[1], [2]], "y": [1, 0]}
    assert "a.csv row 1: l: must be a number" in refusal(columns_file(write, lists), **Y)
    assert events_of(columns_file(write, lists), label="y", asked={"l": "ignore"}) == [({}, 1), ({}, 0)]
    infinite = {"a": [1.0, math.inf], "y": [1, 0]}
    assert "row 2: column 'a' has an infinity" in refusal(columns_file(write, infinite), **Y)
    assert "--label COLUMN" in refusal(columns_file(write, columns))


@pytest.mark.parametrize("write", [parquet.write_table, feather.write_feather], ids=["parquet", "arrow"])
def test_the_index_of_a_data_frame_is_left_out_unless_it_is_named(
    write: Callable[[Any, Any], None], capsys: pytest.CaptureFixture[str]
) -> None:
    pandas = pytest.importorskip("pandas")
    frame = pandas.DataFrame({"a": [1.0, -2.0, 3.0, 4.0], "y": [1, 0, 1, 0], "user": ["u1", "u2", "u3", "u4"]})
    sampled, named = frame[["a", "y"]].iloc[[2, 0, 3]], frame.set_index("user")
    for rows, index in ((sampled, "__index_level_0__"), (named, "user")):
        content = columns_file(write, pyarrow.Table.from_pandas(rows))
        assert xs_of(content, **Y) == [{"a": value} for value in rows["a"]]
        assert f"the index of a data frame; --number {index} or --text {index} keeps it" in capsys.readouterr().out
    content = columns_file(write, pyarrow.Table.from_pandas(sampled))
    assert xs_of(content, **Y, asked={"__index_level_0__": "number"})[0] == {"a": 3.0, "__index_level_0__": 2}
    content = columns_file(write, pyarrow.Table.from_pandas(named))
    assert xs_of(content, **Y, asked={"user": "text"})[0] == {"a": 1.0, "user": "u1"}
    assert rows_of(content, **Y, asked={"user": "id"})[1].event.id == "u2"
    bare = columns_file(write, pyarrow.Table.from_pandas(sampled).replace_schema_metadata(None))
    assert xs_of(bare, **Y) == [{"a": 3.0}, {"a": 1.0}, {"a": 4.0}]


def test_a_file_of_columns_cannot_come_through_a_pipe() -> None:
    with pytest.raises(WrongUsage, match="name the file, rather than a pipe"):
        list(piped(columns_file(parquet.write_table, {"a": [1], "y": [1]}), 100, **Y).rows())
