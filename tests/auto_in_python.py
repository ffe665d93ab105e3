"""`auto` once more, in plain Python and by the definitions: what the kernels are compared with.

It has a dict where they have tables, and computes statistics from all values so far.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from core.auto import MAX_SCORE
from core.auto.mixture import ALARM, ALARM_ABOVE, FEW, MANY, MOST, SHARE, SLACK, SLACK_ABOVE
from core.auto.plan import ADAGRAD, KALMAN, PLAN, SGD, VIEWS, VW, Member, Plan
from core.auto.rules import lambert
from core.auto.stacker import FORGETS, MAX_HEARD, TRACE

Inputs = Mapping[Any, float]
Keep = Callable[[float], float]
"""How a number is kept: as it is, or as float32."""


def as_float32(x: float) -> float:
    return float(np.float32(x))


def clamped(z: float, most: float = MAX_SCORE) -> float:
    return max(-most, min(most, z))


def sigmoid(z: float) -> float:
    return 1 / (1 + math.exp(-z))


class Statistics:
    """Of one feature: what its views need."""

    def __init__(self) -> None:
        self.values: list[float] = []

    def moments(self, x: float) -> tuple[float, float, float]:
        """Mean, population variance and mean square, with x taken up."""
        values = [*self.values, x]
        mean = math.fsum(values) / len(values)
        variance = math.fsum((value - mean) ** 2 for value in values) / len(values)
        return mean, variance, math.fsum(value * value for value in values) / len(values)

    def views(self, x: float) -> dict[str, float]:
        """The four views of x, with x taken up."""
        mean, variance, square = self.moments(x)
        largest = max(map(abs, [*self.values, x]))
        by_largest = x / largest if largest else 0.0
        return {
            "raw": x,
            "rms": x / math.sqrt(square) if square else 0.0,
            "standard": (x - mean) / math.sqrt(variance) if variance > 1e-12 * square else by_largest,
            "maxabs": by_largest,
        }


class Gradient:
    """SGD, AdaGrad and FTRL (McMahan et al. 2013, beta 1, no penalties). `n`: the sum of squares; its root for FTRL."""

    def __init__(self, rule: int, rate: float, keep: Keep = float) -> None:
        self.rule, self.rate, self.keep = rule, rate, keep
        self.w: dict[Any, float] = {}
        self.n: dict[Any, float] = {}
        self.s: dict[Any, float] = {}

    def score(self, x: Inputs) -> float:
        return clamped(sum(self.w.get(name, 0.0) * value for name, value in x.items()))

    def learn(self, x: Inputs, y: int, weight: float, clip: float) -> None:
        g = clamped((sigmoid(self.score(x)) - y) * weight, clip)
        for name, value in x.items():
            w, n, s, gradient = self.w.get(name, 0.0), self.n.get(name, 0.0), self.s.get(name, 0.0), g * value
            if self.rule == SGD:
                w -= self.rate * gradient
            elif self.rule == ADAGRAD:
                n += gradient**2
                w -= self.rate * gradient / math.sqrt(n + 1e-8)
            else:
                root = math.hypot(n, gradient)
                s += gradient - (root - n) / self.rate * w
                n, w = root, -s / ((1 + root) / self.rate)
            self.w[name], self.n[name], self.s[name] = self.keep(w), self.keep(n), self.keep(s)


class Kalman:
    """Bayesian logistic regression with a diagonal covariance."""

    def __init__(self, variance: float, keep: Keep = float) -> None:
        self.first, self.keep = keep(variance), keep
        self.m: dict[Any, float] = {}
        self.s: dict[Any, float] = {"bias": 1.0}

    def raw(self, x: Inputs) -> float:
        return sum(self.m.get(name, 0.0) * value for name, value in x.items())

    def variance(self, x: Inputs) -> float:
        return sum(self.s.get(name, self.first) * value**2 for name, value in x.items())

    def score(self, x: Inputs) -> float:
        return clamped(self.raw(x) / math.sqrt(1 + math.pi * self.variance(x) / 8))

    def learn(self, x: Inputs, y: int, weight: float, clip: float) -> None:
        p = sigmoid(clamped(self.raw(x)))
        weight = min(weight, clip / abs(p - y))
        h, v = p * (1 - p) * weight, self.variance(x)
        for name, value in x.items():
            s = self.s.get(name, self.first)
            self.m[name] = self.keep(self.m.get(name, 0.0) + s * value * (y - p) * weight / (1 + h * v))
            self.s[name] = self.keep(s - s**2 * value**2 * h / (1 + h * v))


class VowpalWabbit:
    """The adaptive, normalised, invariant rule."""

    def __init__(self, rate: float, keep: Keep = float) -> None:
        self.rate, self.keep = rate, keep
        self.w: dict[Any, float] = {}
        self.n: dict[Any, float] = {}
        self.b: dict[Any, float] = {}
        self.events, self.norm = 0.0, 0.0

    def score(self, x: Inputs) -> float:
        return clamped(sum(self.w.get(k, 0.0) * clamped(value, self.b.get(k, 0.0)) for k, value in x.items()))

    def learn(self, x: Inputs, y: int, weight: float, clip: float) -> None:
        z = self.score(x)
        self.events += min(weight, 1e6)
        weight = min(weight, clip / abs(sigmoid(z) - y), 1e6)
        rates = {}
        for name, value in x.items():
            old = self.b.get(name, 0.0)
            size = max(old, abs(value))
            if size == 0.0:
                continue
            self.w[name] = self.w.get(name, 0.0) * old / size
            n = self.n.get(name, 0.0) + weight * ((sigmoid(z) - y) * value) ** 2
            self.norm += weight * (value / size) ** 2
            rates[name] = 1 / (size * math.sqrt(n + 1e-20))
            self.n[name], self.b[name] = self.keep(n), self.keep(size)
        c = math.sqrt(self.events / self.norm) if self.norm else 1.0
        moved = c * sum(rate * x[name] ** 2 for name, rate in rates.items())
        u = (flow(z, y, self.rate * weight * moved) - z) / moved * c if moved > 1e-12 else 0.0
        for name, rate in rates.items():
            self.w[name] = self.keep(self.w[name] + u * x[name] * rate)


def flow(z: float, y: int, time: float) -> float:
    """Where the score is after so much time if it moves with dz/dt = -(p - y): with s = z for label 1 and -z for label
    0, s + e^s grows by the time. As W(e^x) + ln W(e^x) = x, that is s = ln W(e^x) with x = s + e^s + time."""
    sign = 1 if y else -1
    return sign * lambert(sign * z + math.exp(sign * z) + time)


def learner_of(member: Member, keep: Keep) -> Gradient | Kalman | VowpalWabbit:
    if member.rule == KALMAN:
        return Kalman(member.rate, keep)
    return VowpalWabbit(member.rate, keep) if member.rule == VW else Gradient(member.rule, member.rate, keep)


class Group:
    """Learners of the same inputs."""

    def __init__(self, members: Sequence[Member], keep: Keep) -> None:
        self.views = [VIEWS[member.view] for member in members]
        self.learners = [learner_of(member, keep) for member in members]

    def scores(self, seen: Mapping[str, Inputs]) -> list[float]:
        """`seen`: the inputs by view; the bias is one that is always 1."""
        self.seen = seen
        return [each.score(seen[view]) for each, view in zip(self.learners, self.views, strict=True)]

    def learn(self, y: int, weight: float, clip: float) -> None:
        for each, view in zip(self.learners, self.views, strict=True):
            each.learn(self.seen[view], y, weight, clip)


class KalmanStacker:
    """With the full covariance."""

    def __init__(self, variance: float, learners: int) -> None:
        self.w = np.append(np.full(learners, 1 / learners), 0.0)
        self.p = np.eye(learners + 1) * variance

    def score(self, z: Sequence[float]) -> float:
        self.x = np.append(np.clip(z, -MAX_HEARD, MAX_HEARD), 1.0)
        return clamped(float(self.w @ self.x))

    def learn(self, y: int, weight: float, clip: float) -> None:
        p = sigmoid(clamped(float(self.w @ self.x)))
        weight = min(weight, clip / abs(p - y))
        h, px = max(p * (1 - p), 1e-4) * weight, self.p @ self.x
        d = 1 + h * self.x @ px
        self.w += px * (y - p) * weight / d
        self.p -= np.outer(px, px) * h / d
        if np.trace(self.p) < TRACE * len(self.x):
            self.p /= FORGETS


def bucket(x: float) -> Any:
    """Sign, exponent and two bits of the mantissa."""
    if abs(x) < 2**-6:
        return 0
    mantissa, exponent = math.frexp(abs(x))
    return math.copysign(1, x), max(-6, min(24, exponent)), math.floor((mantissa - 0.5) * 8)


def place(first: int, second: int, part: int) -> int:
    """The place of a pair among 2^14, by SplitMix64's finaliser."""
    first, second = sorted((first, second))
    bits = (first * 0x9E3779B97F4A7C15 % 2**64) ^ part ^ (second * 0xC2B2AE3D27D4EB4F % 2**64)
    bits ^= bits >> 29
    bits = bits * 0xBF58476D1CE4E5B9 % 2**64
    return (bits ^ (bits >> 32)) % 2**14


