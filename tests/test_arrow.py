"""Arrow streams: the same events as JSON, however the bytes arrive; what is refused and where; tables added at once."""

from __future__ import annotations

import asyncio
import dataclasses
import json
import math
import threading
from collections.abc import AsyncIterator, Callable, Sequence
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from effort import examples, from_checks_on
from hypothesis import given
from hypothesis import strategies as st

from core.batch import Batch
from core.builder import NO_LABEL, BatchBuilder, Words
from core.features import EventError, Features, flatten
from service import errors
from service.decode import arrow, event_json
from service.events import Event, Label, Named, Question
from service.fairness import worked
from service.table import Table

LIMIT = 1_000_000


def stream_of(table: pa.Table | pa.RecordBatch, batch_rows: int | None = None, **options: Any) -> bytes:
    """A table as an Arrow IPC stream."""
    table = pa.Table.from_batches([table]) if isinstance(table, pa.RecordBatch) else table
    sink = pa.BufferOutputStream()
    with pa.ipc.new_stream(sink, table.schema, options=pa.ipc.IpcWriteOptions(**options)) as writer:
        writer.write_table(table, max_chunksize=batch_rows)
    return bytes(sink.getvalue())


def tables_of(
    chunks: Sequence[bytes | Exception], *, learn: bool = True, limit: int = LIMIT, **how: Any
) -> tuple[list[Table], errors.LogstepError | None]:
    """The tables of a body that arrives in these chunks, and the error that ends it."""

    async def arriving() -> AsyncIterator[bytes]:
        for chunk in chunks:
            if isinstance(chunk, Exception):
                raise chunk
            yield chunk

    async def gather() -> tuple[list[Table], errors.LogstepError | None]:
        tables: list[Table] = []
        try:
            async for table in arrow.read_tables(arriving(), learn=learn, max_batch_bytes=limit, **how):
                tables.append(table)
        except errors.LogstepError as error:
            return tables, error
        return tables, None

    return asyncio.run(asyncio.wait_for(gather(), 30))


def events_of(*chunks: bytes, **how: Any) -> list[Event | Label]:
    tables, error = tables_of(chunks, **how)
    assert error is None
    return [event for table in tables for event in table.events(0, len(table))]


def x_of(event: Event | Label) -> dict[str, Any]:
    """An event's features by name."""
    assert isinstance(event, Event)
    assert isinstance(event.x, dict)
    return event.x


def questions_of(table: pa.Table) -> list[Question]:
    tables, error = tables_of([stream_of(table)], learn=False)
    assert error is None
    return [question for table in tables for question in table.questions(0, len(table))]


def refusal_of(table: pa.Table | bytes, **how: Any) -> errors.LogstepError:
    _, error = tables_of([table if isinstance(table, bytes) else stream_of(table)], **how)
    assert error is not None
    return error


def with_labels(**columns: Any) -> pa.Table:
    """A table to learn from with these columns, and y = 1 in each row."""
    rows = len(next(iter(columns.values())))
    return pa.table({**columns, "y": [1] * rows})


# -- the same events as JSON


def test_a_row_is_an_event_with_the_columns_as_features_in_their_order() -> None:
    table = pa.table(
        {"b": [1.5, -2.0], "y": [1, 0], "a": [3, 4], "vip": [True, False], "city": ["Rome", "Paris"], "z": [0.0, 1.0]}
    )
    first, second = events_of(stream_of(table))
    assert first == Event({"b": 1.5, "a": 3.0, "vip": 1.0, "city": "Rome", "z": 0.0}, 1)
    assert second == Event({"b": -2.0, "a": 4.0, "vip": 0.0, "city": "Paris", "z": 1.0}, 0)
    assert isinstance(first, Event)
    assert list(first.x) == ["b", "a", "vip", "city", "z"]


def test_a_null_is_a_feature_that_the_event_leaves_out() -> None:
    table = with_labels(a=[1.0, None, 3.0], b=[None, 2, None], c=["x", None, None], d=[None, None, True])
    xs: list[Named] = [{"a": 1.0, "c": "x"}, {"b": 2.0}, {"a": 3.0, "d": 1.0}]
    assert events_of(stream_of(table)) == [Event(x, 1) for x in xs]


def test_ids_and_weights_may_be_there_for_some_rows() -> None:
    table = with_labels(a=[1.0, 2.0, 3.0], id=["i", None, "k"], weight=[None, 2.5, 1])
    assert events_of(stream_of(table)) == [
        Event({"a": 1.0}, 1, "i"),
        Event({"a": 2.0}, 1, None, 2.5),
        Event({"a": 3.0}, 1, "k"),
    ]


