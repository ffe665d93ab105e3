"""HTTP as clients really speak it: real ones, proxies, those that end their side, and those that do not read."""

from __future__ import annotations

import itertools
import json
import re
import shutil
import signal
import socket
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, closing, suppress
from pathlib import Path
from threading import Thread

import pytest
from effort import few, from_checks_on
from forked import clean_environment
from harness import LOGSTEP, Connection, Model, Service, Start, assert_problem
from patience import PATIENCE, eventually

EVENT, QUESTION = b'{"x": {"a": 1}, "y": 1}', b'{"x": {"a": 1}}'
MIB = 2**20


def request(path: str, body: bytes, content_type: str = "application/json", method: str = "POST") -> bytes:
    lines = [f"{method} {path} HTTP/1.1", "host: localhost", f"content-type: {content_type}"]
    return "\r\n".join([*lines, f"content-length: {len(body)}", "", ""]).encode() + body


def in_chunks(path: str, body: bytes, content_type: str) -> bytes:
    lines = [f"POST {path} HTTP/1.1", "host: localhost", f"content-type: {content_type}"]
    head = "\r\n".join([*lines, "transfer-encoding: chunked", "", ""]).encode()
    return head + b"%x\r\n%b\r\n0\r\n\r\n" % (len(body), body)


def rest(connection: Connection) -> bytes:
    """What comes until the end."""
    return b"".join(iter(lambda: connection.socket.recv(65_536), b""))


def replies(connection: Connection) -> Iterator[tuple[int, bytes]]:
    """Status and body of each reply that comes, however many come at once."""
    with closing(connection.socket.makefile("rb")) as comes:
        while line := comes.readline():
            length = 0
            while (field := comes.readline()) != b"\r\n":
                if field.startswith(b"content-length: "):
                    length = int(field[16:])
            yield int(line.split()[1]), comes.read(length)


def resident(service: Service) -> int:
    """Bytes of memory that a service takes."""
    status = Path(f"/proc/{service.process.pid}/status").read_text()
    found = re.search(r"VmRSS:\s+(\d+) kB", status)
    assert found is not None
    return int(found[1]) * 1024


def sockets_of(service: Service) -> int:
    """How many sockets a service has open."""
    count = 0
    for link in Path(f"/proc/{service.process.pid}/fd").iterdir():
        with suppress(FileNotFoundError):
            count += str(link.readlink()).startswith("socket:")
    return count


# -- clients that end their side


@pytest.mark.parametrize(
    "sent",
    [
        lambda path: request(f"{path}/learn", EVENT),
        lambda path: request(f"{path}/learn", b"[%b, %b]" % (EVENT, EVENT)),
        lambda path: request(f"{path}/learn", EVENT + b"\n" + EVENT, "application/x-ndjson"),
        lambda path: in_chunks(f"{path}/learn", EVENT, "application/json"),
        lambda path: in_chunks(f"{path}/learn", EVENT + b"\n" + EVENT + b"\n", "application/x-ndjson"),
        lambda path: request(f"{path}/predict", QUESTION),
        lambda path: request(f"{path}/predict", QUESTION, "application/x-ndjson"),
        lambda path: request(f"{path}/explain", QUESTION),
        lambda path: request(path, b"", method="GET"),
        lambda path: request("/metrics", b"", method="GET"),
    ],
    ids=["event", "array", "lines", "event in chunks", "lines in chunks", "question", "questions", "x", "get", "long"],
)
def test_a_client_that_ends_its_side_is_answered_and_then_the_connection_ends(
    model: Model, sent: Callable[[str], bytes]
) -> None:
    asked = sent(model.path)
    with model.service.connect() as connection:
        connection.send(asked)
        connection.socket.shutdown(socket.SHUT_WR)
        reply = rest(connection)
    assert reply.startswith(b"HTTP/1.1 200 "), reply
    assert reply.count(b"HTTP/1.1 ") == 1
    events = asked.count(b'"y"')
    assert model.state()["seq"] == events
    if events > 1 and b"ndjson" in asked:
        assert b'"learned":2' in reply


