"""One body must not stop the others: however large or strange it is, no callback of the service's loop takes long.

Judged is the processor time of the loop's thread, see tests/callbacks.py; how long another client waited is told.
"""

from __future__ import annotations

import asyncio
import json
import shutil
import signal
import socket
import time
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from callbacks import LIMIT, Timed
from effort import few, from_checks_on
from harness import HOST, Connection, Service, Start, assert_problem, ndjson
from patience import eventually
from starlette.types import Message

from service import errors
from service.decode import arrow
from service.http import arrays, long_reply, tokens
from service.settings import Settings

JSON, NDJSON, ARROW = "application/json", "application/x-ndjson", "application/vnd.apache.arrow.stream"
MANY = 20_000
"""Events of a body: if they were worked on in one go, it would take several times as long as a callback may."""
WIDE = 100_000
"""Features of an event, at most, by default."""
BODY = 16 * 2**20
"""Bytes of a JSON body, at most, by default."""


@dataclass(frozen=True)
class Body:
    """What is sent, where, and the status of the reply."""

    path: str
    kind: str
    made: Callable[[], bytes]
    status: int = 200


def array(element: str, count: int = MANY) -> Callable[[], bytes]:
    """An array; `%d` in the element is its number."""
    return lambda: b"[%b]" % lines(element, count)().strip().replace(b"\n", b",")


def lines(line: str, count: int = MANY) -> Callable[[], bytes]:
    return lambda: "".join(line.replace("%d", str(i)) + "\n" for i in range(count)).encode()


def wide(more: str = "", first: int = 0, count: int = WIDE) -> Callable[[], bytes]:
    """An event of many features."""

    def made() -> bytes:
        x = {f"f{i}": i % 7 / 7 + 0.5 for i in range(first, first + count)}
        return ('{"x": ' + json.dumps(x) + more + "}").encode()

    return made


def stream(columns: Callable[[], dict[str, Any]], rows: int = 2**30) -> Callable[[], bytes]:
    """An Arrow stream of batches of so many rows."""

    def made() -> bytes:
        table = pa.table(columns())
        sink = pa.BufferOutputStream()
        with pa.ipc.new_stream(sink, table.schema) as writer:
            writer.write_table(table, max_chunksize=rows)
        return bytes(sink.getvalue())

    return made


def numbers(rows: int, columns: int, labelled: bool) -> Callable[[], dict[str, Any]]:
    def made() -> dict[str, Any]:
        found = {f"f{i}": np.random.default_rng(i).normal(size=rows) for i in range(columns)}
        return found | ({"y": np.arange(rows) % 2} if labelled else {})

    return made


def many_words(columns: int) -> dict[str, Any]:
    """Columns of a category each."""
    word = pa.DictionaryArray.from_arrays(pa.array([0] * 16, pa.int32()), pa.array(["z" * 100]))
    return {f"w{i}": word for i in range(columns)}


def words(rows: int) -> dict[str, Any]:
    """A column of a few words out of very many."""
    dictionary = pa.array([f"word-{i}" for i in range(200_000)])
    return {"word": pa.DictionaryArray.from_arrays(pa.array(np.arange(rows) % 7, pa.int32()), dictionary)}


def one_value(rows: int) -> Any:
    """A column that holds one value and how often it comes."""
    return pa.RunEndEncodedArray.from_arrays(pa.array([rows], pa.int32()), pa.array([True]))


def many_fields(count: int) -> Any:
    return pa.array([None], pa.struct([(f"f{i}", pa.bool_()) for i in range(count)]))