def test_a_row_with_an_id_and_no_feature_is_the_label_of_a_kept_prediction() -> None:
    table = pa.table({"a": [None, 2.0, None], "id": ["i", "j", None], "y": [1, 0, 1], "weight": [0.5, 1.0, 1.0]})
    assert events_of(stream_of(table)) == [
        Label("i", 1, 0.5),
        Event({"a": 2.0}, 0, "j"),
        Event({}, 1),
    ]
    assert events_of(stream_of(pa.table({"id": ["i"], "y": [True]}))) == [Label("i", 1, 1.0)]


def test_questions_have_features_and_perhaps_ids() -> None:
    table = pa.table({"a": [1.0, None], "c": ["x", "y"], "id": [None, "j"]})
    assert questions_of(table) == [Question({"a": 1.0, "c": "x"}, None), Question({"c": "y"}, "j")]
    assert questions_of(pa.table({"a": [1, 2]})) == [Question({"a": 1.0}, None), Question({"a": 2.0}, None)]


NUMBERS = {
    **{getattr(pa, f"int{bits}")(): st.integers(-(2 ** (bits - 1)), 2 ** (bits - 1) - 1) for bits in (8, 16, 32, 64)},
    **{getattr(pa, f"uint{bits}")(): st.integers(0, 2**bits - 1) for bits in (8, 16, 32, 64)},
    **{
        getattr(pa, f"float{bits}")(): st.floats(allow_nan=False, allow_infinity=False, width=bits)
        for bits in (16, 32, 64)
    },
    pa.bool_(): st.booleans(),
}
TEXTS = [
    pa.string(),
    pa.large_string(),
    pa.string_view(),
    pa.dictionary(pa.int8(), pa.string()),
    pa.dictionary(pa.int32(), pa.large_string()),
]
TEXT = st.text("aé=\0\n😀", max_size=4)
TYPES = st.sampled_from([*NUMBERS, *TEXTS, pa.null()])


@st.composite
def columns(draw: st.DrawFn, kind: Any, rows: int) -> pa.Array:
    """A column of a type, with nulls."""
    values = NUMBERS.get(kind, st.none() if kind == pa.null() else TEXT)
    cells = draw(st.lists(st.none() | values, min_size=rows, max_size=rows))
    if pa.types.is_dictionary(kind):
        return pa.array(cells, kind.value_type).dictionary_encode().cast(kind)
    if kind == pa.float16():
        return pa.array([None if cell is None else np.float16(cell) for cell in cells], kind)
    return pa.array(cells, kind)


@st.composite
def tables(draw: st.DrawFn) -> pa.Table:
    """A table to learn from, of any types that are taken."""
    rows = draw(st.integers(0, 6))
    names = draw(st.lists(st.sampled_from("abcdefg"), unique=True, max_size=4))
    columns_ = {name: draw(columns(draw(TYPES), rows)) for name in names}
    y_type = draw(st.sampled_from([pa.int8(), pa.uint64(), pa.float32(), pa.bool_()]))
    columns_["y"] = pa.array(draw(st.lists(st.integers(0, 1), min_size=rows, max_size=rows))).cast(y_type)
    if draw(st.booleans()):
        ids = st.none() | st.text("aé=\n😀", min_size=1, max_size=4)
        columns_["id"] = pa.array(draw(st.lists(ids, min_size=rows, max_size=rows)), draw(st.sampled_from(TEXTS[:3])))
    if draw(st.booleans()):
        weights = st.none() | st.floats(1e-6, 1e6)
        columns_["weight"] = pa.array(draw(st.lists(weights, min_size=rows, max_size=rows)), pa.float64())
    return pa.table(columns_)


def through_json(row: dict[str, Any]) -> Event | Label:
    """What a row is as JSON, read by the JSON reader."""
    row = {name: float(value) if isinstance(value, np.floating) else value for name, value in row.items()}
    x = {name: value for name, value in row.items() if name not in ("y", "id", "weight") and value is not None}
    rest = {name: row[name] for name in ("id", "weight") if row.get(name) is not None}
    event = event_json.decode_event(json.dumps({"x": x, "y": int(row["y"]), **rest}).encode())
    return Label(event.id, int(event.y), event.weight) if event.id is not None and not x else event


