"""Streams a file into a running service, exactly once, into one model or several side by side.

Every event gets an id, by default from the file's name, a hash of its first lines and its row number
(service/commands/identity.py). Events are sent in pieces, one at a time and in order. A piece without a reply is sent
again; the service answers events it already learned as duplicates. So after an interruption of either side, the same
command continues where it stopped.

Every model learns a piece before the next is read, so one pass over the file compares models on the same events.
"""

from __future__ import annotations

import hashlib
import itertools
import json
import math
import re
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from typing import Any, NamedTuple, TypeVar

from service.commands.client import Client, NoAnswer, Refused
from service.commands.columns import NOTHING_KEPT, Kept
from service.commands.delays import Delay
from service.commands.files import OpenSource, Row, Source
from service.commands.terminal import Failed, WrongUsage, number, say, show
from service.commands.worse import say_if_worse
from service.events import Event, Label

T = TypeVar("T")

PASSING = (429, 502, 503, 504, 507)
"""Temporary statuses: the token's rate is used up; the service recovers, stops or waits for disk space; or a proxy
cannot reach it."""
NOTHING_LEARNED = ("too-fast", "not-ready", "queue-full", "disk-full")
"""Errors which say that no event was learned. After any other error, only asking the service again can tell."""
FIRST_PAUSE_SECONDS, LONGEST_PAUSE_SECONDS = 0.1, 2.0
BURST_SECONDS = 0.1
SMALLEST_P = 1e-15
"""A wrong prediction of exactly 0 or 1 is scored this far from it; its log loss would be infinite."""
LONGEST_NAME = 64
"""Characters of a model's name."""
ID_CONFLICT = "id-conflict"
DEFAULT = "default"
"""The model that always exists."""
_ENDINGS = re.compile(r"(\.(csv|tsv|txt|data|ndjson|jsonl|json|libsvm|svm))?(\.gz)?$", re.IGNORECASE)
AGAIN = "--id-prefix TEXT learns a file again, with other ids"
ANOTHER_FILE = (
    "The row has changed, or another file has this name and the same first lines: --id-prefix TEXT gives this file's "
    "events their own ids, TEXT:row"
)

ONE_EVENT = "An id names one event. If --id-column names an owner of rows, leave it out: each row then gets its own id"


class GivenSpec(NamedTuple):
    """A spec for a new model. text: for people, its file or JSON. stem: its part of the model's name. json: what the
    service gets."""

    text: str
    stem: str
    json: bytes


class Target(NamedTuple):
    """A model to learn into, created with `spec` if it does not exist.

    as_it_is: accept an existing model with any spec; else its spec must be this one. hint: other choices, for people
    who named neither a model nor a spec.
    """

    name: str
    spec: GivenSpec
    as_it_is: bool = False
    hint: str = ""


@dataclass(frozen=True, slots=True)
class Options:
    """How a stream is sent.

    name: the stream's name. batch: events per request. id_prefix: the part of an event's id before the row number, by
    default the name; `replay` uses a file's name and a hash. ids: whether events have ids. rate: events a second, None
    for no limit. retry_seconds: how long to retry without progress. predict_first: predict each piece before learning
    it. delay: time from a row's prediction to its label, None to send whole events.
    """

    name: str
    batch: int = 1_000
    id_prefix: str | None = None
    ids: bool = True
    rate: float | None = None
    retry_seconds: float = 60.0
    predict_first: bool = False
    delay: Delay | None = None

    def id_of(self, row: Row) -> str:
        """The id of a row without its own."""
        return f"{self.id_prefix or self.name}:{row.number}"

    @property
    def piece(self) -> int:
        """Events per request; with a rate, at most those of a tenth of a second."""
        return self.batch if self.rate is None else max(1, min(self.batch, int(self.rate * BURST_SECONDS)))


@dataclass(slots=True)
class Mean:
    """A running mean."""

    total: float = 0.0
    count: int = 0

    def add(self, value: float, count: int = 1) -> None:
        """Add `count` values whose mean is `value`."""
        self.total += value * count
        self.count += count

    @property
    def value(self) -> float | None:
        return self.total / self.count if self.count else None


