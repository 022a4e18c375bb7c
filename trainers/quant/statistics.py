"""How do the activations' step sizes start before the first training step?

LSQ's 2 mean|x| / sqrt(Qp) of every layer's input in full-precision passes, averaged over batches
and ranks. One exchange for the whole network, so ranks cannot fall out of step with each other.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from trainers.errors import ModelError
from trainers.quant.bank import StepBank
from trainers.quant.layers import QuantLayer
from trainers.quant.tracing import evaluating


@torch.no_grad()
def collect_starts(
    model: nn.Module,
    layers: Mapping[str, QuantLayer],
    batches: Iterable[Tensor],
    mean_over_ranks: Callable[[Tensor], Tensor],
) -> dict[str, list[float]]:
    """Layer name -> start value of each activation candidate, as ``model`` now stands.

    Raises:
        ModelError: no batch.
    """
    totals: dict[str, Tensor] = {}
    handles = [
        layer.register_forward_pre_hook(_adder(name, layer.act_quantizer, totals))
        for name, layer in layers.items()
        if not layer.act_quantizer.is_fixed
    ]
    num_batches = 0
    try:
        with evaluating(model):
            for batch in batches:
                model(batch)
                num_batches += 1
    finally:
        for handle in handles:
            handle.remove()
    if num_batches == 0:
        raise ModelError("activation step sizes: no batch to start them from")
    if not totals:
        return {}
    sizes = [len(total) for total in totals.values()]
    means = mean_over_ranks(torch.cat(list(totals.values())) / num_batches)
    return {
        name: part.tolist() for name, part in zip(totals, torch.split(means, sizes), strict=True)
    }


def _adder(name: str, bank: StepBank, totals: dict[str, Tensor]) -> Any:
    def hook(_: nn.Module, args: tuple[Tensor, ...]) -> None:
        starts = torch.stack([bank.start_of(args[0], bits) for bits in bank.candidates])
        totals[name] = totals[name] + starts if name in totals else starts

    return hook
