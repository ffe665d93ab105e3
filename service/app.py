"""The HTTP service: startup and shutdown, routes, and the map from errors to replies."""

from __future__ import annotations

import asyncio
import contextlib
import heapq
import logging
import re
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import asdict
from importlib.metadata import version
from typing import Annotated, Any

import msgspec
from fastapi import FastAPI, Path, Query, Request, Response
from fastapi.routing import APIRoute
from pydantic import TypeAdapter, ValidationError
from starlette.exceptions import HTTPException

from core import logistic
from core.explain import Explanation
from core.features import EventError
from core.spec import Spec, SpecError
from service import errors, openapi, telemetry, wire
from service.crosscheck import CrossChecks
from service.engine import Engine
from service.hot import Hot, Receive, Scope, Send, send_problem
from service.live import EventStream, Live
from service.log import WAITING
from service.model import Model
from service.page import add_page
from service.past import Past
from service.settings import Settings

logger = logging.getLogger("onestep")

MODEL_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]{0,63}")
_spec = TypeAdapter(Spec)


class Service:
    """The ASGI application: the two hot paths in front, everything else FastAPI's."""

    def __init__(self, settings: Settings) -> None:
        self.settings = settings
        self.engine = Engine(settings)
        self.crosschecks = CrossChecks(self.engine, settings.data)
        self.past = Past(settings.data)
        self.live = Live(self.engine, self.past, settings.max_viewers)
        self._hot = Hot(self.engine, settings)
        self.api = FastAPI(
            title="onestep",
            version=version("onestep"),
            summary="Online learning over HTTP: one durable gradient step an event.",
            lifespan=self._lifespan,
            redirect_slashes=False,
            docs_url=None,  # FastAPI's own pages load from another host: page.py has one that does not
            redoc_url=None,
        )
        add_error_replies(self.api, self.engine.telemetry.count_refusal)
        add_service_routes(self.api, self.engine)
        add_model_routes(self.api, self.engine, settings)
        add_inspection_routes(self.api, self.engine, self.crosschecks)
        add_explanations(self.api, self.engine, settings)
        add_series(self.api, self.engine, self.past)
        add_streams(self.api, self.live)
        add_page(self.api)
        openapi.extend(self.api)

    @asynccontextmanager
    async def _lifespan(self, _: FastAPI) -> AsyncIterator[None]:
        self.engine.start()
        yield
        await self.engine.stop(seconds=2.0)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.api(scope, receive, send)  # type: ignore[arg-type]  # dict is starlette's MutableMapping
            return
        try:
            await self._answer(scope, receive, send)
        except errors.OnestepError as error:
            self.engine.telemetry.count_refusal(error)
            await send_problem(send, error)
        except asyncio.CancelledError:  # the service stops, and this took longer than it waits
            stopping = errors.NotReady(state="stopping")
            self.engine.telemetry.count_refusal(stopping)
            with contextlib.suppress(RuntimeError):  # the reply had begun: it stays cut
                await send_problem(send, stopping)

    async def _answer(self, scope: Scope, receive: Receive, send: Send) -> None:
        found = self._hot.match(scope["path"])
        if found is None:
            await self.api(scope, receive, send)  # type: ignore[arg-type]  # the same
            return
        endpoint, model = found
        if scope["method"] != "POST":
            raise errors.MethodNotAllowed(path=scope["path"], method=scope["method"], allow="POST")
        try:
            await endpoint(model, scope, receive, send)
        except errors.OnestepError:
            raise
        except Exception as mistake:
            logger.exception("a mistake in onestep itself")
            raise errors.OnestepError from mistake


ModelName = Annotated[str, Path(alias="model", description="A model's name.", examples=["default"])]


def add_error_replies(api: FastAPI, count: Callable[[errors.OnestepError], None]) -> None:
    """Every error as a problem document, and counted."""

    def refusal(error: errors.OnestepError) -> Response:
        count(error)
        return problem(error)

    @api.exception_handler(errors.OnestepError)
    async def refused(_: Request, error: errors.OnestepError) -> Response:
        return refusal(error)

    @api.exception_handler(HTTPException)
    async def not_routed(request: Request, error: HTTPException) -> Response:
        path = request.url.path[:100]
        if error.status_code == 405:
            routes = [route for route in api.routes if isinstance(route, APIRoute)]
            allow = ", ".join(
                sorted({m for r in routes if r.path_regex.match(request.url.path) for m in r.methods or ()})
            )
            return refusal(errors.MethodNotAllowed(path=path, method=request.method, allow=allow))
        return refusal(errors.NotFound(path=path))

    @api.exception_handler(Exception)
    async def mistake(_: Request, error: Exception) -> Response:
        return refusal(errors.OnestepError())


