"""Checks a data folder, and shows what is in it. Changes nothing."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path

from service import failures
from service.commands.terminal import number, show, size
from service.storage.log import Arithmetic, LogReader, StoredModel, learned_elsewhere
from service.storage.wal import Tail, read_mark, read_tail

DAMAGED_IDS = "If a client sends an event with a damaged id again, the service may refuse it or learn it again."
_UNFINISHED = "unfinished commit"


@dataclass(slots=True)
class ModelFindings:
    """What a folder holds of a model.

    gone: the log no longer has its events up to this seq. waiting: predictions that wait for their labels. snapshots:
    the seq of each, and whether it is whole. arithmetic: on which machines it learned.
    """

    name: str
    rule: str
    gone: int = 0
    seq: int = 0
    features: int = 0
    ids: int = 0
    waiting: int = 0
    snapshots: list[tuple[int, bool]] = field(default_factory=list)
    arithmetic: list[Arithmetic] = field(default_factory=list)


@dataclass(slots=True)
class Findings:
    """What a folder holds, and what is wrong with it.

    end: number and checksum of the log's last commit. mark: those of the last acknowledged commit. Each is None if it
    cannot be read. damage: errors in the log. bad_ids: errors in the ids; the weights do not depend on them.
    bad_snapshots: errors in snapshots; they only make the next start slower. tail: what the write-ahead log has after
    the log's end.
    """

    mark: tuple[int, int] | None
    end: tuple[int, int] | None = None
    models: list[ModelFindings] = field(default_factory=list)
    damage: list[str] = field(default_factory=list)
    bad_ids: list[str] = field(default_factory=list)
    bad_snapshots: list[str] = field(default_factory=list)
    tail: Tail = field(default_factory=Tail)

    @property
    def loss(self) -> str | None:
        """What `repair` would accept as lost; None if nothing is."""
        if self.end is None or (self.mark is None and self.end[0] == 0):
            return None
        if self.mark is None:
            return (
                f"the file last-commit is missing or unreadable; the log ends at commit {self.end[0]:,}, but more may "
                "have been acknowledged"
            )
        if self.mark[0] > self.end[0]:
            return (
                f"the log ends at commit {self.end[0]:,}, but commit {self.mark[0]:,} was acknowledged: "
                f"the last {self.mark[0] - self.end[0]:,} commit(s) are gone"
            )
        if self.tail.lost:
            return (
                f"the write-ahead log is readable up to commit {self.end[0]:,}, but {self.tail.lost:,} synced "
                "commit(s) follow"
            )
        return None

    @property
    def wrong(self) -> list[str]:
        """Every error."""
        return [*self.damage, *([self.loss] if self.loss else []), *self.bad_ids, *self.bad_snapshots]


# -- looking


def examine(folder: Path) -> Findings:
    """Read all of a data folder, even while a service uses it. Changes nothing.

    Raises NotADataFolder, NewerFormat or UnreleasedFormat if nothing can be read; the findings report damage.
    """
    # Before the log: a running service marks a commit after logging it. Twice: it may be writing the mark just now.
    findings = Findings(read_mark(folder) or read_mark(folder))
    try:
        log = LogReader(folder)
    except failures.LogDamaged as damage:
        findings.damage.append(damage.reason)
        return findings
    try:
        _examine(log, findings)
    finally:
        log.close()
    return findings


def _examine(log: LogReader, findings: Findings) -> None:
    with _noting(findings.damage):
        findings.end = log.db.log_end()
        if findings.mark and findings.mark[0] == findings.end[0] and findings.mark != findings.end:
            findings.damage.append("its last commit is not the one that was acknowledged")
        findings.tail = read_tail(log.db)
    with _noting(findings.damage):
        findings.damage += log.db.integrity() or log.index.wrong()
    with _noting(findings.bad_ids):
        log.check_ids()
    with _noting(findings.damage):
        for model in log.models():
            damage: list[str] = []
            bad_snapshots: list[str] = []
            found = ModelFindings(model.name, str(model.spec.get("rule", "-")))
            with _noting(damage):
                _examine_model(log, model, found, findings.bad_ids, damage, bad_snapshots)
            if log.has_model(model.key):  # else it was deleted while being read
                findings.models.append(found)
                findings.damage += [f"model {model.name!r}: {reason}" for reason in damage]
                findings.bad_snapshots += [f"model {model.name!r}: {reason}" for reason in bad_snapshots]


def _examine_model(
    log: LogReader,
    model: StoredModel,
    found: ModelFindings,
    bad_ids: list[str],
    damage: list[str],
    bad_snapshots: list[str],
) -> None:
    # In this order a log looks whole even if it grows meanwhile (ids and snapshots before events, names after them) or
    # is shortened meanwhile (its start before the snapshots).
    found.ids, last_id_seq = log.ids(model.key)
    gone = log.gone(model.key)
    found.snapshots, wrong = _snapshots(log, model)
    bad_snapshots += wrong
    if gone and not any(whole and seq >= gone for seq, whole in found.snapshots):
        damage.append(f"no snapshot is whole, and the log no longer has the events up to seq {gone} (--keep-events)")
    largest_column = _examine_events(log, model, found)
    found.features = len(log.names(model.key))
    if largest_column >= found.features:
        damage.append("an event has a feature without a name")
    with _noting(damage):
        for _ in log.waiting.all(model.key):
            found.waiting += 1
        log.waiting.dropped(model.key)
        log.resumed(model.key)
        found.arithmetic = log.arithmetic(model.key)
    if last_id_seq > found.seq and not bad_ids:
        damage.append(f"there is an id of an event at seq {last_id_seq}, but the events end at seq {found.seq}")
    if found.snapshots and found.snapshots[0][0] > found.seq:
        damage.append(f"there is a snapshot at seq {found.snapshots[0][0]}, but the events end at seq {found.seq}")


def _snapshots(log: LogReader, model: StoredModel) -> tuple[list[tuple[int, bool]], list[str]]:
    """The snapshots, as in ModelFindings, and their errors. Starts again if one is replaced meanwhile."""
    while True:
        seqs = log.snapshots.seqs(model.key)
        found, wrong = [], []
        for seq in seqs:
            damage: list[str] = []
            with _noting(damage):
                log.snapshots.state(model.key, seq)
            found.append((seq, not damage))
            wrong += damage
        if log.snapshots.seqs(model.key) == seqs:
            return found, wrong


def _examine_events(log: LogReader, model: StoredModel, found: ModelFindings) -> int:
    """Read every event of a model; return the largest column, or -1. Starts again if events are dropped meanwhile."""
    last = log.last_seq(model.key)
    while True:
        found.seq = found.gone = log.gone(model.key)
        largest_column = -1
        with suppress(failures.EventsGone):
            for batch in log.batches(model.key, after=found.gone, up_to=last):
                found.seq += len(batch)
                largest_column = max(largest_column, int(batch.columns.max(initial=-1)))
            return largest_column


@contextmanager
def _noting(found: list[str]) -> Iterator[None]:
    """Note an error, and go on."""
    try:
        yield
    except failures.LogDamaged as damage:
        found.append(damage.reason)
    except Exception as error:  # a damaged page can turn a value into anything
        found.append(f"it cannot be read: {type(error).__name__}: {error}")


# -- showing


def inspect(folder: Path) -> int:
    """Show what a data folder holds. Returns the exit code: 1 if anything is damaged."""
    findings = examine(folder)
    show(f"Data folder {folder}", _folder_rows(folder, findings))
    if findings.models:
        rows = [_model_row(model) for model in findings.models]
        show("Models", rows, ("model", "rule", "from seq", "to seq", "features", "ids", "waiting", "snapshots"))
    for model in findings.models:
        if runs := learned_elsewhere(model.arithmetic, model.seq):
            told = ", ".join(f"{number(first)} to {number(last)}" for first, last in runs)
            print(
                f"{model.name}: events {told} were learned on a machine whose C library rounds exp, log or pow "
                "otherwise than this one's. A replay here may give other last bits"
            )
    for wrong in findings.wrong:
        print(f"DAMAGED: {wrong}")
    if not findings.wrong:
        print("whole: every checksum fits, no event is missing, the log ends where it should")
        return 0
    print(_advice(folder, findings))
    return 1


def _folder_rows(folder: Path, findings: Findings) -> list[tuple[str, float | str | None]]:
    unfinished = [] if findings.loss or not findings.tail.pages else [(_UNFINISHED, f"{findings.tail.pages:,} page(s)")]
    return [
        ("database log.db", _size(folder / "log.db")),
        ("write-ahead log log.db-wal", _size(folder / "log.db-wal")),
        ("last commit in the log", findings.end and findings.end[0]),
        ("last commit acknowledged", findings.mark and findings.mark[0]),
        *unfinished,
        ("damage", len(findings.wrong) or "none"),
    ]


def _size(path: Path) -> str:
    try:
        return size(path.stat().st_size)
    except FileNotFoundError:
        return "-"


def _model_row(model: ModelFindings) -> tuple[str, str, int, int, int, int, int, str]:
    snapshots = ", ".join(f"{number(seq)}{'' if whole else ' DAMAGED'}" for seq, whole in model.snapshots)
    first = model.gone + 1
    return model.name, model.rule, first, model.seq, model.features, model.ids, model.waiting, snapshots or "-"


def _advice(folder: Path, findings: Findings) -> str:
    if findings.damage:
        return "Restore a backup: this damage cannot be repaired."
    if findings.loss:
        return f"Restore a backup, or accept the loss with `logstep repair {folder}`."
    if findings.bad_ids:
        return (
            f"No event is missing, and the service starts. {DAMAGED_IDS} Restore a backup, or accept that with "
            f"`logstep repair {folder}`."
        )
    return "The log is whole. The service starts without the damaged snapshot, but takes longer."
