"""Quantized layers against torch's own operations on separately quantized operands."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from trainers.quant.bank import HARDSWISH_SHIFT, RangeKind, StepBank
from trainers.quant.layers import QuantConv2d, QuantLinear


def banks(kind: RangeKind, bits: int = 3) -> tuple[StepBank, StepBank]:
    weight_bank, act_bank = StepBank([bits], "weight"), StepBank([bits], kind)
    weight_bank.set_step(bits, 0.07)
    act_bank.set_step(bits, 0.21)
    return weight_bank, act_bank


def levels(v: Tensor, step: float, qn: int, qp: int) -> Tensor:
    return torch.clamp(torch.round(v / step), qn, qp) * step


CONVS = {
    "plain": {"padding": 1},
    "strided": {"stride": 2, "padding": (2, 1)},
    "depthwise": {"groups": 4, "padding": 1, "bias": False},
    "same": {"padding": "same", "dilation": 2},
    "circular": {"padding": 1, "padding_mode": "circular"},
}


@pytest.mark.parametrize("how", CONVS)
def test_conv_quantizes_weight_and_input(how: str) -> None:
    torch.manual_seed(0)
    conv = nn.Conv2d(4, 8, 3, **CONVS[how])
    x = torch.rand(2, 4, 9, 7)
    layer = QuantConv2d.wrap(conv, *banks("act_unsigned"))
    assert torch.equal(layer(x), conv(x)), "full precision is the layer before"
    layer.weight_quantizer.set_bits(3)
    layer.act_quantizer.set_bits(3)
    twin = nn.Conv2d(4, 8, 3, **CONVS[how])
    twin.load_state_dict(conv.state_dict())
    with torch.no_grad():
        twin.weight.copy_(levels(conv.weight, 0.07, -4, 3))
    torch.testing.assert_close(layer(x), twin(levels(x, 0.21, 0, 7)))


@pytest.mark.parametrize("bias", [True, False])
def test_linear_quantizes_weight_and_input(bias: bool) -> None:
    torch.manual_seed(0)
    linear = nn.Linear(6, 5, bias=bias)
    x = torch.randn(4, 6)
    layer = QuantLinear.wrap(linear, *banks("act_signed"))
    assert torch.equal(layer(x), linear(x))
    layer.weight_quantizer.set_bits(3)
    layer.act_quantizer.set_bits(3)
    expected = F.linear(levels(x, 0.21, -4, 3), levels(linear.weight, 0.07, -4, 3), linear.bias)
    torch.testing.assert_close(layer(x), expected)


@pytest.mark.parametrize("how", CONVS)
def test_shifted_input_is_padded_with_the_level_nearest_to_zero(how: str) -> None:
    torch.manual_seed(0)
    conv = nn.Conv2d(4, 8, 3, **CONVS[how]).double()
    x = F.hardswish(torch.randn(2, 4, 9, 7).double() * 3)
    layer = QuantConv2d.wrap(conv, *banks("act_shifted")).double()
    layer.act_quantizer.set_bits(3)
    border = layer._reversed_padding_repeated_twice
    mode = "circular" if how == "circular" else "constant"
    padded = F.pad(x, border, mode=mode)
    on_grid = levels(padded + HARDSWISH_SHIFT, 0.21, 0, 7) - HARDSWISH_SHIFT
    expected = F.conv2d(on_grid, conv.weight, conv.bias, conv.stride, 0, conv.dilation, conv.groups)
    torch.testing.assert_close(layer(x), expected)
    # 0 itself is no level here, so padding after quantization would leave the grid.
    assert (on_grid == 0).sum() == 0


def test_the_border_does_not_enter_the_start_of_a_shifted_input() -> None:
    layer = QuantConv2d.wrap(nn.Conv2d(1, 1, 3, padding=1), *banks("act_shifted"))
    layer.act_quantizer.forget()
    layer.act_quantizer.set_bits(3)
    x = torch.full((1, 1, 4, 4), 2.0)
    layer(x)
    expected = 2 * (2.0 + HARDSWISH_SHIFT) / 7**0.5
    assert layer.act_quantizer.values()[3] == pytest.approx(expected, rel=1e-5)


def test_parameters_keep_their_names_and_identity() -> None:
    conv = nn.Conv2d(2, 3, 3)
    layer = QuantConv2d.wrap(conv, *banks("act_unsigned"))
    assert layer.weight is conv.weight
    assert layer.bias is conv.bias
    assert set(conv.state_dict()) <= set(layer.state_dict())


def test_masking_the_gradient_in_place_changes_no_gradient() -> None:
    torch.manual_seed(0)
    x = torch.randn(3, 4, 8, 8)
    conv = nn.Conv2d(4, 6, 3, padding=1, bias=False)
    grads = []
    for read_once in (False, True):
        layer = QuantConv2d.wrap(conv, *banks("act_signed"))
        for bank in (layer.weight_quantizer, layer.act_quantizer):
            assert bank.read_once
            bank.read_once = read_once
            bank.set_bits(3)
        v = x.clone().requires_grad_()
        conv.weight.grad = None
        (layer(v) ** 2).sum().backward()
        grads.append([v.grad, conv.weight.grad, layer.act_quantizer.steps.grad])
    for kept, in_place in zip(*grads, strict=True):
        assert torch.equal(kept, in_place)
