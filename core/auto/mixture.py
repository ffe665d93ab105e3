"""The mixture: a Bayesian average of the members' probabilities under log loss, with a fixed share."""

from __future__ import annotations

import math

from core.compiled import part_of_kernels
from core.logistic import Floats
from core.rules import Table

SHARE = 3e-4
"""Part of the weight that is redistributed evenly after each event. It costs at most this much log loss per event."""
EXCESS, ABOVE, USUAL, EVENTS, ALARMS, HEAVIEST = range(6)
"""Places in the array of scalars: two sums of what the log loss is too much, the usual log loss, the events that it is
the mean of, how often the alarm was raised, and the heaviest weight of late."""
RISES, FADES = 10.0, 0.99
"""The heaviest weight rises at most so many times at an event, since a single one of a million is no measure for those
that follow; and this much of it is left after each."""
MOST = 5.0
"""Most nats that one event may add to a sum, because a single wrong label is no change of the stream."""
ALARM, SLACK = 12.0, 0.1
"""Nats in excess of what the predictions expect that raise the alarm, and nats subtracted at each event."""
ALARM_ABOVE, SLACK_ABOVE = 20.0, 0.15
"""The same in excess of the usual log loss: a mixture that has found out that it knows little expects little."""
FEW, MANY = 30.0, 1000.0
"""The usual log loss is the mean of the events since the last alarm, and of about the last MANY; where there are fewer
than FEW, what was usual before counts too."""


@part_of_kernels
def mixed(z: Floats, shares: Floats, chances: Table) -> float:
    """The mixture's score, log p / (1 - p); `chances[y, k]` <- member k's probability of label y.

    Each label's probability is computed by itself. One minus the other would lose a small one in rounding.
    """
    of_0, of_1 = 0.0, 0.0
    for k in range(len(z)):
        e = math.exp(-abs(z[k]))
        low, high = e / (1.0 + e), 1.0 / (1.0 + e)
        chances[0, k] = low if z[k] >= 0.0 else high
        chances[1, k] = high if z[k] >= 0.0 else low
        of_0 += shares[k] * chances[0, k]
        of_1 += shares[k] * chances[1, k]
    return math.log(of_1) - math.log(of_0)


@part_of_kernels
def share_of_weight(weight: float, scalars: Floats) -> float:
    """How much an event counts in the mixture: its weight, by the heaviest of late if that is above 1. 1 at most."""
    heaviest: float = max(1.0, min(weight, RISES * scalars[HEAVIEST]), FADES * scalars[HEAVIEST])
    scalars[HEAVIEST] = heaviest
    return min(weight / heaviest, 1.0)


@part_of_kernels
def reweigh(chances: Floats, shares: Floats, weight: float) -> None:
    """share_k <- share_k exp(-weight loss_k) = share_k P_k(y)^weight, normalised. Then redistributes SHARE evenly.

    `weight`: 1 at most. Log loss is mixable up to that rate only. Above it, the mixture follows whichever member is the
    most certain, and no bound holds.

    `chances`: the members' probabilities of the label that came. They are divided by the largest, so that a heavy event
    does not turn every share into 0.
    """
    largest = 0.0
    for k in range(len(shares)):
        largest = max(largest, chances[k])
    total = 0.0
    for k in range(len(shares)):
        ratio = chances[k] / largest
        shares[k] *= ratio if weight == 1.0 else math.pow(ratio, weight)
        total += shares[k]
    for k in range(len(shares)):
        shares[k] = (1.0 - SHARE) * (shares[k] / total) + SHARE / len(shares)


@part_of_kernels
def changed(z: float, y: int, weight: float, scalars: Floats) -> bool:
    """Whether the stream has changed abruptly, by two CUSUMs that never fall below 0: of the log loss minus the
    prediction's entropy, which is what it expects to lose, and of the log loss minus the usual log loss.

    `weight`: as for `reweigh`. Where labels weigh differently, the predictions are calibrated for weighted events, and
    plain ones would lose more than expected all the time.
    """
    a = abs(z)
    e = math.exp(-a)
    entropy = math.log1p(e) + a * e / (1.0 + e)  # -p log p - (1-p) log(1-p)
    loss = math.log1p(e) + (0.0 if (z > 0.0) == (y == 1) else a)
    scalars[EXCESS] = max(0.0, scalars[EXCESS] + weight * (min(loss - entropy, MOST) - SLACK))
    scalars[ABOVE] = max(0.0, scalars[ABOVE] + weight * (min(loss - scalars[USUAL], MOST) - SLACK_ABOVE))
    scalars[EVENTS] = min(scalars[EVENTS] + weight, MANY)
    scalars[USUAL] += weight * (min(loss, MOST) - scalars[USUAL]) / max(scalars[EVENTS], FEW)
    if scalars[EXCESS] <= ALARM and scalars[ABOVE] <= ALARM_ABOVE:
        return False
    scalars[EXCESS] = scalars[ABOVE] = scalars[EVENTS] = 0.0
    scalars[ALARMS] += 1.0
    return True
