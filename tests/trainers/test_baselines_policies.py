"""How HAWQ, HAWQ-V3 and EdMIPS turn what they measured into bits."""

from __future__ import annotations

import math
from itertools import product

import pytest
import torch

from solvers.errors import LimitError
from solvers.limits import parse_limit
from solvers.problem import build_problem
from solvers.storage import load_policy, save_costs
from solvers.tables import (
    BitChoices,
    CostTable,
    ImportanceTable,
    LayerBits,
    LayerSpec,
    TensorLife,
)  # fmt: skip
from trainers.baselines import hawq_v3
from trainers.baselines.config import EdmipsConfig, HawqV3Config, RandomSearchConfig
from trainers.baselines.edmips import (
    chosen,
    expected_cost,
    make_optimizer,
    mixed,
    target_of,
    unit_of_cost,
)  # fmt: skip
from trainers.baselines.hawq import climb, ladders_of
from trainers.baselines.hawq_v3 import with_tied_readers
from trainers.baselines.table import importance_rows
from trainers.checkpoint import save_tensors
from trainers.costs import trace_costs
from trainers.metamix.architecture import Architecture, units_of
from trainers.models import build_model
from trainers.phases import DataSpec, ModelSpec, PhaseContext, PhaseSpec
from trainers.quant.wrap import quantize_network
from trainers.registry import find_phase
from trainers.source_config import PolicySearch

CHOICES = BitChoices(weight_bits=(2, 4, 8), act_bits=(2, 4, 8))
PIN = LayerBits(weight_bits=8, act_bits=8)


def layer(name, num_macs, num_weights=100, pinned=None, group=None):
    return LayerSpec(
        name=name, kind="conv", num_macs=num_macs, num_macs_unfloored=num_macs,
        num_weights=num_weights, num_biases=0, num_inputs=50, num_outputs=50, pinned=pinned,
        group=group,
    )  # fmt: skip


def table(*layers, tensors=()):
    return CostTable(model="m", input_shape=(1, 8, 8), layers=layers, tensors=tensors)


COSTS = table(
    layer("first", 100, pinned=PIN), layer("a", 1000, 50), layer("b", 300, 200),
    layer("c", 2000, 100), layer("d", 500, 400), layer("last", 10, pinned=PIN),
)  # fmt: skip
EIGENVALUES = {"a": 1.0, "b": 40.0, "c": 5.0, "d": 2.0}
ERRORS = {
    (name, "weight", bits): 3.0 * 4.0**-bits * (1 + i)
    for i, name in enumerate("abcd")
    for bits in (2, 4, 8)
}


@pytest.mark.parametrize("level", ["2x2", "2.5x3", "3x3", "4x4", "5x6", "8x8"])
def test_hawq_never_gives_fewer_bits_to_a_layer_before_another(level):
    problem = build_problem(
        COSTS, CHOICES, (parse_limit(f"bitops_level={level}"),), importance=None
    )
    ladders = ladders_of(problem, EIGENVALUES, ERRORS)
    order = [problem.units[rung.unit].label for rung in ladders]
    assert order == ["b", "c", "a", "d"]  # lambda / weights: 0.2, 0.05, 0.02, 0.005
    bits = climb(problem, ladders)
    widths = [bits[name].weight_bits for name in order]
    assert widths == sorted(widths, reverse=True)
    assert all(bits[name].weight_bits == bits[name].act_bits for name in order)
    assert problem.fits(bits)
    assert bits["first"] == bits["last"] == PIN
    # Nothing that keeps the order fits any more.
    for i, name in enumerate(order):
        above = 8 if i == 0 else bits[order[i - 1]].weight_bits
        wider = [w for w in (4, 8) if bits[name].weight_bits < w <= above][:1]
        for w in wider:
            assert not problem.fits(bits | {name: LayerBits(weight_bits=w, act_bits=w)})


def test_hawq_meets_two_limits_at_once_and_says_when_it_cannot():
    limits = (parse_limit("bitops_level=5x5"), parse_limit("mean_weight_bits=3"))
    problem = build_problem(COSTS, CHOICES, limits, importance=None)
    bits = climb(problem, ladders_of(problem, EIGENVALUES, ERRORS))
    assert problem.fits(bits)
    assert sum(bits[n].weight_bits for n in "abcd") <= 12
    tight = build_problem(COSTS, CHOICES, (parse_limit("bitops=10000"),), importance=None)
    assert climb(tight, ladders_of(tight, EIGENVALUES, ERRORS)) is None


