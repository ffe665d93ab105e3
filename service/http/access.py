"""Who may do what: the check that every request passes, before its route and before its body is read.

Without a token in the data folder or the environment, everything is open to anyone who reaches the address. By default
that is only this machine; --insecure allows others. Pages open in a browser on this machine are kept out by the headers
Host and Origin, which browsers send and pages cannot forge.
"""

from __future__ import annotations

import asyncio
import contextlib
import ipaddress
from collections.abc import AsyncGenerator
from typing import Any, NamedTuple
from urllib.parse import parse_qsl

from starlette.types import Message, Receive, Scope, Send

from service import errors, failures
from service.events import DEFAULT
from service.http import tokens
from service.http.tokens import EVERYONE, FILE, Grant, Tokens, given
from service.settings import Settings

PROBE, OPEN, ANY = "probe", "open", tokens.ANY
PREDICT, LEARN, ADMIN = "predict", "learn", "admin"
"""What a request needs: a scope, any token (ANY), no token (OPEN), or not even a known host name (PROBE)."""

_OPEN = {"/livez": PROBE, "/readyz": PROBE, "/": OPEN, "/docs": OPEN}
_ANY = ("/models", "/stream", "/metrics", "/openapi.json")
_BY_VERB = {"learn": LEARN, "predict": PREDICT, "explain": PREDICT}
_LIVE = ("series", "curve", "stream")
"""What the page shows of a model with any token."""
NO_MODEL = "/"
"""Instead of a model, for what asks of none. No name has a slash."""
_IN_URL = {"token", "access_token", "auth_token", "logstep_token", "api_key", "apikey"}
_IN_URL |= {"auth", "authorization", "bearer"}
_PARAMETERS = 100
"""Most parameters of a query. No route knows more than three, and parsing thousands blocks everybody."""
_HOSTS_REMEMBERED = 100
_FOREIGN = (b"cross-site", b"same-site")
"""What a browser sends for a request by a page of another origin, even if it sends no Origin."""
EVENT_BYTES = 1_000
"""Bytes of the reply to a GET that count as one event."""
_LOOK_SECONDS = 0.25
"""How often a long request is checked for whether it may go on."""


class Asked(NamedTuple):
    """What a request's path asks.

    verb: what follows the model's name, empty if nothing does; of a path without a model, the whole path.
    """

    verb: str
    model: str


def parse(path: str) -> Asked:
    """What a path asks, of which model. The door and the routes both go by this.

    >>> parse("/models/ads/learn"), parse("/learn")
    (Asked(verb='learn', model='ads'), Asked(verb='learn', model='default'))
    >>> parse("/models/ads"), parse("/models") == Asked("/models", NO_MODEL)
    (Asked(verb='', model='ads'), True)
    """
    if path.startswith("/models/"):
        model, _, verb = path[8:].partition("/")
        return Asked(verb, model)
    return Asked(path[1:], DEFAULT) if path in ("/learn", "/predict") else Asked(path, NO_MODEL)


def asked_of(scope: Scope) -> Asked:
    """What a request's path asks, parsed at most once."""
    asked: Asked | None = scope.get("asked")
    if asked is None:
        asked = scope["asked"] = parse(scope["path"])
    return asked


def wanted(method: str, asked: Asked) -> str:
    """What a request needs. A route not named here needs admin, so a new route is closed at first."""
    if asked.verb in _BY_VERB:
        return _BY_VERB[asked.verb]
    reads = method in ("GET", "HEAD")
    if asked.model != NO_MODEL:
        return ADMIN if not reads else ANY if asked.verb in _LIVE else PREDICT
    if reads and (asked.verb in _OPEN or asked.verb.startswith("/dashboard/")):
        return _OPEN.get(asked.verb, OPEN)
    return ANY if reads and asked.verb in _ANY else ADMIN


def is_loopback(host: str) -> bool:
    """Whether only this machine can reach an address."""
    try:
        address = ipaddress.ip_address(host)
    except ValueError:
        return host == "localhost"
    return (getattr(address, "ipv4_mapped", None) or address).is_loopback  # ::ffff:127.0.0.1 is one too


