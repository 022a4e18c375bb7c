"""How good is a network? Top-1, top-5 and loss over a whole set, shared by the ranks.

Before a quantized network is measured, its BatchNorm statistics may be re-estimated: running
averages collected while bits and weights moved describe a network that no longer exists (LIMPQ's
published code does it before every validation).
"""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import nn
from torch.nn import functional as F

from trainers.data.batches import Batch, evaluation_batches
from trainers.data.images import ImageSet
from trainers.distributed import average_norm_statistics, sum_over_ranks
from trainers.meters import Meter
from trainers.phases import PhaseContext


@torch.no_grad()
def evaluate(
    model: nn.Module, images: ImageSet, batch_size: int, context: PhaseContext, meter: Meter
) -> dict[str, float]:
    """Accuracy of ``model`` in evaluation mode on every image once.

    Args:
        model: network at the bits to be measured.
        images: the set.
        batch_size: images per forward pass over all ranks; does not change the result.
        context: this rank.
        meter: counts the passes.

    Returns:
        ``top1`` and ``top5`` in percent, ``loss`` (mean cross entropy), the same on every rank.
    """
    was_training = model.training
    model.eval()
    correct1 = correct5 = loss = count = 0.0
    share = max(1, batch_size // context.world_size)
    for x, y in evaluation_batches(images, share, context.rank, context.world_size):
        logits = model(x.to(context.device))
        target = y.to(context.device)
        meter.forward(len(target))
        top = logits.topk(min(5, logits.shape[1]), dim=1).indices
        hits = top.eq(target[:, None])
        correct1 += float(hits[:, 0].sum())
        correct5 += float(hits.sum())
        loss += float(F.cross_entropy(logits.float(), target, reduction="sum"))
        count += len(target)
    device = context.device if context.device.startswith("cuda") else "cpu"
    correct1, correct5, loss, count = sum_over_ranks([correct1, correct5, loss, count], device)
    model.train(was_training)
    return {
        "top1": 100.0 * correct1 / count,
        "top5": 100.0 * correct5 / count,
        "loss": loss / count,
    }


@torch.no_grad()
def reestimate_batchnorm(
    model: nn.Module, batches: Iterable[Batch], num_images: int, context: PhaseContext, meter: Meter
) -> None:
    """Replace every BatchNorm's running statistics by plain averages over fresh batches.

    Args:
        model: network at the bits to be measured; only running statistics change.
        batches: this rank's training batches.
        num_images: images to use over all ranks; at least one batch is used.
        context: this rank.
        meter: counts the passes.

    The momentum is restored afterwards. (The published code leaves it at cumulative averaging,
    so its training goes on with other statistics after every validation.)
    """
    norms = [m for m in model.modules() if isinstance(m, nn.modules.batchnorm._BatchNorm)]
    momenta = [norm.momentum for norm in norms]
    was_training = model.training
    model.eval()
    for norm in norms:
        norm.reset_running_stats()
        norm.momentum = None  # cumulative average
        norm.train()
    seen = 0
    for x, _ in batches:
        model(x.to(context.device))
        meter.forward(len(x))
        seen += len(x) * context.world_size
        if seen >= num_images:
            break
    average_norm_statistics(model)
    for norm, momentum in zip(norms, momenta, strict=True):
        norm.momentum = momentum
    model.train(was_training)