@dataclass(slots=True)
class Tally:
    """Counts and scores so far. Losses are log losses, in nats. `model`: its name, if there are several."""

    model: str = ""
    learned: int = 0
    duplicates: int = 0
    loss: Mean = field(default_factory=Mean)
    """Loss of the predictions made just before each step."""
    served_loss: Mean = field(default_factory=Mean)
    """Loss of the predictions made before each piece."""
    served_accuracy: Mean = field(default_factory=Mean)
    served_ones: Mean = field(default_factory=Mean)
    """Share of ones among their labels."""
    served: int = 0
    """Predictions whose labels come later (service/commands/late.py)."""
    waiting: int = 0
    """Labels that are not due yet."""
    too_late: int = 0
    """Labels that came after their predictions had expired or were dropped."""
    started: float = field(default_factory=time.monotonic)
    ended: float | None = None

    @property
    def served_guessing(self) -> float | None:
        """The log loss of always predicting the share of ones, over the events of `served_loss`."""
        ones = self.served_ones.value
        return None if ones is None else sum(-p * math.log(p) for p in (ones, 1.0 - ones) if p)

    @property
    def events(self) -> int:
        return self.learned + self.duplicates

    @property
    def seconds(self) -> float:
        return (self.ended or time.monotonic()) - self.started

    @property
    def rate(self) -> float:
        """Events a second."""
        return self.events / max(self.seconds, 1e-9)


AUTO = GivenSpec('{"rule": "auto"}', "auto", b'{"rule": "auto"}')
"""The default spec of a file's model. It needs no tuning, whatever the columns are."""
CHOOSE = "; --model NAME learns into another model, --spec SPEC uses another rule"


