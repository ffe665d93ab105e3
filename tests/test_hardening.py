"""What a service takes no harm from: other names and origins, long heads, deep and wide bodies; and TLS."""

from __future__ import annotations

import json
import re
import shutil
import socket
import ssl
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest
from harness import JSON, NDJSON, Service, Start, Starter, assert_problem
from patience import PATIENCE, eventually

from core.features import MAX_NAME
from service.commands import cli
from service.http.page import POLICY

ROOT = Path(__file__).resolve().parent.parent
TOKEN = "a-token-for-these-tests-0123456789"
EVENT = {"x": {"age": 31}, "y": 1}
SHOP = "https://shop.example"


# -- names and origins


@pytest.mark.parametrize("host", ["evil.example", "localhost.evil.example", "127.0.0.1.evil.example:8000", "", "[::2]"])
@pytest.mark.parametrize("path", ["/models", "/", "/learn", "/openapi.json"])
def test_a_name_that_leads_here_by_dns_rebinding_is_not_answered(shared: Service, host: str, path: str) -> None:
    reply = shared.http.request("POST" if path == "/learn" else "GET", path, headers={"host": host, **JSON})
    assert_problem(reply, 421, "--allowed-hosts")


@pytest.mark.parametrize("host", ["localhost", "LOCALHOST:1", "127.0.0.1:8000", "[::1]:8000", "[::1]"])
def test_this_machines_own_names_are(shared: Service, host: str) -> None:
    assert shared.http.get("/models", headers={"host": host}).status_code == 200


def test_the_probes_answer_to_any_name(shared: Service) -> None:
    for path in ("/livez", "/readyz"):
        assert shared.http.get(path, headers={"host": "10.0.0.7:8000"}).status_code == 200


def test_what_a_page_of_another_site_asks_for_without_an_origin_is_refused_too(shared: Service) -> None:
    """An image, or a link: the page sees no reply, but a cross-check costs much, and a stream a viewer's place."""
    document = shared.get("/openapi.json")["paths"]
    gets = {path.replace("{model}", "default") for path, item in document.items() if "get" in item}
    assert {"/models/default/crosscheck", "/stream"} < gets
    for path in (gets | {"/openapi.json"}) - {"/livez", "/readyz"}:
        for method, site in (("GET", "cross-site"), ("GET", "same-site"), ("HEAD", "cross-site")):
            reply = shared.http.request(method, path, headers={"sec-fetch-site": site})
            assert reply.status_code == 403, path
            assert method == "HEAD" or assert_problem(reply, 403, "A page of another site", "Type the address")
    for path in ("/", "/docs", "/dashboard/main.js", "/livez", "/readyz"):
        assert shared.http.get(path, headers={"sec-fetch-site": "cross-site"}).status_code == 200
    for site in ("none", "same-origin"):
        assert shared.http.get("/models", headers={"sec-fetch-site": site}).status_code == 200


@pytest.mark.parametrize(
    "origin", ["https://evil.example", "null", "http://127.0.0.1:1", "http://localhost.evil.example"]
)
def test_a_page_of_another_site_may_not_use_a_service_that_asks_for_no_token(shared: Service, origin: str) -> None:
    for method, path in (("POST", "/models/default/resume"), ("DELETE", "/models/default"), ("POST", "/learn")):
        reply = shared.http.request(method, path, headers={"origin": origin, **JSON}, content=json.dumps(EVENT))
        assert_problem(reply, 403, "A page of")
        assert "access-control-allow-origin" not in reply.headers


def test_its_own_page_may(shared: Service) -> None:
    own = str(shared.http.base_url).rstrip("/")
    assert shared.http.post("/predict", json={"x": {}}, headers={"origin": own}).status_code == 200


@pytest.fixture(scope="module")
def opened(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Service]:
    """A service for the pages of SHOP, under a name of its own, with a token."""
    starter = Starter(tmp_path_factory.mktemp("opened"))
    flags = ["--cors-origins", f"{SHOP}, https://other.example", "--allowed-hosts", "logstep.example, b.example"]
    yield starter(*flags, "--max-header-bytes", "4096", "--max-event-features", "100", env={"LOGSTEP_TOKEN": TOKEN})
    starter.close()


def asked(service: Service, method: str, path: str, **headers: str) -> httpx.Response:
    sent = {"authorization": f"Bearer {TOKEN}", **JSON, **{name.replace("_", "-"): v for name, v in headers.items()}}
    return service.http.request(method, path, headers=sent, content=json.dumps(EVENT) if method == "POST" else None)


