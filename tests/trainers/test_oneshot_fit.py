"""An additive table from verdicts: what a planted truth gives back, and the phase."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch

from solvers.controls import random_policy
from solvers.errors import LimitError
from solvers.limits import parse_limit
from solvers.parquet import read_table
from solvers.problem import build_problem
from solvers.solve import SolveRequest, solve
from solvers.storage import load_costs, load_importance, save_costs
from solvers.tables import BitChoices, CostTable, ImportanceTable, LayerBits, LayerSpec
from trainers.checkpoint import save_tensors
from trainers.costs import trace_costs
from trainers.errors import InterruptedPhaseError
from trainers.limpq.config import IndicatorConfig
from trainers.models import build_model
from trainers.oneshot.additive import Step, cross_validated, design, rows_of, steps_of, tau
from trainers.oneshot.additive import solve as solve_steps
from trainers.oneshot.config import FittedConfig
from trainers.oneshot.ledger import COLUMNS, SCHEMA, TABLE
from trainers.oneshot.sampling import level_of, sample
from trainers.phases import DataSpec, ModelSpec, PhaseContext, PhaseSpec
from trainers.registry import find_phase

MODEL = ModelSpec(name="cifar_resnet8", options={"in_channels": 1, "base_width": 4})
CHOICES = BitChoices(weight_bits=(2, 3, 4), act_bits=(2, 3, 4))
RECIPE = FittedConfig(policies=30, images=64, bn_images=32, batch=32, folds=3)


@pytest.fixture(scope="module")
def joint(tmp_path_factory):
    folder = tmp_path_factory.mktemp("joint")
    torch.manual_seed(0)
    model = build_model(MODEL)
    save_tensors(folder / "start.pt", model.state_dict())
    save_costs(folder / "costs.parquet", trace_costs(model, name=MODEL.name, input_shape=(1, 8, 8)))
    recipe = IndicatorConfig(steps=12, batch_size=64, lr=0.05)
    run(spec_of(folder, "limpq.indicators", recipe), folder)
    return folder


def spec_of(folder, phase="oneshot.fit", config=RECIPE):
    return PhaseSpec(
        phase=phase,
        model=MODEL,
        data=DataSpec(name="digits"),
        config=config,
        seed=0,
        inputs={
            "weights": str(folder / "start.pt"),
            "costs": str(folder / "costs.parquet"),
            "joint": str(folder / "joint.pt"),
        },
        choices=CHOICES,
    )


def run(spec, folder, **context):
    return find_phase(spec.phase)(spec, replace(PhaseContext.alone(folder), **context))


@pytest.fixture(scope="module")
def problem(joint):
    costs = load_costs(joint / "costs.parquet")
    limit = parse_limit("bitops_level=32x32")
    return build_problem(costs, CHOICES, [limit], importance=None)


# --- the sample


def test_the_sample_covers_the_range_evenly_and_tells_weights_from_activations(problem):
    config = replace(RECIPE, policies=200)
    proposals = sample(problem, config, np.random.default_rng(0))
    picks = [p.picks for p in proposals]
    assert len(set(picks)) == len(picks) > 190
    assert sum(p.origin == "uniform" for p in proposals) == 9
    levels = np.array([level_of(problem, p) for p in picks])
    assert levels.min() == 2.0
    assert levels.max() == 4.0
    counts, _ = np.histogram(levels, bins=4, range=(2, 4))
    assert counts.min() > 30
    means = np.array([
        [np.mean([getattr(problem.bits_by_name(p)[n.name], t) for n in problem.costs.searched])
         for t in ("weight_bits", "act_bits")] for p in picks
    ])  # fmt: skip
    middle = (levels > 2.7) & (levels < 3.3)
    assert (means[middle, 0] - means[middle, 1]).std() > 0.4


def test_levels_bound_the_sample_and_must_be_reachable(problem):
    config = replace(RECIPE, levels=(2.4, 2.6))
    levels = [level_of(problem, p.picks) for p in sample(problem, config, np.random.default_rng(0))]
    assert min(levels) > 2.3
    assert max(levels) <= 2.6
    with pytest.raises(LimitError, match="reach 2 to 4"):
        sample(problem, replace(RECIPE, levels=(5.0, 6.0)), np.random.default_rng(0))


def conv(name, macs, pinned=None):
    return LayerSpec(
        name=name, kind="conv", num_macs=macs, num_macs_unfloored=macs, num_weights=1000,
        num_biases=0, num_inputs=10, num_outputs=10, pinned=pinned,
    )  # fmt: skip


@pytest.mark.parametrize("macs", [1000, 1001, 1003, 1234567])
@pytest.mark.parametrize(
    ("weight_bits", "act_bits", "least"), [((2,), (3,), 6.0), ((2, 3), (3, 5), 6.0)]
)
def test_the_least_use_itself_is_a_level(weight_bits, act_bits, least, macs):
    # The square of sqrt(6) is 5.999...96: rounded down, nothing meets it.
    pin = LayerBits(weight_bits=8, act_bits=8)
    costs = CostTable(
        model="m", input_shape=(3, 8, 8),
        layers=(conv("first", 10, pin), conv("a", macs), conv("b", 3 * macs), conv("c", 10, pin)),
    )  # fmt: skip
    choices = BitChoices(weight_bits=weight_bits, act_bits=act_bits)
    problem = build_problem(costs, choices, [parse_limit("bitops_level=32x32")], importance=None)
    config = replace(RECIPE, policies=20, levels=(least**0.5,) * 2)
    for levels in (config, replace(config, levels=None)):
        found = sample(problem, levels, np.random.default_rng(0))
        assert level_of(problem, found[0].picks) == pytest.approx(least**0.5)


# --- the fit


def planted(problem, noise, seed=1, num=250):
    rng = np.random.default_rng(seed)
    steps = steps_of(problem.costs, CHOICES)
    sizes = rng.gamma(1.0, 1.0, len(steps))
    proposals = sample(problem, replace(RECIPE, policies=num), rng)
    x = design(steps, [problem.bits_by_name(p.picks) for p in proposals])
    y = 3.0 + x @ sizes + noise * rng.normal(size=len(x))
    bitops = np.array([level_of(problem, p.picks) ** 2 for p in proposals])
    return steps, sizes, x, y, bitops


def test_a_planted_additive_truth_comes_back(problem):
    steps, sizes, x, y, bitops = planted(problem, 0.0)
    fit = cross_validated(steps, x, y, bitops, 5, np.random.default_rng(0))
    np.testing.assert_allclose(fit.sizes, sizes, atol=1e-2 * sizes.max())
    assert fit.r2 > 0.9999
    assert min(fit.tau, fit.tau_within) > 0.98


def test_with_noise_the_ridge_helps_and_is_honest(problem):
    steps, sizes, x, y, bitops = planted(problem, 2.0)
    fit = cross_validated(steps, x, y, bitops, 5, np.random.default_rng(0))
    bare = solve_steps(steps, x, y, 1e-9, np.zeros(len(steps)))
    assert ((fit.sizes - sizes) ** 2).sum() < ((bare - sizes) ** 2).sum()
    # What is told of noise alone stays below what is told of the truth.
    assert fit.r2 < 1.0 - 2.0**2 / y.var() + 0.05
    nothing = cross_validated(
        steps, x, np.random.default_rng(5).normal(size=len(y)), bitops, 5, np.random.default_rng(0)
    )
    assert nothing.r2 < 0.1
    assert abs(nothing.tau_within) < 0.25


def test_the_solver_solves_the_normal_equations_within_the_signs(problem):
    """Optimality: no gradient where a size is positive, none that would lower one at zero."""
    steps, _, x, y, _ = planted(problem, 3.0, num=60)
    strength = 0.1
    sizes = solve_steps(steps, x, y, strength, np.zeros(len(steps)))

    def objective(at):
        kinds = {}
        for i, s in enumerate(steps):
            kinds.setdefault((s.tensor, s.bits), []).append(i)
        c = x - x.mean(0)
        unit = np.trace(c.T @ c / len(y)) / len(steps)
        pull = sum(((at[m] - at[m].mean()) ** 2).sum() for m in kinds.values())
        rest = y - y.mean() - c @ at
        return (rest**2).mean() / 2 + strength * unit * pull / 2

    best = objective(sizes)
    assert (sizes >= 0).all()
    assert (sizes == 0).any()
    for i in range(len(steps)):
        for change in (1e-3, -1e-3):
            at = sizes.copy()
            at[i] = max(0.0, at[i] + change)
            assert objective(at) >= best - 1e-8


def test_rows_fall_with_bits_keep_the_ratio_and_predict(problem):
    steps, _, x, y, bitops = planted(problem, 0.0)
    fit = cross_validated(steps, x, y, bitops, 5, np.random.default_rng(0))
    rows = rows_of(fit, problem.costs, CHOICES)
    values = {(r.layer, r.tensor, r.bits): r.value for r in rows}
    assert len(values) == 6 * 2 * 3
    for (layer, tensor, bits), value in values.items():
        assert value > 0
        if bits > 2:
            assert value <= values[layer, tensor, bits - 1]
    first = steps.index(Step(layer="layer1.0.conv1", tensor="act", bits=2, next_bits=3))
    fall = values["layer1.0.conv1", "act", 2] - values["layer1.0.conv1", "act", 3]
    assert fall == pytest.approx(fit.sizes[first])


def test_the_solver_s_policy_on_a_fitted_table_is_the_planted_best(problem):
    steps, sizes, x, y, bitops = planted(problem, 0.0)
    fit = cross_validated(steps, x, y, bitops, 5, np.random.default_rng(0))
    costs = problem.costs
    table = ImportanceTable(
        model=costs.model, fingerprint=costs.fingerprint, method="fitted", seed=0,
        data_fingerprint="d", rows=rows_of(fit, costs, CHOICES),
    )  # fmt: skip
    limits = (parse_limit("bitops_level=2.5x2.5"),)

    def truth(policy):
        return float((design(steps, [policy.bits_by_name()]) @ sizes)[0])

    answer = solve(
        SolveRequest(costs=costs, importance=table, alpha=1.0, limits=limits, choices=CHOICES)
    )
    others = [random_policy(costs, CHOICES, limits, seed=s) for s in range(200)]
    assert truth(answer.policy) <= min(truth(p) for p in others if p is not None) + 1e-9


def test_tau_counts_pairs():
    assert tau(np.array([1.0, 2, 3]), np.array([1.0, 3, 2])) == pytest.approx(1 / 3)
    assert tau(np.array([1.0, 1]), np.array([1.0, 2])) == 0


# --- the phase


@pytest.fixture(scope="module")
def found(joint, tmp_path_factory):
    folder = tmp_path_factory.mktemp("found")
    return run(spec_of(joint), folder), folder


def rows_in(folder):
    return read_table(folder / TABLE, SCHEMA, COLUMNS)[1]


def test_the_phase_leaves_a_table_the_solver_takes(joint, found):
    result, folder = found
    table = load_importance(folder / result.outputs["importance"])
    assert table.method == "fitted"
    costs = load_costs(joint / "costs.parquet")
    answer = solve(
        SolveRequest(
            costs=costs, importance=table, alpha=1.0, choices=CHOICES,
            limits=(parse_limit("bitops_level=3x3"),),
        )
    )  # fmt: skip
    assert answer.policy is not None
    rows = rows_in(folder)
    assert result.metrics["evaluations"] == len(rows["loss"]) == len(set(rows["policy_id"]))
    assert len(rows["loss"]) >= 28
    assert -1 <= result.metrics["heldout_tau_within"] <= 1
    assert result.facts["uniform_top1"].keys() >= {"W2A2", "W4A4"}
    assert result.cost.forward_passes == 3 * len(rows["loss"])


def test_a_stopped_fit_goes_on_to_the_same_table(joint, found, tmp_path):
    asked = iter([False] * 11 + [True])
    with pytest.raises(InterruptedPhaseError):
        run(spec_of(joint), tmp_path, should_stop=lambda: next(asked))
    result = run(spec_of(joint), tmp_path)
    assert rows_in(tmp_path) == rows_in(found[1])
    assert result.metrics == found[0].metrics
    tables = [load_importance(f / "importance.parquet") for f in (tmp_path, found[1])]
    assert tables[0] == tables[1]


@pytest.mark.parametrize("fit", ["loss", "log_loss"])
def test_loss_and_its_logarithm_can_be_what_is_additive(joint, found, tmp_path, fit):
    for name in (TABLE,):  # the verdicts are there: only the fit is new
        (tmp_path / name).write_bytes((found[1] / name).read_bytes())
    result = run(spec_of(joint, config=replace(RECIPE, fit=fit)), tmp_path)
    assert result.facts["fit"] == fit
    assert result.cost.images == found[0].cost.images
