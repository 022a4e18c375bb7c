"""What the ranks of a worker group tell each other, in as few collectives as possible.

Gradients are reduced once per update, by hand, over one flat buffer. DistributedDataParallel
cannot do it for joint training: with n + 1 passes accumulated under ``no_sync`` its last pass
(the random one) leaves most step sizes unused, and DDP leaves the gradient of a globally unused
parameter as each rank accumulated it, so the ranks would drift apart without an error. One flat
all-reduce after the last pass costs one collective per update and has no such case.

Every function is the identity when no process group exists, so a phase runs alone unchanged.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import torch
import torch.distributed as dist
from torch import Tensor, nn


def world_size() -> int:
    """Number of ranks, 1 without a process group."""
    return dist.get_world_size() if dist.is_available() and dist.is_initialized() else 1


def barrier() -> None:
    """Wait until every rank is here."""
    if world_size() > 1:
        dist.barrier()


def mean_over_ranks(value: Tensor) -> Tensor:
    """The mean of ``value`` over ranks, same shape; every rank must call it in the same order."""
    if world_size() == 1:
        return value
    reduced = value.detach().clone()
    dist.all_reduce(reduced)
    return reduced / world_size()


def sum_over_ranks(values: Sequence[float], device: str = "cpu") -> list[float]:
    """Each of ``values`` summed over ranks, in float64."""
    if world_size() == 1:
        return list(values)
    buffer = torch.tensor(values, dtype=torch.float64, device=device)
    dist.all_reduce(buffer)
    return [float(v) for v in buffer]


def reduce_gradients(parameters: Iterable[nn.Parameter], loss: Tensor, stop: bool) -> list[float]:
    """Average gradients over ranks in place, and agree on loss and stop in the same collective.

    Args:
        parameters: those of one optimizer; a gradient that is None here is None on every rank,
            because all ranks take the same bit assignments.
        loss: 0-dim mean loss over this rank's part of the batch.
        stop: whether this rank was asked to stop.

    Returns:
        [mean loss over ranks, number of ranks that want to stop].
    """
    gradients = [p.grad for p in parameters if p.grad is not None]
    ranks = world_size()
    if ranks == 1:
        return [float(loss.detach()), float(stop)]
    # The two words ride along in float32: exact for a count, enough for a logged loss.
    words = torch.stack([loss.detach().float() / ranks, loss.new_tensor(float(stop))])
    flat = torch.cat([words, *(g.reshape(-1).float() / ranks for g in gradients)])
    dist.all_reduce(flat)
    start = 2
    for gradient in gradients:
        gradient.copy_(flat[start : start + gradient.numel()].view_as(gradient))
        start += gradient.numel()
    return [float(flat[0]), float(flat[1])]


def share_from_rank_zero(module: nn.Module) -> None:
    """Give every rank the parameters and buffers of rank 0."""
    if world_size() > 1:
        for tensor in (*module.parameters(), *module.buffers()):
            dist.broadcast(tensor.data, src=0)


def average_norm_statistics(module: nn.Module) -> None:
    """Average BatchNorm running statistics over ranks, as the published code does every epoch."""
    if world_size() == 1:
        return
    for name, buffer in module.named_buffers():
        if name.endswith(("running_mean", "running_var")):
            dist.all_reduce(buffer.data)
            buffer.data /= dist.get_world_size()
