"""What routes say of themselves in the OpenAPI document: bodies, replies, errors, and who may ask.

FastAPI makes the document from their declarations. `completed` adds the bodies and replies that msgspec reads and
writes: their structs describe them (service/events.py, service/replies.py). It also adds the classes of schemas.py,
which are made when somebody asks for the document: they would take a tenth of the start.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import msgspec
from fastapi.routing import APIRoute
from starlette.routing import BaseRoute

from core.spec import Spec
from service.events import ARROW, ARROW_FILE, CSV, JSON, NDJSON, PARQUET, TSV, Event, Explain, Label, Question
from service.http import access, reply
from service.replies import (
    Learned,
    LearnedLate,
    LearnedMany,
    LearnedManyLate,
    LearnedRows,
    NotLearned,
    Predicted,
    PredictedKept,
    encode,
)

if TYPE_CHECKING:
    from service.http.schemas import Shape

Responses = dict[int | str, dict[str, Any]]
PROBLEM = reply.PROBLEM.decode()
_SCHEMAS = "#/components/schemas/"
_ERRORS = {
    400: "A body that is not what its type and encoding say, or is incomplete, or a token in the URL",
    401: "The service requires a token, and the request has none, or an unknown or expired one",
    403: "The token may not do this. Without tokens: the request comes from a page of another site",
    404: "Unknown model, or one that the token may not use; or a label whose id is unknown, expired or dropped",
    405: "The route does not allow this method",
    409: "Conflict with what the service has: another spec, another event with this id, or a stopped model",
    413: "The body, a line, a batch, an array or the reply is too large",
    415: "The content type is none of those below, the charset is not UTF-8, the encoding is neither gzip nor zstd, "
    "or Arrow comes and the service was installed without it",
    422: "An invalid event, spec or parameter. Nothing was learned, except the events before it in a stream",
    421: "The service does not answer to this host name",
    429: "The token is over its rate, or another cross-check is running. Try again after Retry-After seconds",
    500: "A bug in the service, or damaged data",
    503: "The service is overloaded, recovering or stopping. Try again after Retry-After seconds",
    507: "The disk is full. Predictions without an id still work",
}


def ref(kind: type | str) -> dict[str, Any]:
    """The schema of this name."""
    return {"$ref": _SCHEMAS + (kind if isinstance(kind, str) else kind.__name__)}


# -- replies


class Example(NamedTuple):
    """The example of a class of schemas.py, made when somebody asks for the document. `changed`: what it has otherwise
    than the class."""

    shape: str
    changed: dict[str, Any]

    def made(self) -> dict[str, Any]:
        from service.http import schemas

        shape: type[Shape] = getattr(schemas, self.shape)
        return shape.example(**self.changed)


def ok(
    shape: str, description: str, *errors: int, code: int = 200, links: Sequence[str] = (), **changed: Any
) -> Responses:
    """A JSON reply of the class of schemas.py with this name, and the statuses of errors. `links`: what a client can
    ask next of the same model. `changed`: what the example has otherwise."""
    content = {JSON: {"schema": ref(shape), "example": Example(shape, changed)}}
    good = {"description": description, "content": content, **_links(links)}
    return {code: good, **problems(*errors)}


def text(description: str, media_type: str, example: str) -> Responses:
    """A reply that is not JSON."""
    content = {media_type: {"schema": {"type": "string"}, "example": example}}
    return {200: {"description": description, "content": content}}


def streamed(example: Any) -> Responses:
    """A stream of server-sent events."""
    told = "Server-sent events (`curl -N`, `EventSource`): an `event: now` with one object as data whenever it changes"
    data = f"retry: 2000\n\nevent: now\ndata: {msgspec.json.encode(example).decode()}\n\n"
    return {**text(told, "text/event-stream", data), **problems(503)}


def problems(*statuses: int) -> Responses:
    """Errors, as problem documents."""
    content = {PROBLEM: {"schema": ref("Problem")}}
    return {status: {"description": _ERRORS[status], "content": content} for status in statuses}


def at_the_door(method: str, path: str) -> dict[str, Any]:
    """The token that a route needs, and the errors of service/http/access.py."""
    asked = access.parse(path)
    wants = access.wanted(method, asked)
    if wants in (access.PROBE, access.OPEN):
        return {"responses": problems(400)}
    statuses = (400, 401, 403, *([] if asked.model == access.NO_MODEL else [404]), 421, 429)
    return {"responses": problems(*statuses), "openapi_extra": {"security": [{"token": []}]}}


def _links(operations: Sequence[str]) -> dict[str, Any]:
    links = {name: {"operationId": name, "parameters": {"model": "$request.path.model"}} for name in operations}
    return {"links": links} if links else {}


# -- bodies


def takes(kind: type, **shown: Any) -> dict[str, Any]:
    """A JSON body of this kind. `shown`: its `example` or `examples`."""
    return {"requestBody": {"required": True, "content": {JSON: {"schema": ref(kind), **shown}}}}


QUESTION: dict[str, Any] = {"x": {"age": 31, "country": "FR", "vip": True}}
WAITING: dict[str, Any] = {"id": "imp-7"}
_EVENT: dict[str, Any] = {**QUESTION, "y": 1, "id": "order-77", "weight": 1.0}
_KEPT = PredictedKept("default", 0.731, True, 1042, kept=True, duplicate=False)
_LATE = LearnedLate("default", 1042, 0.731, 0.313, False, 0.702, 0.354, 31.2, False)
_Examples = dict[str, tuple[type, dict[str, Any], msgspec.Struct]]
"""The kind of a body, the body and its reply, by a name."""
_LEARN: _Examples = {
    "event": (Event, _EVENT, Learned("default", 1042, 0.731, 0.313, False)),
    "label": (Label, {**WAITING, "y": 1}, _LATE),
}
_PREDICT: _Examples = {
    "prediction": (Question, QUESTION, Predicted("default", 0.731, True, 1042)),
    "kept": (Question, {**QUESTION, **WAITING}, _KEPT),
}


def learns(*links: str) -> dict[str, Any]:
    """What a route that learns takes and replies."""
    found = _hot("Learned, and on the disk", "Learn", _LEARN, links)
    replied = found["responses"][200]["content"][JSON]
    replied["examples"]["stream"] = {"value": msgspec.to_builtins(LearnedMany("default", 2, 0, 1, 2, 0.693))}
    return found


def predicts(*links: str) -> dict[str, Any]:
    """What a route that predicts takes and replies."""
    found = _hot("Predicted", "Predict", _PREDICT, links)
    found["openapi_extra"]["parameters"] = [*FRESH, *_OF_ROWS]
    found["responses"][200]["content"][NDJSON] = _lines([reply for _, _, reply in _PREDICT.values()])
    return found


def _hot(done: str, name: str, examples: _Examples, links: Sequence[str]) -> dict[str, Any]:
    bodies = {name: body for name, (_, body, _) in examples.items()}
    replies = {name: msgspec.to_builtins(reply) for name, (_, _, reply) in examples.items()}
    content = {
        JSON: {"schema": ref(name), "examples": _shown(bodies)},
        NDJSON: _lines(list(bodies.values())),
        CSV: {"schema": {"type": "string"}, "example": "age,country,clicked\n31,FR,1\n"},
        **{
            kind: {"schema": {"type": "string", "contentMediaType": kind}} for kind in (TSV, ARROW, PARQUET, ARROW_FILE)
        },
    }
    replied = {JSON: {"schema": ref(f"{name}Reply"), "examples": _shown(replies)}}
    good = {"description": done, "content": replied, **_links(links)}
    return {
        "responses": {200: good, **problems(400, 404, 405, 409, 413, 415, 422, 500, 503, 507)},
        "openapi_extra": {"requestBody": {"required": True, "content": content}, "parameters": _OF_ROWS},
    }


def _parameter(name: str, description: str, **schema: Any) -> dict[str, Any]:
    return {"name": name, "in": "query", "description": description, "schema": schema or {"type": "string"}}


FRESH = [
    _parameter(
        "min_seq", "Wait until the model has learned this event; 503 after --max-lag.", type="integer", minimum=0
    ),
    {
        "name": "x-logstep-offset",
        "in": "header",
        "description": "Wait until this node has applied what the reply with this header saw; 503 after --max-lag. "
        "A service without --kafka does not look at it.",
        "schema": {"type": "string"},
    },
]
"""How much a reply must have seen."""
_MANY = {"type": "array", "items": {"type": "string"}}
_OF_ROWS = [
    _parameter("label", "Of rows (CSV; NDJSON, Arrow and Parquet with flat rows): the column of the label."),
    _parameter("positive", "Read these labels as 1 and all others as 0.", **_MANY),
    _parameter("negative", "Read these labels as 0 and all others as 1.", **_MANY),
    _parameter("id", "The column of the ids."),
    _parameter("weight", "The column of the weights."),
    _parameter("id_prefix", "Where no column is the id, rows get this, a colon and their number as their id."),
    _parameter("text", "Read these columns as text.", **_MANY),
    _parameter("number", "Read these columns as numbers.", **_MANY),
    _parameter("ignore", "Leave these columns out.", **_MANY),
    _parameter("header", "Whether the first line names the columns; else they are 1, 2, ...", type="boolean"),
    _parameter("quoted", "Whether cells may be in quotes.", type="boolean"),
    _parameter("delimiter", "The separator of cells: a character, or `tab`."),
    _parameter("look", "Rows to look at before one is learned.", type="integer", minimum=1, maximum=10_000),
]


def _shown(examples: dict[str, Any]) -> dict[str, Any]:
    """Examples, and one of an array of them."""
    return {name: {"value": value} for name, value in {**examples, "array": list(examples.values())}.items()}


def _one_or_many(*kinds: type, streamed: Sequence[type] = ()) -> dict[str, Any]:
    """An object of one of these kinds, an array of them, or what answers a stream."""
    one = [ref(kind) for kind in kinds]
    return {"anyOf": [*one, {"type": "array", "items": {"anyOf": one}}, *map(ref, streamed)]}


_HOT = {
    "Learn": _one_or_many(Event, Label),
    "LearnReply": _one_or_many(Learned, LearnedLate, NotLearned, streamed=[LearnedMany, LearnedManyLate, LearnedRows]),
    "Predict": _one_or_many(Question),
    "PredictReply": _one_or_many(Predicted, PredictedKept),
}
"""They have names, because oapi-codegen's clients in Go send an empty object for a union without a name."""


