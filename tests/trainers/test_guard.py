"""The bound on a step size's change: never negative, never in the way."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from trainers.quant.guard import bound_step_changes


def step_with(gradient, lr=1.0, bound=0.1, start=(0.5, 0.002)):
    steps = nn.Parameter(torch.tensor(start))
    other = nn.Parameter(torch.tensor([1.0]))
    optimizer = torch.optim.SGD([steps, other], lr=lr)
    bound_step_changes(optimizer, [steps], bound)
    steps.grad = torch.tensor(gradient)
    other.grad = torch.tensor([10.0])
    optimizer.step()
    return steps.detach(), other.detach()


def test_a_spike_moves_a_step_by_the_bound_and_no_further():
    steps, other = step_with([100.0, -100.0])
    assert steps.tolist() == pytest.approx([0.5 / 1.1, 0.002 * 1.1])
    assert other.item() == -9.0, "other parameters are not bounded"


def test_a_small_change_is_left_alone():
    steps, _ = step_with([0.01, 1e-5])
    assert steps.tolist() == pytest.approx([0.49, 0.00199])


def test_without_a_bound_a_step_crosses_zero():
    steps, _ = step_with([100.0, 100.0], bound=None)
    assert (steps < 0).all()


def test_steps_stay_positive_under_any_number_of_spikes():
    steps = nn.Parameter(torch.tensor([0.1]))
    optimizer = torch.optim.SGD([steps], lr=1.0, momentum=0.9)
    bound_step_changes(optimizer, [steps], 0.1)
    for update in range(50):
        steps.grad = torch.tensor([1e6])
        optimizer.step()
        assert steps.item() == pytest.approx(0.1 / 1.1 ** (update + 1), rel=1e-5)


def test_fixed_steps_are_not_watched():
    steps = nn.Parameter(torch.tensor([0.5]), requires_grad=False)
    other = nn.Parameter(torch.tensor([1.0]))
    optimizer = torch.optim.SGD([other], lr=1.0)
    bound_step_changes(optimizer, [steps], 0.1)
    steps.data.fill_(9.0)
    other.grad = torch.tensor([1.0])
    optimizer.step()
    assert steps.item() == 9.0
