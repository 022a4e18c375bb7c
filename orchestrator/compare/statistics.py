"""What do a few numbers support? Means with intervals, paired differences, rank correlation.

Only numpy and math, since scipy is no dependency of the project. Nothing here claims more than its
numbers carry: one value has no spread, two equal values no interval, four points no rank
correlation worth an interval; such a place is None, and the caller shows it as none.

Sources: Student's t through the regularized incomplete beta function (continued fraction of
Lentz); Kendall's tau-b with ties, Kendall 1945; its test by counting permutations, Kendall 1938;
its interval by Fisher's z with variance 0.437 / (n - 4), Fieller, Hartley and Pearson 1957, who
give it for ten points and more; Holm 1979 for several comparisons at once.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import NormalDist

import numpy as np

CONFIDENCE = 0.95
# Subtracting percentages leaves 1e-14 of rounding, which a test would take for a tiny spread; one
# image of a million is 1e-4 points.
_ROUNDING = 1e-9
# Fisher's z of tau has variance 0.437 / (n - 4). With fewer points the interval is too narrow: by
# it a tau of 0.57 of eight points leaves zero out, and chance does as much in 6 % of all orders.
_FIELLER, _FIELLER_LOST, _FIELLER_LEAST = 0.437, 4, 10
# Orders are counted up to here; beyond, S is as good as normal.
_COUNTED = 60


@dataclass(frozen=True, kw_only=True, slots=True)
class Summary:
    """Several measurements of one thing.

    Attributes:
        n: how many.
        mean: of them.
        sd: sample standard deviation (n - 1); None for one value.
        low: lower end of the t-interval of the mean; None when none is claimed.
        high: upper end.
    """

    n: int
    mean: float
    sd: float | None
    low: float | None
    high: float | None


@dataclass(frozen=True, kw_only=True, slots=True)
class Paired:
    """One method held against another on the same seeds.

    Attributes:
        difference: summary of the differences (method less reference), over the shared seeds.
        p_value: two-sided, of the paired t-test; None when no interval is claimed.
        only_method: seeds that only the method has.
        only_reference: seeds that only the reference has.
    """

    difference: Summary
    p_value: float | None
    only_method: tuple[int, ...]
    only_reference: tuple[int, ...]


@dataclass(frozen=True, kw_only=True, slots=True)
class RankCorrelation:
    """Kendall's tau-b.

    Attributes:
        tau: from -1 to 1; None when one side has no two different values.
        n: points.
        low: lower end of the interval; None below ten points.
        high: upper end.
        p_value: two-sided, of no correlation: the share of all orders with a tau at least as far
            from zero. None with ties below ten points.
    """

    tau: float | None
    n: int
    low: float | None
    high: float | None
    p_value: float | None


def summary(values: Sequence[float], confidence: float = CONFIDENCE) -> Summary:
    """Mean, standard deviation and t-interval.

    Values that are all equal, rounding apart, get no interval: on a coarse scale (a test set of 450
    images moves in steps of 0.22 points) that is chance, and an interval of no width would claim
    certainty.

    Raises:
        ValueError: no values, or one that is not finite.
    """
    numbers = np.asarray(values, dtype=np.float64)
    if numbers.size == 0 or not np.isfinite(numbers).all():
        raise ValueError(f"a summary needs finite values, got {list(values)}")
    n, mean = int(numbers.size), float(numbers.mean())
    if n == 1:
        return Summary(n=1, mean=mean, sd=None, low=None, high=None)
    sd = float(numbers.std(ddof=1))
    if np.ptp(numbers) <= _ROUNDING * max(1.0, float(np.abs(numbers).max())):
        return Summary(n=n, mean=mean, sd=0.0, low=None, high=None)
    half = student_quantile(0.5 + confidence / 2, n - 1) * sd / math.sqrt(n)
    return Summary(n=n, mean=mean, sd=sd, low=mean - half, high=mean + half)


def paired(
    method: dict[int, float], reference: dict[int, float], confidence: float = CONFIDENCE
) -> Paired | None:
    """Compare two methods seed by seed; None when they share no seed.

    Args:
        method: seed -> value.
        reference: seed -> value of what it is held against.
        confidence: of the interval.
    """
    shared = sorted(method.keys() & reference.keys())
    if not shared:
        return None
    found = summary([method[seed] - reference[seed] for seed in shared], confidence)
    p_value = None
    if found.low is not None and found.sd:
        t = found.mean / (found.sd / math.sqrt(found.n))
        p_value = 2.0 * (1.0 - student_cdf(abs(t), found.n - 1))
    return Paired(
        difference=found,
        p_value=p_value,
        only_method=tuple(sorted(method.keys() - reference.keys())),
        only_reference=tuple(sorted(reference.keys() - method.keys())),
    )


def holm(p_values: Sequence[float | None]) -> tuple[float | None, ...]:
    """Holm's step-down adjustment for several comparisons; None stays None and does not count."""
    known = sorted((p, i) for i, p in enumerate(p_values) if p is not None)
    adjusted: list[float | None] = [None] * len(p_values)
    largest = 0.0
    for rank, (p, index) in enumerate(known):
        largest = max(largest, min(1.0, (len(known) - rank) * p))
        adjusted[index] = largest
    return tuple(adjusted)


