"""Bytes <-> events: JSON and NDJSON.

msgspec checks the shape while it reads, which costs nothing extra. Only when it finds something wrong is the event
read again, slowly, to name the field.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any, TypeVar

import msgspec

from service import errors

MAX_ID = 256


class Event(msgspec.Struct, forbid_unknown_fields=True, gc=False):
    """A labelled event, as `/learn` takes it."""

    x: dict[str, float | bool | str] | list[float | bool]
    y: float | bool
    id: str | None = None
    weight: float = 1.0


class Label(msgspec.Struct, forbid_unknown_fields=True, gc=False):
    """A label that comes after its features: of the prediction that was served under the id."""

    id: str
    y: float | bool
    weight: float = 1.0


class Question(msgspec.Struct, forbid_unknown_fields=True, gc=False):
    """What to predict, as `/predict` takes it. With an id it is kept until its label comes."""

    x: dict[str, float | bool | str] | list[float | bool]
    id: str | None = None


class Explain(msgspec.Struct, forbid_unknown_fields=True, gc=False):
    """What to explain, as `/explain` takes it: x, or the id of a prediction that waits for its label."""

    x: dict[str, float | bool | str] | list[float | bool] | None = None
    id: str | None = None


class Learned(msgspec.Struct, gc=False):
    """The reply to one learned event."""

    model: str
    seq: int
    p: float | None
    loss: float | None
    duplicate: bool


class LearnedLate(Learned, gc=False):
    """The reply to a label that came after its features. late: whether it corrects a 0 that was learned meanwhile."""

    served_p: float | None
    served_loss: float | None
    delay_s: float | None
    late: bool


class LearnedMany(msgspec.Struct):
    """The reply to a stream of learned events."""

    model: str
    learned: int
    duplicates: int
    first_seq: int | None
    last_seq: int | None
    loss: float | None


class LearnedManyLate(LearnedMany):
    """The same, where labels were in the stream that came after their features."""

    joined: int
    late: int
    served_loss: float | None


class Predicted(msgspec.Struct):
    """The reply to one prediction."""

    model: str
    p: float
    y: bool
    seq: int


class PredictedKept(Predicted):
    """The reply to a prediction with an id. kept: whether it waits for its label; not, where too many do."""

    kept: bool
    duplicate: bool


Body = TypeVar("Body", Event, Label, Question, Explain)

_encode = msgspec.json.Encoder().encode


def encode(reply: Any) -> bytes:
    """A reply as a line of JSON; a float as the shortest text that reads back to the same float."""
    return _encode(reply) + b"\n"  # else the prompt of who uses curl stands behind the reply


_pieces = msgspec.json.Decoder(list[msgspec.Raw])
_event = msgspec.json.Decoder(Event)
_label = msgspec.json.Decoder(Label)
_explain = msgspec.json.Decoder(Explain)
_question = msgspec.json.Decoder(Question)


def decode_event(data: bytes | msgspec.Raw, at: str = "") -> Event:
    """One event, with its features. `at` says where it stands, for the message: "[3]" or "line 7"."""
    event = _decode(_event, data, at)
    if event.id is not None:
        _check_id(event.id, at)
    return event


def decode_learn(data: bytes | msgspec.Raw, at: str = "") -> Event | Label:
    """What `/learn` takes: an event, or a label without features."""
    data = bytes(data)
    found: Event | Label
    try:
        found = _event.decode(data) if b'"x"' in data else _label.decode(data)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        # It is wrong, or the bytes deceived: an id "x", a name with escapes.
        found = _label.decode(data) if _is(data, Label) else _decode(_event, data, at)
    if found.id is not None:
        _check_id(found.id, at)
    return found


def decode_question(data: bytes | msgspec.Raw, at: str = "") -> Question:
    """One question of `/predict`."""
    question = _decode(_question, data, at)
    if question.id is not None:
        _check_id(question.id, at)
    return question


def decode_explain(data: bytes) -> Explain:
    """The body of `/explain`."""
    asked = _decode(_explain, data, "")
    if (asked.x is None) == (asked.id is None):
        reason = 'must be an object with either x or id, like {"x": {"age": 31}} or {"id": "imp-7"}'
        raise errors.InvalidEvent(field="body", reason=reason)
    if asked.id is not None:
        _check_id(asked.id, "")
    return asked


def _check_id(id_: str, at: str) -> None:
    if not 0 < len(id_) <= MAX_ID or "\0" in id_:
        raise errors.InvalidEvent(field=path(at, "id"), reason=f"must have 1 to {MAX_ID} characters, none a zero byte")


def is_array(body: bytes) -> bool:
    """Whether a JSON body is an array."""
    return body.lstrip(b" \t\r\n")[:1] == b"["


def split_array(body: bytes) -> list[msgspec.Raw]:
    """The elements of a JSON array, still as bytes."""
    try:
        return _pieces.decode(body)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise malformed(error, "", body) from None


# -- what is wrong, and where


def _decode(decoder: msgspec.json.Decoder[Body], data: bytes | msgspec.Raw, at: str) -> Body:
    try:
        return decoder.decode(data)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise _diagnose(error, decoder.type, bytes(data), at) from None


def path(at: str, field: str) -> str:
    """The path of a field: "y", "[3].y", or "line 7: y"."""
    return field if not at else f"{at}.{field}" if at.startswith("[") else f"{at}: {field}"


_NO_NUMBER = re.compile(rb'(?<![\w"])[-+]?(?:nan|inf(?:inity)?)(?![\w"])', re.IGNORECASE)
_PLACE = re.compile(r"\(byte (\d+)\)")


def malformed(error: Exception, at: str, data: bytes, what: str = "feature") -> errors.MalformedJson:
    """The error for bytes that are no JSON. `what` may be left out where it has no value."""
    reason = str(error)
    if no_number := _no_number(reason, data):
        reason = f"JSON has no {no_number}; leave out a {what} that has no value"
    if b"\\ud" in data.lower() and "truncated" in reason:
        reason = "it has half of a surrogate pair"
    if isinstance(error, RecursionError):
        reason = "it is nested too deeply"
    elif isinstance(error, UnicodeDecodeError):
        reason = "it is not UTF-8"
    where = f"{at} " if at else "The body "
    return errors.MalformedJson(where=where, reason=reason.removeprefix("JSON is malformed: "))


def _no_number(reason: str, data: bytes) -> str | None:
    """The NaN or infinity that msgspec found, if that is what it tells of."""
    place = _PLACE.search(reason)
    if place is None:
        return None
    at = int(place[1])  # "nan" is taken for a damaged null, which has one more character
    found = _NO_NUMBER.search(data, max(0, at - len("nan") - 1))
    return found[0].decode() if found is not None and found.start() <= at <= found.end() + 1 else None


def _diagnose(error: Exception, shape: Any, data: bytes, at: str) -> errors.OnestepError:
    """The error that names the first field that is wrong."""
    if not isinstance(error, msgspec.ValidationError):
        return malformed(error, at, data)
    try:
        fields = msgspec.json.decode(data, type=dict[str, msgspec.Raw])
    except msgspec.ValidationError:
        return errors.InvalidEvent(field=at or "body", reason='must be an object like {"x": {"age": 31}, "y": 1}')
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as wrong:
        return malformed(wrong, at, data)
    if shape is Event and "x" not in fields and "id" in fields:
        shape = Label  # that was meant
    for field, reason in _wrong_fields(fields, shape):
        return errors.InvalidEvent(field=path(at, field), reason=reason)
    return errors.InvalidEvent(field=at or "body", reason=str(error))


def out_of_range(body: bytes) -> str:
    """The first field of a JSON object whose value has a number that no float64 can hold; else "body"."""
    try:
        fields = msgspec.json.decode(body, type=dict[str, msgspec.Raw])
    except msgspec.ValidationError:
        return "body"
    return next((name[:100] for name, value in fields.items() if not _is(value, Any)), "body")


_NO_X = "is missing; only a label for a prediction that was served with an id has none, and it has that id"


def _wrong_fields(fields: dict[str, msgspec.Raw], shape: Any) -> Iterator[tuple[str, str]]:
    known = {field.name: field for field in msgspec.structs.fields(shape)}
    for name in fields:
        if name not in known:
            yield name[:64], f"is not a field; the fields are {', '.join(known)}"
    for name, field in known.items():
        if name not in fields:
            if field.required:
                yield name, "is missing" if name != "x" or "y" not in fields else _NO_X
        elif name == "x":
            yield from _wrong_features(fields["x"])
        elif not _is(fields[name], field.type):
            yield (
                name,
                {
                    "y": "must be 0, 1, true or false",
                    "id": f"must be a string of 1 to {MAX_ID} characters",
                    "weight": "must be a number above 0",
                }[name],
            )


def _wrong_features(x: msgspec.Raw) -> Iterator[tuple[str, str]]:
    try:
        features: dict[str, msgspec.Raw] = msgspec.json.decode(x, type=dict[str, msgspec.Raw])
    except msgspec.ValidationError:
        try:
            elements = msgspec.json.decode(x, type=list[msgspec.Raw])
        except msgspec.ValidationError:
            yield "x", "must be an object of features or an array of numbers"
            return
        for i, element in enumerate(elements):
            if not _is(element, float | bool):
                yield f"x[{i}]", "must be a finite number"
        return
    for name, value in features.items():
        if not _is(value, float | bool | str):
            yield f"x.{name[:64]}", "must be a finite number, a string, true or false"


def _is(data: bytes | msgspec.Raw, kind: Any) -> bool:
    try:
        msgspec.json.decode(data, type=kind)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        return False
    return True
