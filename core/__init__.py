"""The learner: logistic regression, one gradient step per event.

This package does no input or output, reads no clock and logs nothing. Only `core.parity` imports `river`, so the
service does not pay for it.
"""

from core.features import EventError, Features
from core.learner import Learner
from core.progressive import Progressive
from core.spec import Spec, SpecError

__all__ = ["EventError", "Features", "Learner", "Progressive", "Spec", "SpecError"]
