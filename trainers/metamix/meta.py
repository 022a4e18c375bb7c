"""Phase ``metamix.meta``: epoch 1 of Table 1, bit-meta training alone.

Its meta-state does not depend on the target, so one serves every selection of a budget sweep.
"""

from __future__ import annotations

from dataclasses import replace

from torch import Tensor

from solvers.storage import save_importance
from trainers.checkpoint import save_tensors
from trainers.data import Batch
from trainers.loop import Training
from trainers.metamix import meta_state
from trainers.metamix.config import MetaMixConfig
from trainers.metamix.setup import prepare
from trainers.meters import device_name
from trainers.phases import PhaseContext, PhaseResult, PhaseSpec
from trainers.results import finish_phase, load_result


def run(spec: PhaseSpec, context: PhaseContext) -> PhaseResult:
    """Train the meta-state.

    ``config`` is a ``MetaMixConfig``. Inputs: ``weights`` (full precision), ``costs``, ``teacher``
    (optional). Outputs: ``meta`` (for ``metamix.bit_selection``), ``weights`` (plain state dict),
    ``importance`` (activation step sizes of searched layers), ``initial`` (the same before any
    update), ``act_steps`` (of all layers).

    Raises:
        DivergedError: a loss or gradient stopped being finite.
        ModelError: a network MetaMix cannot work with.
        TableError: a step size is not positive; the message names layer and bits.
    """
    done = load_result(context.step_dir / "result.json")
    if done is not None:
        return done
    recipe: MetaMixConfig = spec.config
    training = prepare(spec, context, recipe)
    network, costs, data = training.network, training.costs, training.data
    folder = context.step_dir

    def accumulate(batch: Batch, update: int) -> Tensor:
        loss = training.step.accumulate(batch, update)
        # The first batch started every step size and no update has moved them yet.
        if update == 0 and context.rank == 0:
            initial = meta_state.act_steps(
                network, costs, spec, data.fingerprint, "metamix-initial", pinned_too=False
            )
            save_importance(folder / meta_state.INITIAL, initial)
        return loss

    move = replace(training.move(recipe, 0), accumulate=accumulate)
    metrics = Training(
        model=network.model,
        plan=training.plan,
        total_updates=training.meta_updates,
        moves=lambda update: (move,),
        context=context,
        stream=spec.phase,
        seed=spec.seed,
        meter=training.meter,
        folder=folder / "checkpoints",
    ).run()
    result = PhaseResult(
        phase=spec.phase,
        outputs={
            "meta": meta_state.META,
            "weights": meta_state.WEIGHTS,
            "importance": meta_state.IMPORTANCE,
            "initial": meta_state.INITIAL,
            "act_steps": meta_state.ACT_STEPS,
        },
        metrics=metrics,
        cost=training.meter.total(),
        device=device_name(context.device),
        facts={
            "data_fingerprint": data.fingerprint,
            "num_train_images": len(training.plan.images),
            "num_updates": training.meta_updates,
            "passes_per_update": len(training.step.passes),
            "input_ranges": dict(network.kinds),
        },
    )
    if context.rank == 0:
        meta_state.save_meta_state(
            folder / meta_state.META, network, training.optimizer, training.meta_updates
        )
        meta_state.save_act_steps(folder, network, costs, spec, data.fingerprint)
        network.merge_batchnorm("mean")
        save_tensors(folder / meta_state.WEIGHTS, network.plain_weights())
        finish_phase(folder, result)
    return result
