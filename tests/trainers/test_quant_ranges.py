"""Which inputs are found to be negative, and what follows."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from solvers.tables import BitChoices
from trainers.errors import ModelError
from trainers.models import build_model
from trainers.phases import ModelSpec
from trainers.quant.options import QuantOptions
from trainers.quant.ranges import trace_ranges
from trainers.quant.wrap import quantize_network


class Bottleneck(nn.Module):
    """A linear bottleneck, an h-swish, a squeeze-and-excitation mean and a ReLU."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(1, 4, 3)
        self.linear_input = nn.Conv2d(4, 4, 1)
        self.swish = nn.Hardswish()
        self.after_swish = nn.Conv2d(4, 4, 3, padding=1)
        self.after_relu = nn.Conv2d(4, 4, 1)
        self.after_mean = nn.Linear(4, 2)

    def forward(self, x: Tensor) -> Tensor:
        x = self.linear_input(self.stem(x))
        x = self.after_swish(self.swish(x))
        x = self.after_relu(F.relu(x))
        return self.after_mean(x.mean(dim=(2, 3)))


def sample(lowest: float = 0.0) -> Tensor:
    torch.manual_seed(0)
    return torch.rand(8, 1, 12, 12) + lowest


def test_every_input_gets_its_range() -> None:
    torch.manual_seed(0)
    trace, kinds = trace_ranges(Bottleneck(), sample(), QuantOptions())
    assert kinds == {
        "stem": "act_unsigned",
        "linear_input": "act_signed",
        "after_swish": "act_shifted",
        "after_relu": "act_unsigned",
        "after_mean": "act_signed",
    }
    assert trace.order == list(kinds)


def test_normalised_images_are_signed() -> None:
    _, kinds = trace_ranges(Bottleneck(), sample(-0.5), QuantOptions())
    assert kinds["stem"] == "act_signed"


def test_an_input_that_these_images_leave_positive_is_still_found() -> None:
    model = nn.Sequential(nn.Conv2d(1, 1, 1, bias=False), nn.Conv2d(1, 1, 1))
    nn.init.ones_(model[0].weight)
    trace, kinds = trace_ranges(model, sample(), QuantOptions())
    assert trace.smallest_input["1"] >= 0
    assert kinds == {"0": "act_unsigned", "1": "act_signed"}


def test_the_shift_can_be_switched_off() -> None:
    _, kinds = trace_ranges(Bottleneck(), sample(), QuantOptions(shift_hardswish=False))
    assert kinds["after_swish"] == "act_signed"


def test_refusing_names_the_layers() -> None:
    torch.manual_seed(0)
    options = QuantOptions(negative_inputs="refuse")
    with pytest.raises(ModelError, match=r"3 layers.*linear_input, after_swish, after_mean"):
        trace_ranges(Bottleneck(), sample(), options)
    model = nn.Sequential(nn.Conv2d(1, 2, 1), nn.ReLU(), nn.Conv2d(2, 2, 1))
    _, kinds = trace_ranges(model, sample(), options)
    assert set(kinds.values()) == {"act_unsigned"}


def test_tracing_leaves_the_network_as_it_was() -> None:
    model = nn.Sequential(nn.Conv2d(1, 2, 1), nn.BatchNorm2d(2), nn.Conv2d(2, 2, 1))
    model[1].eval()
    before = {key: value.clone() for key, value in model.state_dict().items()}
    trace_ranges(model, sample(), QuantOptions())
    assert [module.training for module in model.modules()] == [True, True, False, True]
    assert all(torch.equal(before[key], value) for key, value in model.state_dict().items())
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in model.modules())


def test_inputs_of_the_mobile_networks() -> None:
    torch.manual_seed(0)
    images = torch.randn(2, 3, 64, 64)
    choices = BitChoices(weight_bits=(4,), act_bits=(4,))

    def kinds_of(name: str) -> dict[str, str]:
        model = build_model(ModelSpec(name=name))
        return quantize_network(model, choices=choices, sample=images).kinds

    v2 = kinds_of("mobilenet_v2")
    signed = [name for name, kind in v2.items() if kind == "act_signed"]
    # The image, and whatever reads a linear bottleneck: 16 blocks and the last conv.
    blocks = [f"features.{i}.conv.0.0" for i in range(2, 18)]
    assert signed == ["features.0.0", *blocks, "features.18.0"]
    v3 = kinds_of("mobilenet_v3_large")
    assert v3["features.1.block.0.0"] == "act_shifted"
    assert v3["features.8.block.1.0"] == "act_shifted"
    assert v3["features.4.block.1.0"] == "act_unsigned"
    assert v3["features.5.block.0.0"] == "act_signed"
    assert v3["classifier.3"] == "act_shifted"
