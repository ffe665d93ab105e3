"""An engine inside a test, and an oracle that replays a log in a process of its own.

The oracle is plain: it reads the log's rows and gives their events, one at a time and by name, to `Learner.learn_one`.
"""

from __future__ import annotations

import asyncio
import math
import shutil
import sqlite3
import sys
import time
from collections.abc import AsyncIterator, Iterator, Sequence
from contextlib import asynccontextmanager, closing
from functools import cache
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
from forked import elsewhere

from core import Learner, Spec
from core.batch import Batch
from service import clock, errors
from service.clock import SYSTEM
from service.learning import chores
from service.learning.engine import Engine
from service.learning.request import Duplicate, Kept, LateLabel, Learned, Refused, Result
from service.settings import Settings
from service.storage.id_pieces import PIECES, Piece
from service.storage.ids import IdKind
from service.storage.log import LogReader

# -- an engine inside the test

CLOCK = SYSTEM
"""What engines are told the time by; see Clock."""


def new_engine(folder: Path, **settings: Any) -> Engine:
    """An engine on a folder, which is made if it is not there; not started."""
    folder.mkdir(exist_ok=True)
    return Engine(Settings(data=folder, **settings) if settings else defaults(folder), CLOCK)


_DEFAULTS = cache(Settings)


def defaults(folder: Path) -> Settings:
    """The settings of a service that is given none. To read them takes as long as to recover a small folder."""
    return _DEFAULTS().model_copy(update={"data": folder})


async def started(folder: Path, **settings: Any) -> Engine:
    """An engine on a folder that has recovered, or failed to."""
    engine = new_engine(folder, **settings)
    await recover(engine)
    return engine


async def recover(engine: Engine) -> None:
    """Start an engine, and wait until it has recovered, or failed to."""
    await asyncio.wait([engine.start()])


async def write_snapshots(engine: Engine) -> None:
    """A snapshot of every model that has learned since its last, now."""
    engine.chores.rest(math.inf)  # else it would write some of them at the same time
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(chores, "LAST_SNAPSHOT_SECONDS", 1e-12)
        while await engine.snapshots.last_step():
            pass
    engine.chores.rest(0)


@asynccontextmanager
async def running_engine(folder: Path, **settings: Any) -> AsyncIterator[Engine]:
    """An engine that is ready, stopped at the end."""
    engine = await started(folder, **settings)
    try:
        assert engine.lifecycle.state == "ready", engine.lifecycle.failure
        yield engine
    finally:
        await engine.stop(seconds=0)


class Clock:
    """The time for engines that a test makes from now on. The time of day can be set; both can pass.

    It stands in the place of the module `time` in `modules`.
    """

    perf_counter = staticmethod(time.perf_counter)

    def __init__(self, monkeypatch: pytest.MonkeyPatch, *modules: ModuleType) -> None:
        self.ahead = self.passed = 0.0
        monkeypatch.setattr(sys.modules[__name__], "CLOCK", clock.Clock(self.time, self.monotonic))
        for module in modules:
            monkeypatch.setattr(module, "time", self)

    def time(self) -> float:
        return time.time() + self.ahead

    def time_ns(self) -> int:
        return time.time_ns() + int(self.ahead * 1e9)

    def monotonic(self) -> float:
        return time.monotonic() + self.passed

    def let_pass(self, seconds: float, *engines: Engine) -> None:
        """Let time pass for engines."""
        self.passed += seconds
        self.advance(seconds, *engines)

    def advance(self, seconds: float, *engines: Engine) -> None:
        """Set it forward (or back), and wake the engines that sleep until a time that has come."""
        self.ahead += seconds
        for engine in engines:
            engine.queue.work.set()


# -- data folders


def copied(folder: Path, to: Path) -> Path:
    """A copy of a data folder as it stands, also while it is open but not writing: what a kill would leave behind."""
    shutil.copytree(folder, to, ignore=shutil.ignore_patterns("lock", "*-shm"))
    return to


