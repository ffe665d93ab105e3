"""What the OpenAPI document says of each route: examples, replies and errors.

FastAPI does not know the two hot paths, so this module describes them and `extend` adds them.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import msgspec
from fastapi import FastAPI, Request, Response
from fastapi.routing import APIRoute
from pydantic import TypeAdapter

from core.spec import Spec
from service.events import Event, Explain, Label, Question
from service.fairness import worked
from service.http import access
from service.replies import encode

NDJSON = "application/x-ndjson"
ARROW = "application/vnd.apache.arrow.stream"
_PROBLEM = {
    "type": "object",
    "description": "A problem document (RFC 9457): what is wrong, where, and what to do.",
    "required": ["type", "title", "status", "detail", "request_id"],
    "properties": {
        "type": {"type": "string"},
        "title": {"type": "string"},
        "status": {"type": "integer"},
        "detail": {"type": "string"},
        "request_id": {
            "type": "string",
            "description": "Id of the request, as in the header X-Request-ID and the log.",
        },
        "field": {"type": "string", "description": "Path of the wrong value in the body."},
        "line": {"type": "integer", "description": "Wrong line of an NDJSON body."},
        "row": {"type": "integer", "description": "Wrong row of an Arrow stream."},
        "learned": {
            "type": "integer",
            "description": "Events of a stream learned before the error. They stay learned.",
        },
        "duplicates": {"type": "integer"},
        "last_seq": {"type": ["integer", "null"]},
    },
}
_ERRORS = {
    400: "Malformed JSON or Arrow, an incomplete body, or a token in the URL",
    401: "The service requires a token, and the request has none, or an unknown or expired one",
    403: "The token may not do this. Without tokens: the request comes from a page of another site",
    404: "Unknown model, or one that the token may not use; or a label whose id is unknown, expired or dropped",
    405: "The route does not allow this method",
    409: "Conflict with what the service has: another spec, another event with this id, or a stopped model",
    413: "The body, a line, a batch, an array or the reply is too large",
    415: "The content type is not JSON, NDJSON or Arrow, the charset is not UTF-8, or the body is compressed",
    422: "An invalid event, spec or parameter. Nothing was learned, except the events before it in a stream",
    421: "The service does not answer to this host name",
    429: "The token is over its rate, or another cross-check is running. Try again after Retry-After seconds",
    500: "A bug in the service, or damaged data",
    503: "The service is overloaded, recovering or stopping. Try again after Retry-After seconds",
    507: "The disk is full. Predictions without an id still work",
}
# Exactly the bodies that msgspec decodes. A body that fits its schema is accepted, unless the model's spec or its state
# forbids it.
_TEXT = {"type": "string", "maxLength": 256, "pattern": "^[^\\x00]*$"}
_ID = {**_TEXT, "minLength": 1}
_ID_OR_NONE = {**_ID, "type": ["string", "null"], "default": None}
_NUMBER = {
    "type": "number",
    "minimum": -1e100,
    "maximum": 1e100,
    "description": "The bounds are the max_value of the model.",
}
_NULL = {"type": "null"}
_X: dict[str, Any] = {
    "description": "Features by name, or an array of numbers, whose names are their positions. A null is left out.",
    "anyOf": [
        {
            "type": "object",
            "propertyNames": {**_ID},
            "additionalProperties": {"anyOf": [_NUMBER, {"type": "boolean"}, _TEXT, _NULL]},
        },
        {"type": "array", "items": {"anyOf": [_NUMBER, {"type": "boolean"}, _NULL]}},
    ],
}
_Y = {"enum": [0, 1, False, True], "description": "The label."}
_WEIGHT = {"type": "number", "exclusiveMinimum": 0, "default": 1.0, "description": "Multiplies the gradient."}


def _body(kind: type, required: list[str], **properties: Any) -> dict[str, Any]:
    return {
        "title": kind.__name__,
        "description": kind.__doc__,
        "type": "object",
        "required": required,
        "properties": properties,
        "additionalProperties": False,
    }


_BODIES = {
    "Event": _body(Event, ["x", "y"], x=_X, y=_Y, id=_ID_OR_NONE, weight=_WEIGHT),
    "Label": _body(Label, ["id", "y"], id=_ID, y=_Y, weight=_WEIGHT),
    "Question": _body(Question, ["x"], x=_X, id=_ID_OR_NONE),
    "Explain": {
        **_body(Explain, [], x={**_X, "anyOf": [*_X["anyOf"], _NULL]}, id=_ID_OR_NONE),
        "oneOf": [
            {"required": ["x"], "properties": {"x": {"type": ["object", "array"]}, "id": {"type": "null"}}},
            {"required": ["id"], "properties": {"id": {"type": "string"}, "x": {"type": "null"}}},
        ],
    },
}
_PARAMETERS = {
    "model": {"type": "string", "pattern": "^[A-Za-z0-9][A-Za-z0-9_.-]{0,63}$", "examples": ["default"]},
    "top": {"type": "integer", "minimum": 1, "maximum": 999_999_999},
    "from": {"type": "number", "minimum": 0},
    "to": {"type": "number", "minimum": 0},
    "step": {"type": "number", "exclusiveMinimum": 0},
}


def _links(*operations: str) -> dict[str, Any]:
    """What a client can ask next of the same model."""
    return {name: {"operationId": name, "parameters": {"model": "$request.path.model"}} for name in operations}


_SCORES = {"events": 45312, "log_loss": 0.3321, "base_rate_log_loss": 0.6812, "accuracy": 0.861, "roc_auc": 0.921}
_MODEL = {
    "model": "default",
    "spec": Spec().as_dict(),
    "seq": 45312,
    "features": 6,
    "not_taken": 0,
    "left_out": 0,
    "snapshot_seq": 40000,
    "breaker": {"log_loss": 0.3312, "stopped_at": None, "resumed_at": 0},
    "progressive": {"total": _SCORES, "window": {**_SCORES, "events": 1000}},
    "worse_than_guessing": None,
    "served": {"total": {**_SCORES, "events": 30000}, "window": {**_SCORES, "events": 1000}},
    "join": {
        "waiting": 812,
        "joined": 29000,
        "expired": 1000,
        "late": 12,
        "dropped": 0,
        "not_kept": 0,
        "delay_s": {"count": 29012, "mean": 31.2, "buckets": [{"up_to": 60.0, "count": 25000}]},
    },
    "sha256": "9f86d081884c7d659a2feaa0c55ad015a3bf4f1b2b0b822cd15d6c15b0f00a08",
}
_EVENT = {"x": {"age": 31, "country": "FR", "vip": True}, "y": 1, "id": "order-77", "weight": 1.0}
_QUESTION = {"x": {"age": 31, "country": "FR", "vip": True}}
_LEARNED = {"model": "default", "seq": 1042, "p": 0.731, "loss": 0.313, "duplicate": False}
_PREDICTED = {"model": "default", "p": 0.731, "y": True, "seq": 1042}
_LABEL = {"id": "imp-7", "y": 1}
_LEARNED_LATE = {**_LEARNED, "served_p": 0.702, "served_loss": 0.354, "delay_s": 31.2, "late": False}
_KEPT = {**_PREDICTED, "kept": True, "duplicate": False}
_LEARNED_MANY = {"model": "default", "learned": 2, "duplicates": 0, "first_seq": 1, "last_seq": 2, "loss": 0.693}


def _ok(description: str, example: Any, schema: dict[str, Any] | None = None) -> dict[str, Any]:
    content = {"schema": schema or _schema_of(example), "example": example}
    return {"description": description, "content": {"application/json": content}}


def _schema_of(example: Any) -> dict[str, Any]:
    """A schema wide enough for every reply like the example: a number may also be null."""
    if isinstance(example, dict):
        return {
            "type": "object",
            "required": list(example),
            "properties": {name: _schema_of(value) for name, value in example.items()},
        }
    if isinstance(example, list):
        return {"type": "array", "items": _schema_of(example[0])}
    kinds: dict[type, list[str]] = {
        bool: ["boolean"],
        int: ["integer", "null"],
        float: ["number", "null"],
        str: ["string", "null"],
        type(None): ["string", "integer", "number", "null"],
    }
    return {"type": kinds[type(example)]}


def _problems(*statuses: int) -> dict[int | str, dict[str, Any]]:
    schema = {"$ref": "#/components/schemas/Problem"}
    return {
        status: {"description": _ERRORS[status], "content": {"application/problem+json": {"schema": schema}}}
        for status in statuses
    }


_WORSE = {
    "type": ["object", "null"],
    "required": ["over", "advice"],
    "properties": {"over": {"enum": ["window", "total"]}, "advice": {"type": "string"}},
    "description": "Set if, over more than 200 events, the log loss is worse than always predicting the share of "
    "label 1. `over` says over which events, `advice` what to do.",
}
_MODEL_SCHEMA = _schema_of(_MODEL)
_MODEL_SCHEMA["properties"]["worse_than_guessing"] = _WORSE
_MODEL_SCHEMA["properties"]["spec"] = {"$ref": "#/components/schemas/Spec"}
_MODEL_SCHEMA["properties"]["breaker"]["type"] = ["object", "null"]
_MODEL_SCHEMA["properties"] |= {
    "learners": {
        "type": "array",
        "items": {"type": "object"},
        "description": "`auto` only: the current weight of each learner.",
    },
    "alarms": {"type": "integer", "description": "`auto` only: how often the stream changed abruptly."},
}
_MADE = {**{name: _MODEL[name] for name in ("model", "spec", "seq")}, "created": False}
_MADE_SCHEMA = _schema_of(_MADE)
_MADE_SCHEMA["properties"]["spec"] = {"$ref": "#/components/schemas/Spec"}
_RESUMED = {name: _MODEL[name] for name in ("model", "seq", "breaker")}
_WEIGHTS_EXAMPLE = {
    "model": "default",
    "seq": 2,
    "bias": 0.0049875,
    "weights": {"age": 0.155, "country=FR": 0.005},
    "sha256": _MODEL["sha256"],
}
_WEIGHTS_SCHEMA = _schema_of({key: value for key, value in _WEIGHTS_EXAMPLE.items() if key != "weights"})
_WEIGHTS_SCHEMA["properties"]["weights"] = {"type": "object", "additionalProperties": {"type": "number"}}

_EXPLAINED = {
    "model": "default",
    "seq": 1042,
    "score": 0.853,
    "p": 0.701,
    "bias": 0.043,
    "features": [{"name": "age", "value": 31.0, "seen": 31.0, "weight": 0.025, "contribution": 0.775}],
    "unknown": ["country=FR"],
    "method": "A feature contributes its weight times its value. ...",
}
EXPLAIN: dict[str, Any] = {
    "summary": "Explain a prediction: what each feature adds to its score",
    "description": "With an `x`, the current model explains it. With an `id`, the reply explains the prediction that "
    "waits under it, by the model as it was then (`auto`: as it is now). Bias and contributions add up to the score. "
    "`seen` is the value that the model uses, after scaling. `unknown` lists features that the model has not learned; "
    "they add nothing. A waiting prediction is shown only to the token that asked for it and to tokens that may learn.",
    "responses": {
        200: _ok("The explanation", _EXPLAINED),
        **_problems(400, 404, 413, 415, 422, 500, 503),
    },
    "openapi_extra": {
        "requestBody": {
            "required": True,
            "content": {
                "application/json": {
                    "schema": {"$ref": "#/components/schemas/Explain"},
                    "examples": {"x": {"value": _QUESTION}, "id": {"value": {"id": "imp-7"}}},
                }
            },
        }
    },
}
LIVEZ: dict[str, Any] = {
    "summary": "Whether the process is alive",
    "responses": {200: _ok("Alive", {"status": "alive"})},
}
READYZ: dict[str, Any] = {
    "summary": "Whether the service accepts requests: not while it recovers or stops",
    "responses": {200: _ok("Ready", {"status": "ready"}), **_problems(503)},
}
METRICS: dict[str, Any] = {
    "summary": "Metrics in the format of Prometheus",
    "responses": {
        200: {
            "description": "The metrics",
            "content": {
                "text/plain; version=0.0.4; charset=utf-8": {
                    "schema": {"type": "string"},
                    "example": "# TYPE logstep_learned_total counter\nlogstep_learned_total 45312.0\n",
                }
            },
        }
    },
}
_LINE = {
    **{name: _MODEL[name] for name in ("model", "seq")},
    "rule": "sgd",
    **{name: _SCORES[name] for name in ("log_loss", "base_rate_log_loss")},
    "worse_than_guessing": None,
}
_LINES_SCHEMA = _schema_of({"models": [_LINE]})
_LINES_SCHEMA["properties"]["models"]["items"]["properties"]["worse_than_guessing"] = _WORSE
LIST_MODELS: dict[str, Any] = {
    "summary": "List every model",
    "responses": {
        200: _ok("Models", {"models": [_LINE]}, _LINES_SCHEMA),
        **_problems(503),
    },
}
GET_MODEL: dict[str, Any] = {
    "summary": "Show a model: spec, seq, number of features, progressive scores, SHA-256 of its state",
    "responses": {
        200: {**_ok("The model", _MODEL, _MODEL_SCHEMA), "links": _links("get_weights", "delete_model")},
        **_problems(404, 503),
    },
}
PUT_MODEL: dict[str, Any] = {
    "summary": "Create a model from a spec. Fields left out get their defaults",
    "responses": {
        200: {**_ok("The model exists already, with this spec", _MADE, _MADE_SCHEMA), "links": _links("learn_model")},
        201: {
            **_ok("Created", {**_MADE, "seq": 0, "created": True}, _MADE_SCHEMA),
            "links": _links("learn_model", "get_model"),
        },
        **_problems(400, 409, 413, 415, 422, 503, 507),
    },
    "openapi_extra": {
        "requestBody": {
            "required": True,
            "content": {
                "application/json": {
                    "schema": {"$ref": "#/components/schemas/Spec"},
                    "example": {"learning_rate": 0.05, "l2": 0.0001},
                }
            },
        }
    },
}
DELETE_MODEL: dict[str, Any] = {
    "summary": "Remove a model with its log, ids and snapshots. `default` reappears empty",
    "responses": {204: {"description": "Removed"}, **_problems(404, 503, 507)},
}
RESUME: dict[str, Any] = {
    "summary": "Let a model learn again after its breaker stopped it. One that learns is unchanged",
    "responses": {200: _ok("The model learns", _RESUMED), **_problems(404, 409, 503, 507)},
}
GET_WEIGHTS: dict[str, Any] = {
    "summary": "Show the weights by feature name, and the bias",
    "responses": {200: _ok("The weights", _WEIGHTS_EXAMPLE, _WEIGHTS_SCHEMA), **_problems(404, 409, 422, 503)},
}
_POINTS = {
    "t": [1767225605],
    "seq": [45312],
    "features": [6],
    "learned": [5201.4],
    "predicted": [310.2],
    **{
        name: [0.3321]
        for name in ("loss", "loss_total", "loss_window", "accuracy_window", "base_rate_loss_window", "served_loss")
    },
    "waiting": [812.0],
    "delay_s": [31.2],
    "commit_p50_ms": [0.4],
    "commit_p99_ms": [1.9],
}
_SERIES_EXAMPLE = {"model": "default", "from": 1767225600, "to": 1767225605, "step": 5, **_POINTS}
SERIES: dict[str, Any] = {
    "summary": "History for plots: an array for each quantity, for the last hour or from `from` to `to`",
    "responses": {
        200: _ok(
            "Arrays of equal length. null means that the service did not run or nothing happened",
            {**_SERIES_EXAMPLE, "marks": [{"t": 1767225600, "kind": "snapshot", "seq": 40000}]},
        ),
        **_problems(404, 422, 503),
    },
}
_STREAMED = "Server-sent events (`curl -N`, `EventSource`): an `event: now` with one object as data whenever it changes"


def _events(example: Any) -> dict[str, Any]:
    text = f"retry: 2000\n\nevent: now\ndata: {msgspec.json.encode(example).decode()}\n\n"
    content = {"schema": {"type": "string"}, "example": text}
    return {"description": _STREAMED, "content": {"text/event-stream": content}}


_RATES = {"learned_s": 5201.5, "predicted_s": 310.0}
_ROW = {
    "loss": 0.3321,
    "base_rate_loss": 0.6812,
    "loss_window": 0.31,
    "base_rate_loss_window": 0.6795,
    "accuracy": 0.861,
    "accuracy_window": 0.87,
    "worse_than_guessing": None,
    "state": "ready",
}
STREAM: dict[str, Any] = {
    "summary": "Watch all models learn: server-sent events, once a second",
    "responses": {
        200: _events(
            {
                "t": 1767225600.0,
                "state": "ready",
                "models": [
                    {"model": "default", "rule": "sgd", "seq": 45312, **_RATES, **_ROW, "spark": [0.35, 0.33, 0.31]}
                ],
            }
        ),
        **_problems(503),
    },
}
STREAM_MODEL: dict[str, Any] = {
    "summary": "Watch a model learn: server-sent events, a few times a second",
    "responses": {
        200: _events({"t": 1767225600.0, "model": "default", "state": "ready", "rule": "sgd", "seq": 45312, **_RATES}),
        **_problems(404, 503),
    },
}
CROSSCHECK: dict[str, Any] = {
    "summary": "Replay the model's log through river, in another process, and compare every weight",
    "responses": {
        200: _ok(
            "The largest difference",
            {
                "model": "default",
                "seq": 45312,
                "events": 45312,
                "from_seq": 0,
                "not_taken": 0,
                "features": 6,
                "max_abs_diff": 0.0,
                "max_ulp": 0,
                "feature": None,
                "bias_ulp": 0,
                "equal": True,
                "river": "0.26.1",
                "replay_equal": True,
                "sha256": _MODEL["sha256"],
            },
        ),
        **_problems(404, 409, 429, 500, 503),
    },
}


class _Example(NamedTuple):
    """A body that a hot path accepts, its type, and the reply."""

    name: str
    kind: type
    body: Any
    reply: Any


def _hot(verb: str, summary: str, description: str, given: list[_Example], lines: Any) -> dict[str, Any]:
    """The operation of a hot path. `lines` is the reply to a stream."""
    examples = {example.name: {"value": example.body} for example in given}
    replies = {example.name: {"value": example.reply} for example in given}
    ndjson = "".join(msgspec.json.encode(example.body).decode() + "\n" for example in given)
    schemas = [{"$ref": f"#/components/schemas/{name}"} for name in sorted({one.kind.__name__ for one in given})]
    reply_schemas = [_schema_of(example.reply) for example in given]
    if verb == "predict":
        for schema in reply_schemas:
            schema["properties"]["unknown"] = {"type": "integer", "minimum": 1}
    reply: dict[str, Any] = {
        "application/json": {
            "schema": {"anyOf": [*reply_schemas, {"type": "array", "items": {"anyOf": reply_schemas}}]},
            "examples": {**replies, "array": {"value": [one["value"] for one in replies.values()]}},
        }
    }
    if isinstance(lines, str):
        reply[NDJSON] = {"schema": {"type": "string"}, "example": lines}
    else:
        reply["application/json"]["schema"]["anyOf"].append(_schema_of(lines))
        reply["application/json"]["examples"]["stream"] = {"value": lines}
    return {
        "tags": [verb],
        "summary": summary,
        "description": description,
        "requestBody": {
            "required": True,
            "content": {
                "application/json": {
                    "schema": {"anyOf": [*schemas, {"type": "array", "items": {"anyOf": schemas}}]},
                    "examples": {**examples, "array": {"value": [one["value"] for one in examples.values()]}},
                },
                NDJSON: {"schema": {"type": "string"}, "example": ndjson},
                ARROW: {"schema": {"type": "string", "contentMediaType": ARROW}},
            },
        },
        "responses": {
            "200": {"description": "Learned, and on the disk" if verb == "learn" else "Predicted", "content": reply},
            **{str(k): v for k, v in _problems(400, 404, 405, 409, 413, 415, 422, 500, 503, 507).items()},
        },
    }


def extend(api: FastAPI) -> None:
    """Add the hot paths and the schemas that routes refer to, and serve the document at /openapi.json."""
    original = api.openapi

    def document() -> dict[str, Any]:
        if api.openapi_schema is None:
            whole = original()
            spec = TypeAdapter(Spec).json_schema(ref_template="#/components/schemas/{model}")
            schemas = {**_BODIES, **spec.pop("$defs", {})}
            whole.setdefault("components", {}).setdefault("schemas", {}).update(
                {**schemas, "Spec": spec, "Problem": _PROBLEM}
            )
            whole["components"]["schemas"].pop("HTTPValidationError", None)
            whole["components"]["schemas"].pop("ValidationError", None)
            for route in api.routes:
                if isinstance(route, APIRoute) and route.include_in_schema:
                    _say_verbatim(whole, route)
            whole["paths"].update(_hot_paths())
            _say_who_may(whole)
            api.openapi_schema = whole
        return api.openapi_schema

    async def reply(_: Request) -> Response:
        made = await worked(api.openapi_schema is None, document)  # the first time takes long
        return Response(encode(made), media_type="application/json")

    api.openapi = document  # type: ignore[method-assign]  # FastAPI's documented way to extend the document
    api.add_route("/openapi.json", reply, include_in_schema=False)


def _say_who_may(document: dict[str, Any]) -> None:
    """Add to each operation the token that it needs, and the errors of service/http/access.py."""
    document["components"]["securitySchemes"] = {"token": {"type": "http", "scheme": "bearer"}}
    for path, item in document["paths"].items():
        for method, operation in item.items():
            asked = access.parse(path)
            wants = access.wanted(method.upper(), asked)
            statuses = [400]
            if wants not in (access.PROBE, access.OPEN):
                operation["security"] = [{"token": []}]
                statuses += [401, 403, 421, 429]
                statuses += [404] if asked.model != access.NO_MODEL else []
            for status, told in _problems(*statuses).items():
                operation["responses"].setdefault(str(status), told)


def _say_verbatim(document: dict[str, Any], route: APIRoute) -> None:
    """Use a route's replies and parameters as they are written above. FastAPI would leave out nulls, add a 422 that
    never happens, and miss the limits of parameters that are checked later."""
    for method in route.methods or ():
        operation = document["paths"][route.path][method.lower()]
        operation["responses"] = {str(status): response for status, response in route.responses.items()}
        for parameter in operation.get("parameters", []):
            parameter["schema"] = _PARAMETERS.get(parameter["name"], parameter["schema"])


def _hot_paths() -> dict[str, Any]:
    learn = _hot(
        "learn",
        "Learn: one gradient step for each event, on the disk before the reply",
        "`p` and `loss` belong to the prediction made before the step. An event with an `id` is learned once, however "
        "often you send it. An array is learned whole or not at all. A stream (NDJSON or Arrow) stops at the first "
        "wrong line or row; the events before it stay learned. If a JSON object has a name twice, the last one counts. "
        "A label without `x` belongs to the prediction made with its `id`: `served_p` and `served_loss` are that "
        "prediction's, and `delay_s` is how long the label took.",
        [
            _Example("event", Event, _EVENT, _LEARNED),
            _Example("label", Label, _LABEL, _LEARNED_LATE),
        ],
        _LEARNED_MANY,
    )
    predict = _hot(
        "predict",
        "Predict from the current model",
        "`p` is the probability of label 1, `y` whether it is above 0.5. Features that the model has not learned add "
        "nothing; `unknown`, if present, says how many there were. With an `id`, the service stores the prediction and "
        "its features until the label comes; you then send /learn only the id and the label.",
        [
            _Example("prediction", Question, _QUESTION, _PREDICTED),
            _Example("kept", Question, {**_QUESTION, "id": _LABEL["id"]}, _KEPT),
        ],
        "".join(msgspec.json.encode(reply).decode() + "\n" for reply in (_PREDICTED, _KEPT)),
    )
    name = {"name": "model", "in": "path", "required": True, "schema": _PARAMETERS["model"], "example": "default"}
    return {
        "/learn": {"post": {**learn, "operationId": "learn"}},
        "/predict": {"post": {**predict, "operationId": "predict"}},
        "/models/{model}/learn": {
            "post": {**_linked(learn, "predict_model", "get_model"), "operationId": "learn_model", "parameters": [name]}
        },
        "/models/{model}/predict": {
            "post": {**_linked(predict, "get_model"), "operationId": "predict_model", "parameters": [name]}
        },
    }


def _linked(operation: dict[str, Any], *operations: str) -> dict[str, Any]:
    good = {**operation["responses"]["200"], "links": _links(*operations)}
    return {**operation, "responses": {**operation["responses"], "200": good}}
