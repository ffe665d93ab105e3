"""A model's spec: its rule, rates, penalties, scaling and limits.

Each field is described once, where it is declared: its type, default, bounds and, below it, its meaning. The checks
here, docs/spec.md and the schema in the OpenAPI document come from that. pydantic reads all of it for the schema.
"""

from __future__ import annotations

import difflib
import functools
import json
import math
import operator
import re
from collections.abc import Iterator, Mapping
from dataclasses import MISSING, asdict, dataclass, field, fields, is_dataclass
from types import NoneType, UnionType
from typing import TYPE_CHECKING, Any, Literal, cast, get_args, get_origin, get_type_hints

from core.features import EventError, check_name
from core.rules import RULES

if TYPE_CHECKING:
    RuleName = str
else:
    RuleName = Literal[(*RULES, "auto")]
Kind = Literal["number", "text", "ignore", "weight", "id"]
"""The kind of a file's column: a feature's value, a text that becomes part of a feature's name, ignored, the event's
weight, or its id."""
Scale = Literal["none", "standard", "maxabs"]
MAX_COLUMNS = 10_000


class SpecError(ValueError):
    """A spec that is not valid. `field` names the field, and the message says what is wrong."""

    def __init__(self, field: str, message: str) -> None:
        super().__init__(f"{field} {message}")
        self.field = field
        self.message = message


# -- the check of a field, by what stands in its metadata: the bounds of a number, an example of an object

_WITHIN = {"gt": operator.gt, "ge": operator.ge, "lt": operator.lt, "le": operator.le}


def _shown(bound: float) -> str:
    power = math.log2(bound) if bound > 1e6 else 0.5
    return f"2^{power:.0f}" if power.is_integer() else f"{bound:g}".replace("e+", "e")


def bounds(told: Mapping[str, Any]) -> str:
    """The bounds in a field's metadata, in words.

    >>> bounds({"ge": 0, "lt": 1}), bounds({"gt": 0}), bounds({"ge": 1, "le": 2**30})
    ('from 0 to below 1', 'above 0', 'from 1 to 2^30')
    """
    at = {key: _shown(told[key]) for key in _WITHIN if key in told}
    if "ge" in at and len(at) == 1:
        return f"{at['ge']} or more"
    words = {"gt": "above", "ge": "from", "lt": "to below", "le": "to"}
    return " ".join(f"{words[key]} {bound}" for key, bound in at.items())


def _number(name: str, kind: type, value: Any, told: Mapping[str, Any]) -> float:
    good = type(value) is int or (kind is float and isinstance(value, int | float) and not isinstance(value, bool))
    try:
        value = kind(value) if good else math.nan
    except OverflowError:
        raise SpecError(name, "is too large for a 64-bit float") from None
    if not -math.inf < value < math.inf or not all(_WITHIN[key](value, told[key]) for key in _WITHIN if key in told):
        raise SpecError(name, f"must be a {'whole ' if kind is int else ''}number {bounds(told)}")
    return cast("float", value)


def _checked(name: str, kind: Any, value: Any, told: Mapping[str, Any]) -> Any:
    """A field's value in its one form, as 1 and 1.0 are one number. Raises SpecError."""
    kinds = get_args(kind) if isinstance(kind, UnionType) else (kind,)
    kind = kinds[0]
    if value is None and NoneType in kinds:
        return None
    if InverseScaling in kinds:
        return _rate(name, value, told["number"])
    if kind in (int, float):
        return _number(name, kind, value, told)
    if get_origin(kind) is Literal:
        *others, last = map(repr, get_args(kind))
        good, words = isinstance(value, str) and value in get_args(kind), f"{', '.join(others)} or {last}"
    elif is_dataclass(kind) or get_origin(kind) is dict:
        good = isinstance(value, dict) or (isinstance(kind, type) and isinstance(value, kind))
        words = f"an object like {json.dumps(told['examples'][0])}" + (", or null" if NoneType in kinds else "")
    else:
        good, words = isinstance(value, kind), "true or false" if kind is bool else told["like"]
    if not good:
        raise SpecError(name, f"must be {words}")
    return _made(kind, value, name) if is_dataclass(kind) and isinstance(value, dict) else value


def _made(kind: Any, values: dict[str, Any], name: str = "") -> Any:
    """A described object of these values, for the field `name`. Raises SpecError."""
    within = f"{name}." if name else ""
    known = {one.name: one for one in fields(kind)}
    for key in values:
        if key not in known:
            like = difflib.get_close_matches(key, known, 1)
            all_ = f"; the fields are {', '.join(known)}" if name else ""
            also = f"; perhaps {like[0]} is meant" if like else all_
            raise SpecError(f"{within}{key}", f"is not a field of {name or 'a spec'}{also}")
    for key, one in known.items():
        if key not in values and one.default is MISSING and one.default_factory is MISSING:
            raise SpecError(f"{within}{key}", "is missing")
    try:
        return kind(**values)
    except SpecError as error:
        raise SpecError(f"{within}{error.field}", error.message) from None