class Replay:
    """Sends rows to a model of a service, and creates the model if necessary.

    Calls `progress` after each piece, and `notice` with messages for people. Raises Failed if it cannot continue; the
    tally says how far it came.
    """

    def __init__(
        self,
        client: Client,
        target: Target,
        options: Options,
        tally: Tally,
        progress: Callable[[Tally], None] = lambda _: None,
        notice: Callable[[str], None] = say,
    ) -> None:
        self.model = target.name
        self.tally = tally
        self.sent = 0.0
        """When rows were last sent, on the monotonic clock."""
        self._client = client
        self.options = options
        self.progress = progress
        self.notice = notice
        self.kinds: dict[str, str] | None = None
        """Kinds of the file's columns; a new model keeps them."""
        self.is_there = False
        """Whether the model existed when `kept` was called."""
        self._target = target

    def run(self, rows: Iterable[Row]) -> dict[str, Any]:
        """Learn all rows; returns the reply of GET /models/{model}."""
        (state,) = learn_side_by_side([self], rows, self.options)
        return state

    def kept(self) -> Kept:
        """The column kinds that the model keeps, or that its spec has if it does not exist yet."""
        found = self._patiently(self._find)
        columns = _columns(self._target.spec.json) if found is None else found["spec"].get("columns")
        self.is_there = found is not None
        return Kept(f"model {self.model!r}" if self.is_there else self._target.spec.text, columns or {})

    def _spec(self, found: dict[str, Any] | None) -> bytes:
        """The spec to create, with the kinds of the columns; those of a `found` model are its own."""
        kinds = self.kinds if found is None else found["spec"].get("columns")
        values = json.loads(self._target.spec.json)
        if not kinds or not isinstance(values, dict) or values.get("columns") is not None:
            return self._target.spec.json
        return json.dumps({**values, "columns": kinds}).encode()

    def prepare(self) -> str:
        """Create the model unless it exists. Returns a sentence that says which, and its rule."""
        target = self._target
        found = self._patiently(self._find)
        if found is None or not target.as_it_is:
            try:
                found = self._patiently(self._client.create, self.model, self._spec(found))
            except Refused as refusal:
                raise self._not_made(refusal, found is not None) from None
        rule = rule_of(found["spec"])
        if found.get("created"):
            return f"{self.options.name} goes into the new model {self.model}, rule {rule}{target.hint}"
        there = "which exists" if target.as_it_is else "which exists with this spec"
        learned = f"{number(found['seq'])} events learned"
        return f"{self.options.name} goes into the model {self.model}, {there}: rule {rule}, {learned}{target.hint}"

    def _find(self) -> dict[str, Any] | None:
        """The reply of GET /models/{model}; None if the model does not exist or the token does not reach it."""
        try:
            return self._client.model(self.model)
        except Refused as refusal:
            if refusal.kind == "unknown-model":
                return None
            raise

    def _not_made(self, refusal: Refused, is_there: bool) -> Refused:
        """The refusal to create a model, with advice."""
        name, spec = self.model, self._target.spec
        as_it_is = f"--model {name}" if spec is AUTO else f"--model {name} without --spec"
        into = f"{as_it_is} learns into it unchanged" if is_there else f"--model {DEFAULT} learns into the existing one"
        text = str(refusal).rstrip(".")
        if refusal.kind == "spec-conflict":
            text += f". {into}; --model with another name leaves it alone"
        elif refusal.kind in ("forbidden", "unknown-model"):  # unknown-model: the token does not reach it
            text += f". So the model {name} is not created; {into}, and so does --model NAME of another existing model"
        refusal.args = (text if spec is AUTO else f"{spec.text}: {text}",)
        return refusal

    def state(self) -> dict[str, Any]:
        """The reply of GET /models/{model}."""
        return self._patiently(self._client.model, self.model)

    def show_progress(self) -> None:
        self.progress(self.tally)

    @property
    def next_due(self) -> float:
        """When it wants its next turn, on the monotonic clock."""
        return math.inf

    def turn(self, now: float) -> None:
        """Do what is due between two pieces."""

    def take(self, piece: Sequence[Row]) -> int:
        """Predict a piece, if asked to, and learn it. Returns how many events were new."""
        before, size = self.tally.learned, len(piece)
        events = [row.event for row in piece]
        served = self._patiently(self._client.predict, self.model, events) if self.options.predict_first else []
        while piece:
            piece = piece[self._patiently(self._learn, piece) :]
        new = self.tally.learned - before
        if new == size:  # do not score predictions of events learned before
            self._score(served, events)
        return new

    def _score(self, served: Sequence[float], events: Sequence[Event]) -> None:
        for p, event in zip(served, events, strict=False):
            y = int(event.y)
            self.tally.served_loss.add(-math.log(max(p if y else 1.0 - p, SMALLEST_P)))
            self.tally.served_ones.add(float(y))
            self.tally.served_accuracy.add(float((p > 0.5) == bool(y)))

    def _learn(self, piece: Sequence[Row]) -> int:
        """Send rows; returns how many are learned now."""
        try:
            return self._send(piece)
        except Refused as refusal:
            return self._part(self._count(refusal.problem), refusal, piece)

    def _send(self, piece: Sequence[Row]) -> int:
        """Send rows to be learned, and count them."""
        self.sent = time.monotonic()
        reply = self._client.learn(self.model, map(self._told, piece))
        if reply["loss"] is not None:
            self.tally.loss.add(reply["loss"], reply["learned"])
        self._count(reply)
        return len(piece)

    def _told(self, row: Row) -> Event | Label:
        """What to send for a row."""
        return row.event

    def _part(self, done: int, refusal: Refused, piece: Sequence[Row]) -> int:
        """The rows `done` before a temporary refusal. Raises any other refusal, or if none were done."""
        if done and _may_pass(refusal, harmless=self.options.ids):
            return done  # the next request reports the error again
        raise self._placed(refusal, piece) from None

    def _count(self, reply: dict[str, Any]) -> int:
        learned, duplicates = int(reply.get("learned", 0)), int(reply.get("duplicates", 0))
        self.tally.learned += learned
        self.tally.duplicates += duplicates
        return learned + duplicates

    # -- failures

    def _patiently(self, request: Callable[..., T], *arguments: Any) -> T:
        """Make a request, and retry it while its failure may be temporary."""
        harmless = self.options.ids or request != self._learn
        started = time.monotonic()
        pause = FIRST_PAUSE_SECONDS
        while True:
            try:
                return request(*arguments)
            except (NoAnswer, Refused) as failure:
                if not _may_pass(failure, harmless):
                    raise self._lost(failure) from None
                left = started + self.options.retry_seconds - time.monotonic()
                if left <= 0:
                    raise Failed(f"{failure}. Tried for {self.options.retry_seconds:g} s") from None
                if pause == FIRST_PAUSE_SECONDS:
                    self.notice(f"{failure}; trying again for {left:.0f} s")
                time.sleep(min(left, max(pause, getattr(failure, "retry_after", 0.0))))
                pause = min(2 * pause, LONGEST_PAUSE_SECONDS)

    def _lost(self, failure: NoAnswer | Refused) -> Failed:
        """The failure. Without ids it says if the piece may have been learned."""
        if isinstance(failure, Refused) and failure.status not in PASSING:
            return failure
        return Failed(
            f"{failure}. The service may have learned the last piece. Without ids it is not sent again, since it might "
            f"be learned twice; the seq in `logstep models show {self.model}` tells"
        )

    def _placed(self, refusal: Refused, piece: Sequence[Row]) -> Refused:
        """The refusal with the file's line; the service counts lines of the piece."""
        line = refusal.line
        if 0 < line <= len(piece):
            row = piece[line - 1]
            text = re.sub(rf"^[Ll]ine {line}:? ", "", str(refusal))
            if refusal.kind == ID_CONFLICT and row.event.id == self.options.id_of(row):
                text = f"{text.rstrip('.')}. {ANOTHER_FILE}"
            elif refusal.kind == ID_CONFLICT:
                text = f"{text.rstrip('.')}. {ONE_EVENT}"
            refusal.args = (f"{self.options.name} line {row.line} (event {row.number}): {text}",)
        return refusal