def flat(event: Event | Label) -> Any:
    """An event's features by name, in order; and the rest."""
    if isinstance(event, Label):
        return event
    names, values = flatten(event.x)
    return list(zip(names, map(math.copysign, values, values), strict=True)), event.y, event.id, event.weight


@given(tables(), st.integers(1, 4), st.data())
def test_the_events_are_those_of_the_same_rows_as_json_however_the_bytes_arrive(
    table: pa.Table, batch_rows: int, data: st.DataObject
) -> None:
    body = stream_of(table, batch_rows)
    cuts = sorted(data.draw(st.lists(st.integers(0, len(body)), max_size=5)))
    chunks = [body[start:stop] for start, stop in zip([0, *cuts], [*cuts, len(body)], strict=True)]
    events = events_of(*chunks, max_rows=3)
    assert [flat(event) for event in events] == [flat(through_json(row)) for row in table.to_pylist()]


@given(tables(), st.integers(0, 6), st.integers(0, 6))
def test_a_part_of_a_table_has_its_rows(table: pa.Table, one: int, other: int) -> None:
    for whole in tables_of([stream_of(table)])[0]:
        start, stop = min(one, other, len(whole)), min(max(one, other), len(whole))
        events = whole.events(0, len(whole))[start:stop]
        assert whole.events(start, stop) == events
        part = whole.part(start, stop)
        assert (len(part), part.first_row) == (stop - start, whole.first_row + start)
        assert part.events(0, len(part)) == events


def test_the_bytes_may_arrive_one_by_one() -> None:
    table = with_labels(a=[1.0, 2.0, None], c=pa.array(["x", None, "y"]).dictionary_encode())
    body = stream_of(table, 1)
    assert events_of(*[body[i : i + 1] for i in range(len(body))]) == events_of(body)


def test_the_stream_may_end_without_its_end_mark_and_rows_are_counted_across_batches() -> None:
    body = stream_of(with_labels(a=[1.0, 2.0, 3.0, 4.0, 5.0]), 2)
    assert body.endswith(b"\xff\xff\xff\xff\0\0\0\0")
    found, error = tables_of([body[:-8]], max_rows=3)
    assert error is None
    assert [(table.first_row, len(table)) for table in found] == [(1, 2), (3, 2), (5, 1)]


def test_a_stream_may_have_no_rows() -> None:
    assert events_of(stream_of(pa.schema({"a": pa.float64(), "y": pa.int8()}).empty_table())) == []


def test_a_large_batch_comes_as_several_tables_of_few_values() -> None:
    wide = pa.table({**{f"f{j}": np.zeros(100) for j in range(10_000)}, "y": np.zeros(100)})
    found, error = tables_of([stream_of(wide)], limit=20_000_000)
    assert error is None
    assert [len(table) for table in found] == [16] * 6 + [4]
    long = pa.table({"a": np.arange(20_000), "y": np.zeros(20_000)})
    found, _ = tables_of([stream_of(long)])
    assert [len(table) for table in found] == [8_192, 8_192, 3_616]
    assert np.concatenate([table.values for table in found]).ravel().tolist() == list(range(20_000))


def test_a_new_dictionary_counts_from_where_it_comes_and_one_may_be_added_to() -> None:
    batches = [
        pa.record_batch({"c": pa.array(words).dictionary_encode(), "y": [1] * len(words)})
        for words in (["a", "b"], ["a", "b", "c"], ["x", "c"])
    ]
    for deltas in (False, True):
        sink = pa.BufferOutputStream()
        options = pa.ipc.IpcWriteOptions(emit_dictionary_deltas=deltas)
        with pa.ipc.new_stream(sink, batches[0].schema, options=options) as writer:
            for batch in batches:
                writer.write_batch(batch)
        xs = [event.x for event in events_of(bytes(sink.getvalue())) if isinstance(event, Event)]
        assert [x["c"] for x in xs if isinstance(x, dict)] == ["a", "b", "a", "b", "c", "x", "c"]


def test_a_dictionary_may_have_a_null_and_be_empty() -> None:
    words = pa.DictionaryArray.from_arrays(pa.array([0, 1, None], pa.int8()), pa.array(["x", None]))
    assert [x_of(event) for event in events_of(stream_of(with_labels(c=words)))] == [{"c": "x"}, {}, {}]
    empty = pa.DictionaryArray.from_arrays(pa.array([None], pa.int8()), pa.array([], pa.string()))
    assert events_of(stream_of(with_labels(c=empty))) == [Event({}, 1)]


# -- what is refused


