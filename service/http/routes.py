"""The routes that FastAPI serves, and its replies to errors."""

from __future__ import annotations

import asyncio
import re
from collections.abc import Callable, Iterable
from contextlib import ExitStack
from typing import Annotated, Any

import msgspec
from fastapi import FastAPI, Path, Query, Request, Response
from fastapi.routing import APIRoute
from pydantic import TypeAdapter, ValidationError
from starlette.exceptions import HTTPException

from core import logistic
from core.explain import Explanation, explaining
from core.features import EventError, X
from core.spec import Spec, SpecError
from core.weights import PIECE
from service import errors
from service.decode import event_json
from service.fairness import WIDE, worked
from service.http import access, openapi
from service.http.asgi import Scope
from service.http.bodies import Bodies, check_readable, media_type_of
from service.http.hot import Hot
from service.http.large import Pieces, pieces_of
from service.http.reply import JSON, Reply, problem
from service.learning import telemetry
from service.learning.crosscheck import CrossChecks
from service.learning.engine import Engine
from service.learning.model import Model
from service.replies import encode
from service.settings import Settings
from service.storage.ids import WAITING
from service.watching.live import EventStream, Live
from service.watching.past import Past

MODEL_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]{0,63}")
_spec = TypeAdapter(Spec)

ModelName = Annotated[str, Path(alias="model", description="Name of the model.", examples=["default"])]


def add_error_replies(api: FastAPI, told: Callable[[BaseException, str, Scope], Reply]) -> None:
    """Reply to every error with a problem document, and count it."""

    def refusal(request: Request, error: Exception) -> Response:
        scope: Any = request.scope
        return as_response(told(error, scope["request_id"], scope))

    @api.exception_handler(errors.LogstepError)
    async def refused(request: Request, error: errors.LogstepError) -> Response:
        return refusal(request, error)

    @api.exception_handler(HTTPException)
    async def not_routed(request: Request, error: HTTPException) -> Response:
        path = request.url.path[:100]
        if error.status_code == 405:
            routes = [route for route in api.routes if isinstance(route, APIRoute)]
            methods = {m for r in routes if r.path_regex.match(request.url.path) for m in r.methods or ()}
            allow = ", ".join(sorted(methods | ({"HEAD"} if "GET" in methods else set())))
            return refusal(request, errors.MethodNotAllowed(path=path, method=request.method, allow=allow))
        return refusal(request, errors.NotFound(path=path))

    @api.exception_handler(Exception)
    async def mistake(request: Request, error: Exception) -> Response:
        return refusal(request, error)


def add_service_routes(api: FastAPI, engine: Engine) -> None:
    """Whether the service is alive and ready, and its metrics."""

    @api.get("/metrics", tags=["service"], **openapi.METRICS)
    async def metrics(request: Request) -> Response:
        # In a thread, because a thousand models take tens of milliseconds.
        reach = access.reach(request.scope)
        found = await asyncio.to_thread(engine.telemetry.exposition, reach)
        return Response(found, media_type=telemetry.CONTENT_TYPE)

    @api.get("/livez", tags=["service"], **openapi.LIVEZ)
    async def livez() -> Response:
        return reply({"status": "alive"})

    @api.get("/readyz", tags=["service"], **openapi.READYZ)
    async def readyz(request: Request) -> Response:
        if not engine.state.ready:
            told = problem(errors.NotReady(state=engine.state), request.scope["request_id"])
            return as_response(told)  # a normal answer, so it is not counted as a refusal
        return reply({"status": "ready"})


def add_model_routes(api: FastAPI, engine: Engine, bodies: Bodies, settings: Settings) -> None:
    """List, show, create and delete models."""

    @api.get("/models", tags=["models"], **openapi.LIST_MODELS)
    async def list_models(request: Request) -> Response:
        engine.check_recovered()
        within_reach = [model for model in engine.models if access.reaches(request.scope, model.name)]
        models = []
        for i, model in enumerate(within_reach, 1):
            models.append(model.in_short())
            if i % 100 == 0:
                await asyncio.sleep(0)
        return reply({"models": models})

    @api.get("/models/{model}", tags=["models"], **openapi.GET_MODEL)
    async def get_model(name: ModelName) -> Response:
        return reply(await describe(engine, engine.model(name)))

    @api.put("/models/{model}", tags=["models"], **openapi.PUT_MODEL)
    async def put_model(name: ModelName, request: Request) -> Response:
        if not MODEL_NAME.fullmatch(name):
            raise errors.InvalidModelName(model=name[:100])
        model, new = await engine.create(name, await read_spec(request, bodies, settings.max_line_bytes))
        made = {"model": name, "spec": model.learner.spec.as_dict(), "seq": model.learner.seq, "created": new}
        return reply(made, 201 if new else 200)

    @api.delete("/models/{model}", status_code=204, tags=["models"], **openapi.DELETE_MODEL)
    async def delete_model(name: ModelName) -> Response:
        await engine.delete(name)
        return Response(status_code=204)

    @api.post("/models/{model}/resume", tags=["models"], **openapi.RESUME)
    async def resume_model(name: ModelName) -> Response:
        model = await engine.resume(name)
        return reply({"model": name, "seq": model.learner.seq, "breaker": model.standing()["breaker"]})