def kendall(
    xs: Sequence[float], ys: Sequence[float], confidence: float = CONFIDENCE
) -> RankCorrelation:
    """Kendall's tau-b of two lists, with its test, and an approximate interval from ten points on.

    At tau = +-1 Fisher's z is infinite; half the step to the next tau is taken off first (a
    correction for continuity), so that ten points in perfect order do not claim certainty.

    Raises:
        ValueError: lists of different lengths, or a value that is not finite.
    """
    first, second = np.asarray(xs, dtype=np.float64), np.asarray(ys, dtype=np.float64)
    if first.shape != second.shape or first.ndim != 1:
        raise ValueError(f"two lists of one length are needed, got {first.shape}, {second.shape}")
    if not (np.isfinite(first).all() and np.isfinite(second).all()):
        raise ValueError("a rank correlation needs finite values")
    n = int(first.size)
    upper = np.triu_indices(n, 1)
    signs_x = np.sign(first[upper[0]] - first[upper[1]])
    signs_y = np.sign(second[upper[0]] - second[upper[1]])
    untied_x, untied_y = float(np.abs(signs_x).sum()), float(np.abs(signs_y).sum())
    if untied_x == 0 or untied_y == 0:
        return RankCorrelation(tau=None, n=n, low=None, high=None, p_value=None)
    s = int((signs_x * signs_y).sum())
    tau = max(-1.0, min(1.0, s / math.sqrt(untied_x * untied_y)))
    if untied_x == untied_y == len(upper[0]) and n <= _COUNTED:
        p_value: float | None = _share_of_orders(n, s)
    else:
        p_value = _normal_p(first, second, s) if n >= _FIELLER_LEAST else None
    if n < _FIELLER_LEAST:
        return RankCorrelation(tau=tau, n=n, low=None, high=None, p_value=p_value)
    inner = math.copysign(min(abs(tau), 1.0 - 2.0 / (n * (n - 1))), tau)
    half = NormalDist().inv_cdf(0.5 + confidence / 2) * math.sqrt(_FIELLER / (n - _FIELLER_LOST))
    low, high = math.tanh(math.atanh(inner) - half), math.tanh(math.atanh(inner) + half)
    return RankCorrelation(tau=tau, n=n, low=min(low, tau), high=max(high, tau), p_value=p_value)


def _share_of_orders(n: int, s: int) -> float:
    """The share of the n! orders whose concordant less discordant pairs are |s| or more from 0."""
    counts = [1]  # orders of k values by their inversions
    for k in range(2, n + 1):
        longer = [0] * (len(counts) + k - 1)
        for inversions, orders in enumerate(counts):
            for more in range(k):
                longer[inversions + more] += orders
        counts = longer
    pairs = n * (n - 1) // 2
    far = sum(c for inversions, c in enumerate(counts) if abs(pairs - 2 * inversions) >= abs(s))
    return far / math.factorial(n)


