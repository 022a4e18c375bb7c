"""A trained network comes back from its files, and its codes give its very weights."""

from __future__ import annotations

from dataclasses import asdict, replace

import pytest
import torch
from torch import nn

from solvers.errors import PolicyError
from solvers.policy import make_policy
from solvers.tables import LayerBits
from tests.trainers.deployed import deployed
from trainers import deployment
from trainers.checkpoint import save_tensors
from trainers.costs import trace_costs
from trainers.data import input_rule, load_data
from trainers.deployment import deployment_of, dequantized
from trainers.errors import CheckpointError, DataError, ModelError
from trainers.models import build_model
from trainers.phases import DataSpec, ModelSpec
from trainers.quant.lsq import codes_of, lsq
from trainers.quant.pact import dorefa, dorefa_codes
from trainers.quant.wrap import quantize_network
from trainers.recipes import TrainConfig
from trainers.setup import quant_options
from trainers.trained import load_network
from trainers.weight_training import fixed_bits

SHAPE = (2, 9, 9)
# An input of every kind: signed, shifted by an h-swish, unsigned; one tensor each in full
# precision, one at 16 bits.
BITS = {
    "0": (8, 8), "3": (3, 2), "6": (16, 4), "9": (32, 6), "13": (2, 32), "14": (8, 8),
}  # fmt: skip


def small(num_classes: int = 10) -> nn.Module:
    """Padding around an h-swish, a ReLU6, a depthwise layer, and a layer that is never called."""
    return nn.Sequential(
        nn.Conv2d(2, 6, 3, padding=1), nn.BatchNorm2d(6), nn.Hardswish(),
        nn.Conv2d(6, 6, 3, padding=1, bias=False), nn.BatchNorm2d(6), nn.ReLU6(),
        nn.Conv2d(6, 6, 3, padding=1, groups=6, stride=2), nn.BatchNorm2d(6), nn.ReLU(),
        nn.Conv2d(6, 4, 1), nn.Tanh(), nn.AdaptiveAvgPool2d(2), nn.Flatten(),
        nn.Linear(16, 8), nn.Linear(8, num_classes),
    )  # fmt: skip


MODEL = ModelSpec(name=f"{__name__}:small")


def trained_here(recipe: TrainConfig):
    """(costs, policy, network) of a network whose steps were started and moved off their start."""
    torch.manual_seed(5)
    model = build_model(MODEL)
    costs = trace_costs(model, name=MODEL.name, input_shape=SHAPE)
    bits = {name: LayerBits(weight_bits=w, act_bits=a) for name, (w, a) in BITS.items()}
    policy = make_policy(costs, bits, "test")
    pins, choices = fixed_bits(policy, costs)
    network = quantize_network(
        model, choices=choices, sample=torch.randn(32, *SHAPE), pins=pins,
        options=quant_options(recipe, recipe.pact if recipe.quantizer == "pact" else None),
    )  # fmt: skip
    network.set_bits({name: (b.weight_bits, b.act_bits) for name, b in policy.layers})
    with torch.no_grad():
        network.model.train()(torch.randn(32, *SHAPE))  # starts steps, moves BatchNorm
        for steps in network.step_parameters():
            steps.mul_(0.9)
    network.model.eval()
    return costs, policy, network


RECIPES = {
    "lsq": TrainConfig(),
    "lsq, clamped, relus merged": TrainConfig(step_clamp=(1e-5, 0.3), merge_relu=True),
    "pact": TrainConfig(quantizer="pact"),
}


@pytest.fixture(params=RECIPES.values(), ids=RECIPES)
def trained(request, tmp_path):
    costs, policy, network = trained_here(request.param)
    save_tensors(tmp_path / "weights.pt", network.model.state_dict())
    return request.param, costs, policy, network, tmp_path / "weights.pt"


def loaded(trained, **changes):
    recipe, costs, policy, network, path = trained
    asked = {"model": MODEL, "policy": policy, "costs": costs, "recipe": recipe,
             "kinds": network.kinds, "weights": path} | changes  # fmt: skip
    return load_network(**asked)


