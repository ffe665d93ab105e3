"""Rows of a table that are read at once: they are what reading them one by one gives, or they are left to that."""

from __future__ import annotations

import io
from typing import Any

import pytest
from effort import examples
from harness import Model, NewModel, assert_problem
from hypothesis import example, given
from hypothesis import strategies as st

from service.commands import files
from service.commands.files import OpenSource, Source
from service.commands.rows import Block, Row
from service.commands.terminal import WrongUsage
from service.decode import event_json
from service.events import Event, Named

HEAD = "a,kind,skipped,n,w,y"
GOOD = ["1.5,red,x,e-1,2,no", "2,blue,,e-2,1,yes"]
"""Rows after which kinds and labels are known."""
ASKED = {"a": "number", "kind": "text", "skipped": "ignore", "n": "id", "w": "weight"}

numbers = st.one_of(
    st.floats(-1e100, 1e100).map(repr),
    st.integers(-(10**17), 10**17).map(str),
    st.sampled_from(
        ["", "NA", "nan", "?", "\\N", "n/a", " 2 ", "+1", ".5", "1.", "1e5", "-0", "-0.0", "true", "FALSE"]
    ),
    st.sampled_from(["01", "1e400", "123456789012345", "1234567890123456", "1,5", "12%", '"2"', '" 3 "', "\u00a04"]),
)
texts = st.one_of(
    st.sampled_from(["red", "blue", "", "NA", "null", "grün", " red ", "\u00a0red", "w=foo", "x" * 300, "a\\b", "1"]),
    st.sampled_from(
        ['"red"', '"a, b"', '"a ""b"""', '"two\nlines"', '""', 'a"b', '"open', '"a" b', "\t", "\r", "\x7f"]
    ),
    st.text(st.characters(exclude_characters=',"\r\n', exclude_categories=["Cs"]), max_size=5),
)
ids = st.sampled_from(["e-3", "é", "", "NA", '"q"', "i" * 257, "17"])
weights = st.sampled_from(["1", "0.5", "1", "1", "0", "-1", "", "x", "1e400"])
labels = st.sampled_from(["yes", "no", "no", "yes", " yes", "Yes", "", "other", "y", '"no"'])
rows = st.tuples(numbers, texts, texts, ids, weights, labels).map(",".join)
usual = st.tuples(numbers, texts, st.just("-"), st.just("e-9"), st.just("1"), st.sampled_from(["yes", "no"])).map(
    ",".join
)
whole = st.one_of(usual, usual, usual, rows, st.sampled_from(["", " ", HEAD, "1,2", "1,red,x,e-4,1,yes,more"]))
Read = tuple[list[tuple[int, int, Any]], str, int, tuple[str, str]]


def opened(data: bytes, look: int = 2, header: bool = True, **how: Any) -> OpenSource:
    source = Source("a.csv", label="y", positive=["yes"], asked=ASKED, look=look, header=header, **how)
    return OpenSource(source, io.BytesIO(data), len(data))


def told(row: Row) -> tuple[int, int, Any]:
    event = row.event
    assert isinstance(event.x, dict)
    x = {name: value if isinstance(value, str) else float(value or 0).hex() for name, value in event.x.items()}
    return row.number, row.line, (list(x.items()), event.y, event.id, event.weight)


def read(source: OpenSource, size: int) -> tuple[Read, list[Block]]:
    """What a source gives: its rows, the error after them, how many cells were missing, and warnings."""
    found: list[tuple[int, int, Any]] = []
    blocks: list[Block] = []
    wrong = ""
    try:
        for item in source.blocks(size):
            if isinstance(item, Block):
                item.identify("not used")
                blocks.append(item)
            found += map(told, item if isinstance(item, Block) else [item])
    except WrongUsage as error:
        wrong = str(error)
    labels = source.labels
    return (found, wrong, source.missing, (labels.never_came(), labels.only_one())), blocks


@examples(1_000)
@given(st.lists(whole, max_size=6), st.sampled_from(["\n", "\r\n"]), st.integers(1, 4), st.none() | st.booleans())
@example(["1,red,é,e-9,1,yes", "NA,,é,e-9,1,yes"], "\n", 2, None)
@example(["1,red,-,e-9,1,yes", "NA,NA,-,e-9,1,no", "3,red,-,e-9,1,yes"], "\n", 3, None)
def test_rows_are_read_at_once_as_they_are_read_one_by_one(
    lines: list[str], end: str, size: int, quoted: bool | None
) -> None:
    data = "".join(line + end for line in [HEAD, *GOOD, *lines]).encode()
    one_by_one, _ = read(opened(data, quoted=quoted), 0)
    at_once, blocks = read(opened(data, quoted=quoted), size)
    assert at_once == one_by_one
    for block in blocks:
        sent = [event_json.decode_event(line) for line in block.lines.splitlines()]
        assert [without_null(event) for event in sent] == [told(row)[2] for row in block]