def test_all_that_a_client_asked_before_it_ended_its_side_is_answered(model: Model) -> None:
    asked = [request(f"{model.path}/learn", EVENT), request(f"{model.path}/predict", b"[%b]" % QUESTION)] * 50
    with model.service.connect() as connection:
        connection.send(b"".join(asked))
        connection.socket.shutdown(socket.SHUT_WR)
        replies = rest(connection)
    seqs = [int(seq) for seq in re.findall(rb'"seq":(\d+)', replies)]
    assert seqs == [1 + i // 2 for i in range(100)]


def test_a_client_that_ends_its_side_in_the_middle_is_told_what_came_of_it(model: Model) -> None:
    lines = request(f"{model.path}/learn", (EVENT + b"\n") * 5, "application/x-ndjson")
    cut = {
        lines[: -2 * len(EVENT)]: 3,
        in_chunks(f"{model.path}/learn", (EVENT + b"\n") * 3, "application/x-ndjson")[:-5]: 3,
        request(f"{model.path}/learn", EVENT)[:-1]: None,
        request(f"{model.path}/learn", b"[%b, %b]" % (EVENT, EVENT))[:-1]: None,
        request(f"{model.path}/explain", QUESTION)[:-1]: None,
        request(f"{model.path}/learn", EVENT)[:40]: None,
    }
    for sent, learned in cut.items():
        before = model.state()["seq"]
        with model.service.connect() as connection:
            connection.send(sent)
            connection.socket.shutdown(socket.SHUT_WR)
            reply = connection.reply()
            assert_problem(reply, 400)
            assert reply.json().get("learned") == learned
            assert rest(connection) == b""
        assert model.state()["seq"] == before + (learned or 0)


def test_a_client_that_asked_nothing_and_ends_its_side_is_let_go_at_once(shared: Service) -> None:
    for asked in (b"", b"\r\n", request("/predict", QUESTION)):
        with shared.connect() as connection:
            connection.send(asked)
            if asked.strip():
                assert connection.reply().status == 200
            connection.socket.shutdown(socket.SHUT_WR)
            assert rest(connection) == b""


def test_a_viewer_that_ends_its_side_sees_on_and_is_noticed_when_it_goes(model: Model) -> None:
    before = sockets_of(model.service)
    with model.service.connect() as connection:
        connection.send_head(f"{model.path}/stream", "GET")
        connection.socket.shutdown(socket.SHUT_WR)
        seen = b""
        while b'"seq":1,' not in seen:
            if b"event: now" in seen and not model.state()["seq"]:
                model.learn({"x": {"a": 1}, "y": 1})
            seen += connection.socket.recv(65_536)

    def gone() -> bool:
        model.learn({"x": {"a": 1}, "y": 1})
        return sockets_of(model.service) <= before + 1  # that of the client that learns

    eventually(gone, "the connection to be let go")


# -- clients that do not read


def test_pipelined_requests_of_a_client_that_does_not_read_take_little_memory(start: Start) -> None:
    service = start()
    asked = b"GET /livez HTTP/1.1\r\nhost: localhost\r\n\r\n" * 25_000
    with service.connect() as connection:
        connection.send(asked[: len(asked) // 25])
        assert len(list(itertools.islice(replies(connection), 1_000))) == 1_000  # memory that the first requests take
        before, sent = resident(service), 0
        connection.socket.settimeout(1.0)
        with suppress(TimeoutError):
            while sent < 100 * MIB:
                sent += connection.socket.send(asked)
        assert resident(service) - before < 30 * MIB
        assert service.get("/livez")["status"] == "alive"
    assert sent < 100 * MIB  # it was not read on


@from_checks_on
def test_a_client_that_reads_gets_every_reply_to_what_it_pipelined_in_order(model: Model) -> None:
    """Of every kind, and at the rate that such requests have."""
    mixed = [
        request(f"{model.path}/learn", EVENT),
        request(f"{model.path}/predict", QUESTION),
        request(f"{model.path}/learn", EVENT + b"\n", "application/x-ndjson"),
        in_chunks(f"{model.path}/predict", b"[%b]" % QUESTION, "application/json"),
        request("/livez", b"", method="GET"),
    ]
    rounds = 200
    with model.service.connect() as connection:
        sends = Thread(target=connection.send, args=(b"".join(mixed) * rounds,))
        sends.start()
        told = [json.loads(body) for _, body in itertools.islice(replies(connection), len(mixed) * rounds)]
        sends.join()
    for i in range(rounds):
        learned, predicted, lines, several, alive = told[5 * i : 5 * i + 5]
        assert (learned["seq"], predicted["seq"]) == (2 * i + 1, 2 * i + 1)
        assert (lines["last_seq"], several[0]["seq"], alive["status"]) == (2 * i + 2, 2 * i + 2, "alive")


def large(service: Service) -> bytes:
    """A request whose reply takes five million bytes: the weights of a model with 40,000 features of long names."""
    model = service.model("large")
    assert model.create({}).status_code == 201
    assert model.learn({"x": {f"{i:0>100}": 1 for i in range(40_000)}, "y": 1}).status_code == 200
    return request("/models/large/weights", b"", method="GET")


def test_replies_that_nobody_takes_are_bounded_together_and_who_reads_gets_all(start: Start) -> None:
    service = start("--max-unsent-bytes", str(MIB))
    asked = large(service)
    with ExitStack() as stack:
        one = stack.enter_context(service.connect())
        for _ in range(5):  # as much memory as it takes to make a few of them
            one.send(asked)
            whole = one.reply()
        before = resident(service)
        for _ in range(30):
            deaf = stack.enter_context(service.connect())
            deaf.socket.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4_096)
            deaf.send(asked)
        one.send(asked)
        assert one.reply().text == whole.text
        eventually(lambda: "too-much-untaken" in service.log, "some to be given up")
        most = MIB // 65_536 + 2  # each holds that much at least; one more may, and one reads
        eventually(lambda: sockets_of(service) < most + 10, "so many to be given up that the rest is within the limit")
        assert resident(service) - before < 80 * MIB  # all of them, whole: 150
    assert len(whole.json()["weights"]) == 40_000


def test_a_slow_client_gets_its_whole_reply_however_long_it_takes(start: Start) -> None:
    service = start("--request-seconds", "0.5")
    asked = large(service)
    with service.connect() as connection:
        connection.socket.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 65_536)
        connection.send(asked.replace(b"HTTP/1.1", b"HTTP/1.0"))
        began, got = time.monotonic(), bytearray()
        while piece := connection.socket.recv(100_000):
            got += piece
            time.sleep(0.04)
        assert time.monotonic() - began > 1.5  # three times as long as it may stand still
    assert len(json.loads(got.partition(b"\r\n\r\n")[2])["weights"]) == 40_000


# -- real clients and a real proxy


JAVA = """
import java.net.URI;
import java.net.http.*;
import java.nio.charset.StandardCharsets;
import java.io.ByteArrayInputStream;

public class Ask {
    static HttpClient client = HttpClient.newHttpClient();

    static void ask(String url, String type, HttpRequest.BodyPublisher body) throws Exception {
        var request = HttpRequest.newBuilder(URI.create(url)).header("content-type", type).POST(body).build();
        var reply = client.send(request, HttpResponse.BodyHandlers.ofString());
        System.out.println(reply.statusCode() + " " + reply.body().strip());
    }

    public static void main(String[] args) throws Exception {
        String event = "{\\"x\\": {\\"a\\": 1}, \\"y\\": 1}", lines = (event + "\\n").repeat(1000);
        ask(args[0] + "/learn", "application/json", HttpRequest.BodyPublishers.ofString(event));
        ask(args[0] + "/learn", "application/x-ndjson", HttpRequest.BodyPublishers.ofString(lines));
        ask(args[0] + "/learn", "application/x-ndjson", HttpRequest.BodyPublishers.ofInputStream(
            () -> new ByteArrayInputStream(lines.getBytes(StandardCharsets.UTF_8))));
        client = HttpClient.newHttpClient();
        ask(args[0] + "/learn", "application/x-ndjson", HttpRequest.BodyPublishers.ofInputStream(
            () -> new ByteArrayInputStream(lines.getBytes(StandardCharsets.UTF_8))));
        ask(args[0] + "/predict", "application/json", HttpRequest.BodyPublishers.ofString("{\\"x\\": {\\"a\\": 1}}"));
    }
}
"""


@from_checks_on
@pytest.mark.skipif(shutil.which("java") is None, reason="there is no java (Debian's package default-jdk-headless)")
def test_javas_client_at_its_defaults_learns_and_predicts(model: Model, tmp_path: Path) -> None:
    """It offers HTTP/2 with each request of a new connection."""
    (tmp_path / "Ask.java").write_text(JAVA)
    url = f"http://127.0.0.1:{model.service.port}{model.path}"
    run = subprocess.run(
        ["java", "-XX:TieredStopAtLevel=1", str(tmp_path / "Ask.java"), url],
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    replies = run.stdout.splitlines()
    assert [reply[:3] for reply in replies] == ["200"] * 5, run.stdout + run.stderr
    assert [json.loads(reply[4:]).get("learned") for reply in replies] == [None, 1_000, 1_000, 1_000, None]
    assert model.state()["seq"] == 3_001


@few(1)
@pytest.mark.skipif(shutil.which("curl") is None, reason="there is no curl")
@pytest.mark.parametrize("version", ["--http2", "--http1.1", "--http1.0"])
def test_curl_learns_with_each_version_that_it_speaks(model: Model, tmp_path: Path, version: str) -> None:
    lines = tmp_path / "lines"
    lines.write_bytes((EVENT + b"\n") * 1_000)
    url = f"http://127.0.0.1:{model.service.port}{model.path}/learn"
    kinds = [("application/json", EVENT.decode()), ("application/x-ndjson", f"@{lines}")]
    for number, (content_type, data) in enumerate(kinds * 2):
        chunked = ["-H", "transfer-encoding: chunked"] if number > 1 and version != "--http1.0" else []
        command = ["curl", "-sS", version, url, "-H", f"content-type: {content_type}", *chunked, "--data-binary", data]
        said = subprocess.run(command, capture_output=True, text=True, timeout=PATIENCE, check=True).stdout
        assert json.loads(said).get("learned", 1) == (1_000 if content_type.endswith("ndjson") else 1), said
    assert model.state()["seq"] == 2_002


NGINX = """
pid {folder}/pid; error_log {folder}/error.log; daemon off; worker_processes 1;
events {{ worker_connections 64; }}
http {{
    access_log off;
    client_body_temp_path {folder}/body; proxy_temp_path {folder}/proxy; fastcgi_temp_path {folder}/f;
    uwsgi_temp_path {folder}/u; scgi_temp_path {folder}/s;
    upstream logstep {{ server 127.0.0.1:{service}; keepalive 4; }}
    server {{
        listen 127.0.0.1:{port};
        location /models/forbidden {{ return 403; }}
        location / {{
            proxy_pass http://logstep;
            proxy_set_header Host localhost;
            proxy_http_version 1.1;
            proxy_set_header Upgrade $http_upgrade;
            proxy_set_header Connection "upgrade";
            proxy_request_buffering off;
        }}
    }}
}}
"""


@pytest.fixture
def nginx(shared: Service, tmp_path: Path) -> Iterator[int]:
    """The port of a proxy in front of the shared service, with the lines that let WebSockets through."""
    if shutil.which("nginx") is None:
        pytest.skip("there is no nginx (Debian's package nginx)")
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    (tmp_path / "conf").write_text(NGINX.format(folder=tmp_path, service=shared.port, port=port))
    command = ["nginx", "-p", str(tmp_path), "-c", str(tmp_path / "conf"), "-e", str(tmp_path / "error.log")]
    process = subprocess.Popen(command, stderr=subprocess.DEVNULL)
    try:

        def listens() -> bool:
            assert process.poll() is None, (tmp_path / "error.log").read_text()
            with socket.socket() as probe:
                return probe.connect_ex(("127.0.0.1", port)) == 0

        eventually(listens, "nginx to listen")
        yield port
    finally:
        process.send_signal(signal.SIGQUIT)
        process.wait(PATIENCE)


@pytest.mark.parametrize("offer", ["websocket", "h2c", "TLS/1.2"])
def test_nothing_is_smuggled_past_a_proxy_in_the_body_of_an_upgrade(shared: Service, nginx: int, offer: str) -> None:
    forbidden = shared.model("forbidden")
    forbidden.create({})
    hidden = request("/models/forbidden/learn", EVENT)
    head = request("/predict", b"").replace(
        b"content-length: 0\r\n",
        b"connection: upgrade\r\nupgrade: %b\r\ncontent-length: %d\r\n" % (offer.encode(), len(hidden)),
    )
    for attempt in range(14):
        with closing(Connection(nginx)) as attacker:
            attacker.send(head)
            if attempt % 2:
                time.sleep(0.02)
            attacker.send(hidden)
            assert attacker.reply().status == 400  # what it has for a body is no JSON
        with closing(Connection(nginx)) as other:
            other.send(request("/predict", QUESTION))
            assert other.reply().json()["model"] == "default"
    assert forbidden.state()["seq"] == 0
    with closing(Connection(nginx)) as direct:
        direct.send(hidden)
        assert direct.reply().status == 403
    forbidden.delete()


# -- addresses and signals


@pytest.mark.skipif(not socket.has_dualstack_ipv6(), reason="this machine has no IPv6")
@pytest.mark.parametrize(
    ("host", "reached"), [("::", ["127.0.0.1", "::1"]), ("[::1]", ["::1"]), ("0.0.0.0", ["127.0.0.1"])]
)
def test_an_address_is_served_as_it_is_written(start: Start, host: str, reached: list[str]) -> None:
    service = start("--host", host, *(["--insecure"] if host != "[::1]" else []), ready=False)
    port = int(eventually(lambda: re.search(r"serves http://\S+:(\d+) ", service.log), "it to listen")[1])
    for address in ("127.0.0.1", "::1"):
        try:
            with socket.create_connection((address, port), timeout=PATIENCE) as client:
                client.sendall(b"GET /livez HTTP/1.1\r\nhost: localhost\r\n\r\n")
                assert client.recv(12) == b"HTTP/1.1 200"
        except ConnectionRefusedError:
            assert address not in reached
        else:
            assert address in reached


def test_the_end_of_its_terminal_stops_a_service_as_sigterm_does(start: Start) -> None:
    service = start()
    assert service.model().learn({"x": {"a": 1}, "y": 1}).status_code == 200
    service.signal(signal.SIGHUP)
    assert service.wait(PATIENCE) == 0
    assert start(folder=service.folder).model().state()["seq"] == 1


@from_checks_on
def test_below_nohup_a_service_outlives_its_terminal(tmp_path: Path) -> None:
    log = tmp_path / "log"
    command = ["nohup", LOGSTEP, "serve", "--data", str(tmp_path / "data"), "--port", "0", "--drain-seconds", "0"]
    with log.open("wb") as file:
        process = subprocess.Popen(command, stdout=file, stderr=file, stdin=subprocess.DEVNULL, env=clean_environment())
    try:
        found = eventually(lambda: re.search(r"serves http://127.0.0.1:(\d+) ", log.read_text()), "it to listen")
        process.send_signal(signal.SIGHUP)
        for _ in range(2):  # the second is answered when the signal has long been there
            with closing(Connection(int(found[1]))) as connection:
                connection.send(request("/livez", b"", method="GET"))
                assert connection.reply().status == 200
        process.send_signal(signal.SIGTERM)
        assert process.wait(PATIENCE) == 0
    finally:
        process.kill()
        process.wait()


def test_a_request_that_names_its_host_in_its_first_line_names_the_same_in_its_header(shared: Service) -> None:
    for line, host, status in (
        ("http://localhost/livez", "localhost:80", 200),
        ("http://LOCALHOST:1/livez", "localhost", 200),
        ("http://localhost", "localhost", 200),
        ("http://elsewhere/models", "localhost", 400),
    ):
        with shared.connect() as connection:
            connection.send(f"GET {line} HTTP/1.1\r\nhost: {host}\r\n\r\n".encode())
            assert connection.reply().status == status, line