def _may_pass(failure: NoAnswer | Refused, harmless: bool) -> bool:
    """Whether a failed request may be retried. If repeating is not `harmless`, only if the request did nothing."""
    if isinstance(failure, NoAnswer):
        return harmless or not failure.sent
    return failure.status in PASSING and (harmless or failure.kind in NOTHING_LEARNED)


# -- one pass, one model or several


def learn_side_by_side(
    replays: Sequence[Replay], rows: Iterable[Row], options: Options, pauses: Callable[[], bool] = lambda: False
) -> list[dict[str, Any]]:
    """Learn all rows into each model. Returns the reply of GET /models/{model} for each.

    When `pauses`, the next row may take long, so the rows so far are learned. A piece with an error is not sent.
    """
    # Existing models first: if one has another spec, no new model is made.
    for told in [replay.prepare() for replay in sorted(replays, key=lambda replay: not replay.is_there)]:
        replays[0].notice(told)
    pace = _Pace(options.rate)
    for piece in _pieces((_with_id(row, options) for row in rows), options.piece, pauses):
        _turns(replays, until=pace.due)
        new = 0
        for replay in replays:
            with _named(replay):
                new = max(new, replay.take(piece))
        pace.add(new, min(replay.sent for replay in replays))
        min(replays, key=_loss).show_progress()
    _turns(replays, until=0.0)  # the delays of the last piece begin now
    while (due := min(replay.next_due for replay in replays)) < math.inf:
        _turns(replays, until=due)
        min(replays, key=_loss).show_progress()
    for replay in replays:
        replay.tally.ended = time.monotonic()
    return [replay.state() for replay in replays]


def _pieces(rows: Iterable[Row], size: int, pauses: Callable[[], bool]) -> Iterator[list[Row]]:
    """The rows, `size` at a time, or fewer when the source `pauses`."""
    piece = []
    for row in rows:
        piece.append(row)
        if len(piece) == size or pauses():
            yield piece
            piece = []
    if piece:
        yield piece


def _turns(replays: Sequence[Replay], until: float) -> None:
    """Wait until a time on the monotonic clock, with at least one turn for each model, and one whenever it is due.

    All models get the same time, so that the same labels are due and they learn in the same order.
    """
    while True:
        now = time.monotonic()
        for replay in replays:
            with _named(replay):
                replay.turn(now)
        if now >= until:
            return
        pause = min(until, *(replay.next_due for replay in replays)) - time.monotonic()
        if pause > 0:
            time.sleep(pause)


def _with_id(row: Row, options: Options) -> Row:
    if not options.ids:
        row.event.id = None
    elif row.event.id is None:
        row.event.id = options.id_of(row)
    return row


@contextmanager
def _named(replay: Replay) -> Iterator[None]:
    """Name the model in a refusal if there are several; another may have accepted the same event."""
    try:
        yield
    except Refused as refusal:
        if replay.tally.model:
            refusal.args = (f"model {replay.model}: {refusal}",)
        raise


def _loss(replay: Replay) -> float:
    loss = replay.tally.loss.value
    return math.inf if loss is None else loss


class _Pace:
    """Holds events to a rate. Only newly learned events count; rows learned before pass at once."""

    def __init__(self, rate: float | None) -> None:
        self._rate = rate
        self.due = 0.0
        """When the next events are due, on the monotonic clock."""

    def add(self, events: int, sent: float) -> None:
        """Count events. Time lost before they were `sent`, while the service was away, is not made up in a burst."""
        if self._rate is not None:
            self.due = max(self.due, sent) + events / self._rate


