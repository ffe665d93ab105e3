"""How this machine computes, as a digest.

The kernels add, multiply, divide and take roots as IEEE 754 says, so every processor gives the same bits. exp, log,
log1p and pow come from the C library, and they are rounded well but not always correctly: with fused multiply-add (FMA)
one result in some thousand differs from that without, and another C library differs too. Then the same events give a
model with other last bits. The digest tells such machines apart.
"""

from __future__ import annotations

import functools
import hashlib
import math

import numpy as np

from core.compiled import compiled
from core.logistic import Floats

INPUTS = 4_096
"""Of each operation. With and without FMA, a few results in so many differ."""
POWERS = np.array([0.5, 2.0, -1.0, 0.02])
"""Exponents as the rules and the schedules have them."""
_OPERATIONS = 11


@compiled("void(float64[::1], float64[::1], float64[::1], float64[::1], float64[:, ::1])")
def _compute(z: Floats, n: Floats, beta: Floats, powers: Floats, results: Floats) -> None:
    """Fill `results` (a row for each operation of the kernels, a column for each input).

    z: scores, -30 to 30. n: positive numbers of all sizes. beta: 0.5 to 1. The exponents are an argument because a
    compiler that knows them may take a root or a product instead.
    """
    for i in range(len(z)):
        results[0, i] = math.exp(z[i])
        results[1, i] = math.exp(-abs(z[i]))
        results[2, i] = math.log(n[i])
        results[3, i] = math.log1p(n[i])
        results[4, i] = math.sqrt(n[i])
        for k in range(len(powers)):
            results[5 + k, i] = math.pow(n[i], powers[k])
        results[9, i] = math.pow(beta[i], i)
        results[10, i] = z[i] * n[i] + beta[i] / n[i]  # other bits if the compiler fuses them


@functools.cache
def arithmetic() -> str:
    """The digest: 16 hexadecimal digits. Takes a millisecond, once.

    >>> len(arithmetic())
    16
    """
    places = np.arange(INPUTS, dtype=np.uint64)
    spread = places * np.uint64(0x9E3779B97F4A7C15) >> np.uint64(11)
    u: Floats = spread.astype(np.float64) * 2.0**-53  # evenly over 0 to 1, and exact
    sizes: Floats = np.ldexp(1.0, (places % 48).astype(np.int32) - 24)  # 2^-24 to 2^23
    results = np.zeros((_OPERATIONS, INPUTS))
    _compute(60.0 * u - 30.0, (1.0 + u) * sizes, 0.5 + 0.5 * u, POWERS, results)
    return hashlib.blake2b(results.tobytes(), digest_size=8).hexdigest()
