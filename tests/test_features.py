"""Names to columns and back, what of an event's x is refused, hashing, batches and fingerprints."""

from __future__ import annotations

import dataclasses
import math
import random
import zlib
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pytest
from effort import examples
from hypothesis import given
from hypothesis import strategies as st
from river import linear_model, optim

from core import EventError, Features, Learner, Spec
from core import columns as columns_module
from core import features as features_module
from core.batch import Batch, LeftOut, Served, fingerprints
from core.builder import BatchBuilder
from core.features import Value, flatten


def encoded(features: Features, x: Any, add: bool = True) -> dict[str, float]:
    """What `admit` or `encode` makes of x, by name, in order: a feature without a column is "?"."""
    columns, values = features.admit(x)[:2] if add else features.encode(x)
    return dict(zip(["?" if c < 0 else features.names[c] for c in columns], values, strict=True))


def batch_of(*events: tuple[Any, float] | tuple[Any, float, float], features: Features | None = None) -> Batch:
    builder = BatchBuilder(Features() if features is None else features)
    for event in events:
        builder.add(*event)
    return builder.build()


def assert_same_batch(a: Batch, b: Batch) -> None:
    assert (a.served is None, a.left_out is None) == (b.served is None, b.left_out is None)
    for part_a, part_b in ((a, b), (a.served, b.served), (a.left_out, b.left_out)):
        for name in arrays_of(part_a):
            ours, theirs = getattr(part_a, name), getattr(part_b, name)
            assert ours.dtype == theirs.dtype, name
            assert ours.tolist() == theirs.tolist(), name


def arrays_of(batch: Batch | Served | LeftOut | None) -> list[str]:
    """The names of the arrays in it."""
    if not isinstance(batch, Batch):
        return [] if batch is None else list(batch._fields)
    return [field.name for field in dataclasses.fields(batch) if field.name not in ("served", "left_out")]


# -- names and columns

NAME = st.text(st.characters(codec="utf-8", exclude_characters="\0"), min_size=1, max_size=20)


def test_columns_count_from_zero_in_order_of_appearance() -> None:
    features = Features()
    assert list(features.columns_of(["b", "a"], add=True)) == [0, 1]
    assert list(features.columns_of(["c", "a", "b"], add=True)) == [2, 1, 0]
    assert features.names == ["b", "a", "c"]
    assert len(features) == 3


@examples(60)
@given(st.lists(st.lists(NAME, unique=True, max_size=6), max_size=6))
def test_a_column_leads_back_to_its_name_whatever_the_names_are(events: list[list[str]]) -> None:
    features = Features()
    for names in events:
        columns = features.columns_of(names, add=True)
        assert [features.names[c] for c in columns] == names
    assert len(set(features.names)) == len(features)
    assert list(features.columns_of(features.names)) == list(range(len(features)))


@given(st.lists(st.lists(NAME, unique=True, max_size=6), max_size=6), st.integers(0, 20))
def test_names_beyond_the_first_have_columns_as_others_do(events: list[list[str]], back_to: int) -> None:
    """With room for two names in the first dict, what a model of a million has is the same, and is taken back, too."""
    expected: dict[str, int] = {}
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(columns_module, "FIRST_NAMES", 2)
        features = Features()
        for names in events:
            for name in names:
                expected.setdefault(name, len(expected))
            assert list(features.columns_of(names, add=True)) == [expected[name] for name in names]
        features.truncate(back_to)
        left = [name for name, column in expected.items() if column < back_to]
        assert features.names == left
        assert features.known([*expected, "-"]) == [*range(len(left)), *[-1] * (len(expected) - len(left)), -1]


def test_lists_of_names_that_are_remembered_are_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(features_module, "REMEMBERED_NAMES", 10)
    features = Features()
    for i in range(50):
        names = [f"{i}-{j}" for j in range(i % 12)]
        for _ in range(3):
            assert [features.names[column] for column in features.columns_of(names, add=True)] == names
        assert sum(map(len, features._shapes)) <= 10  # noqa: SLF001  # it shows nowhere but in memory


def test_a_name_that_is_not_known_has_no_column_and_is_not_registered() -> None:
    features = Features()
    features.columns_of(["a"], add=True)
    assert list(features.columns_of(["b", "a", "c"])) == [-1, 0, -1]
    assert features.names == ["a"]


