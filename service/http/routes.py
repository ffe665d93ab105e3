"""Every route, as FastAPI declares it, and what answers those that are rarely used.

The OpenAPI document comes from these declarations: the docstring is the text, the rest is of openapi.py.
"""

from __future__ import annotations

import asyncio
import inspect
from collections.abc import Callable, Iterable
from contextlib import ExitStack, nullcontext
from typing import Annotated, Any

import msgspec
from fastapi import FastAPI, Path, Query, Request, Response
from fastapi.responses import StreamingResponse
from fastapi.routing import APIRoute
from pydantic import WithJsonSchema
from starlette.exceptions import HTTPException
from starlette.routing import Match
from starlette.types import ASGIApp, Receive, Scope, Send

from core import logistic
from core.explain import Explanation, explaining
from core.features import EventError, X
from core.spec import Spec, SpecError
from core.weights import PIECE
from service import errors
from service.decode import event_json
from service.events import DEFAULT, JSON, MODEL_NAME, Explain
from service.fairness import WIDE, worked
from service.http import access, openapi
from service.http.bodies import Bodies
from service.http.long_reply import LongReplies, Pieces, pieces_of
from service.http.one import invalid
from service.http.openapi import ok, problems
from service.http.reply import Reply, problem
from service.learning import telemetry
from service.learning.crosscheck import CrossChecks
from service.learning.engine import Engine
from service.learning.model import Model, explaining_waiting
from service.replies import encode
from service.settings import Settings
from service.storage.ids import IdKind
from service.watching.live import EventStream, Live
from service.watching.past import Past

ModelName = Annotated[
    str,
    Path(alias="model", description="Name of the model."),
    WithJsonSchema({"type": "string", "pattern": f"^{MODEL_NAME.pattern}$", "examples": [DEFAULT]}),
]
# The parameters of queries are text: the service's own errors say more than FastAPI's.
_COUNT = WithJsonSchema({"type": "integer", "minimum": 1, "maximum": 999_999_999})
_SECONDS = WithJsonSchema({"type": "number", "minimum": 0})
_STEP = WithJsonSchema({"type": "number", "exclusiveMinimum": 0})
_HOUR = "Start, in seconds since 1970. Default: an hour before `to`."
Top = Annotated[str | None, Query(description="Return only so many weights, the largest by magnitude."), _COUNT]
From = Annotated[str | None, Query(alias="from", description=_HOUR), _SECONDS]
To = Annotated[str | None, Query(description="End, in seconds since 1970. Default: now."), _SECONDS]
Step = Annotated[str | None, Query(description="Seconds between points. Default: at most 720 points."), _STEP]


class Api(FastAPI):
    """FastAPI, with a document that FastAPI alone would not make."""

    def openapi(self) -> dict[str, Any]:
        if self.openapi_schema is None:
            self.openapi_schema = openapi.completed(super().openapi(), self.routes)
        return self.openapi_schema


class Route(APIRoute):
    """A route that tells of itself by its docstring, and of the door's errors. It accepts HEAD if it accepts GET, as
    starlette's own do; the OpenAPI document lists only GET."""

    def __init__(self, path: str, endpoint: Callable[..., Any], **declared: Any) -> None:
        if declared["include_in_schema"]:
            (method,) = declared["methods"]
            door = openapi.at_the_door(method, path)
            declared |= {name: {**told, **(declared[name] or {})} for name, told in door.items()}
            declared["tags"] = declared["tags"] or ["models"]
        super().__init__(path, endpoint, **declared)
        self.summary, _, description = inspect.cleandoc(endpoint.__doc__ or "").partition("\n\n")
        self.description = description.replace("\n", " ")

    def matches(self, scope: Scope) -> tuple[Match, Scope]:
        return super().matches({**scope, "method": "GET"} if self._takes_head(scope) else scope)

    async def handle(self, scope: Scope, receive: Receive, send: Send) -> None:
        await (self.app if self._takes_head(scope) else super().handle)(scope, receive, send)

    def _takes_head(self, scope: Scope) -> bool:
        return bool(scope["type"] == "http" and scope["method"] == "HEAD" and "GET" in (self.methods or ()))


