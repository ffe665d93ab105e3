"""The cross-check of a served model: river learns its log, in a child process.

The child reads the log itself, read-only. From the service it gets only the weights to check. It reports whether a
replay of the log gives those weights bit for bit, and how far they are from river's.

The first line of its standard input is a JSON object (folder, model, key, seq, and how many bytes follow). Then come
the weights and the bias as little-endian float64. It prints the report as JSON. When its input closes, it ends.
"""

from __future__ import annotations

import contextlib
import json
import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import msgspec
import numpy as np

from core.spec import Spec
from service import errors, failures
from service.children import ChildFailedError, answer_of, end_with_parent
from service.learning.engine import Engine
from service.storage.log import LogReader, StoredModel, learned_elsewhere

if TYPE_CHECKING:
    from core.parity import CrossCheck

ATTEMPTS = 3
"""How often to try to read a log while a service drops its beginning."""


class CrossChecks:
    """Runs cross-checks for a service, one at a time."""

    def __init__(self, engine: Engine, folder: Path) -> None:
        self._engine = engine
        self._folder = folder
        self._busy = False

    async def run(self, name: str) -> dict[str, Any]:
        """The report for a model at its seq now."""
        model = self._engine.model(name)
        require_twin(model.learner.spec)
        if self._busy:
            raise errors.CrossCheckBusy()
        self._busy = True
        try:
            learner = model.learner
            state = np.append(learner.weights, learner.bias).astype("<f8").tobytes()
            about = {"folder": str(self._folder), "model": name, "key": model.stored.key, "seq": learner.seq}
            question = json.dumps({**about, "bytes": len(state)}).encode() + b"\n" + state
            with model.hold():
                report = msgspec.json.decode(await answer_of("service.learning.crosscheck", question))
        except ChildFailedError as failed:
            raise errors.CrossCheckFailed(reason=str(failed)) from None
        finally:
            self._busy = False
        if "unknown_model" in report:
            raise errors.UnknownModel(model=name)  # deleted meanwhile
        return {"model": name, **report}


def require_twin(spec: Spec) -> None:
    """Raise NoRiverTwin if river has no equal of a spec."""
    if spec.rule == "auto":
        raise errors.NoRiverTwin(reason="auto is many learners at once")
    if spec.lag is False:
        raise errors.NoRiverTwin(reason="its ftrl makes weights with a lag, but this spec says lag: false")


def check(
    folder: Path, name: str, key: int | None = None, seq: int | None = None, served: bytes = b""
) -> dict[str, Any]:
    """The report for a model of a data folder, up to a seq (default: its whole log).

    `served` has the weights in column order, then the bias, as little-endian float64. Without it, the replay's own
    weights are checked. `key` tells the model from a later one with the same name.
    """
    log = LogReader(folder)
    try:
        stored = next((m for m in log.models() if m.name == name and key in (None, m.key)), None)
        if stored is None:
            raise errors.UnknownModel(model=name)
        require_twin(Spec.from_dict(stored.spec))
        replay = _replayed(log, stored, seq)
        elsewhere = learned_elsewhere(log.arithmetic(stored.key), replay.learner.seq)
    finally:
        log.close()
    learner = replay.learner
    weights = np.frombuffer(served, "<f8") if served else np.append(learner.weights, learner.bias)
    if seq not in (None, learner.seq) or len(weights) != learner.n_features + 1:
        raise errors.CrossCheckFailed(
            reason=f"the log, with {learner.seq} events and {learner.n_features} features, is not the served model's"
        )
    report = replay.compare(dict(zip(learner.names, weights[:-1].tolist(), strict=True)), float(weights[-1]))
    replayed, begins = np.append(learner.weights, learner.bias), report.from_seq + 1
    return {
        "seq": learner.seq,
        **report._asdict(),
        "replay_equal": replayed.tobytes() == weights.astype(np.float64).tobytes(),
        "sha256": learner.sha256(),
        "bits_may_differ_from": next((max(first, begins) for first, last in elsewhere if last >= begins), None),
    }


def _replayed(log: LogReader, stored: StoredModel, seq: int | None) -> CrossCheck:
    """The log up to a seq, learned on both sides. It tries again if a service drops the log's beginning meanwhile."""
    reason = ""
    for _ in range(ATTEMPTS):
        try:
            replay = _beginning(log, stored, seq)
            for batch in log.batches(stored.key, after=replay.learner.seq, up_to=seq):
                replay.learn_batch(batch)
        except failures.EventsGone as gone:
            reason = gone.reason
        else:
            return replay
    raise errors.CrossCheckFailed(reason=reason)


def _beginning(log: LogReader, stored: StoredModel, seq: int | None) -> CrossCheck:
    """Both sides at the beginning of the log: new, or at the oldest snapshot if the first events are gone."""
    from core.parity import CrossCheck  # only this needs river, which is slow to import

    gone, names = log.gone(stored.key), log.names(stored.key)
    if not gone:
        check = CrossCheck(Spec.from_dict(stored.spec))
        check.learner.features.extend(names)
        return check
    for snapshot_seq in reversed(log.snapshots.seqs(stored.key)):
        if seq is not None and snapshot_seq > seq:
            break
        with contextlib.suppress(failures.LogDamaged):  # or a newer snapshot replaced it meanwhile
            state = log.snapshots.state(stored.key, snapshot_seq)["learner"]
            known = state["n_features"]
            check = CrossCheck.from_state({**state, "names": names[:known]})
            check.learner.features.extend(names[known:])
            return check
    reason = f"no snapshot is whole, and the events up to seq {gone} are no longer in the log (--keep-events)"
    raise failures.EventsGone(folder=str(log.db.folder), reason=reason)


def main() -> int:
    header = json.loads(sys.stdin.buffer.readline())
    served = sys.stdin.buffer.read(header["bytes"])
    end_with_parent(lambda: os._exit(1))
    try:
        report = check(Path(header["folder"]), header["model"], header["key"], header["seq"], served)
    except errors.UnknownModel:
        report = {"unknown_model": True}
    except errors.LogstepError as error:
        sys.stderr.write(f"{getattr(error, 'reason', error)}\n")
        return 1
    sys.stdout.write(json.dumps(report))
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
