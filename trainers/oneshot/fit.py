"""Can one table serve every budget? Phase ``oneshot.fit``: an importance table from verdicts.

A few hundred policies over the whole range of BitOps are judged by the jointly trained weights, and
an additive model is fitted to their losses (``additive.py``). Its values are what the solver adds
up: equation 4 with indicators that were made to predict the loss. Weights and activations stand in
one unit, so the table belongs to alpha = 1.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np

from solvers.limits import parse_limit
from solvers.problem import Problem, build_problem
from solvers.storage import load_costs, save_importance
from solvers.tables import ImportanceTable
from trainers.errors import ModelError
from trainers.meters import Meter, device_name
from trainers.oneshot.additive import Fit, cross_validated, design, rows_of, steps_of
from trainers.oneshot.config import FittedConfig
from trainers.oneshot.judge import make_judge
from trainers.oneshot.ledger import TABLE, Ledger
from trainers.oneshot.sampling import sample
from trainers.phases import PhaseContext, PhaseResult, PhaseSpec
from trainers.results import load_result, save_result
from trainers.seeds import derive

IMPORTANCE = "importance.parquet"
# Policies judged between two reports.
_PART = 25


def run(spec: PhaseSpec, context: PhaseContext) -> PhaseResult:
    """Judge a sample of policies and fit the table.

    ``config`` is a ``FittedConfig``. Inputs: ``weights`` (full precision, what the joint training
    started from), ``joint`` (output of ``limpq.indicators``), ``costs``. Outputs: ``importance``,
    and ``judged`` (Parquet: every policy judged). Metrics: ``heldout_r2``, ``heldout_tau`` and
    ``heldout_tau_within`` (within fifths of like BitOps), over the folds of the cross-validation.

    Raises:
        CheckpointError: ``joint`` belongs to another network.
        DivergedError: a loss is not finite.
        LimitError: no policy lies between the levels asked for.
        InterruptedPhaseError: the driver asked to stop; the verdicts so far are kept.
    """
    done = load_result(context.step_dir / "result.json")
    if done is not None:
        return done
    config: FittedConfig = spec.config
    if spec.choices is None:
        raise ModelError("a fit needs candidate bit-widths")
    costs = load_costs(Path(spec.inputs["costs"]))
    problem = build_problem(
        costs, spec.choices, [parse_limit("bitops_level=32x32")], importance=None
    )
    proposals = sample(problem, config, np.random.default_rng(derive(spec.seed, "fit", "sample")))
    meter = Meter(context.device)
    judge, data = make_judge(spec, context, config, meter)
    ledger = Ledger(problem, judge, judge.passes, meter, context)
    for part, start in enumerate(range(0, len(proposals), _PART)):
        ledger.judge_all(proposals[start : start + _PART], part)
        context.report({"policies": len(ledger.entries), "of": len(proposals)})
    ledger.save()
    fit = fitted(ledger, problem, config, spec.seed)
    table = ImportanceTable(
        model=costs.model,
        fingerprint=costs.fingerprint,
        method="fitted",
        seed=spec.seed,
        data_fingerprint=data.fingerprint,
        rows=rows_of(fit, costs, spec.choices),
    )
    uniform = [e for e in ledger.entries.values() if e.origin == "uniform"]
    first_open = next((u for u, unit in enumerate(problem.units) if len(unit.options) > 1), 0)
    result = PhaseResult(
        phase=spec.phase,
        outputs={"importance": IMPORTANCE, "judged": TABLE},
        metrics={
            "evaluations": float(len(ledger.entries)),
            "heldout_r2": fit.r2,
            "heldout_tau": fit.tau,
            "heldout_tau_within": fit.tau_within,
            "strength": fit.strength,
        },
        cost=meter.total(),
        device=device_name(context.device),
        facts={
            "images_from": config.images_from,
            "fit": config.fit,
            "data_fingerprint": data.fingerprint,
            "uniform_top1": {
                f"W{bits.weight_bits}A{bits.act_bits}": e.measured.top1
                for e in uniform
                for bits in (problem.units[first_open].options[e.picks[first_open]],)
            },
        },
    )
    if context.rank == 0:
        save_importance(context.step_dir / IMPORTANCE, table)
        save_result(context.step_dir / "result.json", result)
    return result


def fitted(ledger: Ledger, problem: Problem, config: FittedConfig, seed: int) -> Fit:
    """The additive model of the ledger's verdicts."""
    entries = list(ledger.entries.values())
    losses = np.array([e.measured.loss for e in entries])
    steps = steps_of(problem.costs, problem.choices)
    return cross_validated(
        steps,
        design(steps, [problem.bits_by_name(e.picks) for e in entries]),
        # A loss of exactly 0 has no logarithm; below 1e-6 nothing is told apart.
        np.log(np.maximum(losses, 1e-6)) if config.fit == "log_loss" else losses,
        np.array([float(e.bitops) for e in entries]),
        config.folds,
        np.random.default_rng(derive(seed, "fit", "folds")),
    )
