"""On which images, with which network, does a method look for sensitive layers?

Methods that do not train share all of it: the full-precision network in evaluation mode, wrapped so
that any tensor can be quantized alone; a seeded draw of training images, split over the ranks; the
layers that the cost table says may be searched. Sums over ranks make every number the same on all.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor
from torch.nn import functional as F

from solvers.storage import load_costs
from solvers.tables import CostTable, TensorRole
from trainers.baselines.config import CalibrationConfig
from trainers.data import Batch, ImageData
from trainers.distributed import sum_over_ranks
from trainers.errors import DivergedError, ModelError
from trainers.meters import Meter
from trainers.phases import PhaseContext, PhaseSpec
from trainers.quant.bank import StepBank
from trainers.quant.handle import QuantNetwork
from trainers.quant.tracing import evaluating
from trainers.recipes import QuantTrainingConfig
from trainers.seeds import generator
from trainers.setup import make_data, make_network, quantize

# One entry of an importance table: layer, tensor, bits.
Key = tuple[str, TensorRole, int]


@dataclass(frozen=True, kw_only=True)
class Calibration:
    """A full-precision network and the images it is looked at with.

    Attributes:
        costs: of the network.
        network: wrapped, in full precision.
        data: all images.
        indices: int64, those of ``data.train`` that are used.
        batch_size: images per pass over all ranks.
        context: this rank.
        meter: counts passes.
    """

    costs: CostTable
    network: QuantNetwork
    data: ImageData
    indices: Tensor
    batch_size: int
    context: PhaseContext
    meter: Meter

    @property
    def searched(self) -> tuple[str, ...]:
        """Names of the layers whose bits are to be found, in execution order."""
        return tuple(layer.name for layer in self.costs.searched)

    @property
    def keys(self) -> tuple[Key, ...]:
        """Every (layer, tensor, bits) that an importance table has a value for."""
        roles: tuple[TensorRole, ...] = ("weight", "act")
        return tuple(
            (name, role, bits)
            for name in self.searched
            for role in roles
            for bits in self.bank(name, role).candidates
        )

    def bank(self, layer: str, role: TensorRole) -> StepBank:
        """The quantizer of a layer's weight or of its input."""
        wrapped = self.network.layers[layer]
        return wrapped.weight_quantizer if role == "weight" else wrapped.act_quantizer

    def batches(self) -> Iterator[Batch]:
        """This rank's part of every batch, in the same order each time; no augmentation."""
        ranks, device = self.context.world_size, self.context.device
        for start in range(0, len(self.indices), self.batch_size):
            mine = self.indices[start : start + self.batch_size][self.context.rank :: ranks]
            self.context.alive()
            if not len(mine):
                continue
            images, labels = self.data.train.batch(mine, None)
            if len(labels):  # every image of a batch may have been broken and skipped
                yield images.to(device), labels.to(device)

    @torch.no_grad()
    def forward_all(self) -> None:
        """One pass over the images; hooks see what they came for."""
        with evaluating(self.network.model):
            for images, labels in self.batches():
                self.network.model(images)
                self.meter.forward(len(labels))

    @torch.no_grad()
    def loss_and_top1(self) -> tuple[float, float]:
        """Mean cross entropy and top-1 in percent at the current bits; an evaluation.

        Raises:
            DivergedError: the loss is not finite.
        """
        sums = torch.zeros(3, dtype=torch.float64, device=self.context.device)
        with evaluating(self.network.model):
            for images, labels in self.batches():
                logits = self.network.model(images).float()
                self.meter.forward(len(labels))
                loss = F.cross_entropy(logits, labels, reduction="sum")
                hits = logits.argmax(dim=1).eq(labels).sum()
                sums += torch.stack([loss, hits, loss.new_tensor(len(labels))])
        # Counted: broken images may have been left out.
        total, num_hits, num_images = sum_over_ranks(sums.tolist(), self.context.device)
        if not math.isfinite(total):
            raise DivergedError(
                f"the loss on {len(self.indices)} training images is {total}; look at the weights"
            )
        return total / num_images, 100.0 * num_hits / num_images


def calibrate(spec: PhaseSpec, context: PhaseContext, config: CalibrationConfig) -> Calibration:
    """Build it from the specification.

    Raises:
        ModelError: no candidates, or layers searched that the cost table pins (or the reverse).
    """
    if spec.choices is None:
        raise ModelError(f"{spec.phase} needs candidate bit-widths")
    costs = load_costs(Path(spec.inputs["costs"]))
    data = make_data(spec, context)
    meter = Meter(context.device)
    model = make_network(spec, context)
    # The wrapped network's own recipe is not used: nothing is trained.
    network = quantize(
        model, data, spec.choices, QuantTrainingConfig(), spec, context, pins=spec.pins
    )
    for parameter in network.step_parameters():
        parameter.requires_grad_(False)
    searched = {layer.name for layer in costs.searched}
    if searched != set(network.searched):
        odd = sorted(searched ^ set(network.searched))[0]
        raise ModelError(
            f"layer {odd!r} is searched by the cost table or by the network, but not by both: "
            "their pins differ; trace the costs again with the pins of this run"
        )
    # One name for all methods, so that they look at the same images.
    order = torch.randperm(len(data.train), generator=generator(spec.seed, "calibration"))
    return Calibration(
        costs=costs,
        network=network,
        data=data,
        indices=order[: config.images].sort().values,
        batch_size=max(config.batch_size, context.world_size),
        context=context,
        meter=meter,
    )
