"""Live streams: server-sent events for `GET /stream` and `GET /models/{model}/stream`.

Each tick makes one message for each channel that has viewers and has changed. All viewers of a channel get the same
bytes. There is no queue: once a viewer's last message is sent, it takes the newest. So a slow viewer misses messages
but costs no memory, and learning never waits for a viewer.
"""

from __future__ import annotations

import asyncio
import contextlib
import time
from abc import ABC, abstractmethod
from collections import deque
from collections.abc import Callable, Iterator
from typing import Any

import msgspec
from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from core.logistic import Floats
from core.weights import largest
from service import errors
from service.fairness import worked
from service.learning.engine import Engine
from service.learning.model import Model, worse_than_guessing
from service.learning.state import STREAMS_END
from service.learning.telemetry import Telemetry

TICK_SECONDS = 0.25
OVERVIEW_SECONDS = 1.0
HEARTBEAT_SECONDS = 15.0
CHECK_SECONDS = 1.0
"""How often an idle stream checks that its viewer may still watch."""
WEIGHTS_SECONDS = 1.0
"""How often the largest weights are found; for a million weights it takes a millisecond."""
REMEMBERED_SECONDS = 30.0
"""How often the weights are copied. Movement is measured from the copy before the last: one to two such periods."""
SHARE_OF_THE_LOOP = 0.04
"""Largest share of the loop's time for making messages. With more to watch, messages come less often."""
VIEWER_SECONDS = 0.005
"""Pause per viewer. A hundred viewers get two messages a second each, and together cost as much as fifty."""
LARGEST, MOVED = 20, 10
SHOWN_MODELS = 100
SPARK = 60
"""Most points of the curve in a row of the overview."""
Watched = str | frozenset[str] | None
"""What a viewer watches: a model, the models within a token's reach, or (None) all models."""
_HEARTBEAT = b": nothing new\n\n"


class _Commits:
    """Durations of the last commits, computed once a second for all channels."""

    def __init__(self, telemetry: Telemetry) -> None:
        self._telemetry = telemetry
        self._at = -1e9
        self._found: dict[str, float | None] = {}

    def now(self) -> dict[str, float | None]:
        if time.monotonic() - self._at >= 1.0:
            self._at = time.monotonic()
            p50, p99 = self._telemetry.commit_ms(0.5, 0.99)
            self._found = {"p50_ms": p50, "p99_ms": p99}
        return self._found


class Channel(ABC):
    """Something that viewers watch. `newest`: the latest message; `number`: messages so far."""

    pause = TICK_SECONDS

    def __init__(self, engine: Engine) -> None:
        self.engine = engine
        self.viewers = 0
        self.number = 0
        self.newest = b""
        self.standing = b""
        """The last message that is not a heartbeat, for new viewers."""
        self.ended = False
        self._changed = asyncio.Event()
        self._published_at = -1e9
        self._looked_at = -1e9

    async def look(self) -> None:
        """If it is time, publish what changed, or a heartbeat after a long silence."""
        now = time.monotonic()
        if now - self._looked_at < self.pause * 0.9:  # ticks are not exact to the millisecond
            return
        self._looked_at = now
        content = await self.content()
        if content is not None:
            self.standing = b"event: now\ndata: %b\n\n" % msgspec.json.encode(content)
            self._publish(self.standing)
        elif now - self._published_at > HEARTBEAT_SECONDS:
            self._publish(_HEARTBEAT)

    @abstractmethod
    async def content(self) -> dict[str, Any] | None:
        """The next message; None if nothing changed."""

    def end(self, last: bytes = b"") -> None:
        """End the channel with a last message."""
        self.ended = True
        self._publish(last)

    def _publish(self, message: bytes) -> None:
        self.newest, self.number, self._published_at = message, self.number + 1, time.monotonic()
        changed, self._changed = self._changed, asyncio.Event()
        changed.set()

    async def after(self, number: int) -> None:
        """Wait for a message after this one, or for the end."""
        while self.number == number and not self.ended:
            await self._changed.wait()


class _Rates:
    """Events and predictions a second, over the last one to two seconds."""

    def __init__(self) -> None:
        self._seen: deque[tuple[float, int, int]] = deque(maxlen=2)

    def at(self, now: float, learned: int, predicted: int) -> tuple[float, float]:
        if not self._seen or now - self._seen[-1][0] >= 1.0:
            self._seen.append((now, learned, predicted))
        then, learned_then, predicted_then = self._seen[0]
        seconds = now - then
        if seconds <= 0:
            return 0.0, 0.0
        return (learned - learned_then) / seconds, (predicted - predicted_then) / seconds


