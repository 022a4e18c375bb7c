"""How is a tensor quantized below a learned clipping level (PACT), and a weight by DoReFa?

Choi et al., "PACT: Parameterized clipping activation for quantized neural networks" (2018, arXiv
1805.06085), equations 1 to 3. With the clipping level alpha of a tensor and n = 2^b - 1:

    y = clip(x, 0, alpha),   o = round(y * n / alpha) * alpha / n

    do/dx = 1 where 0 <= x < alpha, else 0;   do/dalpha = 1 where x >= alpha, else 0

and lambda * alpha^2 in the loss (section 3), here as weight decay 2 * lambda. Weights as in
DoReFa-Net (Zhou et al., 2016, arXiv 1606.06160, equation 9), which PACT takes:

    o = 2 * round(u * n) / n - 1,   u = tanh(w) / (2 m) + 1/2,   m = max |tanh(w)|

Here a bank keeps the step s = alpha / n, as for LSQ, so that everything that reads or hands on
steps works for both. Its gradient is scaled so that SGD on s is SGD on alpha: with
d(loss)/d(alpha) / n as the gradient of s and the same weight decay, s * n follows exactly alpha's
path.

Deviations: an input that can be negative is clipped to [-alpha, alpha] at the odd number of levels
-n' ... n', n' = 2^(b-1) - 1; the weight's scale m is put back, o * m, so that a layer without
BatchNorm keeps its magnitude (where one follows, it cancels), and takes no part in the gradient.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from trainers.quant.bank import HARDSWISH_SHIFT, StepBank, range_of


def pact(v: Tensor, step: Tensor, qn: int, qp: int) -> Tensor:
    """``v`` clipped to [step * qn, step * qp] and rounded to multiples of ``step``.

    Args:
        v: any shape; 16-bit inputs are computed in float32.
        step: 0-dim, alpha / qp.
        qn: lowest level, 0 or -qp.
        qp: highest level.
    """
    o: Tensor = _Pact.apply(v, step, qn, qp)
    return o


def dorefa(w: Tensor, bits: int) -> Tensor:
    """``w`` at ``bits`` by DoReFa's rule, its scale put back; straight through the rounding."""
    u, scale = _between_0_and_1(w)
    levels = 2**bits - 1
    rounded = torch.round(u * levels) / levels
    # In this order the forward value is the rounded one exactly.
    o: Tensor = scale * (2 * ((u - u.detach()) + rounded.detach()) - 1)
    return o


def dorefa_codes(w: Tensor, bits: int) -> tuple[Tensor, Tensor]:
    """What ``dorefa`` is made of: its whole numbers k from 0 to n, as floats, and the scale m.

    ``m * (2 * (k / n) - 1)`` in this order and in float32 is what ``dorefa`` gives.
    """
    u, scale = _between_0_and_1(w)
    return torch.round(u * (2**bits - 1)), scale


def _between_0_and_1(w: Tensor) -> tuple[Tensor, Tensor]:
    """DoReFa's u, and m, which takes no part in the gradient."""
    t = torch.tanh(w)
    scale = t.detach().abs().max().clamp_min(torch.finfo(w.dtype).tiny)
    return t / (2 * scale) + 0.5, scale


class PactBank(StepBank):
    """The clipping levels of one activation, kept as steps alpha / n."""

    def quantize(self, x: Tensor, bits: int, *, read_once: bool = False) -> Tensor:
        """``x`` clipped and rounded at ``bits``; ``read_once`` is not used."""
        self.prepare(x, bits)
        qn, qp = clip_range(self, bits)
        if self.kind != "act_shifted":
            return pact(x, self.step_of(bits), qn, qp)
        wide = x.float() if x.dtype in (torch.bfloat16, torch.float16) else x
        return (pact(wide + HARDSWISH_SHIFT, self.step_of(bits), qn, qp) - HARDSWISH_SHIFT).to(x)

    @torch.no_grad()
    def start_of(self, x: Tensor, bits: int) -> Tensor:
        """Where alpha / n starts: the given level, or the largest value of ``x``."""
        level = self.options.clip_start
        if level is not None:
            alpha = torch.tensor(level, device=x.device)
        else:
            shifted = x + HARDSWISH_SHIFT if self.kind == "act_shifted" else x.abs()
            alpha = shifted.float().max()
        return alpha / clip_range(self, bits)[1]


class DorefaBank(StepBank):
    """A weight's quantizer without a step of its own: the weight decides its scale."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.is_fixed = True
        self.steps.requires_grad_(False)

    def quantize(self, x: Tensor, bits: int, *, read_once: bool = False) -> Tensor:
        """``x`` at ``bits``; ``read_once`` is not used."""
        return dorefa(x, bits)


def clip_range(bank: StepBank, bits: int) -> tuple[int, int]:
    """(lowest level, highest level): a signed range is symmetric, one clipping level for both."""
    low, high = range_of(bank.kind, bits)
    return (0 if low == 0 else -high), high


class _Pact(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, v: Tensor, step: Tensor, qn: int, qp: int) -> Tensor:
        ctx.bounds = (qn, qp)
        ctx.save_for_backward(v, step)
        wide = v.float() if v.dtype in (torch.bfloat16, torch.float16) else v
        o: Tensor = torch.div(wide, step).round_().clamp_(qn, qp).mul_(step)
        return o.to(v.dtype)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_o: Tensor) -> tuple[Tensor | None, ...]:
        (v, step), (qn, qp) = ctx.saved_tensors, ctx.bounds
        # In float32 like forward: in 16 bits alpha would be rounded to the grid of v.
        at = v.float() if v.dtype in (torch.bfloat16, torch.float16) else v
        above = at >= step * qp
        below = at < step * qn if qn == 0 else at <= step * qn
        grad_v = grad_o.masked_fill(above | below, 0.0)
        grad_step = None
        if ctx.needs_input_grad[1]:
            wide = grad_o.float() if grad_o.dtype in (torch.bfloat16, torch.float16) else grad_o
            grad_alpha = (wide * above).sum()
            if qn:
                grad_alpha = grad_alpha - (wide * below).sum()
            grad_step = (grad_alpha / qp).to(step.dtype)
        return grad_v, grad_step, None, None