_kinds = functools.cache(get_type_hints)


class _Described:
    """Checks its fields when it is made, because specs also come from storage and from callers' dicts."""

    __slots__ = ()
    __pydantic_config__ = {"extra": "forbid", "use_attribute_docstrings": True}  # noqa: RUF012  # for the schema

    def __post_init__(self) -> None:
        this: Any = self
        kinds = _kinds(this.__class__)
        for one in fields(this):
            self._set(one.name, _checked(one.name, kinds[one.name], getattr(self, one.name), one.metadata))

    def _set(self, name: str, value: Any) -> None:
        object.__setattr__(self, name, value)


# -- the parts


@dataclass(frozen=True, slots=True)
class InverseScaling(_Described):
    """learning_rate / t^power for the t-th event (river's `InverseScaling`)."""

    schedule: Literal["inverse_scaling"]
    learning_rate: float = field(metadata={"gt": 0})
    """The rate of the first event."""
    power: float = field(default=0.5, metadata={"ge": 0, "le": 10})
    """How fast the rate falls."""


@dataclass(frozen=True, slots=True)
class Optimal(_Described):
    """1 / (alpha (t0 + n)) after n events (Bottou 2012, river's `Optimal`)."""

    schedule: Literal["optimal"]
    alpha: float = field(default=1e-4, metadata={"gt": 0})
    """The smaller, the larger the rates."""


Rate = float | InverseScaling | Optimal


def _rate(name: str, rate: Any, told: Mapping[str, Any]) -> Any:
    """A Rate from a number, a schedule, or a schedule's dict."""
    if isinstance(rate, dict):
        schedules = {"inverse_scaling": InverseScaling, "optimal": Optimal}
        kind = schedules.get(str(rate.get("schedule")))
        if kind is None:
            raise SpecError(name, f"must be a number or a schedule: {', '.join(schedules)}")
        return _made(kind, rate, name)
    return rate if isinstance(rate, InverseScaling | Optimal) else _number(name, float, rate, told)


UNITS = {"s": 1.0, "m": 60.0, "h": 3600.0, "d": 86400.0}
_DURATION = re.compile(r"[0-9]{1,12}(\.[0-9]{1,6})?[smhd]")
LONGEST_KEEP = 3650 * UNITS["d"]
_A_TIME = 'a time like "90s", "24h" or "7d", above 0 and at most 3650d'


def duration_seconds(text: str) -> float:
    """The seconds in a duration: a number and a unit (s, m, h or d).

    >>> duration_seconds("1.5h")
    5400.0
    """
    return float(text[:-1]) * UNITS[text[-1]]


def _shortest(seconds: float) -> str:
    """A duration in the largest unit up to hours that gives a whole number: "1d" and "1440m" become "24h"."""
    unit = next((unit for unit in "hm" if seconds % UNITS[unit] == 0), "s")
    return f"{seconds / UNITS[unit]:.6f}".rstrip("0").rstrip(".") + unit


@dataclass(frozen=True, slots=True)
class Join(_Described):
    """How a model handles predictions with an id whose labels come later.

    >>> Join(keep="7d").keep_seconds
    604800.0
    """

    keep: str = field(default="24h", metadata={"like": _A_TIME})
    """How long a prediction waits for its label: a number and a unit (s, m, h or d), like "90s" or "7d"."""
    on_timeout: Literal["drop", "negative"] = "drop"
    """What happens when `keep` has passed: `drop` forgets the prediction, `negative` learns it as y = 0 (usual for
    clicks)."""
    max_waiting: int = field(default=1_000_000, metadata={"ge": 0, "le": 2**40})
    """Most predictions that may wait. Beyond it, the model serves more predictions but does not keep them."""
    late: Literal["refuse", "learn"] = "refuse"
    """What happens to a label 1 after the event was learned as y = 0: `refuse` refuses it, `learn` takes one more
    step."""

    def __post_init__(self) -> None:
        _Described.__post_init__(self)
        if not (_DURATION.fullmatch(self.keep) and 0 < self.keep_seconds <= LONGEST_KEEP):
            raise SpecError("keep", f"must be {_A_TIME}")
        if self.late == "learn" and self.on_timeout != "negative":
            raise SpecError("late", "can be 'learn' only if on_timeout is 'negative': a dropped prediction is gone")
        self._set("keep", _shortest(self.keep_seconds))

    @property
    def keep_seconds(self) -> float:
        """`keep` in seconds."""
        return duration_seconds(self.keep)


