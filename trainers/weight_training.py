"""Train the weights at fixed bits: one policy after another on one worker group.

Starting a worker group costs 9 to 30 s, often more than a small training, so a group takes a
*batch* of policies. Each has a folder, checkpoints and a result of its own: a group that is killed
goes on with the policy it was at, and one that diverges does not stop the next.

LIMPQ starts every policy from the full-precision weights and throws the indicator phase's weights
away; MetaMix hands over its meta-state, weights and activation step sizes (Table 1: "inherited"),
so an entry of the batch may name a start of its own.
"""

from __future__ import annotations

import logging
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path
from typing import Any

from torch import Tensor

from solvers.policy import Policy, check_fits
from solvers.storage import load_costs, load_importance, load_policy
from solvers.tables import BitChoices, CostTable
from trainers.averaging import MovingAverage
from trainers.checkpoint import save_tensors
from trainers.data import Batch, ImageData
from trainers.distillation import make_loss
from trainers.errors import DivergedError, ModelError
from trainers.freezing import ProgressiveFreezing
from trainers.loop import Move, Training
from trainers.meters import Meter, device_name
from trainers.optim import learning_rate, make_sgd, num_updates
from trainers.phases import Cost, PhaseContext, PhaseResult, PhaseSpec
from trainers.precision import backward, run_as
from trainers.quant.guard import bound_step_changes
from trainers.quant.handle import QuantNetwork
from trainers.recipes import TrainConfig
from trainers.results import finish_phase, load_result, save_result
from trainers.setup import make_data, make_network, make_plan, quantize, start_steps
from trainers.validation import Validation

log = logging.getLogger(__name__)

# Inputs that an entry of the batch may have of its own.
STARTS = ("weights", "act_steps")
# Role of a policy -> the quantizer it is trained with; None = the recipe's.
POLICY_ROLES = {"policy": None, "policy_pact": "pact"}


def run(spec: PhaseSpec, context: PhaseContext) -> PhaseResult:
    """Train and measure every policy of the batch.

    ``config`` is a ``TrainConfig``. Inputs: ``weights`` (full precision), ``costs``, ``teacher``
    (optional: weights that distillation learns from instead of ``weights``), and for each
    entry, in the order they are trained, ``policy:<entry>`` (``policy_pact:<entry>`` = with
    PACT's quantizers, whatever the recipe says) with optionally ``weights:<entry>`` and
    ``act_steps:<entry>`` (an importance table whose activation steps are taken over at the
    policy's bits). Outputs of an entry are in ``<entry>/``: ``weights.pt``, ``result.json``.

    Returns:
        The sum over the batch; ``metrics`` counts the policies trained and diverged.
    """
    costs = load_costs(Path(spec.inputs["costs"]))
    data = make_data(spec, context)
    results = []
    for role, path in spec.inputs.items():
        kind, _, entry = role.partition(":")
        if kind not in POLICY_ROLES:
            continue
        policy = load_policy(Path(path))
        check_fits(policy, costs)
        own = {r: spec.inputs[f"{r}:{entry}"] for r in STARTS if f"{r}:{entry}" in spec.inputs}
        teacher = {"teacher": spec.inputs["weights"]} if "weights" in spec.inputs else {}
        recipe = replace(spec.config, quantizer=POLICY_ROLES[kind] or spec.config.quantizer)
        entry_spec = replace(spec, config=recipe, inputs={**teacher, **spec.inputs, **own})
        entry_context = replace(context, step_dir=context.step_dir / entry)
        results.append(train_policy(policy, costs, data, entry_spec, entry_context))
    total = PhaseResult(
        phase=spec.phase,
        metrics={
            "policies": float(len(results)),
            "diverged": float(sum("diverged" in r.facts for r in results)),
        },
        cost=sum((r.cost for r in results), Cost()),
        eval_cost=sum((r.eval_cost for r in results), Cost()),
        device=device_name(context.device),
    )
    # Not read at a start: which policies are in the batch depends on what is finished already.
    if context.rank == 0:
        save_result(context.step_dir / "result.json", total)
    return total


