"""The largest weights and those that moved most, held to a sort."""

from __future__ import annotations

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from core.weights import largest

VALUES = st.lists(st.sampled_from([0.0, -0.0, 1e-300, 0.5, -0.5, 1.0, -2.0, 3.5, 1e100]), max_size=60)


def sorted_out(sizes: list[float], count: int) -> list[int]:
    """The places of the largest sizes, the first of equals first, without zeros."""
    return [place for place in sorted(range(len(sizes)), key=lambda i: (-sizes[i], i)) if sizes[place]][:count]


@given(VALUES, st.integers(1, 25))
def test_the_largest_are_those_that_a_sort_puts_first(values: list[float], count: int) -> None:
    assert largest(np.array(values), count) == sorted_out([abs(value) for value in values], count)


@given(VALUES, VALUES, st.integers(1, 25))
def test_what_moved_most_is_furthest_from_what_it_was_and_what_is_new_was_zero(
    values: list[float], before: list[float], count: int
) -> None:
    before = before[: len(values)]
    moved = [abs(value - was) for value, was in zip(values, before + [0.0] * len(values), strict=False)]
    assert largest(np.array(values), count, np.array(before)) == sorted_out(moved, count)
