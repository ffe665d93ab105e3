"""The OpenAPI document: it has every route, and what it says is true of the service."""

from __future__ import annotations

import asyncio
import dataclasses
import itertools
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
from effort import from_checks_on
from fastapi.routing import APIRoute
from harness import Service, assert_problem

from core.spec import Spec
from service.http import app, tokens
from service.settings import Settings

Document = dict[str, Any]
METHODS = {"get", "put", "post", "delete", "patch", "head", "options"}
ROUTES = {
    ("post", "/learn"),
    ("post", "/predict"),
    ("post", "/models/{model}/learn"),
    ("post", "/models/{model}/predict"),
    ("post", "/models/{model}/explain"),
    ("get", "/models"),
    ("get", "/models/{model}"),
    ("put", "/models/{model}"),
    ("delete", "/models/{model}"),
    ("post", "/models/{model}/resume"),
    ("get", "/models/{model}/weights"),
    ("get", "/models/{model}/series"),
    ("get", "/models/{model}/curve"),
    ("get", "/models/{model}/crosscheck"),
    ("get", "/livez"),
    ("get", "/readyz"),
}


@pytest.fixture(scope="module")
def document(shared: Service) -> Document:
    """The document, as the service serves it."""
    return shared.get("/openapi.json")


@pytest.fixture(scope="module")
def starting(tmp_path_factory: pytest.TempPathFactory) -> app.Service:
    """The application, not started: as it is before it has begun to recover."""
    return app.Service(Settings(data=tmp_path_factory.mktemp("data")))


def operations(document: Document) -> dict[tuple[str, str], Any]:
    return {
        (method, path): operation
        for path, item in document["paths"].items()
        for method, operation in item.items()
        if method in METHODS
    }


def resolved(document: Document, node: Any) -> Any:
    """The node, or what its `$ref` names."""
    while isinstance(node, dict) and "$ref" in node:
        target: Any = document
        for part in node["$ref"].removeprefix("#/").split("/"):
            target = target[part.replace("~1", "/").replace("~0", "~")]
        node = target
    return node


def nodes(node: Any) -> Iterator[dict[str, Any]]:
    """Every object below a node, and the node."""
    if isinstance(node, dict):
        yield node
        node = list(node.values())
    if isinstance(node, list):
        for inner in node:
            yield from nodes(inner)


KINDS: dict[str, tuple[type, ...]] = {
    "object": (dict,),
    "array": (list,),
    "string": (str,),
    "boolean": (bool,),
    "integer": (int,),
    "number": (int, float),
    "null": (type(None),),
}


def misfits(document: Document, value: Any, schema: Any, at: str = "") -> list[str]:
    """Where a value does not fit a schema."""
    schema = resolved(document, schema)
    if "anyOf" in schema:
        found = [misfits(document, value, option, at) for option in schema["anyOf"]]
        return [] if [] in found else found[0]
    kinds = schema.get("type", [])
    kinds = [kinds] if isinstance(kinds, str) else kinds
    if kinds and not any(
        isinstance(value, KINDS[kind]) and (kind == "boolean" or not isinstance(value, bool)) for kind in kinds
    ):
        return [f"{at}: {value!r} is no {kinds}"]
    if isinstance(value, dict):
        properties, more = schema.get("properties", {}), schema.get("additionalProperties", True)
        wrong = [f"{at}.{name} is missing" for name in schema.get("required", []) if name not in value]
        for name, inner in value.items():
            if name in properties:
                wrong += misfits(document, inner, properties[name], f"{at}.{name}")
            elif isinstance(more, dict):
                wrong += misfits(document, inner, more, f"{at}.{name}")
            elif not more:
                wrong.append(f"{at}.{name} is not expected")
        return wrong
    if isinstance(value, list) and "items" in schema:
        return list(
            itertools.chain.from_iterable(
                misfits(document, inner, schema["items"], f"{at}[{i}]") for i, inner in enumerate(value)
            )
        )
    return []


def assert_documented(document: Document, method: str, path: str, response: httpx.Response) -> None:
    """That the document tells of this reply: its status, its content type, its shape."""
    responses = operations(document)[method, path]["responses"]
    assert str(response.status_code) in responses, response.text
    told = responses[str(response.status_code)]
    if response.status_code == 204:
        assert "content" not in told
        assert not response.content
        return
    content_type = response.headers["content-type"]
    assert content_type in told["content"]
    if content_type in ("application/json", "application/problem+json"):
        assert misfits(document, response.json(), told["content"][content_type]["schema"]) == []


def test_the_check_of_shapes_finds_what_does_not_fit() -> None:
    schema = {"type": "object", "required": ["a"], "properties": {"a": {"type": ["integer", "null"]}}}
    assert misfits({}, {"a": None, "b": 1}, schema) == []
    assert misfits({}, {"b": 1}, schema) == [".a is missing"]
    assert misfits({}, {"a": "1"}, schema) == [".a: '1' is no ['integer', 'null']"]
    assert misfits({}, [{"a": True}], {"items": schema}) == ["[0].a: True is no ['integer', 'null']"]


# -- the document