def test_names_taken_back_are_forgotten_and_their_columns_given_out_again() -> None:
    features = Features()
    features.columns_of(["a", "b", "c"], add=True)
    features.truncate(1)
    assert features.names == ["a"]
    assert list(features.columns_of(["c", "b"])) == [-1, -1]
    assert list(features.columns_of(["c", "a", "b"], add=True)) == [1, 0, 2]


def test_names_of_a_stored_model_get_their_columns_back() -> None:
    features = Features()
    features.extend(["x", "y"])
    assert list(features.columns_of(["y", "x", "z"], add=True)) == [1, 0, 2]


# -- what an event's x may be


def test_numbers_strings_and_booleans_of_an_object() -> None:
    x = {"age": 31, "height": 1.75, "country": "FR", "vip": True, "banned": False}
    expected = {"age": 31.0, "height": 1.75, "country=FR": 1.0, "vip": 1.0, "banned": 0.0}
    features = Features()
    assert list(encoded(features, x).items()) == list(expected.items())  # in its own order
    assert features.names == list(expected)


def test_an_objects_order_is_kept_whatever_the_order_of_the_columns() -> None:
    features = Features()
    features.columns_of(["a", "b", "c"], add=True)
    columns, values = features.encode({"c": 3.0, "a": 1.0, "b": 2.0})
    assert list(columns) == [2, 0, 1]
    assert list(values) == [3.0, 1.0, 2.0]


def test_an_array_is_features_named_by_position() -> None:
    assert encoded(Features(), [0.5, 2, True]) == {"0": 0.5, "1": 2.0, "2": 1.0}
    assert encoded(Features(), (1.5,)) == {"0": 1.5}
    assert encoded(Features(), np.array([0.25, -1.0])) == {"0": 0.25, "1": -1.0}


def test_an_array_and_an_object_with_positions_for_names_meet_in_the_same_columns() -> None:
    features = Features()
    assert list(features.admit([7.0, 8.0])[0]) == [0, 1]
    columns, values, _ = features.admit({"1": 8.0, "0": 7.0, "2": 9.0})
    assert (list(columns), list(values)) == ([1, 0, 2], [8.0, 7.0, 9.0])
    assert list(features.encode([1.0, 2.0, 3.0])[0]) == [0, 1, 2]


def test_a_short_array_after_a_long_one_has_only_its_own_features() -> None:
    assert encoded(Features(), list(range(300)))["299"] == 299.0
    assert encoded(Features(), [1.0]) == {"0": 1.0}


@pytest.mark.parametrize("x", [{}, []])
def test_an_event_may_have_no_features(x: Any) -> None:
    assert encoded(Features(), x) == {}


@pytest.mark.parametrize(
    ("x", "field", "feature"),
    [
        ({"a=b": 2, "a": "b"}, "x.a", "a=b, as x.a=b is"),
        ({"a": "b", "a=b": 2}, "x.a=b", "a=b, as x.a is"),
        ({"a=b": True, "n": None, "c": 5, "a": "b"}, "x.a", "a=b, as x.a=b is"),
        ({"a": "b=c", "a=b": "c"}, "x.a=b", "a=b=c, as x.a is"),
    ],
)
@pytest.mark.parametrize("hash_bits", [None, 4])
def test_an_object_in_which_two_names_become_one_feature_is_refused_and_names_both(
    x: Mapping[str, Any], field: str, feature: str, hash_bits: int | None
) -> None:
    features = Features(hash_bits=hash_bits)
    with pytest.raises(EventError) as refusal:
        features.admit(x)
    assert (refusal.value.field, refusal.value.message) == (field, f"is the feature {feature}; rename one")
    assert features.names == []


def test_each_string_value_is_a_feature_of_its_own() -> None:
    features = Features()
    assert list(features.admit({"city": "Rome"})[0]) == [0]
    assert list(features.admit({"city": "Paris"})[0]) == [1]
    assert features.names == ["city=Rome", "city=Paris"]
    assert encoded(features, {"city": "Rome"}, add=False) == {"city=Rome": 1.0}


def test_an_empty_string_is_a_value_like_any_other() -> None:
    assert encoded(Features(), {"city": ""}) == {"city=": 1.0}