class Evidence:
    """Indicators: what each is worth, and their pairs. `number`: all so far, in order of appearance."""

    def __init__(self, number: dict[Any, int]) -> None:
        self.counts: dict[Any, list[float]] = {}
        self.number = number
        self.ones, self.events = 0.0, 0.0

    def e(self, key: Any, decayed: bool = False) -> float:
        n1, n0, d1, d0 = self.counts.get(key, [0.0] * 4)
        b = (self.ones + 0.5) / (self.events + 1)
        one, zero = (d1, d0) if decayed else (n1, n0)
        return math.log((one + 2 * b) / (zero + 2 * (1 - b))) - math.log(b / (1 - b))

    def inputs(self, x: Mapping[str, float], statistics: Mapping[str, Statistics]) -> dict[Any, float]:
        """The inputs of the group evidence, by what they are."""
        key: Any
        fields: dict[str, tuple[list[Any], list[Any]]] = {}
        self.values: list[Any] = []
        self.distances: list[Any] = []
        for name, value in x.items():
            field, text, _ = name.partition("=")
            if text:
                if value:
                    self.values.append(key := (name, None, None))
                    fields.setdefault(field, ([], []))[0].append(key)
                    self._number(key)
                continue
            self.values.append(key := (name, "bucket", bucket(value)))
            fields.setdefault(field, ([], []))[0].append(key)
            self._number(key)
            mean, variance, square = statistics[name].moments(value)
            if variance > 1e-12 * square:
                z = max(-6, min(6, math.floor((value - mean) / math.sqrt(variance) / 0.5 + 0.5)))
                self.distances.append(key := (name, "distance", z))
                fields.setdefault(field, ([], []))[1].append(key)
                self._number(key)
        inputs: dict[Any, float] = {}
        for kind, keys in (("values", self.values), ("distances", self.distances)):
            if keys:
                e = [self.e(key) for key in keys]
                inputs[kind, "root"] = sum(e) / math.sqrt(len(e))
                inputs[kind, "mean"] = sum(e) / len(e)
                inputs[kind, "largest"] = max(e, key=abs)
        for field, (values, distances) in fields.items():
            if values:
                inputs[field, "e"] = sum(map(self.e, values)) / math.sqrt(len(values))
                inputs[field, "decayed"] = sum(self.e(key, True) for key in values) / math.sqrt(len(values))
                seen = [math.log1p(sum(self.counts.get(key, [0.0, 0.0])[:2])) for key in values]
                inputs[field, "seen"] = sum(seen) / len(seen)
            if distances:
                inputs[field, "distance"] = sum(map(self.e, distances)) / math.sqrt(len(distances))
        self.aggregates = {name: inputs.get(("values", name), 0.0) for name in ("root", "mean", "largest")}
        return inputs

    def _number(self, key: Any) -> None:
        self.number.setdefault(key, len(self.number))

    def pairs(self) -> list[int]:
        """The places of the event's pairs."""
        text = [key for key in self.values if key[1] is None]
        chosen = [self.values] + ([text + self.distances] if self.distances else [])
        places = []
        for part, keys in enumerate(chosen):
            top = sorted(keys, key=lambda key: -abs(self.e(key)))[:12]
            for one, other in itertools.combinations(top, 2):
                if not part or (one not in text or other not in text):
                    places.append(place(self.number[one], self.number[other], part))
        return places

    def learn(self, y: int, weight: float) -> None:
        weight = min(weight, 1e6)
        for key in self.values + self.distances:
            counts = self.counts.setdefault(key, [0.0] * 4)
            counts[2] *= 0.5 ** (1 / 50)
            counts[3] *= 0.5 ** (1 / 50)
            counts[0 if y else 1] += weight
            counts[2 if y else 3] += weight
        self.ones += weight if y else 0.0
        self.events += weight