def add_inspection_routes(api: FastAPI, engine: Engine, crosschecks: CrossChecks, hot: Hot) -> None:
    """What a model has learned, and whether that is right."""

    @api.get("/models/{model}/weights", tags=["models"], **openapi.GET_WEIGHTS)
    async def get_weights(
        name: ModelName,
        top: Annotated[str | None, Query(description="Return only so many weights, the largest by magnitude.")] = None,
    ) -> Response:
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
            room.enter_context(hot.replies.room(learner.weights.nbytes))
            weights = learner.weights_now()
            places = None if count is None else await worked(many, weights.largest, count)
            state = {"model": name, "seq": weights.seq, "bias": weights.bias}
            after = {"sha256": await worked(many, weights.sha256)}
            pieces = pieces_of(state, "weights", weights.by_name(places), after)
            return Pieces(hot, pieces, room.pop_all()) if many else whole(pieces)

    @api.get("/models/{model}/crosscheck", tags=["models"], **openapi.CROSSCHECK)
    async def crosscheck(name: ModelName, request: Request) -> Response:
        report = await crosschecks.run(name)
        if (pace := access.pace_of(request.scope)) is not None:
            pace.take(report["events"])
        return reply(report)


def add_explanations(api: FastAPI, engine: Engine, bodies: Bodies, settings: Settings, hot: Hot) -> None:
    """Explain predictions."""

    @api.post("/models/{model}/explain", tags=["predict"], **openapi.EXPLAIN)
    async def explain_prediction(name: ModelName, request: Request) -> Response:
        model = engine.model(name)
        body = await read_json(request, bodies, settings.max_body_bytes)
        asked = await worked(len(body) > event_json.WIDE_BYTES, event_json.decode_explain, body)
        if asked.x is not None:
            return await explained(hot, model, asked.x, None, {})
        assert asked.id is not None  # noqa: S101  # decode_explain requires x or id
        found = await engine.find_id(name, asked.id)
        owner = "" if found is None or found.waiting is None else found.waiting.owner
        if found is None or found.kind != WAITING or not access.may_see(request.scope, owner):
            raise errors.NothingWaits(field="id", id=asked.id)
        if found.waiting is None:
            raise errors.PredictionDamaged(field="id", id=asked.id)
        waiting = found.waiting
        served = {"id": asked.id, "served_p": logistic.sigmoid(float(waiting.served[0])), "served_seq": waiting.seq}
        return await explained(hot, model, waiting.x, model.explaining_waiting(waiting), served)


def add_series(api: FastAPI, engine: Engine, past: Past) -> None:
    """The history for plots."""

    @api.get("/models/{model}/series", tags=["models"], **openapi.SERIES)
    async def series(
        name: ModelName,
        from_: Annotated[
            str | None, Query(alias="from", description="Start, in seconds since 1970. Default: an hour before `to`.")
        ] = None,
        to: Annotated[str | None, Query(description="End, in seconds since 1970. Default: now.")] = None,
        step: Annotated[str | None, Query(description="Seconds between points. Default: at most 720 points.")] = None,
    ) -> Response:
        found = await past.series(engine.model(name), from_, to, step)
        return Response(found, media_type="application/json")


def add_streams(api: FastAPI, live: Live, door: access.Access) -> None:
    """Live values: server-sent events."""

    @api.get("/stream", tags=["models"], **openapi.STREAM)
    async def stream(request: Request) -> Response:
        return EventStream(live, access.reach(request.scope), door.check_again)

    @api.get("/models/{model}/stream", tags=["models"], **openapi.STREAM_MODEL)
    async def stream_model(name: ModelName) -> Response:
        return EventStream(live, name, door.check_again)


