"""Running the service: uvicorn, signals, a stop that resets no connection, and the exit code."""

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
from collections.abc import Iterable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import uvicorn

from service import failures, logs
from service.children import stop_signals
from service.http import access
from service.http.app import Service
from service.http.certificate import Certificate
from service.http.crowd import Crowd, Peer
from service.settings import Settings
from service.storage.folder import FolderLock, open_to_others

logger = logging.getLogger("logstep")

SLOW_TICKS = 5
"""Tenths of a second between two looks for slow connections."""
CERTIFICATE_TICKS = 10
"""Tenths of a second between two looks at the files of the certificate."""
ACCEPTED_AT_ONCE = 64
"""Connections that asyncio's loop accepts in one callback. uvloop accepts one."""
OTHER_FILES = 256
"""Files that may be open beside the connections: the log, spooled replies, files read for other requests."""
BACKLOG = 2048
"""Connections that may wait to be accepted."""
HANDSHAKE_SECONDS = 0.005
"""Time for clients that have begun to connect when a stop begins. A client that begins at that moment tries again after
a second and is refused."""
LINGER_SECONDS = 0.25
LINGER_FRESH_SECONDS = 1.0
"""How long connections are still read after the last is accepted. The longer time applies while one has sent no
request."""
SO_ATTACH_FILTER = 26
"""Linux's number; Python has no name for it."""
VIEWERS_SECONDS = 0.5
"""How long clients have to read the end of their event streams. Then the streams are cut, and so are replies whose
clients read too slowly, or the stop would wait for these bytes until `shutdown_seconds` are over."""


class Server(uvicorn.Server):
    """uvicorn's server, with this service's way to stop.

    SIGTERM: for `drain_seconds`, /readyz says 503 while the service still accepts everything, so that a load balancer
    can turn away. Then it accepts no new connections, answers the requests in progress, ends streams between two
    pieces, writes the last snapshots, and exits with code 0. SIGHUP, from a terminal that closes, does the same. SIGINT
    (Ctrl-C), or a second signal, does the same without the wait.
    """

    def __init__(
        self,
        config: uvicorn.Config,
        service: Service,
        crowd: Crowd,
        log: logs.Handler,
        certificate: Certificate | None = None,
    ) -> None:
        super().__init__(config)
        self._certificate = certificate
        self._log = log
        self._service = service
        self._crowd = crowd
        self._drain_seconds = service.settings.drain_seconds
        service.engine.on_failure = self._stop_now

    async def on_tick(self, counter: int) -> bool:
        """Runs every tenth of a second."""
        if counter % SLOW_TICKS == 0:
            self._log.tell_the_rest()
            self._service.refusals.tell_the_rest()
            settings = self._service.settings
            for client in list(self._crowd.peers):
                client.end_if_slow(settings.request_seconds)
            self._crowd.idle.close_all_since(asyncio.get_running_loop().time() - settings.keep_alive_seconds)
        if self._certificate is not None and counter % CERTIFICATE_TICKS == 0:
            self._certificate.follow()
            self._service.engine.telemetry.certificate_ends = self._certificate.ends
        return await super().on_tick(counter)

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        """uvicorn's version would raise the signal again after a graceful stop, and the exit code would look like a
        crash."""
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
        if not self._service.engine.lifecycle.state.ready:
            self._stop_now()
            return
        self._service.engine.drain()
        asyncio.get_running_loop().call_later(self._drain_seconds, self._stop_now)

    def _stop_now(self) -> None:
        self._service.engine.drain()
        self._service.engine.lifecycle.streams_end.set()
        self.should_exit = True
        asyncio.get_running_loop().call_later(VIEWERS_SECONDS, self._crowd.cut_viewers)

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        """Let more connections wait than the loop accepts at once."""
        await super().startup(sockets)
        for listener in sockets or []:
            listener.listen(BACKLOG)

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        """Reset no connection: answer each client once more and close its connection, and refuse new ones.

        uvicorn closes the listener while connections wait to be accepted, and closes connections whose request it has
        not read. Under load, up to 27 of 32 clients lost a request (measured).
        """
        for listener in sockets or []:
            await _accept_the_last(listener)
        for server in self.servers:
            server.close()
        await _linger(self._crowd.peers)
        await super().shutdown(sockets)


async def _linger(clients: Iterable[Peer]) -> None:
    """Answer connected clients once more. Replies say "connection: close" by now.

    A connection without a request yet was made to send one, so this waits longer for it.
    """
    loop = asyncio.get_running_loop()
    started, waits = loop.time(), True
    while waits:
        await asyncio.sleep(0.05)
        fresh = any(client.scope is None for client in clients)
        waits = loop.time() - started < (LINGER_FRESH_SECONDS if fresh else LINGER_SECONDS)


async def _accept_the_last(listener: socket.socket) -> None:
    """Admit no more connections, and let the loop accept those that wait, one each turn."""
    _admit_no_more(listener)
    await asyncio.sleep(HANDSHAKE_SECONDS)
    waiting = select.poll()
    waiting.register(listener, select.POLLIN)
    for _ in range(BACKLOG):
        if not waiting.poll(0):
            return
        await asyncio.sleep(0)