class Bank:
    """Groups, the evidence that they see, and their stackers."""

    def __init__(self, plan: Plan, number: dict[Any, int]) -> None:
        self.plan = plan
        self.evidence = Evidence(number)
        self.of_aggregates = {name: Statistics() for name in ("root", "mean", "largest")}
        self.groups = [Group(plan.single, float), Group(plan.evidence, as_float32), Group(plan.pairs, as_float32)]
        learners = sum(map(len, plan[:3]))
        self.adagrad = [Gradient(ADAGRAD, rate) for rate in plan.stackers]
        for stacker in self.adagrad:
            stacker.w = dict.fromkeys(range(learners), 1 / learners)
        self.kalman = [] if plan.kalman is None else [KalmanStacker(plan.kalman, learners)]

    def scores(self, x: Mapping[str, float], statistics: Mapping[str, Statistics], single: Any) -> list[float]:
        """The scores of all members. `single`: the inputs of the group of single features, by view."""
        evidence, aggregates, pairs = {}, {}, []
        if self.plan.evidence or self.plan.pairs:
            evidence = self.evidence.inputs(x, statistics)
            aggregates, pairs = self.evidence.aggregates, self.evidence.pairs()
        views = {name: self.of_aggregates[name].views(value) for name, value in aggregates.items()}
        standard = {("all", name): by["standard"] for name, by in views.items()}
        seen = [single, {"raw": {"bias": 1.0, **evidence}}]
        seen.append({"raw": {"bias": 1.0, **standard, **dict.fromkeys(pairs, 1.0)}})
        z = [score for group, inputs in zip(self.groups, seen, strict=True) for score in group.scores(inputs)]
        self.heard: Inputs = dict(enumerate(z)) | {"bias": 1.0}
        return z + [each.score(self.heard) for each in self.adagrad] + [each.score(z) for each in self.kalman]

    def learn(self, y: int, weight: float, own: float, clip: float) -> None:
        """`weight`: with the class weight; `own`: the event's."""
        for group in self.groups:
            group.learn(y, weight, clip)
        for stacker in self.adagrad:
            stacker.learn(self.heard, y, weight, clip)
        for kalman in self.kalman:
            kalman.learn(y, weight, clip)
        if self.plan.evidence or self.plan.pairs:
            for name, value in self.evidence.aggregates.items():
                self.of_aggregates[name].values.append(value)
            self.evidence.learn(y, own)


