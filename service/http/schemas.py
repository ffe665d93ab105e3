"""What the routes other than `/learn` and `/predict` reply, for the OpenAPI document.

These classes only describe. The routes encode what models say of themselves, and tests hold each reply to its class.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, PlainSerializer

from core.explain import Contribution
from core.spec import Spec

Points = list[float | None]
SpecShown = Annotated[Spec, PlainSerializer(lambda spec: spec.as_dict())]  # without the fields that are None
_SHA256 = "9f86d081884c7d659a2feaa0c55ad015a3bf4f1b2b0b822cd15d6c15b0f00a08"


def _describe(schema: dict[str, Any]) -> None:
    fields = schema.get("properties", {})
    schema["required"] = [name for name, field in fields.items() if "default" in field]
    for field in fields.values():
        field.pop("default", None)
        field.pop("title", None)


class Shape(BaseModel):
    """A JSON object. A field with a default is always there, and the default is its example. The others are there only
    if there is something to say."""

    model_config = ConfigDict(json_schema_extra=_describe)

    @classmethod
    def example(cls, **changed: Any) -> dict[str, Any]:
        return cls.model_construct(**changed).model_dump(mode="json", by_alias=True)


class Problem(Shape):
    """A problem document (RFC 9457): what is wrong, where, and what to do."""

    type: str = "urn:logstep:unknown-model"
    title: str = "Unknown model"
    status: int = 404
    detail: str = "There is no model 'ads'."
    request_id: str = Field("1f2e3d4c-1", description="Id of the request, as in the header X-Request-ID and the log.")
    field: str = Field(description="Path of the wrong value in the body.")
    line: int = Field(description="Wrong line of an NDJSON body.")
    row: int = Field(description="Wrong row of an Arrow stream.")
    seq: int = Field(description="Where the event was learned that the error is about.")
    learned: int = Field(description="Events of a stream learned before the error. They stay learned.")
    duplicates: int
    not_learned: int = Field(description="Events of weight 0 before the error.")
    last_seq: int | None


class Alive(Shape):
    status: Literal["alive"] = "alive"
    version: str = Field("0.1.0", description="The version of logstep.")


class Ready(Shape):
    status: Literal["ready"] = "ready"


class Worse(Shape):
    """Set if, over more than 200 events, the log loss is worse than always predicting the share of label 1. `over` says
    over which events, `advice` what to do."""

    over: Literal["window", "total"] = "window"
    advice: str = "Worse than guessing over ..."


class Named(Shape):
    """A model, after so many events."""

    model: str = "default"
    seq: int = 45312


class Line(Named):
    rule: str = "sgd"
    log_loss: float | None = 0.3321
    base_rate_log_loss: float | None = 0.6812
    worse_than_guessing: Worse | None = None


class Models(Shape):
    models: list[Line] = [Line()]


class Scores(Shape):
    """Losses in nats; `base_rate_log_loss` is that of always predicting the share of label 1."""

    events: int = 45312
    log_loss: float | None = 0.3321
    base_rate_log_loss: float | None = 0.6812
    accuracy: float | None = 0.861
    roc_auc: float | None = 0.921


class Bucket(Shape):
    """How many values are up to a bound."""

    up_to: float | None = 60.0
    count: int = 25000


class Calibrated(Bucket):
    """How many probabilities are up to a bound, their mean `p`, and the share of `ones` among their labels."""

    up_to: float | None = 0.1
    count: int = 812
    p: float | None = 0.061
    ones: float | None = 0.058


class Progress(Shape):
    """Progressive validation: each prediction is scored before its event is learned."""

    total: Scores = Scores()
    window: Scores = Scores(events=1000)
    calibration: dict[str, list[Calibrated]] = {"total": [Calibrated()]}


class Delays(Shape):
    """Seconds from predictions to their labels."""

    count: int = 29012
    mean: float | None = 31.2
    buckets: list[Bucket] = [Bucket()]


class Joined(Shape):
    """Predictions with an id, and what became of them."""

    waiting: int = 812
    joined: int = 29000
    expired: int = 1000
    late: int = 12
    dropped: int = 0
    not_kept: int = 0
    delay_s: Delays = Delays()


class BreakerState(Shape):
    """`passed_at` is the seq of the event that passed the limit, and `stopped_at` of the last one that is learned; null
    while there is none."""

    log_loss: float | None = 0.3312
    passed_at: int | None = None
    stopped_at: int | None = None
    resumed_at: int = 0


class Resumed(Named):
    breaker: BreakerState | None = BreakerState()


class Made(Named):
    spec: SpecShown = Spec()
    created: bool = False


class Shown(Resumed):
    spec: SpecShown = Spec()
    features: int = 6
    not_taken: int = 0
    left_out: int = 0
    snapshot_seq: int = 40000
    progressive: Progress = Progress()
    worse_than_guessing: Worse | None = None
    served: Progress = Progress(total=Scores(events=30000))
    join: Joined = Joined()
    sha256: str = _SHA256
    learners: list[dict[str, int | float | str]] = Field(description="`auto` only: the weight of each learner.")
    alarms: int = Field(description="`auto` only: how often the stream changed abruptly.")


class Weights(Named):
    bias: float = 0.0049875
    weights: dict[str, float] = {"age": 0.155, "country=FR": 0.005}
    sha256: str = _SHA256


class CrossCheck(Named):
    events: int = 45312
    from_seq: int = 0
    not_taken: int = 0
    features: int = 6
    max_abs_diff: float = 0.0
    max_ulp: int = 0
    feature: str | None = None
    bias_ulp: int = 0
    equal: bool = True
    river: str = "0.26.1"
    replay_equal: bool = True
    sha256: str = _SHA256
    bits_may_differ_from: int | None = None


class Explained(Named):
    score: float = 0.853
    p: float = 0.701
    bias: float = 0.043
    features: list[Contribution] = [Contribution("age", 31.0, 31.0, 0.025, 0.775)]
    unknown: list[str] = ["country=FR"]
    method: str = "A feature contributes its weight times its value. ..."
    id: str = Field(description="That of the waiting prediction, if it is explained.")
    served_p: float
    served_seq: int


class Curve(Shape):
    """Arrays of equal length, with a point for each `seq`. `loss_total` is over all events up to it, in nats; the
    others are over the last `window` events, or a few more."""

    model: str = "default"
    window: int = 1024
    seq: list[int] = [128, 256]
    loss_total: Points = [0.5712, 0.4925]
    loss_window: Points = [0.5712, 0.4925]
    base_rate_loss_window: Points = [0.6901, 0.6812]
    accuracy_window: Points = [0.731, 0.778]


class Series(Shape):
    model: str = "default"
    from_: int = Field(1767225600, alias="from")
    to: int = 1767225605
    step: int = 5
    t: list[int] = [1767225605]
    seq: list[int | None] = [45312]
    features: list[int | None] = [6]
    learned: Points = [5201.4]
    predicted: Points = [310.2]
    loss: Points = [0.3321]
    loss_total: Points = [0.3321]
    loss_window: Points = [0.3321]
    accuracy_window: Points = [0.861]
    base_rate_loss_window: Points = [0.6812]
    waiting: Points = [812.0]
    commit_p50_ms: Points = [0.4]
    commit_p99_ms: Points = [1.9]
    served_loss: Points = [0.3321]
    delay_s: Points = [31.2]
    shares: dict[str, Points] = Field(description="`auto` only: the weight of each group of learners; they sum to 1.")
    marks: list[dict[str, int | float | str | None]] = [{"t": 1767225600, "kind": "snapshot", "seq": 40000}]
