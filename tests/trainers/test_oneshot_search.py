"""Policies judged by jointly trained weights: verdicts, evolution, resume, ranks."""

from __future__ import annotations

import itertools
from dataclasses import replace
from functools import partial

import numpy as np
import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing

from solvers.errors import LimitError
from solvers.limits import parse_limit
from solvers.parquet import read_table
from solvers.problem import build_problem
from solvers.storage import load_policy, save_costs
from solvers.tables import BitChoices, LayerBits
from trainers.checkpoint import load_tensors, save_tensors
from trainers.costs import trace_costs
from trainers.data.images import ImageSet
from trainers.errors import CheckpointError, DataError, DivergedError, InterruptedPhaseError
from trainers.evaluate import evaluate, reestimate_batchnorm
from trainers.limpq.config import IndicatorConfig
from trainers.limpq.joint import load_joint
from trainers.meters import Meter
from trainers.models import build_model
from trainers.oneshot import evolution, ledger
from trainers.oneshot.config import OneShotConfig
from trainers.oneshot.judge import make_judge
from trainers.oneshot.measure import Measured
from trainers.oneshot.search import search
from trainers.phases import DataSpec, ModelSpec, PhaseContext, PhaseSpec
from trainers.registry import find_phase
from trainers.source_config import PolicySearch

MODEL = ModelSpec(name="cifar_resnet8", options={"in_channels": 1, "base_width": 4})
CHOICES = BitChoices(weight_bits=(2, 3, 4), act_bits=(2, 3, 4))
RECIPE = OneShotConfig(evaluations=9, population=4, parents=3, images=64, bn_images=32, batch=32)
LIMITS = ("bitops_level=2.5x2.5",)


def spec_of(folder, phase, config, **changes):
    spec = PhaseSpec(
        phase=phase,
        model=MODEL,
        data=DataSpec(name="digits"),
        config=config,
        seed=0,
        inputs={"weights": str(folder / "start.pt"), "costs": str(folder / "costs.parquet")},
        choices=CHOICES,
    )
    return replace(spec, **changes)


@pytest.fixture(scope="module")
def joint(tmp_path_factory):
    """A folder with costs, start weights and a short joint training."""
    folder = tmp_path_factory.mktemp("joint")
    torch.manual_seed(0)
    model = build_model(MODEL)
    save_tensors(folder / "start.pt", model.state_dict())
    save_costs(folder / "costs.parquet", trace_costs(model, name=MODEL.name, input_shape=(1, 8, 8)))
    recipe = IndicatorConfig(steps=12, batch_size=64, lr=0.05)
    spec = spec_of(folder, "limpq.indicators", recipe)
    find_phase(spec.phase)(spec, PhaseContext.alone(folder))
    return folder


def search_spec(joint, recipe=RECIPE, limits=LIMITS, **changes):
    spec = spec_of(joint, "oneshot.search", PolicySearch(source=recipe, limits=limits), **changes)
    return replace(spec, inputs={**spec.inputs, "joint": str(joint / "joint.pt")})


def run(spec, folder, **context):
    return find_phase(spec.phase)(spec, replace(PhaseContext.alone(folder), **context))


def problem_of(joint, limits=LIMITS, choices=CHOICES):
    from solvers.storage import load_costs

    costs = load_costs(joint / "costs.parquet")
    return build_problem(costs, choices, [parse_limit(t) for t in limits], importance=None)


# --- the verdict on one policy


@pytest.mark.parametrize("norms", ["mean", "copies"])
def test_a_verdict_is_what_evaluation_finds_at_those_bits(joint, tmp_path, norms):
    recipe = replace(RECIPE, norms=norms)
    spec, context = search_spec(joint, recipe), PhaseContext.alone(tmp_path)
    judge, data = make_judge(spec, context, recipe, Meter())
    names = judge.network.searched
    bits = {n: LayerBits(weight_bits=2 + i % 3, act_bits=4 - i % 3) for i, n in enumerate(names)}
    other = {n: LayerBits(weight_bits=4, act_bits=2) for n in names}
    first = judge(bits)
    assert judge(other) != first
    assert judge(bits) == first  # nothing of the other policy stays behind

    network = load_joint(joint / "joint.pt", data, CHOICES, spec, context)
    if norms == "mean":
        network.merge_batchnorm("mean")
    network.set_bits(
        {**network.pinned, **{n: (b.weight_bits, b.act_bits) for n, b in bits.items()}}
    )
    reestimate_batchnorm(network.model, judge.norm_batches, 10**9, context, Meter())
    pixels = torch.cat([x for x, _ in judge.batches])
    labels = torch.cat([y for _, y in judge.batches])
    found = evaluate(network.model, Held(pixels, labels), 16, context, Meter())
    assert first.loss == pytest.approx(found["loss"], rel=1e-5)
    assert first.top1 == pytest.approx(found["top1"])


