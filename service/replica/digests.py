"""The safety net: nodes compare digests of what they predicted. One that differs replays its log, and stops if it was
wrong.

    this node             the other differs                 the other differs, and has replayed its log
    is sure               replays its log                   the same, and is challenged
    replays its log       waits                             is challenged
    was right until then  nothing: the other will stop      stops: their logs differ

A node whose replay gives other predictions than it made was wrong: it stops. A node whose replay gives the same was
right: it writes a record that says so, and the other looks at itself. If the other has said the same of itself, their
logs differ, and the node stops.
"""

from __future__ import annotations

import asyncio
import logging
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

import msgspec

from service import failures
from service.clock import Clock
from service.learning.chores import Chore
from service.learning.disk import Disk
from service.learning.model import Model
from service.learning.models import Models
from service.learning.progress import Progress
from service.replica.outbox import Outbox
from service.replica.own_log import digest_of_log
from service.replica.records import Do, PoisonError
from service.storage.positions import Position

logger = logging.getLogger("logstep")

EVERY_SECONDS = 10.0
"""How often a node writes its digests of what has learned enough since."""


class _Told(msgspec.Struct, array_like=True):
    """A digest after so many events, by a node that had applied the model's partition up to that record. sure: whether
    that node has replayed its log since it met another digest."""

    seq: int
    crc: int
    record: int
    sure: bool = False


@dataclass(slots=True)
class _Doubt:
    """A replay of a model's log up to a seq, because another node differs. over: it gave what this node predicted."""

    seq: int
    ours: int
    replay: asyncio.Task[None]
    challenged: bool
    over: bool = False


class Digests(Chore):
    """Writes the newest digest of each model in a tick, unless another node has. ended: called with each replay of a
    log that has ended, also in an error."""

    def __init__(
        self,
        models: Models,
        disk: Disk,
        clock: Clock,
        outbox: Outbox,
        progress: Progress,
        folder: Path,
        ended: Callable[[asyncio.Task[None]], None],
    ) -> None:
        super().__init__(models, disk, clock)
        self._outbox = outbox
        self._progress = progress
        self._folder = folder
        self._ended = ended
        self._compared: dict[str, int] = {}  # model -> the seq of the last comparison
        self._started: Mapping[int, Position] = {}
        self._begun: dict[str, int] = {}  # model -> the record that made it anew
        self._doubts: dict[str, _Doubt] = {}
        self._next = -math.inf

    def due(self) -> float:
        return self._next - self._clock.steady()

    async def step(self) -> None:
        self._next = self._clock.steady() + EVERY_SECONDS
        for model in self._models:
            mark = model.digest.newest
            if mark is not None and mark.seq > self._compared.get(model.name, 0):
                self._tell(model)

    def _tell(self, model: Model, *, sure: bool = False) -> None:
        mark = model.digest.newest
        if mark is not None:
            known = self._progress.stepped.get(self._outbox.partition_of(model.name))
            told = _Told(*mark, -1 if known is None else known.record, sure)
            self._outbox.announce(Do.TICK, model.name, msgspec.json.encode(told))

    def begin_with(self, positions: Mapping[int, Position]) -> None:
        """The node starts there. It does not know which models were made anew before, so it looks at no digest of a
        node that was not as far."""
        self._started = positions

    def begin(self, model: str, record: int) -> None:
        """A record made a model anew: what was told of an earlier one of that name says nothing."""
        self._begun[model] = record
        self._compared.pop(model, None)
        self._forget(model)

    def stop(self) -> None:
        """End all replays."""
        for model in list(self._doubts):
            self._forget(model)

    def _forget(self, model: str) -> None:
        if (doubt := self._doubts.pop(model, None)) is not None:
            doubt.replay.cancel()

    def compare(self, model: Model, value: bytes, record: int) -> None:
        """Compare with the digest of a tick, which is that record. All that its writer had learned is learned here.
        NodesDiffer if it is sure that their logs differ. PoisonError if no node can have written the tick."""
        theirs = msgspec.json.decode(value, type=_Told)
        if theirs.record >= record:
            raise PoisonError(f"a node that has applied record {theirs.record} did not write record {record}")
        started = self._started.get(self._outbox.partition_of(model.name))
        if theirs.record < max(self._begun.get(model.name, -1), -1 if started is None else started.record):
            return
        self._compared[model.name] = max(theirs.seq, self._compared.get(model.name, 0))
        if theirs.seq > model.learner.seq:
            reason = f"it has {model.learner.seq} events of the model {model.name!r}, and another node {theirs.seq}"
            raise failures.NodesDiffer(reason=reason)
        ours = model.digest.at(theirs.seq)
        if ours is not None and ours != theirs.crc:
            self._differ(model, theirs, ours)

    def _differ(self, model: Model, theirs: _Told, ours: int) -> None:
        doubt = self._doubts.get(model.name)
        if doubt is None or (doubt.over and doubt.seq < theirs.seq):
            logger.warning(
                "another node predicts otherwise by the model %r, up to seq %d; this node replays its log to see which "
                "of the two is wrong",
                model.name, theirs.seq,
            )  # fmt: skip
            replay = asyncio.create_task(self._replay(model))
            replay.add_done_callback(self._ended)
            self._doubts[model.name] = _Doubt(theirs.seq, ours, replay, theirs.sure)
        elif theirs.sure and doubt.over:
            raise _logs_differ(model, theirs.seq)
        else:
            doubt.challenged = doubt.challenged or theirs.sure

    async def _replay(self, model: Model) -> None:
        """See whether the log gives what this node predicted. NodesDiffer if it does not, or both nodes' logs do."""
        await asyncio.sleep(0)  # until the doubt is noted
        doubt = self._doubts[model.name]
        with model.hold():
            by_log = await digest_of_log(self._folder, model.stored, doubt.seq)
        if by_log != doubt.ours:
            told = f"its predictions by the model {model.name!r} up to seq {doubt.seq} are not those that its log gives"
            raise failures.NodesDiffer(reason=f"{told}, so its memory or processor made a mistake")
        doubt.over = True
        logger.warning("this node is right up to seq %d of the model %r: its log gives the same", doubt.seq, model.name)
        self._tell(model, sure=True)
        if doubt.challenged:
            raise _logs_differ(model, doubt.seq)


def _logs_differ(model: Model, seq: int) -> failures.NodesDiffer:
    return failures.NodesDiffer(reason=f"they learned other events of the model {model.name!r} up to seq {seq}")