@dataclass(frozen=True, slots=True)
class Breaker(_Described):
    """The model stops learning if the mean log loss of its last events passes a limit."""

    events: int = field(metadata={"ge": 1, "le": 100_000})
    """Number of events in the mean."""
    log_loss: float = field(metadata={"gt": 0})
    """The limit, in nats. A model that always predicts 0.5 has 0.693."""


@dataclass(frozen=True, slots=True)
class Spec(_Described):
    """How a model learns. Names, meanings and defaults are river's if river has the parameter. docs/spec.md shows them.

    Raises SpecError, which names the field.

    >>> Spec(rule="adam").learning_rate
    0.1
    >>> Spec(learning_rate=0)
    Traceback (most recent call last):
        ...
    core.spec.SpecError: learning_rate must be a number above 0
    """

    rule: RuleName = "sgd"
    """How a gradient moves the weights: a name in `core.rules.RULES`. `sgd`: w <- w - learning_rate gradient. Or
    `auto` (core/auto), which needs no tuning and takes no rates, scale or penalties."""
    learning_rate: Rate | None = field(
        default=None, metadata={"number": {"gt": 0}, "json_schema_extra": {"exclusiveMinimum": 0}}
    )
    """Step size for the weights: a number or a schedule. ftrl calls it alpha; adadelta has none."""
    bias_learning_rate: Rate | None = field(
        default=None, metadata={"number": {"ge": 0}, "json_schema_extra": {"minimum": 0}}
    )
    """Step size for the bias, which always moves by plain gradient descent; 0 leaves it at 0. Default: `learning_rate`
    (river's `intercept_lr` is 0.01)."""
    l1: float = field(default=0.0, metadata={"ge": 0})
    """Cumulative L1 penalty (Tsuruoka et al. 2009). ftrl has an L1 penalty of its own."""
    l2: float | None = field(default=None, metadata={"ge": 0})
    """L2 penalty on the weights of the event's own features, not on the bias. Default: 0. Cannot be combined with `l1`,
    as in river. ftrl has an L2 penalty of its own, and allows `l1` with it."""
    clip: float = field(default=1e12, metadata={"gt": 0})
    """The residual p - y times class weight and sample weight is clipped to ±clip."""
    scale: Scale = "none"
    """How values are scaled before learning: `none`, `standard` (minus the running mean, divided by the running
    standard deviation) or `maxabs` (divided by the largest magnitude so far). Text features are not scaled: those with
    `=` in their names (`country=FR`)."""
    class_weights: dict[Literal["0", "1"], float] = field(
        default_factory=dict, metadata={"examples": [{"0": 1, "1": 1}]}
    )
    """Factors above 0 for an event's gradient, by its label. Default: 1 for both."""
    rho: float | None = field(default=None, metadata={"ge": 0, "lt": 1})
    """How much of its average the rule keeps at each step."""
    eps: float | None = field(default=None, metadata={"gt": 0})
    """Added to a divisor, so that it is never 0."""
    beta_1: float | None = field(default=None, metadata={"ge": 0, "lt": 1})
    """How much of the mean gradient stays at each step."""
    beta_2: float | None = field(default=None, metadata={"ge": 0, "lt": 1})
    """How much of the mean squared gradient stays at each step."""
    gamma: float | None = field(default=None, metadata={"gt": 0})
    """How fast the bounds of the rate close in."""
    final_lr: float | None = field(default=None, metadata={"gt": 0})
    """The rate that the bounds close in on."""
    beta: float | None = field(default=None, metadata={"ge": 0})
    """Makes the first rates smaller."""
    lag: bool | None = None
    """True: a weight is computed from the sums when its feature is next seen, as in river. False: at once, as in the
    paper (McMahan et al. 2013)."""
    correct_bias: bool | None = None
    """Whether the means are corrected for their start."""
    max_features: int = field(default=1_000_000, metadata={"ge": 1, "le": 2**30})
    """Most features of the model."""
    overflow: Literal["ignore", "refuse"] = "ignore"
    """What happens to a new feature beyond `max_features`: `ignore` leaves it out of the event and counts it, `refuse`
    refuses the event."""
    hash_bits: int | None = field(default=None, metadata={"ge": 1, "le": 30})
    """With k, feature names are hashed to 2^k features; `max_features` is then 2^k. If the model scales, names that
    contain `=` have 2^k features of their own. Default: no hashing."""
    max_value: float = field(default=1e100, metadata={"gt": 0, "le": 1e300})
    """Largest magnitude of a feature's value."""
    join: Join = field(default_factory=Join, metadata={"examples": [{"keep": "24h"}]})
    """How predictions with an id wait for their labels."""
    breaker: Breaker | None = field(default=None, metadata={"examples": [{"events": 1000, "log_loss": 1.5}]})
    """When the service stops the model's learning. Default: never. The learner ignores it."""
    columns: dict[str, Kind] | None = field(default=None, metadata={"examples": [{"age": "number", "zip": "text"}]})
    """The kinds of the columns in files replayed into the model: {"age": "number", "zip": "text", "row": "ignore"},
    also "weight" and "id"; at most 10,000. `replay` writes them into the spec of a model that it creates, and reads
    later files accordingly. Default: not known. Only `replay` uses it."""

    def __post_init__(self) -> None:
        """Check every field and fill in every default, so that equal models have equal specs."""
        _Described.__post_init__(self)
        if not self.class_weights.keys() <= {"0", "1"}:
            raise SpecError("class_weights", 'has the classes "0" and "1" only')
        weights = {label: _number("class_weights", float, w, {"gt": 0}) for label, w in self.class_weights.items()}
        self._set("class_weights", {"0": 1.0, "1": 1.0, **weights})
        _check_columns(self.columns or {})
        self._fill_in({} if self.rule == "auto" else RULES[self.rule].defaults)
        for name, good, message in self._together():
            if not good:
                raise SpecError(name, message)

    def _fill_in(self, defaults: dict[str, Any]) -> None:
        """Fill in the rule's defaults. Refuse parameters that the rule does not have."""
        for name in sorted(_OF_RULES - defaults.keys()):
            if getattr(self, name) is not None:
                raise SpecError(name, f"is not a parameter of {self.rule}")
        for name in ("learning_rate", "bias_learning_rate")[: 2 if self.rule == "auto" else 1]:
            if self.rule in ("adadelta", "auto") and getattr(self, name) is not None:
                raise SpecError(name, f"is not a parameter of {self.rule}, which finds its own rates")
        for name, default in {"l2": 0.0, **defaults}.items():
            if getattr(self, name) is None:
                self._set(name, default)
        if self.bias_learning_rate is None:
            self._set("bias_learning_rate", self.learning_rate)

    def _together(self) -> Iterator[tuple[str, bool, str]]:
        """What goes with what."""
        if self.rule == "auto":
            yield "scale", self.scale == "none", "must be 'none' with auto, which tries every scaling"
            yield "l1", not self.l1, "must be 0 with auto"
            yield "l2", not self.l2, "must be 0 with auto"
            yield "max_value", self.max_value <= 1e100, "must be at most 1e100 with auto"
        elif self.rule == "ftrl":
            yield "learning_rate", isinstance(self.learning_rate, float), "must be a number with ftrl"
        else:
            yield "l2", not (self.l1 and self.l2), "cannot be used together with l1"

    @classmethod
    def from_dict(cls, values: Any) -> Spec:
        """The spec that `as_dict` wrote, or that somebody sent as JSON. Raises SpecError."""
        if not isinstance(values, dict):
            raise SpecError("body", 'must be an object like {"learning_rate": 0.05}')
        return cast("Spec", _made(cls, values))

    def as_dict(self) -> dict[str, Any]:
        """The spec as JSON types, with every default, without parameters that its rule does not have."""
        values = {known.name: _plain(getattr(self, known.name)) for known in fields(self)}
        return {name: value for name, value in values.items() if value is not None or name == "hash_bits"}


_OF_RULES = {name for rule in RULES.values() for name in rule.defaults} - {
    "learning_rate", "bias_learning_rate", "l1", "l2",
}  # fmt: skip
"""The parameters that only some rules have."""


def _plain(value: Any) -> Any:
    """A field's value as JSON types. A dict is copied plainly: `asdict` would deep-copy each of 10,000 columns."""
    if isinstance(value, dict):
        return dict(value)
    return asdict(value) if is_dataclass(value) and not isinstance(value, type) else value


def _check_columns(columns: dict[str, Kind]) -> None:
    if len(columns) > MAX_COLUMNS:
        raise SpecError("columns", f"has {len(columns)} columns, but may have at most {MAX_COLUMNS}")
    for name, kind in columns.items():
        if not isinstance(kind, str) or kind not in get_args(Kind):
            raise SpecError("columns", f"has an unknown kind of column; the kinds are {', '.join(get_args(Kind))}")
        try:
            check_name(name)
        except EventError as error:
            raise SpecError("columns", f"has a name that is not valid for a feature: {error.message}") from None