def _normal_p(xs: np.ndarray, ys: np.ndarray, s: int) -> float:
    """The same of many points or of ties: S is about normal (Kendall 1945), corrected for steps."""
    n = len(xs)
    (x_five, x_three, x_two), (y_five, y_three, y_two) = _tie_sums(xs), _tie_sums(ys)
    variance = (n * (n - 1) * (2 * n + 5) - x_five - y_five) / 18
    variance += x_three * y_three / (9 * n * (n - 1) * (n - 2))
    variance += x_two * y_two / (2 * n * (n - 1))
    return 2.0 * NormalDist().cdf(-max(0, abs(s) - 1) / math.sqrt(variance))


def _tie_sums(values: np.ndarray) -> tuple[float, float, float]:
    """Sums over groups of t equal values of t(t-1)(2t+5), t(t-1)(t-2) and t(t-1)."""
    t = np.unique(values, return_counts=True)[1].astype(np.float64)
    pairs = t * (t - 1)
    return float((pairs * (2 * t + 5)).sum()), float((pairs * (t - 2)).sum()), float(pairs.sum())


def student_cdf(t: float, dof: float) -> float:
    """P(T <= t) of Student's distribution.

    Raises:
        ValueError: fewer than one degree of freedom.
    """
    if dof < 1:
        raise ValueError(f"degrees of freedom must be at least 1, got {dof}")
    tail = 0.5 * _incomplete_beta(dof / 2, 0.5, dof / (dof + t * t))
    return 1.0 - tail if t >= 0 else tail


def student_quantile(probability: float, dof: float) -> float:
    """The t with P(T <= t) = ``probability``, by bisection to machine precision.

    Raises:
        ValueError: a probability outside (0, 1), or fewer than one degree of freedom.
    """
    if not 0.0 < probability < 1.0:
        raise ValueError(f"a probability is between 0 and 1, got {probability}")
    if probability < 0.5:
        return -student_quantile(1.0 - probability, dof)
    low, high = 0.0, 1.0
    while student_cdf(high, dof) < probability:
        high *= 2.0
    for _ in range(200):
        middle = (low + high) / 2
        if middle in (low, high):
            break
        low, high = (middle, high) if student_cdf(middle, dof) < probability else (low, middle)
    return (low + high) / 2


def _incomplete_beta(a: float, b: float, x: float) -> float:
    """Regularized incomplete beta function I_x(a, b)."""
    if x <= 0.0:
        return 0.0
    if x >= 1.0:
        return 1.0
    log_front = (
        math.lgamma(a + b) - math.lgamma(a) - math.lgamma(b)
        + a * math.log(x) + b * math.log1p(-x)
    )  # fmt: skip
    # The fraction converges fast on this side of the mean only; the other side by symmetry.
    if x < (a + 1.0) / (a + b + 2.0):
        return math.exp(log_front) * _beta_fraction(a, b, x) / a
    return 1.0 - math.exp(log_front) * _beta_fraction(b, a, 1.0 - x) / b


def _beta_fraction(a: float, b: float, x: float) -> float:
    tiny = 1e-300
    c, d = 1.0, 1.0 - (a + b) * x / (a + 1.0)
    d = 1.0 / (d if abs(d) > tiny else tiny)
    value = d
    for m in range(1, 1000):
        for term in (
            m * (b - m) * x / ((a + 2 * m - 1) * (a + 2 * m)),
            -(a + m) * (a + b + m) * x / ((a + 2 * m) * (a + 2 * m + 1)),
        ):
            d = 1.0 + term * d
            d = 1.0 / (d if abs(d) > tiny else tiny)
            c = 1.0 + term / c
            c = c if abs(c) > tiny else tiny
            value *= d * c
        if abs(d * c - 1.0) < 1e-15:
            break
    return value
