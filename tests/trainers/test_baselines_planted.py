"""A network with one layer that is known to be sensitive: who notices, and does it help?

Six layers stand beside a skip connection at 1 % of its weight; the trunk between them has none, so
everything passes through it, and its output channels are of very different scales (the norm after
it takes them back: the function is the trained one), which one step size a tensor cannot hold.
"""

from __future__ import annotations

import sys
from dataclasses import replace
from functools import cache
from types import ModuleType

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from solvers.controls import random_policy
from solvers.limits import parse_limit
from solvers.result import SolveRequest
from solvers.solve import solve
from solvers.storage import load_costs, load_importance, load_policy, save_costs
from solvers.tables import BitChoices
from trainers.baselines.calibration import calibrate
from trainers.baselines.config import (
    CalibrationConfig,
    EdmipsConfig,
    HawqConfig,
    HawqV2Config,
    HawqV3Config,
    OneLayerLossConfig,
    QuantizationErrorConfig,
    RandomSearchConfig,
)  # fmt: skip
from trainers.baselines.step_rule import choose_steps
from trainers.checkpoint import load_tensors, save_tensors
from trainers.costs import trace_costs
from trainers.limpq.config import IndicatorConfig
from trainers.meters import Meter
from trainers.oneshot.config import FittedConfig, OneShotConfig
from trainers.oneshot.judge import make_judge
from trainers.phases import DataSpec, ModelSpec, PhaseContext, PhaseSpec
from trainers.recipes import PretrainConfig
from trainers.registry import find_phase
from trainers.source_config import PolicySearch
from trainers.sources import source_named

# How much a layer beside the skip counts. Joint training makes up for whatever layers at 1 % get,
# and then most policies are alike: the searches on its weights have a network of their own.
GAIN, JOINT_GAIN = 0.01, 0.3
SEEN = {"images": 96, "batch_size": 96}
PROBES = {"min_probes": 3, "max_probes": 4}
CHOICES = BitChoices(weight_bits=(2, 4, 8), act_bits=(2, 4, 8))
# Room for the trunk at 8 bits if the six others stay at 2.
LIMIT = "bitops_level=3.6x3.6"
EDMIPS = EdmipsConfig(
    steps=30, batch_size=96, lr=0.01, alpha_lr=1.0, decay_every=100, complexity_decay=0.002
)
JOINT = IndicatorConfig(steps=12, batch_size=96, lr=0.01)
JUDGE = {"images": 96, "bn_images": 96, "batch": 96}
SOURCES = {
    "plain": ("quantization_error", QuantizationErrorConfig(**SEEN, weighting="plain")),
    "fisher": ("quantization_error", QuantizationErrorConfig(**SEEN, weighting="fisher")),
    "one_layer_loss": ("one_layer_loss", OneLayerLossConfig(**SEEN)),
    "hawq_v2": ("hawq_v2", HawqV2Config(**SEEN, **PROBES)),
    "hawq": ("hawq", HawqConfig(**SEEN, max_iterations=4)),
    "hawq_v3": ("hawq_v3", HawqV3Config(**SEEN, **PROBES, bits=(2, 8))),
    "edmips": ("edmips", EDMIPS),
    "random_search": (
        "random_search", RandomSearchConfig(**SEEN, evaluations=40, bn_reestimate_images=0)
    ),
}  # fmt: skip
POLICIES = ("hawq", "hawq_v3", "edmips", "random_search")
NUM_VERDICTS = 60
ON_JOINT_WEIGHTS = {
    "one_shot": PolicySearch(
        source=OneShotConfig(
            **JUDGE, evaluations=NUM_VERDICTS, population=12, parents=5, mutation=0.15
        ),
        limits=(LIMIT,),
    ),
    "fitted": FittedConfig(**JUDGE, policies=NUM_VERDICTS, folds=4),
}


class Planted(nn.Module):
    def __init__(self, gain=GAIN):
        super().__init__()
        self.gain = gain
        self.first, self.norm = nn.Conv2d(1, 8, 3, padding=1), nn.BatchNorm2d(8)
        self.before = nn.ModuleList(nn.Conv2d(8, 8, 3, padding=1) for _ in range(3))
        self.trunk, self.trunk_norm = nn.Conv2d(8, 8, 3, padding=1, bias=False), nn.BatchNorm2d(8)
        self.after = nn.ModuleList(nn.Conv2d(8, 8, 3, padding=1) for _ in range(3))
        self.last = nn.Linear(8, 10)

    def forward(self, x):
        h = F.relu(self.norm(self.first(x)))
        for conv in self.before:
            h = F.relu(h + self.gain * conv(h))
        h = F.relu(self.trunk_norm(self.trunk(h)))
        for conv in self.after:
            h = F.relu(h + self.gain * conv(h))
        return self.last(h.mean(dim=(2, 3)))