def test_hawq_keeps_its_order_where_a_layer_has_widths_of_its_own():
    # ``b`` comes first and may take 4 bits at most; ``c`` has none below 3: rungs are no bits.
    choices = BitChoices(
        weight_bits=(2, 4, 8), act_bits=(2, 4, 8),
        overrides=(("b", (2, 4), (2, 4)), ("c", (3, 4, 8), (3, 4, 8))),
    )  # fmt: skip
    errors = {(n, "weight", w): 3.0 * 4.0**-w for n in "abcd" for w in (2, 3, 4, 8)}
    problem = build_problem(COSTS, choices, (parse_limit("bitops_level=8x8"),), importance=None)
    ladders = ladders_of(problem, EIGENVALUES, errors)
    assert [rung.weight_bits for rung in ladders[1].rungs] == [3, 4, 8]
    bits = climb(problem, ladders)
    # Nothing but the order stops a layer at this limit: none goes beyond the 4 bits of the first.
    assert [bits[name].weight_bits for name in "bcad"] == [4, 4, 4, 4]


def test_layers_of_a_group_climb_together():
    costs = table(layer("a", 100, group="g"), layer("b", 100), layer("c", 100, group="g"))
    problem = build_problem(costs, CHOICES, (parse_limit("bitops_level=5x5"),), importance=None)
    ladders = ladders_of(problem, EIGENVALUES, ERRORS)
    assert [len(problem.units[r.unit].layers) for r in ladders] == [1, 2]
    bits = climb(problem, ladders)
    assert bits["a"] == bits["c"]


def test_layers_that_read_one_tensor_share_bits():
    layers = [layer(n, 100) for n in "abcde"] + [layer("f", 100, pinned=PIN)]
    lives = [("a", "b"), ("b", "c"), ("d",), ("e", "f")]
    tensors = tuple(TensorLife(num_elements=9, first_step=i, last_step=i + 1, layers=names)
                    for i, names in enumerate(lives))  # fmt: skip
    costs = table(*layers, tensors=tensors)
    tied = with_tied_readers(costs)
    groups = [s.group for s in tied]
    assert groups == ["a", "a", "a", None, None, None]  # a pinned reader ties nobody
    assert tied.fingerprint == costs.fingerprint
    named = table(layer("a", 100, group="g"), layer("b", 100), tensors=tensors[:1])
    assert len({s.group for s in with_tied_readers(named)}) == 1
    assert with_tied_readers(COSTS) == COSTS


MODEL = ModelSpec(name="cifar_resnet8", options={"in_channels": 1, "base_width": 4})


@pytest.fixture(scope="module")
def start(tmp_path_factory):
    folder = tmp_path_factory.mktemp("start")
    torch.manual_seed(0)
    model = build_model(MODEL)
    save_tensors(folder / "weights.pt", model.state_dict())
    costs = trace_costs(model, name=MODEL.name, input_shape=(1, 8, 8))
    save_costs(folder / "costs.parquet", costs)
    return folder, costs


def run(start, folder, name, config, limits, choices=CHOICES):
    spec = PhaseSpec(
        phase=f"baselines.{name}", model=MODEL, data=DataSpec(name="digits"), seed=0,
        config=PolicySearch(source=config, limits=limits), choices=choices,
        inputs={"weights": str(start[0] / "weights.pt"), "costs": str(start[0] / "costs.parquet")},
    )  # fmt: skip
    return find_phase(spec.phase)(spec, PhaseContext.alone(folder))


SMALL = {"images": 64, "batch_size": 64, "min_probes": 2, "max_probes": 2}


def test_hawq_v3_takes_the_least_omega_of_all_policies_of_4_and_8_bits(
    start, tmp_path, monkeypatch
):
    asked = []
    solve = hawq_v3.solve
    monkeypatch.setattr(hawq_v3, "solve", lambda request: asked.append(request) or solve(request))
    limits = ("bitops_level=6x6", "mean_weight_bits=6")
    result = run(start, tmp_path, "hawq_v3", HawqV3Config(**SMALL), limits)
    policy = load_policy(tmp_path / "policy.json")
    (request,) = asked
    values = request.importance.values()
    names = [s.name for s in start[1].searched]
    problem = build_problem(start[1], request.choices, request.limits, importance=None)

    def omega(widths):
        return sum(values[n, "weight", w] for n, w in zip(names, widths, strict=True))

    best = math.inf
    for widths in product((4, 8), repeat=len(names)):
        pairs = {
            n: LayerBits(weight_bits=w, act_bits=w) for n, w in zip(names, widths, strict=True)
        }
        if problem.fits({s.name: pairs.get(s.name, s.pinned) for s in start[1]}):
            best = min(best, omega(widths))
    found = policy.bits_by_name()
    assert all(found[n].weight_bits == found[n].act_bits in (4, 8) for n in names)
    assert omega([found[n].weight_bits for n in names]) == pytest.approx(best, rel=1e-9)
    assert result.metrics["reached_share"] <= 1.0
    assert (policy.source, result.facts["status"]) == ("hawq_v3", "PROVEN_OPTIMAL")


