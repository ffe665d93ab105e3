"""What a model must have predicted by its log: a replay in a child process, which reads the log itself.

Its standard input is a JSON object (folder, key, name, spec, seq), and it prints the digest at that seq.
"""

from __future__ import annotations

import contextlib
import os
import sys
from pathlib import Path

import msgspec

from service import errors, failures
from service.children import ChildFailedError, answer_of, end_with_parent
from service.fairness import NICE
from service.learning.model import NOT_A_STATE, Model
from service.storage.log import LogReader, StoredModel

WINDOW = 1
"""Of the scores, which are not asked for."""


class _Question(msgspec.Struct):
    folder: str
    model: StoredModel
    seq: int


async def digest_of_log(folder: Path, model: StoredModel, seq: int) -> int:
    """The digest that a replay of a model's log has at the seq of a mark. NodesDiffer if it cannot be known."""
    question = msgspec.json.encode(_Question(str(folder), model, seq)) + b"\n"
    try:
        return int(await answer_of("service.replica.own_log", question))
    except ChildFailedError as failed:
        reason = f"another node predicts otherwise by the model {model.name!r}, and its log cannot tell who is right"
        raise failures.NodesDiffer(reason=f"{reason}: {failed}") from None


def replayed(log: LogReader, stored: StoredModel, seq: int) -> int:
    """The same, read here: from the first event, or from the oldest snapshot if that is gone."""
    model, names = Model(stored, WINDOW), log.names(stored.key)
    if log.gone(stored.key):
        _begin_with_snapshot(model, log, names, seq)
    model.learner.features.extend(names[model.learner.n_features :])
    for batch in log.batches(stored.key, after=model.learner.seq, up_to=seq):
        model.learn(batch)
    digest = model.digest.at(seq)
    if digest is None:
        reason = f"it ends at seq {model.learner.seq}"
        raise failures.LogDamaged(folder=str(log.db.folder), reason=reason)
    return digest


def _begin_with_snapshot(model: Model, log: LogReader, names: list[str], seq: int) -> None:
    for snapshot_seq in reversed(log.snapshots.seqs(model.stored.key)):
        if snapshot_seq < seq:
            with contextlib.suppress(failures.LogDamaged, *NOT_A_STATE):
                state = log.snapshots.state(model.stored.key, snapshot_seq)
                model.load(snapshot_seq, state, names[: state["learner"]["n_features"]], WINDOW)
                return
    reason = f"its first events are gone, and no snapshot before seq {seq} is whole"
    raise failures.EventsGone(folder=str(log.db.folder), reason=reason)


def main() -> int:
    asked = msgspec.json.decode(sys.stdin.buffer.readline(), type=_Question)
    end_with_parent(lambda: os._exit(1))
    os.nice(NICE)
    log = LogReader(Path(asked.folder))
    try:
        sys.stdout.write(str(replayed(log, asked.model, asked.seq)))
    except errors.LogstepError as error:
        sys.stderr.write(f"{getattr(error, 'reason', error)}\n")
        return 1
    finally:
        log.close()
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
