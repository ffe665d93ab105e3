"""What callers get on the hot routes, and how it is written as JSON."""

from __future__ import annotations

from typing import Annotated, Any

import msgspec


class Learned(msgspec.Struct, gc=False):
    """The reply to one learned event."""

    model: str
    seq: int
    p: float | None
    loss: float | None
    duplicate: bool


class LearnedLate(Learned, gc=False):
    """The reply to a late label. late: whether it corrects a 0 that was learned at the timeout."""

    served_p: float | None
    served_loss: float | None
    delay_s: float | None
    late: bool


class NotLearned(msgspec.Struct):
    """The reply to an event of weight 0: it was checked, has no seq, and its id may still be used."""

    model: str
    # msgspec before 0.22 has no schema of Literal[False].
    learned: Annotated[bool, msgspec.Meta(extra_json_schema={"enum": [False]})] = False


class LearnedMany(msgspec.Struct, omit_defaults=True):
    """The reply to a stream of learned events. not_learned: events of weight 0; left out if there are none."""

    model: str
    learned: int
    duplicates: int
    first_seq: int | None
    last_seq: int | None
    loss: float | None
    not_learned: int = 0


class LearnedManyLate(LearnedMany, kw_only=True):
    """The reply to a stream that contained late labels."""

    joined: int
    late: int
    served_loss: float | None


class LearnedRows(LearnedMany, kw_only=True):
    """The reply to rows.

    columns: how each was read: `number`, `text`, `weight`, `id`, or `ignore` (left out); null if there are too many.
    unlabelled: rows without a label, which were left out. missing: cells without a value. notices: what the sender
    should know. joined, late, served_loss: as for late labels; left out if there are none.
    """

    columns: dict[str, str] | None
    unlabelled: int
    missing: int
    notices: list[str]
    joined: int = 0
    late: int = 0
    served_loss: float | None = None


class Predicted(msgspec.Struct, omit_defaults=True):
    """The reply to one prediction. unknown: number of features that the model does not know; left out if 0."""

    model: str
    p: float
    y: bool
    seq: int
    unknown: int = 0


class PredictedKept(Predicted, kw_only=True):
    """The reply to a prediction with an id. kept: whether it waits for its label; false if too many wait."""

    kept: bool
    duplicate: bool


_encode = msgspec.json.Encoder().encode


def encode(reply: Any) -> bytes:
    """A reply as a line of JSON; a float is the shortest text that reads back as the same float."""
    return _encode(reply) + b"\n"  # else a shell prompt would follow curl's output on the same line
