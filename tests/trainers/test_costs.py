"""Golden totals of five networks at 224 pixels, and the rules of pins, groups and lifetimes."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

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
