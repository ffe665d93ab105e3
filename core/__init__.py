"""The learner: logistic regression, one gradient step an event.

No input or output, no clock, no logging. `river` is imported by `core.parity` only, so a process that learns and
predicts does not pay for it.
"""

from core.features import EventError, Features
from core.learner import Learner
from core.progressive import Progressive
from core.spec import Spec, SpecError

__all__ = ["EventError", "Features", "Learner", "Progressive", "Spec", "SpecError"]
