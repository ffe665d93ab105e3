"""Connections: the short way of requests of one event, and what becomes of clients that are too many or too slow."""

from __future__ import annotations

import asyncio
import itertools
import json
import re
import socket
import sys
import time
import tomllib
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, suppress
from pathlib import Path
from typing import Any

import hypothesis
import pyarrow as pa
import pytest
import uvicorn
from effort import examples, from_checks_on
from harness import Connection, Reply, Service, Start, Starter, assert_problem
from hypothesis import strategies as st
from patience import PATIENCE, eventually
from processes import recover
from uvicorn.server import ServerState

from service.http import app
from service.http.connection import BEFORE, SINCE, Protocol, fits
from service.http.crowd import STILL_SECONDS, Crowd
from service.settings import Settings


def head_of(path: str, length: int, *more: str, version: str = "1.1") -> bytes:
    lines = [f"POST {path} HTTP/{version}", "host: localhost", "content-type: application/json", *more]
    return "\r\n".join([*lines, f"content-length: {length}", "", ""]).encode()


def whole(connection: Connection, path: str, body: bytes) -> Reply:
    """Head and body in one write."""
    connection.send(head_of(path, len(body)) + body)
    return connection.reply()


def in_two(connection: Connection, path: str, body: bytes) -> Reply:
    """The head, and then the body in two writes."""
    connection.socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    for piece in (head_of(path, len(body)), body[: len(body) // 2], body[len(body) // 2 :]):
        connection.send(piece)
        time.sleep(0.02)
    return connection.reply()


def chunked(connection: Connection, path: str, body: bytes) -> Reply:
    """A body that does not tell its length."""
    connection.send_head(path, transfer_encoding="chunked", content_type="application/json")
    if body:  # an empty chunk is the end
        connection.send_chunk(body)
    connection.send_chunk(b"")
    return connection.reply()


EVENT = {"x": {"age": 31, "country": "FR", "vip": True}, "y": 1, "id": "order-77"}


@pytest.mark.parametrize(
    "asked",
    [
        [("learn", EVENT), ("learn", EVENT)],
        [("learn", EVENT), ("learn", {**EVENT, "y": 0})],
        [("learn", {"x": [0.5, 2], "y": 0, "weight": 2}), ("predict", {"x": [0.5, 2]})],
        [("predict", {"x": {"a": 1}, "id": "k"}), ("learn", {"id": "k", "y": 1}), ("learn", {"id": "k", "y": 1})],
        [("learn", [EVENT, {"x": {}, "y": 0}]), ("predict", [{"x": {"age": 2}}])],
        [("learn", {"x": {"a": 1}, "y": 2})],
        [("learn", {"x": {"a": 1e101}, "y": 1})],
        [("learn", {"id": "nobody", "y": 1})],
        [("learn", {"x": {"a": None}, "y": 1}), ("predict", {"x": 1})],
        [("learn", "x"), ("predict", [1])],
    ],
)
def test_a_request_gets_the_same_reply_whole_in_two_and_chunked(shared: Service, asked: list[tuple[str, Any]]) -> None:
    replies = []
    for send in (whole, in_two, chunked):
        model = shared.model("in-pieces")
        assert model.create({}).status_code == 201
        with shared.connect() as connection:
            told = [send(connection, f"{model.path}/{verb}", json.dumps(body).encode()) for verb, body in asked]
        replies.append(
            [(reply.status, reply.headers["content-type"], without_what_differs(reply.text)) for reply in told]
        )
        model.delete()
    assert replies[0] == replies[1] == replies[2]


def without_what_differs(text: str) -> Any:
    said = json.loads(text)
    return {**said, "delay_s": None, "request_id": None} if isinstance(said, dict) else said


@pytest.mark.parametrize("body", [b"{", b"", b'{"x": {"a": 1}, "y": 1} 2', b"\xff"])
def test_what_is_not_json_gets_the_same_reply_whole_in_two_and_chunked(shared: Service, body: bytes) -> None:
    replies = []
    for send in (whole, in_two, chunked):
        with shared.connect() as connection:
            replies.append(send(connection, "/learn", body))
    assert_problem(replies[0], 400)
    told = [(reply.status, without_what_differs(reply.text)) for reply in replies]
    assert told[0] == told[1] == told[2]


class Transport(asyncio.Transport):
    """Remembers what is written."""

    def __init__(self) -> None:
        super().__init__()
        self.written = b""
        self.has_written = asyncio.Event()
        self.has_closed = asyncio.Event()

    def write(self, data: Any) -> None:
        self.written += bytes(data)
        self.has_written.set()

    def get_write_buffer_size(self) -> int:
        """The client takes all at once."""
        return 0

    async def until_written(self, what: bytes, times: int = 1) -> None:
        async with asyncio.timeout(PATIENCE):
            while self.written.count(what) < times:
                self.has_written.clear()
                await self.has_written.wait()

    def close(self) -> None:
        self.has_closed.set()

    def is_closing(self) -> bool:
        return self.has_closed.is_set()

    def pause_reading(self) -> None:
        """It is the test that sends."""

    def resume_reading(self) -> None:
        """The same."""


def connected(service: app.Service) -> tuple[Protocol, Transport]:
    """A connection to a service in this process, without a network."""
    config = uvicorn.Config(service, log_config=None, proxy_headers=False)
    connection = Protocol(service, Crowd(service.settings), config=config, server_state=ServerState(), app_state={})
    transport = Transport()
    connection.connection_made(transport)
    return connection, transport


def test_a_whole_request_is_answered_as_it_is_read(tmp_path: Path) -> None:
    """Without a task in between: what uvicorn calls when a head is there is still what the short way takes over."""

    async def answered() -> bytes:
        connection, transport = connected(app.Service(Settings(data=tmp_path)))
        body = b'{"x": {}}'
        connection.data_received(head_of("/predict", len(body)) + body)
        assert asyncio.all_tasks() == {asyncio.current_task()}
        await asyncio.sleep(0)
        connection.connection_lost(ConnectionResetError())
        return transport.written

    assert asyncio.run(answered()).startswith(b"HTTP/1.1 503 ")  # it has not been started


def test_an_array_without_room_is_refused_by_its_head_and_the_connection_goes_on(
    tmp_path: Path,
) -> None:
    async def answered() -> list[bytes]:
        service = app.Service(Settings(data=tmp_path, queue_events=10))
        connection, transport = connected(service)
        replies = []

        async def told(data: bytes, needs: bytes) -> bytes:
            connection.data_received(data)
            await transport.until_written(needs)
            written, transport.written = transport.written, b""
            return written

        await recover(service.engine)
        body = json.dumps([{"x": {"age": i}, "y": 1} for i in range(3_000)]).encode()
        async with service.engine.queue.announced(10):
            replies.append(await told(head_of("/learn", len(body)), b"urn:logstep:queue-full"))
            asked = b'{"x": {}}'
            replies.append(await told(body + head_of("/predict", len(asked)) + asked, b'"p"'))
        replies.append(await told(head_of("/learn", len(body)) + body, b'"seq"'))
        await service.engine.stop(seconds=1)
        connection.connection_lost(ConnectionResetError())
        return replies

    refused, predicted, learned = asyncio.run(answered())
    assert refused.startswith(b"HTTP/1.1 503 ")
    assert b"\r\nretry-after: 1\r\n" in refused
    assert predicted.startswith(b"HTTP/1.1 200 ")
    assert predicted.count(b"HTTP/1.1") == 1
    assert learned.startswith(b"HTTP/1.1 200 ")


def test_of_a_body_that_is_refused_by_its_head_nothing_is_kept(tmp_path: Path) -> None:
    async def held() -> list[int]:
        service = app.Service(Settings(data=tmp_path))
        await recover(service.engine)
        connection, transport = connected(service)
        refused = head_of("/models/nobody/learn", 200_000)
        sizes = []

        def look() -> None:
            assert connection.cycle is not None
            sizes.append(len(connection.cycle.body))

        connection.data_received(refused + bytes(50_000))
        look()
        await asyncio.sleep(0)  # the reply is written
        connection.data_received(bytes(150_000))
        look()
        # The same, when it comes while another is answered.
        array = json.dumps([{"x": {}, "y": 1}] * 5_000).encode()
        connection.data_received(head_of("/learn", len(array)) + array + refused + bytes(50_000))
        await transport.until_written(b"urn:logstep:unknown-model", times=2)
        look()
        await service.engine.stop(seconds=1)
        connection.connection_lost(ConnectionResetError())
        return sizes

    assert asyncio.run(held()) == [0, 0, 0]


@pytest.mark.parametrize("refused", [False, True], ids=["learned", "refused"])
@pytest.mark.parametrize("cut", [1, 20, 100])
def test_a_head_that_begins_in_one_read_with_the_end_of_a_long_body_is_not_too_large(
    tmp_path: Path, refused: bool, cut: int
) -> None:
    async def answered() -> bytes:
        service = app.Service(Settings(data=tmp_path))
        await recover(service.engine)
        connection, transport = connected(service)
        array = json.dumps([{"x": {"age": i}, "y": 1} for i in range(2_000)]).encode()
        assert len(array) > service.settings.max_header_bytes
        question = b'{"x": {}}'
        after = head_of("/predict", len(question)) + question
        head = head_of("/models/nobody/learn" if refused else "/learn", len(array))
        connection.data_received(head + array[:100])
        connection.data_received(array[100:] + after[:cut])
        await asyncio.sleep(0.01)
        connection.data_received(after[cut:])
        await transport.until_written(b"HTTP/1.1 ", times=2)
        await service.engine.stop(seconds=1)
        connection.connection_lost(ConnectionResetError())
        return transport.written

    replies = [part[:3] for part in asyncio.run(answered()).split(b"HTTP/1.1 ")[1:]]
    assert replies == [b"404" if refused else b"200", b"200"]


def test_a_head_that_is_too_large_is_refused_wherever_it_begins(tmp_path: Path) -> None:
    """Whole in one read with what was before, or in many reads and without an end."""

    async def refused(*reads: bytes) -> bytes:
        connection, transport = connected(app.Service(Settings(data=tmp_path)))
        for read in reads:
            connection.data_received(read)
            await asyncio.sleep(0)
        async with asyncio.timeout(PATIENCE):
            await transport.has_closed.wait()
        connection.connection_lost(ConnectionResetError())
        return transport.written

    question = b'{"x": {}}'
    before, long_ = head_of("/predict", len(question)) + question, f"x-long: {'x' * 40_000}"
    whole = head_of("/predict", len(question), long_) + question
    begun = whole[:100]
    many = [b"x" * 10_000] * 5
    for reads in ([whole], [before + whole], [before, whole], [before + begun, *many], [begun, whole[100:]]):
        assert b"HTTP/1.1 431 " in asyncio.run(refused(*reads)), [len(read) for read in reads]


def test_a_large_prediction_does_not_wait_for_a_large_array_in_line(tmp_path: Path) -> None:
    def large(content: list[dict[str, Any]]) -> bytes:
        body = json.dumps(content).encode()
        assert len(body) > 2**20
        return body

    async def answered() -> bytes:
        service = app.Service(Settings(data=tmp_path, queue_events=10))
        await recover(service.engine)
        learns, told = connected(service)
        predicts, transport = connected(service)
        events = large([{"x": {"age": i}, "y": 1} for i in range(50_000)])
        questions = large([{"x": {"age": i, "name": "n" * 100}} for i in range(10_000)])
        async with service.engine.queue.announced(9):
            learns.data_received(head_of("/learn", len(events)) + events)
            await asyncio.sleep(0.1)
            predicts.data_received(head_of("/predict", len(questions)) + questions)
            await transport.until_written(b"HTTP/1.1 ")
            assert not told.written
        await service.engine.stop(seconds=1)
        for connection in (learns, predicts):
            connection.connection_lost(ConnectionResetError())
        return transport.written

    assert asyncio.run(answered()).startswith(b"HTTP/1.1 200 ")


def test_large_bodies_that_wait_for_one_another_count_as_bodies_that_are_held(tmp_path: Path) -> None:
    async def answered() -> list[bytes]:
        service = app.Service(Settings(data=tmp_path, max_bodies_bytes=3 * 2**20))
        await recover(service.engine)
        body = json.dumps([{"x": {"age": i, "name": "n" * 100}} for i in range(10_000)]).encode()
        assert 2**20 < len(body) < 1.5 * 2**20
        peers = [connected(service) for _ in range(3)]
        async with service.arrays.large:
            for connection, _ in peers:
                connection.data_received(head_of("/predict", len(body)) + body)
                await asyncio.sleep(0.1)
            waiting = [transport.written for _, transport in peers]
        for _, transport in peers:
            await transport.until_written(b"HTTP/1.1 ")
        await service.engine.stop(seconds=1)
        for connection, _ in peers:
            connection.connection_lost(ConnectionResetError())
        assert [bool(written) for written in waiting] == [False, False, True]
        return [transport.written for _, transport in peers]

    first, second, third = asyncio.run(answered())
    assert first.startswith(b"HTTP/1.1 200 ")
    assert second.startswith(b"HTTP/1.1 200 ")
    assert third.startswith(b"HTTP/1.1 503 ")
    assert b"urn:logstep:too-many-bodies" in third


def test_events_that_arrive_slowly_count_as_bodies_that_are_held(tmp_path: Path) -> None:
    """All but the short ones, which wait without ASGI."""

    async def refused(length: int) -> int:
        (folder := tmp_path / str(length)).mkdir()
        service = app.Service(Settings(data=folder, max_bodies_bytes=2**20))
        await recover(service.engine)
        peers = [connected(service) for _ in range(30)]
        for connection, _ in peers:
            connection.data_received(head_of("/learn", length) + b" " * (length - 1))
            await asyncio.sleep(0)
        await asyncio.sleep(0.1)
        for connection, _ in peers:
            connection.connection_lost(ConnectionResetError())
        await service.engine.stop(seconds=1)
        return sum(b"urn:logstep:too-many-bodies" in transport.written for _, transport in peers)

    assert asyncio.run(refused(60_000)) == 30 - 2**20 // 60_000
    assert asyncio.run(refused(16_000)) == 0


def test_pipelined_requests_are_answered_in_their_order(shared: Service) -> None:
    model = shared.model("pipelined")
    assert model.create({}).status_code == 201
    bodies = [json.dumps({"x": {"a": i}, "y": i % 2}).encode() for i in range(200)]
    questions = [json.dumps({"x": {"a": i}}).encode() for i in range(200)]
    with shared.connect() as connection:
        sent = b""
        for body, question in zip(bodies, questions, strict=True):
            sent += head_of(f"{model.path}/learn", len(body)) + body
            sent += head_of(f"{model.path}/predict", len(question)) + question
        connection.send(sent)
        for seq in range(1, 201):
            assert json.loads(reply_of(connection))["seq"] == seq
            assert json.loads(reply_of(connection))["seq"] == seq  # the prediction sees what was learned before it


def reply_of(connection: Connection) -> bytes:
    """The body of the next reply, and no byte of the one after it."""
    text = b""
    while not text.endswith(b"\r\n\r\n"):
        text += connection.socket.recv(1)
    length = int(next(line for line in text.split(b"\r\n") if line.startswith(b"content-length"))[15:])
    return connection.socket.recv(length, socket.MSG_WAITALL)


# -- uvicorn's insides


def test_the_versions_of_uvicorn_are_those_in_pyproject() -> None:
    project = tomllib.loads((Path(__file__).parent.parent / "pyproject.toml").read_text())["project"]
    since, before = (".".join(map(str, version)) for version in (SINCE, BEFORE))
    assert f"uvicorn>={since},<{before}" in project["dependencies"]


@pytest.mark.parametrize(
    ("version", "known"),
    [("0.44.0", False), ("0.45.0", True), ("0.54.0rc1", True), ("0.55.0", False), ("1.0", False)],
)
def test_a_version_of_uvicorn_fits_or_not(version: str, known: bool) -> None:
    assert fits(version) == known
    assert fits(uvicorn.__version__)


def as_if_uvicorn_was_newer() -> None:
    sys.modules["service.http.connection"].BEFORE = SINCE  # type: ignore[attr-defined]  # of any module


def as_if_uvicorn_had_no_such_classes() -> None:
    sys.modules["service.http.connection"] = None  # type: ignore[assignment]  # so its import fails


@pytest.mark.parametrize("first", [None, as_if_uvicorn_was_newer, as_if_uvicorn_had_no_such_classes])
def test_with_an_unknown_uvicorn_the_service_serves_through_asgi_and_says_so(
    tmp_path: Path, first: Callable[[], None] | None
) -> None:
    with Service(tmp_path / "data", "--drain-seconds", "0", first=first) as service:
        service.wait_until_ready()
        with Connection(service.port) as client:
            assert [whole(client, "/learn", AN_EVENT).json()["seq"] for _ in range(3)] == [1, 2, 3]
            assert whole(client, "/predict", A_QUESTION).json()["seq"] == 3
            assert whole(client, "/predict", b"[%b]" % A_QUESTION).json()[0]["seq"] == 3
            assert_problem(whole(client, "/predict", b"{"), 400)
        assert ("is not one that logstep was written for" in service.log) == (first is not None)


# -- what a head may say


OFFERS = [
    ("connection: Upgrade, HTTP2-Settings", "upgrade: h2c", "http2-settings: AAMAAABkAAQAoAAAAAIAAAAA"),
    ("connection: upgrade", "upgrade: websocket", "sec-websocket-key: dGhlIHNhbXBsZSBub25jZQ=="),
    ("connection: Upgrade", "upgrade: TLS/1.2"),
]
"""What Java's HttpClient and curl --http2 send, what a proxy with the usual lines lets through, and another."""
AN_EVENT, A_QUESTION = b'{"x": {"a": 1}, "y": 1}', b'{"x": {"a": 1}}'
_sink = pa.BufferOutputStream()
with pa.ipc.new_stream(_sink, pa.schema({"a": pa.float64()})) as _writer:
    _writer.write_table(pa.table({"a": [1.0, 2.0]}))
ASKED: dict[str, tuple[str, str, bytes]] = {
    "json": ("POST /predict", "application/json", A_QUESTION),
    "array": ("POST /predict", "application/json", b"[%b, %b]" % (A_QUESTION, A_QUESTION)),
    "ndjson": ("POST /predict", "application/x-ndjson", A_QUESTION + b"\n" + A_QUESTION),
    "arrow": ("POST /predict", "application/vnd.apache.arrow.stream", _sink.getvalue().to_pybytes()),
    "an event": ("POST /learn", "application/json", AN_EVENT),
    "events": ("POST /models/default/learn", "application/x-ndjson", AN_EVENT + b"\n" + AN_EVENT),
    "explain": ("POST /models/default/explain", "application/json", A_QUESTION),
    "a spec": ("PUT /models/made", "application/json", b'{"rule": "adam"}'),
    "no body": ("GET /models", "application/json", b""),
}


def asked_with(kind: str, offer: Sequence[str], chunked: bool) -> bytes:
    """The bytes of a request, and of another after it."""
    line, content_type, body = ASKED[kind]
    length = "transfer-encoding: chunked" if chunked else f"content-length: {len(body)}"
    head = "\r\n".join([f"{line} HTTP/1.1", "host: localhost", f"content-type: {content_type}", length, *offer, "", ""])
    if chunked:
        half = len(body) // 2
        pieces = [piece for piece in (body[:half], body[half:]) if piece]
        body = b"".join(b"%x\r\n%b\r\n" % (len(piece), piece) for piece in pieces) + b"0\r\n\r\n"
    return head.encode() + body + b"GET /livez HTTP/1.1\r\nhost: localhost\r\n\r\n"


@from_checks_on
@pytest.mark.parametrize("kind", ASKED)
def test_an_offer_of_another_protocol_is_ignored_wherever_the_request_is_cut(tmp_path: Path, kind: str) -> None:
    """RFC 9110, 7.8. The request gets the reply that it gets without the offer, and the next one its own."""

    async def replies() -> None:
        service = app.Service(Settings(data=tmp_path))
        await recover(service.engine)
        model = service.engine.model("default")

        async def reply(sent: bytes, cut: int) -> list[Any]:
            connection, transport = connected(service)
            before = model.learner.seq
            connection.data_received(sent[:cut])
            if cut % 3 == 0:  # what is there is dealt with before the rest comes
                await asyncio.sleep(0)
            connection.data_received(sent[cut:])
            await transport.until_written(b'{"status":"alive",')
            connection.connection_lost(None)
            told = [split_reply(part) for part in transport.written.split(b"HTTP/1.1 ")[1:]]
            return [told, model.learner.seq - before]

        for chunked in (False, True):
            plain = await reply(asked_with(kind, (), chunked), 0)
            plain = await reply(asked_with(kind, (), chunked), 0)  # the first makes what the others find made
            assert [status[:1] for status, _ in plain[0]] == [b"2", b"2"]
            for number, offer in enumerate(OFFERS):
                sent = asked_with(kind, offer, chunked)
                step = 3 if kind in {"arrow", "an event", "events"} else 1  # long, or learned and synced
                for cut in range(number, len(sent), len(OFFERS) * step):  # each cut with one of them
                    assert await reply(sent, cut) == plain, (offer, cut)
        await service.engine.stop(seconds=1)

    asyncio.run(replies())


def split_reply(part: bytes) -> tuple[bytes, bytes]:
    """Status and body of a reply; of what was learned without the numbers that differ each time."""
    head, _, body = part.partition(b"\r\n\r\n")
    return head[:3], re.sub(rb'"(seq|first_seq|last_seq|p|loss|log_loss)":[^,}]+', b"", body)


@examples(60)
@hypothesis.given(
    asked=st.lists(
        st.tuples(st.sampled_from(["json", "array", "ndjson", "arrow", "explain"]), st.booleans(), st.integers(0, 3)),
        min_size=1,
        max_size=6,
    ),
    cuts=st.lists(st.integers(0, 4_000), max_size=8),
    pauses=st.booleans(),
)
def test_requests_of_one_connection_get_the_same_replies_however_their_bytes_arrive(
    running: tuple[asyncio.Runner, app.Service], asked: list[tuple[str, bool, int]], cuts: list[int], pauses: bool
) -> None:
    """In order, with and without offers, whole or in chunks, and whatever comes in one read."""
    runner, service = running
    requests = [asked_with(kind, [(), *OFFERS][offer], chunked) for kind, chunked, offer in asked]
    sent = b"".join(requests)
    places = [0, *sorted(cut for cut in cuts if cut < len(sent)), len(sent)]

    async def replies(pieces: Sequence[bytes]) -> list[tuple[bytes, bytes]]:
        connection, transport = connected(service)
        for piece in pieces:
            connection.data_received(piece)
            if pauses:
                await asyncio.sleep(0)
        await transport.until_written(b'{"status":"alive",', pieces_of_alive)
        connection.connection_lost(None)
        return [split_reply(part) for part in transport.written.split(b"HTTP/1.1 ")[1:]]

    pieces_of_alive = 1
    one_by_one = [reply for one in requests for reply in runner.run(replies([one]))]
    pieces_of_alive = len(requests)
    cut = [sent[here:there] for here, there in itertools.pairwise(places)]
    assert runner.run(replies(cut)) == one_by_one


@pytest.fixture(scope="module")
def running(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[asyncio.Runner, app.Service]]:
    """A service in this process, and what runs it."""
    with asyncio.Runner() as runner:
        service = app.Service(Settings(data=tmp_path_factory.mktemp("running")))
        runner.run(recover(service.engine))
        yield runner, service
        runner.run(service.engine.stop(seconds=1))


def test_a_request_to_connect_is_refused_and_ends_the_connection(shared: Service) -> None:
    for target in (b"/livez", b"example.com:443"):
        with shared.connect() as connection:
            connection.send(b"CONNECT %b HTTP/1.1\r\nhost: localhost\r\n\r\nGET /livez HTTP/1.1\r\n\r\n" % target)
            assert connection.reply().status in {400, 405}
            assert connection.socket.recv(1) == b""


@pytest.mark.parametrize(
    ("more", "told"),
    [
        (["transfer-encoding: gzip, chunked"], "gzip, chunked"),
        (["transfer-encoding: gzip", "transfer-encoding: chunked"], "gzip, chunked"),
        (["transfer-encoding: chunked", "host: example.com"], "host"),
        (["content-length: 15", "host: localhost"], "host"),
        (["content-length: 15", "content-type: application/x-ndjson"], "content-type"),
        (["content-length: 15", "authorization: Bearer a", "authorization: Bearer b"], "authorization"),
    ],
)
@pytest.mark.parametrize("path", ["/predict", "/models/default/explain", "/livez"])
def test_a_head_that_can_be_understood_in_two_ways_is_refused(
    shared: Service, more: list[str], told: str, path: str
) -> None:
    lines = [f"POST {path} HTTP/1.1", "host: localhost", "content-type: application/json", *more, "", ""]
    with shared.connect() as connection:
        connection.send("\r\n".join(lines).encode() + b'{"x": {"a": 1}}GET /livez HTTP/1.1\r\nhost: x\r\n\r\n')
        assert_problem(connection.reply(), 400, told)
        assert connection.socket.recv(1) == b""


def test_a_transfer_coding_in_http_1_0_is_refused(shared: Service) -> None:
    with shared.connect() as connection:
        connection.send(
            b"POST /predict HTTP/1.0\r\ncontent-type: application/json\r\ntransfer-encoding: chunked\r\n\r\n"
        )
        assert_problem(connection.reply(), 400, "HTTP/1.0")


def test_trailers_are_headers_of_no_request(shared: Service) -> None:
    """Neither of their own, nor of the next."""
    with shared.connect() as connection:
        body = b'1\r\n{\r\n8\r\n"x": {}}\r\n0\r\nx-request-id: of-a-trailer\r\nhost: example.com\r\n\r\n'
        connection.send_head("/predict", content_type="application/json", transfer_encoding="chunked")
        connection.send(body)
        ids = [connection.reply().headers["x-request-id"]]
        ids.append(whole(connection, "/predict", b'{"x": {}}').headers["x-request-id"])
        connection.send_head("/livez", "GET")
        ids.append(connection.reply().headers["x-request-id"])
    assert "of-a-trailer" not in ids


# -- malformed


def test_a_malformed_chunk_gets_no_second_head_into_a_reply_that_has_begun(shared: Service) -> None:
    with shared.connect() as connection:
        connection.send_head("/stream", "GET", transfer_encoding="chunked")
        begun = b""
        while b"\r\n\r\n" not in begun:
            begun += connection.socket.recv(65_536)
        connection.send(b"xyz\r\n")
        while piece := connection.socket.recv(65_536):
            begun += piece
    assert begun.count(b"HTTP/1.1 ") == 1
    assert begun.startswith(b"HTTP/1.1 200 ")
    assert not begun.endswith(b"0\r\n\r\n")  # it is cut, and not ended


def test_a_refused_request_whose_body_goes_wrong_gets_one_reply(shared: Service) -> None:
    for path, status in (("/models/nobody/learn", 404), ("/learn", 415)):
        with shared.connect() as connection:
            connection.send_head(
                path, content_type="application/json" if status == 404 else "text/plain", transfer_encoding="chunked"
            )
            connection.send(b"3\r\nabc\r\nxyz\r\n")
            assert connection.reply().status == status
            assert connection.socket.recv(1) == b""


def test_a_stream_whose_chunks_go_wrong_tells_what_was_learned(shared: Service) -> None:
    model = shared.model("broken-chunks")
    assert model.create({}).status_code == 201
    with shared.connect() as connection:
        connection.send_head(f"{model.path}/learn", content_type="application/x-ndjson", transfer_encoding="chunked")
        connection.send_chunk(AN_EVENT + b"\n")
        connection.send(b"xyz\r\n")
        problem = assert_problem(connection.reply(), 400, "not valid HTTP")
        assert (problem["learned"], connection.socket.recv(1)) == (1, b"")
    assert model.state()["seq"] == 1


def test_what_was_asked_before_something_malformed_is_answered_before_it_is_told(shared: Service) -> None:
    model = shared.model("before-malformed")
    assert model.create({}).status_code == 201
    with shared.connect() as connection:
        connection.send((head_of(f"{model.path}/learn", len(AN_EVENT)) + AN_EVENT) * 3 + b"NONSENSE\r\n\r\n")
        assert [json.loads(reply_of(connection))["seq"] for _ in range(3)] == [1, 2, 3]
        assert_problem(connection.reply(), 400, "not valid HTTP")
        assert connection.socket.recv(1) == b""


# -- HTTP/1.0


def test_http_1_0_keeps_its_connection_where_it_asks_to(shared: Service) -> None:
    keep = ("connection: Keep-Alive",)
    with shared.connect() as connection:
        for path, body in (("/predict", A_QUESTION), ("/predict", b"[%b]" % A_QUESTION), ("/predict", A_QUESTION)):
            connection.send(head_of(path, len(body), *keep, version="1.0") + body)
            reply = connection.reply()
            assert (reply.status, reply.headers["connection"]) == (200, "keep-alive")
        connection.send(b"GET /livez HTTP/1.0\r\nhost: localhost\r\n\r\n")
        assert connection.reply().headers["connection"] == "close"
        assert connection.socket.recv(1) == b""


def test_http_1_0_gets_a_reply_without_chunks_where_no_length_is_known(shared: Service) -> None:
    with shared.connect() as connection:
        connection.send(b"GET /stream HTTP/1.0\r\nhost: localhost\r\nconnection: keep-alive\r\n\r\n")
        begun = b""
        while b"\n\n" not in begun:
            begun += connection.socket.recv(65_536)
    head, _, events = begun.partition(b"\r\n\r\n")
    assert b"chunked" not in head
    assert b"connection: close" in head
    assert events.startswith(b"retry: ")


@pytest.mark.parametrize(("version", "more"), [("1.0", ()), ("1.1", ("connection: close",))])
def test_a_client_that_wants_one_reply_gets_it_and_the_end(shared: Service, version: str, more: tuple[str]) -> None:
    body = b'{"x": {"a": 1}}'
    with shared.connect() as connection:
        connection.send(head_of("/predict", len(body), *more, version=version) + body)
        reply = connection.reply()
        assert (reply.status, reply.headers["connection"]) == (200, "close")
        assert connection.socket.recv(1) == b""


def test_a_client_that_asks_before_it_sends_its_body_is_told_to_go_on(shared: Service) -> None:
    body = b'{"x": {"a": 1}}'
    with shared.connect() as connection:
        connection.send(head_of("/predict", len(body), "expect: 100-continue"))
        assert connection.socket.recv(100) == b"HTTP/1.1 100 Continue\r\n\r\n"
        connection.send(body)
        assert connection.reply().status == 200


def test_a_client_that_goes_before_its_reply_changes_nothing_for_others(shared: Service) -> None:
    model = shared.model("left-alone")
    assert model.create({}).status_code == 201
    body = b'{"x": {"a": 1}, "y": 1}'
    with shared.paused():
        for _ in range(20):
            with shared.connect() as connection:
                connection.send(head_of(f"{model.path}/learn", len(body)) + body)
    eventually(lambda: model.state()["seq"] == 20, "what they sent to be learned")
    assert model.learn({"x": {"a": 1}, "y": 1}).json()["seq"] == 21


def test_what_is_not_http_is_told_so(shared: Service) -> None:
    with shared.connect() as connection:
        connection.send(b"x\r\n\r\n")
        assert_problem(connection.reply(), 400, "not valid HTTP")
        assert connection.socket.recv(1) == b""


# -- too many


def test_connections_beyond_the_limit_are_told_so_while_all_others_are_at_work(start: Start) -> None:
    service = start("--max-connections", "5")
    service.http.close()
    body = b'{"x": {}}'
    with ExitStack() as stack:
        connections = [stack.enter_context(service.connect()) for _ in range(5)]
        for connection in connections:
            connection.send(head_of("/predict", len(body)))
        eventually(lambda: len(sockets_of(service)) >= 6, "the connections to be there")
        with service.connect() as one_more:
            refused = whole(one_more, "/predict", body)
            assert_problem(refused, 503, "5 connections", "LOGSTEP_MAX_CONNECTIONS")
            assert refused.headers["retry-after"] == "1"
            assert one_more.socket.recv(1) == b""
        for connection in connections:
            connection.send(body)
            assert connection.reply().status == 200
            assert whole(connection, "/predict", body).status == 200
        with service.connect() as another:
            assert whole(another, "/predict", body).status == 200


def test_at_the_limit_the_connection_is_closed_that_was_idle_the_longest(start: Start) -> None:
    """But not one on which a request has come that is not read yet."""
    service = start("--max-connections", "5")
    service.http.close()
    body = b'{"x": {}}'
    with ExitStack() as stack:
        connections = [stack.enter_context(service.connect()) for _ in range(5)]
        for i in (3, 1, 0, 4, 2):
            assert whole(connections[i], "/predict", body).status == 200
        with service.paused():
            connections[3].send(head_of("/predict", len(body)) + body)
            new = stack.enter_context(service.connect())
        assert connections[3].reply().status == 200
        assert whole(new, "/predict", body).status == 200
        assert connections[1].socket.recv(1) == b""
        for i in (0, 2, 3, 4):
            assert whole(connections[i], "/predict", body).status == 200, i


def test_a_connection_is_kept_for_as_long_as_is_set_and_closed_then(start: Start) -> None:
    service = start("--keep-alive-seconds", "1.0")
    body = b'{"x": {}}'
    with service.connect() as connection:
        for _ in range(3):  # longer than it would be kept if nothing was asked
            assert whole(connection, "/predict", body).status == 200
            time.sleep(0.4)
        began = time.monotonic()
        assert whole(connection, "/predict", body).status == 200
        assert connection.socket.recv(1) == b""
        assert time.monotonic() - began > 0.9


def test_so_many_files_may_be_open_as_there_may_be_connections(shared: Service) -> None:
    limits = Path(f"/proc/{shared.process.pid}/limits").read_text()
    found = re.search(r"Max open files +(\d+|unlimited) +(\d+|unlimited)", limits)
    assert found is not None
    soft, hard = found.groups()
    assert soft == hard or int(soft) > Settings.model_fields["max_connections"].default


class Deaf(Transport):
    """That of a client that takes nothing."""

    connection: Protocol

    def __init__(self, socket_: socket.socket) -> None:
        super().__init__()
        self._socket = socket_

    def write(self, data: Any) -> None:
        super().write(data)
        if self.get_write_buffer_size() > 65_536 and not self.connection.flow.write_paused:
            self.connection.pause_writing()

    def get_write_buffer_size(self) -> int:
        return len(self.written)

    def get_extra_info(self, name: str, default: Any = None) -> Any:
        return self._socket if name == "socket" else default

    def abort(self) -> None:
        self.has_closed.set()
        self.connection.connection_lost(None)


def test_a_large_reply_waits_for_nobody_where_too_much_waits_already(tmp_path: Path) -> None:
    """It gets 503 while all that wait may yet take theirs; then those are cut that have taken nothing for long."""

    async def app_(scope: Any, receive: Any, send: Any) -> None:
        headers = [(b"content-length", b"350000"), (b"x-request-id", b"mine")]
        await send({"type": "http.response.start", "status": 200, "headers": headers})
        await send({"type": "http.response.body", "body": b"x" * 350_000})

    async def outcome(socket_: socket.socket) -> None:
        service = app.Service(Settings(data=tmp_path, max_unsent_bytes=2**20))
        crowd = Crowd(service.settings)
        config = uvicorn.Config(service, log_config=None, proxy_headers=False)

        async def asks() -> Deaf:
            transport = Deaf(socket_)
            connection = Protocol(service, crowd, config=config, server_state=ServerState(), app_state={})
            transport.connection, connection.app = connection, app_
            connection.connection_made(transport)
            connection.data_received(b"GET / HTTP/1.1\r\nhost: localhost\r\n\r\n")
            await transport.until_written(b"\r\n\r\n")
            return transport

        waiting = [await asks() for _ in range(2)]
        assert [transport.written[9:12] for transport in waiting] == [b"200", b"200"]
        refused = await asks()
        assert refused.written[9:12] == b"503"
        assert b"x-request-id: mine" in refused.written
        assert b'"request_id":"mine"' in refused.written
        first, second = (transport.connection for transport in waiting)
        second.peer.taken_at -= 2 * STILL_SECONDS
        last = await asks()
        assert last.written[9:12] == b"200"
        assert [transport.has_closed.is_set() for transport in waiting] == [False, True]
        assert first.serving is not None
        assert first.serving.writes == 350_000
        for connection in (first, last.connection, refused.connection):
            connection.connection_lost(None)
            await asyncio.gather(*connection.tasks)

    with socket.socket() as socket_:
        asyncio.run(outcome(socket_))


# -- too slow


@pytest.fixture(scope="module")
def impatient(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Service]:
    """A service that waits half a second for requests."""
    starter = Starter(tmp_path_factory.mktemp("impatient"))
    yield starter("--request-seconds", "0.5")
    starter.close()


@from_checks_on
@pytest.mark.parametrize(
    "begun",
    [
        b"",
        b"POST /learn HTT",
        b"POST /learn HTTP/1.1\r\nhost: localhost\r\n",
        head_of("/learn", 20) + b'{"x": ',
        head_of("/models/default/explain", 20) + b'{"x": ',
        head_of("/learn", 100_000) + b'{"x": ',
    ],
    ids=["nothing", "half a line", "half a head", "half a body", "half a body of another route", "half of a long body"],
)
def test_a_request_that_does_not_arrive_in_time_is_ended(impatient: Service, begun: bytes) -> None:
    with impatient.connect() as connection:
        started = time.monotonic()
        connection.send(begun)
        reply = connection.reply()
        assert 0.4 < time.monotonic() - started < 5
        assert_problem(reply, 408, "0.5 s", "LOGSTEP_REQUEST_SECONDS")
        assert reply.headers["connection"] == "close"
        assert connection.socket.recv(1) == b""


def test_a_request_that_comes_a_byte_at_a_time_is_ended_too(impatient: Service) -> None:
    with impatient.connect() as connection:
        started = time.monotonic()
        sent = 0
        with suppress(OSError):  # reset, or a broken pipe, as it comes
            for byte in head_of("/learn", 20) * 100:
                sent += connection.socket.send(bytes([byte]))
                time.sleep(0.02)
        assert sent < 5 * len(head_of("/learn", 20))
        assert time.monotonic() - started < 10


def test_a_stream_may_take_long_but_not_stand_still(impatient: Service) -> None:
    model = impatient.model("slow-stream")
    assert model.create({}).status_code == 201
    with impatient.connect() as connection:
        connection.send_head(f"{model.path}/learn", transfer_encoding="chunked", content_type="application/x-ndjson")
        for _ in range(4):
            connection.send_chunk(b'{"x": {"a": 1}, "y": 1}\n')
            time.sleep(0.2)
        problem = assert_problem(connection.reply(), 408, "or the next bytes of a stream")
        assert (problem["learned"], problem["last_seq"]) == (4, 4)
        assert connection.socket.recv(1) == b""
    assert model.state()["seq"] == 4


@from_checks_on
def test_a_reply_that_nobody_takes_is_given_up(impatient: Service) -> None:
    connections = set(sockets_of(impatient))
    with impatient.connect() as connection:
        connection.socket.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        lines = b'{"x": {"a": 1}}\n' * 200_000
        connection.send_head("/predict", content_type="application/x-ndjson", content_length=len(lines))
        connection.send(lines)
        eventually(lambda: len(sockets_of(impatient)) > len(connections), "the connection to be there")
        eventually(lambda: len(sockets_of(impatient)) <= len(connections), "the connection to be given up")


def sockets_of(service: Service) -> list[str]:
    """The service's open sockets."""
    found = []
    for link in Path(f"/proc/{service.process.pid}/fd").iterdir():
        try:
            target = str(link.readlink())
        except FileNotFoundError:
            continue
        if target.startswith("socket:"):
            found.append(target)
    return found


def test_arrays_beyond_the_queue_and_the_line_before_it_are_refused(start: Start) -> None:
    service = start("--queue-events", "4000")
    body = json.dumps([{"x": {"age": i}, "y": 1} for i in range(3_000)]).encode()
    with ExitStack() as stack:
        connections = [stack.enter_context(service.connect()) for _ in range(40)]
        with service.paused():
            for connection in connections:
                connection.send(head_of("/learn", len(body)) + body)
        statuses = [connection.reply().status for connection in connections]
    assert set(statuses) == {200, 503}
    assert service.get("/models/default")["seq"] == 3_000 * statuses.count(200)


@pytest.mark.parametrize(("content_type", "status"), [("text/plain", 415), ("application/json", 413)])
def test_what_is_wrong_whatever_room_there_is_is_told_first(tmp_path: Path, content_type: str, status: int) -> None:
    async def answered() -> bytes:
        service = app.Service(Settings(data=tmp_path, queue_events=10, max_body_bytes=100_000))
        connection, transport = connected(service)
        await recover(service.engine)
        async with service.engine.queue.announced(10):
            connection.data_received(head_of("/learn", 200_000).replace(b"application/json", content_type.encode()))
            await transport.until_written(b"HTTP/1.1 ")
        await service.engine.stop(seconds=1)
        connection.connection_lost(ConnectionResetError())
        return transport.written

    assert asyncio.run(answered()).startswith(b"HTTP/1.1 %d " % status)