def _lines(values: Sequence[Any]) -> dict[str, Any]:
    return {"schema": {"type": "string"}, "example": b"".join(map(encode, values)).decode()}


# -- the document


def completed(document: dict[str, Any], routes: Sequence[BaseRoute]) -> dict[str, Any]:
    """FastAPI's document, with what FastAPI does not know or leaves out."""
    components = document["components"]
    components["securitySchemes"] = {"token": {"type": "http", "scheme": "bearer"}}
    shapes = {"Problem"}
    for route in routes:
        if isinstance(route, APIRoute) and route.include_in_schema:
            (method,) = route.methods or {""}
            responses = document["paths"][route.path][method.lower()]["responses"]
            for status in responses.keys() - {str(status) for status in route.responses}:
                del responses[status]
            for status, declared in route.responses.items():
                for media_type, content in declared.get("content", {}).items():
                    told = responses[str(status)]["content"][media_type]
                    told |= content  # FastAPI drops nulls in examples
                    if isinstance(example := content.get("example"), Example):
                        told["example"] = example.made()
                        shapes.add(example.shape)
    components["schemas"] |= _schemas(shapes)
    _suit_generators(document)
    for name in ("HTTPValidationError", "ValidationError"):  # FastAPI's own errors never happen
        components["schemas"].pop(name, None)
    return document