def test_a_network_comes_back_as_it_was_without_drawing_a_random_number(trained):
    network = trained[3]
    assert set(network.kinds.values()) == {"act_signed", "act_shifted", "act_unsigned"}
    before = torch.get_rng_state()
    again = loaded(trained)
    assert torch.equal(torch.get_rng_state(), before)
    assert not again.model.training
    assert again.bits() == network.bits()
    assert again.kinds == network.kinds
    x = torch.randn(7, *SHAPE)
    assert torch.equal(again.model(x), network.model(x))
    # The quantizers work: at full precision it is another network.
    again.set_full_precision()
    assert not torch.equal(again.model(x), network.model(x))


def test_codes_and_rules_are_the_network_to_the_last_bit(trained):
    network = trained[3]
    found = deployment_of(network)
    assert not [name for name in found.tensors if "quantizer" in name]
    by_name = {layer.name: layer for layer in found.layers}
    assert list(by_name) == list(BITS)
    for name, (weight_bits, act_bits) in BITS.items():
        layer = by_name[name]
        assert (layer.weight.bits if layer.weight else 32) == weight_bits
        assert (layer.input.bits if layer.input else 32) == act_bits
    assert by_name["9"].weight is None
    assert torch.equal(found.tensors["9.weight"], network.layers["9"].weight)
    assert by_name["3"].input.shift == 0.375
    plain = deployed(build_model(MODEL), [asdict(layer) for layer in found.layers], found.tensors)
    x = torch.randn(50, *SHAPE)
    assert torch.equal(plain(x), network.model(x))


def test_widths_are_kept_in_the_narrowest_integers(trained):
    rule = "dorefa" if trained[0].quantizer == "pact" else "step"
    found = {layer.name: layer.weight for layer in deployment_of(trained[3]).layers}
    kept = {name: (w.lowest, w.highest, w.dtype) for name, w in found.items() if w is not None}
    if rule == "step":
        assert kept["0"] == (-128, 127, "int8")
        assert kept["3"] == (-4, 3, "int8")
        assert kept["6"] == (-(2**15), 2**15 - 1, "int16")
    else:
        assert kept["0"] == (0, 255, "uint8")
        assert kept["3"] == (0, 7, "int8")
        assert kept["6"] == (0, 2**16 - 1, "int32")
    assert {w.rule for w in found.values() if w is not None} == {rule}


def test_a_clamped_step_is_exported_as_it_is_used():
    _, _, network = trained_here(TrainConfig(step_clamp=(1e-5, 0.05)))
    bank = network.layers["3"].weight_quantizer
    assert bank.steps.item() > 0.05
    assert deployment_of(network).layers[1].weight.factor == float(torch.tensor(0.05))


def test_codes_that_are_not_the_network_s_are_a_defect(trained, monkeypatch):
    def off_by_one(*args):
        return codes_of(*args).sub_(1).clamp_(*args[2:])

    def also_off(w, bits):
        codes, scale = dorefa_codes(w, bits)
        return codes.roll(1, 0), scale

    monkeypatch.setattr(deployment, "codes_of", off_by_one)
    monkeypatch.setattr(deployment, "dorefa_codes", also_off)
    with pytest.raises(RuntimeError, match="layer '0': its codes do not give the weights"):
        deployment_of(trained[3])


def test_a_wrong_number_anywhere_in_an_export_is_seen(trained):
    """Negative control of the comparison above."""
    network = trained[3]
    x = torch.randn(50, *SHAPE)
    expected = network.model(x)
    assert expected.std(dim=0).min() > 0

    def differs(change) -> bool:
        found = deployment_of(network)
        layers = [asdict(layer) for layer in found.layers]
        change(layers, found.tensors)
        return not torch.equal(deployed(build_model(MODEL), layers, found.tensors)(x), expected)

    def step(layers, tensors):
        layers[1]["input"]["step"] = (tensors["3.input.step"] * 1.01).item()
        tensors["3.input.step"] = torch.tensor(layers[1]["input"]["step"])

    assert not differs(lambda layers, tensors: None)
    assert differs(step)
    assert differs(lambda layers, tensors: layers[1]["input"].update(shift=0.0))
    assert differs(lambda layers, tensors: layers[0]["input"].update(highest=3))
    assert differs(lambda layers, tensors: layers[1].update(input=None))
    assert differs(lambda layers, tensors: tensors["3.weight.codes"][0].clamp_(1, 1))
    assert differs(lambda layers, tensors: tensors["1.running_var"].mul_(1.5))