@pytest.mark.parametrize("learn", [True, False])
@pytest.mark.parametrize("value", [math.inf, -math.inf])
def test_a_feature_that_is_not_finite_is_refused_after_the_rows_before_it(value: float, learn: bool) -> None:
    table = pa.table({"a": [1.0, 2.0, 3.0, 4.0], "b": [1.0, None, value, 4.0], "y": [1] * 4})
    found, error = tables_of([stream_of(table if learn else table.drop(["y"]), 2)], learn=learn)
    assert [table.values.tolist() for table in found] == [[[1.0, 1.0], [2.0, 0.0]]]
    assert isinstance(error, errors.InvalidEvent)
    assert error.problem("an-id") == {
        "type": "urn:logstep:invalid-event",
        "title": "Invalid event",
        "status": 422,
        "detail": "row 3: x.b: must be a finite number, or null or NaN if there is no value.",
        "request_id": "an-id",
        "field": "row 3: x.b",
        "row": 3,
    }


@pytest.mark.parametrize(
    ("column", "values", "detail"),
    [
        (
            "y",
            pa.array([1, 2]),
            "row 2: y: " + NO_LABEL + ".",
        ),
        (
            "y",
            pa.array([1, None]),
            "row 2: y: " + NO_LABEL + ".",
        ),
        (
            "y",
            pa.array([True, None]),
            "row 2: y: " + NO_LABEL + ".",
        ),
        (
            "y",
            pa.array([0.0, 0.5]),
            "row 2: y: " + NO_LABEL + ".",
        ),
        (
            "y",
            pa.array([1.0, math.nan]),
            "row 2: y: " + NO_LABEL + ".",
        ),
        (
            "y",
            pa.array([0, -1]),
            "row 2: y: " + NO_LABEL + ".",
        ),
        ("weight", pa.array([1, -1]), "row 2: weight: must be a number, 0 or above."),
        ("weight", pa.array([1.0, math.nan]), "row 2: weight: must be a number, 0 or above."),
        ("weight", pa.array([1.0, math.inf]), "row 2: weight: must be a number, 0 or above."),
        ("id", pa.array(["a", ""]), "row 2: id: must have 1 to 256 characters and no zero byte."),
        ("id", pa.array(["é" * 256, "a" * 257]), "row 2: id: must have 1 to 256 characters and no zero byte."),
        ("id", pa.array(["a", "a\0"]), "row 2: id: must have 1 to 256 characters and no zero byte."),
    ],
)
def test_a_label_weight_or_id_that_is_none_is_refused_after_the_rows_before_it(
    column: str, values: pa.Array, detail: str
) -> None:
    table = pa.table({"a": [1.0, 2.0], "y": [1, 1]})
    table = table.drop([column]) if column in table.column_names else table
    found, error = tables_of([stream_of(table.append_column(column, values))])
    assert [len(table) for table in found] == [1]
    assert error is not None
    assert (error.status, str(error), error.row) == (422, detail, 2)


def test_the_first_row_that_is_wrong_is_named_whatever_the_column() -> None:
    table = pa.table({"a": [1.0, math.inf, 3.0], "y": [1, 1, 7], "weight": [1.0, 1.0, 0.0]})
    assert refusal_of(table).field == "row 2: x.a"


def test_to_learn_there_must_be_labels_and_to_predict_there_must_be_none() -> None:
    error = refusal_of(pa.table({"a": [1.0]}))
    assert (error.status, str(error)) == (
        422,
        "y: is missing: events to learn need a column y with their labels.",
    )
    for column in ("y", "weight"):
        error = refusal_of(pa.table({"a": [1.0], column: [1]}), learn=False)
        assert str(error) == f"{column}: a prediction does not use it; leave this column out."


def test_a_name_must_not_be_that_of_two_columns() -> None:
    error = refusal_of(pa.table([pa.array([1]), pa.array([2]), pa.array([1])], ["a", "a", "y"]))
    assert (error.status, str(error)) == (422, "x.a: two columns have this name; rename one.")


def test_a_row_knows_its_place_for_what_the_model_refuses() -> None:
    body = stream_of(with_labels(a=[1.0, 2.0, 1e300]), 2)
    *_, table = tables_of([body])[0]
    builder = BatchBuilder(Features())
    assert table.is_plain
    assert table.labels is not None
    with pytest.raises(EventError) as refusal:
        builder.add_table(table.names, table.values, table.present, table.labels, table.weights)
    error = table.invalid(refusal.value.row, refusal.value.field, refusal.value.message)
    assert (str(error), error.row) == ("row 3: x.a: must be within ±1e+100.", 3)


