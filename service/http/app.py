"""The HTTP service: start and stop, routes, and replies to errors."""

from __future__ import annotations

import asyncio
import codecs
import logging
import re
import time
from collections.abc import AsyncIterator, Callable, Iterable
from contextlib import ExitStack, asynccontextmanager
from importlib.metadata import version
from typing import Annotated, Any

import msgspec
from fastapi import FastAPI, Path, Query, Request, Response
from fastapi.routing import APIRoute
from pydantic import TypeAdapter, ValidationError
from starlette.exceptions import HTTPException
from starlette.routing import Match
from starlette.types import Receive as StarletteReceive
from starlette.types import Scope as StarletteScope
from starlette.types import Send as StarletteSend

from core import logistic
from core.explain import Explanation, explaining
from core.features import EventError, X
from core.spec import Spec, SpecError
from core.weights import PIECE
from service import errors, logs
from service.decode import wire
from service.fairness import WIDE, worked
from service.http import access, openapi
from service.http.bodies import Bodies, check_readable, media_type_of
from service.http.exchange import Exchange
from service.http.headers import with_headers
from service.http.hot import Asked, Hot, Receive, Scope, Send, is_stream, match, send_reply
from service.http.large import Pieces, pieces_of
from service.http.reply import JSON, Reply, json_reply, problem
from service.learning import telemetry
from service.learning.crosscheck import CrossChecks
from service.learning.engine import Engine
from service.learning.model import Model
from service.settings import Settings
from service.storage.ids import WAITING
from service.threads import background
from service.watching.live import EventStream, Live
from service.watching.page import add_page
from service.watching.past import Past

logger = logging.getLogger("logstep")

MODEL_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]{0,63}")
_spec = TypeAdapter(Spec)


class Service:
    """The ASGI application: the two hot paths in front, FastAPI for everything else."""

    def __init__(self, settings: Settings) -> None:
        self.settings = settings
        self.engine = Engine(settings)
        self.crosschecks = CrossChecks(self.engine, settings.data)
        self.past = Past(settings.data)
        self.live = Live(self.engine, self.past, settings.max_viewers)
        bodies = Bodies(settings)
        self._access = access.Access(settings)
        self._hot = Hot(self.engine, self._access, bodies, settings)
        self.refusals = logs.Refusals()
        self._tells_requests = settings.log_level == "debug"
        self.api = FastAPI(
            title="logstep",
            version=version("logstep"),
            summary="Online learning over HTTP: one durable gradient step for each event.",
            lifespan=self._lifespan,
            redirect_slashes=False,
            generate_unique_id_function=lambda route: route.name,
            docs_url=None,  # FastAPI's pages load from another host; page.py has one that does not
            redoc_url=None,
            openapi_url=None,  # FastAPI's document has no newline at its end
        )
        self.api.router.route_class = Route
        add_error_replies(self.api, self.refusal)
        add_service_routes(self.api, self.engine)
        add_model_routes(self.api, self.engine, bodies, settings)
        add_inspection_routes(self.api, self.engine, self.crosschecks, self._hot)
        add_explanations(self.api, self.engine, bodies, settings, self._hot)
        add_series(self.api, self.engine, self.past)
        add_streams(self.api, self.live, self._access)
        add_page(self.api)
        openapi.extend(self.api)

    @asynccontextmanager
    async def _lifespan(self, _: FastAPI) -> AsyncIterator[None]:
        asyncio.get_running_loop().set_default_executor(background("logstep-work"))
        self.engine.start()
        yield
        await self.engine.stop(seconds=2.0)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.api(scope, receive, send)  # type: ignore[arg-type]  # dict is a MutableMapping, starlette's type
            return
        exchange = Exchange(scope, self.engine)
        send = exchange.over(send)
        try:
            await self._answer(exchange, receive, send)
        except asyncio.CancelledError:  # the service stops, and does not wait so long
            await self._refuse(exchange, send, errors.NotReady(state="stopping"))
        except Exception as error:
            await self._refuse(exchange, send, error)
        self._tell(exchange)

    async def refuse(self, error: errors.LogstepError, scope: Scope, _: Receive, send: Send) -> None:
        """Answer a request with an error, whatever it asks."""
        exchange = Exchange(scope, self.engine)
        await self._refuse(exchange, exchange.over(send), error)

    async def _refuse(self, exchange: Exchange, send: Send, error: BaseException) -> None:
        """Answer with an error. A reply that has begun stays cut."""
        if not exchange.status:
            await send_reply(send, self.refusal(error, exchange.request_id, exchange.scope))

    def _tell(self, exchange: Exchange) -> None:
        """Log an answered request, at level debug."""
        if self._tells_requests:
            scope, seconds = exchange.scope, round(time.perf_counter() - exchange.started, 6)
            told = {"method": scope["method"], "path": scope["path"][:100], "status": exchange.status}
            logger.debug("request", extra=logs.fields(**told, seconds=seconds, request_id=exchange.request_id))

    def refusal(self, error: BaseException, request_id: str, scope: Scope | None = None) -> Reply:
        """The reply to an error, counted and logged. An error that is not the caller's becomes an internal error."""
        if not isinstance(error, errors.LogstepError):
            self.refusals.tell_mistake(error, request_id)
            error = errors.LogstepError()
        self.engine.telemetry.count_refusal(error)
        self.refusals.tell(error, scope["method"] if scope else "", scope["path"] if scope else "", request_id)
        return problem(error, request_id)

    async def _answer(self, exchange: Exchange, receive: Receive, send: Send) -> None:
        scope = exchange.scope
        asked = match(scope["path"])
        if asked is None:
            self._access.check(scope, *access.wanted(scope["method"], scope["path"]))
            scope["request_id"] = exchange.request_id
            receive = self._access.guarded(scope, receive)
            await self.api(scope, receive, with_headers(access.charged(scope, send)))  # type: ignore[arg-type]  # the same
            return
        self._access.check(scope, *asked)
        if scope["method"] != "POST":
            raise errors.MethodNotAllowed(path=scope["path"], method=scope["method"], allow="POST")
        await self._hot(asked, scope, receive, send)

    # -- called by the connections, without ASGI

    def refuse_by_head(self, scope: Scope, answer: Callable[[Reply], None]) -> bool:
        """Refuse a long body to learn if there is no room for it. False if there is room, or the request asks something
        else.

        Refusals must be cheap: under overload, they would else take the time that learning needs.
        """
        asked = match(scope["path"]) if scope["method"] == "POST" else None
        if asked is None or asked.verb != "learn" or is_stream(scope):
            return False
        exchange = Exchange(scope, self.engine)
        try:
            self._access.check(scope, *asked)
            self.engine.model(asked.model)
            self._hot.check_head(scope)
        except Exception as error:
            answer(exchange.complete(self.refusal(error, exchange.request_id, scope)))
            self._tell(exchange)
            return True
        return False

    def asks_in_short(self, scope: Scope) -> Asked | None:
        """What a request asks, if its head allows `answer_now` to answer it once its body is there; else None."""
        asked = match(scope["path"]) if scope["method"] == "POST" else None
        return asked if asked is not None and self._hot.is_short(scope) else None

    def answer_now(self, scope: Scope, asked: Asked, body: bytes, answer: Callable[[Reply], None]) -> bool:
        """Answer as `__call__` would, without a task. False if the request needs one; then nothing is done."""
        body = body.removeprefix(codecs.BOM_UTF8)
        if wire.is_array(body):
            return False
        exchange = Exchange(scope, self.engine)

        def tell(content: Any, error: BaseException | None) -> None:
            reply = json_reply(content) if error is None else self.refusal(error, exchange.request_id, scope)
            answer(exchange.complete(reply))
            self._tell(exchange)

        try:
            self._access.check(scope, *asked)
            return self._hot.answer_now(asked, scope, body, tell)
        except Exception as error:
            tell(None, error)
            return True