def test_a_string_that_reads_as_a_number_is_a_string() -> None:
    assert encoded(Features(), {"zip": "75011"}) == {"zip=75011": 1.0}


def test_flatten_gives_names_and_values_in_order() -> None:
    names, values = flatten({"b": "x", "a": 2})
    assert (list(names), list(values)) == (["b=x", "a"], [1.0, 2.0])


# -- what is refused, and then nothing has changed

LONGEST = "n" * 256
HUGE = 10**400

REFUSED: dict[str, tuple[Any, str]] = {
    "an empty name": ({"ok": 1.0, "": 1.0}, "x"),
    "an empty name with a string value": ({"ok": 1.0, "": "v"}, "x"),
    "a name of 257 characters": ({"ok": 1.0, LONGEST + "n": 1.0}, "x." + "n" * 61 + "..."),
    "a name of 257 characters with a string value": ({"ok": 1.0, LONGEST + "n": "v"}, "x." + "n" * 61 + "..."),
    "a zero byte in a name": ({"ok": 1.0, "a\0b": 1.0}, "x"),
    "a zero byte in a string value": ({"ok": 1.0, "a": "b\0"}, "x"),
    "a lone surrogate in a name": ({"ok": 1.0, "a\ud800": 1.0}, "x"),
    "a lone surrogate in a string value": ({"ok": 1.0, "a": "\udfff"}, "x"),
    "a string value of 257 characters": ({"ok": 1.0, "a": "v" * 257}, "x.a"),
    "a value beyond the largest": ({"ok": 1.0, "a": 1.0000001e100}, "x.a"),
    "a value beyond the largest, below": ({"ok": 1.0, "a": -1.0000001e100}, "x.a"),
    "a value beyond the largest, in an array": ([1.0, 2.0, 1e101], "x[2]"),
    "not a number": ({"ok": 1.0, "a": math.nan}, "x.a"),
    "not a number, in an array": ([math.nan], "x[0]"),
    "infinity": ({"ok": 1.0, "a": math.inf}, "x.a"),
    "minus infinity, after text": ({"ok": "text", "a": -math.inf}, "x.a"),
    "a huge integer": ({"ok": 1.0, "a": HUGE}, "x"),
    "a huge integer, in an array": ([1.0, HUGE], "x"),
    "a huge integer before text": ({"a": HUGE, "ok": "text"}, "x"),
    "a huge integer after text": ({"ok": "text", "a": HUGE}, "x.a"),
    "text in an array with a null": ([None, "a"], "x"),
    "a list": ({"ok": 1.0, "a": [1.0]}, "x.a"),
    "an object": ({"ok": 1.0, "a": {"b": 1.0}}, "x.a"),
    "text in an array": ([1.0, "a"], "x"),
    "a list in an array": ([1.0, [2.0]], "x"),
    "no x at all": (None, "x"),
    "a number for x": (5, "x"),
    "text for x": ("abc", "x"),
}


@pytest.mark.parametrize("hash_bits", [None, 4], ids=["plain", "hashed"])
@pytest.mark.parametrize(("x", "field"), REFUSED.values(), ids=REFUSED.keys())
def test_what_cannot_be_learned_is_refused_and_changes_nothing(x: Any, field: str, hash_bits: int | None) -> None:
    builder = BatchBuilder(Features(hash_bits=hash_bits))
    builder.add({"known": 1.0}, 1)
    names = list(builder.features.names)
    with pytest.raises(EventError) as refusal:
        builder.add(x, 1)
    assert refusal.value.field == field
    assert builder.features.names == names
    assert len(builder) == 1
    assert_same_batch(builder.build(), batch_of(({"known": 1.0}, 1), features=Features(hash_bits=hash_bits)))


@pytest.mark.parametrize(("x", "field"), REFUSED.values(), ids=REFUSED.keys())
def test_what_is_refused_names_its_field(x: Any, field: str) -> None:
    with pytest.raises(EventError) as refusal:
        Features().admit(x)
    assert refusal.value.field == field
    assert str(refusal.value) == f"{field}: {refusal.value.message}"
    assert len(str(refusal.value)) < 250  # it does not echo the body


@pytest.mark.parametrize(("x", "field"), REFUSED.values(), ids=REFUSED.keys())
def test_what_cannot_be_learned_cannot_be_predicted_from_either(x: Any, field: str) -> None:
    with pytest.raises(EventError) as refusal:
        Features().encode(x)
    assert refusal.value.field == field


