"""Can the quantizer be compiled without compiling the network?

Its two directions are each one pass over memory when ``torch.compile`` fuses them. Compiling
whole networks costs minutes and one graph per bit assignment, which the random pass of joint
training changes at every step. Here one graph per direction and dtype serves everything: clip
bounds are tensors, so bit-widths never recompile, and tensors are handed over in memory order as
one dimension of unknown length, or rows of it, so shapes and layouts do not either.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import cache
from typing import Any, NamedTuple

import torch
from torch import Tensor

# Elements a row of the backward's sum. The compiler sums one long dimension through a cascade
# that costs as much as all the rest; rows are short enough for a plain sum to be as exact
# (one million elements, one CPU thread: 0.60 -> 0.37 ms).
_ROW = 1024


def forward(v: Tensor, step: Tensor, qn: int, qp: int) -> Tensor:
    """Same as the eager forward; computed in at least float32, returned in ``v.dtype``."""
    dense = _dense(v)
    o = _kernels().forward(_flat(dense), step.detach(), *_bounds(qn, qp, v.device))
    return o.as_strided(dense.shape, dense.stride())


def backward(
    grad_o: Tensor, v: Tensor, step: Tensor, o: Tensor, qn: int, qp: int, in_place: bool
) -> tuple[Tensor, Tensor]:
    """Same as the eager backward: the gradients of ``v`` and of the step, without its scale."""
    dense = _dense(v)
    # Elementwise results follow the layout of v; a gradient in another layout is copied over.
    like_v = [t if t.stride() == dense.stride() else _as(t, dense) for t in (grad_o, o)]
    tensors = (_rows(like_v[0]), _rows(dense), step.detach(), _rows(like_v[1]))
    bounds = _bounds(qn, qp, v.device)
    if in_place and like_v[0].dtype == v.dtype:
        return like_v[0], _kernels().backward_in_place(*tensors, *bounds)
    grad_v, grad_s = _kernels().backward(*tensors, *bounds)
    return grad_v.as_strided(dense.shape, dense.stride()), grad_s


class _Kernels(NamedTuple):
    forward: Callable[..., Tensor]
    backward: Callable[..., tuple[Tensor, Tensor]]
    backward_in_place: Callable[..., Tensor]


def _dense(v: Tensor) -> Tensor:
    if v.is_contiguous() or (v.dim() == 4 and v.is_contiguous(memory_format=torch.channels_last)):
        return v
    return v.contiguous()


def _as(t: Tensor, dense: Tensor) -> Tensor:
    return torch.empty_like(dense, dtype=t.dtype).copy_(t)


def _flat(dense: Tensor) -> Tensor:
    """The same memory as one dimension, as a tensor of its own.

    Dynamo guards the sizes and strides of what a view was made from, and whether it requires
    gradients; either would mean a graph per shape again.
    """
    flat = torch.empty(0, dtype=dense.dtype, device=dense.device)
    return flat.set_(dense.untyped_storage(), dense.storage_offset(), (dense.numel(),), (1,))


def _rows(dense: Tensor) -> Tensor:
    return _flat(dense).view(-1, math.gcd(dense.numel(), _ROW))


@cache
def _bounds(qn: int, qp: int, device: torch.device) -> tuple[Tensor, Tensor]:
    return (
        torch.tensor(float(qn), device=device),
        torch.tensor(float(qp), device=device),
    )


@cache
def _kernels() -> _Kernels:
    def compiled(function: Any) -> Any:
        return torch.compile(function, fullgraph=True, dynamic=True)

    return _Kernels(compiled(_forward), compiled(_backward), compiled(_backward_in_place))


def _wide(v: Tensor) -> Tensor:
    return v.float() if v.dtype in (torch.bfloat16, torch.float16) else v


def _forward(v: Tensor, step: Tensor, qn: Tensor, qp: Tensor) -> Tensor:
    levels = torch.minimum(torch.maximum(torch.round(_wide(v) / step), qn), qp)
    return (levels * step).to(v.dtype)


def _backward(
    grad_o: Tensor, v: Tensor, step: Tensor, o: Tensor, qn: Tensor, qp: Tensor
) -> tuple[Tensor, Tensor]:
    v_wide, grad_wide = _wide(v), _wide(grad_o)
    inside = (v_wide > qn * step) & (v_wide < qp * step)
    grad_v = torch.where(inside, grad_wide, 0.0)
    # o - v before the product: no difference of two large sums as in the eager form.
    grad_s = (grad_wide * (o - torch.where(inside, v_wide, 0.0))).sum(1).sum() / step
    return grad_v.to(v.dtype), grad_s


def _backward_in_place(
    grad_o: Tensor, v: Tensor, step: Tensor, o: Tensor, qn: Tensor, qp: Tensor
) -> Tensor:
    grad_v, grad_s = _backward(grad_o, v, step, o, qn, qp)
    grad_o.copy_(grad_v)
    return grad_s
