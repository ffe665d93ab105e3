"""How a stream is sent, and what became of it so far."""

from __future__ import annotations

import math
import random
import re
import time
from dataclasses import dataclass, field

from core.spec import UNITS
from service.commands.rows import Row
from service.commands.terminal import WrongUsage

_UNITS = {"ms": 0.001, **UNITS}
_TIME = r"([0-9]{1,12}(?:\.[0-9]{1,9})?)(ms|s|m|h|d)"
_FORMS = {
    "exp": re.compile(rf"exp\( *{_TIME} *\)"),
    "uniform": re.compile(rf"uniform\( *{_TIME} *, *{_TIME} *\)"),
    "fixed": re.compile(_TIME),
}
BURST_SECONDS = 0.1


@dataclass(frozen=True, slots=True)
class Delay:
    """A random time, in seconds: `exp` with a mean, `uniform` between two times, or `fixed`.

    The seed and the row's number determine a row's delay. So it is the same for each model, and after an interruption.
    speed_up: how many times faster than real time it passes.
    """

    form: str
    times: tuple[float, ...]
    seed: int = 0
    speed_up: float = 1.0

    @classmethod
    def parse(cls, text: str, seed: int = 0, speed_up: float = 1.0) -> Delay:
        """Parse a delay; raises WrongUsage if the text is not one.

        >>> [Delay.parse(text).times for text in ("exp(30s)", "uniform(500ms, 1.5m)", "6h", "0s")]
        [(30.0,), (0.5, 90.0), (21600.0,), (0.0,)]
        """
        for form, pattern in _FORMS.items():
            if found := pattern.fullmatch(text.strip()):
                parts = found.groups()
                times = tuple(float(value) * _UNITS[unit] for value, unit in zip(parts[::2], parts[1::2], strict=True))
                if times != tuple(sorted(times)):
                    raise WrongUsage(f"--delay {text}: the first time must be the shorter one")
                return cls(form, times, seed, speed_up)
        raise WrongUsage(
            f"--delay {text!r} is not a delay like exp(30s), uniform(1s,60s) or 30s; the units are {', '.join(_UNITS)}"
        )

    def of(self, row: int) -> float:
        """The delay of a row, in seconds of real time.

        >>> Delay.parse("30s", speed_up=10.0).of(row=1)
        3.0
        """
        return self._draw(random.Random(f"{self.seed}:{row}")) / self.speed_up  # noqa: S311  # not a secret

    def _draw(self, numbers: random.Random) -> float:
        if self.form == "exp":
            return self.times[0] * numbers.expovariate(1.0)
        return numbers.uniform(self.times[0], self.times[-1])


@dataclass(frozen=True, slots=True)
class Options:
    """How a stream is sent.

    name: the stream's name. batch: events per request. id_prefix: the part of an event's id before the row number, by
    default the name; `replay` uses a file's name and a hash. ids: whether events have ids. rate: events a second, None
    for no limit. retry_seconds: how long to retry without progress. predict_first: predict each piece before learning
    it. delay: time from a row's prediction to its label, None to send whole events. unit: what a row is in its file.
    """

    name: str
    batch: int = 1_000
    id_prefix: str | None = None
    ids: bool = True
    rate: float | None = None
    retry_seconds: float = 60.0
    predict_first: bool = False
    delay: Delay | None = None
    unit: str = "line"

    @property
    def prefix(self) -> str:
        """What stands before the row's number in an id."""
        return self.id_prefix or self.name

    def id_of(self, row: Row) -> str:
        """The id of a row without its own."""
        return f"{self.prefix}:{row.number}"

    @property
    def piece(self) -> int:
        """Events per request; with a rate, at most those of a tenth of a second."""
        return self.batch if self.rate is None else max(1, min(self.batch, int(self.rate * BURST_SECONDS)))


@dataclass(slots=True)
class Mean:
    """A running mean."""

    total: float = 0.0
    count: int = 0

    def add(self, value: float, count: int = 1) -> None:
        """Add `count` values whose mean is `value`."""
        self.total += value * count
        self.count += count

    @property
    def value(self) -> float | None:
        return self.total / self.count if self.count else None


@dataclass(slots=True)
class Tally:
    """Counts and scores so far. Losses are log losses, in nats. `model`: its name, if there are several."""

    model: str = ""
    learned: int = 0
    duplicates: int = 0
    loss: Mean = field(default_factory=Mean)
    """Loss of the predictions made just before each step."""
    served_loss: Mean = field(default_factory=Mean)
    """Loss of the predictions made before each piece."""
    served_accuracy: Mean = field(default_factory=Mean)
    served_ones: Mean = field(default_factory=Mean)
    """Share of ones among their labels."""
    served: int = 0
    """Predictions whose labels come later (service/commands/late.py)."""
    waiting: int = 0
    """Labels that are not due yet."""
    too_late: int = 0
    """Labels that came after their predictions had expired or were dropped."""
    started: float = field(default_factory=time.monotonic)
    ended: float | None = None

    @property
    def served_guessing(self) -> float | None:
        """The log loss of always predicting the share of ones, over the events of `served_loss`."""
        ones = self.served_ones.value
        return None if ones is None else sum(-p * math.log(p) for p in (ones, 1.0 - ones) if p)

    @property
    def events(self) -> int:
        return self.learned + self.duplicates

    @property
    def seconds(self) -> float:
        return (self.ended or time.monotonic()) - self.started

    @property
    def rate(self) -> float:
        """Events a second."""
        return self.events / max(self.seconds, 1e-9)
