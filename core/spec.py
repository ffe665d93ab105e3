"""A model's spec: its rule, rates, penalties, scaling and limits."""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, field, fields, is_dataclass, replace
from typing import Any, Literal, get_args

from core.features import EventError, check_name
from core.rules import RULES

RuleName = Literal[
    "sgd", "momentum", "nesterov", "adagrad", "rmsprop", "adadelta",
    "adam", "amsgrad", "nadam", "adamax", "adabound", "ftrl", "auto",
]  # fmt: skip


Kind = Literal["number", "text", "ignore", "weight", "id"]
"""The kind of a file's column: a feature's value, a text that becomes part of a feature's name, ignored, the event's
weight, or its id."""
MAX_COLUMNS = 10_000


class SpecError(ValueError):
    """A spec that is not valid. `field` names the field, and the message says what is wrong."""

    def __init__(self, field: str, message: str) -> None:
        super().__init__(f"{field} {message}")
        self.field = field
        self.message = message


@dataclass(frozen=True, slots=True)
class Constant:
    """The same learning rate for every event. A plain number means the same."""

    schedule: Literal["constant"]
    learning_rate: float

    __pydantic_config__ = {"extra": "forbid"}  # noqa: RUF012  # pydantic reads it; it is not a dataclass field


@dataclass(frozen=True, slots=True)
class InverseScaling:
    """learning_rate / t^power for the t-th event (river's `InverseScaling`)."""

    schedule: Literal["inverse_scaling"]
    learning_rate: float
    power: float = 0.5

    __pydantic_config__ = {"extra": "forbid"}  # noqa: RUF012


@dataclass(frozen=True, slots=True)
class Optimal:
    """1 / (alpha (t0 + n)) after n events (Bottou 2012, river's `Optimal`)."""

    schedule: Literal["optimal"]
    alpha: float = 1e-4

    __pydantic_config__ = {"extra": "forbid"}  # noqa: RUF012


Rate = float | InverseScaling | Optimal

UNITS = {"s": 1.0, "m": 60.0, "h": 3600.0, "d": 86400.0}
LONGEST_KEEP = 3650 * UNITS["d"]


@dataclass(frozen=True, slots=True)
class Join:
    """How a model handles predictions with an id whose labels come later.

    keep
        How long a prediction waits for its label: a number and a unit (s, m, h or d), like "90s" or "7d". Default
        "24h".
    on_timeout
        What happens when `keep` has passed: `drop` forgets the prediction, `negative` learns it as y = 0 (usual for
        clicks). Default `drop`.
    max_waiting
        Most predictions that may wait. Beyond it, the model serves more predictions but does not keep them. Default
        1,000,000.
    late
        What happens to a label 1 after the event was learned as y = 0: `refuse` refuses it, `learn` takes one more
        step. Default `refuse`.

    >>> Join(keep="7d").keep_seconds
    604800.0
    """

    keep: str = "24h"
    on_timeout: Literal["drop", "negative"] = "drop"
    max_waiting: int = 1_000_000
    late: Literal["refuse", "learn"] = "refuse"

    __pydantic_config__ = {"extra": "forbid"}  # noqa: RUF012

    def __post_init__(self) -> None:
        for name, good, message in self._checks():
            if not good:
                raise SpecError(f"join.{name}", message)
        object.__setattr__(self, "keep", _shortest(self.keep_seconds))

    def _checks(self) -> Iterator[tuple[str, bool, str]]:
        known = isinstance(self.keep, str) and _DURATION.fullmatch(self.keep)
        yield "keep", bool(known) and 0 < self.keep_seconds <= LONGEST_KEEP, _A_TIME
        yield "on_timeout", self.on_timeout in ("drop", "negative"), "must be 'drop' or 'negative'"
        yield "max_waiting", type(self.max_waiting) is int, "must be a whole number"
        yield "max_waiting", 0 <= self.max_waiting <= 2**40, "must be from 0 to 2^40"
        yield "late", self.late in ("refuse", "learn"), "must be 'refuse' or 'learn'"
        yield (
            "late",
            self.late == "refuse" or self.on_timeout == "negative",
            "can be 'learn' only if on_timeout is 'negative': a dropped prediction is gone",
        )

    @property
    def keep_seconds(self) -> float:
        """`keep` in seconds."""
        return duration_seconds(self.keep)


