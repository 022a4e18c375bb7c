"""The schedule against its formula, and which parameters decay."""

from __future__ import annotations

import math

import pytest
import torch
from torch import nn

from trainers.optim import learning_rate, make_sgd, num_updates, set_learning_rate
from trainers.recipes import OptimizerConfig

RECIPE = OptimizerConfig(lr=0.04, min_lr=1e-5, warmup_epochs=0.5, warmup_lr=1e-3)


def test_warm_up_is_a_line_and_reaches_the_rate_on_its_last_update():
    rates = [learning_rate(RECIPE, u, total=100, batches_per_epoch=20) for u in range(10)]
    assert rates == pytest.approx([1e-3 + (0.04 - 1e-3) * (u + 1) / 10 for u in range(10)])
    assert rates[-1] == pytest.approx(0.04)


def test_decay_is_half_a_cosine_from_the_rate_to_the_floor():
    for update in range(10, 100):
        expected = 1e-5 + (0.04 - 1e-5) * (1 + math.cos(math.pi * (update - 10) / 90)) / 2
        assert learning_rate(RECIPE, update, 100, 20) == pytest.approx(expected, rel=1e-12)
    assert learning_rate(RECIPE, 55, 100, 20) == pytest.approx((0.04 + 1e-5) / 2, rel=1e-12)
    assert learning_rate(RECIPE, 100, 100, 20) == pytest.approx(1e-5, rel=1e-12)


def test_without_warm_up_it_starts_at_the_rate():
    recipe = OptimizerConfig(lr=0.1, warmup_epochs=0.0)
    assert learning_rate(recipe, 0, 10, 5) == 0.1


def test_a_warm_up_longer_than_training_just_rises():
    recipe = OptimizerConfig(lr=0.1, warmup_epochs=50.0)
    rates = [learning_rate(recipe, u, 10, 5) for u in range(10)]
    assert rates == sorted(rates)
    assert rates[-1] == pytest.approx(0.1)


def test_a_floor_above_the_rate_raises_nothing():
    recipe = OptimizerConfig(lr=1e-6, min_lr=1e-5)
    assert {learning_rate(recipe, u, 10, 5) for u in range(10)} == {1e-6}


def test_steps_replace_epochs():
    assert num_updates(OptimizerConfig(epochs=3), 7) == 21
    assert num_updates(OptimizerConfig(epochs=3, steps=5), 7) == 5


def network() -> nn.Module:
    return nn.Sequential(nn.Linear(4, 3), nn.BatchNorm1d(3))


def test_matrices_decay_and_vectors_do_not():
    model = network()
    optimizer = make_sgd(model.parameters(), OptimizerConfig(weight_decay=0.25))
    decay = {id(p): g["weight_decay"] for g in optimizer.param_groups for p in g["params"]}
    assert decay[id(model[0].weight)] == 0.25
    assert [decay[id(p)] for p in (model[0].bias, model[1].weight, model[1].bias)] == [0.0] * 3
    every = make_sgd(model.parameters(), OptimizerConfig(weight_decay=0.25, decay_vectors=True))
    assert {g["weight_decay"] for g in every.param_groups} == {0.25}


def test_a_parameter_without_gradient_is_left_out():
    model = network()
    model[0].weight.requires_grad_(False)
    optimizer = make_sgd(model.parameters(), OptimizerConfig(weight_decay=0.25))
    held = [p for g in optimizer.param_groups for p in g["params"]]
    assert len(held) == 3
    assert not any(p is model[0].weight for p in held)


def test_step_sizes_get_their_factor_at_every_rate():
    model = network()
    optimizer = make_sgd(
        model.parameters(), OptimizerConfig(), steps=[model[0].bias], steps_lr_factor=0.1
    )
    for rate in (0.5, 0.02):
        set_learning_rate(optimizer, rate)
        rates = {id(p): g["lr"] for g in optimizer.param_groups for p in g["params"]}
        assert rates.pop(id(model[0].bias)) == pytest.approx(0.1 * rate)
        assert set(rates.values()) == {rate}
        assert len(rates) == 3


@pytest.mark.parametrize(("momentum", "nesterov"), [(0.9, True), (0.9, False), (0.0, True)])
def test_sgd_takes_momentum_as_the_recipe_says(momentum, nesterov):
    optimizer = make_sgd(
        network().parameters(), OptimizerConfig(momentum=momentum, nesterov=nesterov)
    )
    assert optimizer.defaults["momentum"] == momentum
    assert optimizer.defaults["nesterov"] is (nesterov and momentum > 0)


def test_one_update_is_nesterov_s_formula():
    p = nn.Parameter(torch.tensor([[2.0]], dtype=torch.float64))
    optimizer = make_sgd([p], OptimizerConfig(lr=0.1, momentum=0.9, weight_decay=0.5))
    buffer, value = None, 2.0
    for gradient in (1.0, -3.0, 0.5):
        p.grad = torch.tensor([[gradient]], dtype=torch.float64)
        optimizer.step()
        g = gradient + 0.5 * value
        buffer = g if buffer is None else 0.9 * buffer + g
        value -= 0.1 * (g + 0.9 * buffer)
        assert p.item() == pytest.approx(value, rel=1e-12)
