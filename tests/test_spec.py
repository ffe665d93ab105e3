"""What a model may be told: values that make sense, the defaults of each rule, and what is refused, by its name."""

from __future__ import annotations

import dataclasses
import inspect
import json
import math
from typing import Any, Literal, get_args

import pytest
from effort import from_checks_on
from pydantic import TypeAdapter
from river import linear_model, optim

from core import Learner, Spec, SpecError
from core.rules import RULES
from core.spec import InverseScaling, Optimal, RuleName

HUGE = 10**400
RIVERS = {
    "sgd": optim.SGD,
    "momentum": optim.Momentum,
    "nesterov": optim.NesterovMomentum,
    "adagrad": optim.AdaGrad,
    "rmsprop": optim.RMSProp,
    "adadelta": optim.AdaDelta,
    "adam": optim.Adam,
    "amsgrad": optim.AMSGrad,
    "nadam": optim.Nadam,
    "adamax": optim.AdaMax,
    "adabound": optim.AdaBound,
    "ftrl": optim.FTRLProximal,
}
OWN_NAMES = ("rho", "eps", "beta_1", "beta_2", "gamma", "final_lr", "beta", "lag", "correct_bias")
NAMES = [field.name for field in dataclasses.fields(Spec)]


def river_parameters(rule: str) -> dict[str, Any]:
    """The parameters of river's optimizer with their defaults, under a spec's names."""
    parameters = {name: p.default for name, p in inspect.signature(RIVERS[rule]).parameters.items()}
    renamed = {"lr": "learning_rate", "alpha": "learning_rate"}
    return {renamed.get(name, name): default for name, default in parameters.items()}


def refused(values: dict[str, Any]) -> str:
    """The field that the refusal of these values names; fails if they are taken."""
    with pytest.raises(SpecError) as refusal:
        Spec.from_dict(values)
    assert str(refusal.value).startswith(refusal.value.field + " ")
    assert str(refusal.value) == f"{refusal.value.field} {refusal.value.message}"
    assert len(str(refusal.value)) < 200  # it does not echo what was said
    return refusal.value.field


# -- defaults


def test_the_rules_are_rivers_and_auto() -> None:
    assert set(get_args(RuleName)) == {*RULES, "auto"} == {*RIVERS, "auto"}


JOIN = {"keep": "24h", "on_timeout": "drop", "max_waiting": 1_000_000, "late": "refuse"}


def test_the_defaults_of_a_spec_are_those_of_the_documentation() -> None:
    assert Spec().as_dict() == {
        "rule": "sgd",
        "learning_rate": 0.01,
        "bias_learning_rate": 0.01,
        "l1": 0.0,
        "l2": 0.0,
        "clip": 1e12,
        "scale": "none",
        "class_weights": {"0": 1.0, "1": 1.0},
        "max_features": 1_000_000,
        "overflow": "ignore",
        "hash_bits": None,
        "max_value": 1e100,
        "join": JOIN,
    }


@pytest.mark.parametrize("rule", RIVERS)
def test_the_defaults_of_a_rule_are_rivers(rule: str) -> None:
    rivers, said = river_parameters(rule), Spec(rule=rule).as_dict()
    for name, default in rivers.items():
        assert said[name] == default, name
        assert type(said[name]) is type(default), name
    ours = {name for name in (*OWN_NAMES, "learning_rate") if name in said} - {"lag"}
    assert ours == rivers.keys() - {"l1", "l2"}  # and no more parameters than river's
    assert ("lag" in said) == (rule == "ftrl")


