"""What does one rank alone say about a network? Loss and top-1 on a sample of images.

Policies, not images, are shared out between ranks, so every policy is judged whole by one process
and its loss does not depend on how many ranks there are. Nothing here talks to another rank.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import overload

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.modules.batchnorm import _BatchNorm

from trainers.data.batches import Batch
from trainers.data.images import ImageSet, Request
from trainers.errors import DivergedError
from trainers.phases import PhaseContext
from trainers.quant.tracing import evaluating

# A sample up to this size is kept as it is evaluated: 3,566 images of 3 x 224 x 224 in float32.
HELD_BYTES = 2 * 2**30


@dataclass(frozen=True, kw_only=True, slots=True)
class Measured:
    """What was found: mean cross entropy, and top-1 in percent."""

    loss: float
    top1: float


class Streamed(Sequence[Batch]):
    """Batches on the device that are decoded anew at every walk, for samples too large to hold.

    Args:
        images: the set.
        parts: indices of each batch.
        device: of the network.
    """

    def __init__(self, images: ImageSet, parts: Sequence[Tensor], device: str) -> None:
        self.images, self.parts, self.device = images, parts, device

    def __len__(self) -> int:
        return len(self.parts)

    @overload
    def __getitem__(self, at: int) -> Batch: ...
    @overload
    def __getitem__(self, at: slice) -> Sequence[Batch]: ...
    def __getitem__(self, at: int | slice) -> Batch | Sequence[Batch]:
        if isinstance(at, slice):
            return Streamed(self.images, self.parts[at], self.device)
        return next(iter(self[at : at + 1 or None]))

    def __iter__(self) -> Iterator[Batch]:
        pinned = self.device.startswith("cuda")
        requests = (Request(indices=part) for part in self.parts)
        for x, y in self.images.batches(requests, pinned=pinned):
            x = x.to(self.device, non_blocking=True)
            yield (
                x.contiguous(memory_format=torch.channels_last),
                y.to(self.device, non_blocking=True),
            )


def decoded(
    images: ImageSet, indices: Tensor, batch: int, context: PhaseContext
) -> Sequence[Batch]:
    """Images as they are evaluated, in batches on the device.

    They are decoded once for all measurements and held if they take up to ``HELD_BYTES``, else
    decoded again for each: the whole test split of ImageNet takes 30 GB.
    """
    if not len(indices):
        return ()  # split would give one empty part
    batches = Streamed(images, torch.split(indices, batch), context.device)
    held: list[Batch] = []
    for x, y in batches:
        context.alive()
        if not held and len(indices) * x.nbytes > HELD_BYTES * len(x):
            return batches
        held.append((x, y))
    return tuple(held)


def num_images(batches: Sequence[Batch]) -> int:
    """Images of a whole walk; none is decoded to count them."""
    if isinstance(batches, Streamed):
        return sum(map(len, batches.parts))
    return sum(len(labels) for _, labels in batches)


@torch.no_grad()
def measure(
    model: nn.Module, batches: Iterable[Batch], alive: Callable[[], None] = lambda: None
) -> Measured:
    """Loss and top-1 of ``model`` in evaluation mode; ``alive`` is called before every batch.

    Raises:
        DivergedError: the loss is not finite.
    """
    sums: Tensor | None = None
    count = 0
    with evaluating(model):
        for x, y in batches:
            alive()
            logits = model(x).float()
            loss = F.cross_entropy(logits, y, reduction="sum")
            both = torch.stack([loss.double(), (logits.argmax(dim=1) == y).sum().double()])
            sums = both if sums is None else sums + both
            count += len(y)
    assert sums is not None, "nothing is measured on no images"
    loss_sum, correct = sums.tolist()
    if not math.isfinite(loss_sum):
        raise DivergedError(
            f"the loss on {count} images is {loss_sum}: the network's weights or step sizes are "
            "broken; look at the training they come from"
        )
    return Measured(loss=loss_sum / count, top1=100.0 * correct / count)


@torch.no_grad()
def refresh_norms(
    model: nn.Module, batches: Iterable[Batch], alive: Callable[[], None] = lambda: None
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
