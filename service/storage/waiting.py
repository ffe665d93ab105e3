"""Predictions that wait for their labels, and what ids stand for."""

from __future__ import annotations

import struct
import zlib
from dataclasses import dataclass, field

from core.features import X
from core.logistic import Floats

IDS_AT_ONCE = 1_024
"""Ids that one query looks up. With PAYLOAD_BYTES it bounds the reply, which is one text."""
PAYLOAD_BYTES = 16_384
"""A longer payload gets its own query."""
OLDEST_BYTES = 4 << 20
"""Payloads that `oldest_waiting` reads at once, about."""
_PAYLOAD = f"CASE WHEN length(payload) <= {PAYLOAD_BYTES} THEN hex(payload) END"
FIND = f"""
SELECT json_group_array(json_array(
    ids.id, kind, ids.seq, fingerprint, label, length(payload), kept_at, waiting.seq, {_PAYLOAD}, waiting.checksum))
FROM ids LEFT JOIN waiting ON kind = ?3 AND waiting.model = ids.model AND waiting.number = ids.seq
WHERE ids.model = ?1 AND ids.id IN (SELECT value FROM json_each(?2))
"""  # noqa: S608  # a number of ours
OLDEST = f"""
SELECT json_group_array(json_array(
    number, hex(id), kept_at, seq, {_PAYLOAD}, checksum,
    EXISTS (SELECT 1 FROM ids WHERE model = ?1 AND ids.id = oldest.id AND kind = ?3 AND ids.seq = number)))
FROM (SELECT * FROM waiting WHERE model = ?1 ORDER BY number LIMIT ?2) AS oldest
"""  # noqa: S608  # the same

_ROW = struct.Struct("<qqqqQ")


@dataclass(frozen=True, slots=True)
class Waiting:
    """A prediction that waits for its label.

    number: its place among all that the model kept. kept_at: microseconds since 1970. seq: the model's seq at the
    prediction. served: float64 that describe what was served, the score first (core/explain.py). x: the input. unknown:
    how many of its features the model did not know. owner: the id of the caller's token, empty if the service asks for
    none.
    """

    number: int
    id: str
    kept_at: int
    seq: int
    served: Floats
    x: X
    unknown: int = 0
    owner: str = ""


@dataclass(frozen=True, slots=True)
class KnownId:
    """What an id stands for, as in NewId. waiting: its waiting prediction, None if there is none or it is damaged."""

    kind: int
    seq: int
    fingerprint: int
    label: int | None
    waiting: Waiting | None


@dataclass(slots=True)
class Reading:
    """How much may be read at once of what ids stand for.

    left: bytes of predictions and events that may still be read. unread: (model, id) of what was not read because
    nothing was left. The first is always read.
    """

    left: int
    unread: set[tuple[int, str]] = field(default_factory=set)

    def takes(self, key: tuple[int, str], size: int) -> bool:
        """Whether so many bytes may be read; if not, the id is noted as unread."""
        if self.left <= 0:
            self.unread.add(key)
            return False
        self.left -= size
        return True


@dataclass(frozen=True, slots=True)
class OldWaiting:
    """A prediction that may have waited too long.

    waiting: the prediction, None if it is damaged on disk. id: the id that leads to it, None if none does.
    """

    number: int
    id: str | None
    kept_at: int
    waiting: Waiting | None


def waiting_crc(model: int, number: int, id_: bytes, kept_at: int, seq: int, payload: bytes) -> int:
    """The checksum of a waiting prediction, in three calls."""
    header = _ROW.pack(model, number, kept_at, seq, len(id_))
    return zlib.crc32(payload, zlib.crc32(id_, zlib.crc32(header)))


def text_of(in_hex: str) -> str | None:
    """The text that these bytes encode, None if they encode none."""
    try:
        return bytes.fromhex(in_hex).decode()
    except UnicodeDecodeError:
        return None
