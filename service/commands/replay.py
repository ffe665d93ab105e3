"""Streams a file into a running service, exactly once, into one model or several side by side.

Every event gets an id, by default from the file's name, a hash of its first lines and its row number
(service/commands/identity.py). Events are sent in pieces, one at a time and in order. A piece without a reply is sent
again; the service answers events it already learned as duplicates. So after an interruption of either side, the same
command continues where it stopped.

Every model learns a piece before the next is read, so one pass over the file compares models on the same events.
"""

from __future__ import annotations

import json
import math
import re
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import replace
from typing import Any, TypeVar

from service.commands.client import Client, NoAnswer, Refused
from service.commands.files import OpenSource, Source
from service.commands.replay_report import compare, display, report, rule_of, so_far, span
from service.commands.rows import PIECE_CELLS, Block, Row
from service.commands.sketch import draw
from service.commands.tally import Options, Tally
from service.commands.targets import AUTO, Target
from service.commands.terminal import Failed, WrongUsage, number, say
from service.events import DEFAULT, Event, Label
from service.rows.columns import NOTHING_KEPT, Kept

T = TypeVar("T")

PASSING = (429, 502, 503, 504, 507)
"""Temporary statuses: the token's rate is used up; the service recovers, stops or waits for disk space; or a proxy
cannot reach it."""
NOTHING_LEARNED = ("too-fast", "not-ready", "queue-full", "disk-full")
"""Errors which say that no event was learned. After any other error, only asking the service again can tell."""
FIRST_PAUSE_SECONDS, LONGEST_PAUSE_SECONDS = 0.1, 2.0
SMALLEST_P = 1e-15
"""A wrong prediction of exactly 0 or 1 is scored this far from it; its log loss would be infinite."""
ID_CONFLICT = "id-conflict"
AGAIN = "--id-prefix TEXT learns a file again, with other ids"
ANOTHER_FILE = (
    "The row has changed, or another file has this name and the same first lines: --id-prefix TEXT gives this file's "
    "events their own ids, TEXT:row"
)

ONE_EVENT = "An id names one event. If --id-column names an owner of rows, leave it out: each row then gets its own id"


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

    def curve(self) -> dict[str, Any]:
        """The reply of GET /models/{model}/curve."""
        return self._patiently(self._client.curve, self.model)

    @property
    def next_due(self) -> float:
        """When it wants its next turn, on the monotonic clock."""
        return math.inf

    def turn(self, now: float) -> None:
        """Do what is due between two pieces."""

    def take(self, piece: Sequence[Row]) -> int:
        """Predict a piece, if asked to, and learn it. Returns how many events were new."""
        before, size = self.tally.learned, len(piece)
        events = [row.event for row in piece] if self.options.predict_first else []
        served = self._patiently(self._client.predict, self.model, events) if events else []
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
        if isinstance(piece, Block):
            reply = self._client.learn_lines(self.model, piece.lines)
        else:
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
        return learned + duplicates + int(reply.get("not_learned", 0))

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
                    self.notice(f"{failure}; trying again" + (f" for {left:.0f} s" if left < math.inf else ""))
                self._pause(min(left, max(pause, getattr(failure, "retry_after", 0.0))))
                pause = min(2 * pause, LONGEST_PAUSE_SECONDS)

    def _pause(self, seconds: float) -> None:
        time.sleep(seconds)

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
            refusal.args = (f"{self.options.name} {self.options.unit} {row.line} (event {row.number}): {text}",)
        return refusal


def _may_pass(failure: NoAnswer | Refused, harmless: bool) -> bool:
    """Whether a failed request may be retried. If repeating is not `harmless`, only if the request did nothing."""
    if isinstance(failure, NoAnswer):
        return harmless or not failure.sent
    return failure.status in PASSING and (harmless or failure.kind in NOTHING_LEARNED)


# -- one pass, one model or several


def learn_side_by_side(
    replays: Sequence[Replay],
    rows: Iterable[Row | Block],
    options: Options,
    pauses: Callable[[], bool] | None = None,
) -> list[dict[str, Any]]:
    """Learn all rows into each model. Returns the reply of GET /models/{model} for each.

    When `pauses`, the next row may take long, so the rows so far are learned. A source that never does is read ahead. A
    piece with an error is not sent.
    """
    # Existing models first: if one has another spec, no new model is made.
    for told in [replay.prepare() for replay in sorted(replays, key=lambda replay: not replay.is_there)]:
        replays[0].notice(told)
    pace = _Pace(options.rate)
    pieces = _pieces((_with_id(row, options) for row in rows), options.piece, pauses or (lambda: False))
    for piece in pieces if pauses else _ahead(pieces):
        _turns(replays, until=pace.due)
        new = 0
        for replay in replays:
            with _named(replay):
                new = max(new, replay.take(piece))
        pace.add(new, min(replay.sent for replay in replays))
        _show_best(replays)
    _turns(replays, until=0.0)  # the delays of the last piece begin now
    while (due := min(replay.next_due for replay in replays)) < math.inf:
        _turns(replays, until=due)
        _show_best(replays)
    for replay in replays:
        replay.tally.ended = time.monotonic()
    return [replay.state() for replay in replays]