def add_service_routes(api: FastAPI, engine: Engine) -> None:
    """Is it alive, is it ready, how is it doing."""

    @api.get("/metrics", tags=["service"], **openapi.METRICS)
    async def metrics() -> Response:
        # In a thread: with a thousand models it takes tens of milliseconds, and nobody is to wait for them.
        return Response(await asyncio.to_thread(engine.telemetry.exposition), media_type=telemetry.CONTENT_TYPE)

    @api.get("/livez", tags=["service"], **openapi.LIVEZ)
    async def livez() -> Response:
        return reply({"status": "alive"})

    @api.get("/readyz", tags=["service"], **openapi.READYZ)
    async def readyz() -> Response:
        if engine.state != "ready":
            return problem(errors.NotReady(state=engine.state))  # an answer, and no refusal that would count
        return reply({"status": "ready"})


def add_model_routes(api: FastAPI, engine: Engine, settings: Settings) -> None:
    """List, show, create and delete models."""

    @api.get("/models", tags=["models"], **openapi.LIST_MODELS)
    async def list_models() -> Response:
        if engine.state in ("starting", "recovering"):
            raise errors.NotReady(state=engine.state)
        models = [{"model": m.name, "rule": m.learner.spec.rule, "seq": m.learner.seq} for m in engine.models]
        return reply({"models": models})

    @api.get("/models/{model}", tags=["models"], **openapi.GET_MODEL)
    async def get_model(name: ModelName) -> Response:
        return reply(describe(engine.model(name)))

    @api.put("/models/{model}", tags=["models"], **openapi.PUT_MODEL)
    async def put_model(name: ModelName, request: Request) -> Response:
        if not MODEL_NAME.fullmatch(name):
            raise errors.InvalidModelName(model=name[:100])
        model, new = await engine.create(name, await read_spec(request, settings.max_line_bytes))
        return reply(describe(model), 201 if new else 200)

    @api.delete("/models/{model}", status_code=204, tags=["models"], **openapi.DELETE_MODEL)
    async def delete_model(name: ModelName) -> Response:
        await engine.delete(name)
        return Response(status_code=204)


def add_inspection_routes(api: FastAPI, engine: Engine, crosschecks: CrossChecks) -> None:
    """What a model has learned, and whether it is right."""

    @api.get("/models/{model}/weights", tags=["models"], **openapi.GET_WEIGHTS)
    async def get_weights(
        name: ModelName,
        top: Annotated[str | None, Query(description="Only the k weights of the largest magnitude.")] = None,
    ) -> Response:
        learner = engine.model(name).learner
        if learner.auto is not None:
            raise errors.NoWeights(model=name)
        weights = learner.weights_by_name()
        if top is not None:
            if not (top.isascii() and top.isdecimal()) or not 1 <= len(top) <= 9 or int(top) < 1:
                raise errors.InvalidParameter(field="top", reason="must be a whole number above 0")
            weights = dict(heapq.nlargest(int(top), weights.items(), key=lambda item: abs(item[1])))
        state = {"model": name, "seq": learner.seq, "bias": learner.bias}
        return reply({**state, "weights": weights, "sha256": learner.sha256()})

    @api.get("/models/{model}/crosscheck", tags=["models"], **openapi.CROSSCHECK)
    async def crosscheck(name: ModelName) -> Response:
        return reply(await crosschecks.run(name))


def add_explanations(api: FastAPI, engine: Engine, settings: Settings) -> None:
    """Why a prediction is what it is."""

    @api.post("/models/{model}/explain", tags=["predict"], **openapi.EXPLAIN)
    async def explain_prediction(name: ModelName, request: Request) -> Response:
        model = engine.model(name)
        asked = wire.decode_explain(await read_json(request, settings.max_body_bytes))
        if asked.id is None:
            return reply(_explained(model, model.explain, asked.x))
        found = await engine.find_id(name, asked.id)
        if found is None or found.kind != WAITING:
            raise errors.NothingWaits(field="id", id=asked.id)
        if found.waiting is None:
            raise errors.PredictionDamaged(field="id", id=asked.id)
        waiting = found.waiting
        served = {"id": asked.id, "served_p": logistic.sigmoid(float(waiting.served[0])), "served_seq": waiting.seq}
        return reply({**_explained(model, model.explain_waiting, waiting), **served})


