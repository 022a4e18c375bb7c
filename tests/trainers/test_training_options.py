"""Teacher, moving average and freezing of weight training, and what it inherits."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch import nn

from solvers.policy import make_policy
from solvers.storage import load_costs, save_costs, save_importance, save_policy
from solvers.tables import Importance, ImportanceTable, LayerBits
from trainers.averaging import MovingAverage
from trainers.checkpoint import load_tensors, save_tensors, state_hash
from trainers.costs import trace_costs
from trainers.errors import InterruptedPhaseError, ModelError
from trainers.freezing import divergence
from trainers.models import build_model
from trainers.phases import DataSpec, ModelSpec, PhaseContext, PhaseSpec
from trainers.recipes import DistillationConfig, FreezingConfig, TrainConfig
from trainers.results import load_result
from trainers.weight_training import run

MODEL = ModelSpec(name="cifar_resnet8", options={"in_channels": 1, "base_width": 4})
RECIPE = TrainConfig(steps=8, batch_size=64, lr=0.01, warmup_epochs=0.0, bn_reestimate_images=64)


@pytest.fixture(scope="module")
def start(tmp_path_factory):
    folder = tmp_path_factory.mktemp("start")
    torch.manual_seed(0)
    model = build_model(MODEL)
    save_tensors(folder / "weights.pt", model.state_dict())
    costs = trace_costs(model, name=MODEL.name, input_shape=(1, 8, 8))
    save_costs(folder / "costs.parquet", costs)
    bits = {layer.name: layer.pinned or LayerBits(weight_bits=4, act_bits=4) for layer in costs}
    save_policy(folder / "policy.json", make_policy(costs, bits, "uniform"))
    return folder


def make_spec(start, recipe=RECIPE, **inputs):
    roles = {"weights": "weights.pt", "costs": "costs.parquet", "policy:p": "policy.json"}
    return PhaseSpec(
        phase="weight_training",
        model=MODEL,
        data=DataSpec(name="digits"),
        config=recipe,
        seed=0,
        inputs={role: str(start / name) for role, name in roles.items()} | inputs,
    )


def train(start, folder, recipe=RECIPE, **inputs):
    run(make_spec(start, recipe, **inputs), PhaseContext.alone(folder))
    return load_tensors(folder / "p" / "weights.pt")


def act_steps(start, path, *, without=None, value=0.37):
    costs = load_costs(start / "costs.parquet")
    rows = tuple(
        Importance(layer=s.name, tensor="act", bits=8 if s.pinned else 4, value=value)
        for s in costs
        if s.name != without
    )
    table = ImportanceTable(
        model=costs.model, fingerprint=costs.fingerprint, method="metamix", seed=0,
        data_fingerprint="", rows=rows,
    )  # fmt: skip
    save_importance(path, table)
    return str(path)


def test_activation_steps_are_inherited_and_weight_steps_start_here(start, tmp_path):
    still = replace(RECIPE, lr=1e-9, min_lr=0.0)
    table = act_steps(start, tmp_path / "steps.parquet")
    inherited = train(start, tmp_path / "a", still, act_steps=table)
    fresh = train(start, tmp_path / "b", still)
    for name, steps in inherited.items():
        if name.endswith("act_quantizer.steps"):
            assert steps.tolist() == pytest.approx([0.37])
            assert fresh[name].tolist() != pytest.approx([0.37], rel=1e-2)
        elif name.endswith("weight_quantizer.steps"):
            torch.testing.assert_close(steps, fresh[name])


def test_a_table_without_a_layer_is_refused(start, tmp_path):
    table = act_steps(start, tmp_path / "steps.parquet", without="layer2.0.conv2")
    with pytest.raises(ModelError, match=r"'layer2.0.conv2' at 4 bits to inherit"):
        train(start, tmp_path / "a", act_steps=table)


def test_the_moving_average_is_what_is_measured(start, tmp_path):
    plain = train(start, tmp_path / "a")
    frozen_past = train(start, tmp_path / "b", replace(RECIPE, ema_decay=0.999999))
    begin = load_tensors(start / "weights.pt")
    torch.testing.assert_close(
        frozen_past["conv1.weight"], begin["conv1.weight"], atol=1e-4, rtol=0
    )
    assert (plain["conv1.weight"] - begin["conv1.weight"]).abs().max() > 1e-3
    assert state_hash(train(start, tmp_path / "c", replace(RECIPE, ema_decay=0.0))) != state_hash(
        frozen_past
    )


def test_moving_average_by_hand():
    model = nn.Linear(1, 1, bias=False)
    nn.init.constant_(model.weight, 1.0)
    average = MovingAverage(model, 0.75)
    for value in (2.0, 3.0):
        nn.init.constant_(model.weight, value)
        average.update()
    average.apply()
    assert model.weight.item() == pytest.approx(0.75 * (0.75 * 1 + 0.25 * 2) + 0.25 * 3)


def test_averages_in_place_for_a_while_leave_the_weights_bit_for_bit():
    model = nn.Linear(3, 2)
    average = MovingAverage(model, 0.75)
    kept = {name: value / 3 for name, value in model.state_dict().items()}
    model.load_state_dict(kept)
    average.update()
    averages = {name: value.clone() for name, value in average.averages.items()}

    def measured_and_broken():
        with average.in_place():
            for name, parameter in model.named_parameters():
                assert torch.equal(parameter, averages[name])
                assert not torch.equal(parameter, kept[name])
            raise KeyError

    with pytest.raises(KeyError):
        measured_and_broken()
    assert state_hash(model.state_dict()) == state_hash(kept)
    assert state_hash(average.averages) == state_hash(averages)


def test_between_epochs_the_averages_are_measured_and_training_goes_on_without_them(
    start, tmp_path
):
    recipe = replace(RECIPE, steps=5, lr=0.1, ema_decay=0.9, evaluate_every=1)  # 5 = an epoch
    seen = train(start, tmp_path / "seen", recipe)
    metrics = load_result(tmp_path / "seen" / "p" / "result.json").metrics
    # The epoch's end is the end: the same averages measured twice.
    assert metrics["top1_epoch_1"] == metrics["top1"]
    longer = replace(recipe, steps=8)
    seen = train(start, tmp_path / "with", longer)
    assert state_hash(seen) == state_hash(
        train(start, tmp_path / "without", replace(longer, evaluate_every=0))
    )


@pytest.mark.parametrize("parts", [1, 4])
def test_a_teacher_s_passes_are_counted(start, tmp_path, parts):
    recipe = replace(RECIPE, steps=2, distillation=DistillationConfig(), accumulate=parts)
    train(start, tmp_path, recipe)
    cost = load_result(tmp_path / "p" / "result.json").cost
    # In parts, the first batch is seen whole once more: both networks' passes.
    passes = 2 * 2 + (2 if parts > 1 else 0)
    assert (cost.forward_passes, cost.backward_passes) == (passes, 2)
    assert cost.images == passes * 64


def test_divergence_of_gaussians_by_hand():
    first = torch.tensor([[0.0, 1.0], [1.0, 1.0]], dtype=torch.float64)
    second = torch.tensor([[0.0, 3.0], [1.0, 4.0]], dtype=torch.float64)
    by_hand = (0.0 + (0.5 * torch.log(torch.tensor(4.0)) + (1 + 4) / 8 - 0.5)) / 2
    assert divergence(first, second).item() == pytest.approx(by_hand.item(), rel=1e-6)
    assert divergence(first, first).item() == pytest.approx(0.0, abs=1e-9)


def test_freezing_stops_more_layers_stage_by_stage(start, tmp_path):
    recipe = replace(RECIPE, freezing=FreezingConfig(stages=2, share=0.5))
    run(make_spec(start, recipe), PhaseContext.alone(tmp_path))
    result = load_result(tmp_path / "p" / "result.json")
    assert len(result.facts["frozen_layers"]) == 8 * 2 // 3
    # Two stages, two extra passes each.
    assert result.cost.forward_passes == 8 + 4


@pytest.mark.parametrize(
    "option",
    [
        {"ema_decay": 0.9},
        {"freezing": FreezingConfig(stages=2, share=0.9)},
        {"distillation": DistillationConfig()},
        {"quantizer_lr_factor": 0.01},
        {"precision": "bf16", "distillation": DistillationConfig()},
        {"precision": "fp16"},
        {"channels_last": True, "precision": "bf16"},
        {"accumulate": 4},
    ],
    ids=lambda option: next(iter(option)),
)
def test_options_change_the_result_and_survive_a_stop(start, tmp_path, option):
    recipe = replace(RECIPE, **option)
    whole = train(start, tmp_path / "whole", recipe)
    assert state_hash(whole) != state_hash(train(start, tmp_path / "plain"))
    asked = iter(range(1, 100))
    stopping = replace(PhaseContext.alone(tmp_path / "cut"), should_stop=lambda: next(asked) >= 5)
    with pytest.raises(InterruptedPhaseError):
        run(make_spec(start, recipe), stopping)
    assert state_hash(train(start, tmp_path / "cut", recipe)) == state_hash(whole)