def refuse_an_open_door(settings: Settings) -> None:
    """Raise TokenNeeded if the service would serve other machines without a token."""
    if settings.insecure or is_loopback(settings.host):
        return
    if not Tokens(settings.data, given(settings.token_file)).exist:
        raise failures.TokenNeeded(host=settings.host, path=str(settings.data / FILE), folder=str(settings.data))


class Access:
    """Checks every request. `streams_end`: set when long requests must end, because the service stops."""

    def __init__(self, settings: Settings, streams_end: asyncio.Event) -> None:
        self._streams_end = streams_end
        self._tokens = Tokens(settings.data, given(settings.token_file))
        self._always = not (settings.insecure or is_loopback(settings.host))
        self._hosts = _allowed_hosts(settings)
        self._good_hosts: set[bytes | None] = set()  # as clients sent them
        self._origins = set(names(settings.cors_origins))

    def check(self, scope: Scope) -> None:
        """Let a request in, or raise what is wrong with it. `scope["grant"]` then says what its token may do."""
        if "grant" not in scope:  # else it was let in before: the short way may hand a request over to ASGI
            asked = asked_of(scope)
            scope["grant"] = self._grant(scope, wanted(scope["method"], asked), asked.model)

    def check_again(self, scope: Scope) -> None:
        """Raise Unauthorized if a request that was let in would not be now. For requests that may take hours: streams,
        in or out."""
        self._tokens.look()
        grant = grant_of(scope)
        if grant is not EVERYONE:
            self._tokens.check(grant)
        elif self._tokens.exist:
            raise errors.Unauthorized(sent=False)

    @contextlib.asynccontextmanager
    async def while_it_may(self, scope: Scope) -> AsyncGenerator[None]:
        """End the block soon after its token is revoked or the service stops, wherever it is, and raise the reason.

        When the service stops, the block first gets a moment, in which most requests finish.
        """
        loop = asyncio.get_running_loop()
        why: errors.LogstepError | None = None
        stops = False
        next_look: asyncio.TimerHandle

        def look() -> None:
            nonlocal why, stops, next_look
            try:
                self.check_again(scope)
                if stops:
                    raise errors.NotReady(state="stopping")
            except errors.LogstepError as error:
                why = error
                end.reschedule(loop.time())
                return
            stops = self._streams_end.is_set()
            next_look = loop.call_later(_LOOK_SECONDS, look)

        try:
            async with asyncio.timeout(None) as end:
                next_look = loop.call_later(_LOOK_SECONDS, look)
                try:
                    yield
                finally:
                    next_look.cancel()
        except TimeoutError:
            if why is None:
                raise
            raise why from None

    def guarded(self, scope: Scope, receive: Receive) -> Receive:
        """A `receive` for a body whose sender may be slow. It raises Unauthorized once the token is revoked or
        expires."""

        async def receives() -> Message:
            message = await receive()
            if message["type"] == "http.request" and message.get("body"):
                self.check_again(scope)
            return message

        return receives

    def _grant(self, scope: Scope, wants: str, model: str) -> Grant:
        if scope["query_string"]:
            _refuse_token_in_url(scope["query_string"])
        if wants == PROBE:
            return EVERYONE
        headers = dict(scope["headers"])
        host = headers.get(b"host")
        if host not in self._good_hosts:
            self._check_host(host)
        self._tokens.look()
        if not (self._tokens.exist or self._always):
            if b"origin" in headers:
                self._check_origin(headers[b"origin"], host)
            elif wants != OPEN and headers.get(b"sec-fetch-site") in _FOREIGN:
                raise errors.ForeignSite()  # a page cannot read it, but it still costs: a cross-check, a viewer's place
            return EVERYONE
        return EVERYONE if wants == OPEN else self._ask(scope, headers.get(b"authorization"), wants, model)

    def _ask(self, scope: Scope, sent: bytes | None, wants: str, model: str) -> Grant:
        """Require a token that may do what the request needs."""
        grant = None if sent is None else self._tokens.grant(sent)
        if grant is None:
            raise errors.Unauthorized(sent=sent is not None)
        if grant.token.expires_at is not None:
            self._tokens.check(grant)
        if model != NO_MODEL and not grant.reaches(model):
            raise errors.UnknownModel(model=model)  # as if it did not exist, so that nobody learns of others' models
        if wants not in grant.may or (wants == ADMIN and model == NO_MODEL and grant.models is not None):
            lacks = wants if wants not in grant.may else f"{wants} for all models"
            raise errors.Forbidden(scopes=" and ".join(grant.token.scopes), wants=lacks)
        if grant.pace is not None:
            grant.pace.begin()
        return grant

    def _check_host(self, host: bytes | None) -> None:
        """Refuse foreign names: a page whose name was made to resolve to this service (DNS rebinding) sends its
        name."""
        name = (host or b"").decode("latin-1").lower()
        name = name if name.endswith("]") else name.rpartition(":")[0] or name  # without the port
        if self._hosts is not None and name not in self._hosts:
            raise errors.ForeignHost(host=name[:100])
        if len(self._good_hosts) < _HOSTS_REMEMBERED:
            self._good_hosts.add(host)

    def _check_origin(self, origin: bytes, host: bytes | None) -> None:
        """Refuse foreign origins: a page of another site sends its origin with every request that may change
        something."""
        name = origin.decode("latin-1")
        if name not in self._origins and origin.partition(b"://")[2].lower() != (host or b"").lower():
            raise errors.ForeignOrigin(origin=name[:100])