MODEL = ModelSpec(name="planted_network:factory")
JOINT_MODEL = ModelSpec(name="planted_network:factory", options={"gain": JOINT_GAIN})
FILES = {"weights": "weights.pt", "costs": "costs.parquet", "joint": "joint/joint.pt"}


def spec_of(phase, config, inputs, model=MODEL):
    return PhaseSpec(
        phase=phase, model=model, data=DataSpec(name="digits"), config=config, seed=0,
        inputs=inputs, choices=CHOICES,
    )  # fmt: skip


@pytest.fixture(scope="module", autouse=True)
def network_module():
    module = ModuleType("planted_network")
    module.factory = lambda num_classes, gain=GAIN: Planted(gain)
    sys.modules["planted_network"] = module
    yield
    del sys.modules["planted_network"]


@pytest.fixture(scope="module")
def planted(tmp_path_factory):
    return plant(tmp_path_factory.mktemp("planted"), MODEL)


@pytest.fixture(scope="module")
def joint(tmp_path_factory):
    """The other network, trained at every width."""
    folder = plant(tmp_path_factory.mktemp("joint"), JOINT_MODEL)
    run(folder, "limpq.indicators", JOINT, folder / "joint", JOINT_MODEL)
    return folder


def plant(folder, model):
    spec = spec_of("pretrain", PretrainConfig(steps=90, batch_size=64, lr=0.1), {}, model)
    result = find_phase("pretrain")(spec, PhaseContext.alone(folder / "pretrain"))
    state = load_tensors(folder / "pretrain" / result.outputs["weights"])
    scales = torch.logspace(0, 1.4, 8)
    state["trunk.weight"] *= scales[:, None, None, None]
    state["trunk_norm.running_mean"] *= scales
    state["trunk_norm.running_var"] *= scales**2
    save_tensors(folder / "weights.pt", state)
    costs = trace_costs(Planted(), name="planted", input_shape=(1, 8, 8))
    save_costs(folder / "costs.parquet", costs)
    return folder


@pytest.fixture(scope="module")
def found(planted):
    """Result and folder of a source, run once for all tests."""

    @cache
    def of(name):
        source, config = SOURCES[name]
        if name in POLICIES:
            config = PolicySearch(source=config, limits=(LIMIT,))
        return run(planted, source_named(source).phase, config, planted / name), planted / name

    return of


def run(planted, phase, config, folder, model=MODEL):
    inputs = {role: str(planted / file) for role, file in FILES.items()}
    spec = spec_of(phase, config, inputs, model)
    return find_phase(phase)(spec, PhaseContext.alone(folder))


def policy_of(planted, found, name):
    return policy_in(planted, *found(name))


def policy_in(planted, result, folder):
    if "policy" in result.outputs:
        return load_policy(folder / result.outputs["policy"])
    request = SolveRequest(
        costs=load_costs(planted / "costs.parquet"),
        importance=load_importance(folder / result.outputs["importance"]),
        choices=CHOICES, limits=(parse_limit(LIMIT),), alpha=1.0,
    )  # fmt: skip
    return solve(request).policy


def loss_of(planted, policy):
    """Loss on the images all methods see, without any training: random search's own measure."""
    config = CalibrationConfig(**SEEN)
    inputs = {"weights": str(planted / "weights.pt"), "costs": str(planted / "costs.parquet")}
    spec = spec_of("baselines.random_search", None, inputs)
    calibration = calibrate(spec, PhaseContext.alone(planted / "judge"), config)
    choose_steps(calibration, config)
    calibration.network.set_bits({n: (b.weight_bits, b.act_bits) for n, b in policy.layers})
    return calibration.loss_and_top1()[0]


