"""LIMPQ's joint training: every importance indicator of a network at once (paper, section 3.4).

One update is n + 1 passes over the same batch: for each candidate bit-width b a pass with every
searched layer at (b, b), then one pass at random bits so that layers meet at different widths.
Gradients add up and move the weights and all step sizes once. The step sizes are the indicators.

Two tables come out: the learned step sizes, and the step sizes as statistics initialised them on
the very first batch, so that what learning adds can be told from what statistics gave.
"""

from __future__ import annotations

import re
from pathlib import Path

import torch
from torch import Tensor
from torch.nn import functional as F

from solvers.layer_statistics import save_statistics
from solvers.storage import load_costs, save_importance
from solvers.tables import BitChoices, CostTable, Importance, ImportanceTable
from trainers.checkpoint import save_tensors
from trainers.data import Batch, BatchPlan
from trainers.evaluate import reestimate_batchnorm
from trainers.limpq.config import IndicatorConfig
from trainers.limpq.joint import JOINT, joint_state
from trainers.limpq.passes import random_bits, uniform_passes
from trainers.limpq.statistics import STATISTICS, collect_statistics
from trainers.loop import Move, Training
from trainers.meters import Meter, device_name
from trainers.optim import learning_rate, make_sgd, num_updates
from trainers.phases import PhaseContext, PhaseResult, PhaseSpec
from trainers.precision import backward
from trainers.quant.guard import bound_step_changes
from trainers.quant.handle import QuantNetwork
from trainers.results import finish_phase, load_result
from trainers.setup import make_data, make_network, make_plan, quantize, start_steps

# Images that take the statistics of a merged BatchNorm anew.
MERGE_IMAGES = 2048
LEARNED, INITIAL = "importance.parquet", "importance-initial.parquet"


def run(spec: PhaseSpec, context: PhaseContext) -> PhaseResult:
    """Learn the indicators.

    ``config`` is an ``IndicatorConfig``. Inputs: ``weights`` (full precision), ``costs``.
    Outputs: ``importance`` (learned), ``initial`` (statistics only), ``weights`` (the jointly
    trained network with its step sizes), ``plain`` (the same as a full-precision state dict with
    one BatchNorm), ``joint`` (``weights`` with how the network was wrapped, ``joint.py``),
    ``statistics`` (Parquet, for transforms of the indicators; their cost is in ``eval_cost``).

    Raises:
        DivergedError: a loss or gradient stopped being finite.
        TableError: a learned step size is not positive; the message names layer and bits.
    """
    done = load_result(context.step_dir / "result.json")
    if done is not None:
        return done
    recipe: IndicatorConfig = spec.config
    assert spec.choices is not None, "the plan gives every search phase its candidates"
    costs = load_costs(Path(spec.inputs["costs"]))
    data = make_data(spec, context)
    pins = spec.pins
    if not recipe.quantize_pinned:
        pins = tuple((re.escape(layer.name), 0, 0) for layer in costs if layer.pinned)
    network = quantize(
        make_network(spec, context),
        data,
        spec.choices,
        recipe,
        spec,
        context,
        pins=pins,
        batchnorm=recipe.batchnorm,
    )
    if recipe.freeze_weights:
        for parameter in network.weight_parameters():
            parameter.requires_grad_(False)
    plan = make_plan(data.train, data, recipe, spec, context)
    total = num_updates(recipe, plan.num_batches)
    joint = JointStep(network, spec.choices, recipe, spec.seed, Meter(context.device))
    start_steps(network, plan, recipe, context, joint.meter)

    def accumulate(batch: Batch, update: int) -> Tensor:
        loss = joint.accumulate(batch, update)
        # The first batch initialised every step size and no update has moved them yet.
        if update == 0 and context.rank == 0:
            initial = read_indicators(network, costs, spec, data.fingerprint, "limpq-initial")
            save_importance(context.step_dir / INITIAL, initial)
        return loss

    optimizer = make_sgd(network.model.parameters(), recipe)
    bound_step_changes(optimizer, network.step_parameters(), recipe.max_step_change)
    move = Move(
        name="joint",
        optimizer=optimizer,
        accumulate=accumulate,
        learning_rate=lambda u: learning_rate(recipe, u, total, plan.num_batches),
        clip_grad_value=recipe.clip_grad_value,
        drop_zero_grads=recipe.drop_zero_grads,
    )
    metrics = Training(
        model=network.model,
        plan=plan,
        total_updates=total,
        moves=lambda update: (move,),
        context=context,
        stream=spec.phase,
        seed=spec.seed,
        meter=joint.meter,
        folder=context.step_dir / "checkpoints",
    ).run()
    cost = joint.meter.total()
    folder = context.step_dir
    if context.rank == 0:
        learned = read_indicators(network, costs, spec, data.fingerprint, "limpq")
        save_importance(folder / LEARNED, learned)
        save_tensors(folder / "weights.pt", network.model.state_dict())
        save_tensors(folder / JOINT, joint_state(network, recipe, pins))
    meter = Meter(context.device)
    statistics = collect_statistics(network, spec.choices, plan, recipe, context, meter)
    result = PhaseResult(
        phase=spec.phase,
        outputs={
            "importance": LEARNED,
            "initial": INITIAL,
            "weights": "weights.pt",
            "plain": "plain.pt",
            "joint": JOINT,
            "statistics": STATISTICS,
        },
        metrics=metrics,
        cost=cost,
        eval_cost=meter.total(),
        device=device_name(context.device),
        facts={
            "data_fingerprint": data.fingerprint,
            "num_train_images": len(plan.images),
            "num_updates": total,
            "input_ranges": dict(network.kinds),
            "switchable_batchnorms": len(network.switchable_norms()),
            "clamped_steps": clamped_steps(network, recipe.step_clamp),
        },
    )
    _merge_batchnorm(network, plan, context)
    if context.rank == 0:
        save_statistics(folder / STATISTICS, statistics)
        save_tensors(folder / "plain.pt", network.plain_weights())
        finish_phase(folder, result)
    return result