def test_it_has_every_route_of_the_service(document: Document, starting: app.Service) -> None:
    built = {
        (method.lower(), route.path)
        for route in starting.api.routes
        if isinstance(route, APIRoute) and route.include_in_schema
        for method in route.methods or ()
    }
    assert built <= operations(document).keys()
    assert operations(document).keys() >= ROUTES


def test_every_route_in_it_is_there(document: Document, shared: Service) -> None:
    for method, path in operations(document):
        with shared.http.stream(method, path.replace("{model}", "nobody")) as response:
            assert response.status_code != 405
            if response.headers.get("content-type") != "text/event-stream":  # which does not end
                assert "nothing at" not in response.read().decode()


def test_it_is_put_together_well(document: Document) -> None:
    assert document["openapi"].startswith("3.1")
    assert document["info"]["title"] == "logstep"
    for node in nodes(document):
        if "$ref" in node:
            assert isinstance(resolved(document, node), dict)
    names = [operation["operationId"] for operation in operations(document).values()]
    assert len(names) == len(set(names))
    for (_, path), operation in operations(document).items():
        parameters = [p["name"] for p in operation.get("parameters", []) if p["in"] == "path"]
        assert parameters == (["model"] if "{model}" in path else [])
        assert set(operation["responses"]) & {"200", "201", "204"}


def test_every_operation_has_a_summary_and_an_example(document: Document) -> None:
    for key, operation in operations(document).items():
        assert operation["summary"], key
        assert operation["responses"]
        assert any(node.keys() & {"example", "examples"} for node in nodes(operation)), key
        for status, response in operation["responses"].items():
            assert response["description"], key
            for content_type, content in response.get("content", {}).items():
                assert "schema" in content, (key, status)
                if content_type != "application/problem+json":
                    assert content.keys() & {"example", "examples"}, (key, status)


def test_every_example_fits_its_schema(document: Document) -> None:
    for key, operation in operations(document).items():
        contents = [operation.get("requestBody", {}), *operation["responses"].values()]
        for content in (inner for outer in contents for inner in outer.get("content", {}).values()):
            examples = [example["value"] for example in content.get("examples", {}).values()]
            examples += [content["example"]] if "example" in content else []
            for example in examples:
                assert misfits(document, example, content["schema"]) == [], key


def test_every_error_in_it_is_a_problem_document(document: Document) -> None:
    """What FastAPI adds by itself (422 with a `detail` that is a list) the service never answers."""
    for key, operation in operations(document).items():
        for status, response in operation["responses"].items():
            if int(status) >= 400:
                assert list(response["content"]) == ["application/problem+json"], (key, status)
                schema = response["content"]["application/problem+json"]["schema"]
                assert schema == {"$ref": "#/components/schemas/Problem"}


# -- held to the service


@pytest.mark.parametrize("prefix", ["", "/models/{model}"])
def test_the_examples_of_the_hot_paths_work(document: Document, shared: Service, prefix: str) -> None:
    assert shared.http.delete("/models/default").status_code == 204
    for verb in ("predict", "learn"):  # what is predicted with an id, its label is learned of
        path = f"{prefix}/{verb}"
        content = operations(document)["post", path]["requestBody"]["content"]
        columns = {f"application/vnd.apache.{name}" for name in ("arrow.stream", "arrow.file", "parquet")}
        rows = {"text/csv", "text/tab-separated-values"}
        assert content.keys() == {"application/json", "application/x-ndjson", *rows, *columns}
        examples = content["application/json"]["examples"].values()
        bodies = [("application/json", json.dumps(example["value"])) for example in examples]
        assert len(bodies) == 3
        bodies.append(("application/x-ndjson", content["application/x-ndjson"]["example"]))
        bodies.append(("text/csv", content["text/csv"]["example"]))
        for content_type, body in bodies:
            query = "?label=clicked" if content_type == "text/csv" else ""
            response = shared.http.post(
                path.replace("{model}", "default") + query, content=body, headers={"content-type": content_type}
            )
            assert response.status_code == 200, response.text
            assert_documented(document, "post", path, response)


def test_the_example_of_a_spec_works(document: Document, shared: Service) -> None:
    body = operations(document)["put", "/models/{model}"]["requestBody"]["content"]["application/json"]["example"]
    for status in (201, 200):
        response = shared.http.put("/models/from-the-example", json=body)
        assert response.status_code == status
        assert_documented(document, "put", "/models/{model}", response)
    conflict = shared.http.put("/models/from-the-example", json={})
    assert_problem(conflict, 409)
    assert_documented(document, "put", "/models/{model}", conflict)
    gone = shared.http.delete("/models/from-the-example")
    assert_documented(document, "delete", "/models/{model}", gone)


def test_the_schema_of_a_spec_has_every_part_of_a_spec(document: Document) -> None:
    schema = document["components"]["schemas"]["Spec"]
    assert schema["properties"].keys() == {field.name for field in dataclasses.fields(Spec)}


GETS = [
    pytest.param(path, marks=from_checks_on if path.endswith("/crosscheck") else ())
    for method, path in sorted(ROUTES)
    if method == "get"
]
UNTESTED = {"429", "500"}
"""429 is tested with the cross-checks, and 500 is a mistake that nobody knows of."""


