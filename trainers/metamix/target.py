"""How far is a selection from the cost it must reach?

Equation 4, r(alpha) = | sum_i op_i * b_w * sum_j hs(alpha_i)_j * b_j - target |, for BitOps, or the
same with a sum of bits in place of BitOps (a target of mean bits over stated layers). With weight
alphas b_w is a second one-hot sum. Layers outside the search enter as a constant, and with them
what belongs to no layer's bits (biases and BatchNorm, where the accounting counts them).

The cost of every (weight, activation) option is an integer from ``solvers.accounting``; products
up to 2^53 are exact in float64, so the forward value of r is the distance itself.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from solvers.accounting import STANDARD, Accounting, layer_bitops, layer_weight_size_bits
from solvers.errors import LimitError
from solvers.limits import Ceiling, ceiling_of, parse_limit
from solvers.tables import BitChoices, CostTable, LayerBits, LayerSpec
from solvers.uses import constant_use
from trainers.metamix.architecture import Architecture, hard_softmax

Options = tuple[tuple[int, ...], ...]


@dataclass(frozen=True, kw_only=True, slots=True)
class Target:
    """What a selection should cost, and what each option costs.

    Attributes:
        text: the target as asked for.
        bound: the integer to reach.
        constant: cost of the layers that are not searched, and of what no bits decide.
        options: searched layer -> integer cost [weight candidate][activation candidate].
        pairs: searched layer -> its (weight candidates, activation candidates).
        ceiling: the limit behind it.
    """

    text: str
    bound: int
    constant: int
    options: Mapping[str, Options]
    pairs: Mapping[str, tuple[tuple[int, ...], tuple[int, ...]]]
    ceiling: Ceiling

    @property
    def smallest(self) -> int:
        """The least that any selection costs."""
        return self.constant + sum(min(min(row) for row in o) for o in self.options.values())

    @property
    def largest(self) -> int:
        """The most that any selection costs."""
        return self.constant + sum(max(max(row) for row in o) for o in self.options.values())

    def shown(self, use: int) -> float:
        """A cost in the unit the target was written in."""
        return self.ceiling.shown(use)

    def cost_of(self, bits: Mapping[str, LayerBits]) -> int:
        """The exact cost of a selection."""
        total = self.constant
        for name, (weights, acts) in self.pairs.items():
            pair = bits[name]
            total += self.options[name][weights.index(pair.weight_bits)][acts.index(pair.act_bits)]
        return total

    def check_reachable(self) -> None:
        """Refuse a target that no selection meets.

        Raises:
            LimitError: it lies below the smallest or above the largest reachable cost.
        """
        if self.smallest <= self.bound <= self.largest:
            return
        side = "below the smallest" if self.bound < self.smallest else "above the largest"
        raise LimitError(
            f"target {self.text}: {self.shown(self.bound):.6g} lies {side} reachable cost; "
            f"these candidates reach {self.shown(self.smallest):.6g} to "
            f"{self.shown(self.largest):.6g}"
        )

    def penalty(self, architecture: Architecture, *, relative: bool) -> Tensor:
        """r(alpha), 0-dim float64 on the device of the alphas.

        Args:
            architecture: the alphas.
            relative: in units of the target.
        """
        device = architecture.alphas[0].device
        # Layers of one group share an alpha and so its one-hot.
        hot: dict[int, Tensor] = {}
        cost = torch.tensor(float(self.constant), dtype=torch.float64, device=device)
        for name, options in self.options.items():
            table = torch.tensor(options, dtype=torch.float64, device=device)
            for tensor in ("act", "weight"):
                alpha = architecture.alpha_of(name, tensor)
                if alpha is not None:
                    if id(alpha) not in hot:
                        hot[id(alpha)] = hard_softmax(alpha)
                    table = table @ hot[id(alpha)]
                else:
                    table = table[..., 0]
            cost = cost + table
        distance = (cost - self.bound).abs()
        return distance / self.bound if relative else distance


def make_target(
    text: str, costs: CostTable, choices: BitChoices, accounting: Accounting = STANDARD
) -> Target:
    """Read a target for one network.

    Raises:
        LimitError: it cannot be read, or its kind is not a sum over layers of BitOps or bits.
    """
    ceiling = ceiling_of(parse_limit(text), costs, accounting)
    if ceiling.resource not in ("bitops", "act_bits_sum", "weight_bits_sum", "size_bits"):
        raise LimitError(
            f"target {text}: bit search takes bitops, bitops_level, mean_act_bits, "
            "mean_weight_bits, weight_bytes or compression_rate; bound the others in the solver"
        )
    constant = constant_use(ceiling, costs, accounting)
    options: dict[str, Options] = {}
    pairs: dict[str, tuple[tuple[int, ...], tuple[int, ...]]] = {}
    for i, layer in enumerate(costs):
        if layer.pinned is not None:
            constant += _cost(layer, layer.pinned, ceiling, accounting, is_first=i == 0)
            continue
        allowed = choices.of(layer)
        weights = tuple(sorted({b.weight_bits for b in allowed}))
        acts = tuple(sorted({b.act_bits for b in allowed}))
        pairs[layer.name] = (weights, acts)
        options[layer.name] = tuple(
            tuple(
                _cost(
                    layer, LayerBits(weight_bits=w, act_bits=a), ceiling, accounting,
                    is_first=i == 0,
                )
                for a in acts
            )
            for w in weights
        )  # fmt: skip
    return Target(
        text=text,
        bound=ceiling.bound,
        constant=constant,
        options=options,
        pairs=pairs,
        ceiling=ceiling,
    )


def _cost(
    layer: LayerSpec, bits: LayerBits, ceiling: Ceiling, accounting: Accounting, *, is_first: bool
) -> int:
    match ceiling.resource:
        case "bitops":
            return layer_bitops(layer, bits, accounting, is_first=is_first)
        case "act_bits_sum":
            return bits.act_bits if layer.name in ceiling.layers else 0
        case "weight_bits_sum":
            return bits.weight_bits if layer.name in ceiling.layers else 0
        case _:
            return layer_weight_size_bits(layer, bits)