def test_questions_are_not_for_learning() -> None:
    (table,), _ = tables_of([stream_of(pa.table({"a": [1.0]}))], learn=False)
    with pytest.raises(TypeError, match="no labels"):
        table.events(0, 1)


# -- bytes that are no stream, and bytes that are too many

SMALL = with_labels(a=[1.0, 2.0, 3.0], c=pa.array(["u", None, "v"]).dictionary_encode(), id=[None, "i", None])


@from_checks_on
def test_a_stream_cut_anywhere_gives_only_rows_that_were_whole() -> None:
    body = stream_of(SMALL, 1)
    whole = events_of(body)
    counts = set()
    for cut in range(len(body)):
        found, error = tables_of([body[:cut]])
        events = [event for table in found for event in table.events(0, len(table))]
        assert events == whole[: len(events)]
        assert error is None or (isinstance(error, errors.MalformedArrow) and error.status == 400)
        # Between two messages nothing tells a cut from an end; HTTP does.
        counts.add((len(events), error is None))
    assert counts == {(0, True), (0, False), (1, True), (1, False), (2, True), (2, False), (3, True), (3, False)}


def test_an_error_of_the_connection_comes_out_as_it_is_after_the_rows_before_it() -> None:
    body = stream_of(SMALL, 1)
    for lost in (errors.BodyIncomplete(), errors.NotReady(state="stopping")):
        for cut in (0, 100, len(body) - 60, len(body)):
            assert tables_of([body[:cut], lost])[1] is lost
        assert [len(table) for table in tables_of([body, lost])[0]] == [1, 1, 1]


@examples(300)
@given(st.data())
def test_a_damaged_stream_is_refused_or_read_and_never_more(data: st.DataObject) -> None:
    body = bytearray(stream_of(SMALL, 2))
    for _ in range(data.draw(st.integers(1, 4))):
        at = data.draw(st.integers(0, len(body) - 1))
        body[at] = data.draw(st.integers(0, 255))
    found, error = tables_of([bytes(body)])
    for table in found:
        table.events(0, len(table))
    assert error is None or error.status in (400, 413, 415, 422)


@given(st.binary(max_size=200))
def test_any_bytes_are_refused(body: bytes) -> None:
    assert refusal_of(body).status in (400, 413)


BODY = stream_of(SMALL)


@pytest.mark.parametrize(
    ("body", "reason"),
    [
        (b"", "it is empty; a stream begins with its schema"),
        (b'{"x": {"a": 1}, "y": 1}', "a message must begin with ffffffff and its length (Arrow 0.15 or newer)"),
        (b"ARROW1\0\0" + BODY, "it is an Arrow file; send a stream (with pyarrow: pyarrow.ipc.new_stream)"),
        (BODY + BODY, "bytes follow its end; send each stream in a request of its own"),
        (BODY[:-8] + BODY, "it has a second schema"),
        (BODY[:30], "it ends in the middle of a message"),
        (BODY[:3], "it ends in the middle of a message"),
    ],
)
def test_what_is_no_stream_is_refused_and_told_why(body: bytes, reason: str) -> None:
    error = refusal_of(body)
    assert (error.status, str(error)) == (400, f"The body is not an Arrow IPC stream: {reason}.")


def test_a_stream_without_its_schema_is_refused() -> None:
    schema = int.from_bytes(BODY[4:8], "little") + 8
    assert "does not begin with its schema" in str(refusal_of(BODY[schema:]))


def test_a_batch_that_is_too_large_is_refused_before_it_is_read_and_after_those_before_it() -> None:
    batches = [pa.record_batch({"a": np.zeros(rows), "y": np.ones(rows)}) for rows in (10, 1_000)]
    sink = pa.BufferOutputStream()
    with pa.ipc.new_stream(sink, batches[0].schema) as writer:
        for batch in batches:
            writer.write_batch(batch)
    body = bytes(sink.getvalue())[:-16_000]  # what is missing was not waited for
    found, error = tables_of([body], limit=10_000)
    assert [len(table) for table in found] == [10]
    assert isinstance(error, errors.ArrowTooLarge)
    assert error.status == 413
    assert str(error) == (
        f"In the Arrow stream, record batch 2 takes {error.size} bytes; the limit is 10000. Write "
        "smaller batches (with pyarrow: writer.write_table(table, max_chunksize=10_000)). The stream itself has no "
        "limit."
    )
    assert 16_000 < error.size < 17_000


