"""Bodies as clients really write them: marks before UTF-8, NaN, charsets, compression; every route that reads one."""

from __future__ import annotations

import codecs
import itertools
import json
import zlib
from collections.abc import Iterator

import httpx
import pytest
from effort import examples
from harness import JSON, NDJSON, Model, NewModel, Service, assert_problem
from hypothesis import HealthCheck, given
from hypothesis import strategies as st

from service.http.bodies import ARROW

BOM = codecs.BOM_UTF8
EVENT, QUESTION = b'{"x": {"a": 1.5}, "y": 1}', b'{"x": {"a": 1.5}}'
DOORS = {
    "learn": ("POST", "/models/MODEL/learn", JSON, EVENT),
    "learn an array": ("POST", "/models/MODEL/learn", JSON, b"[%b]" % EVENT),
    "learn lines": ("POST", "/models/MODEL/learn", NDJSON, b"%b\n" % EVENT),
    "predict": ("POST", "/models/MODEL/predict", JSON, QUESTION),
    "predict an array": ("POST", "/models/MODEL/predict", JSON, b"[%b]" % QUESTION),
    "predict lines": ("POST", "/models/MODEL/predict", NDJSON, b"%b\n" % QUESTION),
    "explain": ("POST", "/models/MODEL/explain", JSON, QUESTION),
    "spec": ("PUT", "/models/MODEL", JSON, b'{"clip": 1e12}'),
}
"""Every way in which JSON is read: method, path, headers, and a body that is taken."""


def each_with(*values: str) -> list[tuple[str, str]]:
    """Every door with the first of some values, and one door with the others."""
    return [(door, values[0]) for door in DOORS] + [("learn", value) for value in values[1:]]


BY_NAME = pytest.mark.parametrize("door", DOORS)


def ask(model: Model, door: str, body: bytes | None = None, **headers: str) -> httpx.Response:
    method, path, kind, good = DOORS[door]
    url = path.replace("MODEL", model.name)
    told = kind | {name.replace("_", "-"): value for name, value in headers.items()}
    return model.service.http.request(method, url, content=good if body is None else body, headers=told)


@BY_NAME
def test_a_mark_before_utf_8_is_skipped(new_model: NewModel, door: str) -> None:
    marked, plain = new_model(), new_model()
    first, second = ask(marked, door, BOM + DOORS[door][3]), ask(plain, door)
    assert first.status_code == second.status_code == 200, first.text
    assert first.text == second.text.replace(plain.name, marked.name)
    assert marked.mark() == plain.mark()


@given(body=st.binary(max_size=2), lines=st.integers(0, 2), cuts=st.sets(st.integers(1, 40), max_size=4))
@examples(30, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_a_mark_is_skipped_in_however_many_pieces_it_comes(
    shared: Service, body: bytes, lines: int, cuts: set[int]
) -> None:
    """Also where the body is shorter than a mark, or begins like one."""

    def answer(whole: bytes, pieces: Iterator[bytes] | None = None) -> tuple[int, str]:
        reply = shared.model().predict_lines(whole if pieces is None else pieces)
        return reply.status_code, reply.json()["detail"] if reply.status_code != 200 else reply.text

    text = BOM[: len(body)] + body if lines == 0 else (QUESTION + b"\n") * lines
    whole = BOM + text
    ends = [0, *sorted(cut for cut in cuts if cut < len(whole)), len(whole)]
    pieces = (whole[start:end] for start, end in itertools.pairwise(ends))
    assert answer(whole, pieces) == answer(whole) == answer(text)


@pytest.mark.parametrize(("door", "number"), each_with("NaN", "Infinity", "-Infinity"))
def test_a_number_that_json_does_not_have_is_named_and_what_to_do(model: Model, door: str, number: str) -> None:
    before = model.mark()
    body = DOORS[door][3].replace(b"1.5", number.encode()).replace(b"1e12", number.encode())
    problem = assert_problem(ask(model, door, body), 400, f"JSON has no {number}", "leave out")
    assert ("field" if door == "spec" else "feature") in problem["detail"]
    assert model.mark() == before


@pytest.mark.parametrize(("door", "encoding"), each_with("br", "deflate", "compress", "identity, gzip", "gzip, zstd"))
def test_a_body_in_another_encoding_is_415_and_the_encoding_is_named(model: Model, door: str, encoding: str) -> None:
    before = model.mark()
    response = ask(model, door, zlib.compress(DOORS[door][3]), content_encoding=encoding)
    assert_problem(response, 415, repr(encoding), "Compress the body with gzip or zstd, or send it uncompressed")
    assert response.headers["accept-encoding"] == "gzip, zstd"
    assert model.mark() == before


@BY_NAME
def test_a_body_that_says_that_it_is_as_it_is_is_taken(model: Model, door: str) -> None:
    assert ask(model, door, content_encoding="identity").status_code == 200


@pytest.mark.parametrize("content_type", [*(kind["content-type"] for kind in (JSON, NDJSON)), ARROW.decode()])
@pytest.mark.parametrize("header", ["content-encoding: br", "content-type: CONTENT; charset=utf-16"])
@pytest.mark.parametrize("verb", ["learn", "predict"])
def test_it_is_refused_before_the_body_has_come(shared: Service, verb: str, header: str, content_type: str) -> None:
    kind = "" if header.startswith("content-type") else f"content-type: {content_type}\r\n"
    head = f"POST /{verb} HTTP/1.1\r\nhost: localhost\r\n{kind}{header.replace('CONTENT', content_type)}\r\n"
    with shared.connect() as connection:
        connection.send(f"{head}content-length: 1000000\r\n\r\n".encode())
        assert_problem(connection.reply(), 415)


@pytest.mark.parametrize(("door", "charset"), each_with("utf-16", "UTF-16LE", "latin1", "iso-8859-1", '"utf-16"'))
def test_another_charset_than_utf_8_is_415_and_says_what_to_send(model: Model, door: str, charset: str) -> None:
    before = model.mark()
    content_type = f"{DOORS[door][2]['content-type']}; charset={charset}"
    response = ask(model, door, DOORS[door][3].decode().encode("utf-16"), content_type=content_type)
    assert_problem(response, 415, charset.strip('"').lower(), "charset=utf-8")
    assert model.mark() == before


@pytest.mark.parametrize(("door", "charset"), each_with("utf-8", "UTF-8", '"utf-8"', "utf8", "us-ascii"))
def test_utf_8_may_be_told(model: Model, door: str, charset: str) -> None:
    content_type = f"{DOORS[door][2]['content-type']};charset={charset}"
    response = ask(model, door, content_type=content_type)
    assert response.status_code == 200, response.text
    json.loads(response.text)