def with_cors(app: Any, settings: Settings) -> Any:
    """The application. If the settings name other origins, their pages may use it too.

    Then all requests go through ASGI (service/http/connection.py), because their replies need headers that the short
    way does not add.
    """
    origins = names(settings.cors_origins)
    if not origins:
        return app
    from starlette.middleware.cors import CORSMiddleware  # slow to import, and the commands import this module too

    methods, headers = ("GET", "POST", "PUT", "DELETE"), ("authorization", "content-type", "x-request-id")
    exposed = ("retry-after", "www-authenticate", "x-request-id")
    return CORSMiddleware(
        app, allow_origins=origins, allow_methods=methods, allow_headers=headers, expose_headers=exposed
    )


def grant_of(scope: Scope) -> Grant:
    """What a request that was let in may do."""
    grant: Grant = scope["grant"]
    return grant


def charged(scope: Scope, send: Send) -> Send:
    """A `send` that takes the size of a reply to a GET from the token's rate. Streams of events are free, because each
    event is made once for all viewers."""
    pace = grant_of(scope).pace
    if pace is None or scope["method"] not in ("GET", "HEAD"):
        return send
    counts = True

    async def sends(message: Message) -> None:
        nonlocal counts
        if message["type"] == "http.response.start":
            counts = not dict(message["headers"]).get(b"content-type", b"").startswith(b"text/event-stream")
        elif counts:
            pace.take(len(message.get("body", b"")) / EVENT_BYTES)
        await send(message)

    return sends


def names(text: str) -> list[str]:
    """The parts of a setting that is a list: "a, b" has two."""
    return [part for part in (part.strip() for part in text.split(",")) if part]


def _allowed_hosts(settings: Settings) -> set[str] | None:
    """The host names that requests may use; None for any."""
    told = [name.lower() for name in names(settings.allowed_hosts)]
    if "*" in told or not (told or is_loopback(settings.host)):
        return None
    bound = f"[{settings.host}]" if ":" in settings.host else settings.host.lower()
    return {"localhost", "127.0.0.1", "[::1]", bound, *told}


def _refuse_token_in_url(query: bytes) -> None:
    if query.count(b"&") >= _PARAMETERS:
        raise errors.InvalidParameter(field="query", reason=f"has more than {_PARAMETERS} parameters")
    for name, value in parse_qsl(query.decode("latin-1"), keep_blank_values=True):
        if name.lower() in _IN_URL or value.startswith("logstep_"):
            raise errors.TokenInUrl()
