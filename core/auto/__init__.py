"""The learner that needs no tuning.

Many learners run side by side on every event: views of the data x rules x learning rates, in the groups of `plan.py`. A
Bayesian mixture under log loss combines their probabilities. The weight of learner k is proportional to exp(-its
cumulative log loss). After each event a small share is redistributed evenly, so the mixture follows a drifting stream
(fixed share, Herbster and Warmuth 1998). For any learner k of the first bank, after n events and A alarms (below),

    log loss of the mixture <= log loss of k + (ln M + A ln 2) / n - ln(1 - share)

with M members, where the log loss of each event counts by its weight: as it is up to 1, and above by the heaviest of
late. So no tuning is needed, and there is a proof. Class weights above 1 are divided by the larger one.

Three groups: learners of single features (`learners.py`); learners of what the labels have said so far of each value
(`evidence.py`); learners of pairs of values (`pairs.py`). Stackers (`stacker.py`) learn a weighted sum of the others'
scores, which can beat every single learner. They are ordinary members of the mixture (`mixture.py`), so the bound holds
even if they do not help.

An alarm: while predictions are calibrated, the mean log loss equals their entropy. If the excess over it adds up too
fast (a CUSUM, Page 1954), the stream has changed suddenly; so it has if the excess over the usual log loss adds up,
since the stackers soon find out that the others know nothing any more. Then a second bank, with all groups and counts
of its own, starts from nothing with half of the weight. Slow old learners, whose rates have shrunk, now compete with
fast new ones. The next alarm restarts the second bank, never the first.

Views, each from running statistics of the feature's own values: raw; divided by the root mean square; minus the mean
and divided by the standard deviation; divided by the largest magnitude. The statistics include the value itself. A
prediction includes it in a copy, so it is the same with or without a label later. It also numbers the names that the
model does not know as learning them would.

`event.py` has one event's way through all of this, and `auto.py` the state.
"""

from core.auto.auto import Auto
from core.auto.rules import MAX_SCORE
from core.auto.terms import Terms

__all__ = ["MAX_SCORE", "Auto", "Terms"]
