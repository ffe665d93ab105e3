"""Running the service: uvicorn, signals, and the exit code."""

from __future__ import annotations

import asyncio
import contextlib
import ctypes
import gc
import ipaddress
import logging
import resource
import select
import signal
import socket
import ssl
import struct
from collections.abc import Iterator
from functools import partial

import uvicorn

from service import errors, logs
from service.http import access
from service.http.app import Service
from service.http.crowd import Crowd
from service.http.protocol import Protocol
from service.settings import Settings
from service.signals import stop_signals
from service.storage.lock import FolderLock, open_to_others

logger = logging.getLogger("logstep")

SLOW_TICKS = 5
"""Tenths of a second between two looks for connections that are too slow."""
OTHER_FILES = 256
"""Files that may be open beside the connections: the log, what is spooled, what is read for others."""
BACKLOG = 2048
"""Connections that may wait to be accepted."""
HANDSHAKE_SECONDS = 0.005
"""For those who have begun to connect when a stop begins. Who begins just then tries again after a second, and is
refused."""
LINGER_SECONDS = 0.25
LINGER_FRESH_SECONDS = 1.0
"""How long connections are still read once no more are accepted."""
SO_ATTACH_FILTER = 26
"""Linux's; Python has no name for it."""
VIEWERS_SECONDS = 0.5
"""After the end of the event streams: how long their viewers have to read it."""


class Server(uvicorn.Server):
    """uvicorn's server with this service's way to stop.

    SIGTERM: /readyz says 503 for `drain_seconds`, while everything is served, so that a load balancer can turn away;
    then no new connections, requests in flight are answered, streams are ended between two pieces, the last snapshots
    are written, and the exit code is 0. SIGHUP, of a terminal that is closed: the same. SIGINT (Ctrl-C), or a second
    signal: the same without the wait.
    """

    def __init__(self, config: uvicorn.Config, service: Service, crowd: Crowd, log: logs.Handler) -> None:
        super().__init__(config)
        self._log = log
        self._service = service
        self._crowd = crowd
        self._drain_seconds = service.settings.drain_seconds
        service.engine.on_failure = self._stop_now

    async def on_tick(self, counter: int) -> bool:
        """Every tenth of a second."""
        if counter % SLOW_TICKS == 0:
            self._log.tell_the_rest()
            self._service.refusals.tell_the_rest()
            settings = self._service.settings
            for connection in list(self.server_state.connections):
                if isinstance(connection, Protocol):
                    connection.end_if_slow(settings.request_seconds)
            self._crowd.idle.close_all_since(asyncio.get_running_loop().time() - settings.keep_alive_seconds)
        return await super().on_tick(counter)

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        """uvicorn's own would raise the signal again after a graceful stop, and the exit code would tell of a crash."""
        loop = asyncio.get_running_loop()
        handlers = dict.fromkeys(stop_signals(), self._drain) | {signal.SIGINT: self._stop_now}
        for number, handler in handlers.items():
            loop.add_signal_handler(number, handler)
        try:
            yield
        finally:
            for number in handlers:
                loop.remove_signal_handler(number)

    def _drain(self) -> None:
        if self._service.engine.state != "ready":
            self._stop_now()
            return
        self._service.engine.drain()
        asyncio.get_running_loop().call_later(self._drain_seconds, self._stop_now)

    def _stop_now(self) -> None:
        self._service.engine.drain()
        self._service.engine.streams_end.set()
        self.should_exit = True
        asyncio.get_running_loop().call_later(VIEWERS_SECONDS, self._cut_viewers)

    def _cut_viewers(self) -> None:
        """Cut event streams that are still open, and replies whose clients read too slowly: the streams have ended, and
        who has not read that by now reads nothing. What was written for them would be waited for until
        `shutdown_seconds` are over."""
        for connection in list(self.server_state.connections):
            if not isinstance(connection, Protocol) or connection.serving is None:
                continue
            if connection.serving.scope["path"].endswith("/stream") or connection.flow.write_paused:
                connection.transport.abort()

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        """No connection is reset: who has one is answered once more, then it is closed; who has none is refused one.

        uvicorn's own way closes the listener with connections that nobody has accepted yet, and connections whose
        request nobody has read yet: under load, dozens of clients lost a request (measured: up to 27 of 32).
        """
        for listener in sockets or []:
            _admit_no_more(listener)
        await asyncio.sleep(HANDSHAKE_SECONDS)
        for listener in sockets or []:
            await _accept_all(listener)
        for server in self.servers:
            server.close()
        await self._linger()
        await super().shutdown(sockets)

    async def _linger(self) -> None:
        """Answer those who are connected once more; replies say "connection: close" by now.

        A connection on which nothing was asked yet was made because something is to be asked: it is waited for longer.
        """
        loop = asyncio.get_running_loop()
        started, waits = loop.time(), True
        while waits:
            await asyncio.sleep(0.05)
            connections = [c for c in self.server_state.connections if isinstance(c, Protocol)]
            fresh = any(connection.cycle is None for connection in connections)
            waits = loop.time() - started < (LINGER_FRESH_SECONDS if fresh else LINGER_SECONDS)


