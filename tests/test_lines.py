"""Lines of one shape: read at once they are what the general decoder makes of each, or they are left to it."""

from __future__ import annotations

import asyncio
import json
import math
import struct
import time
import tracemalloc
from collections.abc import AsyncGenerator, Iterator
from typing import Any

import numpy as np
import pytest
from effort import examples
from harness import Model, NewModel, assert_problem, ndjson
from hypothesis import example, given
from hypothesis import strategies as st

from core import Learner, Spec
from core.builder import BatchBuilder
from core.features import EventError, Features
from service.decode import event_json, pieces
from service.decode.lines import Shape, read_number
from service.decode.text import PIECE_BYTES
from service.events import Event
from service.settings import Settings

LONGEST = 1 << 20
COUNT = 3_000
"""Events of a stream in these tests: some pieces, that wait for the writer side by side."""


# -- numbers


def read(text: str) -> tuple[float, int]:
    buffer = np.zeros(len(text) + 1, np.uint8)
    buffer[: len(text)] = np.frombuffer(text.encode(), np.uint8)
    return read_number(buffer[: len(text)], 0, len(text))


def assert_nearest(text: str) -> None:
    """What is read of a whole text is the float64 that Python reads, bit for bit; or it is not read."""
    value, end = read(text)
    if not math.isnan(value):
        assert end == len(text)
        assert struct.pack("<d", value) == struct.pack("<d", float(text))


@examples(1_000)
@given(st.floats(allow_nan=False, allow_infinity=False))
def test_a_float_as_python_writes_it_is_read_as_the_same_float(value: float) -> None:
    assert_nearest(repr(value))
    assert_nearest(f"{value:.6f}")


FORMS = ["{}e{}", "-{}E{}", "{}.5e{}", "0.{}e{}", "{}e+{}"]


@examples(1_000)
@given(st.integers(0, 10**19), st.integers(-25, 25), st.sampled_from(FORMS))
@example(9_007_199_254_740_993, 0, "{}e{}")  # a tie: half-way between two floats
@example(9_999_999_999_999_999_999, 22, "{}e{}")
def test_any_digits_and_exponent_are_read_as_the_nearest_float(digits: int, exponent: int, form: str) -> None:
    text = form.format(digits, exponent).replace("+-", "-")
    assert_nearest(text)


@examples(1_000)
@given(st.integers(2**52, 2**53 - 1), st.integers(-22, 22))
def test_a_number_next_to_the_middle_of_two_floats_is_read_as_the_nearer_or_not_at_all(
    mantissa: int, shift: int
) -> None:
    middle = 2 * mantissa + 1
    for near in (middle * 1_000 - 1, middle * 1_000, middle * 1_000 + 1):
        assert_nearest(f"{near}e{shift - 3}")
        assert_nearest(f"{near}.0")


@pytest.mark.parametrize(
    "text", ["0", "1", "-1", "31", "0.5", "-0.0", "1e5", "1E-7", "6.02e+22", "123456789.123456789"]
)
def test_plain_numbers_are_read(text: str) -> None:
    value, end = read(text)
    assert (value, end) == (float(text), len(text))


def test_true_is_one_and_false_is_zero() -> None:
    assert read("true") == (1.0, 4)
    assert read("false") == (0.0, 5)


NOT_READ = """- +1 .5 1. 01 -01 1e 1e+ e5 NaN Infinity tru truE fals null "1" -0
12345678901234567890 1e400 1e-400 1e99999"""


@pytest.mark.parametrize("text", ["", *NOT_READ.split()])
def test_what_is_no_number_or_not_certain_is_not_read(text: str) -> None:
    value, end = read(text)
    assert math.isnan(value) or text[:end] != text


# -- shapes

numbers = st.one_of(
    st.floats(-1e100, 1e100).map(repr),
    st.integers(-(2**70), 2**70).map(str),
    st.sampled_from(["true", "false", "-0", "1e-30", "0.1", "1E2", "-0.0"]),
)


