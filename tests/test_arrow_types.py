"""Every type of Arrow in every place, a feature, the label, the weight, the id: read right, or refused in words."""

from __future__ import annotations

import datetime
import itertools
import json
import math
import uuid
from decimal import Decimal
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from effort import from_checks_on
from harness import Model, Service, assert_problem
from test_arrow import refusal_of, stream_of, tables_of, x_of
from test_http_arrow import ARROW

from core import Features
from core.builder import BatchBuilder
from service import errors

ONE_UUID = uuid.UUID("0f8fad5b-d9cb-469f-a165-70867728950e")
NOON = datetime.datetime(2026, 1, 2, 12, tzinfo=datetime.UTC).replace(tzinfo=None)


def extended(kind: str, storage: pa.Array) -> pa.Array:
    """An array of one of pyarrow's own extension types, which not every version has."""
    if not hasattr(pa, kind):
        pytest.skip(f"this pyarrow has no {kind}")
    return pa.ExtensionArray.from_storage(getattr(pa, kind)(), storage)


def decimals(kind: str, *size: int) -> Any:
    if not hasattr(pa, kind):
        pytest.skip(f"this pyarrow has no {kind}")
    return pa.array([Decimal("1.5"), Decimal("0.1"), None], getattr(pa, kind)(*size))


def looked_up(values: pa.Array, kind: Any = None) -> list[Any]:
    """The same three values where they stand in a dictionary, with integers of any width, and in runs."""
    places = [pa.array([0, 1, 2], kind) for kind in (pa.int8(), pa.uint8(), pa.int16(), pa.uint32(), pa.int64())]
    found: list[Any] = [pa.DictionaryArray.from_arrays(place, values) for place in places]
    found.append(pa.DictionaryArray.from_arrays(pa.array([0, 1, None], pa.int32()), values))
    for runs in (pa.int16(), pa.int32(), pa.int64()):
        found.append(pa.RunEndEncodedArray.from_arrays(pa.array([1, 2, 3], runs), values))
    found.append(pa.RunEndEncodedArray.from_arrays(pa.array([1, 2, 3], pa.int32()), found[1]))
    return found


def xs_of(column: Any, **more: Any) -> list[dict[str, Any]]:
    """The x of each of three events whose only feature `a` is the column."""
    found, error = tables_of([stream_of(pa.table({"a": column, "y": [1, 0, 1], **more}))])
    assert error is None
    return [x_of(event) for table in found for event in table.events(0, len(table))]


# -- features

WHOLE = [pa.int8(), pa.int16(), pa.int32(), pa.int64(), pa.uint8(), pa.uint16(), pa.uint32(), pa.uint64()]
FLOATS = [pa.float16(), pa.float32(), pa.float64()]
TEXTS = [pa.string(), pa.large_string(), pa.string_view()]


@pytest.mark.parametrize("kind", [*WHOLE, *FLOATS], ids=str)
def test_a_number_of_any_width_is_a_number(kind: Any) -> None:
    for column in (pa.array([2, 5, None], kind), *looked_up(pa.array([2, 5, None], kind))):
        assert xs_of(column) == [{"a": 2.0}, {"a": 5.0}, {}]


def test_a_truth_value_is_1_or_0() -> None:
    eight = extended("bool8", pa.array([7, 0, None], pa.int8()))
    for column in (pa.array([True, False, None]), eight, *looked_up(pa.array([True, False, None]))):
        assert xs_of(column) == [{"a": 1.0}, {"a": 0.0}, {}]


@pytest.mark.parametrize(
    ("kind", "size"),
    [("decimal32", (5, 2)), ("decimal64", (12, 3)), ("decimal128", (38, 10)), ("decimal256", (70, 20))],
)
def test_a_decimal_is_the_nearest_float(kind: str, size: tuple[int, int]) -> None:
    column = decimals(kind, *size)
    for one in (column, *looked_up(column)):
        assert xs_of(one) == [{"a": 1.5}, {"a": 0.1}, {}]