class Route(APIRoute):
    """A route that accepts HEAD if it accepts GET, as starlette's own do. The OpenAPI document lists only GET."""

    def matches(self, scope: StarletteScope) -> tuple[Match, StarletteScope]:
        return super().matches({**scope, "method": "GET"} if self._takes_head(scope) else scope)

    async def handle(self, scope: StarletteScope, receive: StarletteReceive, send: StarletteSend) -> None:
        await (self.app if self._takes_head(scope) else super().handle)(scope, receive, send)

    def _takes_head(self, scope: StarletteScope) -> bool:
        return bool(scope["type"] == "http" and scope["method"] == "HEAD" and "GET" in (self.methods or ()))


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
        if engine.state != "ready":
            told = problem(errors.NotReady(state=engine.state), request.scope["request_id"])
            return as_response(told)  # a normal answer, so it is not counted as a refusal
        return reply({"status": "ready"})


def add_model_routes(api: FastAPI, engine: Engine, bodies: Bodies, settings: Settings) -> None:
    """List, show, create and delete models."""

    @api.get("/models", tags=["models"], **openapi.LIST_MODELS)
    async def list_models(request: Request) -> Response:
        if engine.state in ("starting", "recovering"):
            raise errors.NotReady(state=engine.state)
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
        asked = await worked(len(body) > wire.WIDE_BYTES, wire.decode_explain, body)
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
    return Response(wire.encode(content), status, media_type="application/json")


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
    return await worked(len(body) > wire.WIDE_BYTES, _spec_of, body)


def _spec_of(body: bytes) -> Spec:
    try:
        values = msgspec.json.decode(body)
    except msgspec.ValidationError:
        field = wire.out_of_range(body)
        raise errors.InvalidSpec(field=field, reason="is a number that a 64-bit float cannot hold") from None
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise wire.malformed(error, "", body, "field") from None
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