def add_error_replies(api: FastAPI, told: Callable[[BaseException, Scope, str], Reply]) -> None:
    """Reply to every error with a problem document, and count it."""

    async def refuse(request: Request, error: Exception) -> Response:
        if isinstance(error, HTTPException):
            error = not_routed(error.status_code, request)
        return as_response(told(error, request.scope, request.scope["request_id"]))

    def not_routed(status: int, request: Request) -> errors.LogstepError:
        path = request.url.path
        if status != 405:
            return errors.NotFound(path=path[:100])
        routes = [route for route in api.routes if isinstance(route, APIRoute) and route.path_regex.match(path)]
        methods = {method for route in routes for method in route.methods or ()}
        allow = ", ".join(sorted(methods | ({"HEAD"} if "GET" in methods else set())))
        return errors.MethodNotAllowed(path=path[:100], method=request.method, allow=allow)

    for kind in (errors.LogstepError, HTTPException, Exception):
        api.add_exception_handler(kind, refuse)


def add_hot_routes(api: FastAPI, answer: ASGIApp) -> None:
    """Learn and predict. FastAPI declares these routes; plain ASGI answers them."""

    async def learn() -> None:
        """Learn: one gradient step for each event, on the disk before the reply

        `p` and `loss` belong to the prediction made before the step. An event with an `id` is learned once, however
        often you send it. An event of weight 0 is checked and not learned. An array is learned whole or not at all. A
        stream (NDJSON, CSV, Arrow, Parquet) stops at the first wrong line or row; the events before it stay learned.
        If a JSON object has a name twice, the last one counts.
        A label without `x` belongs to the prediction made with its `id`: `served_p` and `served_loss` are that
        prediction's, and `delay_s` is how long the label took."""

    async def predict() -> None:
        """Predict from the current model

        `p` is the probability of label 1, `y` whether it is above 0.5. Features that the model has not learned add
        nothing (`auto` takes them for new, as learning would); `unknown`, if present, says how many there were. With an
        `id`, the service stores the prediction and its features until the label comes; you then send /learn only the id
        and the label."""

    async def learn_model(name: ModelName) -> None: ...

    async def predict_model(name: ModelName) -> None: ...

    learn_model.__doc__, predict_model.__doc__ = learn.__doc__, predict.__doc__
    for path, endpoint, declared in (
        ("/learn", learn, openapi.learns()),
        ("/predict", predict, openapi.predicts()),
        ("/models/{model}/learn", learn_model, openapi.learns("predict_model", "get_model")),
        ("/models/{model}/predict", predict_model, openapi.predicts("get_model")),
    ):
        api.add_api_route(path, endpoint, methods=["POST"], tags=[access.parse(path).verb], **declared)
        route = api.routes[-1]
        assert isinstance(route, APIRoute)  # noqa: S101
        route.app = answer


def add_service_routes(api: FastAPI, engine: Engine) -> None:
    """Whether the service is alive and ready, its metrics, and the OpenAPI document."""

    counter = "# TYPE logstep_learned_total counter\nlogstep_learned_total 45312.0\n"

    @api.get("/metrics", tags=["service"], responses=openapi.text("The metrics", telemetry.CONTENT_TYPE, counter))
    async def metrics(request: Request) -> Response:
        """Metrics in the format of Prometheus"""
        # In a thread, because a thousand models take tens of milliseconds.
        reach = access.grant_of(request.scope).models
        found = await asyncio.to_thread(engine.telemetry.exposition, reach)
        return Response(found, media_type=telemetry.CONTENT_TYPE)

    @api.get("/livez", tags=["service"], responses=ok("Alive", "Alive"))
    async def livez() -> Response:
        """Whether the process is alive, and which version of logstep it is"""
        return reply({"status": "alive", "version": api.version})

    @api.get("/readyz", tags=["service"], responses=ok("Ready", "Ready", 503))
    async def readyz(request: Request) -> Response:
        """Whether the service accepts requests: not while it recovers or stops"""
        if why := engine.unready:
            told = problem(errors.NotReady(state=why), request.scope["request_id"])
            return as_response(told)  # a normal answer, so it is not counted as a refusal
        return reply({"status": "ready"})

    @api.get("/openapi.json", include_in_schema=False)
    async def document() -> Response:
        return reply(await worked(api.openapi_schema is None, api.openapi))  # the first time takes long


