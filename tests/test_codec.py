"""Batches and states to bytes and back; and bytes that are neither."""

from __future__ import annotations

import json
import tracemalloc
from typing import Any

import numpy as np
import pytest
from effort import examples
from hypothesis import example, given
from hypothesis import strategies as st

from core import Learner, Progressive, Spec
from core.batch import Batch
from core.builder import BatchBuilder
from core.features import Features
from service.storage import codec
from service.storage.codec import pack, unpack

Events = list[tuple[list[tuple[int, float]], int, float]]
HEADER = 9

columns = st.integers(0, 2**30 - 1)
values = st.floats(width=64)
labels = st.integers(0, 1)
features = st.lists(st.tuples(columns, values), max_size=5)


def events(weights: st.SearchStrategy[float], least: int = 0) -> st.SearchStrategy[Events]:
    return st.lists(st.tuples(features, labels, weights), min_size=least, max_size=8)


unweighted = events(st.just(1.0))
weighted = events(st.floats(1e-300, 1e300), least=1)
any_events = st.one_of(unweighted, weighted)


def batch_of(events: Events) -> Batch:
    counts = [len(x) for x, _, _ in events]
    return Batch(
        np.cumsum([0, *counts]).astype(np.int64),
        np.array([column for x, _, _ in events for column, _ in x], np.int32),
        np.array([value for x, _, _ in events for _, value in x], np.float64),
        np.array([label for _, label, _ in events], np.uint8),
        np.array([weight for _, _, weight in events], np.float64),
    )


def arrays_of(batch: Batch) -> list[np.ndarray[Any, Any]]:
    return [batch.offsets, batch.columns, batch.values, batch.labels, batch.weights]


def assert_same(found: Batch, expected: Batch) -> None:
    """Equal in every bit, and arrays as the kernels take them."""
    for ours, theirs in zip(arrays_of(found), arrays_of(expected), strict=True):
        assert ours.dtype == theirs.dtype
        assert ours.tobytes() == theirs.tobytes()
        assert ours.flags.c_contiguous
        assert ours.flags.aligned
        assert ours.flags.writeable


def assert_whole(batch: Batch) -> None:
    """Whatever its bytes said, a kernel that walks over the batch stays within its arrays."""
    assert batch.offsets[0] == 0
    assert batch.offsets[-1] == len(batch.columns) == len(batch.values)
    assert (np.diff(batch.offsets) >= 0).all()
    assert len(batch.labels) == len(batch.weights) == len(batch.offsets) - 1 == len(batch)


def decoded_or_refused(data: bytes) -> Batch | None:
    """The batch of these bytes if they are one. Anything but ValueError fails the test."""
    try:
        batch = unpack([data])
    except ValueError:
        return None
    assert_whole(batch)
    return batch


# -- batches


@given(any_events)
@example([])
@example([([], 1, 1.0)])
@example([([], 0, 1.0), ([(3, -0.0), (3, float("nan"))], 1, 1.0), ([], 1, 1.0)])
@example([([], 0, 0.5)])
@example([([(0, float("inf"))], 1, 1.0), ([(1, 5e-324)], 0, 1.0 + 2**-52)])
def test_a_batch_comes_back_equal_in_every_bit(events: Events) -> None:
    batch = batch_of(events)
    assert_same(unpack([pack(batch)]), batch)


def test_what_a_builder_built_comes_back_equal() -> None:
    builder = BatchBuilder(Features())
    builder.add({"age": 31, "country": "FR"}, 1)
    builder.add({}, 0)
    builder.add([0.5, True], 1, 2.5)
    batch = builder.build()
    assert_same(unpack([pack(batch)]), batch)


def test_a_slice_of_a_batch_comes_back_equal() -> None:
    batch = batch_of([([(i, float(i)), (i + 1, -1.0)], i % 2, 1.0) for i in range(10)])
    for piece in batch.slices(3):
        assert_same(unpack([pack(piece)]), piece)


def test_weights_are_left_out_where_all_are_one_and_cost_eight_bytes_an_event_else() -> None:
    events = [([(i, 1.0)], 1, 1.0) for i in range(5)]
    plain = pack(batch_of(events))
    one_differs = pack(batch_of([*events[:4], ([(4, 1.0)], 1, 2.0)]))
    assert len(plain) == HEADER + 5 * (4 + 1) + 5 * (4 + 8)
    assert len(one_differs) == len(plain) + 5 * 8


@given(st.lists(columns, max_size=4), st.integers(1, 9), st.floats(0.5, 2.0))
@example([], 1, 1.0)
def test_events_with_the_same_features_in_the_same_order_share_their_columns(
    same: list[int], count: int, weight: float
) -> None:
    events = [([(column, float(i)) for column in same], i % 2, weight) for i in range(count)]
    batch = batch_of(events)
    data = pack(batch)
    assert len(data) == HEADER + len(same) * (4 + 8 * count) + count * (9 if weight != 1.0 else 1)
    other = batch_of([([(0, 1.0), (1, 2.0)], 1, 1.0)])
    for joined, expected in (([data], [batch]), ([pack(other), data, data], [other, batch, batch])):
        assert_same(unpack(joined), Batch.concatenate(expected))


