"""What the engine is doing between its start and its end: the states, what each allows, and what follows what."""

from __future__ import annotations

import asyncio
from enum import Enum, StrEnum, auto
from typing import Self

from service import errors

STREAMS_END = "stopping, and streams end here"


class EngineState(StrEnum):
    """The states, by the words that /readyz, the metrics and the live streams tell, and what each allows."""

    # fmt: off
    #             word         recovering accepts stopping
    STARTING   = "starting",   True,      False,  False
    RECOVERING = "recovering", True,      False,  False
    READY      = "ready",      False,     True,   False
    DRAINING   = "draining",   False,     True,   True
    STOPPED    = "stopped",    False,     False,  True
    FAILED     = "failed",     False,     False,  True

    recovering: bool
    """The models are not at the end of their logs yet."""
    accepts: bool
    """Requests to learn are let in."""
    stopping: bool
    """Connections must not be kept."""

    def __new__(cls, word: str, recovering: bool, accepts: bool, stopping: bool) -> Self:
        state = str.__new__(cls, word)
        state._value_ = word
        state.recovering, state.accepts, state.stopping = recovering, accepts, stopping
        return state

    @property
    def ready(self) -> bool:
        """Whether a load balancer may send requests here."""
        return self is EngineState.READY

    @property
    def over(self) -> bool:
        """Whether the writer ends when nothing waits."""
        return self.stopping and not self.accepts


class On(Enum):
    """What leads from one state to another."""

    START = auto()
    RECOVERED = auto()
    DRAIN = auto()
    STOP = auto()
    FAIL = auto()


_S = EngineState
_NEXT = {
    _S.STARTING: {On.START: _S.RECOVERING, On.STOP: _S.STOPPED, On.FAIL: _S.FAILED},
    _S.RECOVERING: {On.RECOVERED: _S.READY, On.STOP: _S.STOPPED, On.FAIL: _S.FAILED},
    _S.READY: {On.DRAIN: _S.DRAINING, On.STOP: _S.STOPPED, On.FAIL: _S.FAILED},
    _S.DRAINING: {On.STOP: _S.STOPPED, On.FAIL: _S.FAILED},
    _S.STOPPED: {On.FAIL: _S.FAILED},
    _S.FAILED: {},
}
"""What is not here changes nothing. `stopped` begins when the engine is told to stop: it finishes what it has."""


def after(state: EngineState, on: On) -> EngineState:
    """The state that follows."""
    return _NEXT[state].get(on, state)


class Lifecycle:
    """The engine's state, which changes only here, and why it failed."""

    def __init__(self) -> None:
        self.state = EngineState.STARTING
        self.failure: errors.LogstepError | None = None
        self.streams_end = asyncio.Event()
        """Set when the service stops: streams then end between two pieces."""

    def move(self, on: On) -> bool:
        """Go to the state that follows. Whether it is another."""
        before, self.state = self.state, after(self.state, on)
        return self.state is not before

    def fail(self, failure: errors.LogstepError) -> bool:
        """Go to `failed`. Whether this was the first failure; the others are not told."""
        if not self.move(On.FAIL):
            return False
        self.failure = failure
        return True

    def check_accepts(self) -> None:
        """Raise what keeps requests to learn out: NotReady, or the failure."""
        if self.state.accepts:
            return
        if self.state.recovering:
            raise errors.NotReady(state="recovering: replaying its log")
        raise self.failure or errors.NotReady(state="stopping")

    def check_streams(self) -> None:
        """Raise NotReady when streams end."""
        if self.streams_end.is_set():
            raise errors.NotReady(state=STREAMS_END)


def mistake() -> errors.LogstepError:
    """The answer to a request that met a mistake in logstep itself."""
    return errors.StorageFailed(reason="a mistake in logstep itself; its log says more")
