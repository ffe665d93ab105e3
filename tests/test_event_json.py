"""Bytes to events and back: shapes, places in messages, and lines however they arrive."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterator
from typing import Any

import msgspec
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from service import errors
from service.decode import event_json, outline
from service.problem import path_of
from service.replies import Learned, encode

# -- one event


def test_an_event_with_everything() -> None:
    event = event_json.decode_event(b'{"x": {"a": 1, "b": "t", "c": true}, "y": 1, "id": "i", "weight": 2.5}')
    assert (event.x, event.y, event.id, event.weight) == ({"a": 1.0, "b": "t", "c": True}, 1, "i", 2.5)


def test_an_event_with_nothing_but_what_it_must_have() -> None:
    event = event_json.decode_event(b'{"x": [1, 0.5, false], "y": false}')
    assert (event.x, event.y, event.id, event.weight) == ([1.0, 0.5, False], False, None, 1.0)


def test_features_keep_their_order_and_of_one_name_the_last_value_counts() -> None:
    event = event_json.decode_event(b'{"y": 1, "x": {"b": 1, "a": 2, "c": 3, "a": 4}}')
    assert isinstance(event.x, dict)
    assert list(event.x.items()) == [("b", 1.0), ("a", 4.0), ("c", 3.0)]


@given(value=st.floats(allow_nan=False, allow_infinity=False))
@example(value=5e-324)
@example(value=-0.0)
@example(value=0.1 + 0.2)
@example(value=1.7976931348623157e308)
def test_a_number_goes_through_a_reply_and_back_without_losing_a_bit(value: float) -> None:
    reply = encode(Learned("m", 1, value, value, False))
    assert math.copysign(1, json.loads(reply)["p"]) == math.copysign(1, value)
    assert json.loads(reply)["p"] == value
    event = event_json.decode_event(b'{"y": 1, "x": [%b]}' % msgspec.json.encode(value))
    assert event.x == [value]


@pytest.mark.parametrize(
    ("body", "field"),
    [
        (b'{"y": 1}', "x"),
        (b'{"x": {}}', "y"),
        (b'{"x": {"b": null, "a": []}, "y": 1}', "x.a"),
        (b'{"x": {"a": {"b": 1}}, "y": 1}', "x.a"),
        (b'{"x": [1, 2, "c"], "y": 1}', "x[2]"),
        (b'{"x": {}, "y": "1"}', "y"),
        (b'{"x": {}, "y": 1, "id": 1.0}', "id"),
        (b'{"x": {}, "y": 1, "id": ""}', "id"),
        (b'{"x": {}, "y": 1, "weight": "1"}', "weight"),
        (b'{"x": {}, "y": 1, "z": 1}', "z"),
        (b'{"x": {"a": null}, "y": null, "z": 1}', "z"),
    ],
)
@pytest.mark.parametrize(("at", "before"), [("", ""), ("[3]", "[3]."), ("line 7", "line 7: ")])
def test_what_is_wrong_with_an_event_is_told_with_its_place(body: bytes, field: str, at: str, before: str) -> None:
    with pytest.raises(errors.InvalidEvent) as refused:
        event_json.decode_event(body, at)
    assert refused.value.field == before + field
    assert refused.value.problem("an-id")["field"] == before + field
    assert str(refused.value).startswith(f"{before}{field}: ")


@pytest.mark.parametrize("body", [b"5", b"null", b"[]", b'"x"', b"true"])
def test_what_is_no_object_is_told_what_it_should_be(body: bytes) -> None:
    for decode in (event_json.decode_event, event_json.decode_question):
        with pytest.raises(errors.InvalidEvent, match=r'body: must be an object like \{"x"'):
            decode(body)
        with pytest.raises(errors.InvalidEvent, match=r"^line 2: must be an object"):
            decode(body, "line 2")


@pytest.mark.parametrize(
    ("body", "reason"),
    [
        (b"", "truncated"),
        (b'{"x": {}', "truncated"),
        (b'{"x": {}, "y": 1} 2', "trailing"),
        (b'{"x": {"\xff": 1}, "y": 1}', "it is not UTF-8"),
        (b'{"x": ' + b"[" * 10_000, "it is nested too deeply"),
        (b'{"x": ' + b"[" * 100_000, "truncated"),
        (b'{"x": ' + b"[" * 100_000 + b"]" * 100_000 + b', "y": 1}', "it is nested too deeply"),
        (b'{"x": {"a": nan}, "y": 1}', "JSON has no nan"),
    ],
    ids=lambda value: repr(value[:20]),
)
def test_what_is_no_json_is_told_why(body: bytes, reason: str) -> None:
    with pytest.raises(errors.MalformedJson, match=f"^The body is not valid JSON: .*{reason}"):
        event_json.decode_event(body)
    with pytest.raises(errors.MalformedJson, match=f"^line 9 is not valid JSON: .*{reason}"):
        event_json.decode_event(body, "line 9")


@given(body=st.binary(max_size=40) | st.text(alphabet='{}[]":,xyid01.-e \\u', max_size=40).map(str.encode))
def test_whatever_is_decoded_is_an_event_or_an_error_that_says_why(body: bytes) -> None:
    for decode in (event_json.decode_event, event_json.decode_question):
        try:
            decode(body)
        except (errors.InvalidEvent, errors.MalformedJson) as refused:
            assert str(refused)  # noqa: PT017  # whether there is one is what is not known


def test_a_question_has_features_and_perhaps_an_id() -> None:
    assert event_json.decode_question(b'{"x": {"a": 1}}').x == {"a": 1.0}
    assert event_json.decode_question(b'{"x": {"a": 1}, "id": "i"}').id == "i"
    for field in (b'"y": 1', b'"weight": 1'):
        with pytest.raises(errors.InvalidEvent, match="is not a field; the fields are x, id"):
            event_json.decode_question(b'{"x": {}, %b}' % field)


@pytest.mark.parametrize("length", [1, 256])
def test_an_id_has_1_to_256_characters(length: int) -> None:
    assert event_json.decode_event(json.dumps({"x": {}, "y": 1, "id": "é" * length}).encode()).id == "é" * length


@pytest.mark.parametrize("id_", ["", "i" * 257, "a\0b", "\0"], ids=ascii)
def test_an_id_that_cannot_be_one(id_: str) -> None:
    with pytest.raises(errors.InvalidEvent, match=r"^id: must have 1 to 256 characters and no zero byte"):
        event_json.decode_event(json.dumps({"x": {}, "y": 1, "id": id_}).encode())


# -- an array


@pytest.mark.parametrize("body", [b"[]", b" \r\n\t[1]", b"[", b"[[]]"])
def test_an_array_is_known_by_its_first_character(body: bytes) -> None:
    assert event_json.is_array(body)


@pytest.mark.parametrize("body", [b"", b"  ", b"{}", b'"["', b"1[", b"\xef\xbb\xbf[]", b"\x0b[]"], ids=repr)
def test_what_is_no_array(body: bytes) -> None:
    assert not event_json.is_array(body)


def elements_of(body: bytes) -> list[Any]:
    """What stands in an array, split as the service does it."""
    found = event_json.Elements(body)
    return [json.loads(bytes(element)) for i in range(len(found)) for element in found.piece(i)]


elements = st.lists(st.none() | st.integers() | st.text() | st.lists(st.text()))


@given(elements=elements)
def test_an_array_is_split_into_its_elements(elements: list[Any]) -> None:
    body = json.dumps(elements, indent=1).encode()
    assert elements_of(body) == elements
    assert event_json.Elements(body).count == len(elements)


WRONG_ARRAYS = [b"[", b"[1,]", b"[1 2]", b"[1]]", b"[1,,2]", b"[,1]", b"[1}", b'["a]', b"[" * 100_000]


@pytest.mark.parametrize("body", WRONG_ARRAYS, ids=lambda body: repr(body[:9]))
def test_an_array_that_is_none(body: bytes) -> None:
    with pytest.raises(errors.MalformedJson, match=r"^The body is not valid JSON"):
        elements_of(body)


# -- what is long is cut first; the same comes of it as if it were not


@pytest.fixture(scope="module")
def short_pieces() -> Iterator[None]:
    """Cut what is a few bytes long."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(outline, "PIECE_BYTES", 6)
        patch.setattr(event_json, "WIDE_BYTES", 12)
        patch.setattr(event_json, "LONG_BYTES", 12)
        yield


