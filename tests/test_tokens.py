"""Who may do what: tokens, their scopes, models and rates, on the service as it runs."""

from __future__ import annotations

import contextlib
import hashlib
import io
import itertools
import json
import re
import stat
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, get_args
from unittest.mock import Mock

import httpx
import pyarrow as pa
import pytest
from effort import from_checks_on
from forked import clean_environment
from harness import JSON, LOGSTEP, NDJSON, Service, Start, Starter, assert_problem, ndjson
from patience import PATIENCE, eventually

from service import failures
from service.commands import cli
from service.http import access, tokens
from service.http.access import NO_MODEL, Asked, parse, wanted
from service.http.bodies import ARROW
from service.settings import Settings

ADMIN = "the-token-of-the-environment-0123456789"
EVENT = {"x": {"age": 31}, "y": 1}
OPEN, ANY = "open", "any"
WANTS = {
    ("get", "/livez"): OPEN,
    ("get", "/readyz"): OPEN,
    ("get", "/metrics"): ANY,
    ("get", "/models"): ANY,
    ("get", "/stream"): ANY,
    ("post", "/learn"): "learn",
    ("post", "/predict"): "predict",
    ("post", "/models/{model}/learn"): "learn",
    ("post", "/models/{model}/predict"): "predict",
    ("post", "/models/{model}/explain"): "predict",
    ("get", "/models/{model}"): "predict",
    ("get", "/models/{model}/weights"): "predict",
    ("get", "/models/{model}/crosscheck"): "predict",
    ("get", "/models/{model}/series"): ANY,
    ("get", "/models/{model}/curve"): ANY,
    ("get", "/models/{model}/stream"): ANY,
    ("put", "/models/{model}"): "admin",
    ("post", "/models/{model}/resume"): "admin",
    ("delete", "/models/{model}"): "admin",
}
"""What each route of the API's document takes. A route that is not here fails a test: say who may use it."""
NOT_IN_THE_DOCUMENT = {
    "/": OPEN,
    "/dashboard/index.html": OPEN,
    "/docs": OPEN,
    "/openapi.json": ANY,
    "/nothing": "admin",
}


def bearer(token: str) -> dict[str, str]:
    return {"authorization": f"Bearer {token}"}


def until_known(service: Service, headers: dict[str, str]) -> None:
    """Wait until a service has found a new token in its file."""
    eventually(lambda: service.http.get("/models", headers=headers).status_code == 200, "the token")


def scopes(words: str) -> list[tokens.Scope]:
    """Scopes by their words, as in "predict learn"."""
    return [scope for scope in get_args(tokens.Scope) if scope in words.split()]


class Guarded:
    """A service that asks for tokens, and one token of each kind: for all models, or for `clicks` alone."""

    def __init__(self, service: Service, made: dict[str, str]) -> None:
        self.service = service
        self.made = {**made, "admin": ADMIN}

    def ask(self, kind: str | None, method: str, path: str, **options: Any) -> httpx.Response:
        headers = {**options.pop("headers", {}), **(bearer(self.made[kind]) if kind else {})}
        with self.service.http.stream(method, path, headers=headers, **options) as response:
            if response.headers.get("content-type", "").startswith("text/event-stream"):
                return response  # it does not end
            response.read()
            return response


@pytest.fixture(scope="module")
def guarded(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Guarded]:
    below = tmp_path_factory.mktemp("guarded")
    folder = below / "data"
    made = {}
    each: tuple[tokens.Scope, ...] = get_args(tokens.Scope)
    for scope, models in itertools.product(each, (None, ["clicks"])):
        text, _ = tokens.create(folder, [scope], models, None)
        made[scope + ("" if models is None else " of clicks")] = text
    starter = Starter(below)
    found = Guarded(
        starter("--stream-events", "10", "--log-level", "debug", folder=folder, env={"LOGSTEP_TOKEN": ADMIN}), made
    )
    for name in ("clicks", "other"):
        assert found.ask("admin", "PUT", f"/models/{name}", json={"rule": "auto"}).status_code == 201
    yield found
    starter.close()


def routes(guarded: Guarded) -> list[tuple[str, str]]:
    document = guarded.ask("predict", "GET", "/openapi.json").json()
    # What removes the model comes last.
    return sorted(
        ((method, path) for path, item in document["paths"].items() for method in item), key=lambda r: r[0] == "delete"
    )


def test_every_route_says_who_may_use_it(guarded: Guarded) -> None:
    assert set(routes(guarded)) <= WANTS.keys()


@pytest.mark.parametrize("kind", [None, "predict", "learn", "admin"])
def test_each_token_may_do_what_its_scope_says_and_nothing_else(guarded: Guarded, kind: str | None) -> None:
    for method, path in routes(guarded):
        wants = WANTS[method, path]
        reply = guarded.ask(kind, method.upper(), path.replace("{model}", "clicks"))
        if wants == OPEN or kind == "admin" or (kind and wants in (kind, ANY)):
            assert reply.status_code not in (401, 403, 404), (method, path, reply.text)
        elif kind is None:
            assert_problem(reply, 401, "Authorization: Bearer TOKEN")
            assert reply.headers["www-authenticate"] == 'Bearer realm="logstep"'
        else:
            assert_problem(reply, 403, f"This token may only {kind}, but this request needs {wants}")
    guarded.ask("admin", "PUT", "/models/clicks", json={"rule": "auto"})


