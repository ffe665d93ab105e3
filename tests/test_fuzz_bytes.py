"""Bytes that somebody changed: bodies from the network, and what lies on the disk. Each is taken or refused with an
error that is documented; none is a crash, takes long, or takes more memory than its length can explain.

What each decoder makes of good bytes is the subject of tests/test_event_json.py, test_lines.py, test_arrow.py and
test_codec.py; here good bytes are cut, flipped, spliced and repeated.
"""

from __future__ import annotations

import asyncio
import copy
import itertools
import json
import struct
import time
import tracemalloc
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from effort import examples
from hypothesis import given
from hypothesis import strategies as st

from core import Learner, Progressive, Spec
from core.batch import Batch
from core.progressive import Joins
from service import errors
from service.decode import event_json, pieces
from service.learning.model import NOT_A_STATE
from service.settings import Settings
from service.storage import codec
from service.storage.codec import pack, unpack
from service.table import Table

SECONDS = 5.0
"""For bytes that take a millisecond when they are good."""
Error = type[BaseException]


@contextmanager
def bounded(allowed: tuple[Error, ...], megabytes: float) -> Iterator[None]:
    """What may be raised, and how much memory and time may be taken."""
    tracemalloc.start()
    started = time.perf_counter()
    try:
        yield
    except allowed:
        pass  # refused, as it may be
    finally:
        took = time.perf_counter() - started
        _, peak = tracemalloc.get_traced_memory()
        tracemalloc.stop()
    assert took < SECONDS
    assert peak < megabytes * 2**20


@st.composite
def changed(draw: st.DrawFn, good: st.SearchStrategy[bytes]) -> bytes:
    """Good bytes after some of what happens to bytes."""
    data = bytearray(draw(good))
    for _ in range(draw(st.integers(1, 4))):
        at = draw(st.integers(0, len(data)))
        to = draw(st.integers(at, len(data)))
        kind = draw(st.sampled_from(["flip", "cut", "remove", "repeat", "insert", "number"]))
        if kind == "flip" and at < len(data):
            data[at] ^= 1 << draw(st.integers(0, 7))
        elif kind == "cut":
            del data[at:]
        elif kind == "remove":
            del data[at:to]
        elif kind == "repeat":
            data[at:at] = data[at:to] * draw(st.integers(1, 50))
        elif kind == "insert":
            data[at:at] = draw(st.one_of(st.binary(max_size=9), st.sampled_from(TOKENS)))
        elif kind == "number":  # a length that claims the world
            data[at : at + 8] = struct.pack(draw(st.sampled_from(["<q", "<i", ">i"])), draw(st.sampled_from(CLAIMS)))
    return bytes(data)


TOKENS = [b'"', b"{", b"[" * 2_000, b"]", b",", b"\n", b"\0", b"\\u0000", b"\\ud800", b"1e999", b"NaN", b"-0", b"\xff"]
TOKENS += [b"9" * 400, b'{"x":' * 500, b"null", b'"x"', b"\xef\xbb\xbf", b"1e-400", b"\r", b"0x1"]
CLAIMS = [-1, -(2**31), 2**31 - 1, 2**30, 0, 1, 8]

names = st.one_of(st.sampled_from(["a", "b", "age", "country", ""]), st.text(max_size=5))
numbers = st.one_of(st.integers(-(2**60), 2**60), st.floats(allow_nan=False, allow_infinity=False), st.booleans())
xs = st.one_of(
    st.dictionaries(names, st.one_of(numbers, st.text(max_size=5)), max_size=6), st.lists(numbers, max_size=6)
)
event_dicts = st.fixed_dictionaries(
    {"x": xs, "y": st.sampled_from([0, 1, True])}, optional={"id": names, "weight": st.floats(1e-9, 1e9)}
)
an_event = event_dicts.map(lambda event: json.dumps(event).encode())
an_array = st.lists(event_dicts, max_size=5).map(lambda events: json.dumps(events).encode())


def elements(body: bytes) -> None:
    found = event_json.Elements(body)
    for element in itertools.chain.from_iterable(map(found.piece, range(len(found)))):
        event_json.decode_learn(element, "[0]")


@pytest.mark.parametrize(
    "decode",
    [event_json.decode_learn, event_json.decode_event, event_json.decode_question, event_json.decode_explain, elements],
    ids=["learn", "event", "question", "explain", "elements"],
)
@examples(100)
@given(body=st.one_of(changed(an_event), changed(an_array)))
def test_json_that_was_changed(decode: Callable[[bytes], Any], body: bytes) -> None:
    with bounded((errors.InvalidEvent, errors.MalformedJson), 4):
        decode(body)


