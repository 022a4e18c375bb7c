"""What the ranks of a worker group tell each other, in as few collectives as possible.

Gradients are reduced once per update, by hand, in flat buffers. DistributedDataParallel cannot do
it for joint training: with n + 1 passes accumulated under ``no_sync`` its last pass (the random
one) leaves most step sizes unused, and DDP leaves the gradient of a globally unused parameter as
each rank accumulated it, so the ranks would drift apart without an error. A reduction after the
last pass has no such case.

Every function is the identity when no process group exists, so a phase runs alone unchanged.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import torch
import torch.distributed as dist
from torch import Tensor, nn

from trainers.errors import CheckpointError

# Entries that travel together. A buffer is filled while the one before is under way: 44 MB of
# ResNet-18's gradients between two processes of one machine take 52 ms, in one buffer 58.
BUCKET_ENTRIES = 2**20


def world_size() -> int:
    """Number of ranks, 1 without a process group."""
    return dist.get_world_size() if dist.is_available() and dist.is_initialized() else 1


def barrier() -> None:
    """Wait until every rank is here."""
    if world_size() > 1:
        dist.barrier()


def sum_over_ranks(values: Sequence[float], device: str = "cpu") -> list[float]:
    """Each of ``values`` summed over ranks, in float64."""
    if world_size() == 1:
        return list(values)
    buffer = torch.tensor(values, dtype=torch.float64, device=device)
    dist.all_reduce(buffer)
    return [float(v) for v in buffer]


def check_same(what: str, value: int, device: str = "cpu") -> None:
    """Refuse to go on when ranks hold different numbers, on every rank alike.

    Raises:
        CheckpointError: they differ; shared storage shows the ranks different files.
    """
    ranks = world_size()
    if ranks == 1:
        return
    slots = [0.0] * ranks
    slots[dist.get_rank()] = float(value)
    values = sum_over_ranks(slots, device)
    if len(set(values)) > 1:
        raise CheckpointError(
            f"{what} differs between ranks: {[int(v) for v in values]}. The step's folder must be "
            "on storage that shows every node the same files; start the run again"
        )


def reduce_gradients(parameters: Iterable[nn.Parameter], loss: Tensor, stop: bool) -> list[float]:
    """Average gradients over ranks in place, and agree on loss and stop on the way.

    Sums are taken in float32, or in float64 where a gradient is.

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
    dtype = torch.float32
    for gradient in gradients:
        dtype = torch.promote_types(dtype, gradient.dtype)
    # The two words ride along in float32: exact for a count, enough for a logged loss.
    words = torch.stack([loss.detach().to(dtype) / ranks, loss.new_tensor(stop, dtype=dtype)])
    on_their_way = []
    for bucket in _buckets([words, *gradients]):
        flat = torch.cat([t.reshape(-1).to(dtype) for t in bucket])
        flat[2 if bucket[0] is words else 0 :] /= ranks
        on_their_way.append((bucket, flat, dist.all_reduce(flat, async_op=True)))
    for bucket, flat, work in on_their_way:
        work.wait()
        for tensor, part in zip(bucket, flat.split([t.numel() for t in bucket]), strict=True):
            tensor.copy_(part.view_as(tensor))
    return [float(word) for word in words]


def _buckets(tensors: Sequence[Tensor]) -> list[list[Tensor]]:
    """The tensors in their order, cut into groups that reach ``BUCKET_ENTRIES``."""
    buckets: list[list[Tensor]] = [[]]
    entries = 0
    for tensor in tensors:
        if entries >= BUCKET_ENTRIES:
            buckets.append([])
            entries = 0
        buckets[-1].append(tensor)
        entries += tensor.numel()
    return buckets


def share_from_rank_zero(module: nn.Module) -> None:
    """Give every rank the parameters and buffers of rank 0."""
    if world_size() > 1:
        for tensor in (*module.parameters(), *module.buffers()):
            dist.broadcast(tensor.data, src=0)


@torch.no_grad()
def average_norm_statistics(module: nn.Module) -> None:
    """Average BatchNorm running statistics over ranks, as the published code does every epoch."""
    ranks = world_size()
    statistics = [
        buffer
        for name, buffer in module.named_buffers()
        if name.endswith(("running_mean", "running_var"))
    ]
    if ranks == 1 or not statistics:
        return
    flat = torch.cat([s.reshape(-1) / ranks for s in statistics])
    dist.all_reduce(flat)
    parts = torch.split(flat, [s.numel() for s in statistics])
    for statistic, part in zip(statistics, parts, strict=True):
        statistic.copy_(part.view_as(statistic))
