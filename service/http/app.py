"""The HTTP service: start and stop, and what answers a request."""

from __future__ import annotations

import asyncio
import codecs
import logging
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from importlib.metadata import version

from fastapi import FastAPI, Response

from service import errors, logs
from service.decode import event_json
from service.fairness import background
from service.http import access, routes
from service.http.access import Asked, asked_of
from service.http.asgi import Receive, Scope, Send
from service.http.bodies import Bodies, is_stream
from service.http.exchange import Exchange
from service.http.hot import VERBS, Hot
from service.http.one import Told
from service.http.page import add_page
from service.http.reply import Reply, json_reply, problem, with_headers
from service.learning.crosscheck import CrossChecks
from service.learning.engine import Engine
from service.settings import Settings
from service.watching.live import Live
from service.watching.past import Past

logger = logging.getLogger("logstep")


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
        routes.add_service_routes(self.api, self.engine)
        routes.add_model_routes(self.api, self.engine, bodies, settings)
        routes.add_inspection_routes(self.api, self.engine, self.crosschecks, self._hot)
        routes.add_explanations(self.api, self.engine, bodies, settings, self._hot)
        routes.add_series(self.api, self.engine, self.past)
        routes.add_streams(self.api, self.live, self._access)
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

    async def refuse(self, error: errors.LogstepError, scope: Scope, _: Receive, send: Send) -> None:
        """Answer a request with an error, whatever it asks."""
        exchange = Exchange(scope, self.engine)
        await self._refuse(exchange, exchange.over(send), error)

    async def _refuse(self, exchange: Exchange, send: Send, error: BaseException) -> None:
        """Answer with an error. A reply that has begun stays cut."""
        if not exchange.status:
            await self.refusal(error, exchange.request_id, exchange.scope).send(send)

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
        asked = asked_of(scope)
        self._access.check(scope)
        if asked.verb in VERBS and scope["method"] == "POST":
            await self._hot(asked, scope, receive, send)
            return
        scope["request_id"] = exchange.request_id
        receive = self._access.guarded(scope, receive)
        await self.api(scope, receive, with_headers(access.charged(scope, send)))

    # -- called by the connections, without ASGI

    def refuse_by_head(self, scope: Scope, answer: Callable[[Reply], None]) -> bool:
        """Refuse a long body to learn if there is no room for it. False if there is room, or the request asks something
        else.

        Refusals must be cheap: under overload, they would else take the time that learning needs.
        """
        asked = asked_of(scope)
        if asked.verb != "learn" or scope["method"] != "POST" or is_stream(scope):
            return False
        exchange = Exchange(scope, self.engine)
        try:
            self._access.check(scope)
            self.engine.model(asked.model)
            self._hot.arrays.check_head(scope)
        except Exception as error:
            answer(exchange.complete(self.refusal(error, exchange.request_id, scope)))
            self._tell(exchange)
            return True
        return False

    def asks_in_short(self, scope: Scope) -> Asked | None:
        """What a request asks, if its head allows `answer_now` to answer it once its body is there; else None."""
        asked = asked_of(scope)
        return asked if asked.verb in VERBS and scope["method"] == "POST" and self._hot.one.is_short(scope) else None

    def answer_now(self, scope: Scope, asked: Asked, body: bytes, answer: Callable[[Reply], None]) -> bool:
        """Answer as `__call__` would, without a task. False if the request needs one; then nothing is done."""
        body = body.removeprefix(codecs.BOM_UTF8)
        if event_json.is_array(body):
            return False
        exchange = Exchange(scope, self.engine)

        def tell(outcome: Told) -> None:
            if isinstance(outcome, BaseException):
                reply = self.refusal(outcome, exchange.request_id, scope)
            else:
                reply = json_reply(outcome)
            answer(exchange.complete(reply))
            self._tell(exchange)

        try:
            self._access.check(scope)
            return self._hot.one.answer_now(asked, scope, body, tell)
        except Exception as error:
            tell(error)
            return True