LABELS = ["0", "1", "true", "1.0", "2", "0.5", "-0"]
LINES = [
    '{{"x":{{"a":{},"é b":{}}},"y":{}}}',
    '{{ "y": {2} , "x": [{0}, {1}] }}\r',
    '{{"y":{2},"weight":{0},"x":{{"a":{1}}}}}',
]


@examples(200)
@given(st.lists(st.tuples(numbers, numbers, st.sampled_from(LABELS)), min_size=1, max_size=8), st.sampled_from(LINES))
def test_lines_are_read_as_the_general_decoder_reads_them_up_to_one_that_is_left_to_it(
    rows: list[tuple[str, str, str]], form: str
) -> None:
    lines = [form.format(*row).encode() for row in rows]
    shape = Shape.of(lines[0])
    assert shape is not None
    assert_read_as_in_general(shape, lines)


def assert_read_as_in_general(shape: Shape, lines: list[bytes]) -> int:
    """What is read of the lines at once is what the general decoder makes of each. Returns how many."""
    table, end = shape.read(joined(lines), LONGEST)
    assert end == sum(len(line) + 1 for line in lines[: len(table)])
    for i, (line, event) in enumerate(zip(lines, table.events(0, len(table)), strict=False)):
        expected = event_json.decode_event(line)
        x = expected.x if isinstance(expected.x, dict) else {str(j): value for j, value in enumerate(expected.x)}
        there = {name: value for name, value in x.items() if value is not None}
        assert isinstance(event, Event)
        assert isinstance(event.x, dict)
        assert list(event.x) == list(there)
        assert [bits(value) for value in event.x.values()] == [bits(value) for value in there.values()], f"line {i}"
        assert (event.y, event.weight, event.id) == (expected.y, expected.weight, expected.id)
    return len(table)


words = st.one_of(
    st.sampled_from(["red", "blue", "", "a", "b", "grün", "1", "0.5", "true", "null", "w=foo", "x" * 300, " ", "\x7f"]),
    st.text(max_size=8),
).map(lambda text: json.dumps(text, ensure_ascii=False).encode(errors="surrogatepass"))
OTHERWISE = [
    b"null",
    b'"\\u00e9"',
    b'"\xff"',
    b'"\xed\xa0\x80"',
    b'"a\x01"',
    b"1",
    b"true",
    b"[]",
    b'"open',
    b"nul",
    b"",
]
texts = st.one_of(words, words, words, st.sampled_from(OTHERWISE))
values = st.one_of(numbers.map(str.encode), numbers.map(str.encode), st.just(b"null"), words)


@examples(500)
@given(st.lists(st.tuples(texts, values, texts), max_size=8), st.sampled_from(["ordinary", "w"]))
@example([(b'"red"', b"1", b"null"), (b"null", b"null", b'"a"'), (b'"red"', b"null", b'"a"')], "ordinary")
def test_text_is_read_as_the_general_way_reads_it_and_learned_as_it_learns_it(
    rows: list[tuple[bytes, bytes, bytes]], name: str
) -> None:
    form = b'{"x": {"colour": %%b, "%b": %%b, "kind": %%b}, "y": 1}' % name.encode()
    first = form % (b'"red"', b"1", b'"a"')
    lines = [first, *(form % row for row in rows)]
    shape = Shape.of(first)
    assert shape is not None
    read = assert_read_as_in_general(shape, lines)
    table, _ = shape.read(joined(lines), LONGEST)
    at_once, one_by_one = BatchBuilder(Features()), BatchBuilder(Features())
    told, expected = None, None
    try:
        at_once.add_table(*table.arrays())
    except EventError as error:
        told = (error.row, error.field, error.message)
    try:
        for line in lines[:read]:
            one_by_one.add(event_json.decode_event(line).x, 1)
    except EventError as error:
        expected = (len(one_by_one), error.field, error.message)
    assert told == expected
    if told is None:
        batch, other = at_once.build(), one_by_one.build()
        assert at_once.features.names == one_by_one.features.names
        assert (batch.columns.tolist(), batch.offsets.tolist()) == (other.columns.tolist(), other.offsets.tolist())
        assert batch.values.tobytes() == other.values.tobytes()