# -- streams

LIMITS = Settings(max_line_bytes=4_096, stream_events=10, max_batch_bytes=65_536)


def read(body: bytes, cuts: list[int], read_pieces: Any) -> tuple[list[Any], errors.LogstepError | None]:
    """The items of a body that comes in parts, and what ended it."""

    async def parts() -> AsyncIterator[bytes]:
        places = [0, *sorted(cut % (len(body) + 1) for cut in cuts), len(body)]
        for start, end in itertools.pairwise(places):
            yield body[start:end]

    async def story() -> tuple[list[Any], errors.LogstepError | None]:
        items: list[Any] = []
        try:
            async for piece in read_pieces(parts(), LIMITS):
                found = piece.items
                items += found.events(0, len(found)) if isinstance(found, Table) else found
                if piece.wrong is not None:
                    return items, piece.wrong
        except errors.LogstepError as error:
            return items, error
        return items, None

    return asyncio.run(story())


@st.composite
def many_lines(draw: st.DrawFn) -> bytes:
    """Lines of a few shapes, so that the kernel reads some of them."""
    shapes = draw(st.lists(st.sampled_from(['{"x":{"a":%s,"b":%s},"y":%d}', '{"x":[%s,%s],"y":%d}']), min_size=1))
    rows = draw(st.lists(st.tuples(numbers, numbers, st.integers(0, 1)), min_size=1, max_size=40))
    lines = [shapes[i % len(shapes)] % (json.dumps(a), json.dumps(b), y) for i, (a, b, y) in enumerate(rows)]
    return "\n".join(lines).encode()


@examples(100)
@given(changed(many_lines()), st.lists(st.integers(0, 10_000), max_size=3))
def test_lines_that_were_changed_are_read_as_one_by_one(body: bytes, cuts: list[int]) -> None:
    with bounded((), 16):
        found, error = read(body, cuts, pieces.events_of_lines)
    expected: list[Any] = []
    refused: errors.LogstepError | None = None
    for line in body.split(b"\n"):
        try:
            if len(line) > LIMITS.max_line_bytes:
                raise errors.LineTooLong(line=0, limit=0)
            if line.strip(b" \t\r"):
                expected.append(event_json.decode_learn(line))
        except errors.LogstepError as wrong:
            refused = wrong
            break
    assert (error and error.status) == (refused and refused.status)
    assert [(e.y, e.id, e.weight) for e in found] == [(e.y, e.id, e.weight) for e in expected]


def an_arrow_stream(rows: int, text: bool, compression: str | None) -> bytes:
    columns: dict[str, Any] = {"a": np.arange(rows, dtype=np.float64), "y": np.arange(rows) % 2 == 0}
    if text:
        columns["t"] = pa.array(["u", "v", None][i % 3] for i in range(rows)).dictionary_encode()
        columns["id"] = [f"id-{i}" for i in range(rows)]
    sink = pa.BufferOutputStream()
    table = pa.table(columns)
    with pa.ipc.new_stream(sink, table.schema, options=pa.ipc.IpcWriteOptions(compression=compression)) as writer:
        writer.write_table(table, max_chunksize=7)
    return bytes(sink.getvalue())


arrow_streams = st.builds(an_arrow_stream, st.integers(0, 30), st.booleans(), st.sampled_from([None, "lz4", "zstd"]))


@examples(120)
@given(changed(arrow_streams), st.lists(st.integers(0, 10_000), max_size=2), st.booleans())
def test_arrow_that_was_changed(body: bytes, cuts: list[int], learn: bool) -> None:
    before = pa.total_allocated_bytes()
    with bounded((), 16):
        _, error = read(body, cuts, pieces.events_of_rows if learn else pieces.questions_of_rows)
    assert error is None or error.status in (400, 413, 415, 422)
    assert pa.total_allocated_bytes() - before < 2**20  # what was read is let go


# -- what lies on the disk


