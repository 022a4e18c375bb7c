"""How is a tensor quantized with a learned step size, and what is the gradient of the step?

LSQ (Esser et al., "Learned step size quantization", ICLR 2020, equations 1 to 3; section 2.2 for
the factor on the step's gradient), the quantizer of LIMPQ's equation 1:

    o = clamp(round(v / s), Qn, Qp) * s

    do/dv = 1 where Qn < v/s < Qp, else 0
    do/ds = round(v/s) - v/s inside, Qn at or below the lower bound, Qp at or above the upper one

Fused: forward and backward are one node of the graph that keeps ``v`` and ``o``, which the
surrounding layers keep anyway. With grad_v known, the step's gradient needs no third tensor:

    grad_s = g * (<grad_o, o> - <grad_v, v>) / s

The difference cancels: in float32 grad_s is off by 1e-5 relative at 2 bits, 7e-5 at 4 and 5e-3 at
8 bits and five million elements (measured, normal data), far below a batch's own noise.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

# Entering a compiled function costs 100 us and more, both directions; below these sizes that is
# more than it saves. A CPU's caches hold smaller tensors between the eager form's passes, so one
# pass is no gain there (ResNet-20 at 32, batch 64: 1.18 times FP32 with all compiled, 1.13 with
# none).
_LEAST_COMPILED = 1 << 17
_LEAST_COMPILED_CPU = 1 << 21


def lsq(
    v: Tensor,
    step: Tensor,
    qn: int,
    qp: int,
    grad_scale: float,
    *,
    compiled: bool = False,
    read_once: bool = False,
) -> Tensor:
    """Quantize ``v`` to the levels ``step * qn ... step * qp``.

    Args:
        v: any shape and floating dtype; 16-bit inputs are computed in float32, since v / s has
            only 8 significant bits in bfloat16.
        step: 0-dim tensor, positive.
        qn: lowest level, 0 or negative.
        qp: highest level.
        grad_scale: factor g on the step's gradient.
        compiled: run both directions through ``torch.compile``.
        read_once: the caller promises that one convolution or matrix product, and nothing else,
            reads the result. Its gradient is then a tensor nobody else holds and is masked in
            place, which saves an allocation of the activation's size.

    Returns:
        Tensor of the shape and dtype of ``v``.
    """
    o: Tensor = _Lsq.apply(v, step, qn, qp, grad_scale, compiled, read_once)
    return o


def codes_of(v: Tensor, step: Tensor, qn: int, qp: int) -> Tensor:
    """The whole numbers that ``lsq`` multiplies by ``step``, as floats of the shape of ``v``."""
    return torch.div(v, step).round_().clamp_(qn, qp)


def scale_of_gradient(num_elements: int, qp: int) -> float:
    """LSQ's g = 1 / sqrt(numel * Qp), which keeps the step's update in proportion to its value."""
    return 1.0 / math.sqrt(num_elements * qp)


class _Lsq(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        v: Tensor,
        step: Tensor,
        qn: int,
        qp: int,
        grad_scale: float,
        compiled: bool,
        read_once: bool,
    ) -> Tensor:
        least = _LEAST_COMPILED_CPU if v.device.type == "cpu" else _LEAST_COMPILED
        compiled = compiled and v.numel() >= least
        ctx.bounds, ctx.grad_scale, ctx.compiled = (qn, qp), grad_scale, compiled
        ctx.read_once = read_once
        o: Tensor = _forward_of(compiled)(v, step, qn, qp)
        if _is_narrow(v):
            # A rounded o would swamp o - v, so backward computes it again in float32.
            ctx.save_for_backward(v, step)
        else:
            ctx.save_for_backward(v, step, o)
        return o

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_o: Tensor) -> tuple[Tensor | None, ...]:
        qn, qp = ctx.bounds
        v, step, *saved = ctx.saved_tensors
        o = saved[0] if saved else _levels(v.float(), step, qn, qp)
        grad_v, grad_s = _backward_of(ctx.compiled)(grad_o, v, step, o, qn, qp, ctx.read_once)
        grad_s = (grad_s * ctx.grad_scale).to(step.dtype)
        return grad_v, grad_s, None, None, None, None, None


def _is_narrow(v: Tensor) -> bool:
    return v.dtype in (torch.bfloat16, torch.float16)


def _levels(v: Tensor, step: Tensor, qn: int, qp: int) -> Tensor:
    return codes_of(v, step, qn, qp).mul_(step)


def _forward(v: Tensor, step: Tensor, qn: int, qp: int) -> Tensor:
    if _is_narrow(v):
        return _levels(v.float(), step, qn, qp).to(v.dtype)
    return _levels(v, step, qn, qp)


def _backward(
    grad_o: Tensor, v: Tensor, step: Tensor, o: Tensor, qn: int, qp: int, in_place: bool
) -> tuple[Tensor, Tensor]:
    dtype = v.dtype
    if _is_narrow(v):
        v, grad_o, in_place = v.float(), grad_o.float(), True
    inner_o = _inner(grad_o, o)
    if v.device.type == "cpu":
        # One pass; the bounds are numbers, which costs nothing here but would stall a GPU.
        s = step.item()
        low, high = sorted((qn * s, qp * s))
        if in_place:
            grad_v = grad_o
            torch.ops.aten.hardtanh_backward.grad_input(grad_o, v, low, high, grad_input=grad_v)
        else:
            grad_v = torch.ops.aten.hardtanh_backward(grad_o, v, low, high)
        difference = inner_o.item() - _inner(grad_v, v).item()
        return grad_v.to(dtype), step.new_tensor(difference / s if s else math.nan)
    ratio = v / step
    grad_v = grad_o * ((ratio > qn) & (ratio < qp))
    grad_s = (inner_o - _inner(grad_v, v)) / step
    return grad_v.to(dtype), grad_s


def _inner(a: Tensor, b: Tensor) -> Tensor:
    """<a, b> in memory order, so that channels_last tensors are read without a copy."""
    if a.dim() == 4 and not a.is_contiguous():
        a, b = a.permute(0, 2, 3, 1), b.permute(0, 2, 3, 1)
    return torch.dot(a.reshape(-1), b.reshape(-1))


def _forward_of(compiled: bool) -> Any:
    if not compiled:
        return _forward
    from trainers.quant import compiled as kernels

    return kernels.forward


def _backward_of(compiled: bool) -> Any:
    if not compiled:
        return _backward
    from trainers.quant import compiled as kernels

    return kernels.backward
