"""Which policy within the limits loses least? Phase ``oneshot.search``: evolution over verdicts.

Guo et al., "Single path one-shot neural architecture search with uniform sampling" (SPOS, ECCV
2020, arXiv 1904.00420), Algorithm 1, with LIMPQ's joint training in the supernet's place;
docs/baselines.md lists what else differs.

The jointly trained weights judge whole policies (``judge.py``), so what layers do to each other is
in the verdict, which no sum over layers holds. It answers one set of limits a run; ``fit.py`` makes
a table for all of them from the same verdicts.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np

from solvers.accounting import accounting_named
from solvers.limits import parse_limit
from solvers.policy import make_policy
from solvers.problem import build_problem
from solvers.storage import load_costs, save_policy
from trainers.errors import ModelError
from trainers.meters import Meter, device_name
from trainers.oneshot.config import OneShotConfig
from trainers.oneshot.evolution import (
    check_reachable,
    first_generation,
    next_generation,
    use_share,
)
from trainers.oneshot.judge import make_judge
from trainers.oneshot.ledger import TABLE, Entry, Ledger
from trainers.phases import PhaseContext, PhaseResult, PhaseSpec
from trainers.results import load_result, save_result
from trainers.seeds import derive
from trainers.source_config import PolicySearch

POLICY = "policy.json"


def run(spec: PhaseSpec, context: PhaseContext) -> PhaseResult:
    """Search the policy of least loss.

    ``config`` is a ``PolicySearch`` of a ``OneShotConfig``. Inputs: ``weights`` (full precision,
    what the joint training started from), ``joint`` (output of ``limpq.indicators``), ``costs``.
    Outputs: ``policy``, and ``judged`` (Parquet: every policy judged, with generation, origin,
    BitOps, loss and top-1).

    Raises:
        LimitError: limits that nothing meets, or that do not apply to this network.
        CheckpointError: ``joint`` belongs to another network.
        DivergedError: a loss is not finite.
        InterruptedPhaseError: the driver asked to stop; the verdicts so far are kept.
    """
    done = load_result(context.step_dir / "result.json")
    if done is not None:
        return done
    task: PolicySearch = spec.config
    config: OneShotConfig = task.source
    limits = [parse_limit(text) for text in task.limits]
    if spec.choices is None:
        raise ModelError("a search needs candidate bit-widths")
    costs = load_costs(Path(spec.inputs["costs"]))
    accounting = accounting_named(task.accounting)
    problem = build_problem(costs, spec.choices, limits, importance=None, accounting=accounting)
    check_reachable(problem)
    meter = Meter(context.device)
    judge, data = make_judge(spec, context, config, meter)
    ledger = Ledger(problem, judge, judge.passes, meter, context)
    search(ledger, config, spec.seed, context)
    ledger.save()
    best = min(ledger.entries.values(), key=lambda e: merit(e, config))
    uniform = [e.measured.loss for e in ledger.entries.values() if e.origin == "uniform"]
    share = use_share(problem, best.picks)
    policy = make_policy(costs, problem.bits_by_name(best.picks), "one_shot", accounting)
    result = PhaseResult(
        phase=spec.phase,
        outputs={"policy": POLICY, "judged": TABLE},
        metrics={
            "evaluations": float(len(ledger.entries)),
            "loss": best.measured.loss,
            "top1": best.measured.top1,
            "reached_share": share,
            **({"loss_of_uniform_start": min(uniform)} if uniform else {}),
        },
        cost=meter.total(),
        device=device_name(context.device),
        facts={
            "policy_id": policy.policy_id,
            "in_band": share >= config.min_use,
            "limits": list(task.limits),
            "origin": best.origin,
            "generation": best.generation,
            "images_from": config.images_from,
            "data_fingerprint": data.fingerprint,
        },
    )
    if context.rank == 0:
        save_policy(context.step_dir / POLICY, policy)
        save_result(context.step_dir / "result.json", result)
    return result


def search(ledger: Ledger, config: OneShotConfig, seed: int, context: PhaseContext) -> None:
    """Judge generation after generation until the evaluations, or the policies, are used up."""
    generation = 0
    while len(ledger.entries) < config.evaluations:
        rng = np.random.default_rng(derive(seed, "one-shot", "generation", generation))
        if generation == 0:
            proposals = first_generation(ledger.problem, config, rng)
        else:
            ranked = sorted(ledger.entries.values(), key=lambda e: merit(e, config))
            parents = [e.picks for e in ranked[: config.parents]]
            proposals = next_generation(ledger.problem, parents, ledger.entries, config, rng)
        proposals = proposals[: config.evaluations - len(ledger.entries)]
        if not proposals:
            break  # every policy near the best is judged: a small space
        ledger.judge_all(proposals, generation)
        best = min(ledger.entries.values(), key=lambda e: merit(e, config))
        generation += 1
        context.report(
            {
                "generation": generation,
                "policies": len(ledger.entries),
                "loss": best.measured.loss,
                "top1": best.measured.top1,
            }
        )


def merit(entry: Entry, config: OneShotConfig) -> tuple[float, float, str]:
    """What is minimised; the id decides between equals, so that order never does."""
    found = entry.measured
    first = found.loss if config.metric == "loss" else 100.0 - found.top1
    return first, found.loss, entry.policy_id