def add_model_routes(api: FastAPI, engine: Engine, bodies: Bodies, settings: Settings) -> None:
    """List, show, create and delete models."""
    one_copy = asyncio.Lock()
    """Held while a large state of `auto` is copied and hashed, so that only one copy takes memory."""

    @api.get("/models", responses=ok("Models", "Models", 503))
    async def list_models(request: Request) -> Response:
        """List every model"""
        engine.models.check_loaded()
        grant = access.grant_of(request.scope)
        within_reach = [model for model in engine.models if grant.reaches(model.name)]
        models = []
        for i, model in enumerate(within_reach, 1):
            models.append(model.in_short())
            if i % 100 == 0:
                await asyncio.sleep(0)
        return reply({"models": models})

    @api.get(
        "/models/{model}",
        responses=ok("Shown", "The model", 422, 503, links=("get_weights", "delete_model")),
        openapi_extra={"parameters": openapi.FRESH},
    )
    async def get_model(name: ModelName) -> Response:
        """Show a model: spec, seq, number of features, progressive scores, SHA-256 of its state"""
        model = engine.model(name)
        learner = model.learner
        many = learner.n_features > WIDE
        about = {"model": name, "spec": learner.spec.as_dict()}
        mixture: dict[str, Any] = {}
        async with one_copy if learner.auto is not None and learner.is_large else nullcontext():
            async with engine.copying(learner) as long:  # all of it is from one moment
                told, sha256 = {"seq": learner.seq, **model.standing()}, await worked(long, learner.sha256_now)
                if learner.auto is not None:
                    mixture = {"learners": learner.auto.learners(), "alarms": learner.auto.alarms}
            return reply({**about, **told, "sha256": await worked(many or long, sha256), **mixture})

    made = ok("Made", "The model exists already, with this spec", links=["learn_model"])
    created = ok("Made", "Created", code=201, seq=0, created=True, links=["learn_model", "get_model"])

    @api.put(
        "/models/{model}",
        responses={**made, **created, **problems(409, 413, 415, 422, 503, 507)},
        openapi_extra=openapi.takes(Spec, example={"learning_rate": 0.05, "l2": 0.0001}),
    )
    async def put_model(name: ModelName, request: Request) -> Response:
        """Create a model from a spec. Fields left out get their defaults"""
        if not MODEL_NAME.fullmatch(name):
            raise errors.InvalidModelName(model=name[:100])
        body = await bodies.read_json(request.scope, request.receive, settings.max_line_bytes)
        spec = await worked(len(body) > event_json.WIDE_BYTES, spec_of, body)
        model, new = await engine.create(name, spec)
        made = {"model": name, "spec": model.learner.spec.as_dict(), "seq": model.learner.seq, "created": new}
        return reply(made, 201 if new else 200)

    removed = {204: {"description": "Removed"}, **problems(503, 507)}

    @api.delete("/models/{model}", status_code=204, responses=removed)
    async def delete_model(name: ModelName) -> Response:
        """Remove a model with its log, ids and snapshots. `default` reappears empty"""
        await engine.delete(name)
        return Response(status_code=204)

    @api.post("/models/{model}/resume", responses=ok("Resumed", "The model learns", 409, 503, 507))
    async def resume_model(name: ModelName) -> Response:
        """Let a model learn again after its breaker stopped it. One that learns is unchanged"""
        model = await engine.resume(name)
        return reply({"model": name, "seq": model.learner.seq, "breaker": model.standing()["breaker"]})