def test_decimals_of_any_scale_are_the_floats_that_python_makes_of_them() -> None:
    numbers = np.random.default_rng(5)
    digits, scales = numbers.integers(-(10**17), 10**17, 500).tolist(), numbers.integers(0, 18, 500).tolist()
    cells = [Decimal(digit).scaleb(-scale) for digit, scale in zip(digits, scales, strict=True)]
    column = pa.array(cells, pa.decimal128(38, 18))
    found, _ = tables_of([stream_of(pa.table({"a": column, "y": [1] * 500}))])
    assert found[0].values[:, 0].tolist() == [float(cell) for cell in cells]
    assert xs_of(pa.array([Decimal(12_000)] * 3, pa.decimal128(5, -3))) == [{"a": 12_000.0}] * 3


@pytest.mark.parametrize("kind", TEXTS, ids=str)
def test_text_of_any_kind_is_text(kind: Any) -> None:
    values = pa.array(["FR", "a word of more than twelve bytes", None], kind)
    for column in (values, *looked_up(values)):
        assert xs_of(column) == [{"a": "FR"}, {"a": "a word of more than twelve bytes"}, {}]


def test_a_uuid_is_its_canonical_text_and_json_is_its_text() -> None:
    ids = extended("uuid", pa.array([ONE_UUID.bytes, uuid.UUID(int=7).bytes, None], pa.binary(16)))
    assert xs_of(ids) == [{"a": str(ONE_UUID)}, {"a": str(uuid.UUID(int=7))}, {}]
    assert xs_of(extended("json_", pa.array(['{"b":1}', "2", None]))) == [{"a": '{"b":1}'}, {"a": "2"}, {}]


def test_a_column_without_values_leaves_its_feature_out() -> None:
    assert xs_of(pa.nulls(3)) == [{}, {}, {}]
    assert xs_of(pa.nulls(3).dictionary_encode()) == [{}, {}, {}]


@pytest.mark.parametrize("kind", FLOATS, ids=str)
@pytest.mark.parametrize("learn", [True, False])
def test_nan_is_a_feature_left_out(kind: Any, learn: bool) -> None:
    values = pa.array([1.0, math.nan, None], kind)
    for column in (values, *looked_up(values)):
        table = pa.table({"a": column, "b": [1, 2, 3], **({"y": [1, 0, 1]} if learn else {})})
        found, error = tables_of([stream_of(table)], learn=learn)
        assert error is None
        assert found[0].present is not None
        assert found[0].present.tolist() == [[True, True], [False, True], [False, True]]
        asked: Any = found[0].events(0, 3) if learn else found[0].questions(0, 3)
        assert [one.x for one in asked] == [{"a": 1.0, "b": 1.0}, {"b": 2.0}, {"b": 3.0}]


def test_long_runs_and_slices_of_them_are_read_where_they_are() -> None:
    runs = pa.RunEndEncodedArray.from_arrays(pa.array([5_000, 9_000, 20_000], pa.int32()), pa.array(["x", None, "y"]))
    found, error = tables_of([stream_of(pa.table({"a": runs, "y": [1] * 20_000}))])
    assert error is None
    words = [x_of(event).get("a") for table in found for event in table.events(0, len(table))]
    assert words == ["x"] * 5_000 + [None] * 4_000 + ["y"] * 11_000


# -- labels, weights, ids


@pytest.mark.parametrize(
    "values",
    [
        *(pa.array([1, 0, 1]).cast(kind) for kind in [*WHOLE, *FLOATS, pa.bool_()]),
        pa.array([Decimal(1), Decimal(0), Decimal("1.00")], pa.decimal128(5, 2)),
        pa.array([Decimal(1), Decimal(0), Decimal(1)], pa.decimal128(38, 0)),
    ],
    ids=lambda values: str(values.type),
)
def test_any_kind_of_number_is_a_label(values: pa.Array) -> None:
    for column in (values, *looked_up(values)[:5]):
        found, error = tables_of([stream_of(pa.table({"a": [1, 2, 3], "y": column}))])
        assert error is None
        assert found[0].labels is not None
        assert found[0].labels.tolist() == [1, 0, 1]


