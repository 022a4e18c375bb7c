"""Golden totals of five networks at 224 pixels, and the rules of pins, groups and lifetimes."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn
from torchvision.models import get_model_weights

from solvers.tables import CostTable, LayerBits
from trainers.costs import trace_costs
from trainers.errors import ModelError
from trainers.models import build_model
from trainers.phases import ModelSpec

# Layers, searched, MACs, unfloored MACs, weights, biases, other parameters.
GOLDEN = {
    "resnet18": (21, 19, 1_814_073_344, 1_831_183_360, 11_678_912, 1_000, 9_600),
    "resnet50": (54, 52, 4_089_184_256, 4_144_829_440, 25_502_912, 1_000, 53_120),
    "mobilenet_v1": (28, 26, 568_740_352, 568_966_144, 4_209_088, 1_000, 21_888),
    "mobilenet_v2": (53, 51, 300_774_272, 301_016_192, 3_469_760, 1_000, 34_112),
    "mobilenet_v3_large": (64, 62, 216_589_760, 216_868_640, 5_451_272, 7_360, 24_400),
}


def at_224(name: str) -> CostTable:
    with torch.device("meta"):
        model = build_model(ModelSpec(name=name, num_classes=1000))
    return trace_costs(model, name=name, input_shape=(3, 224, 224))


@pytest.mark.parametrize("name", GOLDEN)
def test_totals_of_the_papers_networks(name: str) -> None:
    costs = at_224(name)
    totals = (
        len(costs.layers),
        len(costs.searched),
        sum(layer.num_macs for layer in costs),
        sum(layer.num_macs_unfloored for layer in costs),
        sum(layer.num_weights for layer in costs),
        sum(layer.num_biases for layer in costs),
        costs.num_other_params,
    )
    assert totals == GOLDEN[name]
    assert costs.layers[0].pinned == costs.layers[-1].pinned == LayerBits(weight_bits=8, act_bits=8)


# One of every family that torchvision publishes weights of and that has no attention.
PUBLISHED = (
    "alexnet", "convnext_tiny", "densenet121", "efficientnet_b0", "googlenet", "mnasnet1_0",
    "mobilenet_v3_small", "regnet_y_400mf", "resnext50_32x4d", "shufflenet_v2_x1_0",
    "squeezenet1_1", "vgg11", "wide_resnet50_2",
)  # fmt: skip


@pytest.mark.filterwarnings("ignore:The default weight initialization")
@pytest.mark.parametrize("name", PUBLISHED)
def test_macs_are_those_that_torchvision_publishes(name: str) -> None:
    published = [each.meta["_ops"] for each in get_model_weights(name)]
    model = build_model(ModelSpec(name=name, num_classes=1000))  # RegNets need their data
    costs = trace_costs(model, name=name, input_shape=(3, 224, 224))
    found = sum(layer.num_macs for layer in costs) / 1e9
    assert min(abs(found - each) for each in published) < 0.0006  # printed to three places


def test_counts_of_one_layer_of_each_kind() -> None:
    model = nn.Sequential(
        nn.Conv2d(3, 8, 3, stride=2, padding=1),
        nn.BatchNorm2d(8),
        nn.Conv2d(8, 8, 3, padding="same", groups=8, bias=False),
        nn.Conv2d(8, 4, 1, groups=2),
        nn.Flatten(),
        nn.Linear(4 * 4 * 3, 5),
    )
    costs = trace_costs(model, name="tiny", input_shape=(3, 8, 6))
    conv, depthwise, grouped, linear = costs.layers
    assert [layer.kind for layer in costs] == ["conv", "depthwise", "conv", "linear"]
    assert costs.names == ("0", "2", "3", "5")
    assert (conv.num_macs, conv.num_inputs, conv.num_outputs) == (8 * 3 * 9 * 12, 144, 96)
    # (8 + 2 - 3) / 2 + 1 = 4.5 by 3.5 is 15 pixels, where there are 4 x 3.
    assert conv.num_macs_unfloored == 8 * 3 * 9 * 15
    assert depthwise.num_macs == depthwise.num_macs_unfloored == 8 * 9 * 12
    assert (grouped.num_macs, grouped.num_weights, grouped.num_biases) == (16 * 12, 16, 4)
    assert (linear.num_macs, linear.num_biases) == (48 * 5, 5)
    assert costs.num_other_params == 16


def test_pins_and_groups_by_name() -> None:
    model = build_model(ModelSpec(name="cifar_resnet8", options={"base_width": 4}))
    costs = trace_costs(
        model,
        name="r8",
        input_shape=(3, 16, 16),
        pins=[("conv1", 0, 8), (r"layer3\..*", 4, 6)],
        groups=[r"layer1\..*", r"layer[12]\.0\.conv1"],
    )
    assert costs.layer("conv1").pinned == LayerBits(weight_bits=32, act_bits=8)
    assert costs.layer("layer3.0.conv2").pinned == LayerBits(weight_bits=4, act_bits=6)
    assert costs.layer("linear").pinned == LayerBits(weight_bits=8, act_bits=8)
    groups = {layer.name: layer.group for layer in costs if layer.group}
    assert groups == {
        "layer1.0.conv1": r"layer1\..*",
        "layer1.0.conv2": r"layer1\..*",
        "layer2.0.conv1": r"layer[12]\.0\.conv1",
    }
    for bad in ({"groups": ["layer9"]}, {"groups": ["("]}, {"pins": [("layer9", 8, 8)]}):
        with pytest.raises(ModelError, match=r"layer9|\("):
            trace_costs(model, name="r8", input_shape=(3, 16, 16), **bad)


class Residual(nn.Module):
    """x -> a -> ReLU -> b -> + x -> ReLU -> mean -> c: by hand countable lifetimes."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(1, 2, 1)
        self.a = nn.Conv2d(2, 4, 1)
        self.b = nn.Conv2d(4, 2, 1)
        self.norm = nn.BatchNorm2d(2)
        self.c = nn.Linear(2, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = torch.relu(self.stem(x))
        y = self.norm(self.b(torch.relu(self.a(x))))
        return self.c(torch.relu(x + y).mean(dim=(2, 3)))


def test_lifetimes_span_the_residual_branch() -> None:
    lives = trace_costs(Residual(), name="residual", input_shape=(1, 4, 4)).tensors
    # Operations: 0 input, 1 stem, 2 relu, 3 a, 4 relu, 5 b, 6 norm, 7 +, 8 relu, 9 mean, 10 c.
    assert [(t.num_elements, t.first_step, t.last_step, t.layers) for t in lives] == [
        (16, 0, 1, ("stem",)),
        (32, 1, 7, ("a",)),
        (64, 3, 5, ("b",)),
        (32, 5, 7, ()),
        (32, 7, 9, ()),
        (2, 9, 10, ("c",)),
        (3, 10, 10, ()),
    ]


@pytest.mark.parametrize("name", ["mobilenet_v2", "resnet18"])
def test_every_layer_reads_exactly_one_tensor(name: str) -> None:
    costs = at_224(name)
    read = [layer for life in costs.tensors for layer in life.layers]
    assert sorted(read) == sorted(costs.names)
    by_layer = {layer: life for life in costs.tensors for layer in life.layers}
    for layer in costs:
        assert by_layer[layer.name].num_elements == layer.num_inputs
    # The widest moment of MobileNet-V2: an expansion to 96 channels at 112 pixels, being read by
    # its stride-2 depth-wise layer.
    if name == "mobilenet_v2":
        widest = max(costs.tensors, key=lambda life: life.num_elements)
        assert (widest.num_elements, widest.layers) == (96 * 112 * 112, ("features.2.conv.1.0",))


def test_tracing_on_meta_and_on_the_cpu_agree() -> None:
    spec = ModelSpec(name="cifar_resnet8", options={"base_width": 4})
    real = build_model(spec)
    with torch.device("meta"):
        shapes = build_model(spec)
    shape = (3, 16, 16)
    assert trace_costs(real, name="r", input_shape=shape) == trace_costs(
        shapes, name="r", input_shape=shape
    )
    assert real.training


class Attention(nn.Module):
    """Reads the weight of a layer that it never calls, and has one that nothing reads."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Linear(8, 8)
        self.hidden = nn.Linear(8, 4)
        self.unused = nn.Linear(2, 2)

    def forward(self, x: Tensor) -> Tensor:
        return nn.functional.linear(self.first(x), self.hidden.weight)


def test_networks_that_cannot_be_counted() -> None:
    shared = nn.Conv2d(3, 3, 1)

    class Twice(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer = nn.Conv2d(3, 3, 1)

        def forward(self, x: Tensor) -> Tensor:
            return self.layer(self.layer(x))

    for model, message in (
        (nn.Sequential(nn.ReLU()), "nothing to quantize"),
        (nn.Sequential(shared, shared), "also stands as"),
        (Twice(), "called twice"),
        (Attention(), "weight of 'hidden' is used without calling"),
        (nn.Sequential(nn.Conv2d(4, 4, 1)), r"cannot take an input of \(3, 8, 8\)"),
    ):
        with pytest.raises(ModelError, match=message):
            trace_costs(model, name="bad", input_shape=(3, 8, 8))
