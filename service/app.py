"""The HTTP service: startup and shutdown, routes, and the map from errors to replies."""

from __future__ import annotations

import asyncio
import heapq
import logging
import re
import time
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
from service import errors, logs, openapi, telemetry, wire
from service.crosscheck import CrossChecks
from service.engine import Engine
from service.exchange import Exchange
from service.hot import Hot, Receive, Scope, Send, send_problem
from service.log import WAITING
from service.model import Model
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
        self._hot = Hot(self.engine, settings)
        self._refusals = logs.Refusals()
        self._tells_requests = settings.log_level == "debug"
        self.api = FastAPI(
            title="onestep",
            version=version("onestep"),
            summary="Online learning over HTTP: one durable gradient step an event.",
            lifespan=self._lifespan,
            redirect_slashes=False,
            generate_unique_id_function=lambda route: route.name,
        )
        add_error_replies(self.api, self._count_refusal)
        add_service_routes(self.api, self.engine)
        add_model_routes(self.api, self.engine, settings)
        add_inspection_routes(self.api, self.engine, self.crosschecks)
        add_explanations(self.api, self.engine, settings)
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
        exchange = Exchange(scope, send, self.engine)
        started = time.perf_counter() if self._tells_requests else 0.0
        try:
            await self._answer(scope, receive, exchange)
        except errors.OnestepError as error:
            await self._refuse(scope, exchange, error)
        except asyncio.CancelledError:  # the service stops, and this took longer than it waits
            await self._refuse(scope, exchange, errors.NotReady(state="stopping"))
        except Exception:
            logger.exception("a mistake in onestep itself", extra=logs.fields(request_id=exchange.request_id))
            await self._refuse(scope, exchange, errors.OnestepError())
        if self._tells_requests:
            seconds = round(time.perf_counter() - started, 6)
            told = {"method": scope["method"], "path": scope["path"][:100], "status": exchange.status}
            logger.debug("request", extra=logs.fields(**told, seconds=seconds, request_id=exchange.request_id))

    async def _refuse(self, scope: Scope, exchange: Exchange, error: errors.OnestepError) -> None:
        """Answer with an error; a reply that had begun stays cut."""
        if not exchange.status:
            self._count_refusal(scope, error, exchange.request_id)
            await send_problem(exchange.send, error, exchange.request_id)

    def _count_refusal(self, scope: Scope, error: errors.OnestepError, request_id: str) -> None:
        self.engine.telemetry.count_refusal(error)
        self._refusals.tell(error, scope["method"], scope["path"], request_id)

    async def _answer(self, scope: Scope, receive: Receive, exchange: Exchange) -> None:
        found = self._hot.match(scope["path"])
        if found is None:
            scope["request_id"] = exchange.request_id
            await self.api(scope, receive, exchange.send)  # type: ignore[arg-type]  # the same
            return
        endpoint, model = found
        if scope["method"] != "POST":
            raise errors.MethodNotAllowed(path=scope["path"], method=scope["method"], allow="POST")
        await endpoint(model, scope, receive, exchange.send)


ModelName = Annotated[str, Path(alias="model", description="A model's name.", examples=["default"])]


def add_error_replies(api: FastAPI, count: Callable[[Scope, errors.OnestepError, str], None]) -> None:
    """Every error as a problem document, and counted."""

    def refusal(request: Request, error: errors.OnestepError) -> Response:
        count(request.scope, error, request.scope["request_id"])  # type: ignore[arg-type]  # as above
        return problem(request, error)

    @api.exception_handler(errors.OnestepError)
    async def refused(request: Request, error: errors.OnestepError) -> Response:
        return refusal(request, error)

    @api.exception_handler(HTTPException)
    async def not_routed(request: Request, error: HTTPException) -> Response:
        path = request.url.path[:100]
        if error.status_code == 405:
            routes = [route for route in api.routes if isinstance(route, APIRoute)]
            allow = ", ".join(
                sorted({m for r in routes if r.path_regex.match(request.url.path) for m in r.methods or ()})
            )
            return refusal(request, errors.MethodNotAllowed(path=path, method=request.method, allow=allow))
        return refusal(request, errors.NotFound(path=path))

    @api.exception_handler(Exception)
    async def mistake(request: Request, error: Exception) -> Response:
        return refusal(request, errors.OnestepError())


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
    async def readyz(request: Request) -> Response:
        if engine.state != "ready":
            return problem(request, errors.NotReady(state=engine.state))  # an answer, and no refusal that would count
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


def _explained(model: Model, explain: Callable[[Any], Explanation], asked: Any) -> dict[str, Any]:
    try:
        return {"model": model.name, **asdict(explain(asked))}
    except EventError as error:
        raise errors.InvalidEvent(field=error.field, reason=error.message) from None


def reply(content: Any, status: int = 200) -> Response:
    """A JSON reply; floats as the shortest text that reads back to the same float64."""
    return Response(msgspec.json.encode(content), status, media_type="application/json")


def problem(request: Request, error: errors.OnestepError) -> Response:
    """A problem document."""
    body = msgspec.json.encode(error.problem(request.scope["request_id"]))
    return Response(body, error.status, dict(error.headers), "application/problem+json")


def describe(model: Model) -> dict[str, Any]:
    """What `GET /models/{model}` says."""
    learner = model.learner
    mixture = {} if learner.auto is None else {"learners": learner.auto.learners(), "alarms": learner.auto.alarms}
    return {
        "model": model.name,
        "spec": learner.spec.as_dict(),
        "seq": learner.seq,
        "features": learner.n_features,
        "not_taken": learner.not_taken,
        "snapshot_seq": model.snapshot_seq,
        "progressive": model.scores.summary(),
        "served": model.joins.scores.summary(),
        "join": {
            "waiting": model.waiting,
            **model.joins.counts(),
            "dropped": model.dropped,
            "not_kept": model.not_kept,
            "delay_s": model.joins.delays(),
        },
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
