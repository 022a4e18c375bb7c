"""How do several bit-widths share one network's BatchNorm?

Activation statistics differ between bit-widths. LIMPQ's published code keeps one copy of every
BatchNorm per candidate bit-width (switchable) and uses the copy of the layer that feeds it;
MetaMix shares one, which its fixed meta-state makes stable. The mode is a choice, so the shared
case is simply no wrapping.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterable
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from trainers.errors import ModelError

BatchNormMode = Literal["shared", "switchable"]
MergeFrom = Literal["selected", "mean"]

_FULL = "full"


class SwitchableBatchNorm(nn.Module):
    """One BatchNorm per bit-width, and the frozen original for full-precision passes.

    Attributes:
        copies: the original under ``full`` and one copy per bit-width under its number.
        selected: key of the copy that forward uses.
        mix: when set, ``forward`` returns ``mix(norm, x)`` instead (MetaMix's bit search).
    """

    def __init__(self, norm: _BatchNorm, candidates: Iterable[int]) -> None:
        super().__init__()
        self.copies = nn.ModuleDict({str(bits): copy.deepcopy(norm) for bits in candidates})
        # Never trained: passes at some bit-width are the only training of a wrapped network.
        self.copies[_FULL] = norm.requires_grad_(False)
        self.selected = _FULL
        self.mix: Callable[[SwitchableBatchNorm, Tensor], Tensor] | None = None

    def select(self, bits: int | None) -> None:
        """Use the copy of ``bits``; None is the full-precision original.

        Raises:
            ModelError: there is no such copy.
        """
        key = _FULL if bits is None else str(bits)
        if key not in self.copies:
            raise ModelError(
                f"switchable BatchNorm: no copy for {bits} bits; it has {list(self.copies)}"
            )
        self.selected = key

    def forward(self, x: Tensor) -> Tensor:
        """Normalise with the selected copy."""
        if self.mix is not None:
            return self.mix(self, x)
        y: Tensor = self.copies[self.selected](x)
        return y

    def trained_copies(self) -> list[_BatchNorm]:
        """The copies of the candidates, without the full-precision original."""
        return [self._copy(key) for key in self.copies if key != _FULL]

    @torch.no_grad()
    def spread(self) -> None:
        """Copy the full-precision parameters and statistics to every copy."""
        for norm in self.trained_copies():
            norm.load_state_dict(self.copies[_FULL].state_dict())

    @torch.no_grad()
    def merged(self, source: MergeFrom = "selected") -> _BatchNorm:
        """One BatchNorm: the selected copy, or the mean over the candidates' copies.

        Statistics of a mean fit no bit-width; re-estimate them after.
        """
        if source == "selected":
            chosen: _BatchNorm = copy.deepcopy(self._copy(self.selected))
            return chosen.requires_grad_(True)
        norms = self.trained_copies()
        result = copy.deepcopy(norms[0])
        for key, value in result.state_dict().items():
            if value.is_floating_point():
                value.copy_(torch.stack([n.state_dict()[key] for n in norms]).mean(dim=0))
        return result

    def _copy(self, key: str) -> _BatchNorm:
        norm = self.copies[key]
        assert isinstance(norm, _BatchNorm)
        return norm

    def _load_from_state_dict(
        self, state_dict: dict[str, Any], prefix: str, *args: Any, **kwargs: Any
    ) -> None:
        """Take a plain BatchNorm's entries for every copy, so full-precision files load."""
        own = self.copies[_FULL].state_dict()
        for key in own:
            if prefix + key in state_dict:
                value = state_dict.pop(prefix + key)
                for name in self.copies:
                    state_dict[f"{prefix}copies.{name}.{key}"] = value
        super()._load_from_state_dict(state_dict, prefix, *args, **kwargs)
