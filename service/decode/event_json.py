"""Decodes events: JSON and lines of NDJSON.

msgspec checks the shape while it reads, at no extra cost. Only a wrong event is read again, slowly, to name the field.

A call of msgspec keeps the GIL until it returns. So long bodies are cut first (outline.py) and decoded piece by
piece. This still takes long: callers decode an event of more than WIDE_BYTES in a thread.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import partial
from typing import Any, TypeVar

import msgspec

from core.builder import NO_LABEL
from service import errors
from service.decode.outline import PIECE_BYTES, Outline
from service.events import MAX_ID, NO_ID, NO_WEIGHT, Event, Explain, Features, Label, Named, Numbers, Question, is_id
from service.problem import path_of

WIDE_BYTES = PIECE_BYTES
"""An event of more bytes is decoded in pieces."""
LONG_BYTES = 2**18
"""An array of more bytes is split in pieces."""

Asked = TypeVar("Asked", bound=Event | Label | Question | Explain)

_pieces = msgspec.json.Decoder(list[msgspec.Raw])
_event = msgspec.json.Decoder(Event)
_label = msgspec.json.Decoder(Label)
_explain = msgspec.json.Decoder(Explain)
_question = msgspec.json.Decoder(Question)
_features = msgspec.json.Decoder(Named)
_numbers = msgspec.json.Decoder(Numbers)


def _asked(decoder: msgspec.json.Decoder[Asked], data: bytes | msgspec.Raw, at: str = "") -> Asked:
    """Decode one item. `at` is its place, for error messages: "[3]" or "line 7"."""
    short = len(data) <= WIDE_BYTES
    asked = _decode(decoder, data, at) if short else _in_pieces(partial(_decode, decoder), bytes(data), at)
    if asked.id is not None:
        _check_id(asked, at)
    return asked


decode_event = partial(_asked, _event)
"""Decode one event with features."""
decode_question = partial(_asked, _question)
"""Decode one item for `/predict`."""


def decode_learn(data: bytes | msgspec.Raw, at: str = "") -> Event | Label:
    """Decode one item for `/learn`: an event, or a label without features."""
    data = bytes(data)
    found = _event_or_label(data, at) if len(data) <= WIDE_BYTES else _in_pieces(_event_or_label, data, at)
    if found.id is not None:
        _check_id(found, at)
    return found


def _event_or_label(data: bytes, at: str) -> Event | Label:
    try:
        return _event.decode(data) if b'"x"' in data else _label.decode(data)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        # It is invalid, or the test for "x" misled: the id is "x", or a name has escapes.
        return _label.decode(data) if _is(data, Label) else _decode(_event, data, at)


def decode_explain(data: bytes) -> Explain:
    """Decode the body of `/explain`."""
    asked = _asked(_explain, data)
    if (asked.x is None) == (asked.id is None):
        reason = 'must be an object with either x or id, like {"x": {"age": 31}} or {"id": "imp-7"}'
        raise errors.InvalidEvent(field="body", reason=reason)
    return asked


def _check_id(found: Event | Label | Question | Explain, at: str) -> None:
    """Make an id that is a whole number text, and raise InvalidEvent for one that is not valid."""
    if type(found.id) is int:  # type: ignore[comparison-overlap]  # see events.AnId
        found.id = str(found.id)
    if not is_id(found.id):  # type: ignore[arg-type]  # it is not None
        raise errors.InvalidEvent(field=path_of(at, "id"), reason=NO_ID)


def is_array(body: bytes) -> bool:
    """Whether a JSON body is an array."""
    start = _begins(body)
    return body[start : start + 1] == b"["


def _begins(data: bytes, start: int = 0) -> int:
    """The index of the first byte from `start` on that is not white space; the length if there is none."""
    for at in range(start, len(data), PIECE_BYTES):  # in pieces: all at once could take 20 ms
        piece = data[at : at + PIECE_BYTES]
        rest = piece.lstrip(b" \t\r\n")
        if rest:
            return at + len(piece) - len(rest)
    return len(data)


class Elements:
    """The elements of a JSON array as bytes, piece by piece.

    The constructor takes about a nanosecond a byte; `piece` takes long if `is_long`. Raises MalformedJson if the body
    is not an array. In a long array only `piece` finds malformed elements.
    """

    def __init__(self, body: bytes) -> None:
        self._body = body
        self._places = [(0, len(body))]
        self._all = _split(body, 0) if len(body) <= LONG_BYTES else None
        if self._all is None:
            outline = _outlined(body, "")
            self._places = outline.pieces()
        self.count = outline.commas + 1 if self._all is None else len(self._all)

    def __len__(self) -> int:
        """The number of pieces."""
        return len(self._places)

    def is_long(self, i: int) -> bool:
        """Whether decoding piece i takes long, because one of its elements is long."""
        start, end = self._places[i]
        return end - start > LONG_BYTES

    def piece(self, i: int) -> list[msgspec.Raw]:
        """The elements of piece i."""
        if self._all is not None:
            return self._all
        start, end = self._places[i]
        elements = _split(b"[%b]" % self._body[start:end], start - 1)
        if not elements and len(self._places) > 1:
            raise _nothing("array", end)
        return elements


def _split(array: bytes, before: int) -> list[msgspec.Raw]:
    """The elements of an array whose text begins after `before` bytes of the body."""
    try:
        return _pieces.decode(array)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise malformed(error, "", array, before=before) from None


# -- long events, piece by piece


def _in_pieces(decode: Callable[[bytes, str], Asked], data: bytes, at: str) -> Asked:
    """Decode a long event: first everything but its features, then these piece by piece."""
    start = _begins(data)
    if data[start : start + 1] != b"{":
        return decode(data, at)
    opens, closes = _outlined(data, at).inner
    if closes - opens <= WIDE_BYTES // 2:  # long for another reason than its features
        return decode(data, at)
    try:
        asked = decode(data[: opens + 1] + data[closes:], at)
    except errors.MalformedJson as wrong:
        raise _shifted(wrong, closes - opens - 1, after=opens + 1) from None
    if isinstance(asked, Label) or asked.x:  # it has two x, and the short one may be the one that counts
        return decode(data, at)
    asked.x = _long_x(data, opens, at)
    return asked


def _long_x(data: bytes, opens: int, at: str) -> Features:
    """Decode the features that begin at `opens`, piece by piece."""
    named: Named = {}
    numbers: Numbers = []
    by_name = data[opens : opens + 1] == b"{"
    decoder: msgspec.json.Decoder[Any] = _features if by_name else _numbers
    for start, end in Outline.of(data, opens).pieces():
        piece = (b"{%b}" if by_name else b"[%b]") % data[start:end]
        try:
            found = decoder.decode(piece)
        except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
            raise _wrong_piece(error, piece, at, start - 1, len(numbers)) from None
        if not found:
            raise _nothing("object" if by_name else "array", end, at)
        if by_name:
            named.update(found)
        else:
            numbers += found
    return named or numbers


def _wrong_piece(error: Exception, piece: bytes, at: str, before: int, first: int) -> errors.LogstepError:
    """The error in a piece of an event's x that begins after `before` bytes and `first` numbers."""
    if not isinstance(error, msgspec.ValidationError):
        return malformed(error, at, piece, before=before)
    try:
        field, reason = next(_wrong_features(msgspec.Raw(piece), first), ("x", str(error)))
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as wrong:
        return malformed(wrong, at, piece, before=before)
    return errors.InvalidEvent(field=path_of(at, field), reason=reason)


