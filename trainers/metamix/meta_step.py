"""How does a network learn to work at every activation bit-width at once?

Equation 1: for each candidate width one end-to-end pass with every searched layer at it, the mean
of the losses, one update of the weights and of the step sizes of every width. Weights stay in full
precision (Table 1) unless their bits are searched too (footnote 5); then pass i takes the i-th
widest of both.
"""

from __future__ import annotations

import torch
from torch import Tensor

from trainers.data import Batch
from trainers.distillation import TeacherLoss
from trainers.meters import Meter
from trainers.precision import backward
from trainers.quant.handle import Bits, QuantNetwork

BitMap = dict[str, Bits]


def meta_passes(network: QuantNetwork) -> tuple[BitMap, ...]:
    """The bits of every layer in each pass, widest first.

    A layer with fewer candidates than others stays at its narrowest; pinned layers keep their
    pins. With one weight width in the whole search all weights pass in full precision, the pinned
    layers' too.
    """
    candidates = {
        name: (layer.weight_quantizer.candidates[::-1], layer.act_quantizer.candidates[::-1])
        for name, layer in network.layers.items()
    }
    quantizes_weights = any(len(candidates[name][0]) > 1 for name in network.searched)
    num_passes = max(max(len(w), len(a)) for w, a in candidates.values())

    def at(widths: tuple[int, ...], i: int) -> int | None:
        return widths[min(i, len(widths) - 1)] if widths else None

    return tuple(
        {
            name: (at(weights, i) if quantizes_weights else None, at(acts, i))
            for name, (weights, acts) in candidates.items()
        }
        for i in range(num_passes)
    )


class MetaStep:
    """The B passes of one bit-meta update.

    Args:
        network: the quantized network.
        loss: task loss, with a teacher or without.
        meter: counts passes.
    """

    def __init__(self, network: QuantNetwork, loss: TeacherLoss, meter: Meter) -> None:
        self.network, self.loss, self.meter = network, loss, meter
        self.passes = meta_passes(network)

    def accumulate(self, batch: Batch, update: int) -> Tensor:
        """Leave the gradient of the mean loss over all widths; returns that loss."""
        images, labels = batch
        soft = self.loss.targets(images)
        if soft is not None:
            self.meter.forward(len(labels))
        losses = []
        for bits in self.passes:
            self.network.restore_bits(bits)
            loss = self.loss(self.network.model(images), labels, soft) / len(self.passes)
            self.meter.forward(len(labels))
            backward(self.network.model, loss)
            self.meter.backward()
            losses.append(loss.detach())
        return torch.stack(losses).sum()