def test_hawq_v3s_program_is_the_notebooks_in_x_of_1_and_2():
    rng = torch.Generator().manual_seed(0)
    names = "abcdefgh"
    trace, error_8 = torch.rand(2, 8, generator=rng, dtype=torch.float64)
    error_4 = error_8 + 5.0 * torch.rand(8, generator=rng, dtype=torch.float64)
    macs = [1000, 2500, 400, 1600, 900, 3100, 700, 1200]
    weights = [40, 310, 80, 500, 120, 90, 260, 330]
    # d and e read one tensor, as a block's first convolution and its downsample do.
    tensors = (TensorLife(num_elements=9, first_step=0, last_step=1, layers=("d", "e")),)
    costs = table(
        *(layer(n, m, w) for n, m, w in zip(names, macs, weights, strict=True)), tensors=tensors
    )
    omega = {(n, "weight", 4): float(t * e) for n, t, e in zip(names, trace, error_4, strict=True)}
    omega |= {(n, "weight", 8): float(t * e) for n, t, e in zip(names, trace, error_8, strict=True)}
    omega |= {(n, "act", b): 0.0 for n in names for b in (4, 8)}
    importance = ImportanceTable(
        model="m", fingerprint=costs.fingerprint, method="hawq_v3", seed=0, data_fingerprint="x",
        rows=importance_rows("hawq_v3", omega)[0],
    )  # fmt: skip
    bops = sum(16 * m for m in macs) + 0.5 * sum((64 - 16) * m for m in macs)
    size = sum(4 * w for w in weights) + 0.4 * sum((8 - 4) * w for w in weights)
    spec = PhaseSpec(
        phase="baselines.hawq_v3", model=MODEL, data=DataSpec(name="digits"), seed=0, inputs={},
        config=PolicySearch(
            source=HawqV3Config(), limits=(f"bitops={bops:.0f}", f"weight_bytes={size / 8:.0f}")
        ),
        choices=BitChoices(weight_bits=(4, 8), act_bits=(4, 8), tied=True),
    )  # fmt: skip
    solved = hawq_v3._solve(importance, with_tied_readers(costs), spec, HawqV3Config())
    gains = (trace * (error_8 - error_4)).tolist()
    by_objective = []
    for x in product((1, 2), repeat=8):
        fits = sum((16 + (i - 1) * 48) * m for i, m in zip(x, macs, strict=True)) <= int(bops)
        fits &= sum(4 * i * w for i, w in zip(x, weights, strict=True)) <= 8 * round(size / 8)
        if fits:
            by_objective.append((sum((i - 1) * g for i, g in zip(x, gains, strict=True)), x))
    by_objective.sort()
    best = next(x for _, x in by_objective if x[3] == x[4])
    assert by_objective[0][1] != best  # the tie decides
    found = solved.policy.bits_by_name()
    assert [found[n].weight_bits for n in names] == [4 * i for i in best]


def test_hawq_v3_has_no_policy_below_4_bits_and_says_so(start, tmp_path):
    result = run(start, tmp_path, "hawq_v3", HawqV3Config(**SMALL), ("bitops_level=3x3",))
    assert "policy" not in result.outputs
    assert not (tmp_path / "policy.json").exists()
    assert result.facts["reason"] == "no policy of [4, 8] bits meets the limits (INFEASIBLE)"
    assert result.cost.hvps == 2  # what it cost to find out


def test_random_search_draws_each_policy_once_and_keeps_the_best(start, tmp_path):
    config = RandomSearchConfig(
        images=64, batch_size=64, evaluations=5, bn_reestimate_images=64, keep="loss"
    )
    result = run(start, tmp_path, "random_search", config, ("bitops_level=4x4",))
    ids, losses = result.facts["policy_ids"], result.facts["losses"]
    assert len(set(ids)) == len(losses) == result.metrics["evaluations"] == 5
    assert result.facts["policy_id"] == ids[losses.index(min(losses))]
    assert result.metrics["best_loss"] == min(losses)
    # Two passes for the steps' bounds and histograms, then statistics and loss of each policy.
    assert result.cost.forward_passes == 2 + 5 * 2


def test_random_search_ends_when_there_is_nothing_new_to_draw(start, tmp_path):
    config = RandomSearchConfig(images=32, batch_size=32, evaluations=9, bn_reestimate_images=0)
    one = BitChoices(weight_bits=(4,), act_bits=(4,))
    result = run(start, tmp_path, "random_search", config, ("bitops_level=4x4",), one)
    assert result.metrics["evaluations"] == 1