@pytest.mark.parametrize("name", ["plain", "fisher", "one_layer_loss", "hawq_v2"])
def test_the_sensitive_layer_comes_first_in_every_table(found, name):
    result, folder = found(name)
    values = load_importance(folder / result.outputs["importance"]).values()
    for bits in (2, 4):
        column = {k[0]: v for k, v in values.items() if k[1:] == ("weight", bits)}
        order = sorted(column, key=column.__getitem__, reverse=True)
        assert order[0] == "trunk"
        assert column["trunk"] > 3 * column[order[1]]
    if name == "plain":
        return  # it knows nothing of what an activation's error does
    column = {k[0]: v for k, v in values.items() if k[1:] == ("act", 2)}
    assert max(column, key=column.__getitem__) == "trunk"


def test_the_sensitive_layer_comes_first_in_hawqs_order(found):
    result, _ = found("hawq")
    assert result.facts["order"][0] == "trunk"


@pytest.mark.parametrize("name", [n for n in SOURCES if n != "plain"])
def test_the_sensitive_layer_keeps_its_bits(planted, found, name):
    bits = policy_of(planted, found, name).bits_by_name()
    others = [b for n, b in bits.items() if n.startswith(("before", "after"))]
    assert bits["trunk"].weight_bits == 8
    if name != "random_search":
        assert all(b.weight_bits * b.act_bits < 16 for b in others)


@pytest.mark.parametrize("name", [n for n in SOURCES if n not in ("plain", "random_search")])
def test_a_search_beats_random_policies_at_equal_passes(planted, found, name):
    result, _ = found(name)
    passes = result.cost.forward_passes + result.cost.backward_passes + result.cost.hvps
    # Two passes of either go to the steps; edmips has none, and costs more passes than it needs.
    config = RandomSearchConfig(**SEEN, evaluations=max(1, passes - 2), bn_reestimate_images=0)
    random = run(
        planted, "baselines.random_search", PolicySearch(source=config, limits=(LIMIT,)),
        planted / f"random-{name}",
    )  # fmt: skip
    assert random.cost.forward_passes <= passes
    assert loss_of(planted, policy_of(planted, found, name)) < random.metrics["best_loss"]


@pytest.mark.parametrize("name", ON_JOINT_WEIGHTS)
def test_a_search_on_joint_weights_beats_random_policies_on_them_at_equal_passes(joint, name):
    source, config = source_named(name), ON_JOINT_WEIGHTS[name]
    result = run(joint, source.phase, config, joint / name, JOINT_MODEL)
    policy = policy_in(joint, result, joint / name)
    # Both start from the same joint training; a verdict is a pass for BatchNorm and one for the
    # loss, whoever asks for it.
    num_verdicts = int(result.metrics["evaluations"])
    assert 55 <= num_verdicts <= NUM_VERDICTS
    assert (result.cost.forward_passes, result.cost.backward_passes) == (2 * num_verdicts, 0)
    inputs = {role: str(joint / file) for role, file in FILES.items()}
    search = ON_JOINT_WEIGHTS["one_shot"]
    spec = spec_of("oneshot.search", search, inputs, JOINT_MODEL)
    judge, _ = make_judge(spec, PhaseContext.alone(joint / "judge"), search.source, Meter())
    costs, limits = load_costs(joint / "costs.parquet"), (parse_limit(LIMIT),)
    losses = [
        judge(random_policy(costs, CHOICES, limits, seed=seed).bits_by_name()).loss
        for seed in range(num_verdicts)
    ]
    assert judge(policy.bits_by_name()).loss < min(losses)
    assert policy.bits_by_name()["trunk"].weight_bits == 8


def test_random_search_beats_as_many_policies_that_nobody_looked_at(planted, found):
    result, folder = found("random_search")
    costs = load_costs(planted / "costs.parquet")
    others = [
        loss_of(planted, random_policy(costs, CHOICES, (parse_limit(LIMIT),), seed=i))
        for i in range(10)
    ]
    best = loss_of(planted, load_policy(folder / result.outputs["policy"]))
    assert best == pytest.approx(result.metrics["best_loss"])
    assert best < sum(others) / len(others)


def test_the_plant_changes_nothing_in_full_precision(planted):
    config = CalibrationConfig(**SEEN)
    losses = []
    for weights in ("weights.pt", "pretrain/weights.pt"):
        inputs = {"weights": str(planted / weights), "costs": str(planted / "costs.parquet")}
        spec = replace(spec_of("baselines.random_search", None, inputs))
        calibration = calibrate(spec, PhaseContext.alone(planted / "judge"), config)
        losses.append(calibration.loss_and_top1()[0])
    assert losses[0] == pytest.approx(losses[1], rel=1e-3)
