"""What do both phases of MetaMix set up alike: network, optimizer, schedule, batches?"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import torch

from solvers.storage import load_costs
from solvers.tables import CostTable
from trainers.data import BatchPlan, ImageData
from trainers.distillation import TeacherLoss, make_loss
from trainers.errors import DivergedError, ModelError
from trainers.loop import Move
from trainers.metamix.config import MetaMixConfig
from trainers.metamix.meta_state import check_network
from trainers.metamix.meta_step import MetaStep
from trainers.meters import Meter
from trainers.optim import learning_rate, make_sgd, num_updates
from trainers.phases import PhaseContext, PhaseSpec
from trainers.precision import run_as
from trainers.quant.guard import bound_step_changes
from trainers.quant.handle import QuantNetwork
from trainers.setup import make_data, make_network, make_plan, quantize, start_steps


@dataclass(frozen=True, kw_only=True)
class MetaTraining:
    """What meta updates need, in either phase.

    Attributes:
        costs: of the network.
        data: the images.
        network: quantized.
        optimizer: of weights and step sizes.
        plan: this phase's batches.
        loss: task loss.
        meter: counts passes.
        step: the B passes.
        meta_updates: updates of the meta-only phase.
        search_updates: updates of the alternating phase.
    """

    costs: CostTable
    data: ImageData
    network: QuantNetwork
    optimizer: torch.optim.SGD
    plan: BatchPlan
    loss: TeacherLoss
    meter: Meter
    step: MetaStep
    meta_updates: int
    search_updates: int

    def move(self, recipe: MetaMixConfig, first: int, total: int | None = None) -> Move:
        """The meta update.

        Args:
            recipe: rates.
            first: where in the schedule this phase begins.
            total: updates of the schedule; None = those of both phases, through which it runs.
        """
        meta = recipe.meta
        if total is None:
            total = self.meta_updates + self.search_updates
        return Move(
            name="meta",
            optimizer=self.optimizer,
            accumulate=self.step.accumulate,
            learning_rate=lambda u: learning_rate(meta, first + u, total, self.plan.num_batches),
            clip_grad_value=meta.clip_grad_value,
            after=lambda update: refuse_dead_steps(self.network, update),
        )


def refuse_dead_steps(network: QuantNetwork, update: int) -> None:
    """Stop when a step size crosses zero: the forward floor gives it no gradient to come back.

    Raises:
        DivergedError: naming layer and bits.
    """
    steps = [p.detach() for p in network.step_parameters()]
    if float(torch.cat(steps).min()) > 0:
        return
    for name, tensor, bank in network.banks():
        for bits, value in bank.values().items():
            if not value > 0:
                raise DivergedError(
                    f"meta: the {tensor} step size of layer {name!r} at {bits} bits is {value} "
                    f"after update {update}; lower the learning rate or quantizer_lr_factor"
                )


def prepare(spec: PhaseSpec, context: PhaseContext, recipe: MetaMixConfig) -> MetaTraining:
    """Build it all from the specification.

    Raises:
        ModelError: no BatchNorm, or layers searched that the cost table pins (or the reverse).
    """
    if spec.choices is None:
        raise ModelError("bit selection needs candidate bit-widths")
    meta = recipe.meta
    costs = load_costs(Path(spec.inputs["costs"]))
    data = make_data(spec, context)
    loss = make_loss(meta.distillation, meta.label_smoothing, spec, context)
    if loss.teacher is not None:
        run_as(loss.teacher, meta, always=True)
    model = make_network(spec, context)
    check_network(model)
    network = quantize(
        model, data, spec.choices, meta, spec, context, pins=spec.pins, batchnorm=meta.batchnorm
    )
    searched = tuple(layer.name for layer in costs.searched)
    if set(searched) != set(network.searched):
        odd = sorted(set(searched) ^ set(network.searched))[0]
        raise ModelError(
            f"layer {odd!r} is searched by the cost table or by the network, but not by both: "
            "their pins differ; trace the costs again with the pins of this run"
        )
    plan = make_plan(data.train, data, meta, spec, context)
    search = recipe.search
    optimizer = make_sgd(
        network.model.parameters(),
        meta,
        steps=network.step_parameters(),
        steps_lr_factor=meta.quantizer_lr_factor,
    )
    bound_step_changes(optimizer, network.step_parameters(), meta.max_step_change)
    meter = Meter(context.device)
    start_steps(network, plan, meta, context, meter)
    per_epoch = plan.num_batches
    return MetaTraining(
        costs=costs,
        data=data,
        network=network,
        optimizer=optimizer,
        plan=plan,
        loss=loss,
        meter=meter,
        step=MetaStep(network, loss, meter),
        meta_updates=num_updates(meta, per_epoch),
        search_updates=search.steps if search.steps is not None else search.epochs * per_epoch,
    )