@dataclass(frozen=True, slots=True)
class Breaker:
    """The model stops learning if the mean log loss of its last events passes a limit.

    events
        Number of events in the mean, 1 to 100,000.
    log_loss
        The limit, in nats, above 0. A model that always predicts 0.5 has 0.693.
    """

    events: int
    log_loss: float

    __pydantic_config__ = {"extra": "forbid"}  # noqa: RUF012

    def __post_init__(self) -> None:
        if type(self.events) is not int or not 1 <= self.events <= 100_000:
            raise SpecError("breaker.events", "must be a whole number from 1 to 100000")
        _check_number("breaker.log_loss", self.log_loss)
        if not 0 < self.log_loss < math.inf:
            raise SpecError("breaker.log_loss", "must be a number above 0")
        object.__setattr__(self, "log_loss", float(self.log_loss))


def duration_seconds(text: str) -> float:
    """The seconds in a duration: a number and a unit (s, m, h or d).

    >>> duration_seconds("1.5h")
    5400.0
    """
    return float(text[:-1]) * UNITS[text[-1]]


_A_TIME = 'must be a time like "90s", "24h" or "7d", above 0 and at most 3650d'
_DURATION = re.compile(r"[0-9]{1,12}(\.[0-9]{1,6})?[smhd]")


def _shortest(seconds: float) -> str:
    """A duration in the largest unit up to hours that gives a whole number: "1d" and "1440m" become "24h"."""
    unit = next((unit for unit in "hm" if seconds % UNITS[unit] == 0), "s")
    return f"{seconds / UNITS[unit]:.6f}".rstrip("0").rstrip(".") + unit


_ABOVE_ZERO = ("clip", "max_value", "eps", "gamma", "final_lr")
_ZERO_OR_MORE = ("l1", "l2", "beta")
_BELOW_ONE = ("rho", "beta_1", "beta_2")
_OF_RULES = ("rho", "eps", "beta_1", "beta_2", "gamma", "final_lr", "beta", "lag", "correct_bias")