def test_it_answers_to_the_names_that_it_was_given(opened: Service) -> None:
    for host in ("logstep.example", "LOGSTEP.example:443", "b.example", "localhost"):
        assert asked(opened, "GET", "/models", host=host).status_code == 200
    assert asked(opened, "GET", "/models", host="c.example").status_code == 421


@pytest.mark.parametrize("path", ["/learn", "/models/default/learn", "/models/default/resume"])
def test_a_browser_is_told_that_the_pages_of_an_origin_may(opened: Service, path: str) -> None:
    wishes = {"access-control-request-method": "POST", "access-control-request-headers": "authorization,content-type"}
    allowed = opened.http.options(path, headers={"origin": SHOP, **wishes})  # without a token, as browsers ask
    assert allowed.status_code == 200
    assert allowed.headers["access-control-allow-origin"] == SHOP
    assert "POST" in allowed.headers["access-control-allow-methods"]
    refused = opened.http.options(path, headers={"origin": "https://evil.example", **wishes})
    assert "access-control-allow-origin" not in refused.headers
    assert asked(opened, "POST", path, origin=SHOP).headers["access-control-allow-origin"] == SHOP
    assert "access-control-allow-origin" not in asked(opened, "POST", path, origin="https://evil.example").headers
    without = opened.http.post(path, headers={"origin": SHOP})
    assert_problem(without, 401)
    assert without.headers["access-control-allow-origin"] == SHOP  # so that the page can see why


# -- headers


def test_replies_tell_browsers_not_to_guess_and_not_to_tell(shared: Service) -> None:
    for path in ("/models", "/openapi.json", "/nothing", "/models/nobody", "/livez"):
        headers = shared.http.get(path).headers
        assert (headers["x-content-type-options"], headers["referrer-policy"]) == ("nosniff", "no-referrer")
    for reply in (shared.http.post("/predict", json={"x": {}}), shared.http.post("/predict", json={})):
        assert reply.headers["x-content-type-options"] == "nosniff"


def test_pages_have_a_strict_policy(shared: Service) -> None:
    pages = [shared.http.get(path) for path in ("/docs", "/")]
    found = [page for page in pages if page.headers["content-type"].startswith("text/html")]
    assert found
    for page in found:
        policy = page.headers.get_list("content-security-policy")
        assert policy == [POLICY]
        assert page.headers.get_list("x-content-type-options") == ["nosniff"]
    assert "unsafe" not in POLICY
    assert "http" not in POLICY


# -- limits


def raw(service: Service, data: bytes) -> bytes:
    """What a service answers to bytes, until it closes the connection."""
    with socket.create_connection(("127.0.0.1", service.port), timeout=PATIENCE) as connection:
        connection.sendall(data)
        answer = b""
        try:
            while chunk := connection.recv(65_536):
                answer += chunk
        except ConnectionResetError:  # it closed while there was more to read
            pass
        return answer


HEAD = f"GET /models HTTP/1.1\r\nhost: localhost\r\nauthorization: Bearer {TOKEN}\r\n".encode()
LONG = {
    "one long header": HEAD + b"x: " + b"a" * 5_000 + b"\r\n\r\n",
    "many short headers": HEAD + b"".join(b"x%d: a\r\n" % i for i in range(600)) + b"\r\n",
    "a long path": b"GET /" + b"a" * 5_000 + HEAD[11:] + b"\r\n",
    "a header that never ends": HEAD + b"x: " + b"a" * 100_000,
    "a name that never ends": HEAD + b"a" * 100_000,
    "the second of a connection": HEAD + b"\r\n" + HEAD + b"x: " + b"a" * 5_000 + b"\r\n\r\n",
}


@pytest.mark.parametrize("name", list(LONG))
def test_a_head_that_is_too_long_is_refused_and_the_connection_closed(opened: Service, name: str) -> None:
    answer = raw(opened, LONG[name])
    head, _, body = answer[answer.rindex(b"HTTP/1.1 ") :].partition(b"\r\n\r\n")
    assert head.startswith(b"HTTP/1.1 431 ")
    assert b"connection: close" in head
    assert "4096 bytes (LOGSTEP_MAX_HEADER_BYTES)" in json.loads(body)["detail"]
    assert answer.count(b"HTTP/1.1 200") == (name == "the second of a connection")
    assert asked(opened, "GET", "/models").status_code == 200


def test_a_head_up_to_the_limit_is_taken_with_whatever_body_comes_with_it(opened: Service) -> None:
    event = json.dumps({"x": {f"f{i}": 1.0 for i in range(100)}, "y": 1}) + " " * 20_000
    reply = opened.http.post(
        "/learn", content=event, headers={**JSON, "authorization": f"Bearer {TOKEN}", "x": "a" * 3_500}
    )
    assert reply.status_code == 200


