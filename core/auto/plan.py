"""Which learners `auto` runs side by side: views of the data x rules x learning rates, in groups, and their stackers.

Taking a line out of `PLAN` takes a group out; the rest learns as before.
"""

from __future__ import annotations

from typing import NamedTuple

VIEWS = ("raw", "rms", "standard", "maxabs")
RAW, RMS, STANDARD, MAXABS = range(4)
RULES = ("sgd", "adagrad", "ftrl", "kalman", "vw")
SGD, ADAGRAD, FTRL, KALMAN, VW = range(5)


class Member(NamedTuple):
    """One learner: its rule, its learning rate (Kalman: a weight's variance at first), its view of single features."""

    rule: int
    rate: float
    view: int = RAW


SINGLE = (
    # SGD, AdaGrad and FTRL cover the rates that were best for a rule and view on any of the benchmark's streams, a
    # factor of three to ten apart.
    *(Member(SGD, rate, RAW) for rate in (0.01, 0.1)),
    *(Member(SGD, rate, RMS) for rate in (0.03, 0.3)),
    *(Member(SGD, rate, STANDARD) for rate in (0.01, 0.1)),
    *(Member(SGD, rate, MAXABS) for rate in (0.1, 1.0)),
    *(Member(ADAGRAD, rate, RAW) for rate in (0.1,)),
    *(Member(ADAGRAD, rate, RMS) for rate in (0.03, 0.1, 0.3)),
    *(Member(ADAGRAD, rate, STANDARD) for rate in (0.03, 0.1, 0.3)),
    *(Member(ADAGRAD, rate, MAXABS) for rate in (0.3, 3.0)),
    *(Member(FTRL, rate, RAW) for rate in (0.3,)),
    *(Member(FTRL, rate, RMS) for rate in (0.1, 0.2, 0.3, 0.5, 1.0)),
    *(Member(FTRL, rate, STANDARD) for rate in (0.1, 0.3, 1.0)),
    Member(KALMAN, 0.3, RMS),
    Member(KALMAN, 0.1, STANDARD),
    Member(VW, 0.5, RMS),
)
"""Learners of the event's own features."""

EVIDENCE = Member(SGD, 0.02), Member(ADAGRAD, 0.1), Member(KALMAN, 0.1), Member(VW, 0.5)
"""Learners of what `evidence.py` makes of the event's features."""
PAIRS = Member(ADAGRAD, 0.03), Member(FTRL, 0.3), Member(VW, 0.5)
"""Learners of pairs of the event's indicators, see `pairs.py`, and of the evidence of all of them."""


class Plan(NamedTuple):
    """What runs. Without learners a group is out; the rest learns as before."""

    single: tuple[Member, ...] = ()
    evidence: tuple[Member, ...] = ()
    pairs: tuple[Member, ...] = ()
    stackers: tuple[float, ...] = ()
    """Learning rates of the stackers that learn by AdaGrad."""
    kalman: float | None = None
    """Variance of the weights, at first, of the stacker that learns by a Kalman filter; None: without it."""


PLAN = Plan(
    single=SINGLE,
    evidence=EVIDENCE,
    pairs=PAIRS,
    stackers=(0.003, 0.02, 0.1),
    kalman=0.01,
)