def test_the_defaults_that_all_rules_share_are_rivers() -> None:
    rivers = inspect.signature(linear_model.LogisticRegression).parameters
    for rule in RIVERS:
        assert Spec(rule=rule).clip == rivers["clip_gradient"].default
        if rule != "ftrl":
            assert (Spec(rule=rule).l1, Spec(rule=rule).l2) == (rivers["l1"].default, rivers["l2"].default)
    loss = inspect.signature(optim.losses.Log).parameters
    assert Spec().class_weights == {"0": loss["weight_neg"].default, "1": loss["weight_pos"].default}
    assert inspect.signature(optim.schedulers.InverseScaling).parameters["power"].default == 0.5
    assert InverseScaling("inverse_scaling", 0.1).power == 0.5
    assert inspect.signature(optim.schedulers.Optimal).parameters["alpha"].default == Optimal("optimal").alpha


@pytest.mark.parametrize("rule", sorted({*RIVERS} - {"adadelta"}))
def test_the_bias_moves_at_the_rate_of_the_weights_unless_another_is_given(rule: str) -> None:
    assert Spec(rule=rule, learning_rate=0.3).bias_learning_rate == 0.3
    assert Spec(rule=rule).bias_learning_rate == Spec(rule=rule).learning_rate
    assert Spec(rule=rule, learning_rate=0.3, bias_learning_rate=0.1).bias_learning_rate == 0.1
    assert Spec(rule=rule, learning_rate=0.3, bias_learning_rate=0.0).bias_learning_rate == 0.0


def test_a_schedule_of_the_weights_is_that_of_the_bias_too() -> None:
    schedule = InverseScaling("inverse_scaling", 0.3)
    assert Spec(learning_rate=schedule).bias_learning_rate == schedule
    assert Spec(learning_rate=schedule, bias_learning_rate=0.1).bias_learning_rate == 0.1
    assert Spec(learning_rate=0.1, bias_learning_rate=schedule).learning_rate == 0.1


def test_adadelta_has_no_learning_rate_and_moves_its_bias_at_rivers_default() -> None:
    spec, rivers = Spec(rule="adadelta"), inspect.signature(linear_model.LogisticRegression).parameters
    assert spec.learning_rate is None
    assert spec.bias_learning_rate == rivers["intercept_lr"].default == 0.01
    assert Spec(rule="adadelta", bias_learning_rate=0.3).bias_learning_rate == 0.3
    assert "learning_rate" not in spec.as_dict()


@pytest.mark.parametrize("rule", [*RIVERS, "auto"])
def test_null_is_the_default_of_what_may_be_left_out(rule: str) -> None:
    nulls = dict.fromkeys(["learning_rate", "bias_learning_rate", "l2", "hash_bits", *OWN_NAMES])
    assert Spec.from_dict({"rule": rule, **nulls}) == Spec(rule=rule)


# -- nonsense

NONSENSE = [
    *[("learning_rate", value) for value in (0, -0.1, math.nan, math.inf, -math.inf)],
    *[("clip", value) for value in (0, -1.0, math.nan, math.inf)],
    *[("max_value", value) for value in (0, -1.0, math.nan, math.inf, 1.0000001e300)],
    *[("bias_learning_rate", value) for value in (-1e-9, math.nan, math.inf)],
    *[("l1", value) for value in (-0.1, math.nan, math.inf)],
    *[("l2", value) for value in (-0.1, math.nan, math.inf)],
    *[("max_features", value) for value in (0, -1, 2**30 + 1)],
    *[("hash_bits", value) for value in (0, -1, 31)],
    *[("overflow", value) for value in ("drop", "", None, True)],
    *[("rule", value) for value in ("newton", "", "SGD", "Auto", None, 1)],
    *[("scale", value) for value in ("", "minmax", "None", None, 1, True)],
    *[("class_weights", {"0": value}) for value in (0, -1.0, math.nan, math.inf)],
    *[("class_weights", value) for value in ({"2": 1}, {"": 1}, {"0": 1, "1": 1, "2": 1}, {"true": 1})],
]
WRONG_TYPES = [
    *[(field, "much") for field in ("learning_rate", "bias_learning_rate", "l1", "l2", "clip", "max_value")],
    *[(field, None) for field in ("rule", "scale", "class_weights", "l1", "clip", "max_value", "max_features")],
    *[(field, [0.1]) for field in ("learning_rate", "l1", "max_features", "hash_bits", "scale", "class_weights")],
    *[(field, {}) for field in ("learning_rate", "bias_learning_rate", "max_features", "l2", "scale")],
    *[(field, "8") for field in ("learning_rate", "l2", "max_features", "hash_bits")],
    *[(field, 4.5) for field in ("max_features", "hash_bits", "class_weights")],
    *[(field, 4.0) for field in ("max_features", "hash_bits")],
    *[(field, math.nan) for field in ("max_features", "hash_bits")],
    *[(field, HUGE) for field in ("learning_rate", "bias_learning_rate", "l1", "l2", "clip", "max_value")],
    *[("class_weights", {"0": value}) for value in ("1", [1], dict[str, Any](), HUGE)],
]
BOOLEANS = ["learning_rate", "bias_learning_rate", "l1", "l2", "clip", "max_features", "hash_bits", "max_value"]
UNHASHABLE_RULES: list[Any] = [{}, [], ["sgd"]]


