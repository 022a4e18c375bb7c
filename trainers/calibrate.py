"""How fast does this machine train a network with quantizers? A few steps on random pixels.

For plans only: the images are noise, so decoding and waiting for storage are not in the rate. It
is measured in float32 on one process, with as many threads as the caller says, or on its first GPU.
"""

from __future__ import annotations

import math
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch.nn import functional as F

from solvers.tables import BitChoices
from trainers.meters import device_name
from trainers.models import build_model
from trainers.phases import ModelSpec
from trainers.quant.pins import Pin
from trainers.quant.wrap import quantize_network

_SAMPLE_IMAGES = 2
# Small images need large batches to keep a device busy; 16 of ImageNet's do.
_PIXELS = 2**18


@dataclass(frozen=True, kw_only=True, slots=True)
class TrainingRate:
    """What was measured.

    Attributes:
        images_per_second: through forward, backward and update.
        batch_size: images a step.
        steps: measured, the first one left out.
        device: ``cpu`` or the GPU's name.
        threads: compute threads, on a CPU; None on a GPU.
    """

    images_per_second: float
    batch_size: int
    steps: int
    device: str
    threads: int | None


def training_rate(
    model: ModelSpec,
    input_shape: tuple[int, int, int],
    choices: BitChoices,
    *,
    pins: Sequence[Pin] = (),
    batch_size: int | None = None,
    seconds: float = 5.0,
    device: str | None = None,
    threads: int | None = None,
) -> TrainingRate:
    """Train at the widest candidates for about ``seconds``, at least two steps after a first one.

    Args:
        model: the network; its weights are not read.
        input_shape: (channels, height, width) of one image.
        choices: candidate bits.
        pins: layers with bits of their own.
        batch_size: images a step; None = 16 large images, up to 128 small ones.
        seconds: of measuring.
        device: torch device; None = the first GPU, else the CPU.
        threads: compute threads on a CPU; None = all that torch takes by itself. Those of this
            process are as before afterwards.

    Raises:
        ModelError: the network cannot be built or quantized.
    """
    batch_size = batch_size or max(16, min(128, _PIXELS // math.prod(input_shape)))
    place = device or ("cuda" if torch.cuda.is_available() else "cpu")
    network = build_model(ModelSpec(
        name=model.name, num_classes=model.num_classes, options=model.options
    )).to(place)  # fmt: skip
    generator = torch.Generator().manual_seed(0)
    images = torch.randn(batch_size, *input_shape, generator=generator).to(place)
    labels = torch.randint(model.num_classes, (batch_size,), generator=generator).to(place)
    quantized = quantize_network(
        network, choices=choices, sample=images[:_SAMPLE_IMAGES], pins=pins
    )
    quantized.set_uniform((choices.weight_bits[-1], choices.act_bits[-1]))
    network.train()
    # The rate is too small to move noise anywhere: this measures time, it learns nothing.
    optimizer = torch.optim.SGD(network.parameters(), lr=1e-6, momentum=0.9)

    def step() -> None:
        optimizer.zero_grad(set_to_none=True)
        F.cross_entropy(network(images), labels).backward()
        optimizer.step()
        if place != "cpu":
            torch.cuda.synchronize()

    with _threads(threads if place == "cpu" else None):
        step()
        steps, began = 0, time.perf_counter()
        while steps < 2 or time.perf_counter() - began < seconds:
            step()
            steps += 1
        elapsed = time.perf_counter() - began
        used = torch.get_num_threads() if place == "cpu" else None
    return TrainingRate(
        images_per_second=steps * batch_size / elapsed,
        batch_size=batch_size,
        steps=steps,
        device=device_name(place),
        threads=used,
    )


@contextmanager
def _threads(count: int | None) -> Iterator[None]:
    """Compute with that many threads meanwhile; None = as it is."""
    before = torch.get_num_threads()
    torch.set_num_threads(count or before)
    try:
        yield
    finally:
        torch.set_num_threads(before)
