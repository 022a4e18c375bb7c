"""A merged ReLU changes nothing, bit for bit, and works whenever its quantizer does not."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from solvers.tables import BitChoices
from trainers.models import build_model
from trainers.phases import ModelSpec
from trainers.quant.merged_relu import MergedReLU, sole_readers
from trainers.quant.options import QuantOptions
from trainers.quant.wrap import quantize_network

CHOICES = BitChoices(weight_bits=(2, 4), act_bits=(2, 4))


class Network(nn.Module):
    """One ReLU with two readers, one called twice, and three that one layer alone reads."""

    def __init__(self, kind: type[nn.Module] = nn.ReLU6) -> None:
        super().__init__()
        self.first = nn.Conv2d(3, 8, 3, padding=1)
        self.first_act = kind()
        self.body = nn.Sequential(
            nn.Conv2d(8, 8, 3, padding=1, groups=8), nn.BatchNorm2d(8), kind(), nn.Conv2d(8, 8, 1)
        )
        self.branch_act = kind()
        self.branch = nn.Conv2d(8, 8, 1)
        self.twice_act = kind()
        self.last, self.head = nn.Conv2d(8, 8, 1), nn.Linear(8, 10)

    def forward(self, x):
        x = self.body(self.first_act(self.first(x)))
        x = self.branch_act(x)
        x = x + self.branch(x)
        x = self.twice_act(self.last(self.twice_act(x)))
        return self.head(x.mean((2, 3)))


def quantized(kind=nn.ReLU6, *, merge: bool, scale: float = 1.0, **options):
    torch.manual_seed(0)
    model = Network(kind)
    with torch.no_grad():
        model.first.weight.mul_(scale)
    images = torch.randn(16, 3, 8, 8)
    return quantize_network(
        model, choices=CHOICES, sample=images, options=QuantOptions(merge_relu=merge, **options)
    )


def step(network, bits, images, labels):
    network.set_uniform(bits)
    network.model.zero_grad(set_to_none=True)
    loss = F.cross_entropy(network.model(images), labels)
    loss.backward()
    return loss.detach(), {n: p.grad for n, p in network.model.named_parameters()}


def test_only_relus_with_one_reader_are_found():
    assert sole_readers(Network()) == {"first_act": "body.0", "body.2": "body.3"}


def test_cifar_resnets_have_one_to_merge_a_block():
    readers = sole_readers(build_model(ModelSpec(name="cifar_resnet20")))
    assert len(readers) == 9
    assert readers["layer2.0.relu"] == "layer2.0.conv2"


def test_a_network_that_fx_cannot_follow_is_left_alone():
    class Dynamic(nn.Sequential):
        def forward(self, x):
            return super().forward(x) if x.sum() > 0 else x

    assert sole_readers(Dynamic(nn.Conv2d(3, 3, 1), nn.ReLU(), nn.Conv2d(3, 3, 1))) == {}


@pytest.mark.parametrize("kind", [nn.ReLU, nn.ReLU6])
@pytest.mark.parametrize("scale", [1.0, 40.0])
@pytest.mark.parametrize("clamp", [(1e-5, 1.0), None])
def test_training_is_the_same_bit_for_bit(kind, scale, clamp):
    plain, merged = (
        quantized(kind, merge=merge, scale=scale, step_range=clamp) for merge in (False, True)
    )
    assert isinstance(merged.model.first_act, MergedReLU)
    assert plain.model.state_dict().keys() == merged.model.state_dict().keys()
    rng = torch.Generator().manual_seed(3)
    optimizers = [torch.optim.SGD(n.model.parameters(), lr=0.05) for n in (plain, merged)]
    idle = set()
    for bits in (4, 2, 4, 2):
        images = torch.randn(16, 3, 8, 8, generator=rng)
        labels = torch.randint(0, 10, (16,), generator=rng)
        (loss, gradients), (other_loss, others) = (
            step(n, bits, images, labels) for n in (plain, merged)
        )
        idle.add(merged.model.first_act.is_idle())
        assert torch.equal(loss, other_loss)
        for name, gradient in gradients.items():
            assert (gradient is None) == (others[name] is None), name
            assert gradient is None or torch.equal(gradient, others[name]), name
        for optimizer in optimizers:
            optimizer.step()
    # With large activations the range of 4 bits reaches beyond 6, so the ReLU6 has to work.
    assert (False in idle) == (kind is nn.ReLU6 and scale > 1.0)
    assert (True in idle) or clamp is None


def test_the_relu_works_in_full_precision_and_when_watched():
    network = quantized(merge=True)
    act = network.model.first_act
    network.set_uniform(4)
    assert not act.is_idle(), "the step has not started"
    network.model(torch.randn(4, 3, 8, 8))
    assert act.is_idle()
    handle = network.layers["body.0"].register_forward_pre_hook(lambda m, args: None)
    assert not act.is_idle()
    handle.remove()
    network.layers["body.0"].act_quantizer.mix = lambda bank, x: x
    assert not act.is_idle()
    network.layers["body.0"].act_quantizer.mix = None
    network.set_full_precision()
    assert not act.is_idle()
    images = torch.randn(4, 3, 8, 8)
    plain = quantized(merge=False)
    plain.set_full_precision()
    network.model.eval()
    plain.model.eval()
    plain.model.load_state_dict(network.model.state_dict())
    assert torch.equal(network.model(images), plain.model(images))


def test_a_step_that_lets_more_than_six_through_keeps_the_relu6():
    network = quantized(merge=True, step_range=None)
    network.set_uniform(4)
    network.model(torch.randn(4, 3, 8, 8))
    bank = network.layers["body.0"].act_quantizer
    bank.set_step(4, 5.99 / 15)
    assert network.model.first_act.is_idle()
    bank.set_step(4, 6.1 / 15)
    assert not network.model.first_act.is_idle()
    bank.set_step(4, -0.1)
    assert not network.model.first_act.is_idle()


def test_a_copy_asks_its_own_layer():
    network = quantized(merge=True)
    network.set_uniform(4)
    network.model(torch.randn(4, 3, 8, 8))
    other = copy.deepcopy(network.model)
    assert other.first_act.is_idle()
    other.body[0].act_quantizer.set_bits(None)
    assert not other.first_act.is_idle()
    assert network.model.first_act.is_idle()
