"""How long a label takes to come: exp(30s), uniform(1s,60s) or 30s."""

from __future__ import annotations

import random
import re
from dataclasses import dataclass

from core.spec import UNITS
from service.commands.terminal import WrongUsage

_UNITS = {"ms": 0.001, **UNITS}
_TIME = r"([0-9]{1,12}(?:\.[0-9]{1,9})?)(ms|s|m|h|d)"
_FORMS = {
    "exp": re.compile(rf"exp\( *{_TIME} *\)"),
    "uniform": re.compile(rf"uniform\( *{_TIME} *, *{_TIME} *\)"),
    "fixed": re.compile(_TIME),
}


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