def test_most_lines_with_text_are_read_at_once() -> None:
    lines = [
        b'{"x": {"a": 1, "kind": "red", "b": 2}, "y": 1}',
        b'{"x": {"a": 1, "kind": "gr\xc3\xbcn", "b": 2}, "y": 1}',
        b'{"x": {"a": null, "kind": "", "b": 2}, "y": 0}',
        b'{"x": {"a": 1, "kind": null, "b": 2}, "y": 0}',
    ]
    shape = Shape.of(lines[0])
    assert shape is not None
    assert assert_read_as_in_general(shape, lines) == len(lines)


def joined(lines: list[bytes]) -> bytearray:
    """The lines, each ended."""
    return bytearray(b"".join(line + b"\n" for line in lines))


def bits(value: Any) -> bytes | str:
    return value if isinstance(value, str) else struct.pack("<d", value)


FIRST = '{"x": {"a": 1.5, "b": 2}, "y": 1, "id": "e-1", "weight": 2}'


@pytest.mark.parametrize(
    "line",
    [
        '{"x": {"b": 2, "a": 1.5}, "y": 1, "id": "e-1", "weight": 2}',  # another order: the sum is rounded otherwise
        '{"x": {"a": 1.5, "c": 2}, "y": 1, "id": "e-1", "weight": 2}',
        '{"x": {"a": 1.5}, "y": 1, "id": "e-1", "weight": 2}',
        '{"x": {"a": 1.5, "b": 2, "c": 1}, "y": 1, "id": "e-1", "weight": 2}',
        '{"x": {"a":1.5, "b": 2}, "y": 1, "id": "e-1", "weight": 2}',
        '{"x": {"a": "1.5", "b": 2}, "y": 1, "id": "e-1", "weight": 2}',
        '{"x": {"a": null, "b": null}, "y": 1, "id": "e-1", "weight": 2}',
        '{"x": {"a": 1.5, "b": 2}, "y": null, "id": "e-1", "weight": 2}',
        '{"x": {"a": 1.5, "b": 2}, "y": 1, "id": "e-1", "weight": null}',
        '{"x": {"a": 1.5, "b": 2}, "y": 1, "id": null, "weight": 2}',
        '{"x": {"a": 1.5, "b": 2}, "y": 2, "id": "e-1", "weight": 2}',
        '{"x": {"a": 1.5, "b": 2}, "y": 1, "id": "", "weight": 2}',
        '{"x": {"a": 1.5, "b": 2}, "y": 1, "id": "e\\n1", "weight": 2}',
        '{"x": {"a": 1.5, "b": 2}, "y": 1, "id": "é", "weight": 2}',
        '{"x": {"a": 1.5, "b": 2}, "y": 1, "id": "%s", "weight": 2}' % ("i" * 257),
        '{"x": {"a": 1.5, "b": 2}, "y": 1, "id": 7, "weight": 2}',
        '{"x": {"a": 1.5, "b": 2}, "y": 1, "id": "e-1", "weight": 0}',
        '{"x": {"a": 1.5, "b": 2}, "y": 1, "id": "e-1", "weight": true}',
        '{"x": {"a": 1.5, "b": 2}, "y": 1, "id": "e-1", "weight": -2}',
        '{"x": {"a": 1.5, "b": 2}, "y": 1, "id": "e-1", "weight": 2},',
        '{"x": {"a": 1.5, "b": 2}, "y": 1, "id": "e-1", "weight": 2',
        '{"x": {"a": 1.5e999, "b": 2}, "y": 1, "id": "e-1", "weight": 2}',
        '{"x": {"a": 1.5, "b": 2.}, "y": 1, "id": "e-1", "weight": 2}',
        "",
    ],
)
def test_a_line_that_looks_otherwise_ends_what_is_read(line: str) -> None:
    shape = Shape.of(FIRST.encode())
    assert shape is not None
    lines = [FIRST.encode(), FIRST.encode(), line.encode(), FIRST.encode()]
    table, end = shape.read(joined(lines), LONGEST)
    assert (len(table), end) == (2, 2 * len(FIRST) + 2)


