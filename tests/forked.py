"""`logstep` as a process of its own, forked from one that has loaded what it stands on, and so started at once.

The tests start hundreds of services. What is forked does what the command does from its first line on, with arguments,
environment, folder and log of its own, and can be killed like any process. The command itself is run where it is told
another time (faketime), by `logstep demo`, and by the tests of the commands.
"""

from __future__ import annotations

import ctypes
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

from patience import eventually

T = TypeVar("T")

# Started by `nohup`, in the background of a script and by some runners, these tests ignore a signal, and so would what
# they start: no test of Ctrl-C could end. With a handler it is ignored still, and who is started has the default again.
for number in (signal.SIGINT, signal.SIGHUP, signal.SIGTERM):
    if signal.getsignal(number) == signal.SIG_IGN:
        signal.signal(number, lambda *_: None)

CONTEXT = multiprocessing.get_context("forkserver")
# Not service.http.app, nor what loads it: the number that request ids begin with is made in each process.
CONTEXT.set_forkserver_preload(
    [
        *("fastapi.openapi.utils", "httptools", "prometheus_client", "pytest", "rich", "uvicorn", "uvloop"),
        *("service.commands.cli", "service.commands.client", "service.http.streams", "service.http.openapi"),
        *("service.learning.crosscheck", "service.watching.live", "service.http.page", "service.watching.past"),
        "core.auto",
    ]
)


def serve(folder: Path, *flags: str) -> list[str]:
    """The arguments that start a service on a data folder, on a free port, that stops at once when it is asked to."""
    return ["serve", "--data", str(folder), "--port", "0", "--drain-seconds", "0", *flags]


def clean_environment() -> dict[str, str]:
    """The environment of the tests, without settings of a service."""
    return {name: value for name, value in os.environ.items() if not name.startswith("LOGSTEP_")}


PR_SET_PDEATHSIG, PR_SET_PTRACER, PR_SET_PTRACER_ANY = 1, 0x59616D61, ctypes.c_ulong(-1)  # linux/prctl.h
_LOOK = threading.Lock()
"""Held to look how processes ended, as a start does too: it can be read once, and who comes second is told 255."""


class Logstep:
    """A process of `logstep`; what a test needs of `subprocess.Popen`."""

    def __init__(
        self,
        *arguments: str,
        log: Path,
        env: Mapping[str, str],
        cwd: Path | None = None,
        file_limit: int | None = None,
        tracing: Sequence[str] = (),
        first: Callable[[], None] | None = None,
    ) -> None:
        """`file_limit`: no file may grow beyond so many bytes; writing there fails, as on a broken disk. `tracing`: a
        command of strace that takes hold of the process before it does anything. `first`: what the process is to do
        before the command."""
        self.args = ("logstep", *arguments)
        log.write_bytes(b"")
        what = (arguments, log, dict(env), cwd or Path.cwd(), file_limit, bool(tracing), first)
        self._process = CONTEXT.Process(target=_become, args=what)
        with _LOOK:
            self._process.start()
        assert self._process.pid is not None
        self.pid = self._process.pid
        self._tracer: subprocess.Popen[bytes] | None = None
        if tracing:
            try:
                self._tracer = _take_hold(self.pid, tracing)
            except BaseException:  # stopped as it is, it would never end, and the tests would wait for it
                self.kill()
                raise

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
        if self._tracer is not None:
            self._tracer.wait(timeout)  # then it has written all that it saw
        return code

    def send_signal(self, number: signal.Signals) -> None:
        if self.returncode is None:
            with suppress(ProcessLookupError):  # it has ended just now
                os.kill(self.pid, number)

    def kill(self) -> None:
        self.send_signal(signal.SIGKILL)


def children(pid: int) -> set[int]:
    """The processes that one has started, and that run."""
    found: set[int] = set()
    with suppress(OSError):  # it has ended, or a thread of it
        for thread in Path(f"/proc/{pid}/task").iterdir():
            found |= {int(child) for child in (thread / "children").read_text().split()}
    return found


OUTLIVE_A_TEST: set[int] = set()
"""Processes that a test started for later ones too; a fixture of the session ends them."""


def started() -> set[int]:
    """The processes that these tests have started themselves, by forking too, and that run, for one test."""
    own = children(os.getpid())
    helpers = {pid for pid in own if b"from multiprocessing." in _command(pid)}
    return (own - helpers).union(*map(children, helpers)) - OUTLIVE_A_TEST


def _command(pid: int) -> bytes:
    try:
        return Path(f"/proc/{pid}/cmdline").read_bytes()
    except OSError:  # it has ended
        return b""


def end(pid: int) -> None:
    """Kill a process, and those that it has started."""
    below = children(pid)
    with suppress(ProcessLookupError):
        os.kill(pid, signal.SIGKILL)
    for child in below:
        end(child)
    eventually(lambda: not _command(pid), "a process to end")


def elsewhere(function: Callable[..., T], *arguments: Any) -> T:
    """What a function gives in a process of its own."""
    with ProcessPoolExecutor(1, CONTEXT) as pool:
        with _LOOK:
            waits = pool.submit(function, *arguments)
        return waits.result()


def _take_hold(pid: int, tracing: Sequence[str]) -> subprocess.Popen[bytes]:
    """Trace a process that has stopped itself, and let it go on."""
    status = Path(f"/proc/{pid}/status")
    eventually(lambda: "State:\tT" in status.read_text(), "the process to stop itself")
    tracer = subprocess.Popen([*tracing, "-p", str(pid)], stderr=subprocess.DEVNULL)
    eventually(lambda: f"TracerPid:\t{tracer.pid}\n" in status.read_text(), "strace to take hold of it")
    os.kill(pid, signal.SIGCONT)
    return tracer


def _become(
    arguments: Sequence[str],
    log: Path,
    env: dict[str, str],
    cwd: Path,
    file_limit: int | None,
    traced: bool,
    first: Callable[[], None] | None,
) -> None:
    """Do what the command does, in a process that has done nothing yet."""
    os.setsid()
    if sys.platform == "linux":  # it ends when the one that it was forked from does, as that ends with the tests
        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
    if traced:
        # Where a process may trace its own children alone, as on Ubuntu, and this is none of strace's, it is let in.
        ctypes.CDLL(None).prctl(PR_SET_PTRACER, PR_SET_PTRACER_ANY)
        os.kill(os.getpid(), signal.SIGSTOP)
    os.chdir(cwd)
    os.environ.clear()
    os.environ.update(env)
    with log.open("ab") as file:
        os.dup2(file.fileno(), 1)
        os.dup2(file.fileno(), 2)
    if file_limit is not None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (file_limit, file_limit))
    if first is not None:
        first()
    from service.commands import cli

    sys.argv = ["logstep", *arguments]
    sys.exit(cli.main(list(arguments)))
