"""How much does each layer's tensor at each width add to the loss? A monotone additive fit.

    y ~ c + sum over layers of w[l, weight bits] + a[l, activation bits]

Values are sums of steps between neighbouring widths, step >= 0, so none rises with its bits. The
ridge draws each step towards the mean over layers of the same step, not towards zero: what the
sample does not tell about a layer is taken from the others. Coordinate descent on the normal
equations; the strength is chosen by cross-validation.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
import numpy.typing as npt

from solvers.tables import BitChoices, CostTable, Importance, LayerBits, LayerSpec, TensorRole

Floats = npt.NDArray[np.float64]
# In units of the mean diagonal of the normal equations.
STRENGTHS = tuple(float(10.0**k) for k in np.arange(-5, 2.01, 0.5))
_SWEEPS, _SETTLED = 3000, 1e-7
# Values are positive by definition of the table; a common floor changes no decision.
_FLOOR = 1e-6


@dataclass(frozen=True, kw_only=True, slots=True)
class Step:
    """From one width to the next wider one of a tensor: what the narrower adds."""

    layer: str
    tensor: TensorRole
    bits: int
    next_bits: int


@dataclass(frozen=True, kw_only=True, slots=True)
class Fit:
    """What a cross-validated fit found.

    Attributes:
        steps: the columns.
        sizes: size of each step, 0 or more.
        strength: the ridge's, in units of the mean diagonal.
        r2: of the held-out predictions.
        tau: Kendall's tau of the held-out predictions.
        tau_within: its mean over fifths of the sample by BitOps: what tells policies of like cost
            apart, which is all that a solver under a limit asks of a table.
    """

    steps: tuple[Step, ...]
    sizes: Floats
    strength: float
    r2: float
    tau: float
    tau_within: float


def steps_of(costs: CostTable, choices: BitChoices) -> tuple[Step, ...]:
    """The columns of the fit, layers in execution order."""
    steps = []
    for layer in costs.searched:
        for tensor, widths in _candidates(layer, choices):
            for bits, wider in pairwise(widths):
                steps.append(Step(layer=layer.name, tensor=tensor, bits=bits, next_bits=wider))
    return tuple(steps)


def _candidates(
    layer: LayerSpec, choices: BitChoices
) -> tuple[tuple[TensorRole, list[int]], tuple[TensorRole, list[int]]]:
    options = choices.of(layer)
    return (
        ("weight", sorted({o.weight_bits for o in options})),
        ("act", sorted({o.act_bits for o in options})),
    )


def design(steps: Sequence[Step], policies: Sequence[Mapping[str, LayerBits]]) -> Floats:
    """[policies, steps]: 1 where the policy's width is the step's narrower one or below."""
    rows = np.zeros((len(policies), len(steps)))
    for row, bits in zip(rows, policies, strict=True):
        for i, step in enumerate(steps):
            own = bits[step.layer]
            width = own.weight_bits if step.tensor == "weight" else own.act_bits
            row[i] = width <= step.bits
    return rows


def cross_validated(
    steps: tuple[Step, ...],
    x: Floats,
    y: Floats,
    bitops: Floats,
    folds: int,
    rng: np.random.Generator,
) -> Fit:
    """Choose the strength by held-out squared error, then fit to all.

    Args:
        steps: the columns.
        x: design [policies, steps].
        y: what is additive [policies].
        bitops: of each policy, for ``tau_within``.
        folds: parts held out in turn.
        rng: deals the policies out.
    """
    fold_of = rng.permutation(len(y)) % folds
    held = np.zeros((len(STRENGTHS), len(y)))
    for fold in range(folds):
        seen, out = fold_of != fold, fold_of == fold
        sizes = np.zeros(len(steps))
        # From strong to weak, each starting where the one before ended.
        for k in reversed(range(len(STRENGTHS))):
            sizes = solve(steps, x[seen], y[seen], STRENGTHS[k], sizes)
            held[k, out] = y[seen].mean() + (x[out] - x[seen].mean(axis=0)) @ sizes
    errors = ((held - y) ** 2).mean(axis=1)
    best = int(np.argmin(errors))
    spread = float(((y - y.mean()) ** 2).mean())
    fifths = [part for part in np.array_split(np.argsort(bitops, kind="stable"), 5) if len(part)]
    within = [tau(held[best, part], y[part]) for part in fifths]
    return Fit(
        steps=steps,
        sizes=solve(steps, x, y, STRENGTHS[best], np.zeros(len(steps))),
        strength=STRENGTHS[best],
        r2=1.0 - float(errors[best]) / spread if spread > 0 else 0.0,
        tau=tau(held[best], y),
        tau_within=float(np.mean(within)),
    )


def solve(steps: Sequence[Step], x: Floats, y: Floats, strength: float, start: Floats) -> Floats:
    """Sizes of the steps, each 0 or more, least squares with the ridge towards the mean step."""
    centred = x - x.mean(axis=0)
    a = centred.T @ centred / len(y)
    b = centred.T @ (y - y.mean()) / len(y)
    unit = max(float(np.trace(a)) / max(len(steps), 1), 1e-12)
    a = a + strength * unit * _pull(steps)
    # A step that the sample never takes has no curvature of its own.
    a = a + 1e-9 * unit * np.eye(len(steps))
    sizes = start.copy()
    slope = a @ sizes - b
    for _ in range(_SWEEPS):
        largest = 0.0
        for i in range(len(sizes)):
            moved = max(0.0, sizes[i] - slope[i] / a[i, i]) - sizes[i]
            if moved:
                sizes[i] += moved
                slope += a[:, i] * moved
                largest = max(largest, abs(moved))
        if largest <= _SETTLED * max(float(sizes.max(initial=0.0)), 1e-12):
            break
    return sizes


def _pull(steps: Sequence[Step]) -> Floats:
    """The quadratic form: squared distance of each step from the mean of its kind."""
    kinds = [(s.tensor, s.bits, s.next_bits) for s in steps]
    form = np.eye(len(steps))
    for kind in set(kinds):
        members = [i for i, k in enumerate(kinds) if k == kind]
        form[np.ix_(members, members)] -= 1.0 / len(members)
    return form


def tau(first: Floats, second: Floats) -> float:
    """Kendall's tau-a: concordant less discordant pairs, over all pairs."""
    n = len(first)
    if n < 2:
        return 0.0
    pairs = np.triu_indices(n, 1)
    signs = np.sign(first[pairs[0]] - first[pairs[1]]) * np.sign(
        second[pairs[0]] - second[pairs[1]]
    )
    return float(signs.mean())


def rows_of(fit: Fit, costs: CostTable, choices: BitChoices) -> tuple[Importance, ...]:
    """The fitted values as table rows; the widest candidate of a tensor stands at the floor."""
    size_at = {
        (s.layer, s.tensor, s.bits): float(size)
        for s, size in zip(fit.steps, fit.sizes, strict=True)
    }
    floor = _FLOOR * max(float(fit.sizes.sum()), 1e-12)
    rows = []
    for layer in costs.searched:
        for tensor, widths in _candidates(layer, choices):
            value = floor
            for bits in reversed(widths):
                value += size_at.get((layer.name, tensor, bits), 0.0)
                rows.append(Importance(layer=layer.name, tensor=tensor, bits=bits, value=value))
    return tuple(rows)
