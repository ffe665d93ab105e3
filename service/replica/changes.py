"""Applies the records that have no items: makes, deletes and resumes models, puts in parts of another log, forgets old
ids and events, compares digests."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any

import msgspec

from core.spec import Spec
from service import errors
from service.learning.disk import Disk
from service.learning.model import Model
from service.learning.models import Models
from service.learning.request import Place
from service.learning.writer import Writer
from service.replica.digests import Digests
from service.replica.logged import part_of
from service.replica.records import Do, PoisonError
from service.storage.forgotten import Forgotten
from service.storage.positions import Position, Reached
from service.storage.store import Store

TRY_SECONDS = 1.0
"""Between two tries to write to a full disk."""


class Changes:
    """What the records of a node's topic change, but for what is learned and kept. All records before are applied.

    delete, resume: what a single node does.
    """

    def __init__(
        self,
        models: Models,
        writer: Writer,
        disk: Disk,
        digests: Digests,
        delete: Callable[[str], Awaitable[None]],
        resume: Callable[[str], Awaitable[Model]],
    ) -> None:
        self._models = models
        self._writer = writer
        self._disk = disk
        self._progress = writer.progress
        self._digests = digests
        self._delete = delete
        self._resume = resume

    async def apply(self, do: Do, model: str, value: bytes, place: Place) -> Any:
        """Do what a record says. Returns what the node that wrote it waits for."""
        return await self._until_there_is_room(self._do, do, model, value, place)

    async def reach(self, place: Place) -> None:
        """Record that all up to a place is applied, if it is not in the transaction of what it changed."""
        if self._progress.committed.get(place.partition) != _position(place):
            await self._until_there_is_room(self._reach, place)

    async def _until_there_is_room(self, work: Callable[..., Awaitable[Any]], *args: Any) -> Any:
        while True:
            try:
                return await work(*args)
            except errors.DiskFull:
                self._writer.full = True
                await asyncio.sleep(TRY_SECONDS)

    async def _do(self, do: Do, name: str, value: bytes, place: Place) -> Any:
        found = self._models.find(name)
        if found is not None:
            async with self._writer.turn:
                while found.next_timeout <= place.at / 1e6:
                    await self._writer.expire(found, place.at / 1e6)
        match do:
            case Do.PUT:
                return await self._put(name, value, place)
            case Do.DELETE:
                await self._delete(name)
                self._digests.begin(name, place.record)
            case Do.RESUME:
                return await self._resume(name)
            case Do.LOGGED:
                await self._copy(self._models.get(name), value, place)
            case Do.FORGET:
                await self._forget(self._models.get(name), value, place)
            case Do.TICK if found is not None and value:
                self._digests.compare(found, value, place.record)
        return None

    async def _put(self, name: str, value: bytes, place: Place) -> tuple[Model, bool]:
        spec = Spec.from_dict(msgspec.json.decode(value))
        async with self._writer.between_turns():
            made, new = await self._models.create(name, spec)
        if new:
            self._digests.begin(name, place.record)
        return made, new

    async def _copy(self, model: Model, value: bytes, place: Place) -> None:
        """Put a part of another log into this one."""
        part = await asyncio.to_thread(part_of, value, model)
        ids = [id_ for id_, *_ in part.changed_ids]
        async with self._writer.turn:
            taken = await self._disk.run(Store.find_ids, {model.stored.key: ids}) if ids else {}
            if taken or not await self._writer.copy(model, part, self._after(place), place.at):
                raise PoisonError("it is no part of a log: an id of it stands for something already")
            self._writer.full = False

    async def _forget(self, model: Model, value: bytes, place: Place) -> None:
        forgotten, key = msgspec.json.decode(value, type=Forgotten), model.stored.key
        if not all(0 <= seq <= model.last_seq for seq in forgotten):
            raise PoisonError(f"the model has {model.last_seq} event(s), and forgets {max(forgotten)}")
        async with self._writer.turn:
            reached = self._after(place)
            await self._disk.run(lambda store: store.trimming.forget(key, forgotten, reached))
            self._settle(reached)

    async def _reach(self, place: Place) -> None:
        async with self._writer.turn:
            reached = self._after(place)
            await self._disk.run(Store.reach, reached)
            self._settle(reached)

    def _after(self, place: Place) -> Reached:
        """What is reached when the record at a place is applied."""
        before = self._progress.unwritten
        return Reached({**before.positions, place.partition: _position(place)}, before.broken)

    def _settle(self, reached: Reached) -> None:
        """That is on disk, and all its steps are taken."""
        self._progress.settle(reached, written=True)
        self._progress.all_stepped()
        self._writer.full = False


def _position(place: Place) -> Position:
    return Position(place.record, 0, place.at, place.mark)