class Held(ImageSet):
    """Images as the judge holds them."""

    def __init__(self, pixels, labels):
        self.pixels, self.labels = pixels, labels

    def batch(self, indices, augmentation):
        return self.pixels[indices], self.labels[indices]

    def subset(self, indices):
        raise NotImplementedError


def test_images_are_seeded_apart_and_never_test_images(joint, tmp_path):
    judge, data = make_judge(search_spec(joint), PhaseContext.alone(tmp_path), RECIPE, Meter())
    again, _ = make_judge(search_spec(joint), PhaseContext.alone(tmp_path), RECIPE, Meter())
    other, _ = make_judge(search_spec(joint, seed=1), PhaseContext.alone(tmp_path), RECIPE, Meter())
    assert torch.equal(judge.batches[0][0], again.batches[0][0])
    assert not torch.equal(judge.batches[0][0], other.batches[0][0])
    assert sum(len(y) for _, y in judge.batches) == 64
    assert sum(len(y) for _, y in judge.norm_batches) == 32
    held = replace(search_spec(joint), data=DataSpec(name="digits", holdout=0.2))
    recipe = replace(RECIPE, images_from="holdout")
    judge, data = make_judge(held, PhaseContext.alone(tmp_path), recipe, Meter())
    pixels = data.holdout.batch(torch.arange(len(data.holdout)), None)[0].flatten(1)
    image = judge.batches[0][0][0].flatten()
    assert (pixels == image).all(1).any()
    with pytest.raises(DataError, match="holdout"):
        make_judge(search_spec(joint), PhaseContext.alone(tmp_path), recipe, Meter())
    with pytest.raises(DataError, match="2000 images"):
        make_judge(
            search_spec(joint), PhaseContext.alone(tmp_path), replace(RECIPE, images=2000), Meter()
        )


def test_a_plain_state_is_refused_by_name(joint, tmp_path):
    spec = search_spec(joint)
    spec = replace(spec, inputs={**spec.inputs, "joint": str(joint / "weights.pt")})
    with pytest.raises(CheckpointError, match="output 'joint'"):
        run(spec, tmp_path)


def test_joint_training_without_copies_and_with_open_pins_is_judged_too(joint, tmp_path):
    recipe = IndicatorConfig(
        steps=2, batch_size=64, batchnorm="shared", quantize_pinned=False, step_clamp=None
    )
    run(spec_of(joint, "limpq.indicators", recipe), tmp_path / "joint")
    spec = search_spec(joint)
    spec = replace(spec, inputs={**spec.inputs, "joint": str(tmp_path / "joint" / "joint.pt")})
    judge, _ = make_judge(spec, PhaseContext.alone(tmp_path), RECIPE, Meter())
    assert judge.network.pinned == {"conv1": (0, 0), "linear": (0, 0)}
    assert judge.network.layers["conv1"].weight_quantizer.options.step_range is None
    assert np.isfinite(judge({n: LayerBits(weight_bits=2, act_bits=2) for n in
                              judge.network.searched}).loss)  # fmt: skip


# --- proposals


def test_proposals_fit_use_their_limits_and_are_new(joint):
    problem = problem_of(joint, ("bitops_level=2.5x2.5", "mean_weight_bits=3"))
    rng = np.random.default_rng(0)
    first = evolution.first_generation(problem, RECIPE, rng)
    assert {p.origin for p in first} == {"uniform", "random"}
    known = {p.picks: None for p in first}
    children = evolution.next_generation(problem, list(known), known, RECIPE, rng)
    assert {p.origin for p in children} == {"mutation", "crossover"}
    picks = [p.picks for p in (*first, *children)]
    assert len(set(picks)) == len(picks) == 8
    for chosen in picks:
        assert problem.fits(problem.bits_by_name(chosen))
        assert evolution.use_share(problem, chosen) > 0.95


def test_limits_that_nothing_meets_are_refused(joint, tmp_path):
    with pytest.raises(LimitError, match="least use"):
        run(search_spec(joint, limits=("bitops_level=1.9x1.9",)), tmp_path)


# --- a space whose best is known


def made_ledger(problem, folder, **context):
    """Verdicts from a formula: a cost a layer and option, and one for unequal neighbours."""
    rng = np.random.default_rng(3)
    names = [layer.name for layer in problem.costs.searched]
    price = {
        (n, b): v for n in names for b, v in zip((4, 3, 2), sorted(rng.random(3)), strict=True)
    }

    def verdict(bits):
        values = [bits[n] for n in names]
        total = sum(price[n, b.weight_bits] + 2 * price[n, b.act_bits]
                    for n, b in zip(names, values, strict=True))  # fmt: skip
        total += 0.3 * sum(a.act_bits != b.act_bits for a, b in itertools.pairwise(values))
        return Measured(loss=total, top1=100 - total)

    context = replace(PhaseContext.alone(folder), **context)
    return ledger.Ledger(problem, verdict, 1, Meter(), context), verdict, context