@dataclass(frozen=True, slots=True)
class Spec:
    """How a model learns. Names, meanings and defaults are river's if river has the parameter.

    rule
        How a gradient moves the weights: a name in `core.rules.RULES`. Default `sgd`: w <- w - learning_rate gradient.
        Or `auto` (core/auto.py), which needs no tuning and takes no rates, scale or penalties.
    learning_rate
        Step size for the weights, above 0: a number or a schedule. Default: the rule's (sgd 0.01, adabound 0.001, ftrl
        0.05, which is its alpha, the others 0.1; adadelta has none).
    bias_learning_rate
        Step size for the bias, which always moves by plain gradient descent; 0 leaves it at 0. Default: `learning_rate`
        (river's `intercept_lr` is 0.01); with adadelta 0.01.
    l1
        Cumulative L1 penalty (Tsuruoka et al. 2009), 0 or more. Default 0. ftrl has an L1 penalty of its own.
    l2
        L2 penalty, 0 or more, on the weights of the event's own features, not on the bias. Default 0. Cannot be
        combined with `l1`, as in river. ftrl has an L2 penalty of its own, by default 1, and allows `l1` with it.
    clip
        The residual p - y times class weight and sample weight is clipped to ±clip, above 0. Default 1e12.
    scale
        How values are scaled before learning: `none`, `standard` (minus the running mean, divided by the running
        standard deviation) or `maxabs` (divided by the largest magnitude so far). Text features are not scaled: those
        with `=` in their names (`country=FR`). Default `none`.
    class_weights
        Factors for an event's gradient, by its label. Default {"0": 1, "1": 1}.
    rho, eps, beta_1, beta_2, gamma, final_lr, beta, correct_bias
        Parameters of the rules that have them, with river's names and defaults.
    lag
        For ftrl. True (default): a weight is computed from the sums when its feature is next seen, as in river. False:
        at once, as in the paper (McMahan et al. 2013).
    max_features
        Most features of the model. Default 1,000,000.
    overflow
        What happens to a new feature beyond `max_features`: `ignore` leaves it out of the event and counts it, `refuse`
        refuses the event. Default `ignore`.
    hash_bits
        With k (1 to 30), feature names are hashed to 2^k features; `max_features` is then 2^k. If the model scales,
        names that contain `=` have 2^k features of their own. Default None: no hashing.
    max_value
        Largest magnitude of a feature's value, above 0 and at most 1e300. Default 1e100.
    join
        How predictions with an id wait for their labels: see `Join`.
    breaker
        When the service stops the model's learning: see `Breaker`. Default None: never. The learner ignores it.
    columns
        The kinds of the columns in files replayed into the model: {"age": "number", "zip": "text", "row": "ignore"},
        also "weight" and "id"; at most 10,000. `replay` writes them into the spec of a model that it creates, and reads
        later files accordingly. Default None: not known. Only `replay` uses it.

    Raises SpecError, which names the field.

    >>> Spec(rule="adam").learning_rate
    0.1
    >>> Spec(learning_rate=0)
    Traceback (most recent call last):
        ...
    core.spec.SpecError: learning_rate must be a number above 0
    """

    rule: RuleName = "sgd"
    learning_rate: Rate | Constant | None = None
    bias_learning_rate: Rate | Constant | None = None
    l1: float = 0.0
    l2: float | None = None
    clip: float = 1e12
    scale: Literal["none", "standard", "maxabs"] = "none"
    class_weights: dict[Literal["0", "1"], float] = field(default_factory=dict)
    rho: float | None = None
    eps: float | None = None
    beta_1: float | None = None
    beta_2: float | None = None
    gamma: float | None = None
    final_lr: float | None = None
    beta: float | None = None
    lag: bool | None = None
    correct_bias: bool | None = None
    max_features: int = 1_000_000
    overflow: Literal["ignore", "refuse"] = "ignore"
    hash_bits: int | None = None
    max_value: float = 1e100
    join: Join = field(default_factory=Join)
    breaker: Breaker | None = None
    columns: dict[str, Kind] | None = None

    __pydantic_config__ = {"extra": "forbid"}  # noqa: RUF012

    def __post_init__(self) -> None:
        """Check every field and fill in every default, so that equal models have equal specs."""
        if not isinstance(self.rule, str) or (self.rule != "auto" and self.rule not in RULES):
            raise SpecError("rule", f"must be one of {', '.join(RULES)}, auto")
        self._check_types()
        self._fill_in({} if self.rule == "auto" else RULES[self.rule].defaults)
        self._normalise()
        for name, good, message in self._checks():
            if not good:
                raise SpecError(name, message)

    def _fill_in(self, defaults: dict[str, Any]) -> None:
        """Fill in the rule's defaults. Refuse parameters that the rule does not have."""
        for name in _OF_RULES:
            if getattr(self, name) is not None and name not in defaults:
                raise SpecError(name, f"is not a parameter of {self.rule}")
        for name in ("learning_rate", "bias_learning_rate")[: 2 if self.rule == "auto" else 1]:
            if self.rule in ("adadelta", "auto") and getattr(self, name) is not None:
                raise SpecError(name, f"is not a parameter of {self.rule}, which finds its own rates")
        for name, default in {"l2": 0.0, **defaults}.items():
            if getattr(self, name) is None:
                object.__setattr__(self, name, default)
        if self.bias_learning_rate is None:
            object.__setattr__(self, "bias_learning_rate", self.learning_rate)

    def _check_types(self) -> None:
        """Check types here, because specs also come from storage and from callers' dicts."""
        for name in (*_ABOVE_ZERO, *_ZERO_OR_MORE, *_BELOW_ONE):
            if getattr(self, name) is not None or name in ("clip", "max_value", "l1"):
                _check_number(name, getattr(self, name))
        for name in ("lag", "correct_bias"):
            if not isinstance(getattr(self, name), bool | None):
                raise SpecError(name, "must be true or false")
        for name in ("max_features", "hash_bits"):
            value = getattr(self, name)
            if type(value) is not int and not (value is None and name == "hash_bits"):
                raise SpecError(name, "must be a whole number")
        if not isinstance(self.class_weights, dict):
            raise SpecError("class_weights", 'must be an object: {"0": 1, "1": 1}')
        for weight in self.class_weights.values():
            _check_number("class_weights", weight)
        self._check_parts()

    def _check_parts(self) -> None:
        if not isinstance(self.join, Join | dict):
            raise SpecError("join", 'must be an object like {"keep": "24h"}')
        if not isinstance(self.breaker, Breaker | dict | None):
            raise SpecError("breaker", 'must be an object like {"events": 1000, "log_loss": 1.5}, or null')
        if self.columns is not None:
            _check_columns(self.columns)

    def _normalise(self) -> None:
        """Give equal values one form: 1 and 1.0, a constant schedule and its number."""
        for name in ("learning_rate", "bias_learning_rate"):
            rate = getattr(self, name)
            object.__setattr__(self, name, _as_rate(name, rate) if rate is not None else None)
        for name in (*_ABOVE_ZERO, *_ZERO_OR_MORE, *_BELOW_ONE):
            if getattr(self, name) is not None:
                object.__setattr__(self, name, float(getattr(self, name)))
        if isinstance(self.join, dict):
            object.__setattr__(self, "join", _as_join(self.join))
        if isinstance(self.breaker, dict):
            object.__setattr__(self, "breaker", _as_breaker(self.breaker))
        weights = {str(label): float(weight) for label, weight in self.class_weights.items()}
        object.__setattr__(self, "class_weights", {"0": 1.0, "1": 1.0, **weights})

    def _checks(self) -> Iterator[tuple[str, bool, str]]:
        for name in ("learning_rate", "bias_learning_rate"):
            yield from _rate_checks(name, getattr(self, name))
        for name in _ABOVE_ZERO:
            yield name, _within(getattr(self, name), lambda value: 0 < value < math.inf), "must be a number above 0"
        for name in _ZERO_OR_MORE:
            yield name, _within(getattr(self, name), lambda value: 0 <= value < math.inf), "must be a number, 0 or more"
        for name in _BELOW_ONE:
            yield name, _within(getattr(self, name), lambda value: 0 <= value < 1), "must be from 0 to below 1"
        yield "class_weights", self.class_weights.keys() == {"0", "1"}, 'has the classes "0" and "1" only'
        yield "class_weights", all(0 < w < math.inf for w in self.class_weights.values()), "must be numbers above 0"
        yield "scale", self.scale in ("none", "standard", "maxabs"), "must be 'none', 'standard' or 'maxabs'"
        if self.rule == "auto":
            yield "scale", self.scale == "none", "must be 'none' with auto, which tries every scaling"
            yield "l1", not self.l1, "must be 0 with auto"
            yield "l2", not self.l2, "must be 0 with auto"
            yield "max_value", self.max_value <= 1e100, "must be at most 1e100 with auto"
        yield "l2", self.rule == "ftrl" or not (self.l1 and self.l2), "cannot be used together with l1"
        yield (
            "learning_rate",
            self.rule != "ftrl" or isinstance(self.learning_rate, float),
            "must be a number with ftrl",
        )
        yield "max_value", self.max_value <= 1e300, "must be at most 1e300"
        yield "max_features", 1 <= self.max_features <= 2**30, "must be from 1 to 2^30"
        yield "overflow", self.overflow in ("ignore", "refuse"), "must be 'ignore' or 'refuse'"
        yield "hash_bits", self.hash_bits is None or 1 <= self.hash_bits <= 30, "must be from 1 to 30, or null"

    @property
    def rate(self) -> Rate | None:
        """`learning_rate`; None if the rule has none."""
        return None if isinstance(self.learning_rate, Constant) else self.learning_rate

    @property
    def bias_rate(self) -> Rate:
        """`bias_learning_rate`."""
        rate = self.bias_learning_rate
        return 0.0 if rate is None or isinstance(rate, Constant) else rate

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> Spec:
        """The spec that `as_dict` wrote. Raises SpecError for an unknown field."""
        known = {known.name for known in fields(cls)}
        for name in dict(values):
            if name not in known:
                raise SpecError(name, "is not a field of a spec")
        return cls(**values)

    def as_dict(self) -> dict[str, Any]:
        """The spec as JSON types, with every default, without parameters that its rule does not have."""
        values = {known.name: _plain(getattr(self, known.name)) for known in fields(self)}
        return {name: value for name, value in values.items() if value is not None or name == "hash_bits"}


