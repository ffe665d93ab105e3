"""How far a topic is applied here: what the next commit writes of it, and who waits for it."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence

from service.learning.draft import Draft
from service.learning.request import Request
from service.storage.positions import Position, Reached


class Progress:
    """Positions by partition. Without a topic it stays empty.

    committed: the records that are on disk here, or changed nothing. stepped: those whose steps are taken too, so that
    a prediction sees them.
    """

    def __init__(self) -> None:
        self.committed: dict[int, Position] = {}
        self.stepped: dict[int, Position] = {}
        self._unwritten = Reached({}, {})
        self._moved = asyncio.Event()

    def recovered(self, positions: dict[int, Position]) -> None:
        """This is on disk."""
        self.committed, self.stepped = dict(positions), dict(positions)

    def after(self, requests: Sequence[Request], put_off: Sequence[Request], drafts: Sequence[Draft]) -> Reached:
        """What is reached once these requests, but for those put off, are applied by these drafts."""
        if not requests or requests[0].place is None:
            return self._unwritten
        later = set(put_off)
        positions, broken = dict(self._unwritten.positions), dict(self._unwritten.broken)
        breaking = {stream for draft in drafts for stream in draft.broken}
        for request in requests:
            if (place := request.place) is not None and request not in later:
                positions[place.partition] = request.position(place)
                if (stream := request.stream) is not None and (stream.broken or stream in breaking):
                    broken[stream.name] = place.at
        return Reached(positions, broken)

    def settle(self, reached: Reached, *, written: bool) -> None:
        """That is reached. written: whether it is on disk. What changed nothing is written with the next commit: after
        a crash its records are applied again, and change nothing again."""
        self._unwritten = Reached({}, {}) if written else reached
        self.committed.update(reached.positions)

    @property
    def unwritten(self) -> Reached:
        return self._unwritten

    def all_stepped(self) -> None:
        """Every step of what is committed is taken."""
        if self.stepped != self.committed:
            self.stepped = dict(self.committed)
            self._moved.set()
            self._moved = asyncio.Event()

    async def wait_for(self, partition: int, record: int) -> None:
        """Wait until a prediction sees a record."""
        while (position := self.stepped.get(partition)) is None or position.whole < record:
            await self._moved.wait()