class Mixture:
    """What `Auto` is, by its description. All features are numbers; text is `name=value` with 1."""

    def __init__(self, clip: float = 1e12, class_weights: tuple[float, float] = (1.0, 1.0), plan: Plan = PLAN) -> None:
        largest = max(1.0, *class_weights)
        self.clip, self.plan = clip / largest, plan
        self.class_weights = [weight / largest for weight in class_weights]
        self.number: dict[Any, int] = {}
        self.banks = [Bank(plan, self.number)]
        self.members = sum(map(len, plan[:4])) + (plan.kalman is not None)
        self.shares = [[1 / self.members] * self.members]
        self.statistics: dict[str, Statistics] = {}
        self.excess, self.above, self.usual, self.events = 0.0, 0.0, math.log(2), 0.0
        self.alarms, self.loss, self.heaviest = 0, 0.0, 1.0
        self.losses = [0.0] * self.members
        """The log loss so far of each member of the first bank."""

    def learn(self, x: Mapping[str, float], y: int, weight: float = 1.0) -> float:
        """The probability before the event, which is then learned."""
        views = {name: self.statistics.setdefault(name, Statistics()).views(value) for name, value in x.items()}
        single = {view: {"bias": 1.0} | {("x", name): by[view] for name, by in views.items()} for view in VIEWS}
        scores = [bank.scores(x, self.statistics, single) for bank in self.banks]
        of_1, of_0 = ([[sigmoid(sign * z) for z in row] for row in scores] for sign in (1, -1))
        p, q = (
            sum(c * s for rows in zip(of, self.shares, strict=True) for c, s in zip(*rows, strict=True))
            for of in (of_1, of_0)
        )
        p, q = p / (p + q), q / (p + q)
        own, weight = weight, weight * self.class_weights[y]
        for bank in self.banks:
            bank.learn(y, weight, own, self.clip)
        for name, value in x.items():
            self.statistics[name].values.append(value)
        self.heaviest = max(1.0, min(weight, 10 * self.heaviest), 0.99 * self.heaviest)
        weight = min(weight / self.heaviest, 1.0)
        self._reweigh(of_1 if y else of_0, weight)
        self.loss -= math.log(p if y else q)
        loss = -math.log(p if y else q)
        surprise = loss + p * math.log(p) + q * math.log(q)
        self.excess = max(0.0, self.excess + weight * (min(surprise, MOST) - SLACK))
        self.above = max(0.0, self.above + weight * (min(loss - self.usual, MOST) - SLACK_ABOVE))
        self.events = min(self.events + weight, MANY)
        self.usual += weight * (min(loss, MOST) - self.usual) / max(self.events, FEW)
        if self.excess > ALARM or self.above > ALARM_ABOVE:
            self._alarm()
        return p

    def _reweigh(self, of_y: list[list[float]], weight: float) -> None:
        self.losses = [loss - math.log(c) for loss, c in zip(self.losses, of_y[0], strict=True)]
        largest = max(map(max, of_y))
        new = [
            [s * (c / largest) ** weight for c, s in zip(*rows, strict=True)]
            for rows in zip(of_y, self.shares, strict=True)
        ]
        total, count = sum(map(sum, new)), sum(map(len, new))
        self.shares = [[(1 - SHARE) * s / total + SHARE / count for s in row] for row in new]

    def _alarm(self) -> None:
        self.excess, self.above, self.events, self.alarms = 0.0, 0.0, 0.0, self.alarms + 1
        old = sum(self.shares[0])
        self.banks = [self.banks[0], Bank(self.plan, self.number)]
        self.shares = [[0.5 * s / old for s in self.shares[0]], [0.5 / self.members] * self.members]