def _plain(value: Any) -> Any:
    """A field's value as JSON types. A dict is copied plainly: `asdict` would deep-copy each of 10,000 columns."""
    if isinstance(value, dict):
        return dict(value)
    return asdict(value) if is_dataclass(value) and not isinstance(value, type) else value


def _within(value: float | None, good: Callable[[float], bool]) -> bool:
    return value is None or good(value)


def _check_number(name: str, value: Any) -> None:
    """Raise SpecError unless the value is a JSON number that fits a float64."""
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise SpecError(name, "must be a number")
    try:
        float(value)
    except OverflowError:
        raise SpecError(name, "is too large for a 64-bit float") from None


def _as_join(values: dict[str, Any]) -> Join:
    """The join in a stored spec or a caller's dict."""
    known = [known.name for known in fields(Join)]
    for name in values:
        if name not in known:
            raise SpecError(f"join.{name}", f"is not a field of join; the fields are {', '.join(known)}")
    return Join(**values)


def _check_columns(columns: Any) -> None:
    if not isinstance(columns, dict):
        raise SpecError("columns", 'must be an object like {"age": "number", "zip": "text"}, or null')
    if len(columns) > MAX_COLUMNS:
        raise SpecError("columns", f"has {len(columns)} columns, but may have at most {MAX_COLUMNS}")
    for name, kind in columns.items():
        if not isinstance(kind, str) or kind not in get_args(Kind):
            raise SpecError("columns", f"has an unknown kind of column; the kinds are {', '.join(get_args(Kind))}")
        try:
            check_name(name)
        except EventError as error:
            raise SpecError("columns", f"has a name that is not valid for a feature: {error.message}") from None