class _Weights:
    """The largest weights, and those that moved most recently."""

    def __init__(self) -> None:
        self._looked_at = -1e9
        self._copies: deque[tuple[float, Floats]] = deque(maxlen=2)
        self._found: dict[str, Any] = {"weights": [], "moved": []}

    async def of(self, engine: Engine, model: Model, now: float) -> dict[str, Any]:
        learner = model.learner
        if learner.auto is not None:
            return {**self._found, "learners": learner.auto.learners(), "alarms": learner.auto.alarms}
        if now - self._looked_at >= WEIGHTS_SECONDS:
            self._looked_at = now
            if not self._copies or now - self._copies[-1][0] >= REMEMBERED_SECONDS:
                async with engine.copying(learner) as long:
                    self._copies.append((now, await worked(long, learner.weights.copy)))
            self._found = self._find(learner.weights, learner.features.names, now)
        return self._found

    def _find(self, weights: Floats, names: list[str], now: float) -> dict[str, Any]:
        then, before = self._copies[0]
        return {
            "weights": [{"name": names[i], "weight": float(weights[i])} for i in largest(weights, LARGEST)],
            "moved": [
                {"name": names[i], "weight": float(weights[i]), "before": float(before[i]) if i < len(before) else 0.0}
                for i in largest(weights, MOVED, before)
            ],
            "moved_s": now - then,
        }


class _ModelChannel(Channel):
    """The channel of one model."""

    def __init__(self, engine: Engine, commits: _Commits, name: str) -> None:
        super().__init__(engine)
        self._commits = commits
        self._name = name
        self._model = engine.model(name)
        self._forget()

    def _forget(self) -> None:
        self._rates, self._weights = _Rates(), _Weights()
        self._told: tuple[Any, ...] = ()

    async def content(self) -> dict[str, Any] | None:
        try:
            model = self.engine.model(self._name)
        except errors.UnknownModel:
            self.end(b'event: gone\ndata: {"model":"%b"}\n\n' % self._name.encode())
            return None
        if model is not self._model:  # deleted and created again
            self._model = model
            self._forget()
        now = time.monotonic()
        learned_s, predicted_s = self._rates.at(now, model.learned, model.predicted)
        told = (
            self.engine.lifecycle.state,
            (model.learner.seq, model.predicted, model.waiting, model.snapshot_seq, model.dropped),
            (learned_s, predicted_s),
        )
        if told == self._told:
            return None
        self._told = told
        standing = model.standing()
        return {
            "t": time.time(),
            "model": model.name,
            "state": self.engine.lifecycle.state,
            "rule": model.learner.spec.rule,
            "seq": model.learner.seq,
            "learned_s": learned_s,
            "predicted_s": predicted_s,
            **standing,
            "commit": self._commits.now(),
            "calibration": standing["progressive"].pop("calibration"),
            **await self._weights.of(self.engine, model, now),
        }


class _Overview(Channel):
    """The channel of all models, or of those within a token's reach; of many, the ones that learned last."""

    pause = OVERVIEW_SECONDS

    def __init__(self, engine: Engine, reach: frozenset[str] | None) -> None:
        super().__init__(engine)
        self._reach = reach
        self._sparks: dict[Model, tuple[int, list[float]]] = {}  # at which seq, and the curve
        self._rates: dict[str, _Rates] = {}
        self._told: Any = None

    async def content(self) -> dict[str, Any] | None:
        now = time.monotonic()
        reached = [model for model in self.engine.models if self._reach is None or model.name in self._reach]
        models = _shown(reached)
        self._rates = {model.name: self._rates.get(model.name) or _Rates() for model in models}
        self._sparks = {model: self._sparks.get(model, (-1, [])) for model in models}
        rows = []
        for i, model in enumerate(models):
            rows.append(self._row(model, now))
            if i % 10 == 9:
                await asyncio.sleep(0)
        state = self.engine.lifecycle.state
        told = (state, rows)
        if told == self._told:
            return None
        self._told = told
        more = len(reached) - len(models)
        return {"t": time.time(), "state": state, "models": rows, **({"more": more} if more else {})}

    def _row(self, model: Model, now: float) -> dict[str, Any]:
        learned_s, predicted_s = self._rates[model.name].at(now, model.learned, model.predicted)
        scores = model.scores.brief()
        return {
            "model": model.name,
            "rule": model.learner.spec.rule,
            "seq": model.learner.seq,
            "learned_s": learned_s,
            "predicted_s": predicted_s,
            "loss": scores.log_loss,
            "base_rate_loss": scores.base_rate_loss,
            "loss_window": scores.loss_window,
            "base_rate_loss_window": scores.base_rate_loss_window,
            "accuracy": scores.accuracy,
            "accuracy_window": scores.accuracy_window,
            "worse_than_guessing": worse_than_guessing(model.learner.spec, scores),
            "state": self.engine.lifecycle.state,
            "spark": self._spark(model),
        }

    def _spark(self, model: Model) -> list[float]:
        """The windowed log losses of the model's curve."""
        seq, spark = self._sparks[model]
        if seq != model.learner.seq:
            spark = model.points(SPARK).loss_window.tolist()
            self._sparks[model] = model.learner.seq, spark
        return spark