async def explained(
    hot: Hot, model: Model, x: X, explanation: Callable[[], Explanation] | None, after: dict[str, Any]
) -> Response:
    """The reply with an explanation, then the fields `after`. By default the current model explains x."""
    many = len(x) > WIDE
    try:
        if explanation is None:
            explanation = explaining(model.learner, x, await worked(many, model.learner.encoded, x))
        pieces = await worked(many, _pieces_of_explanation, model.name, explanation, after)
        if not many:
            return whole(pieces)
        with ExitStack() as room:
            room.enter_context(hot.replies.room(sum(map(len, pieces))))
            return Pieces(hot, pieces, room.pop_all())
    except EventError as error:
        raise errors.InvalidEvent(field=error.field, reason=error.message) from None


def _pieces_of_explanation(name: str, explanation: Callable[[], Explanation], after: dict[str, Any]) -> list[bytes]:
    made = explanation()
    before = {"model": name, "seq": made.seq, "score": made.score, "p": made.p, "bias": made.bias}
    after = {"unknown": made.unknown, "method": made.method, **after}
    pieces = (made.features[start : start + PIECE] for start in range(0, max(1, len(made.features)), PIECE))
    return list(pieces_of(before, "features", pieces, after))


def whole(pieces: Iterable[bytes]) -> Response:
    """The reply made of these few pieces."""
    return Response(b"".join(pieces), media_type="application/json")


def reply(content: Any, status: int = 200) -> Response:
    """A JSON reply. Floats are the shortest text that reads back to the same float64."""
    return Response(encode(content), status, media_type="application/json")


def as_response(told: Reply) -> Response:
    """The same reply as FastAPI's Response."""
    return Response(told.body, told.status, {name.decode(): value.decode() for name, value in told.headers})


async def describe(engine: Engine, model: Model) -> dict[str, Any]:
    """The reply of `GET /models/{model}`, all of it from one moment."""
    learner = model.learner
    many = learner.n_features > WIDE
    about = {"model": model.name, "spec": learner.spec.as_dict()}
    if learner.auto is None:
        told, weights = {"seq": learner.seq, **model.standing()}, learner.weights_now()
        return {**about, **told, "sha256": await worked(many, weights.sha256)}
    async with engine.no_steps():  # copying so much would take longer than reading it
        mixture = {"learners": learner.auto.learners(), "alarms": learner.auto.alarms}
        told = {"seq": learner.seq, **model.standing()}
        return {**about, **told, "sha256": await worked(many, learner.sha256), **mixture}


async def read_json(request: Request, bodies: Bodies, limit: int) -> bytes:
    """The JSON body of a request to a rarely used route."""
    scope: Any = request.scope
    check_readable(scope)
    if (media_type := media_type_of(scope)) != JSON:
        raise errors.UnsupportedMediaType(content_type=media_type.decode("latin-1")[:100])
    return await bodies.read(scope, request.receive, limit)  # type: ignore[arg-type]  # dict is starlette's


async def read_spec(request: Request, bodies: Bodies, limit: int) -> Spec:
    """The spec in a request's body. An error names the wrong field."""
    body = await read_json(request, bodies, limit)
    return await worked(len(body) > event_json.WIDE_BYTES, _spec_of, body)


def _spec_of(body: bytes) -> Spec:
    try:
        values = msgspec.json.decode(body)
    except msgspec.ValidationError:
        field = event_json.out_of_range(body)
        raise errors.InvalidSpec(field=field, reason="is a number that a 64-bit float cannot hold") from None
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise event_json.malformed(error, "", body, "field") from None
    try:
        return _spec.validate_json(body, strict=True)
    except ValidationError as error:
        raise _what_is_wrong(values, error) from None


def _what_is_wrong(values: Any, error: ValidationError) -> errors.InvalidSpec:
    """What pydantic found, in the spec's own words if it has some."""
    try:
        Spec.from_dict(values)
    except SpecError as own:
        return errors.InvalidSpec(field=own.field[:100], reason=own.message)
    except (TypeError, ValueError):
        return errors.InvalidSpec(field="body", reason='must be an object like {"learning_rate": 0.05}')
    first = error.errors(include_url=False)[0]
    return errors.InvalidSpec(field=".".join(map(str, first["loc"]))[:100] or "body", reason=first["msg"])