def short(value: Any) -> str | None:
    """An id for a test that is not hundreds of digits long."""
    return "huge" if "0" * 100 in str(value) else None


@pytest.mark.parametrize(("field", "value"), NONSENSE)
def test_a_value_that_makes_no_sense_in_a_spec_names_its_field(field: str, value: Any) -> None:
    assert refused({field: value}) == field
    with pytest.raises(SpecError) as refusal:
        Spec(**{field: value})
    assert refusal.value.field == field


@pytest.mark.parametrize(("field", "value"), WRONG_TYPES, ids=short)
def test_a_value_of_a_wrong_type_in_a_spec_names_its_field(field: str, value: Any) -> None:
    assert refused({field: value}) == field


@pytest.mark.parametrize("rule", UNHASHABLE_RULES)
def test_a_rule_that_is_no_name_at_all_is_refused(rule: Any) -> None:
    assert refused({"rule": rule}) == "rule"


def test_a_class_weight_that_is_null_is_refused() -> None:
    assert refused({"class_weights": {"0": None}}) == "class_weights"


@pytest.mark.parametrize("value", [True, False])
@pytest.mark.parametrize("field", BOOLEANS)
def test_a_boolean_is_no_number(field: str, value: bool) -> None:
    assert refused({field: value}) == field


def test_a_boolean_is_no_class_weight_and_no_number_of_a_schedule() -> None:
    assert refused({"class_weights": {"0": True}}) == "class_weights"
    assert refused({"learning_rate": {"schedule": "optimal", "alpha": True}}) == "learning_rate.alpha"


@pytest.mark.parametrize("rule", [*RIVERS, "auto"])
def test_what_makes_no_sense_makes_none_with_any_rule(rule: str) -> None:
    said = RULES[rule].defaults if rule in RULES else {}
    for field, value in (*NONSENSE, *WRONG_TYPES):
        if field != "rule" and not (rule == "adadelta" and field == "learning_rate"):
            assert refused({"rule": rule, field: value}) == field, (field, value)
    own: dict[str, tuple[Any, ...]] = {
        **dict.fromkeys(("eps", "gamma", "final_lr"), (0, -1, math.nan, math.inf, "1", True, HUGE, [], {})),
        **dict.fromkeys(("rho", "beta_1", "beta_2"), (-0.1, 1, 1.5, math.nan, math.inf, "0.5", True, HUGE, [])),
        "beta": (-0.1, math.nan, math.inf, "1", True, HUGE),
        **dict.fromkeys(("lag", "correct_bias"), (0, 1, "true", 0.5, [])),
    }
    for field, values in own.items():
        if field in said:
            for value in values:
                assert refused({"rule": rule, field: value}) == field, (field, value)


