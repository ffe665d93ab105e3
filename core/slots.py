"""Where each number stands in the arrays of a model."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import numpy.typing as npt
from numba import types

from core.logistic import Floats

Table = npt.NDArray[np.float64]
"""(features, k) float64: k numbers for each feature."""
Codes = npt.NDArray[np.int64]

# Positions in the array of a model's scalars.
BIAS, L1_TOTAL, FINAL_LR = 0, 1, 2
SCALARS = 3

# Positions in the array of a model's parameters, `q`.
(
    SQUARE, ROOT, INVERSE,  # the exponents 2, 1/2 and -1
    L1, L2, CLIP, WEIGHT_0, WEIGHT_1,
    RATE, RATE_SHAPE, BIAS_RATE, BIAS_RATE_SHAPE, FIRST_RATE,
    RHO, EPS, BETA_1, BETA_2, GAMMA, BETA, LAG, CORRECT_BIAS,
) = range(21)  # fmt: skip
PARAMETERS = 21
OF_RULES = {
    "rho": RHO, "eps": EPS, "beta_1": BETA_1, "beta_2": BETA_2, "gamma": GAMMA, "beta": BETA, "lag": LAG,
    "correct_bias": CORRECT_BIAS,
}  # fmt: skip
"""Where the parameters stand that only some rules have, by their names in a spec. `final_lr` moves: it is a scalar."""

# Positions in the array of a model's choices, `codes`.
RULE, SCALE, SCHEDULE, BIAS_SCHEDULE, PENALTY = 0, 1, 2, 3, 4
UNSCALED, STANDARD, MAXABS = 0, 1, 2
CONSTANT, INVERSE_SCALING, OPTIMAL = 0, 1, 2


class State(NamedTuple):
    """What a step may change, for a model that is one logistic regression; a row for each feature in all but the last.

    Kernels pass it to each other. Python passes the arrays one by one: numba needs 4 us more for a call with a tuple.
    """

    w: Floats
    """The weights."""
    s: Table
    """The rule's numbers."""
    scaler: Table
    """The scaler's numbers."""
    paid: Floats
    """The L1 penalty paid; empty without one."""
    scalars: Floats


FLOATS, TABLE = types.float64[::1], types.float64[:, ::1]
COLUMNS, CODES = types.int32[::1], types.int64[::1]
STATE = types.NamedTuple([FLOATS, TABLE, TABLE, FLOATS, FLOATS], State)