def test_what_is_within_the_limits_is_taken() -> None:
    x = {LONGEST: 1e100, "a": "v" * 256, "é" * 256: -1e100, LONGEST[:-1] + "m": "w" * 256}
    assert len(encoded(Features(), x)) == 4


@pytest.mark.parametrize("name", ["a=b", "=", "a=", "=b", "a=b=c"])
def test_a_name_with_an_equals_sign_may_have_the_longest_string_value(name: str) -> None:
    value = "v" * 256
    assert encoded(Features(), {name: value}) == {f"{name}={value}": 1.0}


def test_max_value_is_the_largest_magnitude_and_includes_itself() -> None:
    features = Features(max_value=10.0)
    assert encoded(features, {"a": 10.0, "b": -10.0}) == {"a": 10.0, "b": -10.0}
    for value in (math.nextafter(10.0, 11.0), -math.nextafter(10.0, 11.0)):
        with pytest.raises(EventError) as refusal:
            features.admit({"a": 1.0, "c": value})
        assert refusal.value.field == "x.c"
        assert "±10" in refusal.value.message
    assert features.names == ["a", "b"]


def test_an_event_with_one_feature_too_many_is_refused_whole() -> None:
    builder = BatchBuilder(Features(max_features=3, overflow="refuse"))
    builder.add({"a": 1.0, "b": 2.0}, 1)
    with pytest.raises(EventError) as refusal:
        builder.add({"b": 1.0, "c": 1.0, "d": 1.0}, 0)
    assert refusal.value.field == "x"
    assert "max_features" in refusal.value.message
    assert builder.features.names == ["a", "b"]  # c would have had room, but the event is refused whole
    builder.add({"c": 3.0, "a": 1.0}, 0)
    builder.add({"c": 3.0, "b": 1.0}, 1)
    assert builder.build().columns.tolist() == [0, 1, 2, 0, 2, 1]


def left_out_of(batch: Batch) -> list[int]:
    return [0] * len(batch) if batch.left_out is None else batch.left_out.counts.tolist()


def test_features_that_there_is_no_room_for_are_left_out_and_counted() -> None:
    builder = BatchBuilder(Features(max_features=3))
    builder.add({"a": 1.0, "b": 2.0}, 1)
    builder.add({"d": 7.0, "b": 1.0, "c": 1.0, "e": 8.0}, 0)  # the first new one has room, in the event's own order
    builder.add({"e": 3.0}, 0)
    builder.add({"a": 4.0}, 1)
    assert builder.features.names == ["a", "b", "d"]
    batch = builder.build()
    assert batch.offsets.tolist() == [0, 2, 4, 4, 5]
    assert batch.columns.tolist() == [0, 1, 2, 1, 0]
    assert batch.values.tolist() == [1.0, 2.0, 7.0, 1.0, 4.0]
    assert left_out_of(batch) == [0, 2, 1, 0]
    assert [left_out_of(part) for part in batch.slices(2)] == [[0, 2], [1, 0]]


@pytest.mark.parametrize("bad", [{"": 1.0}, {"x" * 257: 1.0}, {"zero\0byte": 1.0}, {"b": math.nan}, {"b": 1e101}])
def test_what_cannot_be_learned_is_refused_where_it_would_be_left_out_too(bad: dict[str, float]) -> None:
    builder = BatchBuilder(Features(max_features=1))
    builder.add({"a": 1.0}, 1)
    with pytest.raises(EventError):
        builder.add({"a": 1.0, **bad}, 1)
    name, value = next(iter(bad.items()))
    with pytest.raises(EventError):
        builder.add_table(["a", name], np.array([[1.0, value]]), None, np.array([1], np.uint8))
    assert len(builder) == 1