def test_a_line_longer_than_the_limit_ends_what_is_read() -> None:
    shape = Shape.of(FIRST.encode())
    assert shape is not None
    assert len(shape.read(joined([FIRST.encode()]), len(FIRST))[0]) == 1
    assert len(shape.read(joined([FIRST.encode()]), len(FIRST) - 1)[0]) == 0


@pytest.mark.parametrize(
    "line",
    [
        b"",
        b"[]",
        b"7",
        b"{",
        b'{"x": {}, "y": 1}',
        b'{"x": [], "y": 1}',
        b'{"x": {"a": 1}}',
        b'{"id": "a", "y": 1}',
        b'{"x": {"a": 1}, "y": "1"}',
        b'{"x": {"a": 1}, "y": 1, "weight": "2"}',
        b'{"x": ["FR"], "y": 1}',
        b'{"x": {"": 1}, "y": 1}',
        b'{"x": {"country": "FR", "country": "DE"}, "y": 1}',
        b'{"x": {"country": "\\u0046R"}, "y": 1}',
        b'{"x": {"a": [1]}, "y": 1}',
        b'{"x": {"a": 1, "a": 2}, "y": 1}',
        b'{"x": {"a\\u0062": 1}, "y": 1}',
        b'{"x": {"a": 1}, "y": 1, "extra": 1}',
        b'{"x": {"a": 1}, "y": 1, "id": 5}',
        b'{"x": {"a": 1}, "y": 1, "id": null}',
        b'{"x": {"a": 1}, "y": {"a": 1}}',
        b'{"x": "a", "y": 1}',
        b'{"x": {"a": --1}, "y": 1}',
        b'{"x": {"a": -true}, "y": 1}',
        b'{"x": {"a": 1, "b": --1}, "y": 1}',
        b'{"x": [1, -true], "y": 1}',
        b'{"x": [1], "y": -true}',
    ],
)
def test_a_line_that_is_no_event_of_numbers_and_text_has_no_shape(line: bytes) -> None:
    assert Shape.of(line) is None


def test_blank_lines_after_a_long_one_take_no_room() -> None:
    line = b'{"x":[%s],"y":1}' % b",".join([b"0"] * 100_000)
    shape = Shape.of(line)
    assert shape is not None
    tracemalloc.start()
    try:
        table, _ = shape.read(joined([line, *[b""] * 1_000]), LONGEST)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert len(table) == 1
    assert peak < 20 * len(line) * 8


# -- streams of them, over HTTP


def alike(count: int = COUNT, ids: bool = False) -> list[dict[str, Any]]:
    numbers = np.random.default_rng(5)
    rows, labels = numbers.normal(size=(count, 4)).tolist(), numbers.integers(0, 2, count).tolist()
    events: list[dict[str, Any]] = [
        {"x": dict(zip("abcd", row, strict=True)), "y": y} for row, y in zip(rows, labels, strict=True)
    ]
    if ids:
        for i, event in enumerate(events):
            event["id"] = f"event-{i}"
    return events


def assert_learned(model: Model, events: list[dict[str, Any]]) -> None:
    """The model is what these events make of a learner, one by one."""
    learner = Learner(Spec())
    for event in events:
        learner.learn_one(event["x"], event["y"])
    assert model.weights()["seq"] == len(events)
    assert model.weights()["sha256"] == learner.sha256()