@pytest.mark.parametrize("rule", [*RIVERS, "auto"])
def test_the_parameters_of_another_rule_are_refused(rule: str) -> None:
    rivers = river_parameters(rule).keys() if rule in RIVERS else set()
    has = rivers | ({"lag"} if rule == "ftrl" else set())
    sound = {"lag": True, "correct_bias": True}
    for name in OWN_NAMES:
        if name in has:
            assert getattr(Spec.from_dict({"rule": rule, name: sound.get(name, 0.5)}), name) == sound.get(name, 0.5)
        else:
            assert refused({"rule": rule, name: sound.get(name, 0.5)}) == name


@pytest.mark.parametrize(
    "values",
    [
        {"learning_rate": 5e-324, "bias_learning_rate": 0, "clip": 1e-300},
        {"learning_rate": 1.7e308, "max_value": 1e300, "l1": 1e308},
        {"max_features": 1, "hash_bits": None},
        {"max_features": 2**30, "hash_bits": 1},
        {"hash_bits": 30, "l2": 0.1, "l1": 0},
        {"rule": "momentum", "rho": 0},
        {"rule": "adam", "beta_1": 0, "beta_2": math.nextafter(1, 0), "eps": 5e-324},
        {"rule": "adabound", "gamma": 5e-324, "final_lr": 1e308},
        {"rule": "ftrl", "beta": 0, "l1": 0, "l2": 0},
        {"rule": "ftrl", "l1": 1e308, "l2": 1e308},
        {"class_weights": {"0": 5e-324, "1": 1e308}},
        {"rule": "auto", "max_value": 1e100},
    ],
)
def test_values_at_the_limits_make_sense(values: dict[str, Any]) -> None:
    spec = Spec(**values)
    assert {name: getattr(spec, name) for name in values} == values
    learner = Learner(spec)
    learner.learn_many([{"a": 1.0}, {"a": 0.5}], [1, 0])
    assert 0.0 <= learner.predict_proba_one({"a": 1.0})[True] <= 1.0


@pytest.mark.parametrize("name", ["learning_rat", "lr", "intercept_lr", "", "__class__", "bias_rate", "alpha", "rate"])
def test_a_field_that_does_not_exist_is_refused_by_name(name: str) -> None:
    assert refused({"learning_rate": 0.1, name: 1}) == name


def test_a_spec_cannot_be_changed() -> None:
    with pytest.raises(AttributeError):
        Spec().learning_rate = 0.5  # type: ignore[misc]  # so does mypy say


# -- what goes with what


@pytest.mark.parametrize("rule", RIVERS)
def test_l1_and_l2_together_are_refused_as_in_river_but_for_ftrl_whose_own_they_are(rule: str) -> None:
    if rule == "ftrl":
        spec = Spec(rule=rule, l1=0.1, l2=0.2)
        assert (spec.l1, spec.l2) == (0.1, 0.2)
        return
    assert refused({"rule": rule, "l1": 0.1, "l2": 0.1}) == "l2"
    assert Spec(rule=rule, l1=0.1, l2=0).l1 == Spec(rule=rule, l2=0.1, l1=0).l2 == 0.1
    with pytest.raises(NotImplementedError):
        linear_model.LogisticRegression(l1=0.1, l2=0.1)


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("learning_rate", 0.1),
        ("learning_rate", {"schedule": "optimal"}),
        ("bias_learning_rate", 0.1),
        ("bias_learning_rate", 0),
        ("l1", 0.1),
        ("l2", 0.1),
        ("scale", "standard"),
        ("scale", "maxabs"),
        ("max_value", 1.1e100),
    ],
)
def test_auto_takes_no_rates_no_penalties_and_no_scale(field: str, value: Any) -> None:
    assert refused({"rule": "auto", field: value}) == field


def test_auto_takes_what_has_nothing_to_do_with_tuning() -> None:
    said: dict[str, Any] = {
        "clip": 5.0,
        "max_features": 7,
        "hash_bits": 3,
        "max_value": 10.0,
        "class_weights": {"0": 2.0, "1": 1.0},
        "overflow": "refuse",
    }
    expected = {"rule": "auto", "l1": 0.0, "l2": 0.0, "scale": "none", "join": JOIN, **said}
    assert Spec(rule="auto", **said).as_dict() == expected
    assert Spec(rule="auto", l1=0, l2=0, scale="none") == Spec(rule="auto")