def test_an_event_of_which_something_was_left_out_is_told_from_others() -> None:
    """The same event again, in whatever order, has the same fingerprint; one with another user, value or without has
    another, though the model learns the same of all of them."""
    features = Features(max_features=1)
    sent: list[dict[str, Any]] = [
        {"a": 1.0, "user": "u1", "n": 2.0},
        {"n": 2.0, "user": "u1", "a": 1.0},
        {"a": 1.0, "user": "u2", "n": 2.0},
        {"a": 1.0, "user": "u1", "n": 3.0},
        {"a": 1.0, "user": "u1"},
        {"a": 1.0},
    ]
    batch = batch_of(*((x, 1) for x in sent), features=features)
    first, again, *others = fingerprints(batch).tolist()
    assert first == again
    assert len({first, *others}) == 1 + len(others)
    for x, mark in zip(sent, fingerprints(batch).tolist(), strict=True):
        admitted = features.admitted(x)
        assert admitted is not None
        assert fingerprints(Batch.of_one(admitted, 1))[0] == mark


def test_an_event_with_new_features_was_never_learned_while_there_is_room_or_where_it_is_refused() -> None:
    for features in (Features(max_features=2), Features(max_features=1, overflow="refuse")):
        features.admit({"a": 1.0})
        assert features.admitted({"a": 1.0, "b": 1.0}) is None


def test_a_full_model_predicts_for_events_with_other_features() -> None:
    features = Features(max_features=1)
    features.admit({"a": 1.0})
    assert list(features.encode({"b": 2.0, "a": 1.0, "c": 3.0})[0]) == [-1, 0, -1]
    assert features.names == ["a"]


@pytest.mark.parametrize("y", [2, -1, 0.7, math.nan, math.inf, "1", None, [], pytest.param(HUGE, id="huge")])
def test_a_label_is_zero_or_one(y: Any) -> None:
    builder = BatchBuilder(Features())
    with pytest.raises(EventError) as refusal:
        builder.add({"new": 1.0}, y)
    assert refusal.value.field == "y"
    assert (len(builder), builder.features.names) == (0, [])


def test_true_and_false_are_labels_too() -> None:
    assert batch_of(({}, True), ({}, False), ({}, 1.0), ({}, 0)).labels.tolist() == [1, 0, 1, 0]


@pytest.mark.parametrize("weight", [0, 0.0, -1.0, math.nan, math.inf, -math.inf, pytest.param(HUGE, id="huge")])
def test_a_sample_weight_is_a_number_above_zero(weight: float) -> None:
    builder = BatchBuilder(Features())
    with pytest.raises(EventError) as refusal:
        builder.add({"new": 1.0}, 1, weight)
    assert refusal.value.field == "weight"
    assert (len(builder), builder.features.names) == (0, [])


def test_unknown_names_add_nothing_to_a_prediction_and_register_nothing() -> None:
    learner = Learner(Spec(learning_rate=0.5))
    learner.learn_one({"a": 1.0, "city": "Rome"}, 1)
    known: dict[str, Value] = {"a": 0.3, "city": "Rome"}
    p = learner.predict_proba_one(known)
    assert learner.predict_proba_one({"new": 1e100, **known, "other": "text", "town": True}) == p
    assert learner.predict_proba_one({"new": 1e100}) == learner.predict_proba_one({})
    assert learner.features.names == ["a", "city=Rome"]


# -- hashing


def bucket(name: str, bits: int) -> str:
    """The definition, a second time."""
    return "#" + format(zlib.crc32(name.encode()) % 2**bits, "x")


def test_a_hashed_name_is_its_crc_32_in_hexadecimal() -> None:
    # 0xcbf43926 is the published check value of CRC-32.
    assert encoded(Features(hash_bits=30), {"123456789": 1.5}) == {"#bf43926": 1.5}
    assert encoded(Features(hash_bits=8), {"123456789": 1.5}) == {"#26": 1.5}
    assert encoded(Features(hash_bits=1), {"123456789": 1.5}) == {"#0": 1.5}


def test_names_beyond_ascii_are_hashed_as_utf_8() -> None:
    assert encoded(Features(hash_bits=20), {"größe": 2.0}) == {bucket("größe", 20): 2.0}


@pytest.mark.parametrize("bits", [1, 3, 6])
def test_a_hashed_model_never_has_more_than_its_buckets(bits: int) -> None:
    features = Features(hash_bits=bits)
    for i in range(1500):
        features.admit({f"name {i}": 1.0, "user": f"id {i}"})
        assert len(features) <= 2**bits
    assert sorted(features.names) == sorted(f"#{i:x}" for i in range(2**bits))  # and all are used