def _ahead(items: Iterator[T]) -> Iterator[T]:
    """The same items; while one is used, a thread makes the next."""
    end: Any = object()
    with ThreadPoolExecutor(1) as thread:
        coming = thread.submit(next, items, end)
        while (item := coming.result()) is not end:
            coming = thread.submit(next, items, end)
            yield item


def _pieces(rows: Iterable[Row | Block], size: int, pauses: Callable[[], bool]) -> Iterator[Sequence[Row]]:
    """The rows, `size` at a time, or fewer when the source `pauses`, a block of rows comes, or rows are wide."""
    piece: list[Row] = []
    cells = 0
    for row in rows:
        if isinstance(row, Block):
            if piece:
                yield piece
            yield row
            piece, cells = [], 0
            continue
        piece.append(row)
        cells += len(row.event.x)
        if len(piece) == size or cells >= PIECE_CELLS or pauses():
            yield piece
            piece, cells = [], 0
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


def _with_id(row: Row | Block, options: Options) -> Row | Block:
    if isinstance(row, Block):
        row.identify(options.prefix if options.ids else None)
    elif not options.ids:
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


def _show_best(replays: Sequence[Replay]) -> None:
    best = min(replays, key=lambda replay: math.inf if replay.tally.loss.value is None else replay.tally.loss.value)
    best.progress(best.tally)


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


def look(opened: OpenSource, replays: Sequence[Replay], size: int = 0) -> Kept:
    """Look at the first rows of a file, with the column kinds that existing models and specs have. size: of blocks.

    Returns the kinds for the files after it. Raises WrongUsage if those of models and specs differ.
    """
    found = [replay.kept() for replay in replays]
    told = [kept for kept in found if kept.kinds]
    for kept in told[1:]:
        if kept.kinds != told[0].kinds:
            raise WrongUsage(
                f"{told[0].whose} and {kept.whose} keep different kinds of columns, but one pass reads a file in one "
                "way: learn into them one after the other"
            )
    opened.look(told[0] if told else NOTHING_KEPT, size)
    if told:
        say(f"the columns are read as {told[0].whose} keeps them")
    kinds = opened.kinds()
    for replay, kept in zip(replays, found, strict=True):
        replay.kinds = kinds
        if opened.columns and replay.is_there and not kept.kinds:
            say(f"{kept.whose} keeps no kinds of columns: each file decides them anew, so give the flags again")
    if told:
        return told[0]
    return NOTHING_KEPT if any(replay.is_there for replay in replays) else Kept(opened.name, kinds or {})


def _columns(spec: bytes) -> dict[str, str] | None:
    """The column kinds in a given spec. It may be wrong; then the service says so."""
    values = json.loads(spec)
    columns = values.get("columns") if isinstance(values, dict) else None
    return columns if isinstance(columns, dict) else None


def replay(
    source: Source,
    client: Client,
    targets: Sequence[Target],
    options: Options,
    kind: type[Replay] = Replay,
    after: Sequence[Source] = (),
) -> int:
    """Stream a source into models; show progress and results. Returns the exit code.

    after: the files to come; their columns are checked before anything is learned.
    """
    tallies = [Tally(target.name if len(targets) > 1 else "") for target in targets]
    with source.open() as opened:
        try:
            client.alive()  # once, without retries: people should see at once that there is no service
            replays = [kind(client, target, options, tally) for target, tally in zip(targets, tallies, strict=True)]
            size = options.piece if options.delay is None else 0
            kept = look(opened, replays, size)  # errors in the first rows must show before a model is made
            for other in after:
                other.check_columns(kept)
            options = replace(options, id_prefix=options.id_prefix or opened.id_prefix(), unit=opened.unit)
            with display(options.name, opened.size, lambda _: opened.position()) as (progress, notice):
                for replay in replays:
                    replay.tally.started = time.monotonic()  # now, since looking at the first rows may have been slow
                    replay.options, replay.progress, replay.notice = options, progress, notice
                rows = opened.blocks(size)
                states = learn_side_by_side(replays, rows, options, opened.pauses if opened.size is None else None)
        except Failed as failure:
            if any(tally.events or tally.served for tally in tallies) or not isinstance(failure, NoAnswer):
                conflict = isinstance(failure, Refused) and failure.kind == ID_CONFLICT
                failure.args = (f"{str(failure).rstrip('.')}. {so_far(tallies, options, goes_on=not conflict)}",)
            raise
        except KeyboardInterrupt:
            say(f"interrupted. {so_far(tallies, options)}")
            return 130
    if len(states) == 1:
        report(targets[0].name, tallies[0], states[0], options)
    else:
        compare(tallies, states, options)
    if sys.stdout.isatty():
        draw([replay.curve() for replay in replays])
    if any(tally.duplicates for tally in tallies):
        counted = span([tally.duplicates for tally in tallies])
        say(f"{counted} event(s) were learned before and not again; {AGAIN}")
    opened.tell_what_was_left_out()
    return opened.check_labels()
