"""Recovery: bring each model to the end of its log, from its newest whole snapshot."""

from __future__ import annotations

import logging
import struct
from collections.abc import Callable, Iterable

from core.arithmetic import arithmetic
from service import errors, failures
from service.learning.model import NOT_A_STATE, Model
from service.settings import Settings
from service.storage.log import LogReader
from service.storage.store import Store

logger = logging.getLogger("logstep")

TOLD = 5
"""Most models that a message names."""


def recover(store: Store, settings: Settings, given_up: Callable[[], bool]) -> dict[str, Model]:
    """The models of a store that was just opened, by name, each at the end of its log. For given_up see Recovery."""
    models = Recovery(store.log, settings, given_up).models()
    note_arithmetic(store, models.values())
    return models


def note_arithmetic(store: Store, models: Iterable[Model]) -> None:
    """Record and log which models go on here with weights from a machine that computes otherwise.

    Recovery has just learned the events after each model's snapshot. Those up to it were learned before.
    """
    changed: dict[int, int] = {}
    told: list[str] = []
    for model in models:
        before = [row for row in store.log.arithmetic(model.stored.key) if row.seq <= model.snapshot_seq]
        if not before or before[-1].digest != arithmetic():
            changed[model.stored.key] = model.snapshot_seq
            if model.learner.seq:
                told.append(f"{model.name} from seq {model.snapshot_seq + 1} on")
    if not changed:
        return
    if told:
        logger.warning(
            "this machine's C library rounds exp, log or pow otherwise than where %d model(s) learned before: %s%s. "
            "They go on from their weights. What they learn here may have other last bits than it would have there, "
            "and so may a replay of their logs. The cross-check and `logstep inspect` say from where",
            len(told), ", ".join(told[:TOLD]), ", ..." if len(told) > TOLD else "",
        )  # fmt: skip
    try:
        store.note_arithmetic(changed)
    except errors.DiskFull:
        logger.warning("the disk is full, so this was not noted; the next start notes it")


class Recovery:
    """Reads the models of a store that was just opened. Nothing else may use the store meanwhile.

    given_up: called now and then from the reading thread. When it returns true, recovery stops, and its result is void.
    """

    def __init__(self, log: LogReader, settings: Settings, given_up: Callable[[], bool]) -> None:
        self._log = log
        self._settings = settings
        self._given_up = given_up

    def models(self) -> dict[str, Model]:
        """Each model, by name. Replay uses the same code as learning."""
        models = {}
        try:
            self._log.check_models()
            newest = self._log.newest()
            for stored in self._log.models():
                model = models[stored.name] = Model(stored, self._settings.window)
                self._replay(model, newest.get(stored.key, 0))
                if self._given_up():
                    return {}
            self._log.index.check()  # last, because a gap says more
        except (TypeError, ValueError, OverflowError, struct.error) as error:
            # A damaged page can replace a number or a text by anything.
            raise self._damaged(f"it cannot be read: {type(error).__name__}: {error}") from error
        return models

    def _replay(self, model: Model, newest: int) -> None:
        """Load the model's newest whole snapshot, then learn the batches after it."""
        key = model.stored.key
        names = self._log.names(key)
        last = max(self._log.last_seq(key), newest)
        self._load_snapshot(model, names, last)
        resumed = self._log.resumed(key)
        if model.watch is not None and resumed > model.watch.resumed_at:
            model.watch.resume(resumed)
        if (gone := self._log.gone(key)) > model.learner.seq:
            reason = f"it has no whole snapshot, and its events up to seq {gone} are no longer in the log"
            raise self._damaged(f"model {model.name!r}: {reason} (--keep-events)")
        model.limit(self._settings.max_event_features, self._settings.max_name_characters)
        model.learner.features.extend(names[model.learner.n_features :])
        for batch in self._log.batches(key, after=model.learner.seq):
            if len(batch.columns) and not 0 <= batch.columns.min() <= batch.columns.max() < len(names):
                raise self._damaged("an event has a feature without a name")
            if self._given_up():
                return
            model.learn(batch)
            model.stepped(batch)
        if model.learner.seq != last:
            raise self._damaged(f"the events of model {model.name!r} from seq {model.learner.seq + 1} on are missing")
        waiting = self._log.waiting
        model.recovered(waiting.count(key), waiting.dropped(key), waiting.last_number(key))

    def _load_snapshot(self, model: Model, names: list[str], last: int) -> None:
        """Bring the model to its newest whole snapshot, and log which newer ones are not."""
        for seq in self._log.snapshots.seqs(model.stored.key):
            if seq > last:
                raise self._damaged(f"the events from seq {last + 1} on are missing, but a snapshot is at seq {seq}")
            try:
                state = self._log.snapshots.state(model.stored.key, seq)
                known = state["learner"]["n_features"]
                if known > len(names):
                    raise self._damaged(f"the snapshot at seq {seq} has more features than there are names")
                model.load(seq, state, names[:known], self._settings.window)
            except failures.LogDamaged as damage:
                logger.warning("model %r: %s; using the snapshot before it", model.name, damage.reason)
            except NOT_A_STATE as error:
                reason = f"the snapshot at seq {seq} is not a valid state ({type(error).__name__}: {error})"
                logger.warning("model %r: %s; using the snapshot before it", model.name, reason)
            else:
                return

    def _damaged(self, reason: str) -> failures.LogDamaged:
        return failures.LogDamaged(folder=str(self._settings.data), reason=reason)