def test_hashing_makes_max_features_the_number_of_buckets() -> None:
    features = Features(max_features=2, hash_bits=4)
    assert features.max_features == 16
    for i in range(100):
        features.admit({str(i): 1.0})
    assert len(features) == 16


def test_features_of_one_event_that_meet_in_one_bucket_are_summed() -> None:
    x = {"a": 1.0, "b": 20.0, "c": 300.0, "d": "text", "e": True}
    expected: dict[str, float] = {}
    for name, value in {"a": 1.0, "b": 20.0, "c": 300.0, "d=text": 1.0, "e": 1.0}.items():
        expected[bucket(name, 1)] = expected.get(bucket(name, 1), 0.0) + value
    assert len(expected) == 2  # they do meet
    assert encoded(Features(hash_bits=1), x) == expected


def test_numbers_and_text_have_hashes_of_their_own_where_text_is_apart() -> None:
    features = Features(hash_bits=3, text_apart=True)
    assert features.max_features == 16
    assert encoded(features, {"12345": "789"}) == {f"={zlib.crc32(b'12345=789') % 8:x}": 1.0}
    for i in range(300):
        x = {f"number {i}": 2.0, "user": f"id {i}"}
        assert encoded(features, x) == {bucket(f"number {i}", 3): 2.0, "=" + bucket(f"user=id {i}", 3)[1:]: 1.0}
    assert sorted(features.names) == sorted(f"{kind}{i}" for i in range(8) for kind in "#=")


def test_a_model_that_scales_hashes_text_apart_and_no_other() -> None:
    x = {"a": 1.0, "city": "Rome"}
    names = {scale: set(encoded(Learner(Spec(scale=scale, hash_bits=20)).features, x)) for scale in ("none", "maxabs")}
    assert {name[0] for name in names["none"]} == {"#"}
    assert {name[0] for name in names["maxabs"]} == {"#", "="}


def test_hashing_is_the_same_for_every_model_and_every_order_of_events() -> None:
    names = [f"name {i}" for i in range(50)]
    one, other = Features(hash_bits=5), Features(hash_bits=5)
    ones = {name: encoded(one, {name: 1.0}) for name in names}
    others = {name: encoded(other, {name: 1.0}) for name in reversed(names)}
    assert ones == others


def test_an_array_is_hashed_by_position() -> None:
    assert encoded(Features(hash_bits=16), [2.0, 3.0]) == encoded(Features(hash_bits=16), {"0": 2.0, "1": 3.0})
    assert encoded(Features(hash_bits=16), [2.0]) == {bucket("0", 16): 2.0}


def test_a_hashed_name_that_is_not_known_registers_nothing_when_predicting() -> None:
    features = Features(hash_bits=16)
    features.admit({"a": 1.0})
    assert list(features.encode({"b": 2.0, "a": 1.0})[0]) == [-1, 0]
    assert features.names == [bucket("a", 16)]


def test_a_hashed_model_equals_river_on_the_summed_features() -> None:
    numbers = random.Random(4)
    ours = Learner(Spec(learning_rate=0.07, hash_bits=3))
    theirs = linear_model.LogisticRegression(optim.SGD(0.07), intercept_lr=0.07)
    for _ in range(500):
        x = {f"name {numbers.randrange(60)}": numbers.gauss(0, 1) for _ in range(numbers.randrange(9))}
        summed: dict[str, float] = {}
        for name, value in x.items():
            summed[bucket(name, 3)] = summed.get(bucket(name, 3), 0.0) + value
        y = numbers.randrange(2)
        assert ours.predict_proba_one(x) == theirs.predict_proba_one(summed)
        ours.learn_one(x, y)
        theirs.learn_one(summed, y)
    assert ours.weights_by_name() == theirs.weights
    assert ours.bias == theirs.intercept
    assert len(theirs.weights) == 8


# -- batches

NAMES = st.sampled_from(["a", "b", "c", "d", "city", "größe", "0", "1"])
XS = st.one_of(
    st.dictionaries(NAMES, st.one_of(st.floats(-1e100, 1e100), st.booleans(), st.sampled_from(["x", "y"])), max_size=5),
    st.lists(st.floats(-1e100, 1e100), max_size=4),
)
EVENTS = st.lists(st.tuples(XS, st.integers(0, 1), st.floats(1e-6, 1e6)), max_size=12)


