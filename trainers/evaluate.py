"""How good is a network? Top-1, top-5 and loss over a whole set, shared by the ranks.

Before a quantized network is measured, its BatchNorm statistics may be re-estimated: running
averages collected while bits and weights moved describe a network that no longer exists (LIMPQ's
published code does it before every validation).
"""

from __future__ import annotations

import math
from collections.abc import Iterable

import torch
from torch import nn
from torch.nn import functional as F
from torch.nn.modules.batchnorm import _BatchNorm

from trainers.data.batches import Batch, evaluation_batches
from trainers.data.images import ImageSet
from trainers.distributed import average_norm_statistics, sum_over_ranks
from trainers.errors import DivergedError
from trainers.meters import Meter
from trainers.phases import PhaseContext
from trainers.quant.tracing import evaluating


@torch.no_grad()
def evaluate(
    model: nn.Module, images: ImageSet, batch_size: int, context: PhaseContext, meter: Meter
) -> dict[str, float]:
    """Accuracy of ``model`` in evaluation mode on every image once.

    Args:
        model: network at the bits to be measured; its modules' modes are restored after.
        images: the set.
        batch_size: images per forward pass over all ranks; does not change the result.
        context: this rank; it may have no image at all.
        meter: counts the passes.

    Returns:
        ``top1`` and ``top5`` in percent, ``loss`` (mean cross entropy), the same on every rank.

    Raises:
        DivergedError: the loss is not finite, on every rank alike.
    """
    # Summed where the network is: a look at each batch's count would stall a GPU.
    sums = torch.zeros(4, dtype=torch.float64, device=context.device)
    share = max(1, batch_size // context.world_size)
    with evaluating(model):
        for x, y in evaluation_batches(
            images,
            share,
            context.rank,
            context.world_size,
            pinned=context.device.startswith("cuda"),
        ):
            context.alive()
            logits = model(x.to(context.device, non_blocking=True)).float()
            target = y.to(context.device, non_blocking=True)
            meter.forward(len(target))
            top = logits.topk(min(5, logits.shape[1]), dim=1).indices
            hits = top.eq(target[:, None])
            loss = F.cross_entropy(logits, target, reduction="sum")
            sums += torch.stack([hits[:, 0].sum(), hits.sum(), loss, loss.new_tensor(len(target))])
    correct1, correct5, loss_sum, count = sum_over_ranks(sums.tolist(), context.device)
    if not math.isfinite(loss_sum):
        raise DivergedError(
            f"the loss on {len(images)} images is {loss_sum}: the network's weights or BatchNorm "
            "statistics are broken. Train it with a lower learning rate"
        )
    return {
        "top1": 100.0 * correct1 / count,
        "top5": 100.0 * correct5 / count,
        "loss": loss_sum / count,
    }


@torch.no_grad()
def reestimate_batchnorm(
    model: nn.Module, batches: Iterable[Batch], num_images: int, context: PhaseContext, meter: Meter
) -> None:
    """Replace the running statistics of BatchNorm by plain averages over fresh batches.

    A BatchNorm that no pass reaches (the copies of other bit-widths) keeps what it has.

    Args:
        model: network at the bits to be measured; only running statistics change.
        batches: this rank's training batches; all of them are used if they hold fewer images.
        num_images: images to use over all ranks; at least one batch is used.
        context: this rank.
        meter: counts the passes.

    The momentum is restored afterwards. (The published code leaves it at cumulative averaging,
    so its training goes on with other statistics after every validation.)
    """
    norms = [m for m in model.modules() if isinstance(m, _BatchNorm) and m.running_mean is not None]
    before = [(n.momentum, {k: b.clone() for k, b in n.named_buffers()}) for n in norms]
    try:
        with evaluating(model):
            for norm in norms:
                norm.reset_running_stats()
                norm.momentum = None  # cumulative average
                norm.train()
            seen = 0
            for x, _ in batches:
                context.alive()
                model(x.to(context.device))
                meter.forward(len(x))
                seen += len(x) * context.world_size
                if seen >= num_images:
                    break
    finally:
        for norm, (momentum, statistics) in zip(norms, before, strict=True):
            norm.momentum = momentum
            if not norm.num_batches_tracked:
                norm.load_state_dict(statistics, strict=False)
    average_norm_statistics(model)
