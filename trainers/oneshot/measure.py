"""What does one rank alone say about a network? Loss and top-1 on images that it holds in memory.

Policies, not images, are shared out between ranks, so every policy is judged whole by one process
and its loss does not depend on how many ranks there are. Nothing here talks to another rank.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.modules.batchnorm import _BatchNorm

from trainers.data.batches import Batch
from trainers.data.images import ImageSet
from trainers.errors import DivergedError
from trainers.phases import PhaseContext
from trainers.quant.tracing import evaluating


@dataclass(frozen=True, kw_only=True, slots=True)
class Measured:
    """What was found: mean cross entropy, and top-1 in percent."""

    loss: float
    top1: float


def decoded(
    images: ImageSet, indices: Tensor, batch: int, context: PhaseContext
) -> tuple[Batch, ...]:
    """Images as they are evaluated, in batches on the device: decoded once for all policies."""
    if not len(indices):
        return ()  # split would give one empty part
    found = []
    for part in torch.split(indices, batch):
        context.alive()
        x, y = images.batch(part, None)
        x = x.to(context.device).contiguous(memory_format=torch.channels_last)
        found.append((x, y.to(context.device)))
    return tuple(found)


@torch.no_grad()
def measure(
    model: nn.Module, batches: tuple[Batch, ...], alive: Callable[[], None] = lambda: None
) -> Measured:
    """Loss and top-1 of ``model`` in evaluation mode; ``alive`` is called before every batch.

    Raises:
        DivergedError: the loss is not finite.
    """
    device = batches[0][0].device
    sums = torch.zeros(2, dtype=torch.float64, device=device)
    count = 0
    with evaluating(model):
        for x, y in batches:
            alive()
            logits = model(x).float()
            loss = F.cross_entropy(logits, y, reduction="sum")
            sums += torch.stack([loss.double(), (logits.argmax(dim=1) == y).sum().double()])
            count += len(y)
    loss_sum, correct = sums.tolist()
    if not math.isfinite(loss_sum):
        raise DivergedError(
            f"the loss on {count} images is {loss_sum}: the network's weights or step sizes are "
            "broken; look at the training they come from"
        )
    return Measured(loss=loss_sum / count, top1=100.0 * correct / count)


@torch.no_grad()
def refresh_norms(
    model: nn.Module, batches: tuple[Batch, ...], alive: Callable[[], None] = lambda: None
) -> None:
    """Replace BatchNorm running statistics by the average over ``batches``, as now reached.

    A BatchNorm that no pass reaches keeps what it has; momentum is left as it was. ``alive`` is
    called before every batch.
    """
    norms = [m for m in model.modules() if isinstance(m, _BatchNorm) and m.running_mean is not None]
    before = [(n.momentum, {k: b.clone() for k, b in n.named_buffers()}) for n in norms]
    with evaluating(model):
        for norm in norms:
            norm.reset_running_stats()
            norm.momentum = None  # cumulative average
            norm.train()
        for x, _ in batches:
            alive()
            model(x)
    for norm, (momentum, statistics) in zip(norms, before, strict=True):
        norm.momentum = momentum
        if not norm.num_batches_tracked:
            norm.load_state_dict(statistics, strict=False)
