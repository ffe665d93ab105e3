"""Plays a file as a real stream: predicts each row first, and sends its label later.

Each prediction has the row's id, so that the service keeps it. After the row's delay only the label is sent, or the
whole event if the service did not keep the prediction.

After an interruption, the same command meets rows that were learned before. The service refuses to predict the first
of them. From there on the command sends labels, piece by piece, until the service knows no prediction for one. Rows
learned before are duplicates. Predictions that still waited get their label at once: nobody knows when it was due.
"""

from __future__ import annotations

import heapq
import math
import time
from collections.abc import Sequence
from typing import Any

from service.commands.client import Refused
from service.commands.replay import ID_CONFLICT, Replay
from service.commands.rows import Row
from service.events import Event, Label

UNKNOWN, EXPIRED, DROPPED = "unknown-id", "expired-id", "dropped-id"
"""Why a label is refused: no prediction with its id waits; it was learned as 0; it was dropped."""


class LateReplay(Replay):
    """Sends rows as predictions, and their labels later. The options must have a delay and ids."""

    def __init__(self, *arguments: Any, **options: Any) -> None:
        super().__init__(*arguments, **options)
        self._behind = False
        """Whether an earlier run may have learned the current rows."""
        self._predicted: list[Row] = []
        """Rows since the last turn; their delays have not begun."""
        self._labels: list[tuple[float, int, Row]] = []
        """A heap: when a label is due on the monotonic clock, the row's number, the row."""
        self._whole: set[int] = set()
        """Numbers of rows that the service does not keep."""
        self._unknown = 0
        """Number of the last row without a known prediction, while `_behind`."""
        self._size = self.options.batch
        """Labels per request. Fewer if many are refused, since each refusal ends a request."""

    @property
    def next_due(self) -> float:
        return self._labels[0][0] if self._labels else math.inf

    def take(self, piece: Sequence[Row]) -> int:
        """Predict each row. Returns how many were predicted; rows learned before are not."""
        before = self.tally.served
        while piece:
            step = self._go_on if self._behind else self._predict
            piece = piece[self._patiently(step, piece) :]
        return self.tally.served - before

    def turn(self, now: float) -> None:
        """Send due labels. Delays begin at the first turn after a prediction, at the same time for all models."""
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
        """Predict rows. Returns how many were done; stops at a row that was learned before."""
        self.sent = time.monotonic()
        try:
            replies = self._client.predict_to_keep(self.model, [row.event for row in rows])
        except Refused as refusal:
            place = refusal.line - 1
            learned = _learned_before(refusal) and 0 <= place < len(rows)
            if not learned or rows[place].number == self._unknown:  # neither learned nor new: this would loop for ever
                raise self._placed(refusal, rows) from None
            self._behind = True
            return self._predict(rows[:place]) if place else 0  # they are kept, but the refusal replaced their reply
        for row, reply in zip(rows, replies, strict=True):
            if not reply.kept:
                self._send_whole(row, "too many wait already (join.max_waiting in the model's spec)")
        self._predicted += rows
        self.tally.served += len(rows)
        return len(rows)

    def _go_on(self, rows: Sequence[Row]) -> int:
        """Send labels of rows that may have been learned before. Returns how many are done; stops at a new row."""
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
        """Send labels. Returns how many rows are done."""
        try:
            sent = self._send(rows)
        except Refused as refusal:
            self._size = max(1, self._size // 2)
            done = self._count(refusal.problem)
            if refusal.kind in (EXPIRED, DROPPED):
                self.tally.too_late += 1
                return done + 1
            return self._part(done, refusal, rows)
        self._size = min(self.options.batch, 2 * self._size)
        return sent

    def _told(self, row: Row) -> Event | Label:
        event = row.event
        if event.id is None or row.number in self._whole:
            return event
        return Label(event.id, event.y, event.weight)

    def _send_whole(self, row: Row, reason: str) -> None:
        """Send this row's whole event when its label is due. The first such row gets a notice."""
        if not self._whole:
            self.notice(
                f"model {self.model} does not keep the prediction of event {row.number}: {reason}. Such events are "
                "sent with their features when their labels are due"
            )
        self._whole.add(row.number)


def _learned_before(refusal: Refused) -> bool:
    return refusal.kind == ID_CONFLICT and "seq" in refusal.problem
