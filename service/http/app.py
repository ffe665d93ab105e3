"""The HTTP service: start and stop, and what answers a request.

Each request has an id, to find it again in the log. The service takes the caller's `X-Request-ID` if it has only
harmless characters. Else it makes one from a random part of the process and a number, because asking the system for
random bytes costs more than everything else here.
"""

from __future__ import annotations

import asyncio
import codecs
import itertools
import logging
import re
import secrets
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from importlib.metadata import version

from fastapi import FastAPI, Response
from starlette.types import Message, Receive, Scope, Send

from service import errors, logs
from service.decode import event_json
from service.fairness import background
from service.http import access, routes
from service.http.access import NO_MODEL, Asked, asked_of
from service.http.arrays import Arrays
from service.http.bodies import Bodies, check_readable, is_stream, unpacked
from service.http.fresh import PLACE, wait_until_fresh
from service.http.long_reply import LongReplies
from service.http.one import One, Told
from service.http.page import add_page
from service.http.reply import CLOSE, Reply, json_reply, problem, with_headers
from service.http.streams import Streams
from service.learning.crosscheck import CrossChecks
from service.learning.engine import Engine
from service.settings import Settings
from service.watching.live import Live
from service.watching.past import Past

logger = logging.getLogger("logstep")

_SANE = re.compile(rb"[A-Za-z0-9._~:/+=@-]{1,128}")
_process = secrets.token_hex(4).encode()
_numbers = itertools.count(1)
_NO_ROWS = (
    "says what the columns of rows are, and this body has none. Send rows as text/csv, or as application/x-ndjson with "
    "an object on each line"
)


class Service:
    """The ASGI application: the two hot paths in front, FastAPI for everything else."""

    def __init__(self, settings: Settings) -> None:
        self.settings = settings
        self.engine = engine = _engine(settings)
        past = Past(settings.data)
        self._access = door = access.Access(settings, engine.lifecycle.streams_end)
        bodies, replies = Bodies(settings), LongReplies(settings)
        self._one = One(engine, settings)
        self.arrays = Arrays(engine, bodies, settings, replies, door)
        self._streams = Streams(engine, bodies, settings, replies, door)
        self.refusals = logs.Refusals()
        self._tells_requests = settings.log_level == "debug"
        self.api = routes.Api(
            title="logstep",
            version=version("logstep"),
            summary="Online learning over HTTP: one durable gradient step for each event.",
            lifespan=self._lifespan,
            redirect_slashes=False,
            generate_unique_id_function=lambda route: route.name,
            docs_url=None,  # FastAPI's pages load from another host; page.py has one that does not
            redoc_url=None,
            openapi_url=None,  # FastAPI's document has no newline at its end
            default_response_class=Response,  # the routes encode their replies
        )
        self.api.router.route_class = routes.Route
        routes.add_error_replies(self.api, self.refusal)
        routes.add_hot_routes(self.api, self._hot)
        routes.add_service_routes(self.api, engine)
        routes.add_model_routes(self.api, engine, bodies, settings)
        routes.add_inspection_routes(self.api, engine, CrossChecks(engine, settings.data), past, replies, door)
        routes.add_explanations(self.api, engine, bodies, settings, replies, door)
        routes.add_streams(self.api, Live(engine, settings.max_viewers), door)
        add_page(self.api)

    @asynccontextmanager
    async def _lifespan(self, _: FastAPI) -> AsyncIterator[None]:
        asyncio.get_running_loop().set_default_executor(background("logstep-work"))
        self.engine.start()
        yield
        await self.engine.stop(seconds=2.0)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.api(scope, receive, send)
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

    async def _answer(self, exchange: Exchange, receive: Receive, send: Send) -> None:
        scope = exchange.scope
        self._access.check(scope)
        await wait_until_fresh(scope, self.engine, self.settings.max_lag)
        receive = unpacked(scope, self._access.guarded(scope, receive), self.settings.max_body_bytes)
        if _hot_verb(scope):
            await self._hot(scope, receive, send)
            return
        scope["request_id"] = exchange.request_id
        await self.api(scope, receive, with_headers(access.charged(scope, send)))

    async def _hot(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer `/learn` or `/predict`, for the model in the path or `default`, by the kind of body.

        FastAPI declares these paths like every other (routes.py). But they carry the load, so the service calls this
        without FastAPI's routing, which would halve the rate (measured: 25,000 parsed bodies a second without it,
        12,000 with it).
        """
        check_readable(scope)
        asked = asked_of(scope)
        model = self.engine.model(asked.model)
        if scope["query_string"] and not is_stream(scope):
            raise errors.InvalidParameter(field="query", reason=_NO_ROWS)
        bodies = self._streams if is_stream(scope) else self.arrays
        await (bodies.learn if asked.verb == "learn" else bodies.predict)(model, scope, receive, send)

    async def refuse(self, error: errors.LogstepError, scope: Scope, _: Receive, send: Send) -> None:
        """Answer a request with an error, whatever it asks."""
        exchange = Exchange(scope, self.engine)
        await self._refuse(exchange, exchange.over(send), error)

    async def _refuse(self, exchange: Exchange, send: Send, error: BaseException) -> None:
        """Answer with an error. A reply that has begun stays cut."""
        if not exchange.status:
            await self.refusal(error, exchange.scope, exchange.request_id).send(send)

    def _tell(self, exchange: Exchange) -> None:
        """Log an answered request, at level debug."""
        if self._tells_requests:
            scope, seconds = exchange.scope, round(time.perf_counter() - exchange.started, 6)
            told = {"method": scope["method"], "path": scope["path"][:100], "status": exchange.status}
            logger.debug("request", extra=logs.fields(**told, seconds=seconds, request_id=exchange.request_id))

    def refusal(self, error: BaseException, scope: Scope | None = None, request_id: str = "") -> Reply:
        """The reply to an error, counted and logged. An error that is not the caller's becomes an internal error."""
        request_id = request_id or _new_id().decode()
        if not isinstance(error, errors.LogstepError):
            self.refusals.tell_mistake(error, request_id)
            error = errors.LogstepError()
        self.engine.telemetry.count_refusal(error)
        self.refusals.tell(error, scope["method"] if scope else "", scope["path"] if scope else "", request_id)
        return problem(error, request_id)

    # -- called by the connections, without ASGI

    def refuse_by_head(self, scope: Scope, answer: Callable[[Reply], None]) -> bool:
        """Refuse a long body to learn if there is no room for it. False if there is room, or the request asks something
        else.

        Refusals must be cheap: under overload, they would else take the time that learning needs.
        """
        if _hot_verb(scope) != "learn" or is_stream(scope):
            return False
        exchange = Exchange(scope, self.engine)
        try:
            self._access.check(scope)
            self.engine.model(asked_of(scope).model)
            self.arrays.check_head(scope)
        except Exception as error:
            answer(exchange.complete(self.refusal(error, scope, exchange.request_id)))
            self._tell(exchange)
            return True
        return False

    def asks_in_short(self, scope: Scope) -> Asked | None:
        """What a request asks, if its head allows `answer_now` to answer it once its body is there; else None."""
        return asked_of(scope) if _hot_verb(scope) and self._one.is_short(scope) else None

    def answer_now(self, scope: Scope, asked: Asked, body: bytes, answer: Callable[[Reply], None]) -> bool:
        """Answer as `__call__` would, without a task. False if the request needs one; then nothing is done."""
        body = body.removeprefix(codecs.BOM_UTF8)
        if event_json.is_array(body):
            return False
        exchange = Exchange(scope, self.engine)

        def tell(outcome: Told) -> None:
            if isinstance(outcome, BaseException):
                reply = self.refusal(outcome, scope, exchange.request_id)
            else:
                reply = json_reply(outcome)
            answer(exchange.complete(reply))
            self._tell(exchange)

        try:
            self._access.check(scope)
            return self._one.answer_now(asked, scope, body, tell)
        except Exception as error:
            tell(error)
            return True


