"""A batch of policies: each has its own result, and none of them stops or disturbs another."""

from __future__ import annotations

import math
import time
from dataclasses import replace

import pytest
import torch

from solvers.errors import SolversError
from solvers.policy import make_policy
from solvers.storage import load_costs, save_costs, save_policy
from solvers.tables import LayerBits
from trainers import weight_training
from trainers.checkpoint import load_tensors, save_tensors, state_hash
from trainers.costs import trace_costs
from trainers.data import load_data
from trainers.errors import InterruptedPhaseError
from trainers.models import build_model
from trainers.phases import Cost, DataSpec, ModelSpec, PhaseContext, PhaseSpec
from trainers.recipes import TrainConfig
from trainers.results import load_result
from trainers.validation import Validation

MODEL = ModelSpec(name="cifar_resnet8", options={"in_channels": 1, "base_width": 4})
# 5 batches of 256 digits an epoch; training ends inside the second.
RECIPE = TrainConfig(
    steps=8, batch_size=256, lr=0.02, warmup_epochs=0.0, bn_reestimate_images=256, evaluate_every=1
)
POLICIES = {"low": (2, 3), "high": (6, 4)}


@pytest.fixture(scope="module")
def start(tmp_path_factory):
    folder = tmp_path_factory.mktemp("start")
    torch.manual_seed(0)
    model = build_model(MODEL)
    save_tensors(folder / "weights.pt", model.state_dict())
    costs = trace_costs(model, name=MODEL.name, input_shape=(1, 8, 8))
    save_costs(folder / "costs.parquet", costs)
    for name, (w, a) in POLICIES.items():
        bits = {s.name: s.pinned or LayerBits(weight_bits=w, act_bits=a) for s in costs}
        save_policy(folder / f"{name}.json", make_policy(costs, bits, "uniform"))
    return folder


def spec_of(start, *entries, recipe=RECIPE):
    inputs = {"weights": "weights.pt", "costs": "costs.parquet"}
    inputs |= {f"policy:{entry}": f"{entry}.json" for entry in entries}
    return PhaseSpec(
        phase="weight_training", model=MODEL, data=DataSpec(name="digits"), config=recipe, seed=0,
        inputs={role: str(start / name) for role, name in inputs.items()},
    )  # fmt: skip


def train(start, folder, *entries, recipe=RECIPE, **context):
    where = replace(PhaseContext.alone(folder), **context)
    return weight_training.run(spec_of(start, *entries, recipe=recipe), where)


def trained(folder, entry):
    return load_tensors(folder / entry / "weights.pt"), load_result(folder / entry / "result.json")


@pytest.fixture(scope="module")
def batch(start, tmp_path_factory):
    folder = tmp_path_factory.mktemp("batch")
    return train(start, folder, "low", "high"), folder


def test_each_policy_has_its_own_result(batch, start):
    total, folder = batch
    assert total.metrics == {"policies": 2.0, "diverged": 0.0}
    for entry, (w, a) in POLICIES.items():
        state, result = trained(folder, entry)
        assert state["layer1.0.conv1.weight"].shape == (4, 4, 3, 3)
        assert result.facts["num_updates"] == 8
        assert result.cost.forward_passes == result.cost.backward_passes == 8
        assert result.cost.images == 8 * 256
        assert set(result.metrics) >= {"train_loss", "top1", "top5", "loss", "top1_epoch_1"}
        policy = weight_training.load_policy(start / f"{entry}.json")
        assert result.facts["policy_id"] == policy.policy_id
        assert policy.bits_of("layer1.0.conv1") == LayerBits(weight_bits=w, act_bits=a)
    low, high = (trained(folder, entry)[1] for entry in POLICIES)
    assert low.metrics != high.metrics
    assert total.cost == low.cost + high.cost
    assert total.eval_cost == low.eval_cost + high.eval_cost


def test_a_policy_s_result_does_not_depend_on_its_batch(batch, start, tmp_path):
    train(start, tmp_path, "high")
    alone, result = trained(tmp_path, "high")
    together, expected = trained(batch[1], "high")
    assert state_hash(alone) == state_hash(together)
    assert result.metrics == expected.metrics


