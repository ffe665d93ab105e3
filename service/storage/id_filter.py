"""The filter that says of nearly every id that nobody sent before that it is new, without a look at the disk."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from core.compiled import compiled
from service.storage.id_pieces import Piece, mixed
from service.texts import Numbers

LEAST_BLOCKS = 1 << 14
MOST_BLOCKS = 1 << 20
"""64 MB. With more than 20,000,000 ids the filter says less often that an id is new, and look-ups cost more."""
IDS_A_BLOCK = 20
"""Ids in a block of the filter from which it is full. With 20 it says of one new id in ten thousand that it may be
known, and takes 3.2 bytes an id."""

Words = npt.NDArray[np.uint64]


@compiled("uint64(uint64[:, ::1], uint64)")
def _block(blocks: Words, bits: Any) -> Any:
    """The block of the filter for a hash: its high bits choose. The lower 48 choose one bit in each word of it."""
    return (bits >> np.uint64(44)) & np.uint64(len(blocks) - 1)


@compiled("void(uint64[:, ::1], int64[::1], uint64)")
def _add_to_filter(blocks: Words, hashes: Numbers, salt: Any) -> None:
    for id_hash in hashes:
        bits = mixed(np.uint64(id_hash), salt)
        block = _block(blocks, bits)
        for word in range(8):
            blocks[block, word] |= np.uint64(1) << (bits >> np.uint64(6 * word) & np.uint64(63))


@compiled("void(uint64[:, ::1], int64[::1], uint64, boolean[::1])")
def _ask_filter(blocks: Words, hashes: Numbers, salt: Any, may_be_known: npt.NDArray[np.bool_]) -> None:
    for i in range(len(hashes)):
        bits = mixed(np.uint64(hashes[i]), salt)
        block, found = _block(blocks, bits), np.uint64(1)
        for word in range(8):
            found &= blocks[block, word] >> (bits >> np.uint64(6 * word) & np.uint64(63))
        may_be_known[i] = found != 0


class Filter:
    """Says of ids that they are new, or that they may be known: a split block Bloom filter (blocks of eight words, one
    bit of an id in each)."""

    def __init__(self, blocks: int) -> None:
        self._blocks = np.zeros((blocks, 8), np.uint64)
        self.ids = 0

    @classmethod
    def for_ids(cls, count: int) -> Filter:
        """An empty filter for twice as many ids, or the largest."""
        blocks = LEAST_BLOCKS
        while blocks < MOST_BLOCKS and IDS_A_BLOCK * blocks < 2 * count:
            blocks *= 2
        return cls(blocks)

    @property
    def full(self) -> bool:
        return self.ids > IDS_A_BLOCK * len(self._blocks)

    def needs_another(self, count: int) -> bool:
        """Whether another filter would be better for so many ids. This one, which is full, still has removed ids."""
        return self.ids > 2 * count or len(self._blocks) < MOST_BLOCKS

    def add(self, model: int, piece: Piece) -> None:
        _add_to_filter(self._blocks, piece.hashes, np.uint64(model))
        self.ids += len(piece)

    def may_know(self, model: int, piece: Piece) -> npt.NDArray[np.bool_]:
        """Whether each of these ids may be known (n,); False is certain."""
        may_be_known = np.empty(len(piece), np.bool_)
        _ask_filter(self._blocks, piece.hashes, np.uint64(model), may_be_known)
        return may_be_known
