"""Statistics beside the indicators: numerics, and no trace in the training."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from solvers.tables import BitChoices
from trainers.checkpoint import state_hash
from trainers.data import BatchPlan, load_data
from trainers.limpq.config import IndicatorConfig
from trainers.limpq.statistics import collect_statistics
from trainers.meters import Meter
from trainers.models import build_model
from trainers.phases import DataSpec, ModelSpec, PhaseContext
from trainers.quant.options import QuantOptions
from trainers.quant.wrap import quantize_network

MODEL = ModelSpec(name="cifar_resnet8", options={"in_channels": 1, "base_width": 4})
CHOICES = BitChoices(weight_bits=(2, 4), act_bits=(2, 4))
RECIPE = IndicatorConfig(batch_size=256, label_smoothing=0.0)
DIGITS = load_data(DataSpec(name="digits"), 0).train


@pytest.fixture
def network():
    torch.manual_seed(0)
    model = build_model(MODEL).double()
    sample = DIGITS.batch(torch.arange(64), None)[0].double()
    found = quantize_network(
        model, choices=CHOICES, sample=sample, batchnorm="switchable",
        options=QuantOptions(step_range=None),
    )  # fmt: skip
    found.model.double()
    found.initialize([sample])
    return found


class Doubled(BatchPlan):
    """The batches in float64."""

    def epoch(self, epoch, first=0):
        for images, labels in super().epoch(epoch, first):
            yield images.double(), labels


PLAN = Doubled(images=DIGITS, batch_size=256, seed=0, stream="t")


def collected(network, tmp_path):
    meter = Meter()
    context = PhaseContext.alone(tmp_path)
    return collect_statistics(network, CHOICES, PLAN, RECIPE, context, meter), meter


def test_there_is_a_row_for_every_layer_tensor_and_width(network, tmp_path):
    rows, meter = collected(network, tmp_path)
    assert len(rows) == 6 * 2 * 2
    assert (meter.forward_passes, meter.backward_passes) == (4, 4)  # 2 widths, 512 images


def test_nothing_of_the_network_changes(network, tmp_path):
    network.set_uniform(4)
    before, bits = state_hash(network.model.state_dict()), network.bits()
    random = torch.get_rng_state()
    collected(network, tmp_path)
    assert state_hash(network.model.state_dict()) == before
    assert network.bits() == bits
    assert network.model.training
    assert torch.equal(torch.get_rng_state(), random)
    assert all(p.grad is None for p in network.model.parameters())


def test_spread_and_size_are_those_of_the_tensors(network, tmp_path):
    rows, _ = collected(network, tmp_path)
    found = {(r.layer, r.tensor, r.bits): r for r in rows}
    seen = []
    layer = network.layers["layer2.0.conv1"]
    handle = layer.register_forward_pre_hook(lambda _, args: seen.append(args[0]))
    network.set_uniform(4)
    network.model.eval()
    for (images, _), _ in zip(PLAN.epoch(0), range(2), strict=False):
        network.model(images)
    handle.remove()
    x = torch.cat(seen)
    for bits in (2, 4):
        row = found["layer2.0.conv1", "act", bits]
        assert row.std == pytest.approx(float(x.detach().std(correction=0)), rel=1e-9)
        assert row.mean_abs == pytest.approx(float(x.detach().abs().mean()), rel=1e-9)
        assert row.num_elements == x[0].numel()
        weight = found["layer2.0.conv1", "weight", bits]
        assert weight.std == pytest.approx(float(layer.weight.detach().std(correction=0)), rel=1e-9)
        assert weight.num_elements == layer.weight.numel()


def test_gradients_are_those_of_the_loss_without_the_scale(network, tmp_path):
    rows, _ = collected(network, tmp_path)
    found = {(r.layer, r.tensor, r.bits): r.mean_abs_gradient for r in rows}
    # A network whose quantizers do not scale gives dL/ds itself.
    torch.manual_seed(0)
    sample = DIGITS.batch(torch.arange(64), None)[0].double()
    plain = quantize_network(
        build_model(MODEL).double(), choices=CHOICES, sample=sample, batchnorm="switchable",
        options=QuantOptions(step_range=None, grad_scale=False),
    )  # fmt: skip
    plain.model.double()
    plain.model.load_state_dict(network.model.state_dict())
    plain.model.eval()
    plain.set_uniform(2)
    sizes: dict[tuple[str, str], float] = {}
    for (images, labels), _ in zip(PLAN.epoch(0), range(2), strict=False):
        plain.model.zero_grad()
        F.cross_entropy(plain.model(images), labels).backward()
        for layer, tensor, bank in plain.banks():
            if layer in plain.searched:
                size = abs(float(bank.steps.grad[0])) / 2
                sizes[layer, tensor] = sizes.get((layer, tensor), 0.0) + size
    for (layer, tensor), size in sizes.items():
        assert found[layer, tensor, 2] == pytest.approx(size, rel=1e-9)
    assert min(sizes.values()) > 0


def test_what_training_passes_in_parts_is_passed_in_parts_here_too(network, tmp_path):
    whole, _ = collected(network, tmp_path)
    network.set_world_size(1, accumulation=4)
    seen = []
    network.model.register_forward_pre_hook(lambda _, args: seen.append(len(args[0])))
    meter = Meter()
    rows = collect_statistics(
        network, CHOICES, replace(PLAN, accumulate=4), RECIPE, PhaseContext.alone(tmp_path), meter
    )
    assert set(seen) == {256 // 4}
    assert (meter.forward_passes, meter.backward_passes, meter.images) == (4, 4, 2 * 512)
    for row, other in zip(rows, whole, strict=True):
        assert row.mean_abs_gradient == pytest.approx(other.mean_abs_gradient, rel=1e-9)
        assert (row.std, row.num_elements) == (pytest.approx(other.std), other.num_elements)


class Padded(nn.Module):
    """A convolution that pads what h-swish leaves: its quantizer reads the border too."""

    def __init__(self):
        super().__init__()
        self.first = nn.Conv2d(1, 4, 3, padding=1)
        self.swish = nn.Hardswish()
        self.second = nn.Conv2d(4, 4, 3, padding=1)
        self.last = nn.Linear(4, 10)

    def forward(self, x):
        return self.last(self.second(self.swish(self.first(x))).mean(dim=(2, 3)))


def test_the_gradient_behind_quantized_padding_is_that_of_the_loss(tmp_path):
    sample = DIGITS.batch(torch.arange(64), None)[0].double()
    found = {}
    for scaled in (True, False):
        torch.manual_seed(0)
        network = quantize_network(
            Padded().double(), choices=CHOICES, sample=sample,
            options=QuantOptions(step_range=None, grad_scale=scaled),
        )  # fmt: skip
        assert network.kinds["second"] == "act_shifted"
        network.model.double()
        network.initialize([sample])
        rows, _ = collected(network, tmp_path)
        found[scaled] = {
            r.bits: r.mean_abs_gradient for r in rows if (r.layer, r.tensor) == ("second", "act")
        }
    assert found[False][2] > 0
    assert found[True] == pytest.approx(found[False], rel=1e-9)