def _engine(settings: Settings) -> Engine:
    if not settings.kafka:
        return Engine(settings)
    from service.replica.replica import Replica  # needs an extra

    return Replica(settings)


def _hot_verb(scope: Scope) -> str:
    """`learn` or `predict`, if a request asks for that; else empty."""
    verb = asked_of(scope).verb
    return verb if scope["method"] == "POST" and verb in ("learn", "predict") else ""


class Exchange:
    """One request and its reply."""

    __slots__ = ("_engine", "_id", "scope", "started", "status")

    def __init__(self, scope: Scope, engine: Engine) -> None:
        self.scope = scope
        self._id = _new_id()
        for name, value in scope["headers"]:
            if name == b"x-request-id" and _SANE.fullmatch(value):
                self._id = value
                break
        self.status = 0
        """Status of the reply; 0 before it begins."""
        self.started = time.perf_counter()
        self._engine = engine

    @property
    def request_id(self) -> str:
        return self._id.decode()

    def over(self, send: Send) -> Send:
        """A `send` that adds the headers of every reply."""

        def sends(message: Message) -> Awaitable[None]:  # a coroutine would cost as much as the rest together
            if message["type"] == "http.response.start":
                self.status = message["status"]
                message["headers"] = [*message["headers"], *self._added()]
            return send(message)

        return sends

    def complete(self, reply: Reply) -> Reply:
        """The reply with the headers of every reply, for a caller that writes it without ASGI."""
        self.status = reply.status
        return Reply(reply.status, reply.headers + self._added(), reply.body)

    def _added(self) -> list[tuple[bytes, bytes]]:
        added = [(b"x-request-id", self._id)]
        model = asked_of(self.scope).model
        if model != NO_MODEL and (place := self._engine.place_of(model)) is not None:
            added.append((PLACE, place))
        if self._engine.lifecycle.state.stopping:
            # Else a client that keeps its connections may send its next request on a closed one.
            added.append(CLOSE)
        return added


def _new_id() -> bytes:
    return b"%b-%x" % (_process, next(_numbers))