def _outlined(data: bytes, at: str) -> Outline:
    """The outline of an array or object; raises MalformedJson if it does not end or something follows it."""
    outline = Outline.of(data, _begins(data))
    if outline.end < 0:
        raise errors.MalformedJson(where=_where(at), reason="Input data was truncated")
    if data[outline.start] + 2 != data[outline.end]:  # [ and ], { and }: two apart
        raise errors.MalformedJson(where=_where(at), reason=f"invalid character (byte {outline.end})")
    rest = _begins(data, outline.end + 1)
    if rest < len(data):
        raise errors.MalformedJson(where=_where(at), reason=f"trailing characters (byte {rest + 1})")
    return outline


def _nothing(kind: str, end: int, at: str = "") -> errors.MalformedJson:
    """The error for nothing between two commas or after the last."""
    return errors.MalformedJson(where=_where(at), reason=f"trailing comma in {kind} (byte {end})")


# -- errors and their places


def _decode(decoder: msgspec.json.Decoder[Asked], data: bytes | msgspec.Raw, at: str) -> Asked:
    try:
        return decoder.decode(data)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise _diagnose(error, decoder.type, bytes(data), at) from None


_NO_NUMBER = re.compile(rb'(?<![\w"])[-+]?(?:nan|inf(?:inity)?)(?![\w"])', re.IGNORECASE)
_PLACE = re.compile(r"\(byte (\d+)\)")