def test_a_head_that_comes_slowly_is_counted_too(opened: Service) -> None:
    with socket.create_connection(("127.0.0.1", opened.port), timeout=PATIENCE) as connection:
        connection.sendall(HEAD)
        for _ in range(100):
            try:
                connection.sendall(b"x: " + b"a" * 100 + b"\r\n")
            except (BrokenPipeError, ConnectionResetError):
                return  # it was closed
        connection.settimeout(PATIENCE)
        assert connection.recv(100).startswith(b"HTTP/1.1 431 ")


def test_an_event_may_have_so_many_features(opened: Service) -> None:
    headers = {**JSON, "authorization": f"Bearer {TOKEN}"}
    wide = {f"f{i}": 1.0 for i in range(101)}
    for x in (wide, list(wide.values()), {f"f{i}": "text" for i in range(101)}):
        for path, event in (
            ("/learn", {"x": x, "y": 1}),
            ("/predict", {"x": x}),
            ("/models/default/explain", {"x": x}),
        ):
            reply = opened.http.post(path, json=event, headers=headers)
            assert_problem(reply, 422, "has 101 features; an event has at most 100")
    lines = "".join(json.dumps({"x": wide if i == 250 else {"a": i}, "y": i % 2}) + "\n" for i in range(300))
    stream = opened.http.post("/learn", content=lines, headers={**headers, **NDJSON})
    assert_problem(stream, 422, "line 251: x: has 101 features")
    same = "".join(json.dumps({"x": dict.fromkeys(wide, float(i)), "y": 1}) + "\n" for i in range(300))
    assert_problem(opened.http.post("/learn", content=same, headers={**headers, **NDJSON}), 422, "line 1: x: has 101")


@pytest.mark.parametrize("depth", [5, 1_000, 100_000])
@pytest.mark.parametrize("path", ["/learn", "/predict", "/models/default/explain", "/models/deep"])
def test_json_that_is_too_deep_is_refused_however_deep(shared: Service, path: str, depth: int) -> None:
    for bracket in ("[", '{"a":'):
        deep = '{"x": ' + bracket * depth + "1" + {"[": "]"}.get(bracket, "}") * depth + ', "y": 1}'
        reply = shared.http.request("PUT" if path == "/models/deep" else "POST", path, content=deep, headers=JSON)
        assert reply.status_code in (400, 422), reply.text
        assert len(reply.content) < 1_000


def test_a_name_may_have_so_many_characters(shared: Service) -> None:
    name = "n" * (MAX_NAME + 1)
    reply = shared.http.post("/learn", json={"x": {name: 1}, "y": 1})
    assert_problem(reply, 422, f"a feature's name has at most {MAX_NAME} characters")
    assert name not in reply.text


def test_a_new_name_may_have_as_many_characters_as_the_setting_says_and_known_ones_stay(
    start: Start, tmp_path: Path
) -> None:
    known, folder = {"n" * 21: 1}, tmp_path / "data"
    first = start(folder=folder)
    assert first.http.put("/models/hashed", json={"hash_bits": 8}).status_code == 201
    assert first.http.post("/learn", json={"x": known, "y": 1}).status_code == 200
    first.stop()
    http = start("--max-name-characters", "20", folder=folder).http
    assert http.post("/learn", json={"x": {**known, "f" * 20: "t" * 20, "g" * 20: 1}, "y": 1}).status_code == 200
    for path in ("/learn", "/predict", "/models/hashed/learn", "/models/hashed/predict"):
        reply = http.post(path, json={"x": {"m" * 21: 1}, **({"y": 1} if path.endswith("learn") else {})})
        assert_problem(reply, 422, "a feature's name has at most 20 characters")


# -- TLS