def test_other_labels_are_refused_with_what_to_do_about_them() -> None:
    for labels in ([1, -1], [1.0, 2.0], [Decimal(1), Decimal("0.5")], [0, None], [0, math.nan]):
        found, error = tables_of([stream_of(pa.table({"a": [1.0, 2.0], "y": pa.array(labels)}))])
        assert [len(table) for table in found] == [1]
        assert "y: must be 0, 1, true or false; map other labels to these before you send them" in str(error)
    error = refusal_of(pa.table({"a": [1.0], "y": ["yes"]}))
    assert "it must be 0 and 1, or true and false (with pyarrow: pyarrow.compute.equal(column, 'yes'))" in str(error)


def test_a_weight_is_any_number_and_1_where_it_is_null() -> None:
    for values in (pa.array([2, 3, None], kind) for kind in (pa.int64(), pa.decimal128(9, 4), *FLOATS)):
        for column in (values, *looked_up(values)):
            found, error = tables_of([stream_of(pa.table({"a": [1, 2, 3], "y": [1, 0, 1], "weight": column}))])
            assert error is None
            assert found[0].weights is not None
            assert found[0].weights.tolist() == [2.0, 3.0, 1.0]
    for wrong in (math.nan, -1.0, math.inf):
        _, error = tables_of([stream_of(pa.table({"a": [1], "y": [1], "weight": pa.array([wrong])}))])
        assert "weight: must be a number, 0 or above" in str(error)


@pytest.mark.parametrize("learn", [True, False])
@pytest.mark.parametrize("kind", [*TEXTS, *WHOLE, pa.decimal128(38, 0), "uuid"], ids=str)
def test_an_id_is_text_or_the_text_of_a_whole_number_or_uuid(kind: Any, learn: bool) -> None:
    expected: list[str | None]
    if kind == "uuid":
        values = extended("uuid", pa.array([ONE_UUID.bytes, None, ONE_UUID.bytes[::-1]], pa.binary(16)))
        expected = [str(ONE_UUID), None, str(uuid.UUID(bytes=ONE_UUID.bytes[::-1]))]
    elif kind in TEXTS:
        values, expected = pa.array(["a", None, "b"], kind), ["a", None, "b"]
    else:
        values, expected = pa.array([7, None, 100], kind), ["7", None, "100"]
    # pyarrow writes a dictionary of UUIDs that it cannot read itself.
    for column in (values, *([] if kind == "uuid" else looked_up(values)[:5] + looked_up(values)[6:])):
        table = pa.table({"a": [1, 2, 3], "id": column, **({"y": [1, 0, 1]} if learn else {})})
        found, error = tables_of([stream_of(table)], learn=learn)
        assert (error, list(found[0].ids or ())) == (None, expected)
        asked: Any = found[0].events(0, 3) if learn else found[0].questions(0, 3)
        assert [one.id for one in asked] == expected


def test_integers_beyond_2_to_the_53_keep_every_digit_as_ids() -> None:
    many = [2**63 - 1, 2**53 + 1, -(2**63)]
    found, _ = tables_of([stream_of(pa.table({"a": [1, 2, 3], "y": [1, 0, 1], "id": many}))])
    assert list(found[0].ids or ()) == [str(one) for one in many]


# -- what is refused, and what is said about it

