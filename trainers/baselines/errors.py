"""How large is the error that each tensor makes when it is quantized alone?

For every layer, tensor and bit-width the squared error ||Q_b(x) - x||^2, at the steps of
``step_rule.py``: of the whole tensor for a weight, of one image's tensor for an activation,
averaged over the images.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from solvers.tables import TensorRole
from trainers.baselines.calibration import Calibration, Key
from trainers.distributed import sum_over_ranks


class ErrorSums:
    """Sums of squared errors, filled one tensor after another.

    Args:
        calibration: its network's steps are set.
    """

    def __init__(self, calibration: Calibration) -> None:
        self.calibration = calibration
        device = calibration.context.device
        self._sums = {
            key: torch.zeros((), dtype=torch.float64, device=device) for key in calibration.keys
        }

    @torch.no_grad()
    def add(self, layer: str, tensor: TensorRole, x: Tensor, worth: Tensor | None = None) -> None:
        """Add a tensor's errors at all its widths.

        Args:
            layer: whose.
            tensor: weight or act.
            x: any shape.
            worth: what each element's square is multiplied by, of the same shape.
        """
        bank = self.calibration.bank(layer, tensor)
        for bits in bank.candidates:
            square = (bank.quantize(x, bits) - x).double().square()
            self._sums[layer, tensor, bits] += (square if worth is None else square * worth).sum()

    def means(self) -> dict[Key, float]:
        """Every key's error: weights as added by one rank, activations averaged over all images."""
        mine = [float(value) if key[1] == "act" else 0.0 for key, value in self._sums.items()]
        totals = sum_over_ranks(mine, self.calibration.context.device)
        num_images = len(self.calibration.indices)
        return {
            key: total / num_images if key[1] == "act" else float(value)
            for (key, value), total in zip(self._sums.items(), totals, strict=True)
        }


def squared_errors(calibration: Calibration) -> dict[Key, float]:
    """||Q_b(x) - x||^2 of every key; one forward pass over the images."""
    sums = ErrorSums(calibration)

    def hook_of(name: str) -> Any:
        def hook(_: nn.Module, args: tuple[Tensor, ...]) -> None:
            sums.add(name, "act", args[0])

        return hook

    layers = calibration.network.layers
    handles = [layers[n].register_forward_pre_hook(hook_of(n)) for n in calibration.searched]
    try:
        calibration.forward_all()
    finally:
        for handle in handles:
            handle.remove()
    add_weights(sums)
    return sums.means()


def as_tensor(values: Mapping[Key, float]) -> Tensor:
    """The values in the order of the keys, float64."""
    return torch.tensor(list(values.values()), dtype=torch.float64)


def add_weights(sums: ErrorSums) -> None:
    """Add the errors of all searched weights; equal weights on every rank need no exchange."""
    calibration = sums.calibration
    for name in calibration.searched:
        sums.add(name, "weight", calibration.network.layers[name].weight)


def energies(calibration: Calibration) -> dict[tuple[str, str], float]:
    """||x||^2 of every searched (layer, tensor), averaged like the errors; one forward pass."""
    layers = calibration.network.layers
    sums = {name: 0.0 for name in calibration.searched}

    def hook_of(name: str) -> Any:
        def hook(_: nn.Module, args: tuple[Tensor, ...]) -> None:
            sums[name] += float(args[0].double().square().sum())

        return hook

    handles = [layers[n].register_forward_pre_hook(hook_of(n)) for n in sums]
    try:
        calibration.forward_all()
    finally:
        for handle in handles:
            handle.remove()
    totals = sum_over_ranks(list(sums.values()), calibration.context.device)
    num_images = len(calibration.indices)
    found = {(name, "act"): t / num_images for name, t in zip(sums, totals, strict=True)}
    for name in sums:
        found[name, "weight"] = float(layers[name].weight.detach().double().square().sum())
    return found