def add_inspection_routes(
    api: FastAPI, engine: Engine, crosschecks: CrossChecks, past: Past, replies: LongReplies, door: access.Access
) -> None:
    """What a model has learned, whether that is right, and how it went."""

    @api.get("/models/{model}/weights", responses=ok("Weights", "The weights", 409, 422, 503))
    async def get_weights(name: ModelName, top: Top = None) -> Response:
        """Show the weights by feature name, and the bias"""
        count = None
        if top is not None:
            if not (top.isascii() and top.isdecimal()) or not 1 <= len(top) <= 9 or int(top) < 1:
                raise errors.InvalidParameter(field="top", reason="must be a whole number above 0")
            count = int(top)
        learner = engine.model(name).learner
        if learner.auto is not None:
            raise errors.NoWeights(model=name)
        many = learner.n_features > WIDE
        with ExitStack() as room:
            async with engine.copying(learner) as long:
                room.enter_context(replies.room(learner.weights.nbytes))
                weights = await worked(long, learner.weights_now)
            places = None if count is None else await worked(many, weights.largest, count)
            state = {"model": name, "seq": weights.seq, "bias": weights.bias}
            after = {"sha256": await worked(many, weights.sha256)}
            pieces = pieces_of(state, "weights", weights.by_name(places), after)
            return Pieces(door, pieces, room.pop_all()) if many else whole(pieces)

    checked = ok("CrossCheck", "The largest difference", 409, 429, 500, 503)

    @api.get("/models/{model}/crosscheck", responses=checked)
    async def crosscheck(name: ModelName, request: Request) -> Response:
        """Replay the model's log through river, in another process, and compare every weight

        HEAD only says whether the model exists; it runs no cross-check."""
        if request.method == "HEAD":
            engine.model(name)
            return StreamingResponse((), media_type=JSON)  # of unknown length
        report = await crosschecks.run(name)
        if (pace := access.grant_of(request.scope).pace) is not None:
            pace.take(report["events"])
        return reply(report)

    told = "The points, evenly spaced; null where no step was taken"

    @api.get("/models/{model}/curve", responses=ok("Curve", told, 503))
    async def curve(name: ModelName) -> Response:
        """The learning curve by events: log loss, guessing and accuracy, along the whole life of a model

        At most 512 points. With more events they are twice as far apart, and half as many. They are a function of the
        log: a replay gives the same."""
        return reply(engine.model(name).drawn())

    told = "Arrays of equal length. null means that the service did not run or nothing happened"

    @api.get("/models/{model}/series", responses=ok("Series", told, 422, 503))
    async def series(name: ModelName, from_: From = None, to: To = None, step: Step = None) -> Response:
        """History for plots: an array for each quantity, for the last hour or from `from` to `to`"""
        found = await past.series(engine.model(name), from_, to, step)
        return Response(found, media_type=JSON)


def add_explanations(
    api: FastAPI, engine: Engine, bodies: Bodies, settings: Settings, replies: LongReplies, door: access.Access
) -> None:

    examples = {"x": {"value": openapi.QUESTION}, "id": {"value": openapi.WAITING}}

    @api.post(
        "/models/{model}/explain",
        tags=["predict"],
        responses=ok("Explained", "The explanation", 413, 415, 422, 500, 503),
        openapi_extra=openapi.takes(Explain, examples=examples),
    )
    async def explain_prediction(name: ModelName, request: Request) -> Response:
        """Explain a prediction: what each feature adds to its score

        With an `x`, the current model explains it. With an `id`, the reply explains the prediction that waits under it,
        by the model as it was then (`auto`: as it is now). Bias and contributions add up to the score. `seen` is the
        value that the model uses, after scaling. `unknown` lists features that the model has not learned; they add
        nothing (with `auto` they count as new). A waiting prediction is shown only to the token that asked for it and
        to tokens that may learn."""
        model = engine.model(name)
        body = await bodies.read_json(request.scope, request.receive, settings.max_body_bytes)
        asked = await worked(len(body) > event_json.WIDE_BYTES, event_json.decode_explain, body)
        if asked.x is not None:
            return await explained(replies, door, model, asked.x, None, {})
        assert asked.id is not None  # noqa: S101  # decode_explain requires x or id
        found = await engine.find_id(name, asked.id)
        owner = "" if found is None or found.waiting is None else found.waiting.owner
        if found is None or found.kind != IdKind.WAITING or not access.grant_of(request.scope).may_see(owner):
            raise errors.NothingWaits(field="id", id=asked.id)
        if found.waiting is None:
            raise errors.PredictionDamaged(field="id", id=asked.id)
        waiting = found.waiting
        served = {"id": asked.id, "served_p": logistic.sigmoid(float(waiting.served[0])), "served_seq": waiting.seq}
        return await explained(replies, door, model, waiting.x, explaining_waiting(model, waiting), served)


