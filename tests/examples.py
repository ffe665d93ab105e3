"""A data folder with some of everything, and what must come of it when it is opened, whatever happened to it."""

from __future__ import annotations

import random
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from processes import copied, running_engine, started, write_snapshots

from core import Spec
from service import errors
from service.events import Event, Label
from service.learning.engine import Engine

SPECS: dict[str, dict[str, Any]] = {
    "idle": {},
    "adam": {"rule": "adam", "scale": "standard"},
    "clicks": {"rule": "ftrl", "join": {"keep": "365d"}},
}
State = dict[str, tuple[int, str]]
"""seq and SHA-256 of each model."""


def some_events(first: int, count: int) -> list[Event]:
    """Events that teach something, with ids; features come up late."""
    numbers = random.Random(first)
    return [
        Event({"age": numbers.randrange(48) / 16, f"colour-{i % 7}": 1.0, f"late-{i // 30}": 0.5}, i % 2, f"event-{i}")
        for i in range(first, first + count)
    ]


def state_of(engine: Engine) -> State:
    return {model.name: (model.learner.seq, model.learner.sha256()) for model in engine.models}


@dataclass(frozen=True)
class Example:
    """A folder that was closed; the same as a kill would have left it, all in the write-ahead log; and what it has.

    history: the state after each commit, by the commit's number, and the sizes of the write-ahead log then.
    """

    closed: Path
    killed: Path
    state: State
    history: Mapping[int, State]
    sizes: Mapping[int, int]


async def make_example(below: Path) -> Example:
    """Four models, of which one stands still; ids, snapshots, predictions that wait and that were joined."""
    history: dict[int, State] = {}
    sizes: dict[int, int] = {}

    def note(engine: Engine) -> None:
        number, _ = engine.disk.store.log.db.log_end()
        history[number] = state_of(engine)
        sizes[number] = (below / "closed" / "log.db-wal").stat().st_size

    async with running_engine(below / "closed") as engine:
        for name, spec in SPECS.items():
            await engine.create(name, Spec.from_dict(spec))
        await engine.learn("idle", some_events(0, 5))
        for i in range(0, 120, 3):
            await engine.learn("default", some_events(i, 3))
            note(engine)
            if i % 2:
                await engine.learn("adam", some_events(i, 3))
                note(engine)
            if i % 15 == 0:
                clicks = engine.model("clicks")
                await engine.learn("clicks", [clicks.predict_to_keep(f"p{i}", {"a": 1.0, "z": i / 8})])
                note(engine)
            if i and i % 30 == 0:
                await engine.learn("clicks", [Label(f"p{i - 15}", 1)])
                note(engine)
            if i in (30, 60):
                await write_snapshots(engine)
        state = state_of(engine)
        copied(below / "closed", below / "killed")
    return Example(below / "closed", below / "killed", state, history, sizes)


async def opened(folder: Path) -> State | errors.LogstepError:
    """What a service has that starts on a folder, or why it does not start."""
    engine = await started(folder)
    try:
        if engine.lifecycle.state == "ready":
            return state_of(engine)
        assert engine.lifecycle.failure is not None
        return engine.lifecycle.failure
    finally:
        await engine.stop(seconds=0)


def flip(path: Path, place: int, bit: int = 0) -> None:
    """Flip one bit of a file."""
    data = bytearray(path.read_bytes())
    data[place] ^= 1 << bit
    path.write_bytes(data)
