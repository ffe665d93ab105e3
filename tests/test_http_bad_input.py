"""What a caller may get wrong: each has its status, says what is wrong, and changes nothing."""

from __future__ import annotations

import json
from typing import Any

import httpx
import pytest
from effort import examples
from harness import JSON, NDJSON, Model, NewModel, Service, assert_problem
from hypothesis import HealthCheck, example, given
from hypothesis import strategies as st


@pytest.fixture
def learned(new_model: NewModel) -> Model:
    """A model that has learned something, so that a change would show."""
    model = new_model()
    assert model.learn([{"x": {"age": 31, "country": "FR"}, "y": 1}, {"x": {"age": 60}, "y": 0}]).status_code == 200
    return model


def post(model: Model, verb: str, body: str | bytes, headers: dict[str, str] = JSON) -> httpx.Response:
    return model.service.http.post(f"{model.path}/{verb}", content=body, headers=headers)


NOT_JSON: dict[str, tuple[str | bytes, str]] = {
    "empty body": (b"", "truncated"),
    "white space": (b" \r\n ", "truncated"),
    "cut": (b'{"x": {"age": 1}, "y": 1', "truncated"),
    "cut in a string": (b'{"x": {"ag', "truncated"),
    "two documents": (b'{"x": {}, "y": 1}{"x": {}, "y": 1}', "trailing characters"),
    "NaN": (b'{"x": {"age": NaN}, "y": 1}', "JSON has no NaN; leave out a feature"),
    "Infinity": (b'{"x": {"age": Infinity}, "y": 1}', "JSON has no Infinity; leave out a feature"),
    "-Infinity": (b'{"x": {"age": -Infinity}, "y": 1}', "JSON has no -Infinity; leave out a feature"),
    "NaN as y": (b'{"x": {"age": 1}, "y": NaN}', "JSON has no NaN"),
    "NaN in a string, and a mistake": (b'{"x": {"NaN": "NaN", "b": ]}', "invalid character"),
    "single quotes": (b"{'x': {}, 'y': 1}", "malformed"),
    "invalid UTF-8 in a name": (b'{"x": {"a\xff": 1}, "y": 1}', "UTF-8"),
    "invalid UTF-8 in a value": (b'{"x": {"a": "\xc3\x28"}, "y": 1}', "UTF-8"),
    "lone surrogate in a name": (rb'{"x": {"\ud800": 1}, "y": 1}', "surrogate"),
    "lone surrogate in a value": (rb'{"x": {"a": "\ud800"}, "y": 1}', "surrogate"),
    "lone low surrogate": (rb'{"x": {"a": "\udc00"}, "y": 1}', "surrogate"),
    "nested in x": (b'{"x": ' + b"[" * 10_000 + b"]" * 10_000 + b', "y": 1}', "nested too deeply"),
    "nested in a value": (b'{"x": {"a": ' + b"[" * 10_000 + b"]" * 10_000 + b'}, "y": 1}', "nested too deeply"),
    "nested arrays": (b"[" * 10_000 + b"]" * 10_000, "nested too deeply"),
    "nested objects": (b'{"x":' * 5_000 + b"1" + b"}" * 5_000, "nested too deeply"),
    "nested in an unknown field": (b'{"z": ' + b"[" * 10_000 + b"]" * 10_000 + b"}", "nested too deeply"),
    "two byte order marks": (b'\xef\xbb\xbf\xef\xbb\xbf{"x": {}, "y": 1}', "invalid character"),
    "a byte order mark inside": (b'{"x": \xef\xbb\xbf{}, "y": 1}', "invalid character"),
    "cut array": (b'[{"x": {}, "y": 1}', "truncated"),
    "text": (b"hello", "invalid character"),
}


@pytest.mark.parametrize("verb", ["learn", "predict"])
@pytest.mark.parametrize(("body", "detail"), NOT_JSON.values(), ids=NOT_JSON)
def test_what_is_no_json_is_400(learned: Model, verb: str, body: bytes, detail: str) -> None:
    before = learned.mark()
    problem = assert_problem(post(learned, verb, body), 400, "is not valid JSON")
    if detail != "malformed":
        assert detail in problem["detail"]
    assert learned.mark() == before


WRONG_X: dict[str, tuple[str, str, str]] = {
    "x missing": ("", "x", "is missing"),
    "x null": ("null", "x", "must be an object"),
    "x a string": ('"age"', "x", "must be an object"),
    "x a number": ("5", "x", "must be an object"),
    "x a boolean": ("true", "x", "must be an object"),
    "value an object": ('{"age": {}}', "x.age", "must be a finite number"),
    "value a list": ('{"age": [1]}', "x.age", "must be a finite number"),
    "value in an array after a null": ('[null, "a"]', "x[1]", "must be a finite number"),
    "name of a null empty": ('{"": null}', "x", "must not be empty"),
    "value in an array a string": ('[1, "a"]', "x[1]", "must be a finite number"),
    "value in an array a list": ("[[1]]", "x[0]", "must be a finite number"),
    "1e999": ('{"age": 1e999}', "x.age", "must be a finite number"),
    "-1e999": ("[-1e999]", "x[0]", "must be a finite number"),
    "5,000 digits": ('{"age": ' + "9" * 5_000 + "}", "x.age", "must be a finite number"),
    "beyond 1e100": ('{"age": 1.1e100}', "x.age", "within ±1e+100"),
    "beyond -1e100": ('{"age": -1e101}', "x.age", "within ±1e+100"),
    "beyond 1e100 in an array": ("[0, 1e200]", "x[1]", "within ±1e+100"),
    "name empty": ('{"": 1}', "x", "must not be empty"),
    "name of a string value empty": ('{"": "FR"}', "x", "must not be empty"),
    "name of 257 characters": ('{"' + "n" * 257 + '": 1}', "x.nnn", "at most 256 characters"),
    "name of a string value of 257 characters": ('{"' + "n" * 257 + '": "FR"}', "x.nnn", "at most 256 characters"),
    "string value of 257 characters": ('{"age": "' + "v" * 257 + '"}', "x.age", "at most 256 characters"),
    "zero byte in a name": (r'{"a\u0000b": 1}', "x", "zero byte"),
    "zero byte in a string value": (r'{"age": "a\u0000b"}', "x", "zero byte"),
}


@pytest.mark.parametrize("verb", ["learn", "predict"])
@pytest.mark.parametrize(("x", "field", "detail"), WRONG_X.values(), ids=WRONG_X)
def test_an_x_that_makes_no_sense_is_422(learned: Model, verb: str, x: str, field: str, detail: str) -> None:
    before = learned.mark()
    parts = [f'"x": {x}'] if x else []
    parts += ['"y": 1'] if verb == "learn" else []
    problem = assert_problem(post(learned, verb, "{" + ", ".join(parts) + "}"), 422, detail)
    assert problem["field"].startswith(field)
    assert len(problem["detail"]) < 500  # a body is not echoed
    assert learned.mark() == before


WRONG_FIELDS: dict[str, tuple[str, str, str]] = {
    "y missing": ('{"x": {"age": 1}}', "y", "is missing"),
    **{
        f"y {y}": (f'{{"x": {{"age": 1}}, "y": {y}}}', "y", "must be 0, 1, true or false")
        for y in ("2", "0.5", '"1"', "null", "-1", "[]", "{}", "1e999", "9" * 5_000)
    },
    **{
        f"id {name}": (f'{{"x": {{"age": 1}}, "y": 1, "id": {id_}}}', "id", "256 characters")
        for name, id_ in {
            "empty": '""',
            "of 257 characters": '"' + "i" * 257 + '"',
            "a number": "7.5",
            "a boolean": "true",
            "a list": "[]",
            "with a zero byte": r'"a\u0000b"',
        }.items()
    },
    **{
        f"weight {weight}": (
            f'{{"x": {{"age": 1}}, "y": 1, "weight": {weight}}}',
            "weight",
            "must be a number, 0 or above",
        )
        for weight in ("-1", "-1e-300", "null", '"1"', "true", "1e999", "[1]")
    },
    "unknown field": ('{"x": {"age": 1}, "y": 1, "label": 1}', "label", "is not a field"),
    "a field in other letters": ('{"X": {"age": 1}, "y": 1}', "X", "is not a field"),
    "number": ("5", "body", "must be an object"),
    "null": ("null", "body", "must be an object"),
    "string": ('"x"', "body", "must be an object"),
    "number in an array": ("[5]", "[0]", "must be an object"),
    "array in an array": ('[[{"x": {}, "y": 1}]]', "[0]", "must be an object"),
}