# -- the command


def look(opened: OpenSource, replays: Sequence[Replay]) -> None:
    """Look at the first rows of a file, with the column kinds that existing models and specs have.

    Raises WrongUsage if these differ.
    """
    found = [replay.kept() for replay in replays]
    told = [kept for kept in found if kept.kinds]
    for kept in told[1:]:
        if kept.kinds != told[0].kinds:
            raise WrongUsage(
                f"{told[0].whose} and {kept.whose} keep different kinds of columns, but one pass reads a file in one "
                "way: learn into them one after the other"
            )
    opened.look(told[0] if told else NOTHING_KEPT)
    if told:
        say(f"the columns are read as {told[0].whose} keeps them")
    kinds = opened.kinds()
    for replay, kept in zip(replays, found, strict=True):
        replay.kinds = kinds
        if opened.columns and replay.is_there and not kept.kinds:
            say(f"{kept.whose} keeps no kinds of columns: each file decides them anew, so give the flags again")


def _columns(spec: bytes) -> dict[str, str] | None:
    """The column kinds in a given spec. It may be wrong; then the service says so."""
    values = json.loads(spec)
    columns = values.get("columns") if isinstance(values, dict) else None
    return columns if isinstance(columns, dict) else None


def replay(
    source: Source, client: Client, targets: Sequence[Target], options: Options, kind: type[Replay] = Replay
) -> int:
    """Stream a source into models; show progress and results. Returns the exit code."""
    tallies = [Tally(target.name if len(targets) > 1 else "") for target in targets]
    with source.open() as opened:
        try:
            client.alive()  # once, without retries: people should see at once that there is no service
            replays = [kind(client, target, options, tally) for target, tally in zip(targets, tallies, strict=True)]
            look(opened, replays)  # errors in the first rows must show before a model is made
            options = replace(options, id_prefix=options.id_prefix or opened.id_prefix())
            with display(options.name, opened.size, lambda _: opened.position()) as (progress, notice):
                for replay in replays:
                    replay.tally.started = time.monotonic()  # now, since looking at the first rows may have been slow
                    replay.options, replay.progress, replay.notice = options, progress, notice
                states = learn_side_by_side(replays, opened.rows(), options, opened.pauses)
        except Failed as failure:
            if any(tally.events or tally.served for tally in tallies) or not isinstance(failure, NoAnswer):
                conflict = isinstance(failure, Refused) and failure.kind == ID_CONFLICT
                failure.args = (f"{str(failure).rstrip('.')}. {_so_far(tallies, options, goes_on=not conflict)}",)
            raise
        except KeyboardInterrupt:
            say(f"interrupted. {_so_far(tallies, options)}")
            return 130
    if len(states) == 1:
        _report(targets[0].name, tallies[0], states[0], options)
    else:
        _compare(tallies, states, options)
    if any(tally.duplicates for tally in tallies):
        counted = _span([tally.duplicates for tally in tallies])
        say(f"{counted} event(s) were learned before and not again; {AGAIN}")
    opened.tell_what_was_left_out()
    return opened.check_labels()


def model_name(file: str) -> str:
    """A name for a file's model. Never `default`, which has its own spec.

    >>> model_name("2024 orders.csv.gz"), model_name("default.csv")
    ('2024-orders', 'default-file')
    """
    name = _as_name(stem_of(file))[:LONGEST_NAME]
    return f"{DEFAULT}-file" if name == DEFAULT else name


def model_names(stem: str, specs: Sequence[GivenSpec]) -> list[str]:
    """A name for each spec's model, always the same, so that the same command finds its models again.

    >>> model_names("elec", [GivenSpec("", stem, b"") for stem in ("sgd", "my spec", "sgd")])
    ['elec-sgd', 'elec-my-spec', 'elec-sgd-2']
    """
    names: list[str] = []
    for spec in specs:
        base = _as_name(f"{stem}-{spec.stem}")
        endings = itertools.chain([""], (f"-{n}" for n in itertools.count(2)))
        choices = (base[: LONGEST_NAME - len(ending)] + ending for ending in endings)
        names.append(next(name for name in choices if name not in names))
    return names


