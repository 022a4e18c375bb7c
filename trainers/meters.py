"""What did the work cost? The same meters for every method, so that costs compare.

Passes and images do not depend on the machine. ``device_s`` does: GPU-seconds where there are
GPUs (wall seconds x ranks, a rank holds its GPU whether busy or not), else CPU-seconds of the
worker processes (all threads). Start-up, data set decoding and checkpoint writing count, because
whoever pays for a search pays for them; waiting for Ray to place the workers does not.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

import torch

from trainers.distributed import sum_over_ranks, world_size
from trainers.phases import Cost


@dataclass(slots=True)
class Meter:
    """Counts the work of this rank from its construction on; ``total`` sums over the ranks.

    Attributes:
        device: torch device string of this rank.
        before: cost that an earlier attempt had paid up to the checkpoint it left.
    """

    device: str = "cpu"
    before: Cost = field(default_factory=Cost)
    images: int = 0
    forward_passes: int = 0
    backward_passes: int = 0
    hvps: int = 0
    _wall: float = field(default_factory=time.perf_counter)
    _cpu: float = field(default_factory=time.process_time)

    def forward(self, num_images: int) -> None:
        """One forward pass over this rank's ``num_images``."""
        self.images += num_images
        self.forward_passes += 1

    def backward(self) -> None:
        """One backward pass."""
        self.backward_passes += 1

    def hessian_vector_product(self) -> None:
        """One Hessian-vector product."""
        self.hvps += 1

    @contextmanager
    def paused(self) -> Iterator[None]:
        """Time that another meter counts: an evaluation between two epochs."""
        wall, cpu = time.perf_counter(), time.process_time()
        try:
            yield
        finally:
            self._wall += time.perf_counter() - wall
            self._cpu += time.process_time() - cpu

    def total(self) -> Cost:
        """Cost so far over all ranks; every rank must call it."""
        wall_s = time.perf_counter() - self._wall
        gpu = self.device.startswith("cuda")
        device_s = wall_s if gpu else time.process_time() - self._cpu
        device_s, images = sum_over_ranks([device_s, self.images], self.device if gpu else "cpu")
        return self.before + Cost(
            wall_s=wall_s,
            device_s=device_s,
            images=round(images),
            forward_passes=self.forward_passes,
            backward_passes=self.backward_passes,
            hvps=self.hvps,
        )


def device_name(device: str) -> str:
    """The unit of ``device_s`` in words: ``2 x cpu`` or ``4 x NVIDIA A100``."""
    if device.startswith("cuda"):
        return f"{world_size()} x {torch.cuda.get_device_name(device)}"
    return f"{world_size()} x cpu"
