"""Where each number stands in the arrays of a model."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

Table = npt.NDArray[np.float64]
"""(features, k) float64: k numbers for each feature."""

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

# Positions in the array of a model's choices, `codes`.
RULE, SCALE, SCHEDULE, BIAS_SCHEDULE, PENALTY = 0, 1, 2, 3, 4
UNSCALED, STANDARD, MAXABS = 0, 1, 2
CONSTANT, INVERSE_SCALING, OPTIMAL = 0, 1, 2