@pytest.mark.usefixtures("short_pieces")
@given(elements=elements, indent=st.sampled_from([None, 1, 40]))
def test_a_long_array_is_split_into_its_elements(elements: list[Any], indent: int | None) -> None:
    body = json.dumps(elements, indent=indent).encode()
    assert elements_of(body) == elements
    assert event_json.Elements(body).count == max(1, len(elements)) or not elements


@pytest.mark.usefixtures("short_pieces")
@pytest.mark.parametrize("body", WRONG_ARRAYS, ids=lambda body: repr(body[:9]))
def test_a_long_array_that_is_none(body: bytes) -> None:
    longer = body[:1] + b"1000000, 1000000, 1000000, 1000000, " + body[1:]
    with pytest.raises(errors.MalformedJson, match=r"^The body is not valid JSON"):
        elements_of(longer)


def outcome(decode: Callable[[bytes, str], Any], body: bytes) -> Any:
    """What comes of a body: the event, or what is told is wrong with it."""
    try:
        return decode(body, "line 7")
    except errors.LogstepError as error:
        return type(error), str(error)


xs = st.dictionaries(st.text(max_size=3), st.floats(-9, 9) | st.booleans() | st.text(max_size=3), max_size=9)
wrong_xs = st.dictionaries(st.text(max_size=3), st.none() | st.lists(st.integers()) | st.floats(-9, 9), max_size=9)
fields = {
    "x": xs | wrong_xs | st.lists(st.floats(-9, 9) | st.booleans() | st.none(), max_size=9),
    "y": st.sampled_from([0, 1, True, "1", [], [1, 2, 3, 4, 5, 6, 7, 8, 9]]),
}
more_fields = {"id": st.sampled_from(["i", 7, "x" * 40]), "weight": st.sampled_from([2.5, "a"]), "z": xs}