@pytest.mark.parametrize(("body", "field", "detail"), WRONG_FIELDS.values(), ids=[name[:30] for name in WRONG_FIELDS])
def test_an_event_that_makes_no_sense_is_422(learned: Model, body: str, field: str, detail: str) -> None:
    before = learned.mark()
    problem = assert_problem(post(learned, "learn", body), 422, detail)
    assert problem["field"] == field
    assert learned.mark() == before


def test_a_weight_of_nan_is_no_json(learned: Model) -> None:
    before = learned.mark()
    assert_problem(post(learned, "learn", '{"x": {"age": 1}, "y": 1, "weight": NaN}'), 400, "JSON has no NaN")
    assert learned.mark() == before


def test_an_id_that_is_not_utf_8_is_no_json(learned: Model) -> None:
    before = learned.mark()
    assert_problem(post(learned, "learn", b'{"x": {"age": 1}, "y": 1, "id": "\xff"}'), 400, "UTF-8")
    assert learned.mark() == before


def test_a_lone_surrogate_in_an_id_is_told_as_such(learned: Model) -> None:
    before = learned.mark()
    problem = assert_problem(post(learned, "learn", r'{"x": {"age": 1}, "y": 1, "id": "\ud800"}'), 400)
    assert learned.mark() == before
    assert "surrogate" in problem["detail"]


@pytest.mark.parametrize(
    "body",
    [
        '{"x": {"age": 1e100}, "y": 1}',
        '{"x": {"' + "n" * 256 + '": 1}, "y": 1}',
        '{"x": {"' + "🙂" * 256 + '": "' + "🙂" * 256 + '"}, "y": 1}',
        '{"x": {"age": 0.' + "9" * 5_000 + '}, "y": 1}',
        '{"x": {"age": 5e-324}, "y": 1, "weight": 5e-324}',
        '{"x": {"a b=c\\n\\"": -0.0}, "y": 1}',
    ],
    ids=["1e100", "256 characters", "256 emoji", "5,000 decimals", "smallest", "odd name"],
)
def test_what_is_just_within_the_limits_is_learned(learned: Model, body: str) -> None:
    assert post(learned, "learn", body).json()["seq"] == 3


@pytest.mark.parametrize("verb", ["learn", "predict"])
@pytest.mark.parametrize("content_type", [None, "", "text/plain", "application/jsonx", "application/xml", "json"])
def test_another_content_type_is_415(learned: Model, verb: str, content_type: str | None) -> None:
    before = learned.mark()
    headers = {} if content_type is None else {"content-type": content_type}
    assert_problem(post(learned, verb, '{"x": {}, "y": 1}', headers), 415, "application/json", "application/x-ndjson")
    assert learned.mark() == before


@pytest.mark.parametrize("content_type", ["application/json; charset=utf-8", "APPLICATION/JSON", "application/json;"])
def test_json_may_be_called_otherwise(learned: Model, content_type: str) -> None:
    assert post(learned, "learn", '{"x": {}, "y": 1}', {"content-type": content_type}).status_code == 200


# -- too large


@pytest.mark.parametrize("verb", ["learn", "predict"])
def test_a_body_that_says_it_is_too_large_is_refused_before_it_is_sent(shared: Service, verb: str) -> None:
    with shared.connect() as connection:
        connection.send_head(f"/{verb}", content_type="application/json", content_length=10**12)
        assert_problem(connection.reply(), 413, str(16 * 2**20))


@pytest.mark.parametrize("verb", ["learn", "predict"])
def test_a_body_of_unknown_length_is_refused_when_it_becomes_too_large(small: Service, verb: str) -> None:
    before = small.model().mark()
    with small.connect() as connection:
        connection.send_head(f"/{verb}", content_type="application/json", transfer_encoding="chunked")
        for _ in range(100):
            connection.send_chunk(b" " * 1_000)
        assert_problem(connection.reply(), 413, "4096 bytes")
    assert small.model().mark() == before


