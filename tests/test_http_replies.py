"""What every reply has: HEAD is answered as GET is, less the body, and JSON and text end with a newline."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from effort import EFFORT
from harness import JSON, NDJSON, NewModel, Service, Start
from test_tokens import bearer

from service.http import tokens

GETS = [
    *("/livez", "/readyz", "/metrics", "/models", "/openapi.json", "/", "/docs", "/dashboard/main.js"),
    *(f"/models/MODEL{rest}" for rest in ("", "/weights", "/weights?top=1", "/curve", "/series?from=1000&to=2000")),
    *("/models/nobody", "/models/MODEL/weights?top=none", "/dashboard/nothing.js", "/nothing"),
]
STREAMS = ["/stream", "/models/MODEL/stream"]


def heads_and_rest(service: Service, *asked: str) -> tuple[list[dict[str, str]], str]:
    """The heads of the replies to requests on one connection, which the last closes, and the body of the last; the
    others must have none."""
    with service.connect() as connection:
        for line in asked[:-1]:
            connection.send(f"{line} HTTP/1.1\r\nhost: localhost\r\nx-request-id: one\r\n\r\n".encode())
        connection.send(f"{asked[-1]} HTTP/1.1\r\nhost: localhost\r\nconnection: close\r\n\r\n".encode())
        with connection.socket.makefile("rb") as replies:
            *heads, rest = replies.read().decode().split("\r\n\r\n", len(asked))
    found = []
    for head in heads:
        status, *lines = head.split("\r\n")
        found.append({"status": status.split()[1], **dict(line.split(": ", 1) for line in lines)})
    return found, rest


@pytest.mark.parametrize("path", [*GETS, *STREAMS])
def test_head_is_answered_as_get_is_without_the_body(shared: Service, new_model: NewModel, path: str) -> None:
    model = new_model()
    assert model.learn({"x": {"a": 1, "b": 2}, "y": 1}).status_code == 200
    path = path.replace("MODEL", model.name)
    with shared.http.stream("GET", path, headers={"x-request-id": "one"}) as got:
        # A body that came after all would be taken for the reply to what is asked next.
        (head, after), body = heads_and_rest(shared, f"HEAD {path}", "GET /livez")
        assert (after["status"], json.loads(body)["status"]) == ("200", "alive")
        expected = {"status": str(got.status_code), **got.headers}
    # /metrics says how long the process has run, and a stream has no length.
    varies = {"content-length"} if path == "/metrics" else {"transfer-encoding"}
    assert {name: head[name] for name in head.keys() - varies} == {
        name: expected[name] for name in expected.keys() - varies
    }


def test_head_runs_no_cross_check(shared: Service, new_model: NewModel) -> None:
    """It would take as long as GET. With a busy child it would be refused: only one runs at a time."""
    model = new_model()
    assert model.learn({"x": {"a": 1}, "y": 1}).status_code == 200
    started = time.perf_counter()
    for name, status in ((model.name, "200"), ("nobody", "404")):
        (head, after), _ = heads_and_rest(shared, f"HEAD /models/{name}/crosscheck", "GET /livez")
        assert (head["status"], after["status"]) == (status, "200")
    assert time.perf_counter() - started < 0.5


def test_head_asks_for_a_token_where_get_does(tmp_path: Path, start: Start) -> None:
    token, _ = tokens.create(tmp_path / "data", ["predict"], ["clicks"], None)
    service = start(folder=tmp_path / "data")
    for path, status in (("/livez", 200), ("/", 200), ("/metrics", 401), ("/models/default", 401)):
        assert service.http.head(path).status_code == service.http.get(path).status_code == status
    for path, status in (("/metrics", 200), ("/models/default", 404)):
        assert service.http.head(path, headers=bearer(token)).status_code == status


def replies(service: Service, model: str) -> Iterator[tuple[str, str]]:
    """Replies of every kind: what was asked, and the body."""
    for path in GETS:
        yield path, service.http.get(path.replace("MODEL", model)).text
    event, question = '{"x": {"a": 1}, "y": 1}', '{"x": {"a": 1}}'
    for verb, body in (("learn", event), ("predict", question), ("explain", question)):
        for text in (body, f"[{body}]", "{"):
            yield f"{verb} {text}", service.http.post(f"/models/{model}/{verb}", content=text, headers=JSON).text
        answered = service.http.post(f"/models/{model}/{verb}", content=f"{body}\n{body}\n", headers=NDJSON)
        yield f"{verb} lines", answered.text
    yield "PUT", service.http.put(f"/models/{model}", json={}).text
    if EFFORT != "quick":  # it takes three seconds
        yield "crosscheck", service.http.get(f"/models/{model}/crosscheck").text
    with service.connect() as connection:
        connection.send(b"NONSENSE\r\n\r\n")
        yield "no HTTP", connection.reply().text


def test_every_reply_of_json_or_text_ends_with_a_newline(shared: Service, new_model: NewModel) -> None:
    """Else the prompt of who uses curl stands behind it, and `>>` writes two replies on one line."""
    for asked, text in replies(shared, new_model().name):
        assert text.endswith("\n"), asked
        assert not text.endswith("\n\n"), asked
