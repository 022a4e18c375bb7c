"""Which layers stop learning first at the end of training?

PROFIT (Park and Yoo, ECCV 2020): a layer whose output distribution moves much in one update of its
quantized weight keeps the BatchNorm behind it from settling, so the most unsteady layers are
frozen first. Unsteadiness is the divergence between the outputs before and after one update, on
the same images, per channel as Gaussians:

    KL = log(std_2 / std_1) + (var_1 + (mean_1 - mean_2)^2) / (2 var_2) - 1/2

With k of n stages begun, the most unsteady k / (n + 1) of the layers are frozen.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from trainers.quant.handle import QuantNetwork
from trainers.quant.reduce import mean_over_ranks
from trainers.quant.tracing import evaluating
from trainers.recipes import FreezingConfig

_TINY = 1e-12


class ProgressiveFreezing:
    """Freezes layers by stages; part of the checkpoint.

    Args:
        network: at its final bits.
        config: number and length of the stages.
        total: updates of the whole training.
    """

    def __init__(self, network: QuantNetwork, config: FreezingConfig, total: int) -> None:
        self.network = network
        length = max(config.stages, round(config.share * total))
        self.stages = {
            # The first update starts the step sizes, so it cannot be measured.
            max(2, total - length + k * length // config.stages): k + 1
            for k in range(config.stages)
        }
        self.num_stages = config.stages
        self.frozen: list[str] = []
        self._images = torch.empty(0)
        self._before: dict[str, Tensor] = {}

    def before_update(self, images: Tensor, update: int) -> int:
        """Note the outputs if a stage begins after ``update``; returns the passes it took."""
        if update + 1 not in self.stages:
            return 0
        self._images, self._before = images, self._outputs(images)
        return 1

    def after_update(self, update: int) -> int:
        """Freeze what is due; returns the passes it took."""
        if update + 1 not in self.stages:
            return 0
        after = self._outputs(self._images)
        names = list(after)
        unsteady = torch.stack([divergence(self._before[n], after[n]) for n in names])
        order = torch.argsort(mean_over_ranks(unsteady), descending=True, stable=True).tolist()
        num_frozen = len(names) * self.stages[update + 1] // (self.num_stages + 1)
        # A frozen layer no longer moves by itself, so it must not fall out again.
        ranked = self.frozen + [names[i] for i in order if names[i] not in self.frozen]
        self._freeze(ranked[:num_frozen])
        self._images, self._before = torch.empty(0), {}
        return 1

    def state_dict(self) -> dict[str, Any]:
        """For a checkpoint."""
        return {"frozen": list(self.frozen)}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """From a checkpoint."""
        self._freeze(state["frozen"])

    def _freeze(self, names: list[str]) -> None:
        self.frozen = list(names)
        for name in names:
            layer = self.network.layers[name]
            for parameter in (layer.weight, layer.bias):
                if parameter is not None:
                    parameter.requires_grad_(False)
                    parameter.grad = None

    @torch.no_grad()
    def _outputs(self, images: Tensor) -> dict[str, Tensor]:
        """Layer name -> [2, channels]: mean and variance of its outputs, in evaluation mode."""
        found: dict[str, Tensor] = {}

        def note(name: str) -> Any:
            def hook(_: nn.Module, __: Any, y: Tensor) -> None:
                across = [d for d in range(y.dim()) if d != 1]
                found[name] = torch.stack([y.mean(across), y.var(across, correction=0)])

            return hook

        handles = [
            layer.register_forward_hook(note(name)) for name, layer in self.network.layers.items()
        ]
        try:
            with evaluating(self.network.model):
                self.network.model(images)
        finally:
            for handle in handles:
                handle.remove()
        return found


def divergence(first: Tensor, second: Tensor) -> Tensor:
    """Mean over channels of the divergence of two Gaussians given as [2, channels]."""
    (mean_1, var_1), (mean_2, var_2) = first, second
    var_1, var_2 = var_1 + _TINY, var_2 + _TINY
    terms = 0.5 * torch.log(var_2 / var_1) + (var_1 + (mean_1 - mean_2) ** 2) / (2 * var_2) - 0.5
    mean: Tensor = terms.mean()
    return mean