def test_a_batch_is_the_arrays_that_the_kernels_take() -> None:
    batch = batch_of(({"a": 2.0, "b": "x"}, 1), ({}, 0, 0.5), ([3.0], 0, 2.0))
    assert len(batch) == 3
    assert (batch.offsets.tolist(), batch.offsets.dtype) == ([0, 2, 2, 3], np.dtype(np.int64))
    assert (batch.columns.tolist(), batch.columns.dtype) == ([0, 1, 2], np.dtype(np.int32))
    assert (batch.values.tolist(), batch.values.dtype) == ([2.0, 1.0, 3.0], np.dtype(np.float64))
    assert (batch.labels.tolist(), batch.labels.dtype) == ([1, 0, 0], np.dtype(np.uint8))
    assert (batch.weights.tolist(), batch.weights.dtype) == ([1.0, 0.5, 2.0], np.dtype(np.float64))


def test_a_batch_without_events_has_the_same_types() -> None:
    batch = batch_of()
    assert len(batch) == 0
    assert batch.offsets.tolist() == [0]
    dtypes = [getattr(batch, name).dtype for name in arrays_of(batch)]
    assert dtypes == [np.int64, np.int32, np.float64, np.uint8, np.float64]


def test_a_builder_knows_which_names_its_events_brought() -> None:
    features = Features()
    features.columns_of(["old"], add=True)
    builder = BatchBuilder(features)
    builder.add({"new": 1.0, "old": 2.0}, 1)
    builder.add({"newer": 1.0, "new": 2.0}, 1)
    assert builder.new_names() == ["new", "newer"]


@examples(60)
@given(EVENTS, EVENTS, st.sampled_from([None, 2]))
def test_what_is_taken_back_leaves_no_trace(
    kept: Sequence[tuple[Any, int, float]], taken_back: Sequence[tuple[Any, int, float]], hash_bits: int | None
) -> None:
    builder = BatchBuilder(Features(hash_bits=hash_bits))
    for event in kept:
        builder.add(*event)
    mark = builder.mark()
    for event in taken_back:
        builder.add(*event)
    builder.take_back(mark)
    other = BatchBuilder(Features(hash_bits=hash_bits))
    for event in kept:
        other.add(*event)
    assert builder.features.names == other.features.names
    assert builder.new_names() == other.new_names()
    for event in taken_back:  # both go on alike
        builder.add(*event)
        other.add(*event)
    assert_same_batch(builder.build(), other.build())
    assert builder.features.names == other.features.names


@examples(60)
@given(EVENTS.filter(bool), st.integers(1, 15))
def test_slices_concatenated_are_the_batch_again(events: Sequence[tuple[Any, int, float]], size: int) -> None:
    batch = batch_of(*events)
    slices = list(batch.slices(size))
    assert [len(piece) for piece in slices[:-1]] == [size] * (len(slices) - 1)
    assert 1 <= len(slices[-1]) <= size
    assert_same_batch(Batch.concatenate(slices), batch)


@examples(60)
@given(EVENTS.filter(bool), st.integers(1, 15))
def test_a_slice_is_a_batch_of_its_events(events: Sequence[tuple[Any, int, float]], size: int) -> None:
    features = Features()
    whole = batch_of(*events, features=features)
    for i, piece in enumerate(whole.slices(size)):
        assert_same_batch(piece, batch_of(*events[i * size : (i + 1) * size], features=features))


@examples(60)
@given(st.lists(EVENTS, min_size=1, max_size=4))
def test_batches_concatenated_are_one_batch_of_all_their_events(pieces: list[list[tuple[Any, int, float]]]) -> None:
    features = Features()
    batches = [batch_of(*events, features=features) for events in pieces]
    together = batch_of(*[event for events in pieces for event in events], features=features)
    assert_same_batch(Batch.concatenate(batches), together)


def test_a_batch_without_events_has_no_slices() -> None:
    assert list(batch_of().slices(3)) == []


def test_slices_do_not_copy_the_features() -> None:
    batch = batch_of(*[({"a": float(i), "b": 1.0}, 1) for i in range(10)])
    for piece in batch.slices(3):
        assert np.shares_memory(piece.values, batch.values)
        assert np.shares_memory(piece.columns, batch.columns)


