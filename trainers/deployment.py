"""Of which whole numbers is a trained network made, and by which rules do they compute?

A quantized weight is kept as codes and one factor. By LSQ ``codes * factor``; by DoReFa
``factor * (2 * (codes / highest) - 1)``; both in float32 and in this order, which gives the very
numbers that the network computes with. An input is quantized when it is read:

    codes = clamp(round((x + shift) / step), lowest, highest),   value = codes * step - shift

with ties rounded to even, after the layer's own padding: where ``shift`` is not 0, a border of
zeros lies between two levels and is quantized like the rest.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from trainers.errors import ModelError
from trainers.quant.bank import HARDSWISH_SHIFT, StepBank, range_of
from trainers.quant.handle import QuantNetwork
from trainers.quant.layers import QuantConv2d, QuantLayer
from trainers.quant.lsq import codes_of
from trainers.quant.pact import DorefaBank, PactBank, clip_range, dorefa_codes

WeightRule = Literal["step", "dorefa"]
# The narrowest comes first; weights of 8 bits and less fit one of the first two.
_DTYPES = (torch.int8, torch.uint8, torch.int16, torch.int32)


@dataclass(frozen=True, kw_only=True, slots=True)
class WeightForm:
    """How the weight of a layer is kept.

    Attributes:
        bits: bit-width.
        lowest: smallest code that the width allows.
        highest: largest.
        rule: how codes become weights, ``dequantized``.
        factor: the step size of rule ``step``, the scale of ``dorefa``; float32.
        dtype: of the codes.
    """

    bits: int
    lowest: int
    highest: int
    rule: WeightRule
    factor: float
    dtype: str


@dataclass(frozen=True, kw_only=True, slots=True)
class InputForm:
    """How the input of a layer is quantized.

    Attributes:
        bits: bit-width.
        lowest: smallest code.
        highest: largest.
        step: step size; float32.
        shift: added before, taken away after; 0 unless the input comes from an h-swish.
    """

    bits: int
    lowest: int
    highest: int
    step: float
    shift: float


@dataclass(frozen=True, kw_only=True, slots=True)
class LayerForm:
    """One Conv2d or Linear; None is a tensor in full precision.

    Attributes:
        name: its name in the network.
        kind: ``conv`` or ``linear``.
        weight: how its weight is kept.
        input: how its input is quantized.
    """

    name: str
    kind: Literal["conv", "linear"]
    weight: WeightForm | None
    input: InputForm | None


@dataclass(frozen=True, kw_only=True, slots=True)
class Deployment:
    """A trained network for somebody who has only its architecture.

    Attributes:
        layers: in execution order.
        tensors: ``<layer>.weight.codes`` (the weight's shape), ``<layer>.weight.factor`` and
            ``<layer>.input.step`` (0-dim float32) of quantized tensors; everything else under its
            name in the state dict of the network before wrapping, as it is.
    """

    layers: tuple[LayerForm, ...]
    tensors: dict[str, Tensor]


def deployment_of(network: QuantNetwork) -> Deployment:
    """The codes, steps and float tensors of ``network`` at its present bits, on the CPU.

    Raises:
        RuntimeError: the codes do not give the network's own weights: a defect.
        ModelError: a step size was never set.
    """
    tensors = {k: _plain(v) for k, v in network.plain_weights().items()}
    layers = []
    for name, layer in network.layers.items():
        weight = _weight(name, layer, tensors)
        act = _input(layer.act_quantizer)
        if act is not None:
            tensors[f"{name}.input.step"] = torch.tensor(act.step)
        kind: Literal["conv", "linear"] = "conv" if isinstance(layer, QuantConv2d) else "linear"
        layers.append(LayerForm(name=name, kind=kind, weight=weight, input=act))
    return Deployment(layers=tuple(layers), tensors=tensors)


def dequantized(codes: Tensor, rule: WeightRule, factor: Tensor, highest: int) -> Tensor:
    """Codes as the weights that the network computes with, float32, same shape.

    Equal to the last bit as numbers: a code has one zero, so -0.0 comes back as 0.0.
    """
    if rule == "step":
        return codes.float() * factor
    return factor * (2 * (codes.float() / highest) - 1)


@torch.no_grad()
def _weight(name: str, layer: QuantLayer, tensors: dict[str, Tensor]) -> WeightForm | None:
    """Puts codes and factor in the place of the float weight."""
    bank = layer.weight_quantizer
    bits = bank.bits
    if bits is None:
        return None
    values = bank.quantize(layer.weight, bits).detach().cpu()
    rule: WeightRule = "step"
    lowest, highest = range_of("weight", bits)
    if isinstance(bank, DorefaBank):
        rule, lowest, highest = "dorefa", 0, 2**bits - 1
        whole, factor = dorefa_codes(layer.weight, bits)
    else:
        factor = bank.step_of(bits)
        whole = codes_of(layer.weight, factor, lowest, highest)
    dtype = _narrowest(lowest, highest)
    codes, factor = _plain(whole).to(dtype), _plain(factor)
    if not torch.equal(dequantized(codes, rule, factor, highest), values):
        raise RuntimeError(f"layer {name!r}: its codes do not give the weights it computes with")
    del tensors[f"{name}.weight"]
    tensors[f"{name}.weight.codes"], tensors[f"{name}.weight.factor"] = codes, factor
    return WeightForm(
        bits=bits, lowest=lowest, highest=highest, rule=rule, factor=factor.item(),
        dtype=str(dtype).removeprefix("torch."),
    )  # fmt: skip


def _input(bank: StepBank) -> InputForm | None:
    bits = bank.bits
    if bits is None:
        return None
    if not bank.is_ready(bits):
        raise ModelError(f"{bank.name}: its step size at {bits} bits was never set")
    is_pact = isinstance(bank, PactBank)
    lowest, highest = clip_range(bank, bits) if is_pact else range_of(bank.kind, bits)
    return InputForm(
        bits=bits, lowest=lowest, highest=highest, step=bank.step_of(bits).item(),
        shift=HARDSWISH_SHIFT if bank.kind == "act_shifted" else 0.0,
    )  # fmt: skip


def _plain(tensor: Tensor) -> Tensor:
    """A copy on the CPU in torch's own layout, whatever the network was trained in."""
    return tensor.detach().cpu().clone(memory_format=torch.contiguous_format)


def _narrowest(lowest: int, highest: int) -> torch.dtype:
    return next(
        dtype
        for dtype in _DTYPES
        if torch.iinfo(dtype).min <= lowest and highest <= torch.iinfo(dtype).max
    )