def test_adadelta_takes_no_learning_rate() -> None:
    assert refused({"rule": "adadelta", "learning_rate": 0.1}) == "learning_rate"


# -- schedules


def test_a_schedule_may_come_as_an_object_with_its_defaults_left_out() -> None:
    spec = Spec.from_dict(
        {
            "learning_rate": {"schedule": "inverse_scaling", "learning_rate": 1},
            "bias_learning_rate": {"schedule": "optimal"},
        }
    )
    assert spec.learning_rate == InverseScaling("inverse_scaling", 1.0, 0.5)
    assert spec.bias_learning_rate == Optimal("optimal", 1e-4)
    assert spec.as_dict()["learning_rate"] == {"schedule": "inverse_scaling", "learning_rate": 1.0, "power": 0.5}


BAD_SCHEDULES: dict[str, Any] = {
    "no schedule": {"learning_rate": 0.1},
    "an unknown schedule": {"schedule": "cosine", "learning_rate": 0.1},
    "an upper case schedule": {"schedule": "Optimal"},
    "a null schedule": {"schedule": None},
    "a schedule that is no name": {"schedule": ["optimal"]},
    "a schedule that is an object": {"schedule": {"optimal": 1}},
    "an unknown field": {"schedule": "optimal", "alpha": 0.1, "beta": 1},
    "the field of another": {"schedule": "optimal", "power": 0.5},
    "alpha in inverse scaling": {"schedule": "inverse_scaling", "learning_rate": 0.1, "alpha": 0.1},
    "a missing rate": {"schedule": "inverse_scaling"},
    "a rate of 0": {"schedule": "inverse_scaling", "learning_rate": 0},
    "a negative rate": {"schedule": "inverse_scaling", "learning_rate": -0.1},
    "a rate that is no number": {"schedule": "inverse_scaling", "learning_rate": "0.1"},
    "a rate that is not a number": {"schedule": "inverse_scaling", "learning_rate": math.nan},
    "a huge rate": {"schedule": "inverse_scaling", "learning_rate": HUGE},
    "a negative power": {"schedule": "inverse_scaling", "learning_rate": 0.1, "power": -0.1},
    "a power of 11": {"schedule": "inverse_scaling", "learning_rate": 0.1, "power": 11},
    "a power that is no number": {"schedule": "inverse_scaling", "learning_rate": 0.1, "power": "1"},
    "an alpha of 0": {"schedule": "optimal", "alpha": 0},
    "an infinite alpha": {"schedule": "optimal", "alpha": math.inf},
    "an alpha that is no number": {"schedule": "optimal", "alpha": [0.1]},
    "a constant": {"schedule": "constant", "learning_rate": 0.1},
    "a schedule in a schedule": {"schedule": "optimal", "alpha": {"schedule": "optimal"}},
    "a null rate": {"schedule": "inverse_scaling", "learning_rate": None},
    "a null power": {"schedule": "inverse_scaling", "learning_rate": 0.1, "power": None},
    "a null alpha": {"schedule": "optimal", "alpha": None},
}


@pytest.mark.parametrize("schedule", BAD_SCHEDULES.values(), ids=BAD_SCHEDULES.keys())
@pytest.mark.parametrize("field", ["learning_rate", "bias_learning_rate"])
def test_a_schedule_that_makes_no_sense_names_its_field(field: str, schedule: Any) -> None:
    assert refused({field: schedule}).partition(".")[0] == field


def test_ftrl_takes_a_number_for_its_rate_as_river_does_and_a_schedule_for_the_bias() -> None:
    assert refused({"rule": "ftrl", "learning_rate": {"schedule": "optimal"}}) == "learning_rate"
    assert Spec.from_dict(
        {"rule": "ftrl", "bias_learning_rate": {"schedule": "optimal"}}
    ).bias_learning_rate == Optimal("optimal")