REFUSED = [
    pa.date32(), pa.date64(), pa.timestamp("us"), pa.timestamp("s", "UTC"), pa.time32("s"), pa.time64("us"),
    pa.duration("ms"), pa.month_day_nano_interval(),
    pa.binary(), pa.large_binary(), pa.binary_view(), pa.binary(16),
    pa.list_(pa.float64()), pa.large_list(pa.int8()), pa.list_(pa.float32(), 2), pa.list_view(pa.int8()),
    pa.struct({"a": pa.int8()}), pa.map_(pa.string(), pa.int8()),
    pa.dense_union([pa.field("a", pa.int8())]), pa.sparse_union([pa.field("a", pa.int8())]),
    pa.dictionary(pa.int8(), pa.date32()), pa.dictionary(pa.int8(), pa.binary()),
]  # fmt: skip


@pytest.mark.parametrize("place", ["a", "y", "weight", "id"])
@pytest.mark.parametrize("kind", REFUSED, ids=str)
def test_any_other_type_is_refused_with_the_column_its_type_and_what_it_must_be(kind: Any, place: str) -> None:
    sink = pa.BufferOutputStream()
    with pa.ipc.new_stream(sink, pa.schema({"y": pa.int8(), **{place: kind}})):
        pass  # the schema alone: pyarrow makes no table of every type
    _, error = tables_of([bytes(sink.getvalue())])
    assert isinstance(error, errors.InvalidEvent)
    field = "x.a" if place == "a" else place
    assert str(error).startswith(f"{field}: this column is of type {str(kind)[:100]}; it must be ")


@pytest.mark.parametrize(
    ("column", "said", "cast"),
    [
        (pa.array([datetime.date(2026, 1, 2)]), "column.cast('timestamp[s]').cast('int64')", None),
        (pa.array([NOON], pa.timestamp("us")), "pyarrow.compute.hour(column)", 12),
        (pa.array([NOON], pa.timestamp("us")), "column.cast('int64')", None),
        (pa.array([datetime.timedelta(seconds=3)], pa.duration("s")), "column.cast('int64')", 3),
        (pa.array([b"FR"]), "column.cast('string')", "FR"),
    ],
)
def test_what_is_advised_is_taken(column: Any, said: str, cast: Any) -> None:
    import pyarrow.compute  # noqa: F401  # the advice names it

    error = refusal_of(pa.table({"a": column, "y": [1]}))
    assert said in str(error)
    advised = eval(said, {"column": column, "pyarrow": pa})  # a constant of these tests
    found, wrong = tables_of([stream_of(pa.table({"a": advised, "y": [1]}))])
    assert wrong is None
    if cast is not None:
        assert x_of(found[0].events(0, 1)[0]) == {"a": cast}


def test_what_the_numbers_of_an_unknown_extension_mean_nobody_knows() -> None:
    """pandas' periods come as integers where pandas is not."""
    field = pa.field("a", pa.int64(), metadata={b"ARROW:extension:name": b"pandas.period"})
    error = refusal_of(pa.schema([field, pa.field("y", pa.int8())]).empty_table())
    assert str(error).startswith("x.a: this column is of type int64; it must be numbers")


def test_a_uuid_that_this_pyarrow_does_not_know_is_one_by_its_metadata() -> None:
    field = pa.field("id", pa.binary(16), metadata={b"ARROW:extension:name": b"arrow.uuid"})
    batch = pa.record_batch([pa.array([ONE_UUID.bytes]), pa.array([1])], pa.schema([field, pa.field("y", pa.int64())]))
    found, error = tables_of([stream_of(batch)])
    assert (error, list(found[0].ids or ())) == (None, [str(ONE_UUID)])


# -- from pandas, Polars and DuckDB