def without_null(event: Event) -> Any:
    assert isinstance(event.x, dict)
    there: Named = {name: value for name, value in event.x.items() if value is not None}
    return told(Row(0, 0, Event(there, event.y, event.id, event.weight)))[2]


@examples(500)
@given(st.lists(whole, max_size=6), st.sampled_from(["\n", "\r\n"]), st.integers(1, 4), st.integers(2, 9))
@example(["1,red,x,e-9,1,yes", "1e100,blue,x,e-9,1,no", "1,red,x,e-9,1,yes"], "\n", 4, 9)
@example(["1,red,x,e-9,1,yes", "1,a\0b,x,e-9,1,no"], "\n", 4, 9)
@example(["1,red,x,e-9,1,yes", '1,"two', 'lines",x,e-9,1,no', "1,red,x,e-9,1,yes"], "\n", 1, 9)
def test_rows_that_are_looked_at_are_read_at_once_too(lines: list[str], end: str, size: int, look: int) -> None:
    data = "".join(line + end for line in [HEAD, *GOOD, *lines]).encode()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(files, "FEW", 2)  # the others come in blocks
        assert read(opened(data, look), size)[0] == read(opened(data, look), 0)[0]


def test_without_a_header_the_first_line_is_a_row_when_the_others_are_read_at_once(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(files, "FEW", 2)
    data = "".join(f"{i}.5,red,{i % 2}\n" for i in range(9)).encode()
    source = Source("a.csv", label="3", header=False, look=6)
    (rows, *_), blocks = read(OpenSource(source, io.BytesIO(data), len(data)), 9)
    assert [(number, line, x) for number, line, (x, *_) in rows] == [
        (i + 1, i + 1, [("1", (i + 0.5).hex()), ("2", "red")]) for i in range(9)
    ]
    assert [[row.line for row in block] for block in blocks] == [[4, 5, 6], [7, 8, 9]]


@given(st.binary(max_size=30))
def test_bytes_that_are_no_text_are_refused_as_one_by_one(noise: bytes) -> None:
    data = "\n".join([HEAD, *GOOD, ""]).encode() + b"1,red," + noise + b",e-9,1,yes\n1,red,x,e-9,1,yes\n"
    assert read(opened(data), 2)[0] == read(opened(data), 0)[0]


def test_rows_with_quotes_and_missing_cells_are_read_at_once() -> None:
    lines = ['1,"red, or blue",x,e-3,1,yes', 'NA,"b ",y,e-4,1,"no"', '"3",blue,"x",e-5,0.5,yes', ' 4 ,é,x,"e-6",1,no']
    data = "".join(line + "\n" for line in [HEAD, *GOOD, *lines]).encode()
    (found, wrong, missing, _), (block,) = read(opened(data), 10)
    assert (len(found), wrong, missing, len(block)) == (6, "", 1, 4)
    assert [row.event.x for row in block][:2] == [{"a": 1.0, "kind": "red, or blue"}, {"kind": "b"}]


# -- over HTTP


def table(count: int) -> list[str]:
    return [
        f"{'' if i % 11 == 3 else i / 8},c{i * i % 7},{'' if i % 13 == 5 else f'f{i // 10}é'},{i % 2}"
        for i in range(count)
    ]


def learn(model: Model, lines: list[str], **asked: Any) -> Any:
    body = "\n".join(["a,colour,from,y", *lines]).encode()
    query = {"label": "y", "text": ["colour", "from"], "look": 100, **asked}
    return model.service.http.post(
        f"{model.path}/learn", params=query, headers={"content-type": "text/csv"}, content=body
    )


@pytest.mark.parametrize("asked", [{}, {"id_prefix": "rows"}])
def test_a_long_csv_body_is_learned_as_its_rows_in_short_ones(new_model: NewModel, asked: dict[str, Any]) -> None:
    at_once, one_by_one, lines = new_model(), new_model(), table(2_500)
    reply = learn(at_once, lines, **asked).json()
    assert (reply["learned"], reply["missing"]) == (
        2_500,
        sum(line.count(",,") + line.startswith(",") for line in lines),
    )
    for start in range(0, 2_500, 100):
        assert learn(one_by_one, lines[start : start + 100]).status_code == 200
    assert at_once.mark() == one_by_one.mark()
    if asked:
        assert learn(at_once, lines, **asked).json()["duplicates"] == 2_500


@pytest.mark.parametrize(
    ("wrong", "reason"), [("x,c1,f1,1", "'x' is not one"), (f"1,{'c' * 300},f,1", "256 characters")]
)
def test_a_wrong_row_is_named_by_its_line_and_nothing_after_it_is_learned(
    model: Model, wrong: str, reason: str
) -> None:
    lines = table(2_500)
    lines[1_500] = wrong
    problem = assert_problem(learn(model, lines), 422, reason)
    assert (problem["line"], problem["learned"]) == (1_502, 1_500)