@pytest.mark.parametrize("compression", ["lz4", "zstd"])
def test_a_compressed_batch_is_refused_and_told_how_to_write_it(compression: str) -> None:
    plain = with_labels(a=np.zeros(100))
    error = refusal_of(stream_of(plain, compression=compression))
    assert (error.status, str(error)) == (
        415,
        "In the Arrow stream, record batch 1 is compressed. Write it uncompressed, as is the default (with pyarrow: "
        "pyarrow.ipc.IpcWriteOptions(compression=None); with Polars: write_ipc_stream(file, "
        'compression="uncompressed")).',
    )
    words = with_labels(a=pa.array(["long enough"] * 100).dictionary_encode())
    assert "a dictionary is compressed" in str(refusal_of(stream_of(words, compression=compression)))


@pytest.mark.parametrize(
    "schema",
    [
        pa.schema([("a", pa.struct([(f"f{i}", pa.float64()) for i in range(180_000)]))]),
        pa.schema([("a", pa.float64())], metadata={b"pandas": b" " * 9_000_000}),
    ],
    ids=["a struct of many fields", "much metadata"],
)
def test_a_schema_that_would_take_long_to_read_is_refused(schema: Any) -> None:
    error = refusal_of(schema.empty_table(), learn=False, limit=64_000_000)
    assert (error.status, type(error)) == (413, errors.ArrowSchemaTooLarge)
    assert "the limit is 8388608. Leave out columns" in str(error)


def test_dictionaries_are_bounded_together() -> None:
    words = pa.array(["a" * 1_000 + str(i) for i in range(50)]).dictionary_encode()
    table = with_labels(c=words, d=words, e=words)
    assert len(events_of(stream_of(table), limit=200_000)) == 50
    error = refusal_of(stream_of(table), limit=120_000)
    assert isinstance(error, errors.ArrowTooLarge)
    assert (error.status, error.what) == (413, "its dictionaries together")


def test_rows_without_end_cannot_be_claimed_without_data() -> None:
    table = pa.table({"a": pa.nulls(1_000)})
    error = refusal_of(table, learn=False)
    assert isinstance(error, errors.MalformedArrow)
    assert (error.status, error.reason) == (
        400,
        "record batch 1 claims 1000 rows but has no data for them",
    )


def of_one_value(rows: int) -> pa.Array:
    """A column that holds one value and how often it comes."""
    return pa.RunEndEncodedArray.from_arrays(pa.array([rows], pa.int32()), pa.array([1.5]))


def test_a_column_of_one_value_may_have_as_many_rows_as_are_free() -> None:
    found, error = tables_of([stream_of(pa.table({"a": of_one_value(200_000)}))], learn=False)
    assert error is None
    assert np.concatenate([table.values for table in found]).ravel().tolist() == [1.5] * 200_000
    error = refusal_of(pa.table({"a": of_one_value(262_145)}), learn=False)
    assert isinstance(error, errors.TooManyRows)
    assert (error.status, error.rows) == (413, 262_145)


def test_a_dictionary_cannot_claim_endless_values() -> None:
    nulls = pa.DictionaryArray.from_arrays(pa.array([0], pa.int32()), pa.nulls(262_145))
    error = refusal_of(pa.table({"a": nulls}), learn=False)
    assert isinstance(error, errors.TooManyRows)
    assert (error.status, error.what) == (413, "a dictionary")


def test_a_long_word_used_often_takes_its_memory_once() -> None:
    word = "a" * 100_000
    many = pa.DictionaryArray.from_arrays(pa.array(np.zeros(8_000, np.int8)), pa.array([word]))
    xs = [x_of(event) for event in events_of(stream_of(with_labels(c=many)))]
    assert len({id(x["c"]) for x in xs}) == 1


# -- the event loop


def test_nothing_is_read_ahead() -> None:
    body = stream_of(with_labels(a=[1.0, 2.0, 3.0]), 1)
    taken = 0

    async def arriving() -> AsyncIterator[bytes]:
        nonlocal taken
        for taken in range(len(body)):
            yield body[taken : taken + 1]

    async def first() -> int:
        stream = arrow.read_tables(arriving(), learn=True, max_batch_bytes=LIMIT)
        await anext(stream)
        at = taken
        await asyncio.sleep(0.01)
        assert taken == at
        await anext(stream)
        return at

    assert asyncio.run(first()) < len(body) / 2 < taken


