"""Pieces: ids of events with what they stand for, as arrays."""

from __future__ import annotations

import sqlite3
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from core.compiled import compiled, part_of_kernels
from service.storage import packing
from service.texts import Bytes, Numbers, Texts

END = 1 << 63
"""Above every hash."""
PIECE = 500
"""Ids of a piece, about. A look-up reads one piece of each run."""
MODULUS = (1 << 61) - 1
"""Of the checksum over all ids. A prime: a flipped bit adds a power of two, which is never 0 modulo it."""
PIECES = "SELECT model, ids, payload FROM new_ids UNION ALL SELECT model, ids, payload FROM event_ids"
"""A query for all pieces."""
CHECKSUM = f"SELECT ifnull(event_ids_checksum(model, ids, payload), 0) FROM ({PIECES})"  # noqa: S608  # of constants
"""A query for the checksum over all ids of events."""


class EventIds(NamedTuple):
    """New ids of events, by columns (n): the ids; as int64 the seqs, the fingerprints of the events
    (`core.batch.fingerprints`), and those of their labels alone."""

    ids: Texts
    seqs: Numbers
    fingerprints: Numbers
    labels: Numbers

    @classmethod
    def of(cls, rows: Iterable[tuple[str, int, int, int]]) -> EventIds:
        """Of rows: id, seq, fingerprint, label's fingerprint."""
        ids, *numbers = zip(*rows, strict=True)
        return cls(Texts.of(ids), *(np.array(column, np.int64) for column in numbers))


# -- kernels


@compiled("uint64(uint64, uint64)")
def mixed(bits: Any, more: Any) -> Any:
    """Two 64-bit numbers as one. Another value of either always gives another result."""
    bits = (bits ^ more) * np.uint64(0x9FB21C651E98DF25)
    return bits ^ (bits >> np.uint64(32))


@compiled("void(uint8[::1], int64[::1], int64[::1])")
def _hash_all(text: Bytes, lengths: Numbers, hashes: Numbers) -> None:
    """The hash of each id: of its bytes, eight at a time, and its length."""
    at = 0
    for i in range(len(lengths)):
        bits, end = np.uint64(lengths[i]), at + lengths[i]
        while at < end:
            word = np.uint64(0)
            for k in range(min(8, end - at)):
                word |= np.uint64(text[at + k]) << np.uint64(8 * k)
            bits = mixed(bits, word)
            at = min(at + 8, end)
        hashes[i] = np.int64(mixed(bits, bits >> np.uint64(29)))


@part_of_kernels
def _first(hashes: Numbers, wanted: int, above: bool) -> int:
    """Where the first of the sorted hashes is that is at least the wanted one, or above it."""
    low, high = 0, len(hashes)
    while low < high:
        middle = (low + high) // 2
        if hashes[middle] < wanted or (above and hashes[middle] == wanted):
            low = middle + 1
        else:
            high = middle
    return low


@part_of_kernels
def _compare(one: Bytes, other: Bytes) -> int:
    """Below 0, 0 or above 0, as bytes compare."""
    for k in range(min(len(one), len(other))):
        if one[k] != other[k]:
            return 1 if one[k] > other[k] else -1
    return len(one) - len(other)


@compiled(
    "void(int64[::1], uint8[::1], int64[::1], int64[::1], int64[::1], uint8[::1], int64[::1], int64[::1], int64[::1])"
)
def _find_all(
    hashes: Numbers,
    text: Bytes,
    starts: Numbers,
    lengths: Numbers,
    wanted_hashes: Numbers,
    wanted_text: Bytes,
    wanted_starts: Numbers,
    wanted_lengths: Numbers,
    found: Numbers,
) -> None:
    """Where each wanted id is among the others, which are sorted; -1 if it is not."""
    for i in range(len(wanted_hashes)):
        found[i] = -1
        low, high = _first(hashes, wanted_hashes[i], False), 0
        if low < len(hashes) and hashes[low] == wanted_hashes[i]:
            high = _first(hashes, wanted_hashes[i], True)
        wanted = wanted_text[wanted_starts[i] : wanted_starts[i] + wanted_lengths[i]]
        while low < high and found[i] < 0:
            at = (low + high) // 2
            order = _compare(text[starts[at] : starts[at] + lengths[at]], wanted)
            if order == 0:
                found[i] = at
            elif order < 0:
                low = at + 1
            else:
                high = at


@compiled("boolean(int64[::1], uint8[::1], int64[::1], int64[::1])")
def _are_sorted(hashes: Numbers, text: Bytes, starts: Numbers, lengths: Numbers) -> bool:
    for i in range(1, len(hashes)):
        if hashes[i] < hashes[i - 1]:
            return False
        if hashes[i] == hashes[i - 1]:
            this, last = text[starts[i] : starts[i] + lengths[i]], text[starts[i - 1] : starts[i - 1] + lengths[i - 1]]
            if _compare(this, last) < 0:
                return False
    return True


@compiled("Tuple((int64, int64))(int64[:, ::1])")
def _sums(numbers: Numbers) -> tuple[int, int]:
    """The sum of the low halves of some numbers, and that of their high halves."""
    low = high = 0
    for row in range(len(numbers)):
        for number in numbers[row]:
            low += number & 0xFFFFFFFF
            high += number >> 32
    return low, high


def hashes_of(ids: Texts) -> Numbers:
    """The hash (n,) of each of n ids."""
    hashes = np.empty(len(ids), np.int64)
    _hash_all(ids.text, ids.lengths, hashes)
    return hashes