@examples(30)
@given(EVENTS.filter(bool), st.integers(1, 5))
def test_slices_learn_what_the_batch_learns(events: Sequence[tuple[Any, int, float]], size: int) -> None:
    whole, sliced = Learner(), Learner()
    whole.learn_batch(batch_of(*events, features=whole.features))
    for piece in batch_of(*events, features=sliced.features).slices(size):
        sliced.learn_batch(piece)
    assert whole.sha256() == sliced.sha256()


# -- fingerprints


@examples(60)
@given(st.dictionaries(NAMES, st.floats(-1e100, 1e100), min_size=1), st.integers(0, 1), st.floats(1e-6, 1e6), st.data())
def test_the_order_of_an_events_features_does_not_count_for_its_fingerprint(
    x: dict[str, float], y: int, weight: float, data: st.DataObject
) -> None:
    shuffled = {name: x[name] for name in data.draw(st.permutations(list(x)))}
    first, second = fingerprints(batch_of((x, y, weight), (shuffled, y, weight)))
    assert first == second


VARIATIONS: dict[str, tuple[Any, int, float]] = {
    "the event": ({"a": 1.0, "b": 2.0}, 1, 1.0),
    "another label": ({"a": 1.0, "b": 2.0}, 0, 1.0),
    "another weight": ({"a": 1.0, "b": 2.0}, 1, 2.0),
    "the next weight": ({"a": 1.0, "b": 2.0}, 1, math.nextafter(1.0, 2.0)),
    "the next weight and another label": ({"a": 1.0, "b": 2.0}, 0, math.nextafter(1.0, 2.0)),
    "another value": ({"a": 1.0, "b": 3.0}, 1, 1.0),
    "the next value": ({"a": 1.0, "b": math.nextafter(2.0, 3.0)}, 1, 1.0),
    "another sign": ({"a": 1.0, "b": -2.0}, 1, 1.0),
    "values exchanged": ({"a": 2.0, "b": 1.0}, 1, 1.0),
    "another feature": ({"a": 1.0, "c": 2.0}, 1, 1.0),
    "one feature less": ({"a": 1.0}, 1, 1.0),
    "one feature of value 0 more": ({"a": 1.0, "b": 2.0, "c": 0.0}, 1, 1.0),
    "no features": ({}, 1, 1.0),
    "no features and another label": ({}, 0, 1.0),
    "a feature of value 0": ({"a": 0.0}, 1, 1.0),
    "another feature of value 0": ({"b": 0.0}, 1, 1.0),
    "two features of one value": ({"a": 1.0, "b": 1.0}, 1, 1.0),
    "two other features of one value": ({"c": 1.0, "d": 1.0}, 1, 1.0),
    "text": ({"a": 1.0, "b": "2"}, 1, 1.0),
}


@pytest.mark.parametrize("one", VARIATIONS)
def test_everything_but_the_order_counts_for_a_fingerprint(one: str) -> None:
    prints = dict(zip(VARIATIONS, fingerprints(batch_of(*VARIATIONS.values())).tolist(), strict=True))
    assert [other for other in prints if prints[other] == prints[one]] == [one]


def test_a_fingerprint_depends_on_the_event_and_not_on_its_place_in_the_batch() -> None:
    features = Features()
    events = [({"a": float(i), "b": -1.0}, i % 2, 1.0 + i) for i in range(10)]
    together = fingerprints(batch_of(*events, features=features)).tolist()
    assert together == [fingerprints(batch_of(event, features=features)).tolist()[0] for event in events]
    assert len(set(together)) == 10


def test_zero_and_minus_zero_are_one_value_to_a_fingerprint_and_the_batch_is_left_alone() -> None:
    batch = batch_of(({"a": 0.0}, 1), ({"a": -0.0}, 1))
    first, second = fingerprints(batch)
    assert first == second
    assert math.copysign(1.0, batch.values[1]) == -1.0


def test_fingerprints_of_many_similar_events_are_all_different() -> None:
    features, events = Features(), []
    for i in range(40):
        for j in range(40):
            events += [({"a": float(i), "b": float(j)}, y, 1.0) for y in (0, 1)]
    assert len(set(fingerprints(batch_of(*events, features=features)).tolist())) == len(events)


def test_fingerprints_of_no_events_are_none() -> None:
    assert fingerprints(batch_of()).tolist() == []