def test_columns_that_do_not_go_into_the_number_of_events_are_refused() -> None:
    data = bytearray(pack(batch_of([([(7, 1.0)], 1, 1.0)] * 3)))
    data[4] = 4  # a value more than there are events
    assert decoded_or_refused(bytes(data) + bytes(8)) is None
    data[0:8] = bytes(8)  # no events
    assert decoded_or_refused(bytes(data[:HEADER])) is None


def test_a_decoded_batch_does_not_hold_on_to_the_bytes_it_came_from() -> None:
    batch = unpack([pack(batch_of([([(0, 1.0)], 1, 2.0)]))])
    for array in arrays_of(batch):
        assert array.base is None


@examples(50)
@given(any_events)
def test_a_batch_cut_short_anywhere_is_refused(events: Events) -> None:
    data = pack(batch_of(events))
    for length in range(len(data)):
        with pytest.raises(ValueError, match=r"cut short|length does not fit|do not add up"):
            unpack([data[:length]])


@given(any_events, st.binary(min_size=1, max_size=40))
def test_a_batch_with_bytes_after_its_end_is_refused(events: Events, more: bytes) -> None:
    with pytest.raises(ValueError, match="length does not fit"):
        unpack([pack(batch_of(events)) + more])


@examples(200)
@given(any_events, st.data())
def test_bytes_changed_at_random_are_refused_or_a_batch_as_long_as_they_say(
    events: Events, data: st.DataObject
) -> None:
    changed = bytearray(pack(batch_of(events)))
    places = st.tuples(st.integers(0, len(changed) - 1), st.integers(0, 255))
    for place, byte in data.draw(st.lists(places, min_size=1, max_size=6)):
        changed[place] = byte
    batch = decoded_or_refused(bytes(changed))
    if batch is not None:
        assert len(batch) == int.from_bytes(changed[:4], "little")
        assert len(batch.columns) == int.from_bytes(changed[4:8], "little")


@examples(200)
@given(st.binary(max_size=200))
def test_any_bytes_are_refused_or_a_batch(data: bytes) -> None:
    decoded_or_refused(data)


@given(any_events, st.integers(0, 2**32 - 1), st.integers(0, 2**32 - 1), st.integers(0, 255))
@example([([(0, 1.0)], 1, 1.0)], 2**32 - 1, 2**32 - 1, 1)
@example([([(0, 1.0)], 1, 1.0)], 2**32 - 1, 0, 255)
@example([([(0, 1.0)], 1, 1.0)], 0, 2**32 - 1, 0)
def test_a_header_that_promises_more_than_there_is_takes_no_memory(events: Events, n: int, m: int, flag: int) -> None:
    data = pack(batch_of(events))
    lying = n.to_bytes(4, "little") + m.to_bytes(4, "little") + bytes([flag]) + data[HEADER:]
    tracemalloc.start()
    try:
        decoded_or_refused(lying)
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert peak < 1 << 20


def test_counts_that_do_not_add_up_are_refused() -> None:
    data = bytearray(pack(batch_of([([(0, 1.0)], 1, 1.0), ([(1, 1.0)], 0, 1.0)])))
    data[HEADER] = 2  # the first event's count: 2 + 1 features, and there are 2
    with pytest.raises(ValueError, match="do not add up"):
        unpack([bytes(data)])


# -- states

plain = st.one_of(
    st.none(), st.booleans(), st.integers(-(2**53), 2**53), st.floats(allow_nan=False, allow_infinity=False), st.text()
)
arrays = st.lists(values, max_size=6).map(lambda numbers: np.array(numbers, np.float64))
names = st.text(max_size=8).filter(lambda name: name != "array")
states = st.recursive(
    st.dictionaries(names, st.one_of(plain, arrays, st.lists(plain, max_size=3)), max_size=4),
    lambda inner: st.dictionaries(names, st.one_of(plain, arrays, inner), max_size=4),
    max_leaves=8,
)


def assert_same_state(found: Any, expected: Any) -> None:
    assert type(found) is type(expected)
    if isinstance(expected, dict):
        assert list(found) == list(expected)
        for name in expected:
            assert_same_state(found[name], expected[name])
    elif isinstance(expected, np.ndarray):
        assert found.dtype == np.float64
        assert found.tobytes() == expected.tobytes()
        assert found.flags.writeable
        assert found.flags.aligned
    else:
        assert found == expected