def test_who_stops_waiting_leaves_no_thread_behind() -> None:
    async def arriving() -> AsyncIterator[bytes]:
        yield BODY[:-100]
        await asyncio.Event().wait()

    async def give_up() -> None:
        async for _ in arrow.read_tables(arriving(), learn=True, max_batch_bytes=LIMIT):
            pass

    async def story() -> None:
        with pytest.raises(TimeoutError):
            await asyncio.wait_for(give_up(), 0.1)

    asyncio.run(story())  # it waits for the threads of the loop
    assert not [thread for thread in threading.enumerate() if thread.name.startswith("asyncio")]


def test_a_large_batch_is_read_in_a_thread(monkeypatch: pytest.MonkeyPatch) -> None:
    threads = set()

    async def noting(in_thread: bool, work: Callable[..., Any], *arguments: Any) -> Any:
        def noted(*given: Any) -> Any:
            if work.__name__ == "read":
                threads.add(threading.current_thread() is threading.main_thread())
            return work(*given)

        return await worked(in_thread, noted, *arguments)

    monkeypatch.setattr("service.decode.arrow.worked", noting)
    events_of(stream_of(with_labels(a=[1.0])))
    assert threads == {True}
    threads.clear()
    events_of(stream_of(with_labels(a=np.zeros(20_000))))
    assert threads == {False}


# -- tables added at once

NAMES = ["a", "b", "c", "größe", "0", "a=b"]


@st.composite
def plain_tables(draw: st.DrawFn, bad: bool = False) -> tuple[Any, ...]:
    """Arguments of add_table."""
    names = draw(st.lists(st.sampled_from([*NAMES, *(["", "n" * 300, "z\0"] if bad else [])]), unique=True, max_size=5))
    n, m = draw(st.integers(0, 5)), len(names)
    number = st.floats(-1e100, 1e100)
    if bad:
        number = st.one_of(number, number, number, st.sampled_from([math.nan, math.inf, 1.1e100]))
    values = np.array(draw(st.lists(number, min_size=n * m, max_size=n * m)), np.float64).reshape(n, m)
    present = draw(st.none() | st.lists(st.booleans(), min_size=n * m, max_size=n * m))
    label = st.integers(0, 2 if bad and draw(st.booleans()) else 1)
    labels = np.array(draw(st.lists(label, min_size=n, max_size=n)), np.uint8)
    weight = st.sampled_from([1.0, 0.5, 3.0, *([0.0, math.nan, math.inf] if bad and draw(st.booleans()) else [])])
    weights = draw(st.none() | st.lists(weight, min_size=n, max_size=n))
    mask = None if present is None else np.array(present, np.bool_).reshape(n, m)
    texts = {}
    for j in draw(st.sets(st.sampled_from(range(m)))) if m else ():
        words = draw(
            st.lists(
                st.sampled_from(["", "v", "c", *(["b", "w" * 300, "z\0"] if bad else [])]), unique=True, min_size=1
            )
        )
        codes = np.array(draw(st.lists(st.integers(0, len(words) - 1), min_size=n, max_size=n)), np.int32)
        if mask is not None:
            codes[~mask[:, j]] = -1
        values[:, j] = 1.0
        texts[j] = Words(codes, words)
    return (names, values, mask, labels, None if weights is None else np.array(weights, np.float64), texts)


def rows_of(
    names: list[str], values: Any, present: Any, labels: Any, weights: Any, texts: dict[int, Words]
) -> list[tuple[Any, int, float]]:
    """The rows of a table, as `add` takes them."""
    words = {j: text.tolist() for j, text in texts.items()}
    return [
        (
            {
                name: words[j][i] if j in words else row[j]
                for j, name in enumerate(names)
                if present is None or present[i, j]
            },
            int(labels[i]),
            1.0 if weights is None else float(weights[i]),
        )
        for i, row in enumerate(values.tolist())
    ]


def assert_same_batch(a: Batch, b: Batch) -> None:
    assert (a.left_out is None) == (b.left_out is None)
    for field in dataclasses.fields(Batch):
        ours, theirs = getattr(a, field.name), getattr(b, field.name)
        if field.name == "left_out" and ours is not None:
            assert (ours.counts.tolist(), ours.marks.tolist()) == (theirs.counts.tolist(), theirs.marks.tolist())
        elif field.name not in ("served", "left_out"):
            assert ours.dtype == theirs.dtype, field.name
            assert ours.tobytes() == theirs.tobytes(), field.name