@st.composite
def batches(draw: st.DrawFn) -> bytes:
    n, m = draw(st.integers(1, 30)), draw(st.integers(0, 4))
    rng = np.random.default_rng(draw(st.integers(0, 99)))
    counts = np.full(n, m) if draw(st.booleans()) else rng.integers(0, m + 1, n)
    total = int(counts.sum())
    weights = np.ones(n) if draw(st.booleans()) else rng.random(n) + 0.5
    return pack(
        Batch(
            np.concatenate([[0], np.cumsum(counts)]).astype(np.int64),
            rng.integers(0, 9, total).astype(np.int32),
            rng.random(total),
            rng.integers(0, 2, n).astype(np.uint8),
            weights,
        )
    )


@examples(120)
@given(changed(batches()), batches())
def test_batches_that_were_changed(damaged: bytes, whole: bytes) -> None:
    with bounded((ValueError,), 4):
        batch = unpack([whole, damaged, whole])
        assert batch.offsets[0] == 0
        assert batch.offsets[-1] == len(batch.columns) == len(batch.values)
        assert (np.diff(batch.offsets) >= 0).all()
        assert set(batch.labels.tolist()) <= {0, 1}


waiting = st.builds(
    lambda served, x: codec.encode_prediction(np.array(served), x),
    st.lists(st.floats(), min_size=1, max_size=5),
    st.dictionaries(names, st.one_of(numbers.map(float), st.text(max_size=5)), max_size=5),
)


@examples(120)
@given(changed(waiting))
def test_waiting_predictions_that_were_changed(data: bytes) -> None:
    with bounded((ValueError,), 4):
        served, x, *_ = codec.decode_prediction(data)
        assert len(served) > 0
        assert isinstance(x, dict | list)


def state_of(spec: Spec) -> bytes:
    """A snapshot of a model that has learned a little."""
    learner, scores, joins = Learner(spec), Progressive(5), Joins(5)
    scores.add(learner.learn_many([{"a": 1.5, "b": float(i), "c": "uv"[i % 2]} for i in range(9)], [0, 1, 1] * 3))
    return b"".join(codec.encode_state({"learner": learner.state(), "scores": scores.state(), "joins": joins.state()}))


STATES = [
    state_of(spec)
    for spec in (Spec(), Spec(rule="ftrl"), Spec(rule="adam", scale="standard"), Spec(l1=0.1), Spec(rule="auto"))
]


@st.composite
def changed_states(draw: st.DrawFn) -> bytes:
    """A state of which the JSON was changed as JSON, or the bytes as bytes."""
    data = draw(st.sampled_from(STATES))
    if draw(st.booleans()):
        return draw(changed(st.just(data)))
    header, _, arrays = data.partition(b"\n")
    state = json.loads(header)
    for _ in range(draw(st.integers(1, 3))):
        place = state
        while True:
            key = draw(st.sampled_from(sorted(place)))
            if not isinstance(place[key], dict) or not place[key] or draw(st.integers(0, 3)) == 0:
                break
            place = place[key]
        place[key] = copy.deepcopy(draw(nonsense))
    return json.dumps(state).encode() + b"\n" + arrays


NONSENSE: list[Any] = [None, -1, 0, 1, 2**40, 2**62, 2**70, 1e300, float("nan"), "", "a", [], [1], {}, {"a": 1}, True]
NONSENSE += [["a"] * 5, {"array": [0, 2**40]}, {"array": [8, 1]}, {"array": [2**40, 1]}]
nonsense = st.one_of(st.sampled_from(NONSENSE), st.integers(-1, 40).map(lambda length: {"array": [0, length]}))


@examples(250)
@given(changed_states())
def test_states_that_were_changed(data: bytes) -> None:
    with bounded(NOT_A_STATE, 16):
        state = codec.decode_state(data)
        learner = Learner.from_state(state["learner"])
        Progressive.from_state(state["scores"], 7)
        Joins.from_state(state["joins"], 7)
        assert 0 <= learner.n_features <= len(learner.features.names)


def test_a_state_cannot_ask_for_its_bytes_again_and_again() -> None:
    header = json.dumps({f"a{i}": {"array": [0, 100_000]} for i in range(1_000)}).encode()
    with bounded((), 8), pytest.raises(ValueError, match="longer than its data"):
        codec.decode_state(header + b"\n" + bytes(800_000))


def test_a_state_whose_one_weight_stands_for_all_is_refused() -> None:
    state = Learner().state()
    state |= {"n_features": 2**20, "names": [str(i) for i in range(2**20)]}
    state["arrays"] = {**state["arrays"], "weights": np.ones(1), "kept": np.ones(1), "scaler": np.ones(1)}
    with pytest.raises(ValueError, match="cannot reshape array of size 1 into"):
        Learner.from_state(state)
