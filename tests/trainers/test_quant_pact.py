"""PACT and DoReFa against their printed formulas, and the training of a policy with them."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from solvers.policy import make_policy
from solvers.storage import save_costs, save_policy
from solvers.tables import LayerBits
from trainers import weight_training
from trainers.checkpoint import load_tensors, save_tensors
from trainers.costs import trace_costs
from trainers.models import build_model
from trainers.optim import make_sgd
from trainers.phases import DataSpec, ModelSpec, PhaseContext, PhaseSpec
from trainers.quant.options import QuantOptions
from trainers.quant.pact import DorefaBank, PactBank, clip_range, dorefa, pact
from trainers.recipes import PactConfig, TrainConfig
from trainers.results import load_result

X = torch.tensor([-1.0, -0.1, 0.0, 0.4, 1.3, 2.0, 2.4, 7.0], dtype=torch.float64)
OPTIONS = QuantOptions(quantizer="pact", step_range=None)


def test_forward_clips_and_rounds_as_printed():
    alpha, n = torch.tensor(2.4, dtype=torch.float64), 2**3 - 1
    y = 0.5 * (X.abs() - (X - alpha).abs() + alpha)  # the paper's way to write the clip
    expected = torch.round(y * n / alpha) * alpha / n
    torch.testing.assert_close(pact(X, alpha / n, 0, n), expected)


def test_gradients_are_those_of_alpha_and_of_the_clip():
    x = X.clone().requires_grad_()
    n = 7
    step = torch.tensor(2.0 / n, dtype=torch.float64, requires_grad=True)
    grad = torch.arange(1.0, 9.0, dtype=torch.float64)
    pact(x, step, 0, n).backward(grad)
    inside = torch.tensor([0, 0, 1, 1, 1, 0, 0, 0]).double()
    torch.testing.assert_close(x.grad, grad * inside)
    # d(loss)/d(alpha) = sum of grad where x >= alpha = 2; the step gets it over n.
    assert float(step.grad) == pytest.approx((6 + 7 + 8) / n)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32])
@pytest.mark.parametrize("qn", [0, -3])
def test_gradients_of_16_bits_are_decided_where_forward_computes(dtype, qn):
    # 1.0003 and 1.003 are 1.0 on the grids of float16 and bfloat16.
    for alpha in (1.0003, 1.003):
        v = torch.tensor([-1.0, 1.0], dtype=dtype, requires_grad=True)
        step = torch.tensor(alpha / 3, requires_grad=True)
        pact(v, step, qn, 3).sum().backward()
        assert v.grad.tolist() == [float(qn < 0), 1.0]
        assert float(step.grad) == 0.0


def test_a_signed_range_is_clipped_on_both_sides_at_one_level():
    bank = PactBank((3,), "act_signed", options=OPTIONS).double()
    assert clip_range(bank, 3) == (-3, 3)
    bank.set_step(3, 0.5)
    x = torch.tensor([-9.0, -1.5, -0.6, 0.6, 9.0], dtype=torch.float64, requires_grad=True)
    bank.set_bits(3)
    o = bank(x)
    assert o.tolist() == [-1.5, -1.5, -0.5, 0.5, 1.5]
    o.sum().backward()
    assert x.grad.tolist() == [0, 0, 1, 1, 0]
    assert float(bank.steps.grad) == pytest.approx((1 - 2) / 3)


def test_sgd_on_the_step_is_sgd_on_the_clipping_level():
    torch.manual_seed(0)
    n, decay = 3, 0.1
    bank = PactBank((2,), "act_unsigned", options=OPTIONS).double()
    bank.set_step(2, 1.2 / n)
    bank.set_bits(2)
    alpha = torch.tensor([1.2], dtype=torch.float64, requires_grad=True)
    settings = {"lr": 0.05, "momentum": 0.9, "nesterov": True, "weight_decay": decay}
    ours = torch.optim.SGD([bank.steps], **settings)
    theirs = torch.optim.SGD([alpha], **settings)
    for _ in range(20):
        x = torch.randn(500, dtype=torch.float64).abs()
        ours.zero_grad()
        (bank(x) - x).square().mean().backward()
        ours.step()
        theirs.zero_grad()
        level = float(alpha.detach())
        o = torch.round(x.clamp(0, level) * n / level) * level / n
        grad_o = 2 * (o - x) / x.numel()
        alpha.grad = (grad_o * (x >= level)).sum()[None]
        theirs.step()
        assert bank.values()[2] * n == pytest.approx(float(alpha), rel=1e-9)
    assert abs(float(alpha) - 1.2) > 0.05


@pytest.mark.parametrize(("start", "expected"), [(None, 7.0), (2.5, 2.5)])
def test_a_clipping_level_starts_at_the_largest_value_or_where_it_is_told(start, expected):
    bank = PactBank((2, 4), "act_unsigned", options=replace(OPTIONS, clip_start=start)).double()
    bank.quantize(X.clamp(min=0), 4)
    assert bank.values()[4] == pytest.approx(expected / 15)


def test_h_swish_is_shifted_before_it_is_clipped():
    bank = PactBank((4,), "act_shifted", options=OPTIONS).double()
    bank.set_step(4, 0.1)
    x = torch.tensor([-0.375, 0.0, 0.625, 9.0], dtype=torch.float64)
    assert bank.quantize(x, 4).tolist() == pytest.approx([-0.375, 0.025, 0.625, 1.125])


def test_dorefa_is_the_printed_formula_at_the_weights_scale():
    w = torch.randn(200, dtype=torch.float64, requires_grad=True)
    t = torch.tanh(w.detach())
    m, n = t.abs().max(), 2**3 - 1
    printed = 2 * torch.round((t / (2 * m) + 0.5) * n) / n - 1
    o = dorefa(w, 3)
    torch.testing.assert_close(o.detach(), m * printed)
    assert len(o.unique()) == 8
    o.sum().backward()
    torch.testing.assert_close(w.grad, 1 - t.square())
    assert not dorefa(torch.zeros(3), 2).isnan().any()


def test_a_weight_has_no_step_to_learn():
    bank = DorefaBank((2,), "weight", options=OPTIONS)
    assert bank.is_fixed
    assert not bank.steps.requires_grad


def test_only_step_sizes_decay_when_vectors_do_not():
    matrix, bias, step = (torch.nn.Parameter(torch.ones(s)) for s in ((2, 2), (2,), (1,)))
    recipe = TrainConfig(weight_decay=0.5)
    optimizer = make_sgd([matrix, bias, step], recipe, steps=[step], steps_weight_decay=0.25)
    decay = {id(p): g["weight_decay"] for g in optimizer.param_groups for p in g["params"]}
    assert decay == {id(matrix): 0.5, id(bias): 0.0, id(step): 0.25}


MODEL = ModelSpec(name="cifar_resnet8", options={"in_channels": 1, "base_width": 4})
RECIPE = TrainConfig(
    steps=6, batch_size=128, lr=0.02, warmup_epochs=0.0, bn_reestimate_images=128,
    pact=PactConfig(clip_decay=1e-3),
)  # fmt: skip


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """One uniform policy with both quantizers, in one batch."""
    folder = tmp_path_factory.mktemp("pact")
    torch.manual_seed(0)
    model = build_model(MODEL)
    save_tensors(folder / "weights.pt", model.state_dict())
    costs = trace_costs(model, name=MODEL.name, input_shape=(1, 8, 8))
    save_costs(folder / "costs.parquet", costs)
    bits = {s.name: s.pinned or LayerBits(weight_bits=3, act_bits=3) for s in costs}
    save_policy(folder / "policy.json", make_policy(costs, bits, "uniform"))
    inputs = {
        "weights": "weights.pt", "costs": "costs.parquet",
        "policy:lsq": "policy.json", "policy_pact:pact": "policy.json",
    }  # fmt: skip
    spec = PhaseSpec(
        phase="weight_training", model=MODEL, data=DataSpec(name="digits"), config=RECIPE, seed=0,
        inputs={role: str(folder / name) for role, name in inputs.items()},
    )  # fmt: skip
    weight_training.run(spec, PhaseContext.alone(folder / "out"))
    return folder / "out"


def test_the_role_of_an_entry_decides_its_quantizer(trained):
    results = {name: load_result(trained / name / "result.json") for name in ("lsq", "pact")}
    assert {n: r.facts["quantizer"] for n, r in results.items()} == {"lsq": "lsq", "pact": "pact"}
    assert results["lsq"].facts["policy_id"] == results["pact"].facts["policy_id"]
    assert results["lsq"].metrics["train_loss"] != results["pact"].metrics["train_loss"]
    assert results["pact"].cost.backward_passes == 6


def test_trained_levels_are_positive_and_a_weight_takes_few_values(trained):
    state = load_tensors(trained / "pact" / "weights.pt")
    assert all(float(v) > 0 for k, v in state.items() if k.endswith("act_quantizer.steps"))
    weight = state["layer2.0.conv1.weight"]
    assert len(dorefa(weight, 3).unique()) <= 8
