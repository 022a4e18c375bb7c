"""Where do the architecture parameters live, and which bits do they stand for?

One alpha per candidate bit-width of every searched tensor (Figure 4). Layers of one group must
share their bits, so they share one alpha vector. A tensor with a single candidate has nothing to
choose and no alpha: with one weight width, as in the paper, weights have none; with several they
have a second set (weight mixed precision, the paper's footnote 5).

The widest candidate wins a tie, so that equal alphas at the start mean "no bits removed yet".
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from solvers.tables import BitChoices, CostTable, LayerBits, TensorRole
from trainers.errors import ModelError


@dataclass(frozen=True, kw_only=True, slots=True)
class Unit:
    """One decision: the bits of one tensor of one layer, or of a group of layers.

    Attributes:
        name: the layer's, or the group's.
        tensor: weight or act.
        layers: the layers it decides for.
        bits: candidates, ascending.
    """

    name: str
    tensor: TensorRole
    layers: tuple[str, ...]
    bits: tuple[int, ...]


class Architecture(nn.Module):
    """All alphas of a network.

    Args:
        units: every decision, those with one candidate included.
        start: value of every alpha.

    Attributes:
        alphas: one float32 vector per unit with a choice, in the order of ``searched``.
    """

    def __init__(self, units: tuple[Unit, ...], start: float) -> None:
        super().__init__()
        self.units = units
        self.searched = tuple(unit for unit in units if len(unit.bits) > 1)
        if not self.searched:
            raise ModelError(
                "bit search: every layer has one candidate width; give bits.act several"
            )
        self.alphas = nn.ParameterList(
            nn.Parameter(torch.full((len(unit.bits),), start)) for unit in self.searched
        )
        self._index = {
            (layer, unit.tensor): i for i, unit in enumerate(self.searched) for layer in unit.layers
        }
        self._bits = {(layer, unit.tensor): unit.bits for unit in units for layer in unit.layers}

    def alpha_of(self, layer: str, tensor: TensorRole) -> nn.Parameter | None:
        """The alphas of a layer's tensor, None where there is nothing to choose."""
        at = self._index.get((layer, tensor))
        return None if at is None else self.alphas[at]

    def bits_of(self, layer: str, tensor: TensorRole) -> tuple[int, ...]:
        """The candidates of a layer's tensor, ascending."""
        return self._bits[layer, tensor]

    @torch.no_grad()
    def probabilities(self) -> list[Tensor]:
        """softmax(alpha) of every unit in ``searched``, float64 on the CPU."""
        return [torch.softmax(alpha.double().cpu(), dim=0) for alpha in self.alphas]

    def selected(self) -> dict[str, LayerBits]:
        """Algorithm 1, line 17: the bits of the largest alpha, by layer."""
        chosen: dict[tuple[str, str], int] = {
            key: bits[0] for key, bits in self._bits.items() if len(bits) == 1
        }
        for unit, alpha in zip(self.searched, self.alphas, strict=True):
            width = unit.bits[widest_largest(alpha)]
            chosen.update(((layer, unit.tensor), width) for layer in unit.layers)
        return as_layer_bits(chosen)


def as_layer_bits(chosen: Mapping[tuple[str, str], int]) -> dict[str, LayerBits]:
    """(layer, tensor) -> width, as one pair per layer."""
    layers = {layer: None for layer, _ in chosen}
    return {
        layer: LayerBits(weight_bits=chosen[layer, "weight"], act_bits=chosen[layer, "act"])
        for layer in layers
    }


def units_of(costs: CostTable, choices: BitChoices) -> tuple[Unit, ...]:
    """The decisions of a network: one per searched layer or group, and tensor.

    Raises:
        ModelError: weights and activations tied, or layers of a group with unlike candidates.
    """
    if choices.tied:
        raise ModelError("bit search: tied weight and activation bits have no alphas of their own")
    members: dict[str, list[str]] = {}
    widths: dict[tuple[str, TensorRole], tuple[int, ...]] = {}
    roles: tuple[TensorRole, ...] = ("weight", "act")
    for layer in costs.searched:
        name = layer.name if layer.group is None else layer.group
        members.setdefault(name, []).append(layer.name)
        pairs = choices.of(layer)
        for tensor in roles:
            bits = tuple(sorted({getattr(pair, f"{tensor}_bits") for pair in pairs}))
            if widths.setdefault((name, tensor), bits) != bits:
                raise ModelError(
                    f"bit search: layers of group {name!r} have different {tensor} candidates, "
                    f"{list(widths[name, tensor])} and {list(bits)}"
                )
    return tuple(
        Unit(name=name, tensor=tensor, layers=tuple(layers), bits=widths[name, tensor])
        for tensor in roles
        for name, layers in members.items()
    )


def widest_largest(alpha: Tensor) -> int:
    """Index of the largest entry; of equal ones the last, which is the widest."""
    return alpha.numel() - 1 - int(alpha.detach().flip(0).argmax())


def hard_softmax(alpha: Tensor) -> Tensor:
    """Equation 5: one-hot of the largest alpha forward, the gradient of softmax backward.

    Args:
        alpha: [B].

    Returns:
        float64 [B] of exact zeros and one exact one.
    """
    soft = torch.softmax(alpha.double(), dim=0)
    hard = torch.zeros_like(soft)
    hard[widest_largest(alpha)] = 1.0
    # In this order the forward value is exact: x - x is 0 for every finite x.
    return (soft - soft.detach()) + hard