# -- there and back

TOLD: list[dict[str, Any]] = [
    {},
    *[{"rule": rule} for rule in (*RIVERS, "auto")],
    {"learning_rate": 0.5, "l1": 0.1},
    {"hash_bits": 8},
    {"rule": "adam", "learning_rate": {"schedule": "inverse_scaling", "learning_rate": 1, "power": 1}, "beta_1": 0.5},
    {"rule": "nadam", "learning_rate": {"schedule": "optimal"}, "bias_learning_rate": 0, "scale": "standard"},
    {"rule": "adadelta", "bias_learning_rate": {"schedule": "optimal", "alpha": 3}, "rho": 0},
    {"rule": "ftrl", "lag": False, "l1": 2, "l2": 3, "beta": 0},
    {"rule": "amsgrad", "correct_bias": False, "class_weights": {"1": 7}},
    {"rule": "adabound", "gamma": 1, "final_lr": 2, "max_features": 5},
    {"rule": "auto", "class_weights": {"0": 2, "1": 0.5}, "clip": 3, "max_value": 5},
]


@pytest.mark.parametrize("values", TOLD, ids=str)
def test_a_spec_survives_json_with_every_default_written_out(values: dict[str, Any]) -> None:
    spec = Spec.from_dict(values)
    written = json.loads(json.dumps(spec.as_dict()))
    assert Spec.from_dict(written) == spec
    assert Spec.from_dict(written).as_dict() == spec.as_dict() == written
    assert list(written) == [name for name in NAMES if name in written]  # in the order of the fields
    assert None not in [value for name, value in written.items() if name != "hash_bits"]


def test_what_says_the_same_is_the_same_spec() -> None:
    one, other = Spec.from_dict({"learning_rate": 1, "clip": 5}), Spec.from_dict({"learning_rate": 1.0, "clip": 5.0})
    assert one == other
    assert json.dumps(one.as_dict()) == json.dumps(other.as_dict())
    assert Spec.from_dict({}) == Spec.from_dict({"learning_rate": 0.01, "bias_learning_rate": 0.01}) == Spec()
    assert Spec(class_weights={}) == Spec(class_weights={"1": 1}) == Spec(class_weights={"1": 1.0, "0": 1})
    one, other = Spec(class_weights={"0": 2, "1": 3}), Spec(class_weights={"1": 3.0, "0": 2.0})
    assert json.dumps(one.as_dict()) == json.dumps(other.as_dict())


def test_what_says_something_else_is_another_spec() -> None:
    specs = [Spec.from_dict(values) for values in TOLD[2:]]  # the first two both say sgd
    assert all(a != b for i, a in enumerate(specs) for b in specs[:i])


def test_the_dict_that_a_spec_was_made_of_is_left_alone() -> None:
    values = {"class_weights": {"0": 2}, "learning_rate": {"schedule": "optimal", "alpha": 1}}
    spec = Spec.from_dict(values)
    assert values == {"class_weights": {"0": 2}, "learning_rate": {"schedule": "optimal", "alpha": 1}}
    spec.as_dict()["class_weights"]["0"] = 9.0
    assert spec.class_weights == {"0": 2.0, "1": 1.0}


def test_a_spec_does_not_change_with_the_dict_it_was_made_of() -> None:
    weights: dict[Literal["0", "1"], float] = {"0": 2.0, "1": 1.0}
    spec = Spec(class_weights=weights)
    weights["0"] = 9.0
    assert spec.class_weights == {"0": 2.0, "1": 1.0}


# -- the schema in the OpenAPI document, which pydantic makes of the same description

SCHEMA = TypeAdapter(Spec).json_schema()


def fits(values: Any) -> bool:
    import jsonschema  # five seconds of processor time, in every process that only looks for tests too

    return bool(jsonschema.Draft202012Validator(SCHEMA).is_valid(values))