def train_policy(
    policy: Policy, costs: CostTable, data: ImageData, spec: PhaseSpec, context: PhaseContext
) -> PhaseResult:
    """Train one policy from its start; a finished one is returned as stored.

    A divergence is a result (``facts["diverged"]`` says where), because the other policies of the
    batch go on and the table must show it.
    """
    done = load_result(context.step_dir / "result.json")
    if done is not None:
        return done
    recipe: TrainConfig = spec.config
    pins, choices = fixed_bits(policy, costs)
    pact = recipe.pact if recipe.quantizer == "pact" else None
    network = quantize(
        make_network(spec, context), data, choices, recipe, spec, context, pins=pins, pact=pact
    )
    network.set_bits({name: (b.weight_bits, b.act_bits) for name, b in policy.layers})
    model = network.model
    plan = make_plan(data.train, data, recipe, spec, context)
    total = num_updates(recipe, plan.num_batches)
    meter = Meter(context.device)
    start_steps(network, plan, recipe, context, meter)
    if "act_steps" in spec.inputs:
        _inherit_steps(network, Path(spec.inputs["act_steps"]), policy)

    task = make_loss(recipe.distillation, recipe.label_smoothing, spec, context)
    if task.teacher is not None:
        run_as(task.teacher, recipe, always=True)
    average = MovingAverage(model, recipe.ema_decay) if recipe.ema_decay is not None else None
    freezing = ProgressiveFreezing(network, recipe.freezing, total) if recipe.freezing else None

    def accumulate(batch: Batch, update: int) -> Tensor:
        images, labels = batch
        if freezing is not None and freezing.before_update(images, update):
            meter.forward(len(labels))
        soft = task.targets(images)
        if soft is not None:
            meter.forward(len(labels))
        loss = task(model(images), labels, soft)
        if update == 0 and average is not None:
            average.restart()  # this pass gave the activations' step sizes their start
        meter.forward(len(labels))
        backward(model, loss)
        meter.backward()
        return loss

    def after(update: int) -> None:
        if freezing is not None and freezing.after_update(update):
            meter.forward(plan.batch_size // context.world_size)
        if average is not None:
            average.update()

    optimizer = make_sgd(
        model.parameters(),
        recipe,
        steps=network.step_parameters(),
        steps_lr_factor=recipe.quantizer_lr_factor,
        steps_weight_decay=0.0 if pact is None else pact.clip_decay,
    )
    bound_step_changes(optimizer, network.step_parameters(), recipe.max_step_change)
    move = Move(
        name="train",
        optimizer=optimizer,
        accumulate=accumulate,
        learning_rate=lambda u: learning_rate(recipe, u, total, plan.num_batches),
        clip_grad_value=recipe.clip_grad_value,
        after=after,
    )
    validation = Validation(
        model,
        data.test,
        lambda: plan.epoch(0),
        recipe.bn_reestimate_images,
        spec.eval_batch_size,
        context,
    )
    extra = {"average": average, "freezing": freezing, "validation": validation}
    facts: dict[str, Any] = {
        "policy_id": policy.policy_id,
        "data_fingerprint": data.fingerprint,
        "num_updates": total,
        "inherited_steps": "act_steps" in spec.inputs,
        "quantizer": recipe.quantizer,
    }

    def after_epoch(epoch: int) -> dict[str, float]:
        if not recipe.evaluate_every or (epoch + 1) % recipe.evaluate_every:
            return {}
        # What is measured at the end is measured here: the averages where there are any.
        measured = nullcontext() if average is None else average.in_place()
        with meter.paused(), measured:
            return {"top1": validation.between_epochs(epoch)}

    try:
        metrics = Training(
            model=model,
            plan=plan,
            total_updates=total,
            moves=lambda update: (move,),
            context=context,
            stream=f"{spec.phase}/{policy.policy_id}",
            seed=spec.seed,
            meter=meter,
            folder=context.step_dir / "checkpoints",
            after_epoch=after_epoch,
            extra={name: value for name, value in extra.items() if value is not None},
        ).run()
        cost = meter.total()
        if average is not None:
            average.apply()
        metrics |= validation.points | validation.measure()
    except DivergedError as error:
        log.warning("policy %s diverged: %s", policy.policy_id, error)
        result = PhaseResult(
            phase=spec.phase,
            cost=meter.total(),
            eval_cost=validation.cost,
            device=device_name(context.device),
            facts={**facts, "diverged": str(error)},
        )
        if context.rank == 0:
            save_result(context.step_dir / "result.json", result)
        return result
    if freezing is not None:
        facts["frozen_layers"] = list(freezing.frozen)
    result = PhaseResult(
        phase=spec.phase,
        outputs={"weights": "weights.pt"},
        metrics=metrics,
        cost=cost,
        eval_cost=validation.cost,
        device=device_name(context.device),
        facts={**facts, "input_ranges": dict(network.kinds)},
    )
    if context.rank == 0:
        save_tensors(context.step_dir / "weights.pt", model.state_dict())
        finish_phase(context.step_dir, result)
    context.report({"policy_top1": metrics["top1"]})
    return result


def _inherit_steps(network: QuantNetwork, path: Path, policy: Policy) -> None:
    """Start the activations' step sizes where an earlier phase left them.

    Raises:
        ModelError: the table lacks a layer at the policy's bits.
    """
    values = load_importance(path).values()
    for name, bits in policy.layers:
        bank = network.layers[name].act_quantizer
        if bits.act_bits not in bank.candidates:
            continue  # left in full precision: nothing to start
        if (name, "act", bits.act_bits) not in values:
            raise ModelError(
                f"{path}: no activation step of layer {name!r} at {bits.act_bits} bits to inherit"
            )
        bank.set_step(bits.act_bits, values[name, "act", bits.act_bits])


def fixed_bits(
    policy: Policy, costs: CostTable
) -> tuple[tuple[tuple[str, int, int], ...], BitChoices]:
    """What ``quantize_network`` is asked for to hold one policy, without any choice left.

    Returns:
        Pins of the pinned layers, and one candidate pair for each of the others.
    """
    import re

    pinned = {layer.name for layer in costs if layer.pinned is not None}
    pins = tuple(
        (re.escape(name), b.weight_bits, b.act_bits) for name, b in policy.layers if name in pinned
    )
    overrides = tuple(
        (name, (b.weight_bits,), (b.act_bits,)) for name, b in policy.layers if name not in pinned
    )
    first = next(b for _, b in policy.layers)
    choices = BitChoices(
        weight_bits=(first.weight_bits,), act_bits=(first.act_bits,), overrides=overrides
    )
    return pins, choices
