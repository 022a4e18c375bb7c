"""Can the quantizer be compiled without compiling the network?

Its two elementwise directions are each one pass over memory when fused by ``torch.compile``.
Compiling whole networks costs minutes and one graph per bit assignment, which the random pass of
joint training changes at every step; here the clip bounds are tensors, so bit-widths never
recompile and only shapes do.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cache

import torch
from torch import Tensor

# One graph per shape, rank and layout; ResNet-50 has about thirty, weights included.
_MOST_GRAPHS = 512


def forward(v: Tensor, step: Tensor, qn: int, qp: int) -> Tensor:
    """Same as the eager forward; computed in at least float32, returned in ``v.dtype``."""
    return _kernels()[0](v, step, *_bounds(qn, qp, v.device))


def backward(
    grad_o: Tensor, v: Tensor, step: Tensor, o: Tensor, qn: int, qp: int
) -> tuple[Tensor, Tensor]:
    """Same as the eager backward, without the gradient scale."""
    return _kernels()[1](grad_o, v, step, o, *_bounds(qn, qp, v.device))


@cache
def _bounds(qn: int, qp: int, device: torch.device) -> tuple[Tensor, Tensor]:
    return (
        torch.tensor(float(qn), device=device),
        torch.tensor(float(qp), device=device),
    )


@cache
def _kernels() -> tuple[Callable[..., Tensor], Callable[..., tuple[Tensor, Tensor]]]:
    import torch._dynamo.config as dynamo

    dynamo.recompile_limit = max(dynamo.recompile_limit, _MOST_GRAPHS)
    dynamo.accumulated_recompile_limit = max(dynamo.accumulated_recompile_limit, 4 * _MOST_GRAPHS)
    return (
        torch.compile(_forward, fullgraph=True, dynamic=False),
        torch.compile(_backward, fullgraph=True, dynamic=False),
    )


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
    grad_v = torch.where(inside, grad_wide, torch.zeros_like(grad_wide))
    # Fused with the mask, the sum reads each tensor once and does not cancel as the eager
    # difference of two inner products does.
    grad_s = (grad_wide * o - grad_v * v_wide).sum() / step
    return grad_v.to(v.dtype), grad_s