@pytest.mark.parametrize("kind", ["predict of clicks", "learn of clicks", "admin of clicks"])
def test_a_model_out_of_reach_is_as_if_it_were_not_there(guarded: Guarded, kind: str) -> None:
    for method, path in routes(guarded):
        if "{model}" in path:
            there = guarded.ask(kind, method.upper(), path.replace("{model}", "other"))
            not_there = guarded.ask(kind, method.upper(), path.replace("{model}", "third"))
            assert_problem(there, 404, "There is no model 'other'")
            assert {**not_there.json(), "request_id": None} == {
                **json.loads(there.text.replace("other", "third")),
                "request_id": None,
            }
    for verb in ("/learn", "/predict"):  # the model default is out of reach, too
        assert_problem(guarded.ask(kind, "POST", verb, json=EVENT), 404)
    found = guarded.ask(kind, "GET", "/models").json()["models"]
    assert [model["model"] for model in found] == ["clicks"]
    assert guarded.ask("admin", "GET", "/models/other").status_code == 200
    refused = guarded.ask("admin of clicks", "GET", "/nothing")
    assert_problem(refused, 403, "This token may only admin, but this request needs admin for all models")


@pytest.mark.parametrize(
    ("kind", "seen"), [("predict of clicks", {"clicks"}), ("admin", {"default", "clicks", "other"})]
)
def test_the_stream_of_all_models_tells_of_those_within_reach(guarded: Guarded, kind: str, seen: set[str]) -> None:
    with guarded.service.http.stream("GET", "/stream", headers=bearer(guarded.made[kind])) as reply:
        told = next(line for line in reply.iter_lines() if line.startswith("data: "))
    assert {model["model"] for model in json.loads(told[6:])["models"]} == seen


def test_the_metrics_tell_of_the_models_within_reach(guarded: Guarded) -> None:
    for name in ("clicks", "other"):
        assert guarded.ask("admin", "POST", f"/models/{name}/learn", json=[EVENT] * 7).status_code == 200
        assert guarded.ask("admin", "POST", f"/models/{name}/predict", json={"x": {"a": 1}}).status_code == 200
    whole = guarded.ask("admin", "GET", "/metrics").text
    part = guarded.ask("predict of clicks", "GET", "/metrics").text
    assert guarded.ask("predict", "GET", "/metrics").text.count("logstep_model_seq{") == 3
    of_clicks = [line for line in whole.splitlines() if 'model="clicks"' in line]
    assert [line for line in part.splitlines() if "model=" in line] == of_clicks
    counts = dict(line.rsplit(" ", 1) for line in part.splitlines() if not line.startswith("#"))
    assert counts["logstep_models"] == "1.0"
    learned = [float(line.split()[1]) for line in of_clicks if line.startswith("logstep_model_seq")]
    assert [float(counts["logstep_learned_total"])] <= learned
    assert counts["logstep_predicted_total"] == counts['logstep_model_predicted_total{model="clicks"}']
    # Nothing that moves with what others do: no commits, sizes, queues or refusals.
    assert {name.partition("{")[0] for name in counts if "_model" not in name} == {
        *(f"logstep_{name}_total" for name in ("learned", "predicted", "predicted_unknown", "duplicates", "not_kept")),
        *("logstep_ready", "logstep_build_info"),
    }


@pytest.mark.parametrize("form", ["event", "array", "ndjson", "chunked"])
@pytest.mark.parametrize("verb", ["learn", "predict"])
def test_every_form_of_a_body_passes_the_same_door(guarded: Guarded, verb: str, form: str) -> None:
    """Requests of one event take a way of their own (service/http/connection.py); it has no other door."""
    event = EVENT if verb == "learn" else {"x": EVENT["x"]}
    one = json.dumps(event).encode()
    body, headers = {
        "event": (one, JSON),
        "array": (json.dumps([event] * 2).encode(), JSON),
        "ndjson": (ndjson([event] * 2), NDJSON),
        "chunked": (None, JSON),  # an iterator, made for each request
    }[form]
    for kind, status in (
        (None, 401),
        ("learn" if verb == "predict" else "predict", 403),
        (f"{verb} of clicks", 404),
        (verb, 200),
        ("admin", 200),
    ):
        content = iter([one]) if body is None else body
        reply = guarded.ask(kind, "POST", f"/models/other/{verb}", content=content, headers=headers)
        assert reply.status_code == status, (kind, reply.text)
        assert reply.headers["x-content-type-options"] == "nosniff"


def forms(*ids: str | None) -> dict[str, dict[str, Any]]:
    """Questions with these ids, None for one without, as each kind of body has them; one body has the last alone."""
    questions = [{"x": {"a": 1.0}} if id_ is None else {"x": {"a": 1.0}, "id": id_} for id_ in ids]
    sink = pa.BufferOutputStream()
    table = pa.table({"a": [1.0] * len(ids), "id": pa.array(ids, pa.string())})
    with pa.ipc.new_stream(sink, table.schema) as writer:
        writer.write_table(table)
    return {
        "one": {"content": json.dumps(questions[-1]), "headers": JSON},
        "array": {"content": json.dumps(questions), "headers": JSON},
        "ndjson": {"content": ndjson(questions), "headers": NDJSON},
        "arrow": {"content": sink.getvalue().to_pybytes(), "headers": {"content-type": ARROW.decode()}},
    }


