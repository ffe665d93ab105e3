"""`onestep` as a process of its own, forked from one that has loaded what it stands on, and so started at once.

The tests start hundreds of services. What is forked does what the command does from its first line on, with arguments,
environment, folder and log of its own, and can be killed like any process. The command itself is run where something
is put before it (strace, faketime), by `onestep demo`, and by the tests of the commands.
"""

from __future__ import annotations

import multiprocessing
import os
import resource
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from contextlib import suppress
from multiprocessing import connection
from pathlib import Path
from typing import Any, TypeVar

T = TypeVar("T")

CONTEXT = multiprocessing.get_context("forkserver")
# Not service.http.exchange, nor what loads it: the number that request ids begin with is made in each process.
CONTEXT.set_forkserver_preload(
    [
        *("fastapi.openapi.utils", "httptools", "prometheus_client", "pytest", "rich", "uvicorn", "uvloop"),
        *("service.commands.cli", "service.commands.client", "service.http.hot", "service.http.openapi"),
        *("service.learning.crosscheck", "service.watching.live", "service.watching.page", "service.watching.past"),
    ]
)


def serve(folder: Path, *flags: str) -> list[str]:
    """The arguments that start a service on a data folder, on a free port, that stops at once when it is asked to."""
    return ["serve", "--data", str(folder), "--port", "0", "--drain-seconds", "0", *flags]


def clean_environment() -> dict[str, str]:
    """The environment of the tests, without settings of a service."""
    return {name: value for name, value in os.environ.items() if not name.startswith("ONESTEP_")}


_LOOK = threading.Lock()
"""Held to look how processes ended, as a start does too: it can be read once, and who comes second is told 255."""


class Onestep:
    """A process of `onestep`; what a test needs of `subprocess.Popen`."""

    def __init__(
        self,
        *arguments: str,
        log: Path,
        env: Mapping[str, str],
        cwd: Path | None = None,
        file_limit: int | None = None,
    ) -> None:
        """`file_limit`: no file may grow beyond so many bytes; writing there fails, as on a broken disk."""
        self.args = ("onestep", *arguments)
        log.write_bytes(b"")
        self._process = CONTEXT.Process(target=_become, args=(arguments, log, dict(env), cwd or Path.cwd(), file_limit))
        with _LOOK:
            self._process.start()
        assert self._process.pid is not None
        self.pid = self._process.pid

    @property
    def returncode(self) -> int | None:
        with _LOOK:
            return self._process.exitcode

    def poll(self) -> int | None:
        return self.returncode

    def wait(self, timeout: float | None = None) -> int:
        connection.wait([self._process.sentinel], timeout)
        code = self.returncode
        if code is None:
            assert timeout is not None
            raise subprocess.TimeoutExpired(self.args, timeout)
        return code

    def send_signal(self, number: signal.Signals) -> None:
        if self.returncode is None:
            with suppress(ProcessLookupError):  # it has ended just now
                os.kill(self.pid, number)

    def kill(self) -> None:
        self.send_signal(signal.SIGKILL)


def elsewhere(function: Callable[..., T], *arguments: Any) -> T:
    """What a function gives in a process of its own."""
    with ProcessPoolExecutor(1, CONTEXT) as pool:
        with _LOOK:
            waits = pool.submit(function, *arguments)
        return waits.result()


def _become(arguments: Sequence[str], log: Path, env: dict[str, str], cwd: Path, file_limit: int | None) -> None:
    """Do what the command does, in a process that has done nothing yet."""
    os.setsid()
    os.chdir(cwd)
    os.environ.clear()
    os.environ.update(env)
    with log.open("ab") as file:
        os.dup2(file.fileno(), 1)
        os.dup2(file.fileno(), 2)
    if file_limit is not None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (file_limit, file_limit))
    from service.commands import cli

    sys.argv = ["onestep", *arguments]
    sys.exit(cli.main(list(arguments)))
