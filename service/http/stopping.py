"""The end of the service: no connection is reset."""

from __future__ import annotations

import asyncio
import contextlib
import ctypes
import select
import socket
import struct
from collections.abc import Iterable

from service.http.crowd import Peer

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


async def linger(clients: Iterable[Peer]) -> None:
    """Answer connected clients once more. Replies say "connection: close" by now.

    A connection without a request yet was made to send one, so this waits longer for it.
    """
    loop = asyncio.get_running_loop()
    started, waits = loop.time(), True
    while waits:
        await asyncio.sleep(0.05)
        fresh = any(client.scope is None for client in clients)
        waits = loop.time() - started < (LINGER_FRESH_SECONDS if fresh else LINGER_SECONDS)


async def accept_the_last(listener: socket.socket) -> None:
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
