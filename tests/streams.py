"""Streams of events for the tests: data sets that river ships, read once, and sample weights for them."""

from __future__ import annotations

import functools
import itertools
import random
from collections.abc import Callable, Mapping

from river import datasets

Event = tuple[Mapping[str, float], int]

_DATASETS: dict[str, Callable[[], datasets.base.Dataset]] = {
    "Phishing": datasets.Phishing,
    "Bananas": datasets.Bananas,
    "Shuttle": datasets.Shuttle,
}


@functools.cache
def stream(name: str, count: int | None = None) -> tuple[Event, ...]:
    """The first `count` events of a data set, all by default: x, and y as 0 or 1. Shared: not to be changed."""
    return tuple((x, int(y)) for x, y in itertools.islice(iter(_DATASETS[name]()), count))


def sample_weights(count: int) -> list[float]:
    """As many sample weights between 0.1 and 5, the same each time."""
    numbers = random.Random(7)
    return [numbers.uniform(0.1, 5.0) for _ in range(count)]
