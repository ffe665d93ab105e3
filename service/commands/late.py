"""A file played as a real stream: each row is a prediction first, and its label comes later.

A prediction is asked for with the row's id, so that the service keeps it; when the row's delay is over, its label is
sent alone. Where the service did not keep it, the whole event is sent then.

When the same command goes on after an interruption, most rows were learned before. The first of them is found by the
refusal to predict it; from there on labels are sent, a piece at a time, until the service knows of no prediction for
one: what was learned is a duplicate then. What still waited gets its label at once, as nobody knows any more when it
was due.
"""

from __future__ import annotations

import heapq
import math
import time
from collections.abc import Sequence
from typing import Any

from service.commands.client import Refused
from service.commands.files import Row
from service.commands.replay import ID_CONFLICT, Replay
from service.decode import wire

UNKNOWN, EXPIRED, DROPPED = "unknown-id", "expired-id", "dropped-id"
"""Why a label is refused: nothing waits under its id; what waited was learned as 0; it was dropped."""


class LateReplay(Replay):
    """Sends rows as predictions, and their labels later. The options have a delay, and ids."""

    def __init__(self, *arguments: Any, **options: Any) -> None:
        super().__init__(*arguments, **options)
        self._behind = False
        """Whether the rows that come now may be those of an earlier run."""
        self._predicted: list[Row] = []
        """Rows since the last turn, whose delays have not begun."""
        self._labels: list[tuple[float, int, Row]] = []
        """A heap: when a label is due on the monotonic clock, the row's number, the row."""
        self._whole: set[int] = set()
        """Numbers of rows that the service does not keep."""
        self._unknown = 0
        """Number of the last row whose label the service knew no prediction for, while `_behind`."""
        self._size = self.options.batch
        """Labels of one request: fewer, where many are refused and each refusal ends a request."""

    @property
    def next_due(self) -> float:
        return self._labels[0][0] if self._labels else math.inf

    def take(self, piece: Sequence[Row]) -> int:
        """Ask for a prediction of each row; how many got one, not having been learned before."""
        before = self.tally.served
        while piece:
            step = self._go_on if self._behind else self._predict
            piece = piece[self._patiently(step, piece) :]
        return self.tally.served - before

    def turn(self, now: float) -> None:
        """Send the labels that are due. Delays begin at the first turn after a prediction: for all models at once."""
        assert self.options.delay is not None  # noqa: S101  # see above
        for row in self._predicted:
            heapq.heappush(self._labels, (now + self.options.delay.of(row.number), row.number, row))
        self._predicted.clear()
        due = []
        while self.next_due <= now:
            due.append(heapq.heappop(self._labels)[2])
        while due:
            del due[: self._patiently(self._send_labels, due[: self._size])]
        self.tally.waiting = len(self._labels)

    # -- predictions

    def _predict(self, rows: Sequence[Row]) -> int:
        """Ask for predictions; for how many rows, from the first on, there are some: up to one learned before."""
        self.sent = time.monotonic()
        try:
            replies = self._client.predict_to_keep(self.model, [row.event for row in rows])
        except Refused as refusal:
            place = refusal.line - 1
            learned = _learned_before(refusal) and 0 <= place < len(rows)
            if not learned or rows[place].number == self._unknown:  # neither learned nor new: it would never end
                raise self._placed(refusal, rows) from None
            self._behind = True
            return self._predict(rows[:place]) if place else 0  # they are kept, but the refusal was all the reply
        for row, reply in zip(rows, replies, strict=True):
            if not reply.kept:
                self._send_whole(row, "no more are kept (join.max_waiting in the model's spec)")
        self._predicted += rows
        self.tally.served += len(rows)
        return len(rows)

    def _go_on(self, rows: Sequence[Row]) -> int:
        """Send labels of rows that may have been learned before; how many were, up to one that is to be predicted."""
        try:
            return self._send(rows)
        except Refused as refusal:
            done = self._count(refusal.problem)
            if refusal.kind == EXPIRED:
                self.tally.too_late += 1
                return done + 1
            if refusal.kind not in (UNKNOWN, DROPPED):
                return self._part(done, refusal, rows)
            self._behind = False
            self._unknown = rows[done].number
            return done

    # -- labels

    def _send_labels(self, rows: Sequence[Row]) -> int:
        """Send labels; how many rows, from the first on, are done with."""
        try:
            sent = self._send(rows)
        except Refused as refusal:
            self._size = max(1, self._size // 2)
            done = self._count(refusal.problem)
            if refusal.kind in (EXPIRED, DROPPED):
                self.tally.too_late += 1
                return done + 1
            if refusal.kind == UNKNOWN and rows[done].number not in self._whole:
                self._send_whole(rows[done], 'it was lost (with join.ack "memory" in the model\'s spec that may be)')
                return done
            return self._part(done, refusal, rows)
        self._size = min(self.options.batch, 2 * self._size)
        return sent

    def _told(self, row: Row) -> wire.Event | wire.Label:
        event = row.event
        if event.id is None or row.number in self._whole:
            return event
        return wire.Label(event.id, event.y, event.weight)

    def _send_whole(self, row: Row, reason: str) -> None:
        """Send the whole event when the label of a row is due. People are told of the first such row."""
        if not self._whole:
            self.notice(
                f"the prediction of event {row.number} is not kept by model {self.model}: {reason}; such events are "
                f"sent with their features when their labels are due"
            )
        self._whole.add(row.number)


def _learned_before(refusal: Refused) -> bool:
    return refusal.kind == ID_CONFLICT and "was learned before" in str(refusal)