def stem_of(file: str) -> str:
    """A file's name without .gz and the format's ending.

    >>> stem_of("clicks.2024.CSV.GZ"), stem_of("clicks.2024")
    ('clicks.2024', 'clicks.2024')
    """
    return _ENDINGS.sub("", file) or file


def _as_name(text: str) -> str:
    """A model's name: only these characters, first a letter or digit. A text without any becomes a hash."""
    name = re.sub(r"[^A-Za-z0-9_.-]", "-", text).lstrip("_.-")
    return name or f"model-{hashlib.blake2b(text.encode(errors='replace'), digest_size=4).hexdigest()}"


def _so_far(tallies: Sequence[Tally], options: Options, goes_on: bool = True) -> str:
    """What was learned, and how to continue, if the same command `goes_on`."""
    if not any(tally.events or tally.served for tally in tallies):
        return "Nothing was learned"
    each = " by each model" if len(tallies) > 1 else ""
    learned = f"{_span([tally.learned for tally in tallies])} event(s) were learned{each} and stay learned"
    if any(tally.duplicates for tally in tallies):
        learned += f", {_span([tally.duplicates for tally in tallies])} were learned before"
    if options.delay is not None:
        learned += f", {_span([tally.waiting for tally in tallies])} prediction(s) wait for their labels"
    if not goes_on:
        return learned
    if options.ids:
        return f"{learned}; the same command continues from there"
    return f"{learned}; without ids the same command would learn them again"


def _span(counts: Sequence[int]) -> str:
    """The range of counts; one number if all are equal."""
    least, most = min(counts), max(counts)
    return f"{most:,}" if least == most else f"{least:,} to {most:,}"


def _report(model: str, tally: Tally, state: dict[str, Any], options: Options) -> None:
    total = state["progressive"]["total"]
    rows: list[tuple[str, float | str | None]] = [
        ("events", tally.events),
        ("learned", tally.learned),
        ("duplicates", tally.duplicates),
        ("seconds", f"{tally.seconds:.2f}"),
        ("events/s", f"{tally.rate:,.0f}"),
        ("progressive log loss", tally.loss.value),
    ]
    if options.delay is not None:
        rows += _late_rows(tally, state)
    elif options.predict_first:
        rows += [
            ("predictions served first", tally.served_loss.count),
            ("their log loss", tally.served_loss.value),
            ("guessing has", tally.served_guessing),
            ("their accuracy", tally.served_accuracy.value),
        ]
    rows += [
        ("model's seq", state["seq"]),
        ("model's log loss", total["log_loss"]),
        ("guessing has", total["base_rate_log_loss"]),
        ("model's accuracy", total["accuracy"]),
        ("model's ROC AUC", total["roc_auc"]),
    ]
    show(f"{options.name} -> {model}", rows)
    say_if_worse([state])


def _late_rows(tally: Tally, state: dict[str, Any]) -> list[tuple[str, float | str | None]]:
    """Rows on predictions and late labels. The model's numbers cover all runs, as in `_scores`."""
    join = state["join"]
    return [
        ("predictions served", tally.served),
        ("labels too late", tally.too_late),
        ("model's labels joined", join["joined"]),
        ("model's late corrections", join["late"]),
        ("model's expired, dropped", f"{join['expired']:,}, {join['dropped']:,}"),
        ("model's mean delay, s", join["delay_s"]["mean"]),
        ("model's log loss as served", state["served"]["total"]["log_loss"]),
        ("guessing has", state["served"]["total"]["base_rate_log_loss"]),
    ]


COLUMNS = ("model", "rule", "learned", "duplicates", "log loss", "in window", "accuracy", "ROC AUC")
SERVED_COLUMNS = ("served first", "their log loss", "their accuracy")
LATE_COLUMNS = ("served", "too late", "joined", "loss as served")


def _compare(tallies: Sequence[Tally], states: Sequence[dict[str, Any]], options: Options) -> None:
    """Show a row for each model. Mark the best one only if all have learned the same events."""
    seqs = [int(state["seq"]) for state in states]
    losses = [state["progressive"]["total"]["log_loss"] for state in states]
    best = min((loss for loss in losses if loss is not None), default=None) if len(set(seqs)) == 1 else None
    rows = [
        (*_scores(tally, state, options), "best" if best is not None and loss == best else "")
        for tally, state, loss in zip(tallies, states, losses, strict=True)
    ]
    rows += [(*row, "") for row in _guessing(tallies, states, options)]
    first = tallies[0]
    took = f"{first.events:,} events in {first.seconds:.2f} s, {first.rate:,.0f}/s"
    show(
        f"{options.name} -> {len(states)} models: {took}",
        rows,
        (*COLUMNS, *_more_columns(options), ""),
    )
    say_if_worse(states)
    if len(set(seqs)) > 1:
        say(f"no best model: they have learned different numbers of events ({_span(seqs)})")