@pytest.fixture(scope="module")
def guarded(tmp_path_factory: pytest.TempPathFactory) -> tuple[app.Service, str]:
    """The application, not started, that asks for a token; and one that may learn."""
    folder = tmp_path_factory.mktemp("guarded")
    token, _ = tokens.create(folder, ["learn"], None, None)
    return app.Service(Settings(data=folder)), token


async def at_the_door(guarded: tuple[app.Service, str], path: str) -> list[httpx.Response]:
    """What those hear who send no token, one that may not, one in the URL, or another host."""
    service, token = guarded
    transport = httpx.ASGITransport(service)
    async with httpx.AsyncClient(transport=transport, base_url="http://localhost") as client:
        return [
            await client.get(path),
            await client.get(path, headers={"authorization": f"Bearer {token}"}),
            await client.get(path, params={"token": token}),
            await client.get(path, headers={"host": "rebound.example"}),
        ]


@pytest.mark.parametrize("path", GETS)
def test_each_status_that_the_document_tells_of_for_a_get_is_there(
    document: Document, shared: Service, starting: app.Service, guarded: tuple[app.Service, str], path: str
) -> None:
    replies = [shared.http.get(path.replace("{model}", "default"))]
    if "{model}" in path:
        replies.append(shared.http.get(path.replace("{model}", "nobody")))
        shared.model("automatic").create({"rule": "auto"})
        replies.append(shared.http.get(path.replace("{model}", "automatic")))
    if path == "/models/{model}":
        replies.append(shared.http.get("/models/default", params={"min_seq": "none"}))
    if path.endswith(("/weights", "/series")):
        replies.append(shared.http.get(path.replace("{model}", "default"), params={"top": "none", "step": "none"}))

    async def not_started() -> httpx.Response:
        transport = httpx.ASGITransport(starting)
        async with httpx.AsyncClient(transport=transport, base_url="http://localhost") as client:
            return await client.get(path.replace("{model}", "default"))

    replies.append(asyncio.run(not_started()))
    replies.append(shared.http.get(path.replace("{model}", "default"), headers={"sec-fetch-site": "cross-site"}))
    replies += asyncio.run(at_the_door(guarded, path.replace("{model}", "default")))
    for reply in replies:
        assert_documented(document, "get", path, reply)
    told = set(operations(document)["get", path]["responses"])
    assert {str(reply.status_code) for reply in replies} >= told - UNTESTED


def test_an_explanation_and_a_resumed_model_are_as_documented(document: Document, shared: Service) -> None:
    model = shared.model("shown")
    assert model.create({"breaker": {"events": 10, "log_loss": 9.0}}).status_code == 201
    assert model.predict({"x": {"a": 1}, "id": "waits"}).status_code == 200
    for body in ({"x": {"a": 1}}, {"id": "waits"}):
        reply = shared.http.post("/models/shown/explain", json=body)
        assert_documented(document, "post", "/models/{model}/explain", reply)
    assert_documented(document, "post", "/models/{model}/resume", shared.http.post("/models/shown/resume"))


@pytest.mark.parametrize("path", ["/learn", "/predict", "/models/nobody/learn", "/models/nobody/predict"])
def test_a_hot_route_answers_through_fastapi_as_without_it(starting: app.Service, path: str) -> None:
    """The service calls what answers it without FastAPI's routing, which would slow it down."""

    async def through_fastapi(scope: Any, receive: Any, send: Any) -> None:
        await starting.api({**scope, "grant": tokens.EVERYONE, "request_id": "same"}, receive, send)

    async def reply_of(application: Any) -> httpx.Response:
        async with httpx.AsyncClient(transport=httpx.ASGITransport(application), base_url="http://localhost") as client:
            return await client.post(path, json={"x": {}}, headers={"x-request-id": "same"})

    replies = [asyncio.run(reply_of(application)) for application in (starting, through_fastapi)]
    assert_problem(replies[0], 503)
    assert replies[0].content == replies[1].content


def test_refusals_of_the_hot_paths_are_in_it(document: Document, shared: Service) -> None:
    bodies = {"400": "{", "415": "{}", "422": "{}", "404": "{}", "405": "", "413": ""}
    for verb, status in itertools.product(("learn", "predict"), bodies):
        with shared.connect() as connection:
            connection.send_head(
                f"/models/{'nobody' if status == '404' else 'default'}/{verb}",
                "PUT" if status == "405" else "POST",
                content_type="text/plain" if status == "415" else "application/json",
                content_length=10**9 if status == "413" else len(bodies[status]),
            )
            connection.send(bodies[status].encode())
            problem = assert_problem(connection.reply(), int(status))
        responses = operations(document)["post", f"/models/{{model}}/{verb}"]["responses"]
        schema = responses[status]["content"]["application/problem+json"]["schema"]
        assert misfits(document, problem, schema) == []


def test_a_second_copy_of_the_document_is_the_same(document: Document, shared: Service, tmp_path: Path) -> None:
    assert shared.get("/openapi.json") == document
    assert app.Service(Settings(data=tmp_path)).api.openapi() == document