@pytest.mark.parametrize("verb", ["learn", "predict"])
def test_the_limit_holds_for_a_chunked_body_that_arrives_at_once(small: Service, verb: str) -> None:
    before = small.model().mark()
    event = b'{"x": {}, "y": 1}' if verb == "learn" else b'{"x": {}}'
    body = event + b" " * 5_000
    with small.connect() as connection:
        head = f"POST /{verb} HTTP/1.1\r\nhost: localhost\r\ncontent-type: application/json\r\n".encode()
        connection.send(head + b"transfer-encoding: chunked\r\n\r\n%x\r\n%b\r\n0\r\n\r\n" % (len(body), body))
        assert_problem(connection.reply(), 413, "4096 bytes")
    assert small.model().mark() == before


def test_a_body_may_be_as_large_as_the_limit_and_no_larger(small: Service) -> None:
    event = '{"x": {}, "y": 1}'
    model = small.model()
    before = model.state()["seq"]
    assert post(model, "learn", event.ljust(4_096)).json()["seq"] == before + 1
    assert_problem(post(model, "learn", event.ljust(4_097)), 413)
    assert model.state()["seq"] == before + 1


def test_a_spec_that_is_too_large_is_413(small: Service) -> None:
    response = small.http.put("/models/large", content="{}".ljust(3_000), headers=JSON)
    assert_problem(response, 413, "2048 bytes")
    assert_problem(small.http.get("/models/large"), 404)


def test_a_connection_is_of_use_after_a_refusal(shared: Service, learned: Model) -> None:
    body = b'{"x": {}, "y": 1}'
    with shared.connect() as connection:
        for content_type, status in (("text/plain", 415), ("application/json", 200)):
            connection.send_head(f"{learned.path}/learn", content_type=content_type, content_length=len(body))
            connection.send(body)
            assert connection.reply().status == status


# -- bodies that end too soon


def test_of_a_body_that_ends_too_soon_nothing_is_learned(shared: Service, learned: Model) -> None:
    before = learned.mark()
    body = b'{"x": {"age": 1}, "y": 1}'
    with shared.connect() as connection:
        connection.send_head(f"{learned.path}/learn", content_type="application/json", content_length=len(body) + 1)
        connection.send(body)
    assert learned.mark() == before
    assert learned.learn({"x": {}, "y": 1}).json()["seq"] == 3


def test_of_a_stream_that_ends_too_soon_the_last_line_is_not_learned_if_it_has_no_end(
    shared: Service, learned: Model
) -> None:
    with shared.connect() as connection:
        connection.send_head(f"{learned.path}/learn", content_type="application/x-ndjson", content_length=10_000)
        connection.send(b'{"x": {}, "y": 1}\n' * 3 + b'{"x": {"age": 10}, "y": 1}')
    # What had arrived whole may or may not be learned; what was cut never is.
    assert learned.learn({"x": {}, "y": 1}).json()["seq"] <= 6


# -- wrong paths and methods


@pytest.mark.parametrize("path", ["/learn", "/predict", "/models/default/learn", "/models/default/predict"])
@pytest.mark.parametrize("method", ["GET", "PUT", "DELETE", "PATCH", "OPTIONS"])
def test_the_hot_paths_take_post_alone(shared: Service, path: str, method: str) -> None:
    response = shared.http.request(method, path)
    assert_problem(response, 405, method, "POST")
    assert response.headers["allow"] == "POST"


@pytest.mark.parametrize(
    ("path", "method", "allowed"),
    [
        ("/livez", "POST", {"GET", "HEAD"}),
        ("/readyz", "DELETE", {"GET", "HEAD"}),
        ("/models", "POST", {"GET", "HEAD"}),
        ("/models/default", "POST", {"GET", "HEAD", "PUT", "DELETE"}),
        ("/models/default", "PATCH", {"GET", "HEAD", "PUT", "DELETE"}),
        ("/models/default/weights", "POST", {"GET", "HEAD"}),
        ("/models/default/crosscheck", "POST", {"GET", "HEAD"}),
    ],
)
def test_another_method_is_405_and_told_which_are_allowed(
    shared: Service, path: str, method: str, allowed: set[str]
) -> None:
    response = shared.http.request(method, path)
    assert_problem(response, 405, method)
    told = {name.strip() for name in response.headers["allow"].split(",")}
    assert told == allowed