@pytest.mark.parametrize("ids", [False, True])
def test_a_stream_of_one_shape_is_learned_as_its_events_one_by_one(model: Model, ids: bool) -> None:
    events = alike(ids=ids)
    reply = model.learn_lines(ndjson(events)).json()
    assert (reply["learned"], reply["duplicates"], reply["first_seq"], reply["last_seq"]) == (COUNT, 0, 1, COUNT)
    assert_learned(model, events)
    model.assert_equal_to_river()


def with_text(count: int = COUNT) -> list[dict[str, Any]]:
    """Events with two categories; of the second a new one comes every ten events."""
    events = alike(count)
    for i, event in enumerate(events):
        event["x"] = {"colour": f"c{i * i % 7}", **event["x"], "from": f"f{i // 10}é"}
        if i % 50 == 49:
            event["x"]["a"] = event["x"]["colour"] = None
    return events


def test_a_stream_with_text_is_learned_as_its_events_one_by_one(model: Model) -> None:
    events = with_text()
    body = "".join(json.dumps(event, ensure_ascii=False) + "\n" for event in events).encode()
    assert model.learn_lines(body).json()["learned"] == COUNT
    assert_learned(model, events)
    model.assert_equal_to_river()


@pytest.mark.parametrize("spec", [{"max_features": 40}, {"hash_bits": 6}, {"rule": "adam", "scale": "standard"}])
def test_text_in_a_stream_fills_a_model_as_its_events_would_one_by_one(
    new_model: NewModel, spec: dict[str, Any]
) -> None:
    events, one_by_one, at_once = with_text(1_000), new_model(**spec), new_model(**spec)
    for start in range(0, 1_000, 100):  # too few of one shape to be read at once
        assert one_by_one.learn_lines(ndjson(events[start : start + 100])).status_code == 200
    body = "".join(json.dumps(event, ensure_ascii=False) + "\n" for event in events).encode()
    assert at_once.learn_lines(body).json()["learned"] == 1_000
    assert at_once.mark() == one_by_one.mark()
    assert at_once.state()["left_out"] == one_by_one.state()["left_out"]


def test_shapes_that_alternate_and_lines_of_none_keep_their_order(model: Model) -> None:
    events = alike()
    for i in range(0, COUNT, 700):
        events[i] = {"x": {"country": "FR", "a": 1.0}, "y": 1}
        events[i + 1]["x"]["e"] = 2.0
    for event in events[1_200:1_500]:
        event["x"] = dict(reversed(event["x"].items()))
    assert model.learn_lines(ndjson(events)).json()["learned"] == COUNT
    assert_learned(model, events)


@pytest.mark.parametrize(
    ("place", "wrong", "field"),
    [
        (1_500, {"x": {"a": 1e101, "b": 1.0, "c": 1.0, "d": 1.0}, "y": 1}, "x.a"),  # seen by the model
        (1_500, {"x": {"a": 1.0, "b": 1.0, "c": 1.0, "d": 1.0}, "y": 2}, "y"),  # seen by the model's writer
        (2_999, {"x": {"a": 1.0, "b": 1.0, "c": 1.0, "d": [1]}, "y": 1}, "x.d"),
        (0, {"x": {"a": 1e101}, "y": 1}, "x.a"),
    ],
)
def test_nothing_after_a_refused_line_is_learned_though_it_was_read_before(
    model: Model, place: int, wrong: dict[str, Any], field: str
) -> None:
    events = alike()
    events[place] = wrong
    problem = assert_problem(model.learn_lines(ndjson(events)), 422, f"line {place + 1}")
    assert (problem["line"], problem["learned"]) == (place + 1, place)
    assert problem["field"] == f"line {place + 1}: {field}"
    assert_learned(model, events[:place])