@pytest.mark.parametrize("decode", [event_json.decode_event, event_json.decode_learn, event_json.decode_question])
@given(
    event=st.fixed_dictionaries({}, optional={**fields, **more_fields}),
    cut=st.none() | st.integers(0, 99),
    more=st.sampled_from(["", " ", " 1", ", "]),
)
def test_a_long_event_is_decoded_as_a_short_one_is(
    short_pieces: None, decode: Callable[[bytes, str], Any], event: dict[str, Any], cut: int | None, more: str
) -> None:
    body = (json.dumps(event, indent=1)[:cut] + more).encode()
    with pytest.MonkeyPatch.context() as patch:
        found = outcome(decode, body)
        patch.setattr(event_json, "WIDE_BYTES", 10**9)
        expected = outcome(decode, body)
    if isinstance(expected, tuple):  # of several things that are wrong another may be met first
        assert found[0] in (errors.MalformedJson, errors.InvalidEvent)
    else:
        assert found == expected


@pytest.mark.parametrize(
    "rest", [b', "a": 1x, "b": 1}, "y": 1}', b'}, "y": 1x}', b'}, "y": 1} 2', b', }, "y": 1}', b""]
)
def test_a_wrong_byte_of_a_long_event_is_told_with_its_place(rest: bytes) -> None:
    body = b'{"x": {' + b", ".join(b'"f%d": 1' % i for i in range(9_000)) + rest
    with pytest.raises(msgspec.DecodeError) as expected:
        msgspec.json.decode(body)
    with pytest.raises(errors.MalformedJson) as found:
        event_json.decode_event(body)
    assert found.value.reason == str(expected.value).removeprefix("JSON is malformed: ")


@pytest.mark.parametrize("number", ["NaN", "Infinity", "-Infinity", "nan", "-inf"])
@pytest.mark.parametrize("size", [1, 20_000])
def test_a_number_that_json_does_not_have_is_told_with_its_place(size: int, number: str) -> None:
    """However long the body is; in a long array the place is that in the body."""
    features = ", ".join(f'"f{i}": {number if i == size // 2 else i}' for i in range(size))
    event = f'{{"x": {{{features}}}, "y": 1}}'
    array = "[" + ", ".join(event if i == size // 2 else '{"x": {}, "y": 1}' for i in range(size)) + "]"
    told = f"JSON has no {number}; leave out a feature without a value (byte {{}})"
    with pytest.raises(errors.MalformedJson) as wrong:
        event_json.decode_event(event.encode())
    assert wrong.value.reason == told.format(event.index(number))
    with pytest.raises(errors.MalformedJson) as wrong:
        split(array.encode())
    assert wrong.value.reason == told.format(array.index(number))


def split(array: bytes) -> list[msgspec.Raw]:
    elements = event_json.Elements(array)
    return [element for i in range(len(elements)) for element in elements.piece(i)]


def test_of_two_xs_of_a_long_event_the_last_counts() -> None:
    long = json.dumps({f"f{i}": 1 for i in range(9_000)})
    assert event_json.decode_question(b'{"x": %b, "x": {"a": 1}}' % long.encode()).x == {"a": 1.0}
    assert event_json.decode_question(b'{"x": {"a": 1}, "x": %b}' % long.encode()).x == json.loads(long)


def test_places_in_a_body() -> None:
    assert path_of("", "x.a") == "x.a"
    assert path_of("[3]", "x.a") == "[3].x.a"
    assert path_of("line 7", "x.a") == "line 7: x.a"