def refused(data: bytes) -> bool:
    """Whether these bytes are refused; else they are a state. Anything but ValueError fails the test."""
    try:
        state = codec.decode_state(data)
    except ValueError:
        return True
    assert isinstance(state, dict)
    return False


def learned_state() -> dict[str, Any]:
    """What a snapshot carries, of a learner that has learned a little."""
    learner, scores = Learner(Spec(learning_rate=0.3, l1=0.01)), Progressive(5)
    scores.add(learner.learn_many([{"a": 1.5, "b": float(i)} for i in range(9)], [i % 2 for i in range(9)]))
    return {"learner": learner.state(names=False), "scores": scores.state()}


@given(states)
@example({})
@example({"a": np.zeros(0)})
@example({"a": np.zeros(0), "b": np.array([1.0]), "c": np.zeros(0)})
@example({"text": "a\nb\0c", "a": np.array([-0.0, float("nan"), float("inf")])})
@example({"same": {"same": {"same": np.arange(3.0)}}})
def test_a_state_comes_back_equal_in_every_bit(state: dict[str, Any]) -> None:
    assert_same_state(codec.decode_state(b"".join(codec.encode_state(state))), state)


@given(states, st.integers(1, 100))
def test_the_pieces_of_a_state_are_all_of_one_size_but_for_the_last(state: dict[str, Any], size: int) -> None:
    pieces = list(codec.encode_state(state, size))
    assert_same_state(codec.decode_state(b"".join(pieces)), state)
    header = len(b"".join(pieces).partition(b"\n")[0]) + 1
    assert len(pieces[0]) <= max(size, header)
    assert {len(piece) for piece in pieces[1:-1]} <= {size}


def test_a_learners_state_comes_back_equal() -> None:
    state = learned_state()
    assert_same_state(codec.decode_state(b"".join(codec.encode_state(state))), state)


def test_a_float_in_a_state_comes_back_to_the_last_bit() -> None:
    state = {"rate": 0.1 + 0.2, "tiny": 5e-324, "large": 1.7976931348623157e308}
    assert codec.decode_state(b"".join(codec.encode_state(state))) == state


def test_a_state_has_no_python_in_it() -> None:
    """Arrays and JSON: a line that any program can read, and then float64."""
    state = {"seq": 3, "arrays": {"a": np.arange(2.0), "b": np.arange(5.0)}}
    header, _, arrays = b"".join(codec.encode_state(state)).partition(b"\n")
    assert json.loads(header) == {"seq": 3, "arrays": {"a": {"array": [0, 2]}, "b": {"array": [16, 5]}}}
    assert np.frombuffer(arrays, "<f8").tolist() == [0, 1, 0, 1, 2, 3, 4]


@examples(50)
@given(states)
def test_a_state_cut_short_is_refused_or_has_lost_nothing_it_needs(state: dict[str, Any]) -> None:
    data = b"".join(codec.encode_state(state))
    header = data.index(b"\n")
    for length in range(len(data)):
        if length < header or len(data) > header + 1:
            assert refused(data[:length])


@examples(200)
@given(st.data())
def test_a_state_changed_at_random_is_refused_or_is_a_state(data: st.DataObject) -> None:
    changed = bytearray(b"".join(codec.encode_state(learned_state())))
    header = changed.index(b"\n")
    # Most of the bytes are numbers, where a change gives another number: aim at the JSON as well.
    place = st.one_of(st.integers(0, header + 1), st.integers(0, len(changed) - 1))
    byte = st.one_of(st.sampled_from(b'0123456789-+.eE[]{},:"\n'), st.integers(0, 255))
    for at, to in data.draw(st.lists(st.tuples(place, byte), min_size=1, max_size=4)):
        changed[at] = to
    refused(bytes(changed))


@pytest.mark.parametrize(
    "header",
    [
        b"",
        b"[]",
        b"1",
        b"null",
        b'{"a":',
        b'{"a":{"array":[0,2]}}',
        b'{"a":{"array":[99,1]}}',
        b'{"a":{"array":[-8,1]}}',
        b'{"a":{"array":[0]}}',
        b'{"a":{"array":[0,1,2]}}',
        b'{"a":{"array":1}}',
        b'{"a":{"array":null}}',
        b'{"a":{"array":["0","1"]}}',
        b'{"a":{"array":[0.0,1]}}',
        b'{"a":{"array":[0,1e0]}}',
        b'{"a":{"array":[0,4611686018427387904]}}',
        b'{"a":{"array":[0,99999999999999999999]}}',
        b'{"a":{"array":[99999999999999999999,1]}}',
        b"\xff\xfe",
        b"[" * 100_000,
    ],
    ids=lambda header: header[:40].decode("latin-1"),
)
def test_bytes_that_are_no_state_are_refused_with_a_value_error(header: bytes) -> None:
    assert refused(header + b"\n" + np.array([1.0]).tobytes())
