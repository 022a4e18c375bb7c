"""Accuracy against a direct computation, and BatchNorm statistics against direct ones."""

from __future__ import annotations

import math

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from solvers.tables import BitChoices
from trainers.checkpoint import state_hash
from trainers.data import BatchPlan, load_data
from trainers.errors import DivergedError
from trainers.evaluate import evaluate, reestimate_batchnorm
from trainers.meters import Meter
from trainers.models import build_model
from trainers.phases import DataSpec, ModelSpec, PhaseContext
from trainers.quant.wrap import quantize_network

IMAGES = load_data(DataSpec(name="digits"), 0).test.subset(torch.arange(101))


@pytest.fixture
def context(tmp_path):
    return PhaseContext.alone(tmp_path)


def network(classes=10, **norm):
    torch.manual_seed(2)
    return nn.Sequential(
        nn.Conv2d(1, 3, 3), nn.BatchNorm2d(3, **norm), nn.ReLU(), nn.Flatten(), nn.Dropout(0.5),
        nn.Linear(108, classes),
    )  # fmt: skip


@pytest.mark.parametrize("batch_size", [1, 7, 50, 1000])
def test_accuracy_and_loss_are_those_of_a_direct_computation(context, batch_size):
    model = network()
    meter = Meter()
    found = evaluate(model, IMAGES, batch_size, context, meter)
    with torch.no_grad():
        logits = model.eval()(IMAGES.batch(torch.arange(101), None)[0]).double()
    order = logits.argsort(dim=1, descending=True)
    right = order == IMAGES.labels[:, None]
    assert found["top1"] == pytest.approx(100 * right[:, :1].any(1).double().mean().item())
    assert found["top5"] == pytest.approx(100 * right[:, :5].any(1).double().mean().item())
    assert found["loss"] == pytest.approx(F.cross_entropy(logits, IMAGES.labels).item(), rel=1e-5)
    assert 0 < found["top1"] < found["top5"] < 100, "a network that says something"
    assert meter.images == 101
    assert meter.forward_passes == math.ceil(101 / batch_size)


def test_fewer_than_five_classes_are_all_in_the_top_five(context):
    three = IMAGES.subset((IMAGES.labels < 3).nonzero().flatten())
    assert evaluate(network(3), three, 16, context, Meter())["top5"] == 100.0


def test_evaluation_changes_nothing_in_the_network(context):
    model = network().train()
    model[1].eval()  # frozen by whoever trains
    before = state_hash(model.state_dict())
    evaluate(model, IMAGES, 10, context, Meter())
    assert state_hash(model.state_dict()) == before
    assert [m.training for m in model] == [True, False, True, True, True, True]


def test_a_broken_network_is_named_and_not_measured(context):
    model = network()
    model[5].bias.data[0] = math.nan
    with pytest.raises(DivergedError, match="the loss on 101 images is nan"):
        evaluate(model, IMAGES, 10, context, Meter())


def batches(sizes=(16, 16, 16, 16)):
    at = iter(torch.arange(101))
    return [IMAGES.batch(torch.stack([next(at) for _ in range(n)]), None) for n in sizes]


@pytest.mark.parametrize("momentum", [0.1, 0.03, None])
def test_re_estimated_statistics_are_the_mean_over_batches(context, momentum):
    model = network(momentum=momentum)
    with torch.no_grad():
        model[1].running_mean.fill_(5.0)
        model[1].running_var.fill_(7.0)
        model[1].num_batches_tracked.fill_(9)
        inputs = [model[0](x).transpose(0, 1).flatten(1) for x, _ in batches()]
    meter = Meter()
    reestimate_batchnorm(model, batches(), 60, context, meter)
    mean = torch.stack([x.mean(1) for x in inputs]).mean(0)
    variance = torch.stack([x.var(1, correction=1) for x in inputs]).mean(0)
    torch.testing.assert_close(model[1].running_mean, mean)
    torch.testing.assert_close(model[1].running_var, variance)
    assert model[1].momentum == momentum
    assert model[1].num_batches_tracked == 4
    assert (meter.images, meter.forward_passes) == (64, 4)


@pytest.mark.parametrize(("num_images", "used"), [(1, 1), (16, 1), (17, 2), (10_000, 4)])
def test_as_many_batches_as_the_images_need(context, num_images, used):
    meter = Meter()
    reestimate_batchnorm(network(), batches(), num_images, context, meter)
    assert meter.forward_passes == used


def test_only_running_statistics_change_and_modes_stay(context):
    model = network().train()
    model[1].eval()
    before = {k: v.clone() for k, v in model.state_dict().items()}
    reestimate_batchnorm(model, batches(), 64, context, Meter())
    changed = {k for k, v in model.state_dict().items() if not torch.equal(v, before[k])}
    assert changed == {"1.running_mean", "1.running_var", "1.num_batches_tracked"}
    assert [m.training for m in model] == [True, False, True, True, True, True]


def test_dropout_is_off_while_statistics_are_taken(context):
    model = nn.Sequential(nn.Dropout(0.5), nn.Conv2d(1, 2, 1), nn.BatchNorm2d(2))
    one, again = [], []
    for found in (one, again):
        reestimate_batchnorm(model, batches(), 64, context, Meter())
        found.append(model[2].running_mean.clone())
    assert torch.equal(one[0], again[0])


def test_without_a_batch_the_statistics_stay(context):
    model = network()
    model[1].running_mean.fill_(5.0)
    reestimate_batchnorm(model, [], 64, context, Meter())
    assert model[1].running_mean.tolist() == [5.0] * 3
    assert model[1].momentum == 0.1


def test_an_error_in_between_restores_the_momentum(context):
    model = network()
    with pytest.raises(RuntimeError):
        reestimate_batchnorm(model, [(torch.zeros(1, 9, 9, 9), None)], 64, context, Meter())
    assert model[1].momentum == 0.1
    assert model[1].running_var.tolist() == [1.0] * 3


def test_copies_of_other_bit_widths_keep_what_they_have(context):
    torch.manual_seed(0)
    model = build_model(
        ModelSpec(name="cifar_resnet8", options={"in_channels": 1, "base_width": 4})
    )
    handle = quantize_network(
        model,
        choices=BitChoices(weight_bits=(2, 4), act_bits=(2, 4)),
        sample=IMAGES.batch(torch.arange(16), None)[0],
        batchnorm="switchable",
    )
    handle.initialize([IMAGES.batch(torch.arange(16), None)[0]])
    handle.set_uniform(4)
    before = {k: v.clone() for k, v in model.state_dict().items()}
    reestimate_batchnorm(model, batches(), 64, context, Meter())
    changed = {k for k, v in model.state_dict().items() if not torch.equal(v, before[k])}
    statistics = {k for k in before if k.endswith(("running_mean", "running_var"))}
    copies = {k for k in statistics if "copies" in k}
    assert len(copies) == 2 * 3 * len(handle.switchable_norms())
    expected = {k for k in statistics if "copies" not in k or ".copies.4." in k}
    assert {k for k in changed if not k.endswith("num_batches_tracked")} == expected


def test_a_plan_without_its_last_short_batch_is_enough(context):
    plan = BatchPlan(images=IMAGES, batch_size=30, seed=0, stream="s")
    meter = Meter()
    reestimate_batchnorm(network(), plan.epoch(0), 6000, context, meter)
    assert meter.images == 90
