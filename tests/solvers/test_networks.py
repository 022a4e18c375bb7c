"""The hand-written layer tables have the totals that the networks are known to have."""

import pytest

from benchmarks.networks import NETWORKS


@pytest.mark.parametrize(
    ("name", "layers", "searched", "macs", "unfloored", "weights", "biases", "norm"),
    [
        ("resnet18", 21, 19, 1814.073, 1831.183, 11_678_912, 1000, 9_600),
        ("resnet50", 54, 52, 4089.184, 4144.829, 25_502_912, 1000, 53_120),
        ("mobilenet_v1", 28, 26, 568.740, 568.966, 4_209_088, 1000, 21_888),
        ("mobilenet_v2", 53, 51, 300.774, 301.016, 3_469_760, 1000, 34_112),
        ("mobilenet_v3_large", 64, 62, 216.590, 216.869, 5_451_272, 7_360, 24_400),
    ],
)
def test_totals(name, layers, searched, macs, unfloored, weights, biases, norm):
    costs = NETWORKS[name]()
    assert (len(costs.layers), len(costs.searched)) == (layers, searched)
    assert round(sum(s.num_macs for s in costs) / 1e6, 3) == macs
    assert round(sum(s.num_macs_unfloored for s in costs) / 1e6, 3) == unfloored
    assert sum(s.num_weights for s in costs) == weights
    assert sum(s.num_biases for s in costs) == biases
    assert costs.num_other_params == norm