def test_what_a_model_learns_without_a_label_takes_a_token_that_may_learn(start: Start, tmp_path: Path) -> None:
    """With "on_timeout": "negative" a prediction with an id trains the model, if its label does not come."""
    folder = tmp_path / "data"
    made = {kind: tokens.create(folder, scopes(kind), None, None)[0] for kind in ("predict", "predict learn", "admin")}
    service = start(folder=folder)

    def ask(kind: str, method: str, path: str, **options: Any) -> httpx.Response:
        headers = {**options.pop("headers", {}), **bearer(made[kind])}
        return service.http.request(method, path, headers=headers, **options)

    for on_timeout in ("negative", "drop"):
        spec = {"join": {"keep": "1s", "on_timeout": on_timeout}}
        assert ask("admin", "PUT", f"/models/{on_timeout}", json=spec).status_code == 201
    for ids in (["p"], [None, None, "p"]):
        for form, body in forms(*ids).items():
            problem = assert_problem(ask("predict", "POST", "/models/negative/predict", **body), 403, "needs learn")
            at = {"one": "id", "array": f"[{len(ids) - 1}].id", "ndjson": f"line {len(ids)}: id"}
            assert problem["field"] == at.get(form, f"row {len(ids)}: id")
            assert "A prediction without an id is allowed" in problem["detail"]
    for form, body in forms(None, None).items():
        assert ask("predict", "POST", "/models/negative/predict", **body).status_code == 200
        dropped = forms(f"dropped {form}")[form]  # that changes no weight
        assert ask("predict", "POST", "/models/drop/predict", **dropped).status_code == 200
    state = ask("admin", "GET", "/models/negative").json()
    assert (state["seq"], state["join"]["waiting"]) == (0, 0)
    for kind in ("predict learn", "admin"):
        for form in forms("p"):
            assert ask(kind, "POST", "/models/negative/predict", **forms(f"{kind} {form}")[form]).status_code == 200
    eventually(lambda: ask("admin", "GET", "/models/negative").json()["seq"] == 8, "all of them to be learned as 0")


def asked_again(service: Service, made: dict[str, str], a: float) -> tuple[dict[str, int], str]:
    """What each token hears that asks for a prediction with the id of one that waits, and why `theirs` is refused."""
    question = {"x": {"a": a}, "id": "one"}
    replies = {
        name: service.http.post("/predict", json=question, headers=bearer(token)) for name, token in made.items()
    }
    return {name: reply.status_code for name, reply in replies.items()}, replies["theirs"].json()["detail"]


def test_what_waits_is_shown_to_who_asked_for_it_and_to_who_may_learn(start: Start, tmp_path: Path) -> None:
    folder = tmp_path / "data"
    service = start(folder=folder)
    assert service.model().predict({"x": {"a": 1}, "id": "of nobody"}).json()["kept"]
    assert service.http.post("/models/default/explain", json={"id": "of nobody"}).status_code == 200
    kinds = {"mine": "predict", "theirs": "predict", "both": "predict learn", "admin": "admin"}
    made = {name: tokens.create(folder, scopes(kind), None, None)[0] for name, kind in kinds.items()}
    eventually(lambda: service.http.get("/models").status_code == 401, "the tokens to be asked for")

    def explained(service: Service, id_: str) -> dict[str, int]:
        """Who sees it; others are told what they are told of an id that there is not."""
        found = {}
        for name, token in made.items():
            ask: list[Any] = [{"json": {"id": asked}, "headers": bearer(token)} for asked in (id_, "never made")]
            reply, never = (service.http.post("/models/default/explain", **asked) for asked in ask)
            if reply.status_code == 404:
                assert never.json()["detail"] == reply.json()["detail"].replace(id_, "never made")
            found[name] = reply.status_code
        return found

    for form in forms("p"):
        body = forms(form)[form]
        told = service.http.post("/predict", content=body["content"], headers=body["headers"] | bearer(made["mine"]))
        assert told.status_code == 200
        assert explained(service, form) == {"mine": 200, "theirs": 404, "both": 200, "admin": 200}
    alike = {"mine": 200, "theirs": 409, "both": 200, "admin": 200}
    assert asked_again(service, made, 1.0) == (alike, asked_again(service, made, 2.0)[1])
    service.kill()
    again = start(folder=folder)
    assert asked_again(again, made, 1.0) == (alike, asked_again(again, made, 2.0)[1])
    for form in forms("p"):
        assert explained(again, form) == {"mine": 200, "theirs": 404, "both": 200, "admin": 200}
    assert explained(again, "of nobody") == {"mine": 404, "theirs": 404, "both": 200, "admin": 200}


def test_what_is_not_in_the_document_is_open_or_takes_a_token(guarded: Guarded) -> None:
    for path, wants in NOT_IN_THE_DOCUMENT.items():
        assert (guarded.ask(None, "GET", path).status_code == 401) is (wants != OPEN), path
        assert (guarded.ask("learn", "GET", path).status_code == 403) is (wants == "admin"), path
        assert guarded.ask("admin", "GET", path).status_code not in (401, 403)