@pytest.mark.parametrize("bits", [2, 3, 8, 16])
def test_codes_times_factor_are_the_quantizers_own_values(bits):
    torch.manual_seed(bits)
    w = torch.randn(5000) * 0.3
    w[:3] = torch.tensor([0.5, 1.5, -0.5]) * 0.125  # ties
    step, high = torch.tensor(0.125), 2 ** (bits - 1) - 1
    codes = codes_of(w, step, -high - 1, high)
    assert torch.equal(dequantized(codes, "step", step, high), lsq(w, step, -high - 1, high, 1.0))
    assert codes[:3].tolist() == [0, min(2, high), 0]
    codes, scale = dorefa_codes(w, bits)
    assert torch.equal(dequantized(codes, "dorefa", scale, 2**bits - 1), dorefa(w, bits))


def test_what_does_not_fit_is_refused(trained, tmp_path):
    network = trained[3]
    with pytest.raises(ModelError, match="does not fit"):
        loaded(trained, model=replace(MODEL, num_classes=7))
    with pytest.raises(ModelError, match="ranges are given for 5 layers and the network calls 6"):
        loaded(trained, kinds={k: v for k, v in network.kinds.items() if k != "3"})
    with pytest.raises(ModelError, match="each range one of"):
        loaded(trained, kinds={**network.kinds, "3": "act_odd"})
    with pytest.raises(CheckpointError, match="cannot read"):
        loaded(trained, weights=tmp_path / "none.pt")
    other = trace_costs(build_model(MODEL), name=MODEL.name, input_shape=(2, 8, 8))
    with pytest.raises(PolicyError):
        loaded(trained, costs=other)


def test_a_step_that_was_never_set_is_named(trained):
    network = trained[3]
    network.layers["3"].act_quantizer.forget()
    with pytest.raises(ModelError, match="3 input: its step size at 2 bits was never set"):
        deployment_of(network)


def test_the_memory_layout_is_the_recipe_s_in_the_network_and_torch_s_in_an_export(trained):
    network = loaded(trained, recipe=replace(trained[0], channels_last=True))
    layout = torch.channels_last
    assert network.layers["3"].weight.is_contiguous(memory_format=layout)
    assert not network.layers["3"].weight.is_contiguous()
    assert all(t.is_contiguous() for t in deployment_of(network).tensors.values())
    plain = deployment_of(loaded(trained)).tensors
    for name, value in deployment_of(network).tensors.items():
        assert torch.equal(value, plain[name])


def test_what_an_image_goes_through_is_told_without_the_images():
    grey = {"mean": [0.3], "std": [0.2]}
    assert input_rule(DataSpec(name="parquet", options=grey)) == grey
    options = {"resolution": 96, "eval_resize": 110, "interpolation": "bicubic", **grey}
    assert input_rule(DataSpec(name="imagefolder", options=options)) == {
        "interpolation": "bicubic", "shorter_side": 110, "crop": 96, **grey,
    }  # fmt: skip
    digits, rule = load_data(DataSpec(name="digits"), 0).test, input_rule(DataSpec(name="digits"))
    expected = (digits.pixels.float() / 255 - rule["mean"][0]) / rule["std"][0]
    torch.testing.assert_close(digits.batch(torch.arange(450), None)[0], expected)
    with pytest.raises(DataError, match="unknown data set"):
        input_rule(DataSpec(name="digit"))