@from_checks_on
def test_the_index_of_a_data_frame_is_no_feature() -> None:
    pandas = pytest.importorskip("pandas")
    frame = pandas.DataFrame({"a": [1.0, -2.0, 3.0], "y": [1, 0, 1]})
    days = pandas.date_range("2026-01-01", periods=3, name="day")
    frames = [
        frame,
        frame[frame.a > -9].set_index(pandas.Index([7, 8, 9])),
        frame.set_index(days),
        frame.set_index(pandas.MultiIndex.from_product([["u"], [1, 2, 3]], names=["user", None])),
    ]
    for one in frames:
        table = pa.Table.from_pandas(one)
        found, error = tables_of([stream_of(table)])
        assert error is None, table.schema
        assert found[0].names == ["a"]
    named = pa.Table.from_pandas(frame.set_index(pandas.Index(["p", "q", "r"], name="id")))
    assert list(tables_of([stream_of(named)])[0][0].ids or ()) == ["p", "q", "r"]  # it is the id all the same
    bare = pa.Table.from_pandas(frames[1]).replace_schema_metadata(None)
    assert tables_of([stream_of(bare)])[0][0].names == ["a"]
    for damaged in (b"", b"{", b"[1]", b'{"index_columns": 3}', b"\xff"):
        table = pa.table({"a": [1.0], "y": [1]}).replace_schema_metadata({b"pandas": damaged})
        assert tables_of([stream_of(table)])[0][0].names == ["a"]


@pytest.fixture
def model(shared: Service) -> Model:
    made = shared.model(f"types-{next(_names)}")
    assert made.create({"learning_rate": 0.05}).status_code == 201
    return made


_names = itertools.count(1)


def posted(model: Model, verb: str, body: bytes) -> Any:
    return model.service.http.post(f"{model.path}/{verb}", content=body, headers=ARROW)


def learned_alike(model: Model, body: bytes, xs: list[dict[str, Any]], ys: list[int], ids: list[str]) -> None:
    """The stream is learned and predicted from as these events are: the same again are duplicates."""
    assert posted(model, "learn", body).json()["learned"] == len(xs)
    events = [{"x": x, "y": y, "id": id_} for x, y, id_ in zip(xs, ys, ids, strict=True)]
    again = model.learn(events)
    assert all(reply["duplicate"] for reply in again.json()), again.text


@from_checks_on
def test_a_polars_frame_is_learned_as_it_is(model: Model) -> None:
    polars = pytest.importorskip("polars")
    frame = polars.DataFrame(
        {
            "city": polars.Series(["Rome", "Oslo", None], dtype=polars.Categorical),
            "size": polars.Series(["L", "S", "L"], dtype=polars.Enum(["S", "L"])),
            "price": polars.Series([Decimal("1.50"), Decimal("0.10"), None], dtype=polars.Decimal(10, 2)),
            "n": [1.0, math.nan, None],
            "vip": [True, None, False],
            "note": ["a", None, "b"],
            "id": polars.Series(["p", "q", "r"], dtype=polars.Categorical),
            "y": [1, 0, 1],
        }
    )
    xs = [
        {"city": "Rome", "size": "L", "price": 1.5, "n": 1.0, "vip": True, "note": "a"},
        {"city": "Oslo", "size": "S", "price": 0.1},
        {"size": "L", "vip": False, "note": "b"},
    ]
    learned_alike(model, frame.write_ipc_stream(None).getvalue(), xs, [1, 0, 1], ["p", "q", "r"])
    asked = posted(model, "predict", frame.drop("y", "id").write_ipc_stream(None).getvalue())
    assert asked.status_code == 200
    replies = [json.loads(line)["p"] for line in asked.text.splitlines()]
    assert replies == [reply["p"] for reply in model.predict([{"x": x} for x in xs]).json()]
    dates = frame.with_columns(day=polars.Series([datetime.date(2026, 1, 2)] * 3))
    assert_problem(posted(model, "learn", dates.write_ipc_stream(None).getvalue()), 422, "x.day", "date32", "cast")