def add_series(api: FastAPI, engine: Engine, past: Past) -> None:
    """What happened, for plots."""

    @api.get("/models/{model}/series", tags=["models"], **openapi.SERIES)
    async def series(
        name: ModelName,
        from_: Annotated[
            str | None, Query(alias="from", description="Seconds since 1970; an hour before `to`.")
        ] = None,
        to: Annotated[str | None, Query(description="Seconds since 1970; now.")] = None,
        step: Annotated[
            str | None, Query(description="Seconds between points; so that there are 720 or fewer.")
        ] = None,
    ) -> Response:
        found = await past.series(engine.model(name), from_, to, step)
        return Response(found, media_type="application/json")


def add_streams(api: FastAPI, live: Live) -> None:
    """What happens, as it happens: server-sent events."""

    @api.get("/stream", tags=["models"], **openapi.STREAM)
    async def stream() -> Response:
        return EventStream(live, None)

    @api.get("/models/{model}/stream", tags=["models"], **openapi.STREAM_MODEL)
    async def stream_model(name: ModelName) -> Response:
        return EventStream(live, name)


def _explained(model: Model, explain: Callable[[Any], Explanation], asked: Any) -> dict[str, Any]:
    try:
        return {"model": model.name, **asdict(explain(asked))}
    except EventError as error:
        raise errors.InvalidEvent(field=error.field, reason=error.message) from None


def reply(content: Any, status: int = 200) -> Response:
    """A JSON reply; floats as the shortest text that reads back to the same float64."""
    return Response(msgspec.json.encode(content), status, media_type="application/json")


def problem(error: errors.OnestepError) -> Response:
    """A problem document."""
    body = msgspec.json.encode(error.problem())
    return Response(body, error.status, dict(error.headers), "application/problem+json")


def describe(model: Model) -> dict[str, Any]:
    """What `GET /models/{model}` says."""
    learner = model.learner
    mixture = {} if learner.auto is None else {"learners": learner.auto.learners(), "alarms": learner.auto.alarms}
    return {
        "model": model.name,
        "spec": learner.spec.as_dict(),
        "seq": learner.seq,
        **model.standing(),
        "sha256": learner.sha256(),
        **mixture,
    }


async def read_json(request: Request, limit: int) -> bytes:
    """The JSON body of a request that nobody makes often."""
    content_type = request.headers.get("content-type", "")
    if content_type.partition(";")[0].strip().lower() != "application/json":
        raise errors.UnsupportedMediaType(content_type=content_type[:100])
    body = b""
    async for chunk in request.stream():
        body += chunk
        if len(body) > limit:
            raise errors.BodyTooLarge(limit=limit)
    return body


async def read_spec(request: Request, limit: int) -> Spec:
    """The spec in a request's body; what is wrong with it names the field."""
    body = await read_json(request, limit)
    try:
        values = msgspec.json.decode(body)
    except msgspec.ValidationError:
        field = wire.out_of_range(body)
        raise errors.InvalidSpec(field=field, reason="is a number that a 64-bit float cannot hold") from None
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise errors.MalformedJson(where="The body ", reason=str(error).removeprefix("JSON is malformed: ")) from None
    try:
        return _spec.validate_json(body, strict=True)
    except ValidationError as error:
        raise _what_is_wrong(values, error) from None


def _what_is_wrong(values: Any, error: ValidationError) -> errors.InvalidSpec:
    """What pydantic found, in the spec's own words where it has some."""
    try:
        Spec.from_dict(values)
    except SpecError as own:
        return errors.InvalidSpec(field=own.field[:100], reason=own.message)
    except (TypeError, ValueError):
        return errors.InvalidSpec(field="body", reason='must be an object like {"learning_rate": 0.05}')
    first = error.errors(include_url=False)[0]
    return errors.InvalidSpec(field=".".join(map(str, first["loc"]))[:100] or "body", reason=first["msg"])