def malformed(error: Exception, at: str, data: bytes, what: str = "feature", before: int = 0) -> errors.MalformedJson:
    """The error for bytes that are not JSON. what: the thing to leave out if a number is NaN or infinite. before: bytes
    of the body before `data`."""
    reason = str(error)
    if no_number := _no_number(reason, data):
        number = no_number[0].decode()
        reason = f"JSON has no {number}; leave out a {what} without a value (byte {no_number.start()})"
    if b"\\ud" in data.lower() and "truncated" in reason:
        reason = "it has half of a surrogate pair"
    if isinstance(error, RecursionError):
        reason = "it is nested too deeply"
    elif isinstance(error, UnicodeDecodeError) or "UTF-8" in reason:  # as msgspec says it before and since 0.23
        reason = "it is not UTF-8"
    found = errors.MalformedJson(where=_where(at), reason=reason.removeprefix("JSON is malformed: "))
    return _shifted(found, before) if before else found


def _where(at: str) -> str:
    return f"{at} " if at else "The body "


def _shifted(error: errors.MalformedJson, bytes_more: int, after: int = 0) -> errors.MalformedJson:
    """The same error with its byte number moved by `bytes_more`, if it is `after` or more."""

    def moved(place: re.Match[str]) -> str:
        return f"(byte {int(place[1]) + (bytes_more if int(place[1]) >= after else 0)})"

    return replace(error, reason=_PLACE.sub(moved, error.reason))


def _no_number(reason: str, data: bytes) -> re.Match[bytes] | None:
    """The NaN or infinity that msgspec complains about, if it is one."""
    place = _PLACE.search(reason)
    if place is None:
        return None
    at = int(place[1])  # msgspec reads "nan" as a damaged null, which is one character longer
    found = _NO_NUMBER.search(data, max(0, at - len("nan") - 1))
    return found if found is not None and found.start() <= at <= found.end() + 1 else None


def _diagnose(error: Exception, shape: Any, data: bytes, at: str) -> errors.LogstepError:
    """The error that names the first wrong field."""
    if not isinstance(error, msgspec.ValidationError):
        return malformed(error, at, data)
    try:
        fields = _fields(data, at, shape)
    except errors.MalformedJson as wrong:
        return wrong
    except msgspec.ValidationError:
        return errors.InvalidEvent(field=at or "body", reason='must be an object like {"x": {"age": 31}, "y": 1}')
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as wrong:
        return malformed(wrong, at, data)
    if shape is Event and "x" not in fields and "id" in fields:
        shape = Label  # probably meant as a label
    for field, reason in _wrong_fields(fields, shape):
        return errors.InvalidEvent(field=path_of(at, field), reason=reason)
    return errors.InvalidEvent(field=at or "body", reason=str(error))


def _fields(data: bytes, at: str, shape: Any) -> dict[str, msgspec.Raw]:
    """The fields of an object, up to the piece with the first that the shape does not have."""
    fields: dict[str, msgspec.Raw] = {}
    start = _begins(data)
    if len(data) <= WIDE_BYTES or data[start : start + 1] != b"{":
        return msgspec.json.decode(data, type=dict[str, msgspec.Raw])
    for begins, ends in _outlined(data, at).pieces():
        fields.update(msgspec.json.decode(b"{%b}" % data[begins:ends], type=dict[str, msgspec.Raw]))
        if not fields.keys() <= set(shape.__struct_fields__):
            break
    return fields


def out_of_range(body: bytes) -> str:
    """The first field of a JSON object with a number that no float64 can hold; "body" if none is found."""
    try:
        fields = msgspec.json.decode(body, type=dict[str, msgspec.Raw])
    except msgspec.ValidationError:
        return "body"
    return next((name[:100] for name, value in fields.items() if not _is(value, Any)), "body")


_NO_X = "is missing; only the label of a prediction that was served with an id may leave it out, and it needs that id"
_NO_ID = f"must be a string of 1 to {MAX_ID} characters, or a whole number"
_OTHERWISE = {"y": NO_LABEL, "id": _NO_ID, "weight": NO_WEIGHT}


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
            yield name, _OTHERWISE[name]


def _wrong_features(x: msgspec.Raw, first: int = 0) -> Iterator[tuple[str, str]]:
    """`first`: the number of an array's first element."""
    try:
        found = msgspec.json.decode(x, type=dict[str, msgspec.Raw] | list[msgspec.Raw])
    except msgspec.ValidationError:
        yield "x", "must be an object of features or an array of numbers"
        return
    if isinstance(found, dict):
        for name, value in found.items():
            if not _is(value, float | bool | str | None):
                yield f"x.{name[:64]}", "must be a finite number, a string, true, false, or null if there is no value"
        return
    for i, element in enumerate(found, first):
        if not _is(element, float | bool | None):
            yield f"x[{i}]", "must be a finite number, or null if there is no value"


def _is(data: bytes | msgspec.Raw, kind: Any) -> bool:
    try:
        msgspec.json.decode(data, type=kind)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        return False
    return True
