"""How does a phase steer a quantized network: its bits, its step sizes, its norms?"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from trainers.errors import ModelError
from trainers.quant.bank import FULL_PRECISION, RangeKind, StepBank
from trainers.quant.batchnorm import MergeFrom, SwitchableBatchNorm
from trainers.quant.layers import QuantLayer
from trainers.quant.reduce import mean_over_ranks
from trainers.quant.statistics import collect_starts

Bits = tuple[int | None, int | None]
_QUANTIZERS = (".weight_quantizer.", ".act_quantizer.")


class QuantNetwork:
    """A quantized network and everything a phase does to it.

    Attributes:
        model: the network, an ordinary ``nn.Module``.
        layers: quantized layers by name, in execution order.
        pinned: (weight bits, activation bits) of the layers no search may change.
        searched: names of the others.
        kinds: range of every layer's input.
        signed: whether a layer's input can be negative (signed or shifted range).
        unused: Conv2d and Linear modules that a forward pass never calls, left as they were.
    """

    def __init__(
        self,
        model: nn.Module,
        *,
        layers: Mapping[str, QuantLayer],
        pinned: Mapping[str, tuple[int, int]],
        kinds: Mapping[str, RangeKind],
        norms: Mapping[str, tuple[SwitchableBatchNorm, StepBank]],
        unused: tuple[str, ...] = (),
    ) -> None:
        self.model = model
        self.layers = dict(layers)
        self.pinned = dict(pinned)
        self.searched = tuple(name for name in layers if name not in pinned)
        self.kinds = dict(kinds)
        self.signed = {name: kind != "act_unsigned" for name, kind in kinds.items()}
        self.unused = unused
        self._norms = dict(norms)

    def set_bits(self, bits: Mapping[str, Bits]) -> None:
        """Give layers their (weight bits, activation bits); the others keep theirs.

        Raises:
            ModelError: unknown layer, bits that are no candidate, or bits of a pinned layer
                other than its pin.
        """
        for name, pair in bits.items():
            if name not in self.layers:
                raise ModelError(f"bits for layer {name!r}, which the network does not have")
            if name in self.pinned and _widths(pair) != _widths(self.pinned[name]):
                raise ModelError(
                    f"layer {name!r} is pinned to {self.pinned[name]}; {tuple(pair)} was asked for"
                )
            self._set(name, pair)
        self._switch_norms()

    def set_uniform(self, bits: int | Bits) -> None:
        """Give every searched layer the same bits, and every pinned layer its pin."""
        pair = (bits, bits) if isinstance(bits, int) else bits
        for name in self.layers:
            self._set(name, self.pinned.get(name, pair))
        self._switch_norms()

    def set_full_precision(self) -> None:
        """Pass every tensor through, the pinned layers' too: the network before wrapping."""
        for name in self.layers:
            self._set(name, (None, None))
        self._switch_norms()

    def restore_bits(self, bits: Mapping[str, Bits]) -> None:
        """Go back to what ``bits()`` returned earlier, full precision of pinned layers included."""
        for name, pair in bits.items():
            self._set(name, pair)
        self._switch_norms()

    def bits(self) -> dict[str, Bits]:
        """Layer name -> current (weight bits, activation bits); None is full precision."""
        return {
            name: (layer.weight_quantizer.bits, layer.act_quantizer.bits)
            for name, layer in self.layers.items()
        }

    def banks(self) -> Iterable[tuple[str, str, StepBank]]:
        """(layer name, ``weight`` or ``act``, bank) in execution order."""
        for name, layer in self.layers.items():
            yield name, "weight", layer.weight_quantizer
            yield name, "act", layer.act_quantizer

    def step_parameters(self) -> list[nn.Parameter]:
        """The step vectors that training may move."""
        return [bank.steps for _, _, bank in self.banks() if not bank.is_fixed]

    def norm_parameters(self) -> list[nn.Parameter]:
        """Scales and shifts of every trained BatchNorm (copies included)."""
        return [
            p
            for module in self.model.modules()
            if isinstance(module, _BatchNorm)
            for p in module.parameters(recurse=False)
            if p.requires_grad
        ]

    def weight_parameters(self) -> list[nn.Parameter]:
        """All other trainable parameters: weights, biases, and what else the network has."""
        taken = {id(p) for p in self.step_parameters()} | {id(p) for p in self.norm_parameters()}
        return [p for p in self.model.parameters() if p.requires_grad and id(p) not in taken]

    def set_world_size(self, num_ranks: int, *, accumulation: int = 1) -> None:
        """State of how many parts the global batch is made, for the activations' gradient scale.

        With it learning does not depend on how a batch is split over ranks and micro-batches.
        """
        for _, _, bank in self.banks():
            bank.batch_parts = num_ranks * accumulation

    def initialize_weights(self) -> None:
        """Start the weights' step sizes, all bits, from the weights as they are now."""
        for layer in self.layers.values():
            for bits in layer.weight_quantizer.candidates:
                # Equal weights on every rank need no exchange.
                layer.weight_quantizer.initialize(layer.weight, bits, reduce=lambda value: value)

    @torch.no_grad()
    def initialize(
        self,
        batches: Iterable[Tensor],
        *,
        mean_over_ranks: Callable[[Tensor], Tensor] = mean_over_ranks,
    ) -> None:
        """Start the activations' step sizes, all candidates, from full-precision passes.

        The mean over ``batches`` of each batch's start value, then over ranks; every rank must
        call it. The network's mode, bits and BatchNorm statistics are left as they were.

        Raises:
            ModelError: no batch, or statistics that are not finite.
        """
        bits = self.bits()
        self.set_full_precision()
        try:
            starts = collect_starts(self.model, self.layers, batches, mean_over_ranks)
        finally:
            self.restore_bits(bits)
        for name, values in starts.items():
            bank = self.layers[name].act_quantizer
            for width, value in zip(bank.candidates, values, strict=True):
                bank.start_at(width, value)

    def load_full_precision(self, state: Mapping[str, Tensor]) -> None:
        """Load the unquantized network's weights and restart the weights' step sizes.

        Raises:
            ModelError: the state does not fit, naming the first difference.
        """
        own = {f"{name}.{leaf}" for name, bank_layer in self.layers.items()
               for leaf in _bank_entries(bank_layer)}  # fmt: skip
        missing, unexpected = self.model.load_state_dict(dict(state), strict=False)
        missing = [key for key in missing if key not in own]
        if missing or unexpected:
            what = f"lacks {missing[0]!r}" if missing else f"has {unexpected[0]!r} too many"
            raise ModelError(f"the full-precision state does not fit the network: it {what}")
        self.initialize_weights()

    def spread_batchnorm(self) -> None:
        """Copy the full-precision BatchNorm to every switchable copy."""
        for norm, _ in self._norms.values():
            norm.spread()

    def merge_batchnorm(self, source: MergeFrom = "selected") -> None:
        """Put one ordinary BatchNorm where a switchable one stands; a no-op when shared.

        Args:
            source: ``selected`` keeps the copy of each layer's current bits; ``mean`` averages
                the copies, whose statistics must be re-estimated after.
        """
        for name, (norm, _) in self._norms.items():
            parent, _, leaf = name.rpartition(".")
            merged = norm.merged(source).train(norm.training)
            setattr(self.model.get_submodule(parent), leaf, merged)
        self._norms = {}

    def plain_weights(self) -> dict[str, Tensor]:
        """The state dict of the network before wrapping; switchable BatchNorm must be merged.

        Raises:
            ModelError: it is not, so no plain network could load the state.
        """
        if self._norms:
            raise ModelError("merge the switchable BatchNorm before taking plain weights")
        state = self.model.state_dict()
        return {k: v for k, v in state.items() if not any(part in k for part in _QUANTIZERS)}

    def switchable_norms(self) -> tuple[str, ...]:
        """Names of the BatchNorms that have one copy per bit-width."""
        return tuple(self._norms)

    def switchable(self) -> tuple[tuple[SwitchableBatchNorm, StepBank], ...]:
        """The BatchNorms of ``switchable_norms`` with the bank whose bits select their copy."""
        return tuple(self._norms.values())

    def _set(self, name: str, pair: Bits) -> None:
        layer = self.layers[name]
        layer.weight_quantizer.set_bits(pair[0])
        layer.act_quantizer.set_bits(pair[1])

    def _switch_norms(self) -> None:
        for norm, bank in self._norms.values():
            norm.select(bank.bits)


def _widths(pair: Bits) -> Bits:
    """The pair with every way to say full precision as None."""
    weight_bits, act_bits = (None if bits in FULL_PRECISION else bits for bits in pair)
    return weight_bits, act_bits


def _bank_entries(layer: QuantLayer) -> list[str]:
    names = [name for name, _ in layer.named_children()]
    return [f"{name}.{leaf}" for name in names for leaf in ("steps", "ready")]