# -- pieces


@dataclass(frozen=True, slots=True)
class Piece:
    """Ids, in any order until they are `sorted` by their hashes. Those with the same hash are sorted by their bytes, so
    that nobody can send ids that take long to find.

    numbers: (4, n) int64: hashes, seqs, fingerprints, fingerprints of the labels.
    """

    numbers: Numbers
    ids: Texts

    def __len__(self) -> int:
        return len(self.ids)

    @property
    def hashes(self) -> Numbers:
        row: Numbers = self.numbers[0]
        return row

    @property
    def seqs(self) -> Numbers:
        row: Numbers = self.numbers[1]
        return row

    @classmethod
    def of(cls, new: EventIds) -> Piece:
        return cls(np.stack((hashes_of(new.ids), *new[1:])), new.ids)

    @classmethod
    def decode(cls, ids: Any, payload: Any) -> Piece | None:
        """The piece that these bytes encode, None if they encode none."""
        if not isinstance(ids, int) or not isinstance(payload, bytes) or ids < 0:
            return None
        found = packing.unpack(ids, payload)
        if found is None:
            return None
        texts, numbers = found
        numbers[0] = hashes_of(texts)
        return cls(numbers, texts)

    @classmethod
    def joined(cls, pieces: Sequence[Piece]) -> Piece:
        numbers = np.concatenate([piece.numbers for piece in pieces], axis=1)
        return cls(numbers, Texts.joined([piece.ids for piece in pieces]))

    def sorted(self) -> Piece:
        if len(self) < 2 or _are_sorted(self.hashes, self.ids.text, self.ids.starts, self.ids.lengths):
            return self
        piece = self.take(np.argsort(self.hashes, kind="stable"))
        if not (piece.hashes[1:] == piece.hashes[:-1]).any():
            return piece
        text, ends = piece.ids.text.tobytes(), np.cumsum(piece.ids.lengths).tolist()
        keys = [(id_hash, text[start:end]) for id_hash, start, end in zip(piece.hashes, [0, *ends], ends, strict=False)]
        return piece.take(np.array(sorted(range(len(keys)), key=keys.__getitem__)))

    def take(self, which: Numbers) -> Piece:
        """Some of the ids, given by their indices, in that order."""
        return Piece(np.take(self.numbers, which, axis=1), self.ids.take(which))

    def repeats(self) -> bool:
        """Whether an id comes twice; sorted."""
        if len(self) < 2 or not (self.hashes[1:] == self.hashes[:-1]).any():
            return False
        return len(set(self.ids)) < len(self)

    def where(self, chosen: npt.NDArray[np.bool_]) -> Piece:
        return self if chosen.all() else self.take(np.flatnonzero(chosen))

    def within(self, first: int, end: int) -> Piece:
        """The ids with a hash of at least `first` and below `end`."""
        start = self._below(first)
        return self.part(start, max(start, self._below(end)))

    def part(self, start: int, stop: int) -> Piece:
        """The ids from `start` to before `stop`. Copies no texts."""
        if (start, stop) == (0, len(self)):
            return self
        return Piece(np.ascontiguousarray(self.numbers[:, start:stop]), self.ids[start:stop])

    def _below(self, end: int) -> int:
        """How many ids have a hash below `end`."""
        return len(self) if end == END else int(np.searchsorted(self.hashes, end))

    def cuts(self) -> list[int]:
        """Where to cut the ids into pieces of PIECE. Those with the same hash stay together, so that a look-up finds
        them."""
        cuts, n = [0], len(self)
        while cuts[-1] < n:
            stop = min(cuts[-1] + PIECE, n)
            while stop < n and self.hashes[stop] == self.hashes[stop - 1]:
                stop += 1
            cuts.append(stop)
        return cuts

    def encode(self) -> bytes:
        return self.encode_cut([0, len(self)])[0] if len(self) else b""

    def encode_cut(self, cuts: Sequence[int]) -> list[bytes]:
        """The bytes of each piece, see `cuts`."""
        return packing.pack(self.numbers, self.ids, cuts)

    def checksum(self, model: int) -> int:
        """What these ids of a model add to the checksum over all ids: the sum of all numbers and hashes."""
        low, high = _sums(self.numbers)
        return ((high << 32) + low + model * len(self)) % MODULUS

    def find(self, wanted: Piece) -> Numbers:
        """For each wanted id its index here, -1 if it is not here."""
        found = np.empty(len(wanted), np.int64)
        here, others = ((piece.hashes, piece.ids.text, piece.ids.starts, piece.ids.lengths) for piece in (self, wanted))
        _find_all(*here, *others, found)
        return found


# -- the checksum in SQL


class _Checksum:
    """The checksum over the ids of events, for SQLite. What cannot be read counts as nothing."""

    def __init__(self) -> None:
        self._total = 0

    def step(self, model: Any, ids: Any, payload: Any) -> None:
        piece = Piece.decode(ids, payload)
        if piece is not None and isinstance(model, int):
            self._total = (self._total + piece.checksum(model)) % MODULUS

    def finalize(self) -> int:
        return self._total


def add_checksum(db: sqlite3.Connection) -> None:
    """Let queries of a connection use CHECKSUM."""
    db.create_aggregate("event_ids_checksum", 3, _Checksum)  # type: ignore[arg-type]  # its rows have these types
