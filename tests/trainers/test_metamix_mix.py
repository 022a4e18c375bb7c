"""Equation 2 and its gradients against the plain formula in float64."""

from __future__ import annotations

import math

import pytest
import torch

from trainers.errors import ModelError
from trainers.metamix.mix import _PIECE, Mixture, mixture
from trainers.quant.bank import HARDSWISH_SHIFT, StepBank, range_of


def make_bank(kind="act_unsigned", steps=None, candidates=(2, 4, 8)):
    bank = StepBank(candidates, kind).double()
    steps = steps or {b: 3.0 / 2**b for b in candidates}
    for bits, step in steps.items():
        bank.set_step(bits, step)
    return bank


def written_formula(x, alpha, bank):
    """Equation 2 with the straight-through estimator, term by term."""
    shift = HARDSWISH_SHIFT if bank.kind == "act_shifted" else 0.0
    p = torch.softmax(alpha, dim=0)
    total = 0.0
    for i, bits in enumerate(bank.candidates):
        qn, qp = range_of(bank.kind, bits)
        s = bank.step_of(bits).detach()
        v = (x + shift) / s
        clipped = v.clamp(qn, qp)
        rounded = clipped + (clipped.round() - clipped).detach()
        total = total + p[i] * (rounded * s - shift)
    return total


def test_mixture_of_two_branches_by_hand():
    # p = (1/4, 3/4); 1 bit step 1: 0.6 -> 1; 2 bit step 0.5: 0.6 -> 0.5.
    bank = make_bank(steps={1: 1.0, 2: 0.5}, candidates=(1, 2))
    alpha = torch.tensor([0.0, math.log(3.0)], dtype=torch.float64, requires_grad=True)
    x = torch.tensor([0.6, 1.2, 5.0, -1.0], dtype=torch.float64, requires_grad=True)
    y = mixture(x, torch.softmax(alpha, 0), bank)
    assert y.tolist() == pytest.approx([0.625, 1.0, 1.375, 0.0])
    y.sum().backward()
    # 0.6 lies inside both ranges (0..1 and 0..1.5), 1.2 only in the second, 5 and -1 in none.
    assert x.grad.tolist() == pytest.approx([1.0, 0.75, 0.0, 0.0])
    # sum q_1 = 3, sum q_2 = 3; their difference times p_1 p_2 moves alpha: here it is nothing.
    assert alpha.grad.tolist() == pytest.approx([0.0, 0.0])


@pytest.mark.parametrize("kind", ["act_unsigned", "act_signed", "act_shifted"])
@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
def test_mixture_is_the_written_formula(kind, layout):
    generator = torch.Generator().manual_seed(3)
    bank = make_bank(kind)
    x = 2 * torch.randn(3, 5, 4, 6, dtype=torch.float64, generator=generator)
    x = x.contiguous(memory_format=layout)
    weight = torch.randn(x.shape, dtype=torch.float64, generator=generator)
    results = []
    for form in (lambda x, a: Mixture(a)(bank, x), lambda x, a: written_formula(x, a, bank)):
        own_x = x.clone(memory_format=torch.preserve_format).requires_grad_()
        alpha = torch.nn.Parameter(torch.tensor([0.3, -0.2, 0.9], dtype=torch.float64))
        y = form(own_x, alpha)
        (y * weight).sum().backward()
        results.append((y.detach(), own_x.grad, alpha.grad))
    for ours, formula in zip(*results, strict=True):
        torch.testing.assert_close(ours, formula, rtol=1e-12, atol=1e-12)


def test_pieces_meet_without_a_seam():
    bank = make_bank()
    x = torch.rand(2 * _PIECE + 17, dtype=torch.float64, requires_grad=True)
    alpha = torch.tensor([0.1, 0.2, 0.3], dtype=torch.float64, requires_grad=True)
    y = mixture(x, torch.softmax(alpha, 0), bank)
    torch.testing.assert_close(y, written_formula(x, alpha, bank), rtol=1e-12, atol=1e-12)
    got = torch.autograd.grad((y * x.detach()).sum(), (x, alpha))
    want = torch.autograd.grad((written_formula(x, alpha, bank) * x.detach()).sum(), (x, alpha))
    for ours, formula in zip(got, want, strict=True):
        torch.testing.assert_close(ours, formula, rtol=1e-10, atol=1e-10)


def test_gradient_of_the_only_reader_may_be_overwritten():
    plain, once = make_bank(), make_bank()
    once.read_once = True
    grads = []
    for bank in (plain, once):
        x = torch.linspace(-1, 4, 96, dtype=torch.float64).reshape(1, 4, 4, 6).requires_grad_()
        alpha = torch.nn.Parameter(torch.tensor([0.3, -0.2, 0.9], dtype=torch.float64))
        kernel = torch.ones(2, 4, 3, 3, dtype=torch.float64) * 0.1
        torch.nn.functional.conv2d(Mixture(alpha)(bank, x), kernel).square().sum().backward()
        grads.append((x.grad, alpha.grad))
    assert torch.equal(grads[0][0], grads[1][0])
    assert torch.equal(grads[0][1], grads[1][1])


def test_bfloat16_is_mixed_in_float32():
    bank = StepBank((2, 8), "act_unsigned")
    bank.set_step(2, 0.5)
    bank.set_step(8, 0.01)
    x = torch.rand(1000)
    alpha = torch.nn.Parameter(torch.tensor([0.0, 1.0]))
    wide = Mixture(alpha)(bank, x.bfloat16().float())
    narrow = Mixture(alpha)(bank, x.bfloat16())
    assert narrow.dtype == torch.bfloat16
    torch.testing.assert_close(narrow.float(), wide, rtol=2**-8, atol=0)


def test_one_branch_that_takes_all_is_that_branch():
    bank = make_bank()
    alpha = torch.nn.Parameter(torch.tensor([-200.0, 200.0, -200.0], dtype=torch.float64))
    x = torch.rand(50, dtype=torch.float64) * 5
    torch.testing.assert_close(Mixture(alpha)(bank, x), bank.quantize(x, 4), rtol=0, atol=1e-15)


def test_untrained_branch_is_refused():
    bank = StepBank((2, 4), "act_unsigned", name="layer1 input")
    bank.set_step(4, 0.1)
    with pytest.raises(ModelError, match=r"layer1 input.* at 2 bits was never trained"):
        Mixture(torch.nn.Parameter(torch.zeros(2)))(bank, torch.rand(5))


def test_without_a_fixed_state_step_sizes_learn_too():
    bank = make_bank()
    x = torch.rand(40, dtype=torch.float64)
    alpha = torch.nn.Parameter(torch.zeros(3, dtype=torch.float64))
    Mixture(alpha, fixed=True)(bank, x).sum().backward()
    assert bank.steps.grad is None
    Mixture(alpha, fixed=False)(bank, x).sum().backward()
    assert bank.steps.grad is not None
    assert bank.steps.grad.abs().min() > 0