@from_checks_on
def test_what_duckdb_answers_is_learned_as_it_is(model: Model) -> None:
    duckdb = pytest.importorskip("duckdb")
    query = """
        SELECT sum(i) AS total, 1.5 AS price, ('a')::ENUM('a', 'b') AS kind, i = 1 AS vip, i::UBIGINT AS n,
               NULL AS nothing, i AS id, (i % 2)::INTEGER AS y
        FROM range(3) t(i) GROUP BY i ORDER BY i
    """
    table = duckdb.sql(query).arrow()
    table = table if isinstance(table, pa.Table) else table.read_all()
    xs = [{"total": i, "price": 1.5, "kind": "a", "vip": i == 1, "n": i, "nothing": None} for i in range(3)]
    learned_alike(model, stream_of(table), xs, [0, 1, 0], ["0", "1", "2"])


# -- null in JSON


def test_null_in_json_is_a_feature_left_out_at_every_door(model: Model) -> None:
    with_nulls: list[dict[str, Any]] = [
        {"x": {"a": 1.0, "b": None, "c": None}, "y": 1},
        {"x": {"a": None, "c": "red", "b": 2}, "y": 0},
        {"x": [1.0, None, 3.0], "y": 1},
        {"x": {"a": None}, "y": 0},
    ]
    without: list[dict[str, Any]] = [
        {"x": {"a": 1.0}, "y": 1},
        {"x": {"c": "red", "b": 2}, "y": 0},
        {"x": {"0": 1.0, "2": 3.0}, "y": 1},
        {"x": {}, "y": 0},
    ]
    builders = [BatchBuilder(Features()), BatchBuilder(Features())]
    for events, builder in zip((with_nulls, without), builders, strict=True):
        for event in events:
            builder.add(event["x"], event["y"])
    batches = [builder.build() for builder in builders]
    assert builders[0].features.names == builders[1].features.names
    assert batches[0].columns.tolist() == batches[1].columns.tolist()
    assert batches[0].offsets.tolist() == batches[1].offsets.tolist()
    named = [{**event, "id": f"e{i}"} for i, event in enumerate(with_nulls)]
    assert model.learn(named[0]).json()["seq"] == 1
    assert [reply["seq"] for reply in model.learn(named[1:3]).json()] == [2, 3]
    lines = b"".join(json.dumps(event).encode() + b"\n" for event in named)
    assert model.learn_lines(lines).json()["duplicates"] == 3
    again = model.learn([{**event, "id": f"e{i}"} for i, event in enumerate(without)]).json()
    assert all(reply["duplicate"] for reply in again)
    for one, other in zip(with_nulls, without, strict=True):
        assert model.predict({"x": one["x"]}).json() == model.predict({"x": other["x"]}).json()
    kept = [model.predict({"x": event["x"], "id": f"p{i}"}).json() for i, event in enumerate(with_nulls)]
    twice = [model.predict({"x": event["x"], "id": f"p{i}"}).json() for i, event in enumerate(without)]
    assert [(one["p"], one["kept"], one["duplicate"]) for one in twice] == [(one["p"], True, True) for one in kept]
    assert model.learn({"id": "p1", "y": 1}).json()["late"] is False
    assert "y: must be 0, 1" in model.learn({"x": {"a": 1}, "y": None}).json()["detail"]


def test_lines_with_null_among_many_without_are_the_same_events(model: Model) -> None:
    """Most are read at once by their shape; these are not, and nothing is lost between."""
    xs = [{"a": i / 3, "b": None if i % 300 == 7 else i % 5} for i in range(2_000)]
    rows = [{"x": x, "y": i % 2} for i, x in enumerate(xs)]
    assert model.learn_lines(b"".join(json.dumps(row).encode() + b"\n" for row in rows)).json()["learned"] == 2_000
    other = model.service.model(f"types-{next(_names)}")
    other.create({"learning_rate": 0.05})
    without = [{name: value for name, value in x.items() if value is not None} for x in xs]
    other.learn([{"x": x, "y": i % 2} for i, x in enumerate(without)])
    assert model.state()["sha256"] == other.state()["sha256"]
