"""How large is what each quantizer reads, and how much does the loss feel its step?

Taken once, after joint training, from a few batches of its own images: for transforms of the
indicators that need more than the step sizes (``solvers/transforms.py``). Nothing of the training
changes: evaluation mode, no update, no random number, gradients dropped.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import islice
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from solvers.layer_statistics import TensorStatistics
from solvers.tables import BitChoices, TensorRole
from trainers.data import Batch, BatchPlan
from trainers.distributed import sum_over_ranks
from trainers.limpq.config import IndicatorConfig
from trainers.limpq.passes import uniform_passes
from trainers.meters import Meter
from trainers.phases import PhaseContext
from trainers.quant.bank import StepBank
from trainers.quant.handle import QuantNetwork
from trainers.quant.lsq import scale_of_gradient
from trainers.quant.tracing import evaluating

STATISTICS = "statistics.parquet"
# At least one batch; 4 batches of 128 are 1 % of an epoch of CIFAR-10 in n + 1 passes.
STATISTICS_IMAGES = 512


@dataclass(slots=True)
class _Moments:
    """Sums over one tensor: elements, values, squares, absolute values."""

    sums: Tensor
    per_image: int = 0


def collect_statistics(
    network: QuantNetwork,
    choices: BitChoices,
    plan: BatchPlan,
    recipe: IndicatorConfig,
    context: PhaseContext,
    meter: Meter,
) -> tuple[TensorStatistics, ...]:
    """Statistics of every searched tensor at every candidate width, the same on every rank.

    Inputs are looked at in the widest uniform pass. A step outside the forward clamp takes no
    gradient and shows 0.
    """
    num_batches = max(1, min(STATISTICS_IMAGES // plan.batch_size, plan.num_batches))
    batches = list(islice(plan.epoch(0), num_batches))
    before = network.bits()
    gradients: dict[tuple[str, str, int], float] = {}
    inputs: dict[str, _Moments] = {}
    with evaluating(network.model):
        for index, bits in enumerate(uniform_passes(choices)):
            network.set_uniform(bits)
            with _watched(network, inputs if index == 0 else {}) as sizes:
                for batch in batches:
                    context.alive()
                    parts = tuple(zip(*(t.chunk(plan.accumulate) for t in batch), strict=True))
                    found = _step_gradients(network, parts, recipe, sizes, context, meter)
                    for key, value in found.items():
                        gradients[key] = gradients.get(key, 0.0) + abs(value) / num_batches
    network.restore_bits(before)
    rows = []
    for layer, tensor, bank in network.banks():
        if layer not in network.searched:
            continue
        std, mean_abs, elements = (
            _of_weight(network.layers[layer].weight)
            if tensor == "weight"
            else _of_input(inputs[layer], context)
        )
        role: TensorRole = "weight" if tensor == "weight" else "act"
        rows += [
            TensorStatistics(
                layer=layer,
                tensor=role,
                bits=b,
                std=std,
                mean_abs=mean_abs,
                num_elements=elements,
                mean_abs_gradient=gradients.get((layer, tensor, b), 0.0),
            )
            for b in bank.candidates
        ]
    return tuple(rows)


def _step_gradients(
    network: QuantNetwork,
    parts: Sequence[Batch],
    recipe: IndicatorConfig,
    sizes: dict[str, int],
    context: PhaseContext,
    meter: Meter,
) -> dict[tuple[str, str, int], float]:
    """dL/ds of the active steps over the global batch, without the quantizer's scale.

    ``parts`` are this rank's share as training passes it: what needs parts there to fit into
    memory needs them here too.
    """
    before = meter.forward_passes
    network.model.zero_grad(set_to_none=True)
    for images, labels in parts:
        logits = network.model(images.to(context.device))
        loss = F.cross_entropy(
            logits, labels.to(context.device), label_smoothing=recipe.label_smoothing
        )
        meter.forward(len(labels))
        loss.backward()
    # A pass is one over a global batch, in however many parts.
    meter.forward_passes = before + 1
    meter.backward()
    keys, values = [], []
    for layer, tensor, bank in network.banks():
        if layer not in network.searched or bank.bits is None:
            continue
        numel = network.layers[layer].weight.numel() if tensor == "weight" else sizes[layer]
        index = bank.candidates.index(bank.bits)
        gradient = 0.0 if bank.steps.grad is None else float(bank.steps.grad[index])
        keys.append((layer, tensor, bank.bits))
        values.append(gradient / _scale(bank, numel) / context.world_size / len(parts))
    network.model.zero_grad(set_to_none=True)
    return dict(zip(keys, sum_over_ranks(values, context.device), strict=True))


def _scale(bank: StepBank, numel: int) -> float:
    """The factor that the quantizer put on the gradient of its step."""
    if not bank.options.grad_scale:
        return 1.0
    parts = 1 if bank.kind == "weight" else bank.batch_parts
    assert bank.bits is not None
    unsigned = bank.kind in ("act_unsigned", "act_shifted")
    highest = 2**bank.bits - 1 if unsigned else 2 ** (bank.bits - 1) - 1
    return scale_of_gradient(numel * parts, highest)


@contextmanager
def _watched(network: QuantNetwork, moments: dict[str, _Moments]) -> Iterator[dict[str, int]]:
    """Layer name -> elements its input's quantizer reads in a pass; sums go to ``moments``.

    Those are of the input itself, without the padding that a quantizer may read besides
    (``trainers/quant/layers.py``).
    """
    sizes: dict[str, int] = {}

    def size_hook(name: str) -> Any:
        def note(_: nn.Module, args: tuple[Tensor, ...]) -> None:
            sizes[name] = args[0].numel()

        return note

    def hook(name: str) -> Any:
        def note(_: nn.Module, args: tuple[Tensor, ...]) -> None:
            x = args[0].detach()
            own = moments.setdefault(
                name, _Moments(torch.zeros(4, dtype=torch.float64, device=x.device))
            )
            own.per_image = x[0].numel()
            wide = x.double()
            count = wide.new_tensor(x.numel())
            own.sums += torch.stack([count, wide.sum(), (wide**2).sum(), wide.abs().sum()])

        return note

    handles = [
        network.layers[name].register_forward_pre_hook(hook(name)) for name in network.searched
    ] + [
        network.layers[name].act_quantizer.register_forward_pre_hook(size_hook(name))
        for name in network.searched
    ]
    try:
        yield sizes
    finally:
        for handle in handles:
            handle.remove()


def _of_input(found: _Moments, context: PhaseContext) -> tuple[float, float, int]:
    count, total, squares, absolute = sum_over_ranks(found.sums.tolist(), context.device)
    variance = max(squares / count - (total / count) ** 2, 0.0)
    return variance**0.5, absolute / count, found.per_image


def _of_weight(weight: Tensor) -> tuple[float, float, int]:
    wide = weight.detach().double()
    return float(wide.std(correction=0)), float(wide.abs().mean()), weight.numel()
