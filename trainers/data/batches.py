"""Which images make up update number k? A pure function of (seed, epoch, k).

The order of an epoch is one seeded permutation of the whole set. Global batch k is its k-th slice
and each rank takes an equal contiguous part, so every world size sees the same global batches and
a resume in mid-epoch just starts at k. Training drops the last short batch (BatchNorm statistics
of a handful of images are noise).
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from trainers.data.augment import Augmentation, AugmentSpec
from trainers.data.images import ImageSet, Request
from trainers.errors import DataError
from trainers.seeds import generator

Batch = tuple[Tensor, Tensor]


@dataclass(frozen=True, kw_only=True)
class BatchPlan:
    """The training batches of one phase, as one rank of the group sees them.

    Attributes:
        images: the set.
        batch_size: of the global batch, over all ranks.
        augment: changes drawn for every training image; None for none.
        seed: the run's seed.
        stream: name of the random stream, so two phases of a run shuffle differently.
        accumulate: equal parts of a rank's share that the loop passes through one by one.
        pinned: batches in page-locked memory, for a GPU.
    """

    images: ImageSet
    batch_size: int
    seed: int
    stream: str
    augment: AugmentSpec | None = None
    rank: int = 0
    world_size: int = 1
    accumulate: int = 1
    pinned: bool = False

    def __post_init__(self) -> None:
        if self.batch_size % self.world_size:
            raise DataError(
                f"batch size {self.batch_size} cannot be shared equally by {self.world_size} "
                "workers; choose a multiple of the number of workers"
            )
        if self.batch_size % (self.world_size * self.accumulate):
            raise DataError(
                f"batch size {self.batch_size} on {self.world_size} workers cannot be passed in "
                f"{self.accumulate} equal parts; choose a multiple of workers x accumulate"
            )
        if self.num_batches == 0:
            raise DataError(
                f"{len(self.images)} training images do not fill one batch of {self.batch_size}; "
                "lower the batch size or raise the data fraction"
            )

    @property
    def num_batches(self) -> int:
        """Updates in one epoch."""
        return len(self.images) // self.batch_size

    def epoch(self, epoch: int, first: int = 0) -> Iterator[Batch]:
        """This rank's part of global batches ``first``, ``first + 1``, ... of ``epoch``."""
        return self.images.batches(self._requests(epoch, first), pinned=self.pinned)

    def _requests(self, epoch: int, first: int) -> Iterator[Request]:
        order = torch.randperm(
            len(self.images), generator=generator(self.seed, self.stream, "order", epoch)
        )
        share = self.batch_size // self.world_size
        mine = slice(self.rank * share, (self.rank + 1) * share)
        for k in range(first, self.num_batches):
            indices = order[k * self.batch_size : (k + 1) * self.batch_size][mine]
            augmentation = None
            if self.augment is not None:
                rng = generator(self.seed, self.stream, "augment", epoch, k)
                drawn = Augmentation.draw(self.augment, self.batch_size, rng)
                augmentation = drawn.part(mine.start, mine.stop)
            yield Request(indices=indices, augmentation=augmentation, replace_broken=True)


def evaluation_batches(
    images: ImageSet,
    batch_size: int,
    rank: int = 0,
    world_size: int = 1,
    *,
    pinned: bool = False,
) -> Iterator[Batch]:
    """Every image once, unchanged, in order; rank r takes images r, r + W, r + 2W, ..."""
    mine = torch.arange(len(images))[rank::world_size]  # nothing for ranks beyond the images
    parts = (mine[start : start + batch_size] for start in range(0, len(mine), batch_size))
    for batch in images.batches((Request(indices=part) for part in parts), pinned=pinned):
        if len(batch[1]):  # every image of a batch may have been broken and skipped
            yield batch


def balanced_fraction(labels: Tensor, fraction: float, seed: int) -> Tensor:
    """Indices of a seeded share of every class, ascending: the paper's "50 % of the data".

    Args:
        labels: int64 [N].
        fraction: share in (0, 1]; each class keeps round(fraction x its size), at least one.
        seed: of the run; the draw is made once for all epochs.
    """
    if fraction >= 1.0:
        return torch.arange(len(labels))
    kept = []
    for label in labels.unique().tolist():
        members = (labels == label).nonzero().flatten()
        order = torch.randperm(len(members), generator=generator(seed, "fraction", label))
        kept.append(members[order[: max(1, round(fraction * len(members)))]])
    return torch.cat(kept).sort().values
