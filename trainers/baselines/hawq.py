"""Which layers must keep their bits, by the largest eigenvalue of their Hessian (HAWQ)?

Dong et al., "HAWQ: Hessian aware quantization of neural networks with mixed-precision" (ICCV 2019,
arXiv 1905.03696), section 3. Phase ``baselines.hawq``. Layers are put in the order of
S_i = lambda_i / n_i, the largest eigenvalue of the layer's Hessian block (power iteration, the
paper's Algorithm 1) over its number of weights; a layer that comes before another never gets fewer
bits (Algorithm 2).

The paper assigns the bits along that order by hand. Here a rule does it, which is ours: from the
narrowest bits everywhere, the layer is widened one step whose lambda_i * ||Q(W_i) - W_i||^2 (the
paper's Omega_i, there the order of fine-tuning) falls most per share of the limits used, among the
steps that keep the order and fit; until none fits. So the policy is monotone in S and never exceeds
a limit.

Further deviations: single layers instead of blocks; activations follow their layer's weight, the
candidates paired from the widest down (the paper fixes them by hand); a group of layers takes its
largest S; lambda is the eigenvalue of largest magnitude with its sign, as in PyHessian; steps are
those of ``step_rule.py``; all layers are fine-tuned at once afterwards, by the recipe of every
method.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch

from solvers.problem import Problem
from solvers.tables import BitChoices, LayerBits
from solvers.units import Unit
from trainers.baselines.answer import finish_policy, problem_of
from trainers.baselines.calibration import Calibration, Key, calibrate
from trainers.baselines.config import HawqConfig
from trainers.baselines.curvature import top_eigenvalues
from trainers.baselines.errors import squared_errors
from trainers.baselines.progress import Progress
from trainers.baselines.step_rule import choose_steps, set_steps
from trainers.limpq.passes import uniform_passes
from trainers.phases import PhaseContext, PhaseResult, PhaseSpec
from trainers.results import load_result


@dataclass(frozen=True, kw_only=True, slots=True)
class Ladder:
    """One decision: its place in the order and what each of its widths costs in Omega.

    Attributes:
        unit: index into the problem's units.
        sensitivity: S, the largest of its layers.
        rungs: bits, narrowest first.
        omega: lambda * squared weight error at each rung, summed over its layers.
    """

    unit: int
    sensitivity: float
    rungs: tuple[LayerBits, ...]
    omega: tuple[float, ...]


def run(spec: PhaseSpec, context: PhaseContext) -> PhaseResult:
    """Order the layers and assign bits along the order.

    ``config`` is a ``PolicySearch`` of a ``HawqConfig``. Inputs: ``weights``, ``costs``. Outputs:
    ``policy``, unless the narrowest bits exceed a limit. Metrics: ``reached_share``,
    ``num_iterations``. Facts: ``eigenvalues`` by layer and ``order``.

    Raises:
        DivergedError: a product is not finite.
        InterruptedPhaseError: the driver asked to stop; the last iteration is kept.
    """
    done = load_result(context.step_dir / "result.json")
    if done is not None:
        return done
    config: HawqConfig = spec.config.source
    calibration = calibrate(spec, context, config)
    assert spec.choices is not None  # ``calibrate`` refuses it otherwise
    problem = problem_of(spec.config, calibration.costs, spec.choices)
    progress = Progress(context, calibration.meter, spec.phase)
    set_steps(calibration, progress.once("steps", lambda: choose_steps(calibration, config)))
    found = progress.once("errors", lambda: _weight_errors(calibration))
    errors = dict(zip(_weight_keys(calibration), found.tolist(), strict=True))
    values, num_iterations = top_eigenvalues(calibration, config, progress, spec.seed)
    eigenvalues = dict(zip(calibration.searched, values.tolist(), strict=True))
    ladders = ladders_of(problem, eigenvalues, errors)
    bits = climb(problem, ladders)
    return finish_policy(
        spec,
        calibration,
        progress,
        bits,
        metrics={"num_iterations": float(num_iterations)},
        facts={
            "eigenvalues": eigenvalues,
            "order": [problem.units[ladder.unit].label for ladder in ladders],
        },
        reason="" if bits else "the narrowest bits of all layers exceed a limit",
    )


def ladders_of(
    problem: Problem,
    eigenvalues: Mapping[str, float],
    errors: Mapping[Key, float],
) -> tuple[Ladder, ...]:
    """Every decision that has a choice, most sensitive first.

    Args:
        problem: options of the decisions.
        eigenvalues: lambda of each searched layer.
        errors: squared error of each searched weight at each width.
    """
    ladders = []
    for index, unit in enumerate(problem.units):
        rungs = _rungs(unit)
        members = [layer for layer in unit.layers if layer.pinned is None]
        if len(rungs) < 2 or not members:
            continue
        omega = tuple(
            sum(eigenvalues[s.name] * errors[s.name, "weight", r.weight_bits] for s in members)
            for r in rungs
        )
        sensitivity = max(eigenvalues[s.name] / s.num_weights for s in members)
        ladders.append(Ladder(unit=index, sensitivity=sensitivity, rungs=rungs, omega=omega))
    return tuple(sorted(ladders, key=lambda ladder: (-ladder.sensitivity, ladder.unit)))


def climb(problem: Problem, ladders: Sequence[Ladder]) -> dict[str, LayerBits] | None:
    """Widen from the narrowest bits while the order holds and the limits do.

    Args:
        problem: its limits.
        ladders: most sensitive first; none is widened beyond the bits of the one before it.
    """
    at = [0] * len(ladders)
    bits = {
        layer.name: unit.options[0] for unit in problem.units for layer in unit.layers
    } | _bits_at(problem, ladders, at)
    if not problem.fits(bits):
        return None
    while True:
        steps = []
        uses = problem.total_uses(bits)
        for i, ladder in enumerate(ladders):
            if at[i] + 1 == len(ladder.rungs):
                continue
            rung = ladder.rungs[at[i] + 1]
            if i and not _within(rung, ladders[i - 1].rungs[at[i - 1]]):
                continue
            wider = bits | _bits_at(problem, [ladder], [at[i] + 1])
            if not problem.fits(wider):
                continue
            extra = sum(
                (new - old) / c.bound
                for new, old, c in zip(
                    problem.total_uses(wider), uses, problem.ceilings, strict=True
                )
            )
            gain = ladder.omega[at[i]] - ladder.omega[at[i] + 1]
            steps.append((gain / max(extra, 1e-15), -i, wider))
        if not steps:
            return bits
        _, position, bits = max(steps, key=lambda step: step[:2])
        at[-position] += 1


def _rungs(unit: Unit) -> tuple[LayerBits, ...]:
    """The unit's own widths paired from the widest down, narrowest first."""
    own = BitChoices(
        weight_bits=tuple(sorted({option.weight_bits for option in unit.options})),
        act_bits=tuple(sorted({option.act_bits for option in unit.options})),
    )
    pairs = [LayerBits(weight_bits=w, act_bits=a) for w, a in reversed(uniform_passes(own))]
    return tuple(pair for pair in pairs if pair in unit.options)


def _within(bits: LayerBits, most: LayerBits) -> bool:
    return bits.weight_bits <= most.weight_bits and bits.act_bits <= most.act_bits


def _bits_at(
    problem: Problem, ladders: Sequence[Ladder], at: Sequence[int]
) -> dict[str, LayerBits]:
    return {
        layer.name: ladder.rungs[rung]
        for ladder, rung in zip(ladders, at, strict=True)
        for layer in problem.units[ladder.unit].layers
    }


def _weight_keys(calibration: Calibration) -> list[Key]:
    return [key for key in calibration.keys if key[1] == "weight"]


def _weight_errors(calibration: Calibration) -> torch.Tensor:
    errors = squared_errors(calibration)
    values = [errors[key] for key in _weight_keys(calibration)]
    return torch.tensor(values, dtype=torch.float64)