@from_checks_on
@pytest.mark.parametrize("values", TOLD, ids=str)
def test_the_schema_takes_what_a_spec_takes(values: dict[str, Any]) -> None:
    assert fits(values)
    assert fits(Spec.from_dict(values).as_dict())


NOT_JSON = (math.nan, math.inf, -math.inf)
WITHOUT_ALL_OF_JSON = [
    (field, value)
    for field, value in (*NONSENSE, *WRONG_TYPES)
    if value not in (4.0, HUGE, {"0": HUGE}) and not any(repr(bad) in repr(value) for bad in NOT_JSON)
]
"""JSON Schema takes 4.0 for a whole number, and numbers of any size."""


@from_checks_on
@pytest.mark.parametrize(("field", "value"), WITHOUT_ALL_OF_JSON, ids=short)
def test_the_schema_refuses_a_value_that_a_spec_refuses(field: str, value: Any) -> None:
    in_words = (field, value) in [("class_weights", {"0": 0}), ("class_weights", {"0": -1.0})]  # "above 0"
    assert fits({field: value}) == in_words


@from_checks_on
@pytest.mark.parametrize("schedule", BAD_SCHEDULES.values(), ids=BAD_SCHEDULES.keys())
def test_the_schema_refuses_a_schedule_that_a_spec_refuses(schedule: Any) -> None:
    beyond_json = any(repr(value) in ("inf", "nan", repr(HUGE)) for value in schedule.values())
    assert beyond_json or not fits({"learning_rate": schedule})


def test_the_schema_describes_every_field() -> None:
    assert list(SCHEMA["properties"]) == NAMES
    assert SCHEMA["additionalProperties"] is False
    for part in (SCHEMA, *SCHEMA["$defs"].values()):
        for name, about in part["properties"].items():
            assert about.get("description") or name == "schedule", name


# -- the columns of files


def test_a_spec_keeps_what_the_columns_of_files_are() -> None:
    columns = {"age": "number", "zip": "text", "row": "ignore", "w": "weight", "key": "id"}
    spec = Spec.from_dict({"columns": columns})
    assert spec.as_dict()["columns"] == columns
    assert Spec.from_dict(json.loads(json.dumps(spec.as_dict()))) == spec
    assert "columns" not in Spec().as_dict()
    assert Spec(columns=None) == Spec()
    spec.as_dict()["columns"].clear()
    assert spec.columns == columns, "it is a copy"


@pytest.mark.parametrize(
    "columns",
    [
        [],
        "age",
        {"age": "float"},
        {"age": 1},
        {"age": None},
        {"": "number"},
        {"a\0b": "number"},
        {"x" * 257: "number"},
        {"\ud800": "text"},
        {f"c{n}": "number" for n in range(10_001)},
    ],
    ids=range(10),
)
def test_columns_that_are_none_are_refused(columns: Any) -> None:
    assert refused({"columns": columns}) == "columns"


def test_a_model_learns_the_same_whatever_it_keeps_of_columns() -> None:
    plain, keeping = Learner(Spec()), Learner(Spec(columns={"a": "text"}))
    for learner in (plain, keeping):
        learner.learn_one({"a": 1.0, "b": "x"}, 1)
    assert plain.weights.tolist() == keeping.weights.tolist()


@pytest.mark.parametrize(
    ("spec", "told"),
    [
        ({"class_weight": {}}, "class_weight is not a field of a spec; perhaps class_weights is meant"),
        ({"join": {"kept": "1h"}}, "join.kept is not a field of join; perhaps keep is meant"),
        ({"join": {"zzz": 1}}, "join.zzz is not a field of join; the fields are keep, on_timeout, max_waiting, late"),
    ],
)
def test_of_an_unknown_field_the_error_names_the_one_that_may_be_meant(spec: dict[str, Any], told: str) -> None:
    with pytest.raises(SpecError, match=told):
        Spec.from_dict(spec)
