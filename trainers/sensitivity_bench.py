"""What does one layer at few bits cost, the rest of the network in full precision?

Every cell starts from the same full-precision network, so that it does not matter which came
before. Nothing here talks to another rank.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace
from itertools import islice
from typing import NamedTuple

import torch
from torch import nn
from torch.nn import functional as F

from solvers.tables import BitChoices
from trainers.data import BatchPlan, ImageData
from trainers.errors import DataError, DivergedError, InterruptedPhaseError
from trainers.meters import Meter
from trainers.oneshot.measure import Measured, decoded, measure, num_images, refresh_norms
from trainers.optim import learning_rate, make_sgd, num_updates, set_learning_rate
from trainers.phases import PhaseContext, PhaseSpec
from trainers.quant.bank import StepBank
from trainers.quant.guard import bound_step_changes
from trainers.quant.tracing import evaluating
from trainers.seeds import generator
from trainers.sensitivity_config import SensitivityConfig
from trainers.setup import make_data, make_network, make_plan, quantize

Values = tuple[float, ...]


class Cell(NamedTuple):
    """What is quantized: a layer's ``weight``, ``act`` or ``both``, at how many bits."""

    layer: str
    tensor: str
    bits: int


class Bench:
    """The network and images that cells are measured with, by this rank alone."""

    def __init__(
        self, spec: PhaseSpec, context: PhaseContext, config: SensitivityConfig, meter: Meter
    ) -> None:
        self.config, self.meter, self.context = config, meter, context
        # Alone: a cell is one rank's, its batches and gradients are not shared out.
        alone = replace(context, rank=0, world_size=1)
        self.data: ImageData = make_data(spec, context)
        bits = tuple(sorted(set(config.bits)))
        self.network = quantize(
            make_network(spec, context),
            self.data,
            BitChoices(weight_bits=bits, act_bits=bits),
            config,
            spec,
            alone,
            pins=spec.pins,
        )
        self.plan: BatchPlan = make_plan(self.data.train, self.data, config, spec, alone)
        self.updates = num_updates(config, self.plan.num_batches)
        held = self.data.test if config.images_from == "test" else self.data.train
        at = torch.randperm(len(held), generator=generator(spec.seed, "sensitivity", "images"))
        order = torch.randperm(
            len(self.data.train), generator=generator(spec.seed, "sensitivity", "norms")
        )
        if len(at) < config.images or len(order) < config.bn_images:
            raise DataError(
                f"sensitivity: {config.images} images and {config.bn_images} for BatchNorm were "
                f"asked for; there are {len(at)} and {len(order)}"
            )
        device = context.device
        self.batches = decoded(held, at[: config.images], config.batch, context)
        self.norm_batches = decoded(
            self.data.train, order[: config.bn_images], config.batch, context
        )
        starts = [x.to(device) for x, _ in islice(self.plan.epoch(0), config.init_batches)]
        self.network.initialize(starts, mean_over_ranks=lambda value: value)
        for parameter in self.network.model.parameters():
            parameter.requires_grad_(False)
        state = self.network.model.state_dict()
        self.start = {name: value.clone() for name, value in state.items()}

    def full_precision(self) -> Measured:
        """The network with nothing quantized, its BatchNorm statistics treated like a cell's."""
        self._restart()
        self.meter.forward_passes += len(self.norm_batches) + len(self.batches)
        return self._measured()

    def cell(self, cell: Cell) -> Values:
        """The columns of a cell after its key.

        Raises:
            DivergedError: a loss is not finite.
            InterruptedPhaseError: the driver asked to stop inside the cell, which is then to be
                measured again; its images are not counted.
        """
        images = self.meter.images
        try:
            return self._values(cell)
        except InterruptedPhaseError:
            self.meter.images = images
            raise

    def _values(self, cell: Cell) -> Values:
        self._restart()
        layer = self.network.layers[cell.layer]
        of_tensor = {"weight": layer.weight_quantizer, "act": layer.act_quantizer}
        banks = [b for name, b in of_tensor.items() if cell.tensor in (name, "both")]
        for bank in banks:
            bank.set_bits(cell.bits)
        # Of both, the step that is told is the weight's.
        step, before = banks[0].values()[cell.bits], self._measured()
        after = before
        if self.updates:
            self._train(cell, banks)
            after = self._measured()
        step_after = banks[0].values()[cell.bits]
        return (before.loss, before.top1, after.loss, after.top1, step, step_after)

    def passes(self) -> tuple[int, int]:
        """Forward and backward passes of one cell."""
        measured = len(self.norm_batches) + len(self.batches)
        return measured * (2 if self.updates else 1) + self.updates, self.updates

    def _restart(self) -> None:
        self.network.model.load_state_dict(self.start)
        self.network.set_full_precision()

    def _measured(self) -> Measured:
        if self.norm_batches:
            refresh_norms(self.network.model, self.norm_batches, self.context.alive)
        self.meter.images += num_images(self.norm_batches) + num_images(self.batches)
        return measure(self.network.model, self.batches, self.context.alive)

    def _train(self, cell: Cell, banks: Sequence[StepBank]) -> None:
        """Move the steps, and the layer's weights if asked to, over the plan's first batches."""
        config, network, device = self.config, self.network, self.context.device
        parts = config.accumulate
        steps = [bank.steps for bank in banks]
        learning: list[nn.Parameter] = [*steps]
        if config.train == "step_and_weights":
            learning.append(network.model.get_parameter(f"{cell.layer}.weight"))
        for parameter in learning:
            parameter.requires_grad_(True)
        optimizer = make_sgd(learning, config)
        bound_step_changes(optimizer, steps, config.max_step_change)
        update = 0
        try:
            with evaluating(network.model):
                while update < self.updates:
                    epoch, first = divmod(update, self.plan.num_batches)
                    for images, labels in self.plan.epoch(epoch, first):
                        if self.context.should_stop():
                            raise InterruptedPhaseError(f"stopped at update {update} of {cell}")
                        optimizer.zero_grad(set_to_none=True)
                        for x, y in zip(*(t.chunk(parts) for t in (images, labels)), strict=True):
                            loss = F.cross_entropy(
                                network.model(x.to(device)),
                                y.to(device),
                                label_smoothing=config.label_smoothing,
                            )
                            if not math.isfinite(loss.item()):
                                raise DivergedError(f"the loss is {loss.item()} at update {update}")
                            (loss / parts).backward()
                        if config.clip_grad_value is not None:
                            torch.nn.utils.clip_grad_value_(learning, config.clip_grad_value)
                        set_learning_rate(
                            optimizer,
                            learning_rate(config, update, self.updates, self.plan.num_batches),
                        )
                        optimizer.step()
                        self.meter.images += len(labels)
                        update += 1
                        if update == self.updates:
                            break
        finally:
            for parameter in learning:
                parameter.requires_grad_(False)
                parameter.grad = None