@pytest.fixture
def searching(start):
    torch.manual_seed(1)
    model = build_model(MODEL)
    sample = torch.randn(16, 1, 8, 8)
    network = quantize_network(model, choices=CHOICES, sample=sample)
    network.initialize([sample])
    architecture = Architecture(units_of(start[1], CHOICES), 0.01)
    with torch.no_grad():
        for i, alpha in enumerate(architecture.alphas):
            alpha.copy_(torch.randn(3, generator=torch.Generator().manual_seed(i)))
    search = PolicySearch(source=EdmipsConfig(), limits=("bitops_level=4x4",))
    return network, architecture, target_of(search, start[1], CHOICES)


def test_edmips_penalty_is_macs_times_expected_bits_over_the_first_layer(searching, start):
    _, architecture, target = searching
    costs = start[1]
    bits = torch.tensor([2.0, 4.0, 8.0], dtype=torch.float64)
    total = 0.0
    for s in costs.searched:
        expected = [
            (torch.softmax(architecture.alpha_of(s.name, t).double(), 0) * bits).sum()
            for t in ("weight", "act")
        ]
        total = total + s.num_macs * expected[0] * expected[1]
    assert unit_of_cost(costs, target) == costs.searched[0].num_macs
    cost = expected_cost(target, architecture)
    assert float(cost.detach()) == pytest.approx(float(total.detach()), rel=1e-12)
    (cost / unit_of_cost(costs, target)).backward()
    gradients = [alpha.grad.clone() for alpha in architecture.alphas]
    architecture.zero_grad()
    (total / costs.searched[0].num_macs).backward()
    for alpha, gradient in zip(architecture.alphas, gradients, strict=True):
        torch.testing.assert_close(alpha.grad, gradient)


def test_edmips_mixes_the_quantized_versions_of_one_weight(searching):
    network, architecture, _ = searching
    name = network.searched[1]
    layer_ = network.layers[name]
    bank = layer_.weight_quantizer
    alpha = architecture.alpha_of(name, "weight")
    before = network.bits()
    with mixed(network, architecture):
        mixture = bank(layer_.weight)
        assert network.layers["conv1"].weight_quantizer.bits == 8  # pinned
    p = torch.softmax(alpha, 0)
    parts = [p[i] * bank.quantize(layer_.weight, b) for i, b in enumerate((2, 4, 8))]
    torch.testing.assert_close(mixture, sum(parts))
    mixture.square().sum().backward()
    assert alpha.grad.abs().sum() > 0
    assert layer_.weight.grad.abs().sum() > 0
    assert network.bits() == before
    assert bank.mix is None


def test_edmips_steps_weights_and_logits_at_rates_of_their_own(searching):
    network, architecture, _ = searching
    optimizer = make_optimizer(network, architecture, EdmipsConfig(lr=0.1, alpha_lr=0.01))
    logits = {id(a) for a in architecture.parameters()}
    (own,) = [g for g in optimizer.param_groups if id(g["params"][0]) in logits]
    assert own["lr_factor"] == pytest.approx(0.1)
    assert len(own["params"]) == len(logits)
    others = [g for g in optimizer.param_groups if id(g["params"][0]) not in logits]
    assert {g["lr_factor"] for g in others} == {1.0}


def test_edmips_repairs_its_argmax_or_says_how_far_it_is_off(searching):
    _, architecture, target = searching
    with torch.no_grad():
        for alpha in architecture.alphas:
            alpha.copy_(torch.tensor([0.0, 1.0, 3.0]))  # 8 bits everywhere
    kept = chosen(architecture, target, EdmipsConfig(repair="none"))
    assert kept.cost == target.cost_of(architecture.selected()) > 2 * target.bound
    assert not kept.in_band
    repaired = chosen(architecture, target, EdmipsConfig())
    assert 0.99 * target.bound <= repaired.cost <= target.bound
    assert repaired.changed


def test_edmips_expects_of_the_whole_network(start, tmp_path):
    # Logits that do not move: 14 / 3 bits of every searched tensor, beside what the pins take.
    config = EdmipsConfig(
        steps=1, batch_size=64, init_batches=2, alpha_lr=1e-12, lr=1e-9, alpha_init=0.0
    )
    result = run(start, tmp_path, "edmips", config, ("bitops_level=4x4",))
    expected = sum(
        s.num_macs * ((14 / 3) ** 2 if s.pinned is None else 64) for s in start[1].layers
    )
    assert result.metrics["expected_share"] == pytest.approx(
        expected / result.metrics["target"], rel=1e-6
    )


def test_edmips_aims_at_one_limit_within_reach(start):
    def aim(*limits):
        return target_of(PolicySearch(source=EdmipsConfig(), limits=limits), start[1], CHOICES)

    with pytest.raises(LimitError, match="one limit, not at 2"):
        aim("bitops_level=4x4", "mean_act_bits=4")
    with pytest.raises(LimitError, match="below the smallest"):
        aim("bitops_level=1x1")
    # Where everything fits the widest candidates are the aim.
    assert aim("bitops_level=16x16").bound == aim("bitops_level=8x8").bound