def test_it_starts_from_the_full_precision_weights_at_the_policy_s_bits(start, tmp_path):
    still = replace(RECIPE, steps=1, lr=1e-12, min_lr=0.0, evaluate_every=0)
    train(start, tmp_path, "low", recipe=still)
    state, _ = trained(tmp_path, "low")
    before = load_tensors(start / "weights.pt")
    for name in before:
        if "running" not in name and "tracked" not in name:
            torch.testing.assert_close(state[name], before[name], rtol=0, atol=1e-7)
    # One step size for the one width: max(|mean - 3 std|, |mean + 3 std|) / 2^(2-1).
    w = before["layer2.0.conv1.weight"]
    widest = max((w.mean() - 3 * w.std()).abs(), (w.mean() + 3 * w.std()).abs())
    assert state["layer2.0.conv1.weight_quantizer.steps"].tolist() == pytest.approx(
        [widest.item() / 2], rel=1e-5
    )


def test_a_finished_policy_is_skipped(batch, start, monkeypatch):
    total, folder = batch
    before = {e: (folder / e / "weights.pt").stat().st_mtime_ns for e in POLICIES}

    def never(*args, **kwargs):
        raise AssertionError("it was trained again")

    monkeypatch.setattr(weight_training, "Training", never)
    assert train(start, folder, "low", "high") == total
    assert before == {e: (folder / e / "weights.pt").stat().st_mtime_ns for e in POLICIES}


def test_a_stopped_batch_goes_on_with_the_policy_it_was_at(batch, start, tmp_path):
    asked = iter(range(1, 100))
    with pytest.raises(InterruptedPhaseError, match="stopped after update 6 of 8"):
        train(start, tmp_path, "low", "high", should_stop=lambda: next(asked) == 8 + 6)
    assert load_result(tmp_path / "low" / "result.json") is not None
    assert load_result(tmp_path / "high" / "result.json") is None
    assert not (tmp_path / "result.json").exists()
    steps = []
    train(start, tmp_path, "low", "high", should_stop=lambda: bool(steps.append(1)))
    assert len(steps) == 2
    for entry in POLICIES:
        state, result = trained(tmp_path, entry)
        expected_state, expected = trained(batch[1], entry)
        assert state_hash(state) == state_hash(expected_state)
        # The evaluation before the stop is in the result too, and what it cost.
        assert result.metrics == expected.metrics
        assert result.cost.images == expected.cost.images
        assert result.eval_cost.images == expected.eval_cost.images


def exploding(monkeypatch, rates):
    """Learning rates by number of the policy: the first gets the first."""
    make = weight_training.make_sgd
    left = iter(rates)

    def make_sgd(*args, **kwargs):
        optimizer = make(*args, **kwargs)
        factor = next(left)
        for group in optimizer.param_groups:
            group["lr_factor"] *= factor
        return optimizer

    monkeypatch.setattr(weight_training, "make_sgd", make_sgd)


def test_a_diverged_policy_is_a_result_and_the_next_is_trained(batch, start, tmp_path, monkeypatch):
    exploding(monkeypatch, [1e39, 1.0])
    recipe = replace(RECIPE, lr=0.02, max_step_change=None)
    total = train(start, tmp_path, "low", "high", recipe=recipe)
    assert total.metrics == {"policies": 2.0, "diverged": 1.0}
    diverged = load_result(tmp_path / "low" / "result.json")
    assert "update" in diverged.facts["diverged"]
    assert "top1" not in diverged.metrics
    assert diverged.cost.images > 0
    expected = load_result(tmp_path / "high" / "result.json").facts["data_fingerprint"]
    assert diverged.facts["data_fingerprint"] == expected
    assert not (tmp_path / "low" / "weights.pt").exists()
    assert not (tmp_path / "high" / "checkpoints").exists()
    assert trained(tmp_path, "high")[1].metrics["top1"] > 0
    # And it stays a result: it is not trained again by a second start.
    monkeypatch.setattr(weight_training, "Training", None)
    assert train(start, tmp_path, "low", "high", recipe=recipe).metrics == total.metrics


def test_a_network_that_breaks_at_the_last_measurement_is_a_divergence(
    start, tmp_path, monkeypatch
):
    measure = Validation.measure

    def broken(self):
        self.model.linear.bias.data[0] = math.nan
        return measure(self)

    monkeypatch.setattr(Validation, "measure", broken)
    total = train(start, tmp_path, "low", recipe=replace(RECIPE, evaluate_every=0))
    assert total.metrics["diverged"] == 1.0
    assert (
        "the loss on 450 images is nan"
        in load_result(tmp_path / "low" / "result.json").facts["diverged"]
    )