@pytest.mark.parametrize(
    ("path", "verb", "model"),
    [
        ("/learn", "learn", "default"),
        ("/predict", "predict", "default"),
        ("/models/a/learn", "learn", "a"),
        ("/models/a/predict", "predict", "a"),
        ("/models/a", "", "a"),
        ("/models/a/", "", "a"),
        ("/models/a/learn/", "learn/", "a"),
        ("/models//learn", "learn", ""),
        ("/models/", "", ""),
        ("/models", "/models", NO_MODEL),
        ("/learn/", "/learn/", NO_MODEL),
        ("/", "/", NO_MODEL),
    ],
)
def test_a_path_is_read_in_one_way(path: str, verb: str, model: str) -> None:
    assert parse(path) == Asked(verb, model)


@pytest.mark.parametrize("method", ["POST", "GET", "HEAD", "PUT"])
def test_the_hot_paths_want_what_their_verbs_say(method: str) -> None:
    for path in ("/learn", "/predict", "/models/a/learn", "/models/a/predict"):
        assert wanted(method, parse(path)) == parse(path).verb


def test_a_route_that_nobody_has_thought_of_takes_an_admin() -> None:
    for method, path in (("GET", "/new"), ("POST", "/models/a/new"), ("POST", "/"), ("OPTIONS", "/models/a")):
        assert wanted(method, parse(path)) == "admin"


@pytest.mark.parametrize(
    "authorization",
    [
        "",
        "Bearer",
        f"Basic {ADMIN}",
        ADMIN,
        f"Bearer {ADMIN[:-1]}",
        f"Bearer {ADMIN}x",
        "Bearer logstep__",
        "Bearer \xe9",
    ],
)
def test_what_is_no_token_is_refused(guarded: Guarded, authorization: str) -> None:
    headers = {b"authorization": authorization.encode("latin-1")}
    reply = guarded.service.http.post("/predict", json=EVENT, headers=headers)
    assert_problem(reply, 401, "but the one that was sent is unknown")
    assert 'error="invalid_token"' in reply.headers["www-authenticate"]


@pytest.mark.parametrize("scheme", ["Bearer", "bearer", "BEARER"])
def test_the_scheme_may_be_written_as_one_likes(guarded: Guarded, scheme: str) -> None:
    assert guarded.service.http.get("/models", headers={"authorization": f"{scheme} {ADMIN}"}).status_code == 200


@pytest.mark.parametrize("query", ["token={}", "access_token={}", "Api_Key={}", "top=1&TOKEN={}", "x={}", "token="])
@pytest.mark.parametrize("path", ["/models", "/predict", "/livez"])
def test_a_token_in_a_url_is_refused_and_not_repeated(guarded: Guarded, path: str, query: str) -> None:
    token = guarded.made["predict"]
    reply = guarded.ask("predict", "POST" if path == "/predict" else "GET", f"{path}?{query.format(token)}")
    assert_problem(reply, 400, "in the header Authorization: Bearer TOKEN")
    assert token[20:] not in reply.text


# -- the file


def run(*command: str, env: dict[str, str] | None = None) -> subprocess.CompletedProcess[str]:
    together = clean_environment() | (env or {})
    return subprocess.run([LOGSTEP, *command], capture_output=True, text=True, timeout=60, check=False, env=together)


def made(folder: Path, *flags: str) -> str:
    """A token, as the command prints it. It runs in this process: to start one takes a second or two."""
    printed = io.StringIO()
    with contextlib.redirect_stdout(printed):
        assert cli.main(["token", "create", str(folder), *flags]) == 0
    return printed.getvalue().strip()


def test_a_token_made_while_the_service_runs_is_asked_for_and_taken_back_while_it_runs(start: Start) -> None:
    service = start()
    assert service.http.get("/models").status_code == 200
    token = made(service.folder, "--scope", "predict", "--name", "shop")
    eventually(lambda: service.http.get("/models").status_code == 401, "the token to be asked for, on loopback too")
    assert service.http.get("/models", headers=bearer(token)).status_code == 200
    assert service.http.get("/livez").status_code == service.http.get("/readyz").status_code == 200

    listed = run("token", "list", str(service.folder)).stdout
    assert "shop" in listed
    id_ = token.split("_")[1]
    assert id_ in listed
    assert token not in listed
    revoked = run("token", "revoke", str(service.folder), id_)
    assert revoked.returncode == 0
    assert "keeps asking" in revoked.stderr
    gone = eventually(
        lambda: (reply := service.http.get("/models", headers=bearer(token))).status_code == 401 and reply,
        "the token to be refused",
    )
    assert_problem(gone, 401)
    assert service.http.get("/models").status_code == 401  # the last token taken back does not open the door
    assert run("token", "revoke", str(service.folder), id_).returncode == 1


