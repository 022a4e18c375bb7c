"""Phase ``metamix.bit_selection``: epoch 2 of Table 1, and the policy that comes out.

On every batch one bit-meta update, then one bit-search update (Algorithm 1, lines 4 to 15). The
meta-state of epoch 1 is an input, so that several targets share it; without one the phase trains
it first, in a folder of its own. The argmax over alpha is recorded as it is; the policy that goes
on to weight training is repaired to the target (``repair.py``) and says what was changed.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

from solvers.accounting import accounting_named
from solvers.policy import make_policy
from solvers.storage import save_policy
from solvers.tables import CostTable, LayerBits
from trainers.checkpoint import save_tensors, state_hash
from trainers.distributed import barrier
from trainers.errors import ModelError
from trainers.loop import Move, Training
from trainers.metamix import meta, meta_state
from trainers.metamix.architecture import Architecture, units_of
from trainers.metamix.config import BitSelectionConfig, SearchConfig
from trainers.metamix.history import AlphaHistory
from trainers.metamix.repair import Repaired, repair
from trainers.metamix.search_step import SearchStep, make_optimizer
from trainers.metamix.setup import MetaTraining, prepare
from trainers.metamix.target import Target, make_target
from trainers.meters import device_name
from trainers.phases import Cost, PhaseContext, PhaseResult, PhaseSpec
from trainers.results import finish_phase, load_result

POLICY, ARGMAX, HISTORY = "policy.json", "argmax-policy.json", "alphas.parquet"
_RECORDS = 200


def run(spec: PhaseSpec, context: PhaseContext) -> PhaseResult:
    """Choose the bits of every layer.

    ``config`` is a ``BitSelectionConfig``. Inputs: ``weights`` (full precision), ``costs``,
    ``meta`` (optional, of ``metamix.meta`` with the same recipe), ``teacher`` (optional).
    Outputs: ``policy``, ``argmax`` (before repair), ``weights`` (plain state dict of the
    meta-state), ``act_steps`` (all layers) and ``importance`` (searched layers, for the solver),
    ``meta``, ``history`` (alphas and probabilities).

    Raises:
        DivergedError: a loss or gradient stopped being finite.
        LimitError: the target is outside what the candidates reach.
        ModelError: a network MetaMix cannot work with, or another network's meta-state.
    """
    done = load_result(context.step_dir / "result.json")
    if done is not None:
        return done
    config: BitSelectionConfig = spec.config
    recipe = config.metamix
    if recipe.meta.accumulate > 1 and not recipe.search.fixed_meta_state:
        raise ModelError(
            "metamix.meta.accumulate needs search.fixed_meta_state: without it two updates share "
            "the gradients of one pass, which cannot be cut into parts"
        )
    training = prepare(spec, context, recipe)
    network, costs = training.network, training.costs
    assert spec.choices is not None  # prepare refuses it otherwise
    accounting = accounting_named(config.accounting)
    target = make_target(config.target, costs, spec.choices, accounting)
    target.check_reachable()
    architecture = Architecture(units_of(costs, spec.choices), recipe.search.alpha_init)
    architecture.to(context.device)
    with training.meter.paused():  # a meta training has a meter of its own
        meta_file, meta_cost = _meta_file(spec, context)
    first = meta_state.load_meta_state(meta_file, network, training.optimizer, context.device)
    total = training.search_updates
    every = recipe.search.history_every or max(1, total // _RECORDS)
    history = AlphaHistory(architecture, every, total)
    moves = _moves(training, architecture, target, config, first, history)
    metrics = Training(
        model=network.model,
        plan=training.plan,
        total_updates=total,
        moves=lambda update: moves,
        context=context,
        stream=spec.phase,
        seed=spec.seed,
        meter=training.meter,
        folder=context.step_dir / "checkpoints",
        extra={"architecture": architecture, "history": history},
    ).run()
    argmax = architecture.selected()
    if recipe.search.repair == "probable":
        repaired = repair(architecture, target, recipe.search.band)
    else:
        cost = target.cost_of(argmax)
        in_band = recipe.search.band * target.bound <= cost <= target.bound
        repaired = Repaired(bits=argmax, cost=cost, in_band=in_band, changed=())
    policy = make_policy(costs, with_pins(costs, repaired.bits), "metamix", accounting)
    before_repair = make_policy(costs, with_pins(costs, argmax), "metamix-argmax", accounting)
    result = PhaseResult(
        phase=spec.phase,
        outputs={
            "policy": POLICY,
            "argmax": ARGMAX,
            "meta": meta_state.META,
            "weights": meta_state.WEIGHTS,
            "importance": meta_state.IMPORTANCE,
            "act_steps": meta_state.ACT_STEPS,
            "history": HISTORY,
        },
        metrics={
            **metrics,
            "target": target.shown(target.bound),
            "reached": target.shown(repaired.cost),
            "reached_share": repaired.cost / target.bound,
            "argmax_share": target.cost_of(argmax) / target.bound,
            "changed_layers": float(len(repaired.changed)),
        },
        cost=meta_cost + training.meter.total(),
        device=device_name(context.device),
        facts={
            "data_fingerprint": training.data.fingerprint,
            "num_updates": total,
            "target": target.text,
            "accounting": accounting.name,
            "reachable": [target.shown(target.smallest), target.shown(target.largest)],
            "in_band": repaired.in_band,
            "changed_layers": list(repaired.changed),
            "policy_id": policy.policy_id,
            "argmax_policy_id": before_repair.policy_id,
            "alpha_sha256": state_hash(architecture.state_dict()),
            "input_ranges": dict(network.kinds),
            "fixed_meta_state": recipe.search.fixed_meta_state,
        },
    )
    if context.rank == 0:
        folder = context.step_dir
        save_policy(folder / POLICY, policy)
        save_policy(folder / ARGMAX, before_repair)
        history.save(folder / HISTORY)
        meta_state.save_meta_state(
            folder / meta_state.META, network, training.optimizer, first + total
        )
        meta_state.save_act_steps(folder, network, costs, spec, training.data.fingerprint)
        network.set_bits(
            {name: (pair.weight_bits, pair.act_bits) for name, pair in repaired.bits.items()}
        )
        network.merge_batchnorm("selected")
        save_tensors(folder / meta_state.WEIGHTS, network.plain_weights())
        finish_phase(folder, result)
    return result


def with_pins(costs: CostTable, bits: Mapping[str, LayerBits]) -> dict[str, LayerBits]:
    """``bits`` of the searched layers and the pins of the others."""
    return {
        layer.name: bits[layer.name] if layer.pinned is None else layer.pinned for layer in costs
    }


def alpha_rate(search: SearchConfig, update: int, total: int) -> float:
    """Learning rate of alpha at ``update`` (from 0) of ``total``: a cosine to ``min_lr``."""
    floor = min(search.min_lr, search.lr)
    return floor + 0.5 * (search.lr - floor) * (1.0 + math.cos(math.pi * update / total))


def _meta_file(spec: PhaseSpec, context: PhaseContext) -> tuple[Path, Cost]:
    """The meta-state given, or trained now; and what that cost."""
    if "meta" in spec.inputs:
        return Path(spec.inputs["meta"]), Cost()
    config: BitSelectionConfig = spec.config
    folder = context.step_dir / "meta"
    result = meta.run(
        replace(spec, phase="metamix.meta", config=config.metamix),
        replace(context, step_dir=folder),
    )
    # Rank 0 writes the file; the others must not look for it earlier.
    barrier()
    return folder / result.outputs["meta"], result.cost


def _moves(
    training: MetaTraining,
    architecture: Architecture,
    target: Target,
    config: BitSelectionConfig,
    first: int,
    history: AlphaHistory,
) -> Sequence[Move]:
    """The updates on each batch, in order."""
    search = config.metamix.search
    step = SearchStep(training.network, architecture, target, search, training.loss, training.meter)
    meta_move = training.move(config.metamix, first)
    search_move = Move(
        name="search",
        optimizer=make_optimizer(architecture, search),
        accumulate=step.accumulate if search.fixed_meta_state else step.hand_over,
        learning_rate=lambda u: alpha_rate(search, u, training.search_updates),
        after=history.record,
    )
    if search.fixed_meta_state:
        return meta_move, search_move
    weights_move = replace(meta_move, name="search_weights", accumulate=step.accumulate_for_weights)
    return meta_move, weights_move, search_move
