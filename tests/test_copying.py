"""A copy that is made in slices while the model learns is the state of the moment when it was begun."""

from __future__ import annotations

import copy
from typing import Any

import pytest
from effort import examples
from hypothesis import given
from hypothesis import strategies as st

from core import Learner, Spec
from core.learner import NoWeights

SPECS = [
    Spec(learning_rate=0.5),
    Spec(rule="adam", scale="standard"),
    Spec(l1=0.01, scale="maxabs"),
    Spec(rule="ftrl", learning_rate=1e200),  # some steps are not taken
]
x = st.dictionaries(st.sampled_from([f"f{i}" for i in range(40)]), st.floats(-1e3, 1e3) | st.just(1e99), max_size=8)
event = st.tuples(x, st.integers(0, 1))


def told(state: dict[str, Any]) -> dict[str, Any]:
    """The state, with the bits of its arrays."""
    return {**state, "arrays": {name: array.tobytes() for name, array in state["arrays"].items()}}


@examples(200)
@given(
    st.sampled_from(SPECS),
    st.lists(event, max_size=20),
    st.lists(st.none() | st.lists(event, max_size=5), max_size=20),
    st.integers(8, 200),
)
def test_a_copy_made_while_the_model_learns_is_of_its_beginning(
    spec: Spec, first: list[Any], then: list[list[Any] | None], slice_bytes: int
) -> None:
    learner, alone = Learner(spec), Learner(spec)
    for x, y in first:
        learner.learn_one(x, y)
        alone.learn_one(x, y)
    before = told(copy.deepcopy(learner.state()))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("core.copying.SLICE_BYTES", slice_bytes)
        made = learner.begin_copy()
        state = learner.state(copy=made)
        for events in then:
            if events is None:
                made.go_on()
                continue
            for x, y in events:
                learner.learn_one(x, y)
                alone.learn_one(x, y)
        while made.go_on():
            pass
    learner.end_copy()
    assert told(state) == before
    assert told(learner.state()) == told(alone.state())


def test_auto_is_not_copied_in_slices() -> None:
    with pytest.raises(NoWeights):
        Learner(Spec(rule="auto")).begin_copy()
