"""The models of a service, by name."""

from __future__ import annotations

import asyncio
import json
import logging
import math
from collections.abc import Collection, Iterator
from importlib import import_module
from typing import Any

from core.spec import Spec
from service import errors
from service.events import DEFAULT
from service.learning.disk import Disk
from service.learning.model import Model
from service.learning.state import Lifecycle
from service.settings import Settings
from service.storage.log import StoredModel
from service.storage.store import Store

logger = logging.getLogger("logstep")

TOLD_FIELDS, TOLD_CHARACTERS = 5, 60
"""How many differing fields of a spec a message shows at most, and how much of each value."""


class Models(Collection[Model]):
    """Every model, in order of creation. There are none before the recovery is over, and `default` at least after.

    Two bounds, because to check each of a thousand models took a tenth of all time: no prediction times out before
    `next_timeout` (seconds since 1970), and all logs after their snapshots replay within `replay_seconds`.
    """

    def __init__(self, settings: Settings, disk: Disk, lifecycle: Lifecycle) -> None:
        self._settings = settings
        self._disk = disk
        self._lifecycle = lifecycle
        self._by_name: dict[str, Model] = {}
        self.next_timeout = math.inf
        self.replay_seconds = math.inf

    def __iter__(self) -> Iterator[Model]:
        return iter(self._by_name.values())

    def __len__(self) -> int:
        return len(self._by_name)

    def __contains__(self, model: object) -> bool:
        return isinstance(model, Model) and self._by_name.get(model.name) is model

    def find(self, name: str) -> Model | None:
        """The model of that name, None if there is none."""
        return self._by_name.get(name)

    def get(self, name: str) -> Model:
        """The model of that name. Raises UnknownModel, or NotReady during recovery."""
        try:
            return self._by_name[name]
        except KeyError:
            self.check_loaded()
            raise errors.UnknownModel(model=name) from None

    def check_loaded(self) -> None:
        """Raise NotReady, or the failure, if there are no models because recovery did not end."""
        if not self._by_name:
            self._lifecycle.check_accepts()

    # -- what changes them: between turns

    async def load(self, recovered: dict[str, Model]) -> None:
        """Begin with the models that recovery found."""
        if DEFAULT not in recovered:
            recovered[DEFAULT] = self._new(await self._disk.run(Store.create_model, DEFAULT, Spec().as_dict()))
        self._by_name = recovered
        self.first_to_time_out()

    def check_room(self, name: str) -> None:
        """Raise TooManyModels if there is no room for a model of that name."""
        if name not in self._by_name and len(self) >= self._settings.max_models:
            raise errors.TooManyModels(limit=self._settings.max_models)

    @staticmethod
    async def load_for(spec: Spec) -> None:
        """Load what a model of this spec needs: the kernels of `auto` take 0.2 s, the first time."""
        if spec.rule == "auto":
            await asyncio.to_thread(import_module, "core.auto")

    async def create(self, name: str, spec: Spec) -> tuple[Model, bool]:
        """The model of that name and spec, and whether it is new. SpecConflict if it exists with another spec."""
        model = self.find(name)
        if model is not None and model.learner.spec != spec:
            differences = _differences(_flat(model.learner.spec.as_dict()), _flat(spec.as_dict()))
            raise errors.SpecConflict(model=name, differences=differences)
        if model is not None:
            return model, False
        await self.load_for(spec)
        self._by_name[name] = self._new(await self._disk.run(Store.create_model, name, spec.as_dict()))
        return self._by_name[name], True

    async def delete(self, name: str) -> Model:
        """Remove a model with its log, ids and snapshots, and return it. `default` reappears empty."""
        model = self.get(name)
        successor = Spec().as_dict() if name == DEFAULT else None
        stored = await self._disk.run(Store.delete_model, model.stored, successor)
        del self._by_name[name]
        if stored is not None:
            self._by_name[name] = self._new(stored)
        return model

    async def resume(self, name: str) -> Model:
        """Let a stopped model learn again."""
        model = self.get(name)
        if model.watch is None:
            raise errors.NoBreaker(model=name)
        if model.stops_at is not None:
            seq = model.learner.seq
            await self._disk.run(Store.resume, model.stored.key, seq)
            model.watch.resume(seq)
            self.note_timeout(model)
            logger.info("model %r learns again from seq %d on", name, seq)
        return model

    def _new(self, stored: StoredModel) -> Model:
        model = Model(stored, self._settings.window)
        model.limit(self._settings.max_event_features, self._settings.max_name_characters)
        return model

    # -- the two bounds

    def note_timeout(self, model: Model) -> None:
        """A model's first timeout may be earlier now."""
        self.next_timeout = min(self.next_timeout, model.next_timeout)

    def first_to_time_out(self) -> Model:
        """The model whose prediction times out first. Makes the bound exact."""
        first = min(self, key=lambda model: model.next_timeout)
        self.next_timeout = first.next_timeout
        return first

    def longest_to_replay(self, seconds: float) -> Model | None:
        """The model whose log takes longest to replay, if all together take so many seconds. Makes the bound exact."""
        self.replay_seconds = sum(model.replay_seconds for model in self)
        models = [model for model in self if not model.held]
        if models and sum(model.replay_seconds for model in models) >= seconds:
            return max(models, key=lambda model: model.replay_seconds)
        return None


def _flat(spec: dict[str, Any], before: str = "") -> dict[str, Any]:
    """The fields of a spec by their full names: {"join": {"keep": "1h"}} becomes {"join.keep": "1h"}."""
    found: dict[str, Any] = {}
    for name, value in spec.items():
        found |= _flat(value, f"{before}{name}.") if isinstance(value, dict) else {before + name: value}
    return found


def _differences(there: dict[str, Any], asked: dict[str, Any]) -> str:
    """Which fields of two specs differ, and how. Fields that only one has come last, because each rule has its own."""
    names = [name for name in there | asked if there.get(name) != asked.get(name)]
    names.sort(key=lambda name: name not in there or name not in asked)
    told = [f"{name} is {_told(there, name)} in the model and {_told(asked, name)} in the request" for name in names]
    more = len(told) - TOLD_FIELDS
    return ", ".join(told[:TOLD_FIELDS]) + (f", and {more} more fields differ" if more > 0 else "")


def _told(spec: dict[str, Any], name: str) -> str:
    value = spec.get(name)
    return "not set" if value is None else json.dumps(value, ensure_ascii=False)[:TOLD_CHARACTERS]
