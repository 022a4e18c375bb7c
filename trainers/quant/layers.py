"""What is a quantized convolution or linear layer?

The torch layer with two banks before its product: ``y = conv(Q_a(x), Q_w(weight)) + bias``.
Parameter names stay ``weight`` and ``bias``, so full-precision state dicts load.

A shifted range (h-swish) has no level at 0, so zero padding is quantized together with the
input: the border becomes the level nearest to 0, which lies on the grid and tends to the
full-precision network's own 0 as bits grow (padding with -3/8 also lies on the grid but would
change the function even at 16 bits).
"""

from __future__ import annotations

from typing import Self

import torch.nn.functional as F
from torch import Tensor, nn

from trainers.quant.bank import StepBank


class QuantConv2d(nn.Conv2d):
    """``nn.Conv2d`` that quantizes its weight and its input."""

    weight_quantizer: StepBank
    act_quantizer: StepBank

    @classmethod
    def wrap(cls, conv: nn.Conv2d, weight_quantizer: StepBank, act_quantizer: StepBank) -> Self:
        """A layer that shares the parameters of ``conv``."""
        layer = cls(
            conv.in_channels, conv.out_channels, conv.kernel_size,  # type: ignore[arg-type]
            stride=conv.stride,  # type: ignore[arg-type]
            padding=conv.padding,  # type: ignore[arg-type]
            dilation=conv.dilation,  # type: ignore[arg-type]
            groups=conv.groups, bias=conv.bias is not None, padding_mode=conv.padding_mode,
            device="meta",
        )  # fmt: skip
        _adopt(layer, conv, weight_quantizer, act_quantizer)
        return layer

    def forward(self, input: Tensor) -> Tensor:
        """Convolve the quantized input with the quantized weight."""
        weight = self.weight_quantizer(self.weight)
        bank = self.act_quantizer
        is_shifted = bank.kind == "act_shifted" and bank.active
        # torch keeps the padding of all four sides here, "same" included; all 0 means none.
        border = self._reversed_padding_repeated_twice
        if not is_shifted or self.padding_mode != "zeros" or not any(border):
            y: Tensor = self._conv_forward(bank(input), weight, self.bias)
            return y
        for bits in bank.active:
            bank.prepare(input, bits)  # before padding: the border is no data
        padded = bank(F.pad(input, border))
        return F.conv2d(padded, weight, self.bias, self.stride, 0, self.dilation, self.groups)


class QuantLinear(nn.Linear):
    """``nn.Linear`` that quantizes its weight and its input."""

    weight_quantizer: StepBank
    act_quantizer: StepBank

    @classmethod
    def wrap(cls, linear: nn.Linear, weight_quantizer: StepBank, act_quantizer: StepBank) -> Self:
        """A layer that shares the parameters of ``linear``."""
        layer = cls(
            linear.in_features, linear.out_features, bias=linear.bias is not None, device="meta"
        )
        _adopt(layer, linear, weight_quantizer, act_quantizer)
        return layer

    def forward(self, input: Tensor) -> Tensor:
        """Multiply the quantized input with the quantized weight."""
        return F.linear(self.act_quantizer(input), self.weight_quantizer(self.weight), self.bias)


QuantLayer = QuantConv2d | QuantLinear


def _adopt(
    layer: QuantLayer, source: nn.Conv2d | nn.Linear, weight_bank: StepBank, act_bank: StepBank
) -> None:
    layer.weight = source.weight
    layer.bias = source.bias
    layer.weight_quantizer = weight_bank
    layer.act_quantizer = act_bank
    weight_bank.read_once = act_bank.read_once = True
    layer.train(source.training)