@pytest.mark.parametrize(
    "path", ["/nothing", "/learn/", "/Learn", "/models/", "/models/default/", "/models/default/learn/more", "//learn"]
)
@pytest.mark.parametrize("method", ["GET", "POST"])
def test_an_unknown_path_is_404(shared: Service, path: str, method: str) -> None:
    with shared.connect() as connection:
        connection.send_head(path, method, content_length=0)
        assert_problem(connection.reply(), 404, "nothing at")


@pytest.mark.parametrize(
    ("method", "path"),
    [
        ("POST", "/models/nobody/learn"),
        ("POST", "/models/nobody/predict"),
        ("GET", "/models/nobody"),
        ("DELETE", "/models/nobody"),
        ("GET", "/models/nobody/weights"),
        ("GET", "/models/nobody/crosscheck"),
    ],
)
@pytest.mark.parametrize("headers", [JSON, NDJSON], ids=["json", "ndjson"])
def test_an_unknown_model_is_404(shared: Service, method: str, path: str, headers: dict[str, str]) -> None:
    body = '{"x": {}, "y": 1}' if method == "POST" else None
    assert_problem(shared.http.request(method, path, content=body, headers=headers), 404, "'nobody'", "PUT")


# -- anything at all

_numbers = st.integers() | st.floats() | st.sampled_from([1e100, 1e101, 10**400, -0.0])
_values = st.recursive(
    st.none() | st.booleans() | _numbers | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=8), inner, max_size=4),
    max_leaves=10,
)
_events = st.fixed_dictionaries(
    {},
    optional={
        "x": _values | st.dictionaries(st.text(max_size=8), st.booleans() | _numbers | st.text(max_size=8)),
        "y": st.sampled_from([0, 1]) | _values,
        "id": st.text() | _values,
        "weight": _numbers | _values,
        "other": _values,
    },
)
_shaped = (_values | _events | st.lists(_events, max_size=4)).map(lambda value: json.dumps(value).encode())


@st.composite
def _damaged(draw: st.DrawFn) -> bytes:
    """Bytes that were JSON before some were cut out, changed or put in."""
    body = draw(_shaped)
    for _ in range(draw(st.integers(0, 3))):
        start = draw(st.integers(0, len(body)))
        stop = draw(st.integers(start, min(len(body), start + 4)))
        put_in = draw(st.binary(max_size=4) | st.sampled_from([b'"', b"}", b"[", b"\\", b"\n"]))
        body = body[:start] + put_in + body[stop:]
    return body


@examples(150, suppress_health_check=[HealthCheck.too_slow])
@given(body=_shaped | _damaged() | st.binary(max_size=64), headers=st.sampled_from([JSON, NDJSON]))
@example(body=b'{"x":{"a":"\\ud800"},"y":1,"id":"\\udfff"}', headers=JSON)
@example(body=b'{"x":{},"y":1,"id":"a","id":"b"}', headers=NDJSON)
@pytest.mark.parametrize("verb", ["learn", "predict"])
def test_whatever_is_sent_is_never_the_services_fault(
    shared: Service, verb: str, body: bytes, headers: dict[str, str]
) -> None:
    response = shared.http.post(f"/{verb}", content=body, headers=headers)
    if response.status_code == 404:  # a label, and nothing was predicted under its id
        assert (verb, response.json()["title"]) == ("learn", "Unknown id")
        return
    assert response.status_code in {200, 400, 409, 413, 422}, response.text
    if response.status_code != 200:
        assert_problem(response, response.status_code)


@examples(80)
@given(spec=st.dictionaries(st.sampled_from(["learning_rate", "l1", "l2", "clip", "hash_bits", "rule", "x"]), _values))
def test_whatever_spec_is_sent_is_never_the_services_fault(shared: Service, spec: dict[str, Any]) -> None:
    response = shared.http.put("/models/anything", content=json.dumps(spec), headers=JSON)
    assert response.status_code in {200, 201, 400, 422}, response.text
    if response.status_code in {200, 201}:
        assert shared.http.delete("/models/anything").status_code == 204
    else:
        assert_problem(response, response.status_code)