@pytest.mark.parametrize("images", [0, 256])
def test_measuring_between_epochs_leaves_no_trace_in_training(start, tmp_path, images):
    recipe = replace(RECIPE, bn_reestimate_images=images)
    train(start, tmp_path / "with", "low", recipe=recipe)
    train(start, tmp_path / "without", "low", recipe=replace(recipe, evaluate_every=0))
    with_, measured = trained(tmp_path / "with", "low")
    without, plain = trained(tmp_path / "without", "low")
    assert state_hash(with_) == state_hash(without)
    assert measured.metrics["top1"] == plain.metrics["top1"]
    # Evaluations are not training: 450 test images and the re-estimation, at two epochs' ends and
    # after the last.
    assert measured.cost.images == plain.cost.images == 8 * 256
    assert plain.eval_cost.images == 450 + images
    assert measured.eval_cost.images == 3 * (450 + images)


def test_time_of_measuring_between_epochs_is_not_training_time(start, tmp_path, monkeypatch):
    late, now = [0.0], time.perf_counter
    monkeypatch.setattr(time, "perf_counter", lambda: now() + late[0])
    measure = Validation.measure

    def slowly(self):
        late[0] += 1e6
        return measure(self)

    monkeypatch.setattr(Validation, "measure", slowly)
    train(start, tmp_path, "low")
    assert trained(tmp_path, "low")[1].cost.wall_s < 1e6


def test_a_validation_leaves_the_network_as_it_was(tmp_path):
    data = load_data(DataSpec(name="digits"), 0)
    model = build_model(MODEL).train()
    before = state_hash(model.state_dict())
    batches = [data.train.batch(torch.arange(64), None)]
    context = PhaseContext.alone(tmp_path)
    validation = Validation(model, data.test, lambda: batches, 64, 64, context)
    top1 = validation.between_epochs(4)
    assert validation.points == {"top1_epoch_5": top1}
    assert state_hash(model.state_dict()) == before
    assert validation.measure()["top1"] == top1
    assert state_hash(model.state_dict()) != before


def test_batchnorm_is_re_estimated_before_every_measurement(start, tmp_path):
    recipe = replace(RECIPE, steps=5)
    train(start, tmp_path / "a", "low", recipe=recipe)
    metrics = trained(tmp_path / "a", "low")[1].metrics
    # The epoch's end is the end: the same weights measured twice.
    assert metrics["top1_epoch_1"] == metrics["top1"]


def test_a_moving_average_begins_when_the_step_sizes_have_a_start(start, tmp_path):
    still = replace(RECIPE, lr=1e-9, min_lr=0.0, evaluate_every=0)
    train(start, tmp_path / "plain", "low", recipe=still)
    train(start, tmp_path / "average", "low", recipe=replace(still, ema_decay=0.999999))
    plain, average = (trained(tmp_path / d, "low")[0] for d in ("plain", "average"))
    for name, steps in average.items():
        if name.endswith("quantizer.steps"):
            # Before the first pass an activation's entry is a placeholder, 0.1 / b.
            torch.testing.assert_close(steps, plain[name], rtol=1e-4, atol=0)


def test_reports_are_one_an_epoch_and_one_a_policy(start, tmp_path):
    reports = []
    train(start, tmp_path, "low", "high", report=reports.append)
    assert [sorted(set(r) & {"epoch", "policy_top1"}) for r in reports] == [
        ["epoch"], ["epoch"], ["policy_top1"],
    ] * 2  # fmt: skip


def test_a_policy_of_another_network_is_refused(start, tmp_path):
    costs = load_costs(start / "costs.parquet")
    other = trace_costs(
        build_model(replace(MODEL, options={"in_channels": 1, "base_width": 8})),
        name=MODEL.name, input_shape=(1, 8, 8),
    )  # fmt: skip
    assert other.fingerprint != costs.fingerprint
    bits = {s.name: s.pinned or LayerBits(weight_bits=4, act_bits=4) for s in other}
    save_policy(tmp_path / "other.json", make_policy(other, bits, "uniform"))
    spec = spec_of(start)
    spec = replace(spec, inputs={**spec.inputs, "policy:other": str(tmp_path / "other.json")})
    with pytest.raises(SolversError):
        weight_training.run(spec, PhaseContext.alone(tmp_path))


def test_a_validation_comes_back_from_a_checkpoint(tmp_path):
    images = load_data(DataSpec(name="digits"), 0).test
    context = PhaseContext.alone(tmp_path)
    first, second = (Validation(build_model(MODEL), images, list, 0, 64, context) for _ in range(2))
    first.points, first.cost = {"top1_epoch_3": 12.5}, Cost(images=7, wall_s=1.5)
    second.load_state_dict(first.state_dict())
    assert (second.points, second.cost) == (first.points, first.cost)