def _schemas(shapes: set[str]) -> dict[str, Any]:
    """The schemas of structs, of Spec, and of these classes of schemas.py."""
    from pydantic import TypeAdapter
    from pydantic.json_schema import models_json_schema

    from service.http import schemas as classes

    structs = [Event, Label, Question, Explain, Learned, LearnedLate, NotLearned, LearnedMany, LearnedManyLate]
    structs += [LearnedRows, Predicted, PredictedKept]
    _, schemas = msgspec.json.schema_components(structs, ref_template=_SCHEMAS + "{name}")
    schemas["Explain"]["oneOf"] = [
        {"required": ["x"], "properties": {"x": {"not": {"type": "null"}}, "id": {"type": "null"}}},
        {"required": ["id"], "properties": {"id": {"type": "string"}, "x": {"type": "null"}}},
    ]
    schema: dict[str, Any] = TypeAdapter(Spec).json_schema(ref_template=_SCHEMAS + "{model}")
    schemas |= {**schema.pop("$defs", {}), "Spec": schema}
    kinds: Any = [(getattr(classes, name), "serialization") for name in sorted(shapes)]
    _, shown = models_json_schema(kinds, ref_template=_SCHEMAS + "{model}")
    schemas |= shown["$defs"]
    return {**schemas, **_HOT}


def _suit_generators(document: dict[str, Any]) -> None:
    """What generators of clients would get wrong. openapi-typescript requires every field that has a default, and
    oapi-codegen makes a float32 of a number whose format is not said."""
    for schema in document["components"]["schemas"].values():
        for field in schema.get("properties", {}).values():
            if (default := field.pop("default", None)) is not None:
                told = field.get("description", "")
                field["description"] = f"{told} Default: {msgspec.json.encode(default).decode()}.".strip()
    _double(document)


def _double(part: Any) -> None:
    if isinstance(part, dict) and part.get("type") == "number":
        part["format"] = "double"
    for inner in part.values() if isinstance(part, dict) else part if isinstance(part, list) else ():
        _double(inner)