BODIES = {
    "array of events": Body("/learn", JSON, array('{"x":{"a":%d},"y":1}')),
    "array of events with ids": Body("/learn", JSON, array('{"x":{"a":1},"y":1,"id":"i%d"}')),
    "array of the same events with ids": Body("/learn", JSON, array('{"x":{"a":1},"y":1,"id":"i%d"}')),
    "array of events, the last wrong": Body(
        "/learn", JSON, lambda: array('{"x":{"a":1},"y":1,"id":"w%d"}')()[:-1] + b',{"x":{"a":1},"y":2}]', 422
    ),
    "array of questions": Body("/predict", JSON, array('{"x":{"a":%d}}')),
    "array of questions with ids": Body("/predict", JSON, array('{"x":{"a":1},"id":"q%d"}')),
    "array of labels": Body("/learn", JSON, array('{"id":"q%d","y":1}')),
    "array of wide events": Body(
        "/learn", JSON, lambda: b"[" + b",".join(wide(', "y": 1', 9_000 * i, 9_000)() for i in range(20)) + b"]"
    ),
    "array of rows": Body("/learn", JSON, array('{"x":[' + "1," * 250 + '1],"y":1}', 15_000)),
    "array of rows, the last wrong": Body(
        "/predict", JSON, lambda: array('{"x":[' + "1," * 250 + "1]}", 15_000)()[:-1] + b',{"x":{},"y":1}]', 422
    ),
    "fields that nobody knows": Body(
        "/predict", JSON, lambda: b'{"x":{},' + b",".join(b'"u%d":1' % i for i in range(900_000)) + b"}", 422
    ),
    "array of nothing much": Body("/learn", JSON, lambda: b"[" + b"1," * (BODY // 2 - 2) + b"1]", 413),
    "array that never ends": Body("/predict", JSON, lambda: b"[" + b'{"x":{}},' * (BODY // 9), 400),
    "spaces": Body("/predict", JSON, lambda: b" " * (BODY - 9) + b'{"x":{}}'),
    "wide event": Body("/learn", JSON, wide(', "y": 1')),
    "the same again": Body("/learn", JSON, wide(', "y": 1')),
    "wide event of other features": Body("/learn", JSON, wide(', "y": 1', WIDE)),
    "wide event with an id": Body("/learn", JSON, wide(', "y": 1, "id": "wide"')),
    "wide event with an id, again": Body("/learn", JSON, wide(', "y": 1, "id": "wide"')),
    "wide question": Body("/predict", JSON, wide()),
    "wide question with an id": Body("/predict", JSON, wide(', "id": "wide question"')),
    "wide question with an id, again": Body("/predict", JSON, wide(', "id": "wide question"')),
    "wide hashed event": Body("/models/hashed/learn", JSON, wide(', "y": 1')),
    "wide hashed question": Body("/models/hashed/predict", JSON, wide()),
    "numbers of a hashed question": Body("/models/hashed/predict", JSON, lambda: b'{"x":[' + b"1," * 15_000 + b"1]}"),
    "too wide": Body("/learn", JSON, wide(', "y": 1', 0, 2 * WIDE), 422),
    "wide and wrong": Body("/learn", JSON, wide(', "y": 3', 0, 2 * WIDE), 422),
    "lines": Body("/learn", NDJSON, lines('{"x":{"a":%d},"y":1}')),
    "lines of different kinds": Body("/learn", NDJSON, lines('{"x":{"a":"b%d"},"y":1}\n{"x":{"c":%d},"y":1}')),
    "lines of questions": Body("/predict", NDJSON, lines('{"x":{"a":%d}}')),
    "long lines": Body("/learn", NDJSON, lambda: b"".join(wide(', "y": 1', i, 30_000)() + b"\n" for i in range(4))),
    "long lines of questions": Body(
        "/predict", NDJSON, lambda: b"".join(wide("", i, 30_000)() + b"\n" for i in range(4))
    ),
    "long hashed lines": Body(
        "/models/hashed/learn", NDJSON, lambda: b"".join(wide(', "y": 1', i, 30_000)() + b"\n" for i in range(4))
    ),
    "lines of nothing": Body("/predict", NDJSON, lambda: b"\n" * (BODY // 4)),
    "rows": Body("/learn", ARROW, stream(numbers(MANY, 10, labelled=True))),
    "rows of questions": Body("/predict", ARROW, stream(numbers(MANY, 10, labelled=False))),
    "one value in every row": Body("/predict", ARROW, stream(lambda: {"a": one_value(50_000)})),
    "one value without end": Body("/predict", ARROW, stream(lambda: {"a": one_value(2_000_000)}), 413),
    "a struct of very many fields": Body("/predict", ARROW, stream(lambda: {"a": many_fields(160_000)}), 422),
    "wide rows": Body("/learn", ARROW, stream(numbers(20, 20_000, labelled=True))),
    "wide rows of questions": Body("/predict", ARROW, stream(numbers(20, 20_000, labelled=False))),
    "wide rows with ids": Body(
        "/learn", ARROW, stream(lambda: numbers(20, 20_000, labelled=True)() | {"id": [f"r{i}" for i in range(20)]})
    ),
    "small batches": Body("/predict", ARROW, stream(lambda: {"a": np.ones(2_000)}, rows=1)),
    "many columns of words": Body("/predict", ARROW, stream(lambda: many_words(200))),
    "few words of very many": Body("/predict", ARROW, stream(lambda: words(2_000), rows=20)),
}


@pytest.fixture(scope="module")
def timed(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Timed]:
    """A service whose callbacks are timed."""
    with Timed(tmp_path_factory.mktemp("one-body") / "data") as timed:
        assert timed.service.request("PUT", "/models/hashed", {"hash_bits": 18})[0] == 201
        yield timed


@from_checks_on
@few(8)
@pytest.mark.parametrize("name", BODIES)
def test_no_callback_takes_long(timed: Timed, name: str) -> None:
    body = BODIES[name]
    sent = body.made()

    def send() -> None:
        connection = timed.service.client()
        connection.request("POST", body.path, sent, {"content-type": body.kind})
        reply = connection.getresponse()
        text = reply.read()
        connection.close()
        assert reply.status == body.status, text[:1000]

    seen = timed.calmest(send)
    print(f"{name}: {seen}")
    assert seen.longest <= LIMIT, f"{name}: {seen}"


def test_no_callback_takes_long_for_a_body_in_chunks_of_a_byte(timed: Timed) -> None:
    sent = wide("", 0, 30_000)()
    head = b"POST /predict HTTP/1.1\r\nhost: localhost\r\ncontent-type: %b\r\n" % JSON.encode()
    chunks = b"".join(b"1\r\n%c\r\n" % byte for byte in sent)

    def send() -> None:
        with socket.create_connection((HOST, timed.service.port)) as connection:
            connection.sendall(
                head + b"connection: close\r\ntransfer-encoding: chunked\r\n\r\n" + chunks + b"0\r\n\r\n"
            )
            reply = b"".join(iter(lambda: connection.recv(65_536), b""))
        assert b'"unknown":' in reply or b'"p":' in reply

    seen = timed.calmest(send)
    assert seen.longest <= LIMIT, seen


def test_no_callback_takes_long_for_many_connections_that_pipeline(timed: Timed) -> None:
    asked = b"POST /predict HTTP/1.1\r\nhost: localhost\r\ncontent-type: %b\r\ncontent-length: %d\r\n\r\n%b"
    body = wide("", 0, 1_500)()
    rounds = 5

    def send() -> None:
        with ExitStack() as stack:
            connections = [stack.enter_context(socket.create_connection((HOST, timed.service.port))) for _ in range(60)]
            for connection in connections:
                connection.sendall(asked % (JSON.encode(), len(body), body) * rounds)
            for connection in connections:
                got = b""
                while got.count(b'"p":') < rounds:
                    got += connection.recv(65_536)

    seen = timed.calmest(send)
    assert seen.longest <= LIMIT, seen


def test_a_spec_that_is_long_and_wrong_keeps_nobody_waiting(timed: Timed) -> None:

    def put() -> None:
        status, reply = timed.service.request("PUT", "/models/long", {"columns": [[[]]] * 100_000})
        assert status == 422, reply

    seen = timed.calmest(put)
    assert seen.longest <= LIMIT, seen


def test_a_query_has_so_many_parameters(shared: Service) -> None:
    path = "/models/default/series?" + "&".join("a" * 100)
    assert shared.http.get(path).status_code == 200
    assert_problem(shared.http.get(path + "&a"), 422, "more than 100 parameters")


# -- what takes long is ended, and what is long is bounded

WORDS = b",".join(b'"f%d":"word"' % i for i in range(20))
LONG_ARRAY = b"[" + b'{"x":{%b}},' % WORDS * 50_000 + b'{"x":{}}]'
"""Takes several seconds to predict from."""


@pytest.fixture
def guarded(start: Start, tmp_path: Path) -> tuple[Service, str, str]:
    """A service, and a token that may predict: its text and its id."""
    folder = tmp_path / "data"
    folder.mkdir()
    text, token = tokens.create(folder, ["predict"], None, None)
    return start("--drain-seconds", "0", folder=folder), text, token.id


def ask(service: Service, path: str, kind: str, body: bytes, token: str = "") -> Connection:
    """A request that is sent whole; its reply is not read."""
    connection = service.connect()
    sent = {"authorization": f"Bearer {token}"} if token else {}
    connection.send_head(path, content_type=kind, content_length=len(body), **sent)
    connection.send(body)
    return connection


def test_a_token_that_is_taken_back_ends_what_is_computed_for_it(guarded: tuple[Service, str, str]) -> None:
    service, token, id_ = guarded
    with ask(service, "/predict", JSON, LONG_ARRAY, token) as connection:
        tokens.revoke(service.folder, id_)
        began = time.monotonic()
        assert connection.reply().status == 401
        print(f"ended {time.monotonic() - began:.2f} s later")


def questions(count: int) -> bytes:
    return b'{"x":{"a":1}}\n' * count


WORDY = "m" * 64
"""A model whose replies are long."""
UNREAD = 60_000
"""Questions whose reply, of 6 MB, does not fit in what the system keeps for who does not read."""


def ask_and_not_read(service: Service, token: str = "") -> Connection:
    """A request whose reply has begun, and is not read on."""
    connection = ask(service, f"/models/{WORDY}/predict", NDJSON, questions(UNREAD), token)
    connection.socket.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
    assert connection.socket.recv(1)
    return connection


def test_a_token_that_is_taken_back_ends_a_reply_that_is_sent(start: Start, tmp_path: Path) -> None:
    folder = tmp_path / "data"
    folder.mkdir()
    text, token = tokens.create(folder, ["predict", "admin"], None, None)
    tokens.create(folder, ["admin"], None, None)
    service = start(folder=folder)
    service.http.put(f"/models/{WORDY}", json={}, headers={"authorization": f"Bearer {text}"}).raise_for_status()
    with ask_and_not_read(service, text):
        tokens.revoke(folder, token.id)
        eventually(lambda: "without completing response" in service.log, "the reply to be ended")


def test_a_stop_ends_what_is_computed(start: Start) -> None:
    service = start("--drain-seconds", "0", "--shutdown-seconds", "8")
    with ask(service, "/predict", JSON, LONG_ARRAY) as connection:
        eventually(lambda: service.http.get("/livez").status_code == 200, "it to have the body")
        began = time.monotonic()
        service.signal(signal.SIGTERM)
        assert_problem(connection.reply(), 503, "The service is stopping")
        assert service.wait() == 0
        print(f"ended {time.monotonic() - began:.2f} s later")


def test_a_stop_does_not_wait_for_who_does_not_read(start: Start) -> None:
    service = start("--drain-seconds", "0", "--shutdown-seconds", "8")
    assert service.model(WORDY).create({}).status_code == 201
    with ask_and_not_read(service):
        began = time.monotonic()
        service.signal(signal.SIGTERM)
        assert service.wait() == 0
        assert time.monotonic() - began < 7


@from_checks_on
def test_replies_that_wait_are_bounded_all_of_them_together(start: Start) -> None:
    service = start("--max-replies-bytes", str(8 * 2**20))
    model = service.model(WORDY)
    assert model.create({}).status_code == 201
    too_large = questions(2 * UNREAD)
    assert_problem(model.predict_lines(too_large), 413, "8388608")
    with ask_and_not_read(service):
        assert_problem(model.predict_lines(questions(UNREAD)), 503, "wait to be sent")
        assert model.predict([{"x": {}}] * 3).status_code == 200
    eventually(
        lambda: model.predict_lines(questions(UNREAD)).status_code == 200, "the room of a reply that nobody reads"
    )


@pytest.mark.parametrize("verb", ["learn", "predict"])
def test_an_array_has_so_many_elements(shared: Service, verb: str) -> None:
    for count, status in ((arrays.MAX_ITEMS, 422), (arrays.MAX_ITEMS + 1, 413)):
        body = b"[" + b"1," * (count - 1) + b"1]"
        reply = shared.http.post(f"/models/default/{verb}", content=body, headers={"content-type": JSON})
        assert_problem(reply, status, "must be an object" if status == 422 else "65537 elements")


def test_an_array_whose_reply_would_be_too_large_is_not_learned(start: Start) -> None:
    service = start("--max-replies-bytes", str(2**20))
    events = [{"x": {"a": 1}, "y": 1}] * 5_000
    assert_problem(service.model().learn(events), 413, "LOGSTEP_MAX_REPLIES_BYTES")
    assert service.model().state()["seq"] == 0
    assert len(service.model().learn(events[:2_000]).json()) == 2_000


class Room:
    """How much room there is on the disk."""

    def __init__(self, free: int) -> None:
        self.free = free


def sent(reply: long_reply.LongReply) -> tuple[dict[bytes, bytes], bytes]:
    """Headers and body of a reply."""
    messages: list[Message] = []

    async def send(message: Message) -> None:
        messages.append(message)

    asyncio.run(reply.send(send))
    assert all(len(message["body"]) <= long_reply.SENT_BYTES for message in messages[1:])
    assert [message.get("more_body", False) for message in messages[1:]] == [True] * (len(messages) - 2) + [False]
    return dict(messages[0]["headers"]), b"".join(message["body"] for message in messages[1:])


@pytest.mark.parametrize("size", [0, 1, long_reply.SENT_BYTES, long_reply.MEMORY_BYTES + 1, 3 * 2**20 + 7])
def test_a_long_reply_is_sent_as_it_was_gathered(tmp_path: Path, size: int) -> None:
    content = np.random.default_rng(size).bytes(size)
    with long_reply.LongReplies(Settings(data=tmp_path)).gathered(b"text/x") as reply:
        for start in range(0, size, 100_000):
            asyncio.run(reply.add(content[start : start + 100_000]))
        headers, body = sent(reply)
    assert body == content
    assert headers[b"content-length"] == b"%d" % size
    assert headers[b"content-type"] == b"text/x"


def test_a_reply_takes_no_room_that_the_log_may_need_but_what_was_promised_is_kept(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(shutil, "disk_usage", lambda _: Room(3 * 2**19))
    settings = Settings(data=tmp_path)
    replies = long_reply.LongReplies(settings)
    some = b"a" * 2**19
    with replies.gathered(b"text/x") as reply:
        for _ in range(3):
            asyncio.run(reply.add(some))
        with pytest.raises(errors.NoRoomForReply, match="no space for so long a reply"):
            asyncio.run(reply.add(some))
    with replies.gathered(b"text/x", promised=10 * 2**19) as reply:
        for _ in range(10):
            asyncio.run(reply.add(some))
        assert sent(reply)[1] == some * 10
    assert replies.on_disk == 0
    with replies.room(settings.max_replies_bytes):  # all is given back
        pass


# -- and what comes of it is the same


def test_a_long_array_is_learned_and_predicted_from_as_lines_are(start: Start) -> None:
    service = start()
    one, other = service.model("one"), service.model("other")
    events = [{"x": {"a": i % 17 / 17, f"b{i % 5}": 1}, "y": i % 3 == 0} for i in range(12_000)]
    for model in (one, other):
        assert model.create({"learning_rate": 0.1}).status_code == 201
    assert other.learn_lines(ndjson(events)).json()["learned"] == len(events)
    learned = one.learn(events).json()
    assert [reply["seq"] for reply in learned] == list(range(1, len(events) + 1))
    assert one.state()["sha256"] == other.state()["sha256"]
    asked = [{"x": event["x"]} for event in events]
    by_line = [json.loads(line)["p"] for line in other.predict_lines(ndjson(asked)).text.splitlines()]
    assert [reply["p"] for reply in one.predict(asked).json()] == by_line
    assert len(set(by_line)) > 50
    wrong = [*asked, {"x": {"a": "b", "c": [1]}}]
    assert_problem(one.predict(wrong), 422, "[12000].x.c: must be")


@pytest.mark.parametrize(
    ("columns", "rows"),
    [
        ({"a": one_value(262_144)}, 262_144),
        ({"a": one_value(262_145)}, None),
        ({"a": np.arange(300_000) % 7 == 0, "b": np.random.default_rng(1).normal(size=300_000)}, 300_000),
    ],
    ids=["as many as are free", "one more", "of other values"],
)
def test_rows_are_bounded_against_the_bytes_that_came(columns: dict[str, Any], rows: int | None) -> None:
    async def arriving() -> AsyncIterator[bytes]:
        yield stream(lambda: columns)()

    async def read() -> int:
        tables = arrow.read_tables(arriving(), learn=False, max_batch_bytes=64 * 2**20)
        return sum([len(table) async for table in tables])

    if rows is None:
        with pytest.raises(errors.TooManyRows, match=r"262145 rows in .*max_chunksize=100_000"):
            asyncio.run(read())
    else:
        assert asyncio.run(read()) == rows