def _admit_no_more(listener: socket.socket) -> None:
    """Stop new connections with a filter that drops packets with the flag SYN. Linux only.

    Else a client could connect between the last accept and the close of the listener, and be reset: 11 of 150 stops
    under load reset one, though the listener was shut down as soon as no connection waited. The filter must not drop
    the rest of a handshake: that client is already connected, though the service is not, and would be reset too.
    """
    instructions = (
        (0x30, 0, 0, 13),  # load byte 13 of the TCP header: the flags
        (0x45, 0, 1, 0x02),  # if not SYN, skip one
        (0x06, 0, 0, 0),  # drop it
        (0x06, 0, 0, 0xFFFFFFFF),  # accept it
    )
    program = ctypes.create_string_buffer(b"".join(struct.pack("=HBBI", *one) for one in instructions))
    with contextlib.suppress(OSError):
        wanted = struct.pack("@HP", len(instructions), ctypes.addressof(program))
        listener.setsockopt(socket.SOL_SOCKET, SO_ATTACH_FILTER, wanted)


def serve(settings: Settings, lock: FolderLock) -> int:
    """Serve until a signal. Returns the exit code: 0 after a graceful stop, 1 if the service could not go on."""
    log = logs.set_up(settings.log_level, settings.log_format)
    service, crowd = Service(settings), Crowd(settings)
    config = uvicorn.Config(
        access.with_cors(service, settings),
        loop="uvloop",
        http=_http(service, crowd),
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
        timeout_graceful_shutdown=settings.shutdown_seconds,  # type: ignore[arg-type]  # it accepts fractions too
        backlog=ACCEPTED_AT_ONCE,
    )
    certificate = _certificate(config)
    _allow_connections(settings.max_connections)
    listener = _listen(settings.host, settings.port)
    host, port = listener.getsockname()[:2]
    shown = f"[{host}]" if ":" in host else host
    scheme = "https" if config.is_ssl else "http"
    logger.info("logstep serves %s://%s:%d from %s", scheme, shown, port, settings.data)
    if warning := open_to_others(settings.data):
        logger.warning("%s", warning)
    # Without this the garbage collector scans all imported objects again and again, and requests wait 70 ms (measured:
    # p99 of predictions with ids 58 ms, 8 ms with it).
    gc.freeze()
    # A turn of the writer makes and frees more than Python's threshold of 700 objects. Scanning them each time took a
    # twentieth of the turn.
    gc.set_threshold(10_000, *gc.get_threshold()[1:])
    gc.enable()  # it is off during the start, which has no use for it
    Server(config, service, crowd, log, certificate).run(sockets=[listener])
    gc.freeze()  # the engine has unfrozen all; to scan it would take Python half a second when it ends
    log.tell_the_rest(now=True)
    service.refusals.tell_the_rest(now=True)
    lock.release()
    return 0 if service.engine.lifecycle.failure is None else 1


def _http(service: Service, crowd: Crowd) -> Any:
    """What reads connections: our class with its first arguments, or uvicorn's own if ours does not fit."""
    try:
        from service.http.connection import Protocol, fits
    except (ImportError, AttributeError):
        pass
    else:
        if fits(uvicorn.__version__):
            return partial(Protocol, service, crowd)
    logger.warning(
        "This version of uvicorn, %s, is not one that logstep was written for. Its own connections serve: requests of "
        "one event are slower, and limits on connections, heads, slow clients and unread replies do not apply.",
        uvicorn.__version__,
    )
    return "httptools"


def _listen(host: str, port: int) -> socket.socket:
    """A listening socket. The one for every IPv6 address also accepts IPv4, if the system can."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    try:
        both = family == socket.AF_INET6 and ipaddress.ip_address(host).is_unspecified and socket.has_dualstack_ipv6()
        return socket.create_server((host, port), family=family, backlog=BACKLOG, dualstack_ipv6=both)
    except (ValueError, OSError) as error:
        reason = error.strerror if isinstance(error, OSError) else error
        raise failures.CannotListen(host=host, port=port, reason=reason) from None


def _allow_connections(count: int) -> None:
    """Raise the limit of open files to what so many connections need, as far as the system allows."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = count + OTHER_FILES
    most = wanted if hard == resource.RLIM_INFINITY else min(wanted, hard)
    if soft != resource.RLIM_INFINITY and soft < most:
        resource.setrlimit(resource.RLIMIT_NOFILE, (most, hard))
    if most < wanted:
        logger.warning(
            "Only %d files may be open (ulimit -n), too few for --max-connections. Raise that, or set "
            "--max-connections %d.",
            most,
            max(1, most - OTHER_FILES),
        )


def _certificate(config: uvicorn.Config) -> Certificate | None:
    """Load the certificate before the service listens, and report an error in one sentence. None without TLS."""
    certificate, key = config.ssl_certfile, config.ssl_keyfile
    if (certificate is None) != (key is None):
        raise failures.BadCertificate(certificate=certificate, key=key, reason="both are needed")
    try:
        config.load()
    except (OSError, ssl.SSLError) as error:
        reason = error.strerror or str(error)
        raise failures.BadCertificate(certificate=certificate, key=key, reason=reason) from None
    if config.ssl is None:
        return None
    return Certificate(config.ssl, Path(str(certificate)), Path(str(key)))
