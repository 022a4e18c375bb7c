"""What does a layer read while its bit-width is being searched?

Equation 2: the softmax-weighted mixture of all branches,

    mix(x) = sum_i p_i * q_i(x, b_i),   p = softmax(alpha)

On a fixed meta-state only alpha learns, so backward needs

    d/dp_i = <grad, q_i(x)>
    d/dx   = grad * sum_i p_i * [x inside the range of branch i]     (straight through)

and the second only because earlier layers' alphas stand behind x. The fused function keeps x (the
neighbours keep it anyway) and computes every branch again in backward, piece by piece in a buffer
that stays in the cache; B branches as B tensors would cost B times the memory and twice the time.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.nn import functional as F

from trainers.errors import ModelError
from trainers.quant.bank import HARDSWISH_SHIFT, StepBank, range_of
from trainers.quant.batchnorm import SwitchableBatchNorm

# Elements a piece: with its scratch buffers about half of a 1 MiB second-level cache.
_PIECE = 1 << 16

# (step, lowest level, highest level) of one branch.
_Branch = tuple[float, int, int]


class Mixture:
    """Equation 2 for one bank; goes where ``StepBank.mix`` is asked for.

    Args:
        alpha: one architecture parameter per candidate of the bank, ascending.
        fixed: only alpha (and x) get gradients; false lets the step sizes and a weight learn too.
    """

    def __init__(self, alpha: nn.Parameter, *, fixed: bool = True) -> None:
        self.alpha = alpha
        self.fixed = fixed

    def __call__(self, bank: StepBank, x: Tensor) -> Tensor:
        """The mixture of ``bank``'s branches on ``x``; same shape and dtype.

        Raises:
            ModelError: a branch's step size was never initialised, so the meta-state is not
                trained; starting it here would change it.
        """
        for bits in bank.candidates:
            if not bank.is_ready(bits):
                raise ModelError(
                    f"{bank.name or 'quantizer'}: its step size at {bits} bits was never trained; "
                    "bit search needs a meta-state of all candidates"
                )
        probabilities = torch.softmax(self.alpha, dim=0)
        if not self.fixed:
            branches = bank.branches(x)
            return torch.stack([p * q for p, q in zip(probabilities, branches, strict=True)]).sum(
                dim=0
            )
        return mixture(x, probabilities, bank)


class NormMixture:
    """The same mixture for BatchNorm copies: sum_i p_i * norm_i(x); see ``batchnorm.py``.

    Normalised by the batch all copies share statistics, so the mixture is one BatchNorm with the
    mixed scale and shift.

    Args:
        alpha: of the tensor whose bits select the copy.
    """

    def __init__(self, alpha: nn.Parameter) -> None:
        self.alpha = alpha

    def __call__(self, norm: SwitchableBatchNorm, x: Tensor) -> Tensor:
        """The mixture on ``x`` [N, C, ...]."""
        probabilities = torch.softmax(self.alpha, dim=0)
        copies = norm.trained_copies()
        if copies[0].training and not copies[0].track_running_stats:
            scale = sum(p * c.weight for p, c in zip(probabilities, copies, strict=True))
            shift = sum(p * c.bias for p, c in zip(probabilities, copies, strict=True))
            return F.batch_norm(
                x,
                None,
                None,
                scale,
                shift,
                training=True,
                eps=copies[0].eps,
            )
        mixed: Tensor = sum(p * c(x) for p, c in zip(probabilities, copies, strict=True))
        return mixed


def mixture(x: Tensor, probabilities: Tensor, bank: StepBank) -> Tensor:
    """The fused mixture: gradients to ``x`` and ``probabilities`` only.

    Args:
        x: any shape and floating dtype; 16-bit inputs are mixed in float32.
        probabilities: [B], in the order of ``bank.candidates``.
        bank: every candidate initialised.
    """
    # One exchange with the device for all branches; zero cost on the CPU.
    steps = torch.stack([bank.step_of(b).detach() for b in bank.candidates]).tolist()
    branches = [
        (step, *range_of(bank.kind, b)) for step, b in zip(steps, bank.candidates, strict=True)
    ]
    shift = HARDSWISH_SHIFT if bank.kind == "act_shifted" else 0.0
    y: Tensor = _FixedMixture.apply(x, probabilities, branches, shift, bank.read_once)
    return y


class _FixedMixture(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        probabilities: Tensor,
        branches: list[_Branch],
        shift: float,
        read_once: bool,
    ) -> Tensor:
        ctx.branches, ctx.shift, ctx.read_once = branches, shift, read_once
        ctx.save_for_backward(x, probabilities)
        weights = probabilities.tolist()
        y = torch.empty_like(x, memory_format=_layout(x))
        for x_part, (y_part,), (code,) in _pieces(x, [y], shift, num_buffers=1):
            wide = y_part if y_part.dtype == x_part.dtype else torch.empty_like(x_part)
            wide.fill_(-shift)
            for weight, (step, qn, qp) in zip(weights, branches, strict=True):
                torch.div(x_part, step, out=code).round_().clamp_(qn, qp)
                wide.add_(code, alpha=weight * step)
            if wide is not y_part:
                y_part.copy_(wide)
        return y

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        x, probabilities = ctx.saved_tensors
        wants_x = ctx.needs_input_grad[0]
        weights = probabilities.tolist()
        grad = grad.contiguous(memory_format=_layout(x))
        # A gradient that nobody else holds is overwritten, see ``lsq``.
        in_place = not wants_x or (ctx.read_once and grad.dtype == x.dtype)
        grad_x = grad if in_place else torch.empty_like(x, memory_format=_layout(x))
        dots = torch.zeros(len(weights), dtype=torch.float64, device=x.device)
        if ctx.shift:
            dots -= ctx.shift * grad.double().sum()
        for x_part, (g_raw, gx_part), (code, inside) in _pieces(
            x, [grad, grad_x], ctx.shift, num_buffers=2
        ):
            g_part = g_raw if g_raw.dtype == x_part.dtype else g_raw.to(x_part.dtype)
            total = torch.zeros_like(x_part) if wants_x else None
            for i, (weight, (step, qn, qp)) in enumerate(zip(weights, ctx.branches, strict=True)):
                torch.div(x_part, step, out=code).round_().clamp_(qn, qp)
                dots[i] += torch.dot(g_part, code) * step
                if total is not None:
                    low, high = qn * step, qp * step
                    torch.ops.aten.hardtanh_backward.grad_input(
                        g_part, x_part, low, high, grad_input=inside
                    )
                    total.add_(inside, alpha=weight)
            if total is not None:
                gx_part.copy_(total)
        return grad_x if wants_x else None, dots.to(probabilities.dtype), None, None, None


def _layout(x: Tensor) -> torch.memory_format:
    """The dense layout that is closest to how ``x`` lies."""
    if x.dim() == 4 and not x.is_contiguous():
        return torch.channels_last
    return torch.contiguous_format


def _pieces(
    x: Tensor, others: list[Tensor], shift: float, *, num_buffers: int
) -> Iterator[tuple[Tensor, list[Tensor], list[Tensor]]]:
    """Walk ``x`` (shifted, in at least float32), tensors laid out like it, and scratch buffers."""
    layout = _layout(x)
    flat = _in_memory_order(x.contiguous(memory_format=layout))
    flat_others = [_in_memory_order(t) for t in others]
    narrow = x.dtype in (torch.bfloat16, torch.float16)
    dtype = torch.float32 if narrow else x.dtype
    # A GPU has no use for pieces: each is a launch.
    piece = _PIECE if x.device.type == "cpu" else max(1, flat.numel())
    buffers = [
        torch.empty(min(piece, flat.numel()), dtype=dtype, device=x.device)
        for _ in range(num_buffers)
    ]
    for start in range(0, flat.numel(), piece):
        part = flat[start : start + piece].to(dtype)
        if shift:
            part = part + shift
        yield (
            part,
            [t[start : start + piece] for t in flat_others],
            [b[: part.numel()] for b in buffers],
        )


def _in_memory_order(t: Tensor) -> Tensor:
    if t.dim() == 4 and not t.is_contiguous():
        t = t.permute(0, 2, 3, 1)
    return t.view(-1)
