"""Wrapping whole networks: order, pins, bits, starts, and what must be refused."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from solvers.tables import BitChoices
from trainers.errors import ModelError
from trainers.models import build_model
from trainers.phases import ModelSpec
from trainers.quant.handle import QuantNetwork
from trainers.quant.layers import QuantConv2d, QuantLinear
from trainers.quant.options import QuantOptions
from trainers.quant.wrap import quantize_network

CHOICES = BitChoices(weight_bits=(2, 4), act_bits=(2, 3, 4))


def small() -> nn.Module:
    torch.manual_seed(0)
    return build_model(ModelSpec(name="cifar_resnet8", options={"base_width": 4}))


def images(num: int = 4) -> Tensor:
    return torch.randn(num, 3, 16, 16, generator=torch.Generator().manual_seed(1))


def wrap(model: nn.Module | None = None, **how: object) -> QuantNetwork:
    how = {"choices": CHOICES, "sample": images()} | how
    return quantize_network(model or small(), **how)


class Shuffled(nn.Module):
    """Registers its layers in another order than it runs them."""

    def __init__(self) -> None:
        super().__init__()
        self.last = nn.Linear(4, 2)
        self.middle = nn.Conv2d(4, 4, 1)
        self.never = nn.Linear(3, 3)
        self.first = nn.Conv2d(3, 4, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.last(self.middle(F.relu(self.first(x))).mean(dim=(2, 3)))


def test_full_precision_is_bitwise_the_network_before() -> None:
    model = small().eval()
    expected = model(images())
    network = wrap(model)
    assert torch.equal(network.model(images()), expected)
    assert not network.model.training


def test_first_and_last_are_found_by_execution_not_by_registration() -> None:
    network = wrap(Shuffled())
    assert list(network.layers) == ["first", "middle", "last"]
    assert network.pinned == {"first": (8, 8), "last": (8, 8)}
    assert network.searched == ("middle",)
    assert network.unused == ("never",)
    assert type(network.model.never) is nn.Linear
    assert network.kinds == {
        "first": "act_signed", "middle": "act_unsigned", "last": "act_signed"
    }  # fmt: skip
    assert network.signed == {"first": True, "middle": False, "last": True}


def test_the_first_matching_pin_wins() -> None:
    network = wrap(pins=[("conv1", 8, 0), (r"layer1\..*conv1", 4, 4), (r"layer1\..*", 6, 6)])
    assert network.pinned == {
        "conv1": (8, 0),
        "layer1.0.conv1": (4, 4),
        "layer1.0.conv2": (6, 6),
        "linear": (8, 8),
    }
    network.set_uniform(2)
    bits = network.bits()
    assert bits["conv1"] == (8, None)
    assert bits["layer1.0.conv1"] == (4, 4)
    assert bits["layer2.0.conv1"] == (2, 2)


@pytest.mark.parametrize(("pattern", "message"), [("layer9", "matches no layer"), ("(", "regular")])
def test_a_pin_that_means_nothing_is_refused(pattern: str, message: str) -> None:
    with pytest.raises(ModelError, match=message):
        wrap(pins=[(pattern, 8, 8)])


def test_overrides_of_the_choices_are_a_layers_candidates() -> None:
    choices = BitChoices(
        weight_bits=(2, 4), act_bits=(2, 4), overrides=(("layer2.0.conv1", (3,), (5, 6)),)
    )
    network = wrap(choices=choices)
    assert network.layers["layer2.0.conv1"].weight_quantizer.candidates == (3,)
    assert network.layers["layer2.0.conv1"].act_quantizer.candidates == (5, 6)
    assert network.layers["layer2.0.conv2"].act_quantizer.candidates == (2, 4)


def test_bits_are_set_by_name_and_checked() -> None:
    network = wrap()
    network.set_uniform((4, 3))
    network.set_bits({"layer1.0.conv1": (2, 4), "conv1": (8, 8)})
    bits = network.bits()
    assert bits["layer1.0.conv1"] == (2, 4)
    assert bits["layer1.0.conv2"] == (4, 3)
    assert bits["linear"] == (8, 8)
    for wrong, message in (
        ({"layer7": (2, 2)}, "does not have"),
        ({"conv1": (4, 4)}, "pinned"),
        ({"layer1.0.conv1": (3, 4)}, "candidates"),
    ):
        with pytest.raises(ModelError, match=message):
            network.set_bits(wrong)


def test_full_precision_pins_may_be_written_as_32() -> None:
    network = wrap(pins=[("conv1", 0, 0)])
    network.set_bits({"conv1": (32, 32)})
    assert network.bits()["conv1"] == (None, None)


def test_parameters_fall_into_three_groups_without_remainder() -> None:
    network = wrap()
    groups = (
        network.step_parameters(), network.norm_parameters(), network.weight_parameters()
    )  # fmt: skip
    ids = [id(p) for group in groups for p in group]
    assert len(ids) == len(set(ids))
    fixed = network.layers["conv1"].act_quantizer.steps
    assert set(ids) == {id(p) for p in network.model.parameters()} - {id(fixed)}
    assert [len(group) for group in groups] == [2 * 8 - 1, 2 * 7, 8 + 1]


def test_weights_start_at_wrapping_and_activations_over_given_batches() -> None:
    network = wrap()
    before = {k: v.clone() for k, v in network.model.state_dict().items() if "running" in k}
    network.set_uniform(4)
    network.initialize([images(), images() * 2])
    assert network.bits()["layer1.0.conv1"] == (4, 4)
    after = network.model.state_dict()
    assert all(torch.equal(after[k], v) for k, v in before.items())
    for _, _, bank in network.banks():
        assert all(bank.is_ready(b) for b in bank.candidates)
    model = small().eval()
    seen = []
    model.linear.register_forward_pre_hook(lambda module, args: seen.append(args[0].abs().mean()))
    model(images())
    model(images() * 2)
    start = network.layers["linear"].act_quantizer.values()[8]
    assert start == pytest.approx(sum(seen).item() / 255**0.5, rel=1e-5)
    network.model.eval()(images())


def test_initialising_sends_one_exchange_for_the_whole_network() -> None:
    network = wrap()
    calls = []

    def exchange(value: Tensor) -> Tensor:
        calls.append(value.numel())
        return value * 2

    network.initialize([images()], mean_over_ranks=exchange)
    assert calls == [6 * 3 + 1]
    doubled = network.layers["linear"].act_quantizer.values()[8]
    network.initialize([images()])
    assert doubled == pytest.approx(2 * network.layers["linear"].act_quantizer.values()[8])
    with pytest.raises(ModelError, match="no batch"):
        network.initialize([])


def test_training_moves_weights_and_steps() -> None:
    network = wrap()
    network.set_uniform(3 if 3 in CHOICES.weight_bits else (4, 3))
    optimizer = torch.optim.SGD(network.model.parameters(), lr=0.1)
    labels = torch.tensor([0, 1, 2, 3])
    losses = []
    for _ in range(15):
        optimizer.zero_grad()
        loss = F.cross_entropy(network.model(images()), labels)
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < 0.5 * losses[0]
    assert all(bank.steps.grad is not None for _, _, bank in network.banks() if not bank.is_fixed)


def test_the_images_range_is_given_unless_it_is_to_be_learned() -> None:
    network = wrap()
    bank = network.layers["conv1"].act_quantizer
    assert bank.is_fixed
    assert bank.values()[8] == pytest.approx(images().abs().max().item() / 127, rel=1e-6)
    network.set_uniform(4)
    network.model(images()).sum().backward()
    assert bank.steps.grad is None
    learned = wrap(options=QuantOptions(input_step="learned")).layers["conv1"].act_quantizer
    assert not learned.is_fixed
    assert not learned.is_ready(8)


def test_world_size_reaches_every_bank() -> None:
    network = wrap()
    network.set_world_size(4, accumulation=2)
    assert {bank.batch_parts for _, _, bank in network.banks()} == {8}


def test_full_precision_files_load_into_a_wrapped_network(tmp_path: Path) -> None:
    torch.manual_seed(5)
    source = build_model(ModelSpec(name="cifar_resnet8", options={"base_width": 4})).eval()
    for mode in ("shared", "switchable"):
        network = wrap(batchnorm=mode)
        old_step = network.layers["layer1.0.conv1"].weight_quantizer.values()
        network.load_full_precision(source.state_dict())
        assert torch.equal(network.model.eval()(images()), source(images()))
        assert network.layers["layer1.0.conv1"].weight_quantizer.values() != old_step
        with pytest.raises(ModelError, match=r"lacks 'conv1\.weight'"):
            network.load_full_precision({})


def test_state_of_a_wrapped_network_returns_to_an_equal_one() -> None:
    network = wrap(batchnorm="switchable")
    network.set_uniform(4)
    network.model(images())
    twin = wrap(batchnorm="switchable")
    twin.model.load_state_dict(network.model.state_dict())
    twin.set_uniform(4)
    assert torch.equal(twin.model.eval()(images()), network.model.eval()(images()))


def test_networks_that_cannot_be_quantized() -> None:
    shared = nn.Conv2d(3, 3, 1)

    class Twice(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer = nn.Conv2d(3, 3, 1)

        def forward(self, x: Tensor) -> Tensor:
            return self.layer(self.layer(x))

    class Own(nn.Conv2d):
        pass

    cases = [
        (nn.Sequential(nn.ReLU()), "nothing to quantize"),
        (nn.Sequential(shared, nn.ReLU(), shared), "'0' also stands as '2'"),
        (Twice(), "'layer' is called twice"),
        (nn.Sequential(Own(3, 3, 1)), "'0' is a Own"),
        (nn.Sequential(nn.Conv2d(5, 3, 1)), "cannot take a batch of shape"),
    ]
    for model, message in cases:
        with pytest.raises(ModelError, match=message):
            wrap(model)


def test_layers_are_swapped_in_place_under_their_names() -> None:
    model = small()
    weight = model.layer1[0].conv1.weight
    network = wrap(model)
    assert network.model is model
    assert isinstance(model.layer1[0].conv1, QuantConv2d)
    assert isinstance(model.linear, QuantLinear)
    assert model.layer1[0].conv1.weight is weight