def ids_in(folder: Path) -> dict[tuple[int, str], tuple[int, ...]]:
    """(model, id) -> what it stands for, as in the table `ids`, of every id in the file. None may be there twice."""
    found: dict[tuple[int, str], tuple[int, ...]] = {}
    with closing(sqlite3.connect(f"file:{folder}/log.db?mode=ro", uri=True)) as db:
        for model, id_, *rest in db.execute("SELECT * FROM ids"):
            found[model, id_] = tuple(rest)
        for model, ids, payload in db.execute(PIECES):
            piece = Piece.decode(ids, payload)
            assert piece is not None
            for id_, seq, mark, label in zip(piece.ids, *piece.numbers[1:].tolist(), strict=True):
                assert (model, id_) not in found, id_
                found[model, id_] = seq, mark, IdKind.LEARNED, label
    return found


class Told:
    """A result by columns: the events and labels that were learned or are duplicates, the predictions, the error."""

    def __init__(self, result: Result) -> None:
        events = [outcome for outcome in result if isinstance(outcome, Learned | Duplicate)]
        self.seq = [event.seq for event in events]
        self.p = [event.p if isinstance(event, Learned) else None for event in events]
        self.loss = [event.loss if isinstance(event, Learned) else None for event in events]
        self.duplicate = [isinstance(event, Duplicate) for event in events]
        self.late_labels: dict[int, LateLabel] = {
            i: event.late for i, event in enumerate(events) if isinstance(event, Learned) and event.late is not None
        }
        self.predicted = [outcome for outcome in result if isinstance(outcome, Kept)]
        refused = [outcome.error for outcome in result if isinstance(outcome, Refused)]
        assert not any(isinstance(outcome, Refused) for outcome in result[:-1]), "nothing follows what is refused"
        self.error: errors.LogstepError | None = refused[0] if refused else None


def told(result: Result | Told) -> Told:
    """A result by columns."""
    return result if isinstance(result, Told) else Told(result)


def events_of(batch: Batch, names: Sequence[str]) -> Iterator[tuple[dict[str, float], int, float]]:
    """A batch's events as a caller would have sent them: x by name, y, weight."""
    offsets, columns, values = batch.offsets.tolist(), batch.columns.tolist(), batch.values.tolist()
    for i, (y, weight) in enumerate(zip(batch.labels.tolist(), batch.weights.tolist(), strict=True)):
        event = slice(offsets[i], offsets[i + 1])
        yield dict(zip([names[c] for c in columns[event]], values[event], strict=True)), y, weight


def logged_events(folder: Path, model: str = "default") -> list[tuple[dict[str, float], int, float]]:
    """Every event that is in the log of a model, in order of seq."""
    log = LogReader(folder)
    try:
        (key,) = [stored.key for stored in log.models() if stored.name == model]
        names = log.names(key)
        return [event for batch in log.batches(key, after=log.gone(key)) for event in events_of(batch, names)]
    finally:
        log.close()


# -- the oracle


def replay(folder: Path) -> dict[str, dict[str, Any]]:
    """For each model what its log comes to: seq, sha256."""
    log = LogReader(folder)
    replayed: dict[str, dict[str, Any]] = {}
    for stored in log.models():
        spec = dict(stored.spec)
        hashed = spec.pop("hash_bits") is not None  # the names in the log are hashes already
        learner = Learner(Spec.from_dict(spec))
        names = log.names(stored.key)
        if hashed:
            assert all(name.startswith("#") for name in names)
        if log.gone(stored.key):  # then its oldest snapshot says what was learned from the events that are gone
            state = log.snapshots.state(stored.key, log.snapshots.seqs(stored.key)[-1])["learner"]
            learner = Learner.from_state({**state, "spec": spec, "names": names[: state["n_features"]]})
        for batch in log.batches(stored.key, after=learner.seq):
            for x, y, weight in events_of(batch, names):
                learner.learn_one(x, y, weight)
        replayed[stored.name] = {"seq": learner.seq, "sha256": learner.sha256()}
    log.close()
    return replayed


def replayed_elsewhere(folder: Path) -> dict[str, dict[str, Any]]:
    """`replay` in a process of its own."""
    return elsewhere(replay, folder)