def _merge_batchnorm(network: QuantNetwork, plan: BatchPlan, context: PhaseContext) -> None:
    """One BatchNorm where there was a copy per width, its statistics taken anew.

    So the jointly trained weights can start another method, as full-precision ones would.
    """
    network.set_full_precision()
    network.merge_batchnorm("mean")
    reestimate_batchnorm(network.model, plan.epoch(0), MERGE_IMAGES, context, Meter(context.device))


class JointStep:
    """The n + 1 passes of one update.

    Args:
        network: the quantized network.
        choices: candidate bits.
        recipe: the switches.
        seed: of the run; the random pass of an update is the same on every rank.
        meter: counts passes.
    """

    def __init__(
        self,
        network: QuantNetwork,
        choices: BitChoices,
        recipe: IndicatorConfig,
        seed: int,
        meter: Meter,
    ) -> None:
        self.network, self.choices, self.recipe, self.seed = network, choices, recipe, seed
        self.meter = meter

    def accumulate(self, batch: Batch, update: int) -> Tensor:
        """Leave the aggregated gradient of all passes; returns their mean loss."""
        images, labels = batch
        losses = []
        # Widest first, as published; the order matters only for who initialises BatchNorm first.
        passes = uniform_passes(self.choices)
        for bits in passes:
            self.network.set_uniform(bits)
            losses.append(self._one_pass(images, labels, len(passes)))
        if self.recipe.random_pass != "none":
            drawn = random_bits(
                self.network.searched, self.choices, self.recipe.random_pass, self.seed, update
            )
            self.network.set_bits(drawn)
            losses.append(self._one_pass(images, labels, len(passes)))
        return torch.stack(losses).mean()

    def _one_pass(self, images: Tensor, labels: Tensor, num_uniform: int) -> Tensor:
        loss = F.cross_entropy(
            self.network.model(images), labels, label_smoothing=self.recipe.label_smoothing
        )
        self.meter.forward(len(labels))
        num_passes = num_uniform + (self.recipe.random_pass != "none")
        scale = 1.0 if self.recipe.aggregate == "sum" else 1.0 / num_passes
        backward(self.network.model, loss * scale)
        self.meter.backward()
        return loss.detach()


def clamped_steps(network: QuantNetwork, clamp: tuple[float, float] | None) -> list[str]:
    """The indicators outside the forward clamp: they take no gradient and stand where they are.

    The published clamp of 1 is above what ImageNet networks have (at most 0.44 in the released
    indicators) and below the 2-bit activation steps of networks on small images.
    """
    if clamp is None:
        return []
    low, high = clamp
    return sorted(
        f"{layer} {tensor} {bits}"
        for layer, tensor, bank in network.banks()
        if layer in network.searched
        for bits, value in bank.values().items()
        if not low <= value <= high
    )


def read_indicators(
    network: QuantNetwork,
    costs: CostTable,
    spec: PhaseSpec,
    data_fingerprint: str,
    method: str,
) -> ImportanceTable:
    """The stored step sizes of the searched layers: paper, "s as importance indicator"."""
    searched = set(network.searched)
    rows = tuple(
        Importance(layer=layer, tensor="weight" if tensor == "weight" else "act", bits=b, value=s)
        for layer, tensor, bank in network.banks()
        if layer in searched
        for b, s in bank.values().items()
    )
    return ImportanceTable(
        model=costs.model,
        fingerprint=costs.fingerprint,
        method=method,
        seed=spec.seed,
        data_fingerprint=data_fingerprint,
        rows=rows,
    )