@pytest.fixture(scope="module")
def certificate(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """A certificate for this machine, signed by itself, and its key."""
    if shutil.which("openssl") is None:
        pytest.skip("openssl is not installed")
    return certificate_in(tmp_path_factory.mktemp("tls"), days=2)


def certificate_in(folder: Path, days: int) -> tuple[Path, Path]:
    cert, key = folder / "cert.pem", folder / "key.pem"
    made = ["req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes", "-days", str(days)]
    names = ["-subj", "/CN=localhost", "-addext", "subjectAltName=DNS:localhost,IP:127.0.0.1"]
    command = ["openssl", *made, *names, "-keyout", str(key), "-out", str(cert)]
    subprocess.run(command, check=True, capture_output=True, timeout=60)
    return cert, key


def test_it_serves_https_with_a_certificate_and_its_key(
    start: Start, certificate: tuple[Path, Path], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    cert, key = certificate
    service = start("--tls-cert", str(cert), "--tls-key", str(key), ready=False)
    port = int(eventually(lambda: re.search(r"serves https://127\.0\.0\.1:(\d+) ", service.log), "it to listen")[1])
    url = f"https://127.0.0.1:{port}"
    with httpx.Client(verify=ssl.create_default_context(cafile=cert), base_url=url, trust_env=False) as client:
        eventually(lambda: client.get("/readyz").status_code == 200, "it to be ready")
        assert client.post("/learn", json=EVENT).json()["seq"] == 1
    with pytest.raises(httpx.ConnectError, match="CERTIFICATE_VERIFY_FAILED"):
        httpx.get(url, trust_env=False)
    with pytest.raises(httpx.RemoteProtocolError):
        httpx.get(f"http://127.0.0.1:{port}/livez", trust_env=False)
    old = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    old.check_hostname, old.verify_mode = False, ssl.CERT_NONE
    with pytest.warns(DeprecationWarning, match="TLSv1_1"):
        old.maximum_version = ssl.TLSVersion.TLSv1_1
    with pytest.raises(httpx.ConnectError):
        httpx.get(url, verify=old, trust_env=False)

    check = [sys.executable, str(ROOT / "docker/healthcheck.py")]
    environment = {"LOGSTEP_PORT": str(port), "LOGSTEP_TLS_CERT": str(cert)}
    assert subprocess.run(check, env=environment, timeout=60, check=False).returncode == 0
    assert cli.main(["models", "list", "--url", url]) == 1
    assert "CERTIFICATE_VERIFY_FAILED" in capsys.readouterr().err
    monkeypatch.setenv("SSL_CERT_FILE", str(cert))
    assert cli.main(["models", "list", "--url", url]) == 0
    assert service.stop() == 0


def test_a_renewed_certificate_is_shown_without_a_restart(
    start: Start, certificate: tuple[Path, Path], tmp_path: Path
) -> None:
    """As certbot and Kubernetes do it: the new file is renamed over the old one, first the one, then the other."""
    (tmp_path / "live").mkdir()
    (tmp_path / "new").mkdir()
    cert, key = (Path(shutil.copy(file, tmp_path / "live")) for file in certificate)
    new_cert, new_key = certificate_in(tmp_path / "new", days=30)
    trusts_both = ssl.create_default_context(cafile=certificate[0])
    trusts_both.load_verify_locations(new_cert)
    old, new = (ssl.PEM_cert_to_DER_cert(file.read_text()) for file in (cert, new_cert))

    service = start("--tls-cert", str(cert), "--tls-key", str(key), ready=False)
    port = int(eventually(lambda: re.search(r"serves https://127\.0\.0\.1:(\d+) ", service.log), "it to listen")[1])

    def shown() -> bytes | None:
        with (
            socket.create_connection(("127.0.0.1", port), timeout=PATIENCE) as plain,
            trusts_both.wrap_socket(plain, server_hostname="localhost") as connection,
        ):
            return connection.getpeercert(binary_form=True)

    def days_left(client: httpx.Client) -> float:
        found = re.search(
            r"^logstep_certificate_end_timestamp_seconds (\S+)$", client.get("/metrics").text, re.MULTILINE
        )
        return (float(found[1]) - time.time()) / 86_400 if found else -1.0

    with httpx.Client(verify=trusts_both, base_url=f"https://127.0.0.1:{port}", trust_env=False) as before:
        eventually(lambda: before.get("/readyz").status_code == 200, "it to be ready")
        assert shown() == old
        eventually(lambda: 1.9 < days_left(before) <= 2.0, "the end of the certificate to be a metric")
        new_cert.replace(cert)
        eventually(lambda: "The old certificate stays in use" in service.log, "it to see that the key does not fit")
        assert shown() == old
        new_key.replace(key)
        eventually(lambda: shown() == new, "the new certificate to be shown")
        eventually(lambda: days_left(before) > 29, "its end to be a metric")  # over the connection of before
    assert service.stop() == 0


def test_a_certificate_that_does_not_work_is_told_before_anything_listens(
    start: Start, certificate: tuple[Path, Path], tmp_path: Path
) -> None:
    cert, key = certificate
    other = tmp_path / "other.pem"
    other.write_text("no key")
    for flags, why in (
        (["--tls-cert", str(cert)], "both are needed"),
        (["--tls-cert", str(cert), "--tls-key", str(other)], "PEM"),
    ):
        service = start(*flags, ready=False)
        assert service.wait(PATIENCE) == 1
        assert f"TLS fails with the certificate {cert}" in service.log
        assert why in service.log
        assert "serves" not in service.log
    assert key.exists()