def _as_breaker(values: dict[str, Any]) -> Breaker:
    """The breaker in a stored spec or a caller's dict."""
    known = [known.name for known in fields(Breaker)]
    if sorted(values) != sorted(known):
        raise SpecError("breaker", f"must have the fields {' and '.join(known)}, and no others")
    return Breaker(**values)


def _as_rate(name: str, rate: Any) -> Rate:
    """A rate from a number, a schedule, or a schedule's dict."""
    if isinstance(rate, dict):
        schedules = {"constant": Constant, "inverse_scaling": InverseScaling, "optimal": Optimal}
        kind = schedules.get(str(rate.get("schedule")))
        if kind is None:
            raise SpecError(name, f"must be a number or a schedule: {', '.join(schedules)}")
        try:
            rate = kind(**rate)
        except TypeError:
            allowed = [known.name for known in fields(kind)]
            raise SpecError(name, f"has the wrong fields; this schedule has {', '.join(allowed)}") from None
    for number in ("learning_rate", "power", "alpha"):
        if hasattr(rate, number):
            _check_number(name, getattr(rate, number))
    if isinstance(rate, Constant):
        return float(rate.learning_rate)
    if isinstance(rate, InverseScaling):
        return replace(rate, learning_rate=float(rate.learning_rate), power=float(rate.power))
    if isinstance(rate, Optimal):
        return replace(rate, alpha=float(rate.alpha))
    _check_number(name, rate)
    return float(rate)


def _rate_checks(name: str, rate: Rate | None) -> Iterator[tuple[str, bool, str]]:
    if isinstance(rate, InverseScaling):
        yield name, 0 < rate.learning_rate < math.inf, "must have a learning_rate above 0"
        yield name, 0 <= rate.power <= 10, "must have a power from 0 to 10"
    elif isinstance(rate, Optimal):
        yield name, 0 < rate.alpha < math.inf, "must have an alpha above 0"
    elif name == "bias_learning_rate":
        yield name, rate is None or 0 <= rate < math.inf, "must be a number, 0 or more"
    else:
        yield name, rate is None or 0 < rate < math.inf, "must be a number above 0"