def test_a_stream_sent_again_is_learned_once(model: Model) -> None:
    events = alike(ids=True)
    assert model.learn_lines(ndjson(events[:1_700])).json()["learned"] == 1_700
    reply = model.learn_lines(ndjson(events)).json()
    assert (reply["learned"], reply["duplicates"], reply["first_seq"]) == (COUNT - 1_700, 1_700, 1_701)
    assert_learned(model, events)


@pytest.mark.parametrize("again", [150, 2_400])  # in its own piece, and in one that waits beside it
def test_an_id_that_comes_again_in_its_stream_is_learned_once_and_the_order_stays(model: Model, again: int) -> None:
    events = alike(ids=True)
    events.insert(again, events[100])
    reply = model.learn_lines(ndjson(events)).json()
    assert (reply["learned"], reply["duplicates"]) == (COUNT, 1)
    del events[again]
    assert_learned(model, events)


@pytest.mark.parametrize("place", [150, 2_400])
def test_an_id_with_another_event_ends_its_stream_there(model: Model, place: int) -> None:
    events = alike(ids=True)
    events[place]["id"] = "event-100"
    problem = assert_problem(model.learn_lines(ndjson(events)), 409, "event-100")
    assert (problem["line"], problem["learned"]) == (place + 1, place)
    assert_learned(model, events[:place])


def test_a_stream_of_whole_events_joins_what_waits_under_their_ids(new_model: NewModel) -> None:
    model, events = new_model(), alike(ids=True)
    waiting = [{"x": event["x"], "id": event["id"]} for event in events[500:600]]
    assert model.predict(waiting).status_code == 200
    reply = model.learn_lines(ndjson(events)).json()
    assert (reply["learned"], reply["joined"]) == (COUNT, 100)
    assert_learned(model, events)


def test_long_lines_are_learned_in_smaller_pieces() -> None:
    line = json.dumps({"x": {f"feature-{j}": j for j in range(10_000)}, "y": 1}).encode() + b"\n"

    async def body() -> AsyncGenerator[bytes]:
        for _ in range(100):
            yield line

    async def sizes() -> list[int]:
        return [len(piece.items) async for piece in pieces.events_of_lines(body(), Settings())]

    found = asyncio.run(sizes())
    assert sum(found) == 100
    assert max(found) * len(line) <= PIECE_BYTES + 2 * len(line)


def test_of_a_body_that_stays_open_each_event_is_learned_as_it_comes(model: Model) -> None:
    seen: list[int] = []

    def slowly() -> Iterator[bytes]:
        for event in alike(3):
            yield ndjson([event])
            deadline = time.monotonic() + 5
            while model.weights()["seq"] == len(seen) and time.monotonic() < deadline:
                time.sleep(0.01)
            seen.append(model.weights()["seq"])

    assert model.learn_lines(slowly()).json()["learned"] == 3
    assert seen == [1, 2, 3]


@pytest.mark.parametrize("wrong", [b'{"x":{"a":--1},"y":1}', b'{"x":{"a":1,"b":-true},"y":1}', b'{"x":[1],"y":-true}'])
def test_numbers_with_two_signs_are_refused_whatever_stands_around_them(model: Model, wrong: bytes) -> None:
    good = b'{"x":{"a":1},"y":1}'
    problem = assert_problem(model.learn_lines(b"\n".join([wrong, *[good] * 300])), 400, "line 1")
    assert problem["learned"] == 0
    problem = assert_problem(model.learn_lines(b"\n".join([*[good] * 300, wrong])), 400, "line 301")
    assert problem["learned"] == 300


def test_a_stream_that_breaks_off_keeps_what_was_whole(model: Model) -> None:
    events = alike()
    body = ndjson(events)

    def broken() -> Iterator[bytes]:
        yield body[:-1] + b"x\n"

    problem = assert_problem(model.learn_lines(broken()), 400, f"line {COUNT}")
    assert problem["learned"] == COUNT - 1
    assert json.loads(body.splitlines()[-1]) == events[-1]
    assert_learned(model, events[:-1])