@from_checks_on
def test_a_token_expires_and_its_streams_end(start: Start) -> None:
    service = start(env={"LOGSTEP_TOKEN": ADMIN})
    text, token = tokens.create(service.folder, ["learn", "predict"], None, None, seconds=5.0)
    assert token.expires_at is not None
    end = token.expires_at
    until_known(service, bearer(text))

    def watch() -> list[str]:
        with service.another_client() as http, http.stream("GET", "/stream", headers=bearer(text)) as reply:
            return list(reply.iter_lines())

    def lines() -> Iterator[bytes]:
        yield json.dumps(EVENT).encode() + b"\n"
        eventually(lambda: time.time() > end, "the token to expire")
        for _ in range(100):
            yield json.dumps(EVENT).encode() + b"\n"
            time.sleep(0.05)

    def learn() -> httpx.Response:
        with service.another_client() as http:
            return http.post("/learn", content=lines(), headers=bearer(text) | NDJSON)

    with ThreadPoolExecutor() as pool:
        seen, learned = pool.submit(watch), pool.submit(learn)
        told = learned.result(PATIENCE)
        assert_problem(told, 401, "expired at 20")
        assert told.json()["learned"] >= 1
        assert seen.result(PATIENCE)  # although nothing happened that there would be to see
    for method, path in (("GET", "/models"), ("POST", "/predict"), ("HEAD", "/metrics")):
        reply = service.http.request(method, path, json={"x": {}}, headers=bearer(text))
        assert (reply.status_code, reply.headers["www-authenticate"][-15:]) == (401, '"invalid_token"')
    assert re.search(rf"{token.id} .* expired 20\d\d-", run("token", "list", str(service.folder)).stdout)