async def _accept_all(listener: socket.socket) -> None:
    """Let the loop accept what is connected: one a turn."""
    waiting = select.poll()
    waiting.register(listener, select.POLLIN)
    for _ in range(BACKLOG):
        if not waiting.poll(0):
            return
        await asyncio.sleep(0)


def _admit_no_more(listener: socket.socket) -> None:
    """Let nobody begin to connect any more, by a filter that drops packets with the flag SYN. Linux only.

    Between the last accept and the close of a listener one more could be connected, and would be reset. So would who
    has begun already, were the rest of the handshake dropped, too: the client is connected by then, the service is not.
    """
    instructions = (
        (0x30, 0, 0, 13),  # load the byte with the flags, at 13 of the TCP header
        (0x45, 0, 1, 0x02),  # if not SYN, skip one
        (0x06, 0, 0, 0),  # take 0 bytes of it
        (0x06, 0, 0, 0xFFFFFFFF),  # take it
    )
    program = ctypes.create_string_buffer(b"".join(struct.pack("=HBBI", *one) for one in instructions))
    with contextlib.suppress(OSError):
        wanted = struct.pack("@HP", len(instructions), ctypes.addressof(program))
        listener.setsockopt(socket.SOL_SOCKET, SO_ATTACH_FILTER, wanted)


def serve(settings: Settings, lock: FolderLock) -> int:
    """Serve until a signal comes; the exit code: 0 after a graceful stop, 1 if the service could not go on."""
    log = logs.set_up(settings.log_level, settings.log_format)
    service, crowd = Service(settings), Crowd(settings)
    config = uvicorn.Config(
        access.with_cors(service, settings),
        loop="uvloop",
        http=partial(Protocol, service, crowd),  # type: ignore[arg-type]  # a class and its first arguments
        ssl_certfile=settings.tls_cert,
        ssl_keyfile=settings.tls_key,
        ws="none",
        lifespan="on",
        access_log=False,
        log_config=None,
        log_level="warning",
        server_header=False,
        date_header=False,
        proxy_headers=False,
        timeout_graceful_shutdown=settings.shutdown_seconds,  # type: ignore[arg-type]  # it takes fractions too
        backlog=BACKLOG,
    )
    _load_certificate(config)
    _allow_connections(settings.max_connections)
    listener = _listen(settings.host, settings.port)
    host, port = listener.getsockname()[:2]
    shown = f"[{host}]" if ":" in host else host
    scheme = "https" if config.is_ssl else "http"
    logger.info("logstep serves %s://%s:%d from %s", scheme, shown, port, settings.data)
    if warning := open_to_others(settings.data):
        logger.warning("%s", warning)
    # What was imported stays: without this the collector looks at all of it again and again, and every request waits
    # 70 ms (measured: p99 of predictions with ids 58 ms, 8 ms with it).
    gc.freeze()
    # A turn of the writer makes more than Python's 700 objects, and lets them go again: to look through them each time
    # took a twentieth of the turn.
    gc.set_threshold(10_000, *gc.get_threshold()[1:])
    gc.enable()  # the start had no use for it
    Server(config, service, crowd, log).run(sockets=[listener])
    log.tell_the_rest(now=True)
    service.refusals.tell_the_rest(now=True)
    lock.release()
    return 0 if service.engine.failure is None else 1


def _listen(host: str, port: int) -> socket.socket:
    """A socket that listens. That of every IPv6 address takes connections of IPv4 too, where the system can."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    try:
        both = family == socket.AF_INET6 and ipaddress.ip_address(host).is_unspecified and socket.has_dualstack_ipv6()
        return socket.create_server((host, port), family=family, backlog=BACKLOG, dualstack_ipv6=both)
    except ValueError as error:
        raise errors.CannotListen(host=host, port=port, reason=error) from None
    except OSError as error:
        raise errors.CannotListen(host=host, port=port, reason=error.strerror) from None


def _allow_connections(count: int) -> None:
    """Raise the number of files that may be open to what so many connections take, where the system lets us."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = count + OTHER_FILES
    most = wanted if hard == resource.RLIM_INFINITY else min(wanted, hard)
    if soft != resource.RLIM_INFINITY and soft < most:
        resource.setrlimit(resource.RLIMIT_NOFILE, (most, hard))
    if most < wanted:
        logger.warning(
            "%d files may be open (ulimit -n), too few for --max-connections: name %d there",
            most,
            max(1, most - OTHER_FILES),
        )


def _load_certificate(config: uvicorn.Config) -> None:
    """Load it before anything listens; what is wrong with it is told in a sentence."""
    certificate, key = config.ssl_certfile, config.ssl_keyfile
    if (certificate is None) != (key is None):
        raise errors.BadCertificate(certificate=certificate, key=key, reason="it takes both")
    try:
        config.load()
    except (OSError, ssl.SSLError) as error:
        reason = error.strerror or str(error)
        raise errors.BadCertificate(certificate=certificate, key=key, reason=reason) from None