def _more_columns(options: Options) -> Sequence[str]:
    return LATE_COLUMNS if options.delay is not None else SERVED_COLUMNS if options.predict_first else ()


def _scores(tally: Tally, state: dict[str, Any], options: Options) -> tuple[float | str | None, ...]:
    """A model's row. The service's scores cover all that the model has learned, so an interruption changes nothing."""
    total, window = state["progressive"]["total"], state["progressive"]["window"]
    served: tuple[float | None, ...] = ()
    if options.delay is not None:
        loss = state["served"]["total"]["log_loss"]
        served = (tally.served, tally.too_late, state["join"]["joined"], loss)
    elif options.predict_first:
        served = (tally.served_loss.count, tally.served_loss.value, tally.served_accuracy.value)
    return (
        *(tally.model, rule_of(state["spec"]), tally.learned, tally.duplicates),
        *(total["log_loss"], window["log_loss"], total["accuracy"], total["roc_auc"]),
        *served,
    )


def _guessing(
    tallies: Sequence[Tally], states: Sequence[dict[str, Any]], options: Options
) -> list[tuple[float | str | None, ...]]:
    """Rows for guessing, whose log losses the models should beat: a single row if all learned the same events."""
    found: dict[tuple[float | None, ...], str] = {}
    for tally, state in zip(tallies, states, strict=True):
        total, window = state["progressive"]["total"], state["progressive"]["window"]
        served: tuple[float | None, ...] = ()
        if options.delay is not None:
            served = (None, None, None, state["served"]["total"]["base_rate_log_loss"])
        elif options.predict_first:
            served = (None, tally.served_guessing, None)
        losses = total["base_rate_log_loss"], window["base_rate_log_loss"]
        found.setdefault((None, None, *losses, None, None, *served), tally.model)
    if len(found) == 1:
        return [("guessing", "", *scores) for scores in found]
    return [(f"guessing, {model}", "", *scores) for scores, model in found.items()]


def rule_of(spec: dict[str, Any]) -> str:
    """A spec in short: "adagrad", or with a scale "adagrad, standard"."""
    return spec["rule"] if spec["scale"] == "none" else f"{spec['rule']}, {spec['scale']}"


Display = tuple[Callable[[Tally], None], Callable[[str], None]]


@contextmanager
def display(name: str, total: int | None, completed: Callable[[Tally], int]) -> Iterator[Display]:
    """Two functions: one shows progress, `completed` of `total`; the other prints a message beside it."""
    if not sys.stdout.isatty():
        yield _lines(seconds=10.0), say
        return
    from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn

    with Progress(
        TextColumn("{task.description}"),
        BarColumn(),
        TextColumn("{task.percentage:>3.0f} %"),
        TextColumn("{task.fields[counts]}"),
        TimeRemainingColumn(),
        transient=True,
    ) as bar:
        task = bar.add_task(name, total=total, counts="")

        def progress(tally: Tally) -> None:
            bar.update(task, completed=completed(tally), counts=_counts(tally))

        yield progress, lambda message: bar.console.print(f"logstep: {message}", markup=False, highlight=False)


def _lines(seconds: float) -> Callable[[Tally], None]:
    """A function that prints progress as a line every so often."""
    last = time.monotonic()

    def progress(tally: Tally) -> None:
        nonlocal last
        if time.monotonic() - last >= seconds:
            last = time.monotonic()
            print(_counts(tally), flush=True)

    return progress


def _counts(tally: Tally) -> str:
    counts = f"{tally.events:,} events, {tally.rate:,.0f} events/s"
    if tally.waiting:
        counts += f", {tally.waiting:,} labels wait"
    if tally.loss.value is None:
        return counts
    if tally.model:
        return f"{counts}, best log loss {tally.loss.value:.4f} ({tally.model})"
    return f"{counts}, log loss {tally.loss.value:.4f}"
