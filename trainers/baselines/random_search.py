"""How far do random policies get, if enough of them are tried?

Phase ``baselines.random_search``: policies drawn within the limits, each evaluated without any
training, the best kept. The control for every search that evaluates candidates: give it as many
evaluations as they had passes.

Source: the random baseline of the search papers (Li and Talwalkar, "Random search and
reproducibility for neural architecture search", UAI 2019). Deviations: candidates run on the
full-precision weights at the steps of ``step_rule.py``, with BatchNorm statistics taken anew, not
on a shared-weight network (that is what ``one_shot`` does); they are judged on training images. A
draw uses up its limits (``solvers.controls.random_policy``); the same bits are evaluated once.
"""

from __future__ import annotations

from functools import partial

import torch

from solvers.accounting import accounting_named
from solvers.controls import random_policy
from solvers.policy import Policy
from trainers.baselines.answer import finish_policy, limits_of
from trainers.baselines.calibration import Calibration, calibrate
from trainers.baselines.config import RandomSearchConfig
from trainers.baselines.progress import Progress
from trainers.baselines.step_rule import choose_steps, set_steps
from trainers.evaluate import reestimate_batchnorm
from trainers.phases import PhaseContext, PhaseResult, PhaseSpec
from trainers.results import load_result
from trainers.seeds import derive
from trainers.source_config import PolicySearch

# Draws for one new policy before it counts as: there is no other within these limits.
_MOST_DRAWS = 50


def run(spec: PhaseSpec, context: PhaseContext) -> PhaseResult:
    """Draw, evaluate, keep the best.

    ``config`` is a ``PolicySearch`` of a ``RandomSearchConfig``. Inputs: ``weights``, ``costs``.
    Outputs: ``policy``, unless nothing can be drawn within the limits. Metrics: ``evaluations``,
    ``reached_share``, ``best_loss``, ``best_top1`` (on training images). Facts: ``losses`` and
    ``top1s`` of all evaluations, in their order, with ``policy_ids``.

    Raises:
        DivergedError: a loss is not finite.
        InterruptedPhaseError: the driver asked to stop; evaluations so far are kept.
    """
    done = load_result(context.step_dir / "result.json")
    if done is not None:
        return done
    config: RandomSearchConfig = spec.config.source
    calibration = calibrate(spec, context, config)
    progress = Progress(context, calibration.meter, spec.phase)
    set_steps(calibration, progress.once("steps", lambda: choose_steps(calibration, config)))
    policies = draw(spec, calibration, config.evaluations)
    rows = [
        progress.once(f"policy {i}", partial(_evaluate, calibration, policy, config)).tolist()
        for i, policy in enumerate(policies)
    ]
    losses, top1s = [row[0] for row in rows], [row[1] for row in rows]
    scores = losses if config.keep == "loss" else [-top1 for top1 in top1s]
    best = min(range(len(rows)), key=scores.__getitem__) if rows else None
    return finish_policy(
        spec,
        calibration,
        progress,
        policies[best].bits_by_name() if best is not None else None,
        metrics={"evaluations": float(len(rows))}
        | ({} if best is None else {"best_loss": losses[best], "best_top1": top1s[best]}),
        facts={
            "losses": losses,
            "top1s": top1s,
            "policy_ids": [policy.policy_id for policy in policies],
        },
        reason="" if rows else "no random bits meet the limits",
    )


def draw(spec: PhaseSpec, calibration: Calibration, count: int) -> tuple[Policy, ...]:
    """``count`` different policies within the limits, fewer when there are no more; by the seed."""
    search: PolicySearch = spec.config
    assert spec.choices is not None  # ``calibrate`` refuses it otherwise
    found: dict[str, Policy] = {}
    number = misses = 0
    while len(found) < count and misses < _MOST_DRAWS:
        policy = random_policy(
            calibration.costs,
            spec.choices,
            limits_of(search),
            seed=derive(spec.seed, "random-search", number),
            accounting=accounting_named(search.accounting),
        )
        number += 1
        if policy is None:
            break
        misses = misses + 1 if policy.policy_id in found else 0
        found.setdefault(policy.policy_id, policy)
    return tuple(found.values())


def _evaluate(calibration: Calibration, policy: Policy, config: RandomSearchConfig) -> torch.Tensor:
    """Loss and top-1 of a policy, float64 [2]; the network is left as it was."""
    network, context = calibration.network, calibration.context
    kept = {name: buffer.clone() for name, buffer in network.model.named_buffers()}
    network.set_bits({name: (b.weight_bits, b.act_bits) for name, b in policy.layers})
    if config.bn_reestimate_images:
        reestimate_batchnorm(
            network.model,
            calibration.batches(),
            config.bn_reestimate_images,
            context,
            calibration.meter,
        )
    found = calibration.loss_and_top1()
    network.set_full_precision()
    with torch.no_grad():
        for name, buffer in network.model.named_buffers():
            buffer.copy_(kept[name])
    return torch.tensor(found, dtype=torch.float64)
