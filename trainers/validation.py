"""How good is a network while it trains and at the end? Measured without a trace in the training.

Before each measurement BatchNorm statistics are re-estimated at the bits of the policy. Between
epochs the running statistics are put back after it: the published code lets them leak into the
training that follows.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Any

import torch
from torch import nn

from trainers.data import Batch
from trainers.data.images import ImageSet
from trainers.evaluate import evaluate, reestimate_batchnorm
from trainers.meters import Meter
from trainers.phases import Cost, PhaseContext


class Validation:
    """The measurements of one training; part of its checkpoint.

    Args:
        model: the network.
        images: what it is measured on.
        batches: this rank's batches for BatchNorm statistics, anew at every call.
        bn_images: images for these over all ranks; 0 keeps the running statistics.
        batch_size: images per forward pass over all ranks.
        context: this rank.

    Attributes:
        points: top-1 in percent by ``top1_epoch_<n>``, n from 1.
        cost: of all measurements so far.
    """

    def __init__(
        self,
        model: nn.Module,
        images: ImageSet,
        batches: Callable[[], Iterable[Batch]],
        bn_images: int,
        batch_size: int,
        context: PhaseContext,
    ) -> None:
        self.model, self.images, self.batches = model, images, batches
        self.bn_images, self.batch_size, self.context = bn_images, batch_size, context
        self.points: dict[str, float] = {}
        self.cost = Cost()

    def between_epochs(self, epoch: int) -> float:
        """Top-1 in percent after ``epoch`` (from 0); the network is left as it was."""
        kept = {name: buffer.clone() for name, buffer in self.model.named_buffers()}
        top1 = self.measure()["top1"]
        with torch.no_grad():
            for name, buffer in self.model.named_buffers():
                buffer.copy_(kept[name])
        self.points[f"top1_epoch_{epoch + 1}"] = top1
        return top1

    def measure(self) -> dict[str, float]:
        """Re-estimate BatchNorm statistics, for good, and evaluate; see ``evaluate``.

        Raises:
            DivergedError: the loss is not finite.
        """
        meter = Meter(self.context.device)
        if self.bn_images:
            reestimate_batchnorm(self.model, self.batches(), self.bn_images, self.context, meter)
        found = evaluate(self.model, self.images, self.batch_size, self.context, meter)
        self.cost = self.cost + meter.total()
        return found

    def state_dict(self) -> dict[str, Any]:
        """For a checkpoint."""
        cost = {name: getattr(self.cost, name) for name in Cost.__dataclass_fields__}
        return {"points": dict(self.points), "cost": cost}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """From a checkpoint."""
        self.points, self.cost = dict(state["points"]), Cost(**state["cost"])