def _shown(models: list[Model]) -> list[Model]:
    """Of many models, those that learned last, in order of creation."""
    if len(models) <= SHOWN_MODELS:
        return models
    last = sorted(models, key=lambda model: -model.learned_at)[:SHOWN_MODELS]
    return sorted(last, key=lambda model: model.stored.key)


class Live:
    """All channels, and the ticks, which run only while there are viewers."""

    def __init__(self, engine: Engine, max_viewers: int) -> None:
        self._engine = engine
        self._commits = _Commits(engine.telemetry)
        self._max_viewers = max_viewers
        self._channels: dict[Watched, Channel] = {}
        self._ticking: asyncio.Task[None] | None = None

    @property
    def viewers(self) -> int:
        return sum(channel.viewers for channel in self._channels.values())

    @contextlib.contextmanager
    def watching(self, watched: Watched) -> Iterator[Channel]:
        """Join a channel as a viewer, and leave it at the end."""
        if self._engine.lifecycle.streams_end.is_set():
            raise errors.NotReady(state=STREAMS_END)
        if self.viewers >= self._max_viewers:
            raise errors.TooManyViewers(limit=self._max_viewers)
        channel = self._channels.get(watched)
        if channel is None or channel.ended:
            channel = self._channels[watched] = self._open(watched)
        channel.viewers += 1
        if self._ticking is None:
            self._ticking = asyncio.create_task(self._tick())
        try:
            yield channel
        finally:
            channel.viewers -= 1
            if not channel.viewers and self._channels.get(watched) is channel:
                del self._channels[watched]

    def _open(self, watched: Watched) -> Channel:
        if isinstance(watched, str):
            return _ModelChannel(self._engine, self._commits, watched)
        self._engine.models.check_loaded()
        return _Overview(self._engine, watched)

    async def _tick(self) -> None:
        """Look at every channel a few times a second, until nobody watches or the service stops."""
        try:
            while self._channels and not self._engine.lifecycle.streams_end.is_set():
                started = time.perf_counter()
                for channel in list(self._channels.values()):
                    await channel.look()
                    await asyncio.sleep(0)
                spent = time.perf_counter() - started
                pause = max(TICK_SECONDS, spent / SHARE_OF_THE_LOOP, self.viewers * VIEWER_SECONDS)
                with contextlib.suppress(TimeoutError):
                    async with asyncio.timeout(pause):
                        await self._engine.lifecycle.streams_end.wait()
        finally:
            self._ticking = None
            for channel in self._channels.values():
                channel.end()


class EventStream(Response):
    """The reply: it ends when the viewer leaves or loses access, the model is deleted or the service stops."""

    def __init__(self, live: Live, watched: Watched, check: Callable[[Scope], None]) -> None:
        """`check`: raises an error once the viewer may no longer watch."""
        # The last header keeps nginx from buffering the messages.
        headers = {"content-type": "text/event-stream", "cache-control": "no-store", "x-accel-buffering": "no"}
        super().__init__(None, 200, headers)
        del self.headers["content-length"]
        self._live = live
        self._watched = watched
        self._check = check

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        with self._live.watching(self._watched) as channel:
            shown = asyncio.create_task(self._show(channel, scope, send))
            gone = asyncio.create_task(_disconnected(receive))
            try:
                await asyncio.wait((shown, gone), return_when=asyncio.FIRST_COMPLETED)
            finally:
                for task in (shown, gone):
                    task.cancel()
                await asyncio.gather(shown, gone, return_exceptions=True)

    async def _show(self, channel: Channel, scope: Scope, send: Send) -> None:
        await send({"type": "http.response.start", "status": self.status_code, "headers": self.raw_headers})
        if scope["method"] == "HEAD":
            await send({"type": "http.response.body", "body": b""})
            return
        number = channel.number
        await _send(send, b"retry: 2000\n\n" + channel.standing)
        while not channel.ended:
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(CHECK_SECONDS):
                    await channel.after(number)
            try:
                self._check(scope)
            except errors.LogstepError:
                break
            if channel.number != number:
                number = channel.number
                await _send(send, channel.newest)
        await send({"type": "http.response.body", "body": b""})


async def _send(send: Send, body: bytes) -> None:
    await send({"type": "http.response.body", "body": body, "more_body": True})


async def _disconnected(receive: Receive) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass
