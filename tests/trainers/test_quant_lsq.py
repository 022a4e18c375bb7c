"""LSQ against its written formula, in float64, element by element."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from trainers.quant.lsq import lsq, scale_of_gradient

RANGES = [(0, 3), (0, 15), (0, 255), (-2, 1), (-8, 7), (-128, 127)]


def formula(v: Tensor, s: float, qn: int, qp: int, grad_o: Tensor) -> tuple[Tensor, Tensor, float]:
    """Output, gradient of v and of s as the LSQ paper writes them, one element at a time."""
    out, grad_v, grad_s = [], [], 0.0
    for x, g in zip(v.flatten().tolist(), grad_o.flatten().tolist(), strict=True):
        ratio = x / s
        if ratio <= qn:
            level, through, slope = qn, 0.0, float(qn)
        elif ratio >= qp:
            level, through, slope = qp, 0.0, float(qp)
        else:
            level = round(ratio)  # half to even, as torch rounds
            through, slope = 1.0, level - ratio
        out.append(level * s)
        grad_v.append(g * through)
        grad_s += g * slope
    shape = v.shape
    return (
        torch.tensor(out, dtype=torch.float64).view(shape),
        torch.tensor(grad_v, dtype=torch.float64).view(shape),
        grad_s,
    )


def by_detach(v: Tensor, step: Tensor, qn: int, qp: int, g: float) -> Tensor:
    """The slow form with straight-through rounding, one torch operation after another."""
    scaled = step * g
    s = scaled + (step - scaled).detach()
    ratio = (v / s).clamp(qn, qp)
    return (ratio + (ratio.round() - ratio).detach()) * s


@pytest.mark.parametrize(("qn", "qp"), RANGES)
@pytest.mark.parametrize("read_once", [False, True])
def test_equals_the_formula_in_float64(qn: int, qp: int, read_once: bool) -> None:
    draw = torch.Generator().manual_seed(qp)
    s = 0.037
    v = torch.randn(7, 5, 3, generator=draw, dtype=torch.float64) * s * qp * 0.8
    v.requires_grad_()
    step = torch.tensor(s, dtype=torch.float64, requires_grad=True)
    grad_o = torch.randn(v.shape, generator=draw, dtype=torch.float64)
    out, grad_v, grad_s = formula(v.detach(), s, qn, qp, grad_o)
    o = lsq(v, step, qn, qp, 0.25, read_once=read_once)
    o.backward(grad_o.clone())
    torch.testing.assert_close(o.detach(), out, rtol=1e-12, atol=0)
    assert torch.equal(v.grad, grad_v)
    assert step.grad.item() == pytest.approx(0.25 * grad_s, rel=1e-10)


@pytest.mark.parametrize(("qn", "qp"), RANGES)
def test_equals_the_detach_form(qn: int, qp: int) -> None:
    draw = torch.Generator().manual_seed(1)
    start = torch.randn(64, 9, generator=draw, dtype=torch.float64)
    grads = []
    for quantizer in (lsq, by_detach):
        v = start.clone().requires_grad_()
        step = torch.tensor(1.3 / qp, dtype=torch.float64, requires_grad=True)
        o = quantizer(v, step, qn, qp, 0.1)
        (o**3).sum().backward()
        grads.append((o.detach(), v.grad, step.grad))
    for ours, slow in zip(*grads, strict=True):
        torch.testing.assert_close(ours, slow, rtol=1e-9, atol=1e-12)


def test_no_gradient_at_exactly_the_bounds() -> None:
    # A power of two keeps v / s exact: -1.0 and 0.75 are the bounds of (-4, 3).
    v = torch.tensor([-1.25, -1.0, -0.75, 0.5, 0.75, 1.0], requires_grad=True)
    step = torch.tensor(0.25, requires_grad=True)
    lsq(v, step, -4, 3, 1.0).backward(torch.tensor([1.0, 10.0, 100.0, 1e3, 1e4, 1e5]))
    assert v.grad.tolist() == [0.0, 0.0, 100.0, 1e3, 0.0, 0.0]
    assert step.grad.item() == -4 - 40 + 3e4 + 3e5


def test_zeros_of_a_relu_get_no_gradient_in_an_unsigned_range() -> None:
    v = torch.tensor([0.0, 0.1], requires_grad=True)
    lsq(v, torch.tensor(0.1), 0, 3, 1.0).sum().backward()
    assert v.grad.tolist() == [0.0, 1.0]


def test_a_step_that_crossed_zero_still_follows_the_formula() -> None:
    draw = torch.Generator().manual_seed(3)
    v = torch.randn(200, generator=draw, dtype=torch.float64, requires_grad=True)
    step = torch.tensor(-0.3, dtype=torch.float64, requires_grad=True)
    grad_o = torch.randn(200, generator=draw, dtype=torch.float64)
    out, grad_v, grad_s = formula(v.detach(), -0.3, -4, 3, grad_o)
    o = lsq(v, step, -4, 3, 1.0)
    o.backward(grad_o)
    torch.testing.assert_close(o.detach(), out)
    assert torch.equal(v.grad, grad_v)
    assert step.grad.item() == pytest.approx(grad_s, rel=1e-10)


@pytest.mark.parametrize("grad_layout", [torch.contiguous_format, torch.channels_last])
def test_memory_layout_changes_nothing(grad_layout: torch.memory_format) -> None:
    draw = torch.Generator().manual_seed(5)
    start = torch.randn(2, 6, 5, 4, generator=draw, dtype=torch.float64)
    grad_o = torch.randn(start.shape, generator=draw, dtype=torch.float64)
    results = []
    for layout in (torch.contiguous_format, torch.channels_last):
        v = start.contiguous(memory_format=layout).detach().requires_grad_()
        step = torch.tensor(0.2, dtype=torch.float64, requires_grad=True)
        o = lsq(v, step, 0, 7, 1.0)
        assert o.is_contiguous(memory_format=layout)
        o.backward(grad_o.contiguous(memory_format=grad_layout))
        results.append((o.detach(), v.grad, step.grad))
    for plain, last in zip(*results, strict=True):
        torch.testing.assert_close(plain, last, rtol=1e-12, atol=1e-14)


def test_strided_inputs_are_taken() -> None:
    base = torch.randn(4, 6, 8, 8)
    v = base[:, :, ::2, 1:5].requires_grad_()
    step = torch.tensor(0.2, requires_grad=True)
    lsq(v, step, 0, 7, 1.0).sum().backward()
    copy = v.detach().contiguous().requires_grad_()
    step_of_copy = torch.tensor(0.2, requires_grad=True)
    lsq(copy, step_of_copy, 0, 7, 1.0).sum().backward()
    assert torch.equal(v.grad, copy.grad)
    torch.testing.assert_close(step.grad, step_of_copy.grad)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_sixteen_bit_inputs_are_computed_in_float32(dtype: torch.dtype) -> None:
    draw = torch.Generator().manual_seed(7)
    v = (torch.randn(500, generator=draw) * 4).to(dtype).requires_grad_()
    step = torch.tensor(0.031, requires_grad=True)
    grad_o = torch.randn(500, generator=draw).to(dtype)
    wide = v.detach().float().requires_grad_()
    wide_step = torch.tensor(0.031, requires_grad=True)
    o = lsq(v, step, -128, 127, 1.0)
    expected = lsq(wide, wide_step, -128, 127, 1.0)
    o.backward(grad_o)
    expected.backward(grad_o.float())
    assert o.dtype == v.grad.dtype == dtype
    assert torch.equal(o, expected.to(dtype))
    assert torch.equal(v.grad, wide.grad.to(dtype))
    torch.testing.assert_close(step.grad, wide_step.grad, rtol=1e-5, atol=1e-5)
    # Division in 16 bits, what autocast does to an ordinary form, lands on other levels.
    narrow = (v.detach() / step.detach().to(dtype)).round().clamp(-128, 127)
    assert (narrow.float() != (expected.detach() / 0.031).round()).any()


def test_autocast_does_not_narrow_the_quantizer() -> None:
    v = torch.randn(4, 300, requires_grad=True)
    step = torch.tensor(0.02, requires_grad=True)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        o = lsq(v, step, -128, 127, 1.0)
        (o * 2).sum().backward()
    assert o.dtype == torch.float32
    inside = step.grad.clone()
    step.grad = None
    (lsq(v, step, -128, 127, 1.0) * 2).sum().backward()
    assert torch.equal(o, lsq(v, step, -128, 127, 1.0))
    torch.testing.assert_close(inside, step.grad)


def test_second_derivatives_are_refused() -> None:
    v = torch.randn(5, requires_grad=True)
    o = lsq(v, torch.tensor(0.1), -8, 7, 1.0)
    (grad,) = torch.autograd.grad((o * v).sum(), v, create_graph=True)
    with pytest.raises(RuntimeError, match="once_differentiable"):
        grad.sum().backward()


def test_gradient_scale() -> None:
    assert scale_of_gradient(400, 4) == pytest.approx(1 / 40)


@pytest.mark.slow
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
@pytest.mark.parametrize("read_once", [False, True])
def test_compiled_equals_eager(
    dtype: torch.dtype,
    layout: torch.memory_format,
    read_once: bool,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("trainers.quant.lsq._LEAST_COMPILED_CPU", 1 << 14)
    draw = torch.Generator().manual_seed(11)
    for shape, (qn, qp) in (
        ((4, 16, 19, 19), (0, 3)),
        ((2, 64, 16, 12), (-8, 7)),
        ((1, 1, 1, 1), (0, 1)),
    ):
        start = torch.randn(shape, generator=draw).to(dtype).contiguous(memory_format=layout)
        grad_o = torch.randn(shape, generator=draw).to(dtype)
        results = []
        for compiled in (False, True):
            v = start.clone().requires_grad_()
            step = torch.tensor(0.21, requires_grad=True)
            o = lsq(v, step, qn, qp, 0.5, compiled=compiled, read_once=read_once)
            o.backward(grad_o.clone())
            results.append((o.detach(), v.grad, step.grad))
        eager, fused = results
        assert torch.equal(eager[0], fused[0])
        assert torch.equal(eager[1], fused[1])
        torch.testing.assert_close(eager[2], fused[2], rtol=1e-4, atol=2e-3)
