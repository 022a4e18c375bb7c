"""Switchable BatchNorm: which copy works when, and how copies become one again."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from solvers.tables import BitChoices
from trainers.errors import ModelError
from trainers.models import build_model
from trainers.phases import ModelSpec
from trainers.quant.batchnorm import SwitchableBatchNorm
from trainers.quant.handle import QuantNetwork
from trainers.quant.options import QuantOptions
from trainers.quant.wrap import quantize_network


def images() -> Tensor:
    return torch.randn(4, 3, 16, 16, generator=torch.Generator().manual_seed(1))


def wrap(**how: object) -> QuantNetwork:
    torch.manual_seed(0)
    model = build_model(ModelSpec(name="cifar_resnet8", options={"base_width": 4}))
    settings = {
        "choices": BitChoices(weight_bits=(2, 4), act_bits=(2, 4)),
        "sample": images(),
        "batchnorm": "switchable",
    } | how
    return quantize_network(model, **settings)


def norm_of(network: QuantNetwork, name: str) -> SwitchableBatchNorm:
    norm = network.model.get_submodule(name)
    assert isinstance(norm, SwitchableBatchNorm)
    return norm


def test_norms_of_searched_layers_switch_and_the_first_one_does_not() -> None:
    network = wrap()
    stages = [f"layer{s}.0.bn{i}" for s in (1, 2, 3) for i in (1, 2)]
    assert list(network.switchable_norms()) == stages
    assert type(network.model.bn1) is nn.BatchNorm2d
    assert list(norm_of(network, "layer1.0.bn1").copies) == ["2", "4", "full"]
    assert wrap(batchnorm="shared").switchable_norms() == ()


def test_the_copy_follows_the_layer_that_feeds_it() -> None:
    network = wrap()
    network.set_uniform(4)
    network.set_bits({"layer1.0.conv2": (4, 2)})
    assert norm_of(network, "layer1.0.bn1").selected == "4"
    assert norm_of(network, "layer1.0.bn2").selected == "2"
    network.set_full_precision()
    assert norm_of(network, "layer1.0.bn2").selected == "full"


@pytest.mark.parametrize(
    ("follows", "act_bits", "expected"),
    [("auto", (2, 4), "2"), ("weight", (2, 4), "4"), ("auto", (8,), "4"), ("act", (8,), "8")],
)
def test_weight_or_activation_selects(
    follows: str, act_bits: tuple[int, ...], expected: str
) -> None:
    network = wrap(
        choices=BitChoices(weight_bits=(2, 4), act_bits=act_bits),
        options=QuantOptions(norm_follows=follows),
    )
    network.set_uniform((4, act_bits[0]))
    assert norm_of(network, "layer2.0.bn1").selected == expected


def test_a_pass_moves_the_selected_copys_statistics_only() -> None:
    network = wrap()
    norm = norm_of(network, "layer1.0.bn1")
    before = {key: value.clone() for key, value in norm.state_dict().items()}
    network.set_uniform(2)
    network.model(images()).sum().backward()
    moved = {k.split(".")[1] for k, v in norm.state_dict().items() if not torch.equal(v, before[k])}
    assert moved == {"2"}
    trained = {name for name, p in norm.named_parameters() if p.grad is not None}
    assert trained == {"copies.2.weight", "copies.2.bias"}
    assert not norm.copies["full"].weight.requires_grad


def test_spreading_copies_the_full_precision_statistics() -> None:
    network = wrap()
    norm = norm_of(network, "layer3.0.bn2")
    nn.init.constant_(norm.copies["full"].running_mean, 3.0)
    network.spread_batchnorm()
    assert all((copy.running_mean == 3.0).all() for copy in norm.trained_copies())


def test_merging_keeps_the_selected_copy_or_the_mean() -> None:
    for source, expected in (("selected", 4.0), ("mean", 3.0)):
        network = wrap()
        for bits in ("2", "4"):
            copy = norm_of(network, "layer1.0.bn1").copies[bits]
            nn.init.constant_(copy.weight, float(bits))
            nn.init.constant_(copy.running_var, float(bits))
        network.set_uniform(4)
        network.merge_batchnorm(source)
        merged = network.model.layer1[0].bn1
        assert type(merged) is nn.BatchNorm2d
        assert merged.weight.requires_grad
        assert (merged.weight == expected).all()
        assert (merged.running_var == expected).all()
        assert network.switchable_norms() == ()
        network.set_uniform(2)
        network.model(images())


def test_merging_changes_no_output_of_the_selected_bits() -> None:
    network = wrap()
    network.set_uniform(4)
    network.model(images())
    network.model.eval()
    expected = network.model(images())
    network.merge_batchnorm()
    assert not network.model.layer1[0].bn1.training
    assert torch.equal(network.model(images()), expected)


def test_an_unknown_width_is_refused() -> None:
    norm = SwitchableBatchNorm(nn.BatchNorm2d(3), [2, 4])
    with pytest.raises(ModelError, match="no copy for 3 bits"):
        norm.select(3)


def test_a_norm_behind_two_layers_cannot_switch() -> None:
    class Two(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b = nn.Conv2d(3, 3, 1), nn.Conv2d(3, 3, 1)
            self.norm = nn.BatchNorm2d(3)

        def forward(self, x: Tensor) -> Tensor:
            return self.norm(self.b(self.norm(self.a(x))))

    choices = BitChoices(weight_bits=(2,), act_bits=(2,))
    with pytest.raises(ModelError, match="'norm' follows both 'a' and 'b'"):
        quantize_network(Two(), choices=choices, sample=images(), batchnorm="switchable")
    assert quantize_network(Two(), choices=choices, sample=images()).switchable_norms() == ()