def test_the_search_finds_the_best_of_a_small_space(joint, tmp_path):
    choices = BitChoices(weight_bits=(3,), act_bits=(2, 3, 4))
    problem = problem_of(joint, choices=choices, limits=("bitops_level=3x3",))
    book, verdict, context = made_ledger(problem, tmp_path)
    search(book, replace(RECIPE, evaluations=150, population=15, parents=5), 0, context)
    everything = itertools.product(*(range(len(u.options)) for u in problem.units))
    feasible = [bits for p in everything if problem.fits(bits := problem.bits_by_name(p))]
    best = min(verdict(bits).loss for bits in feasible)
    assert len(feasible) > 300
    assert min(e.measured.loss for e in book.entries.values()) == best


def test_a_used_up_space_ends_the_search_early(joint, tmp_path):
    problem = problem_of(
        joint, choices=BitChoices(weight_bits=(3,), act_bits=(3,)), limits=("bitops_level=3x3",)
    )
    book, _, context = made_ledger(problem, tmp_path)
    search(book, RECIPE, 0, context)
    assert len(book.entries) == 1


def test_a_verdict_that_is_no_number_ends_the_search(joint, tmp_path):
    problem = problem_of(joint)
    book, _, context = made_ledger(problem, tmp_path)
    book.judge = lambda bits: Measured(loss=float("inf"), top1=0.0)
    with pytest.raises(DivergedError, match="joint"):
        search(book, RECIPE, 0, context)


# --- the phase


@pytest.fixture(scope="module")
def found(joint, tmp_path_factory):
    folder = tmp_path_factory.mktemp("found")
    return run(search_spec(joint), folder), folder


def rows_of(folder):
    return read_table(folder / ledger.TABLE, ledger.SCHEMA, ledger.COLUMNS)[1]


def test_the_phase_yields_the_best_policy_it_judged(joint, found):
    result, folder = found
    rows = rows_of(folder)
    assert result.metrics["evaluations"] == len(rows["loss"]) == 9
    policy = load_policy(folder / result.outputs["policy"])
    best = rows["loss"].index(min(rows["loss"]))
    assert policy.policy_id == rows["policy_id"][best]
    assert policy.source == "one_shot"
    assert policy.cost.bitops == rows["bitops"][best]
    assert [b.act_bits for _, b in policy.layers] == rows["act_bits"][best]
    assert result.metrics["loss"] == min(rows["loss"])
    assert 0.9 < result.metrics["reached_share"] <= 1.0
    # 9 policies, each 1 pass for BatchNorm and 2 for the loss.
    assert result.cost.forward_passes == 27
    assert result.cost.images == 9 * 96
    assert result.cost.backward_passes == 0


def test_a_stopped_search_goes_on_to_the_same_end(joint, found, tmp_path):
    for answers in ([False, True], [False, False, True]):
        asked = iter(answers)
        with pytest.raises(InterruptedPhaseError, match="policies"):
            run(search_spec(joint), tmp_path, should_stop=partial(next, asked))
    assert len(rows_of(tmp_path)["loss"]) == 5
    result = run(search_spec(joint), tmp_path)
    assert rows_of(tmp_path) == rows_of(found[1])
    assert result.metrics == found[0].metrics
    assert result.cost.images == found[0].cost.images
    assert result.cost.forward_passes == found[0].cost.forward_passes


def test_a_finished_search_is_not_run_again(joint, found, monkeypatch):
    monkeypatch.setattr("trainers.oneshot.search.make_judge", None)
    assert run(search_spec(joint), found[1]) == found[0]


def test_error_as_metric_and_another_seed_search_elsewhere(joint, found, tmp_path):
    result = run(search_spec(joint, replace(RECIPE, metric="error")), tmp_path)
    assert result.metrics["top1"] == max(rows_of(tmp_path)["top1"])
    run(search_spec(joint, seed=1), tmp_path / "other")
    assert rows_of(tmp_path / "other")["policy_id"] != rows_of(found[1])["policy_id"]


def both_ranks(rank, joint, folder):
    torch.set_num_threads(1)
    dist.init_process_group(
        "gloo", init_method=f"file://{folder}/rendezvous", rank=rank, world_size=2
    )
    run(search_spec(joint), folder / "found", rank=rank, world_size=2)
    dist.destroy_process_group()


def test_two_ranks_find_what_one_finds(joint, found, tmp_path):
    torch.multiprocessing.spawn(both_ranks, args=(joint, tmp_path), nprocs=2)
    assert rows_of(tmp_path / "found") == rows_of(found[1])
    from trainers.results import load_result

    result = load_result(tmp_path / "found" / "result.json")
    assert result.metrics == found[0].metrics
    assert result.cost.images == found[0].cost.images
    assert result.cost.forward_passes == found[0].cost.forward_passes


def test_the_joint_file_is_the_state_and_how_it_was_wrapped(joint):
    stored = load_tensors(joint / "joint.pt")

    assert stored["settings"]["batchnorm"] == "switchable"
    assert stored["settings"]["step_clamp"] == [1e-5, 1.0]
    assert stored["state"]["layer1.0.conv1.act_quantizer.steps"].shape == (3,)