def add_streams(api: FastAPI, live: Live, door: access.Access) -> None:

    now = {"t": 1767225600.0, "state": "ready"}
    model = {"model": "default", "rule": "sgd", "seq": 45312, "learned_s": 5201.5, "predicted_s": 310.0}
    losses = {"loss": 0.3321, "base_rate_loss": 0.6812, "loss_window": 0.31, "base_rate_loss_window": 0.6795}
    more = {"accuracy": 0.861, "accuracy_window": 0.87, "worse_than_guessing": None, "spark": [0.35, 0.33, 0.31]}

    @api.get("/stream", responses=openapi.streamed({**now, "models": [{**model, **losses, **more, "state": "ready"}]}))
    async def stream(request: Request) -> Response:
        """Watch all models learn: server-sent events, once a second"""
        return EventStream(live, access.grant_of(request.scope).models, door.check_again)

    @api.get("/models/{model}/stream", responses=openapi.streamed({**now, **model}))
    async def stream_model(name: ModelName) -> Response:
        """Watch a model learn: server-sent events, a few times a second"""
        return EventStream(live, name, door.check_again)


async def explained(
    replies: LongReplies, door: access.Access, model: Model, x: X, how: Callable[[], Explanation] | None, after: Any
) -> Response:
    """The reply with an explanation, then the fields `after`. By default the current model explains x."""
    many = len(x) > WIDE
    try:
        how = how or explaining(model.learner, x, await worked(many, model.learner.encoded, x))
    except EventError as error:
        raise invalid(error) from None
    pieces = await worked(many, _pieces_of_explanation, model.name, how, after)
    if not many:
        return whole(pieces)
    with ExitStack() as room:
        room.enter_context(replies.room(sum(map(len, pieces))))
        return Pieces(door, pieces, room.pop_all())


def _pieces_of_explanation(name: str, how: Callable[[], Explanation], after: dict[str, Any]) -> list[bytes]:
    made = how()
    before = {"model": name, "seq": made.seq, "score": made.score, "p": made.p, "bias": made.bias}
    after = {"unknown": made.unknown, "method": made.method, **after}
    pieces = (made.features[start : start + PIECE] for start in range(0, max(1, len(made.features)), PIECE))
    return list(pieces_of(before, "features", pieces, after))


def whole(pieces: Iterable[bytes]) -> Response:
    """The reply made of these few pieces."""
    return Response(b"".join(pieces), media_type=JSON)


def reply(content: Any, status: int = 200) -> Response:
    """A JSON reply. Floats are the shortest text that reads back to the same float64."""
    return Response(encode(content), status, media_type=JSON)


def as_response(told: Reply) -> Response:
    """The same reply as FastAPI's Response."""
    return Response(told.body, told.status, {name.decode(): value.decode() for name, value in told.headers})


def spec_of(body: bytes) -> Spec:
    """The spec in a request's body. An error names the wrong field."""
    try:
        values = msgspec.json.decode(body)
    except msgspec.ValidationError:
        field = event_json.out_of_range(body)
        raise errors.InvalidSpec(field=field, reason="is a number that a 64-bit float cannot hold") from None
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise event_json.malformed(error, "", body, "field") from None
    try:
        return Spec.from_dict(values)
    except SpecError as error:
        raise errors.InvalidSpec(field=error.field[:100], reason=error.message) from None