def assert_alike(one: BatchBuilder, other: BatchBuilder) -> None:
    assert len(one) == len(other)
    assert one.features.names == other.features.names
    assert one.new_names() == other.new_names()


PIECES = st.lists(plain_tables() | st.tuples(st.dictionaries(st.sampled_from(NAMES), st.floats(-9, 9)), st.just(1)))


@given(PIECES, st.sampled_from([None, 2]))
def test_a_table_is_added_as_its_rows_would_be_one_by_one(pieces: list[Any], hash_bits: int | None) -> None:
    at_once, one_by_one = (BatchBuilder(Features(hash_bits=hash_bits)) for _ in range(2))
    for piece in pieces:
        if len(piece) == 2:
            at_once.add(*piece)
            one_by_one.add(*piece)
        else:
            at_once.add_table(*piece)
            for row in rows_of(*piece):
                one_by_one.add(*row)
        assert_alike(at_once, one_by_one)
    assert_same_batch(at_once.build(), one_by_one.build())


@given(PIECES, PIECES, st.sampled_from([None, 2]), st.data())
def test_tables_taken_back_leave_no_trace(
    kept: list[Any], taken_back: list[Any], hash_bits: int | None, data: st.DataObject
) -> None:
    def add(builder: BatchBuilder, piece: Any) -> None:
        builder.add(*piece) if len(piece) == 2 else builder.add_table(*piece)

    builder, other = (BatchBuilder(Features(hash_bits=hash_bits)) for _ in range(2))
    for piece in kept:
        add(builder, piece)
        add(other, piece)
    mark = builder.mark()
    for piece in taken_back:
        add(builder, piece)
    builder.take_back(mark)
    assert_alike(builder, other)
    for piece in taken_back:
        add(builder, piece)
        add(other, piece)
    assert_alike(builder, other)
    assert_same_batch(builder.build(), other.build())


@examples(300)
@given(
    plain_tables(),
    plain_tables(bad=True),
    st.sampled_from([None, 2]),
    st.sampled_from([1, 2, 4, 100]),
    st.sampled_from(["ignore", "refuse"]),
)
def test_a_table_with_a_bad_row_is_refused_as_that_row_is_and_changes_nothing(
    good: Any, table: Any, hash_bits: int | None, max_features: int, overflow: Any
) -> None:
    def builder() -> BatchBuilder:
        features = Features(max_features, hash_bits, overflow=overflow)
        started = BatchBuilder(features)
        try:
            started.add_table(*good)
        except EventError:
            started.add({}, 1)
        return started

    at_once, one_by_one, untouched = builder(), builder(), builder()
    expected: EventError | None = None
    row = 0
    try:
        for row, event in enumerate(rows_of(*table)):  # noqa: B007
            one_by_one.add(*event)
    except EventError as error:
        expected = error
    if expected is None:
        at_once.add_table(*table)
    else:
        with pytest.raises(type(expected)) as refusal:
            at_once.add_table(*table)
        assert (refusal.value.field, refusal.value.message) == (expected.field, expected.message)
        assert refusal.value.row == row
        assert_alike(at_once, untouched)
        names, values, present, labels, weights, texts = table
        before: list[Any] = [None if one is None else one[:row] for one in (values, present, labels, weights)]
        before.append({j: text[:row] for j, text in texts.items()})
        at_once.add_table(names, *before)
    assert_alike(at_once, one_by_one)
    assert_same_batch(at_once.build(), one_by_one.build())


def test_new_names_get_columns_in_the_order_in_which_they_are_first_seen_row_by_row() -> None:
    builder = BatchBuilder(Features())
    builder.add({"c": 1.0}, 1)
    present = np.array([[False, True, True, False, False], [True, True, False, True, False]])
    builder.add_table(["e", "d", "c", "a", "never"], np.ones((2, 5)), present, np.array([0, 1], np.uint8))
    assert builder.features.names == ["c", "d", "e", "a"]
    assert builder.build().columns.tolist() == [0, 1, 0, 2, 1, 3]


def test_a_table_of_another_shape_is_refused() -> None:
    with pytest.raises(ValueError, match="make a table of shape"):
        BatchBuilder(Features()).add_table(["a"], np.ones((2, 2)), None, np.ones(2, np.uint8))


def test_of_a_name_that_stands_twice_the_last_counts_as_in_an_object() -> None:
    builder = BatchBuilder(Features())
    builder.add_table(["a", "a"], np.array([[1.0, 2.0]]), None, np.ones(1, np.uint8))
    assert builder.build().values.tolist() == [2.0]