@from_checks_on
def test_the_command_says_until_when_a_token_is_valid(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    done = run("token", "create", str(tmp_path), "--expires", "90d")
    (token,) = tokens.read(tmp_path)
    assert token.expires_at is not None
    assert abs(token.expires_at - token.created_at - 90 * 86_400) < 1
    day = time.strftime("%Y-%m-%d %H:%M UTC", time.gmtime(token.expires_at))
    assert f"until {day}" in done.stderr
    assert day in run("token", "list", str(tmp_path)).stdout
    for wrong in ("0d", "90", "1w", "-1d", "d", "3651d", "1.5h"):
        with pytest.raises(SystemExit) as left:
            cli.main(["token", "create", str(tmp_path), f"--expires={wrong}"])
        assert (left.value.code, len(tokens.read(tmp_path))) == (2, 1), wrong
        assert "like 90d" in capsys.readouterr().err


def test_a_stream_ends_when_its_token_is_taken_back(start: Start) -> None:
    """Those who watch, and a body that is still on its way: what was learned of it is told, and stays."""
    service = start(env={"LOGSTEP_TOKEN": ADMIN})
    token = made(service.folder, "--scope", "learn", "--scope", "predict")
    until_known(service, bearer(token))
    revoked, watched = threading.Event(), threading.Event()

    def watch() -> list[str]:
        with service.another_client() as http, http.stream("GET", "/stream", headers=bearer(token)) as reply:
            watched.set()
            return list(reply.iter_lines())

    def lines() -> Iterator[bytes]:
        line = json.dumps(EVENT).encode() + b"\n"
        yield line
        assert revoked.wait(PATIENCE)
        while service.http.get("/models", headers=bearer(token)).status_code == 200:
            time.sleep(0.1)
        for _ in range(100):
            yield line
            time.sleep(0.05)

    def learn() -> httpx.Response:
        with service.another_client() as http:
            return http.post("/learn", content=lines(), headers=bearer(token) | NDJSON)

    with ThreadPoolExecutor() as pool:
        seen, learned = pool.submit(watch), pool.submit(learn)
        assert watched.wait(PATIENCE)
        assert run("token", "revoke", str(service.folder), token.split("_")[1]).returncode == 0
        revoked.set()
        told = learned.result(PATIENCE)
        service.http.post("/learn", json=EVENT, headers=bearer(ADMIN))  # there is something to see
        assert seen.result(PATIENCE)
    assert_problem(told, 401)
    assert told.json()["learned"] == 1
    assert service.http.get("/models/default", headers=bearer(ADMIN)).json()["seq"] == 2


def test_the_file_is_its_owners_alone_and_has_no_token_in_it(tmp_path: Path) -> None:
    token = made(tmp_path / "data", "--model", "clicks", "--rate", "1000")
    path = tmp_path / "data" / tokens.FILE
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert token not in path.read_text()
    (kept,) = tokens.read(tmp_path / "data")
    assert kept.sha256 == hashlib.sha256(token.encode()).hexdigest()
    assert (kept.scopes, kept.models, kept.rate) == (("predict", "learn"), ("clicks",), 1000.0)
    before = path.stat().st_ino
    path.with_name("tokens.json.new").write_text("what a kill left")
    made(tmp_path / "data")
    assert path.stat().st_ino != before  # replaced, so that a reader has the old one or the new one
    assert [entry.name for entry in (tmp_path / "data").iterdir()] == [tokens.FILE]


def test_tokens_made_at_the_same_time_are_all_kept(tmp_path: Path) -> None:
    with ThreadPoolExecutor(8) as pool:
        texts = list(pool.map(lambda _: tokens.create(tmp_path, ["learn"], None, None)[0], range(40)))
    known = tokens.Tokens(tmp_path, None)
    assert all(known.grant(f"Bearer {text}".encode()) for text in texts)


def test_a_file_that_cannot_be_read_stops_a_start_and_not_a_service(start: Start) -> None:
    service = start()
    token = made(service.folder)
    eventually(lambda: service.http.get("/models").status_code == 401, "the token to be asked for")
    path = service.folder / tokens.FILE
    path.write_text("{")
    eventually(lambda: "cannot be read" in (service.http.get("/models"), service.log)[1], "a warning")
    assert service.http.get("/models").status_code == 401
    assert service.http.get("/models", headers=bearer(token)).status_code == 200
    service.stop()
    again = start(folder=service.folder, ready=False)
    assert again.wait(PATIENCE) == 1
    assert f"The tokens in {path} cannot be read" in again.log


def token_with(member: str) -> str:
    """A file with one token, which has this member too."""
    return f'{{"format": 1, "tokens": [{{"id": "a", "sha256": "{"0" * 64}", "scopes": [], {member}}}]}}'


@pytest.mark.parametrize(
    "text",
    [
        "[]",
        '{"format": 2, "tokens": []}',
        '{"format": 1, "tokens": [{"id": "a", "sha256": "", "scopes": ["root"]}]}',
        '{"format": 1, "tokens": [{"id": "a", "sha256": "", "scopes": [], "more": 1}]}',
        token_with('"expires_at": 0'),
        token_with('"expires_at": -1.5'),
        token_with('"expires_at": "soon"'),
        token_with('"expires_at": 1e300'),
        token_with('"rate": 0'),
        token_with('"sha256": "no hash"'),
    ],
)
def test_a_file_that_says_something_else_is_refused(tmp_path: Path, text: str) -> None:
    (tmp_path / tokens.FILE).write_bytes(text.encode("latin-1"))
    with pytest.raises(failures.TokensUnreadable):
        tokens.read(tmp_path)


def test_the_file_is_looked_at_twice_a_second(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    now = [1_000.0]
    monkeypatch.setattr(time, "monotonic", lambda: now[0])
    known = tokens.Tokens(tmp_path, ADMIN)
    text, _ = tokens.create(tmp_path, ["learn"], None, None)
    for seconds, found in ((0.0, False), (tokens.LOOK_SECONDS * 0.9, False), (tokens.LOOK_SECONDS * 0.1, True)):
        now[0] += seconds
        known.look()
        assert (known.grant(f"Bearer {text}".encode()) is not None) == found


def test_a_token_is_hashed_once_and_only_so_many_are_remembered_as_they_were_sent(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    text, _ = tokens.create(tmp_path, ["learn"], None, None)
    known = tokens.Tokens(tmp_path, None)
    sha256 = Mock(wraps=hashlib.sha256)
    monkeypatch.setattr(hashlib, "sha256", sha256)

    def hashed(spaces: int) -> int:
        """How often it is hashed, if it comes so."""
        before = sha256.call_count
        assert known.grant(b"Bearer" + b" " * spaces + text.encode())
        return sha256.call_count - before

    assert [hashed(1) for _ in range(1_000)] == [1] + [0] * 999
    for spaces in range(2, 2 * tokens.REMEMBERED):
        assert hashed(spaces) == 1
        assert known.grant(b"Bearer wrong-%d" % spaces) is None
    again = [hashed(spaces) for spaces in range(1, 2 * tokens.REMEMBERED)]
    assert sum(again) >= tokens.REMEMBERED - 1


# -- the environment, and addresses


def test_the_token_of_a_file_in_the_environment_may_do_everything(start: Start, tmp_path: Path) -> None:
    file = tmp_path / "token"
    file.write_text(ADMIN + "\n")
    service = start("--host", "0.0.0.0", env={"LOGSTEP_TOKEN_FILE": str(file)})
    assert service.http.get("/models").status_code == 401
    assert service.http.put("/models/a", json={}, headers=bearer(ADMIN)).status_code == 201


@pytest.mark.parametrize(
    ("token", "why"), [("", "has 0 characters"), ("x" * 31, "has 31 characters"), ("x y" * 20, "no space")]
)
def test_a_token_that_people_made_has_32_characters_or_more(
    monkeypatch: pytest.MonkeyPatch, token: str, why: str
) -> None:
    monkeypatch.setenv("LOGSTEP_TOKEN", token)
    with pytest.raises(failures.BadToken, match=why) as refusal:
        tokens.given(None)
    assert not token or token not in str(refusal.value)


def test_a_token_that_is_too_short_stops_the_start_and_is_not_repeated(start: Start) -> None:
    service = start(ready=False, env={"LOGSTEP_TOKEN": "short-secret"})
    assert service.wait(PATIENCE) == 1
    assert service.log == "logstep: LOGSTEP_TOKEN has 12 characters, but needs at least 32.\n"


@pytest.mark.parametrize("host", ["0.0.0.0", "::", "192.168.1.2", "example.invalid"])
def test_an_address_that_others_reach_needs_a_token(tmp_path: Path, host: str) -> None:
    settings = Settings(data=tmp_path, host=host)
    with pytest.raises(failures.TokenNeeded, match=f"logstep token create {tmp_path}"):
        access.refuse_an_open_door(settings)
    access.refuse_an_open_door(Settings(data=tmp_path, host=host, insecure=True))
    tokens.create(tmp_path, ["predict"], None, None)
    access.refuse_an_open_door(settings)


@pytest.mark.parametrize("host", ["127.0.0.1", "127.0.0.2", "::1", "localhost"])
def test_an_address_of_this_machine_alone_needs_none(tmp_path: Path, host: str) -> None:
    access.refuse_an_open_door(Settings(data=tmp_path, host=host))


def test_a_start_on_an_address_that_others_reach_is_refused_before_anything_listens(start: Start) -> None:
    service = start("--host", "0.0.0.0", ready=False)
    assert service.wait(PATIENCE) == 1
    assert "Other machines can reach 0.0.0.0" in service.log
    assert start("--host", "0.0.0.0", "--insecure").http.get("/models").status_code == 200


# -- rates


def test_past_its_rate_a_token_waits(guarded: Guarded) -> None:
    service = guarded.service
    new, slow = (bearer(tokens.create(service.folder, ["predict", "learn"], None, 20)[0]) for _ in range(2))
    until_known(service, slow)
    codes = [service.http.post("/predict", json={"x": {}}, headers=slow).status_code for _ in range(15)]
    assert codes == [200] * 15  # of 20 the first GET took some
    # A debt of half a minute: however slow this machine is, the token has not earned its next request meanwhile.
    assert service.http.post("/learn", content=json.dumps([EVENT] * 600), headers=slow | JSON).status_code == 200
    assert_problem(service.http.post("/predict", json={"x": {}}, headers=slow), 429)
    refused = service.http.post("/learn", json=EVENT, headers=slow)
    assert_problem(refused, 429, "20 events a second")
    assert 2 <= int(refused.headers["retry-after"]) <= 31
    assert_problem(service.http.get("/models", headers=slow), 429, "by its size")
    assert service.http.post("/predict", json={"x": {}}, headers=bearer(ADMIN)).status_code == 200

    began = time.monotonic()
    many = service.http.post("/learn", content=json.dumps([EVENT] * 600), headers=new | JSON)
    assert many.status_code == 200  # more than a second's worth at once, and the debt is waited off
    indebted = service.http.post("/learn", json=EVENT, headers=new)
    assert_problem(indebted, 429)
    assert 29 - (time.monotonic() - began) <= int(indebted.headers["retry-after"]) <= 30


@from_checks_on
def test_a_reply_to_a_get_counts_by_its_size_and_a_cross_check_by_its_events(start: Start) -> None:
    service = start(env={"LOGSTEP_TOKEN": ADMIN})
    with httpx.Client(base_url=service.http.base_url, headers=bearer(ADMIN), trust_env=False) as admin:
        wide = {f"feature-{i}": float(i) for i in range(5_000)}
        assert admin.post("/learn", json={"x": wide, "y": 1}).status_code == 200
        assert admin.put("/models/long", json={}).status_code == 201
        assert admin.post("/models/long/learn", json=[{"x": {"a": 1}, "y": 1}] * 1_000).status_code == 200
        size = len(admin.get("/models/default/weights").content)
    for method, path, events in (
        ("GET", "/models/default/weights", size / access.EVENT_BYTES),
        ("HEAD", "/models/default/weights", size / access.EVENT_BYTES),
        ("GET", "/models/long/crosscheck", 1_000),
        ("GET", "/models/default/weights?top=1", 0.1),
    ):
        slow = bearer(tokens.create(service.folder, ["predict"], None, 10)[0])
        until_known(service, slow)
        assert service.http.request(method, path, headers=slow).status_code == 200
        after = service.http.get("/models", headers=slow)
        if events < 1:
            assert after.status_code == 200
            continue
        assert_problem(after, 429, "a GET counts by its size")
        assert 0.8 * (events - 10) / 10 <= int(after.headers["retry-after"]) <= events / 10 + 2
        assert service.http.get("/livez").status_code == 200


@from_checks_on
def test_a_stream_past_the_rate_is_read_more_slowly(guarded: Guarded) -> None:
    service = guarded.service
    for verb in ("learn", "predict"):
        slow = bearer(tokens.create(service.folder, ["predict", "learn"], None, 50)[0])
        until_known(service, slow)
        started = time.monotonic()
        lines = ndjson([EVENT if verb == "learn" else {"x": EVENT["x"]}] * 120)
        reply = service.http.post(f"/{verb}", content=lines, headers=slow | NDJSON)
        assert reply.status_code == 200
        assert time.monotonic() - started >= 1.0  # the first 50 are free


# -- the commands


@from_checks_on
def test_the_commands_send_the_token_that_they_are_given(
    guarded: Guarded, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    url = ["--url", str(guarded.service.http.base_url)]
    file = tmp_path / "token"
    file.write_text(ADMIN)
    events = tmp_path / "events.csv"
    events.write_text("a,y\n1,0\n2,1\n")
    for command in (
        ["models", "create", "by-command"],
        ["replay", str(events), "--label", "y", "--model", "by-command"],
        ["models", "list"],
        ["models", "show", "by-command"],
        ["crosscheck", "--model", "by-command"],
        ["models", "delete", "by-command", "--yes"],
    ):
        monkeypatch.delenv("LOGSTEP_TOKEN", raising=False)
        assert cli.main([*command, *url]) == 1
        assert "This service requires a token, but none was sent" in capsys.readouterr().err
        monkeypatch.setenv("LOGSTEP_TOKEN", "x" * 32)  # the flag wins
        assert cli.main([*command, *url, "--token-file", str(file)]) == 0
    monkeypatch.setenv("LOGSTEP_TOKEN", ADMIN)
    assert cli.main(["models", "list", *url]) == 0
    monkeypatch.delenv("LOGSTEP_TOKEN")
    monkeypatch.setenv("LOGSTEP_TOKEN_FILE", str(file))
    assert cli.main(["models", "list", *url]) == 0
    assert cli.main(["models", "list", *url, "--token-file", str(tmp_path / "none")]) == 1
    assert "cannot be read: No such file" in capsys.readouterr().err


def test_a_token_that_creates_no_models_is_told_which_model_learns(
    guarded: Guarded, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    url = ["--url", str(guarded.service.http.base_url)]
    events = tmp_path / "events-of-a-learner.csv"
    events.write_text("a,y\n1,0\n2,1\n")
    command = ["replay", str(events), "--label", "y", *url]
    for models in (None, ["default"]):
        token, _ = tokens.create(guarded.service.folder, ["predict", "learn"], models, None)
        monkeypatch.setenv("LOGSTEP_TOKEN", token)
        eventually(lambda: cli.main(["models", "list", *url]) == 0, "the token to be seen")
        capsys.readouterr()
        assert cli.main(command) == 1
        error = capsys.readouterr().err
        assert "the model events-of-a-learner is not created" in error
        assert "--model default learns into the existing one" in error
        assert "Nothing was learned" in error
        assert cli.main([*command, "--model", "default"]) == 0


def test_no_command_takes_a_token_on_its_command_line() -> None:
    for command in (["serve"], ["replay", "FILE"], ["models", "list"], ["crosscheck"]):
        with pytest.raises(SystemExit) as usage:
            cli.main([*command, "--token", ADMIN])  # every process list would show it
        assert usage.value.code == 2


@from_checks_on
@pytest.mark.parametrize(
    ("method", "path", "scope", "body"),
    [
        ("PUT", "/models/slow", "admin", b'{"rule": "sgd"}'),
        ("POST", "/models/default/explain", "predict", b'{"x": {"a": 1}}'),
        ("POST", "/models/default/predict", "predict", b'[{"x": {"a": 1}}]'),
        ("POST", "/models/default/learn", "learn", b'[{"x": {"a": 1}, "y": 1}]'),
    ],
)
def test_a_body_that_ends_after_its_token_was_revoked_does_nothing(
    guarded: Guarded, method: str, path: str, scope: tokens.Scope, body: bytes
) -> None:
    service = guarded.service
    token, made = tokens.create(service.folder, [scope], None, None)
    until_known(service, bearer(token))
    with service.connect() as connection:
        connection.send_head(
            path,
            method,
            content_type="application/json",
            content_length=len(body),
            authorization=f"Bearer {token}",
        )
        connection.send(body[:5])
        tokens.revoke(service.folder, made.id)
        eventually(lambda: service.http.get("/models", headers=bearer(token)).status_code == 401, "the token to go")
        connection.send(body[5:])
        assert_problem(connection.reply(), 401, "")
    assert guarded.ask("admin", "GET", "/models/slow").status_code == 404


# -- secrets


def test_a_token_stands_in_no_line_of_the_log_and_in_no_reply(guarded: Guarded) -> None:
    service = guarded.service
    token, _ = tokens.create(service.folder, ["predict"], ["clicks"], 1)
    secret = "a-secret-in-a-body-0123456789"
    said = []
    until_known(service, bearer(token))
    for sent in (ADMIN, token, token[:-1], f"{token}, {ADMIN}"):
        for method, path in WANTS:
            url = path.replace("{model}", "clicks")
            for body in (json.dumps({"x": {"a": secret}, "y": secret}), "{" + secret, f'{{"spec": "{secret}"}}'):
                with service.http.stream(method.upper(), url, content=body, headers=JSON | bearer(sent)) as reply:
                    if not reply.headers.get("content-type", "").startswith("text/event-stream"):
                        said.append(reply.read().decode())
        said.append(service.http.get(f"/models?token={sent}").text)
    with service.connect() as connection:
        connection.send(f"GET /models HTTP/1.1\r\nauthorization: Bearer {ADMIN}\r\nbroken\r\n\r\n".encode())
        said.append(connection.socket.recv(10_000).decode())
    guarded.ask("admin", "PUT", "/models/clicks", json={"rule": "auto"})  # it was deleted, too
    for text in (service.log, *said):
        for hidden in (ADMIN, token[17:], secret):
            assert hidden not in text, text


def test_a_module_that_only_looks_at_tokens_starts_nothing_slow() -> None:
    program = (
        "import sys, service.http.tokens; sys.exit(bool({'numba', 'numpy', 'fastapi', 'httpx'} & set(sys.modules)))"
    )
    assert subprocess.run([sys.executable, "-c", program], timeout=60, check=False).returncode == 0
