"""Joint indicator training: n + 1 passes, one update, an indicator a layer, tensor and width."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace

import pytest
import torch
from torch.nn import functional as F

from solvers.errors import SolversError
from solvers.storage import load_importance, save_costs
from solvers.tables import BitChoices
from trainers.checkpoint import load_tensors, save_tensors, state_hash
from trainers.costs import trace_costs
from trainers.data import load_data
from trainers.errors import InterruptedPhaseError, ModelError
from trainers.limpq.config import IndicatorConfig
from trainers.limpq.indicators import JointStep
from trainers.limpq.passes import random_bits, uniform_passes
from trainers.meters import Meter
from trainers.models import build_model
from trainers.phases import DataSpec, ModelSpec, PhaseContext, PhaseSpec
from trainers.quant.options import QuantOptions
from trainers.quant.wrap import quantize_network
from trainers.registry import find_phase

MODEL = ModelSpec(name="cifar_resnet8", options={"in_channels": 1, "base_width": 4})
CHOICES = BitChoices(weight_bits=(2, 4, 6), act_bits=(2, 4, 6))
RECIPE = IndicatorConfig(steps=3, batch_size=32, lr=0.01)
LAYERS = [f"layer{stage}.0.conv{i}" for stage in (1, 2, 3) for i in (1, 2)]
DIGITS = load_data(DataSpec(name="digits"), 0).train


@pytest.fixture(scope="module")
def start(tmp_path_factory):
    """Untrained weights and the cost table of the small network."""
    folder = tmp_path_factory.mktemp("start")
    torch.manual_seed(0)
    model = build_model(MODEL)
    save_tensors(folder / "weights.pt", model.state_dict())
    save_costs(folder / "costs.parquet", trace_costs(model, name=MODEL.name, input_shape=(1, 8, 8)))
    return folder


def spec_of(start, recipe=RECIPE, **changes):
    spec = PhaseSpec(
        phase="limpq.indicators",
        model=MODEL,
        data=DataSpec(name="digits"),
        config=recipe,
        seed=0,
        inputs={"weights": str(start / "weights.pt"), "costs": str(start / "costs.parquet")},
        choices=CHOICES,
    )
    return replace(spec, **changes)


def run(spec, folder, **context):
    return find_phase(spec.phase)(spec, replace(PhaseContext.alone(folder), **context))


@pytest.fixture(scope="module")
def learned(start, tmp_path_factory):
    folder = tmp_path_factory.mktemp("learned")
    return run(spec_of(start), folder), folder


# --- which passes


def test_uniform_passes_go_from_wide_to_narrow_and_reach_every_candidate():
    assert uniform_passes(CHOICES) == ((6, 6), (4, 4), (2, 2))
    uneven = BitChoices(weight_bits=(4,), act_bits=(2, 3, 8))
    assert uniform_passes(uneven) == ((4, 8), (4, 3), (4, 2))


@pytest.mark.parametrize("how", ["tied", "separate"])
def test_random_bits_are_those_of_seed_and_update(how):
    drawn = random_bits(LAYERS, CHOICES, how, 3, 17)
    torch.manual_seed(5)
    torch.rand(100)
    assert drawn == random_bits(LAYERS, CHOICES, how, 3, 17)
    assert drawn != random_bits(LAYERS, CHOICES, how, 3, 18)
    assert drawn != random_bits(LAYERS, CHOICES, how, 4, 17)
    assert list(drawn) == LAYERS


def test_tied_draws_one_width_for_both_and_separate_draws_two():
    def pairs(how):
        return Counter(
            pair for u in range(300) for pair in random_bits(LAYERS, CHOICES, how, 0, u).values()
        )

    tied, separate = pairs("tied"), pairs("separate")
    assert set(tied) == {(2, 2), (4, 4), (6, 6)}
    assert set(separate) == {(w, a) for w in (2, 4, 6) for a in (2, 4, 6)}
    # 1800 draws: five standard deviations of a fair draw are 100 and 71.
    assert all(abs(count - 600) < 100 for count in tied.values())
    assert all(abs(count - 200) < 71 for count in separate.values())


# --- the gradient of one update


def joint(recipe, dtype=torch.float64, **options):
    torch.manual_seed(0)
    model = build_model(MODEL).to(dtype)
    sample = DIGITS.batch(torch.arange(32), None)[0].to(dtype)
    network = quantize_network(
        model, choices=CHOICES, sample=sample, batchnorm="switchable",
        options=QuantOptions(**options),
    )  # fmt: skip
    network.initialize([sample])
    network.model.to(dtype)
    return network, JointStep(network, CHOICES, recipe, 0, Meter())


def gradients(network):
    return {
        name: torch.zeros_like(p) if p.grad is None else p.grad.clone()
        for name, p in network.model.named_parameters()
    }


def one_pass(network, bits, recipe, batch):
    network.model.zero_grad(set_to_none=True)
    network.set_uniform(bits) if isinstance(bits, tuple) else network.set_bits(bits)
    loss = F.cross_entropy(
        network.model(batch[0]), batch[1], label_smoothing=recipe.label_smoothing
    )
    loss.backward()
    return gradients(network), loss.item()


@pytest.mark.parametrize("aggregate", ["sum", "mean"])
@pytest.mark.parametrize("random_pass", ["tied", "separate", "none"])
def test_the_gradient_is_the_aggregate_of_passes_computed_apart(aggregate, random_pass):
    recipe = replace(RECIPE, aggregate=aggregate, random_pass=random_pass)
    images, labels = DIGITS.batch(torch.arange(40, 72), None)
    batch = (images.double(), labels)
    network, step = joint(recipe)
    passes = list(uniform_passes(CHOICES))
    if random_pass != "none":
        passes.append(random_bits(network.searched, CHOICES, random_pass, 0, 9))
    apart = [one_pass(network, bits, recipe, batch) for bits in passes]

    network, step = joint(recipe)
    loss = step.accumulate(batch, 9)
    scale = 1.0 if aggregate == "sum" else 1.0 / len(passes)
    for name, found in gradients(network).items():
        expected = scale * sum(g[name] for g, _ in apart)
        torch.testing.assert_close(found, expected, rtol=1e-9, atol=1e-12, msg=name)
    assert loss.item() == pytest.approx(sum(value for _, value in apart) / len(passes), rel=1e-9)
    assert step.meter.forward_passes == step.meter.backward_passes == len(passes)
    assert step.meter.images == 32 * len(passes)


def test_every_step_size_of_every_width_gets_a_gradient():
    network, step = joint(replace(RECIPE, random_pass="none"), step_range=None)
    images, labels = DIGITS.batch(torch.arange(40, 72), None)
    step.accumulate((images.double(), labels), 0)
    for layer, tensor, bank in network.banks():
        if layer not in network.searched:
            continue
        assert bank.steps.grad is not None
        assert (bank.steps.grad != 0).all(), (layer, tensor)


# --- the whole phase


def test_there_is_one_optimizer_step_for_an_update(start, tmp_path, monkeypatch):
    calls = []
    step = torch.optim.SGD.step
    monkeypatch.setattr(torch.optim.SGD, "step", lambda *a, **k: calls.append(1) or step(*a, **k))
    result = run(spec_of(start), tmp_path)
    assert len(calls) == 3
    assert result.cost.forward_passes == result.cost.backward_passes == 3 * (3 + 1)
    assert result.cost.images == 3 * (3 + 1) * 32
    assert result.facts["num_updates"] == 3


def test_the_learned_table_has_a_positive_entry_for_each_layer_tensor_and_width(learned):
    result, folder = learned
    table = load_importance(folder / result.outputs["importance"])
    assert table.method == "limpq"
    assert len(table.rows) == 2 * 3 * len(LAYERS)
    keys = [(row.layer, row.tensor, row.bits) for row in table.rows]
    assert set(keys) == {(n, t, b) for n in LAYERS for t in ("weight", "act") for b in (2, 4, 6)}
    assert all(row.value > 0 for row in table.rows)


def test_resnet18_has_the_paper_s_190_indicators():
    model = build_model(ModelSpec(name="resnet18", num_classes=1000))
    choices = BitChoices(weight_bits=(2, 3, 4, 5, 6), act_bits=(2, 3, 4, 5, 6))
    network = quantize_network(model, choices=choices, sample=torch.rand(1, 3, 32, 32))
    assert sum(len(network.layers[n].weight_quantizer.steps) for n in network.searched) == 19 * 5
    assert sum(len(network.layers[n].act_quantizer.steps) for n in network.searched) == 19 * 5


def test_the_initial_table_is_statistics_and_learning_moves_it(start, learned):
    result, folder = learned
    initial = load_importance(folder / result.outputs["initial"])
    table = load_importance(folder / result.outputs["importance"])
    assert initial.method == "limpq-initial"
    weights = load_tensors(start / "weights.pt")
    for name in LAYERS:
        w = weights[f"{name}.weight"].double()
        widest = max(abs(w.mean() - 3 * w.std()), abs(w.mean() + 3 * w.std()))
        for bits in (2, 4, 6):
            value = initial.values()[name, "weight", bits]
            assert value == pytest.approx(float(widest / 2 ** (bits - 1)), rel=1e-5)
    assert initial.values().keys() == table.values().keys()
    moved = [table.values()[k] / v for k, v in initial.values().items()]
    assert sum(ratio != 1.0 for ratio in moved) > 0.9 * len(moved)
    # At most a factor 1.1 in each of 3 updates (quant/guard.py).
    assert all(1.1**-3 - 1e-6 <= ratio <= 1.1**3 + 1e-6 for ratio in moved)


def test_constant_start_gives_every_layer_the_same_indicators(start, tmp_path):
    recipe = replace(RECIPE, weight_init="constant", act_init="constant")
    result = run(spec_of(start, recipe), tmp_path)
    for (_, _, bits), value in (
        load_importance(tmp_path / result.outputs["initial"]).values().items()
    ):
        assert value == pytest.approx(0.1 / bits)


def test_weights_are_learned_jointly_unless_frozen(start, learned, tmp_path):
    before = load_tensors(start / "weights.pt")
    result, folder = learned
    joint_state = load_tensors(folder / result.outputs["weights"])
    frozen_result = run(spec_of(start, replace(RECIPE, freeze_weights=True)), tmp_path)
    frozen_state = load_tensors(tmp_path / frozen_result.outputs["weights"])
    names = [n for n in before if n.endswith(("conv1.weight", "conv2.weight", "linear.bias"))]
    names += ["linear.weight"]
    assert len(names) == 9
    for name in names:
        assert not torch.equal(joint_state[name], before[name]), name
        assert torch.equal(frozen_state[name], before[name]), name
    # Step sizes and BatchNorm go on learning.
    values = load_importance(tmp_path / frozen_result.outputs["importance"]).values()
    assert values != load_importance(tmp_path / frozen_result.outputs["initial"]).values()
    assert not torch.equal(frozen_state["bn1.weight"], before["bn1.weight"])


def test_batchnorm_has_a_copy_for_each_width_or_none(start, learned, tmp_path):
    assert learned[0].facts["switchable_batchnorms"] == len(LAYERS)
    shared = run(spec_of(start, replace(RECIPE, batchnorm="shared")), tmp_path)
    assert shared.facts["switchable_batchnorms"] == 0
    state = load_tensors(learned[1] / "weights.pt")
    means = [state[f"layer2.0.bn1.copies.{b}.running_mean"] for b in (2, 4, 6)]
    assert not torch.equal(means[0], means[1])
    assert not torch.equal(means[1], means[2])


def test_pinned_layers_run_quantized_or_in_full_precision(start, learned, tmp_path):
    quantized = load_tensors(learned[1] / "weights.pt")
    assert quantized["conv1.weight_quantizer.steps"].shape == (1,)
    assert quantized["linear.act_quantizer.steps"].shape == (1,)
    result = run(spec_of(start, replace(RECIPE, quantize_pinned=False)), tmp_path)
    plain = load_tensors(tmp_path / "weights.pt")
    for layer in ("conv1", "linear"):
        for bank in ("weight_quantizer", "act_quantizer"):
            assert plain[f"{layer}.{bank}.steps"].numel() == 0
    rows = load_importance(tmp_path / result.outputs["importance"]).rows
    assert {row.layer for row in rows} == set(LAYERS)


@pytest.mark.parametrize("drop", [True, False])
def test_a_gradient_of_zeros_is_dropped_or_decays(start, tmp_path, monkeypatch, drop):
    # A clamp that holds every step gives them no gradient; they must not decay either.
    recipe = replace(
        RECIPE,
        drop_zero_grads=drop,
        step_clamp=(50.0, 60.0),
        weight_decay=0.5,
        decay_vectors=True,
        max_step_change=None,
    )
    result = run(spec_of(start, recipe), tmp_path)
    initial = load_importance(tmp_path / result.outputs["initial"]).values()
    final = load_importance(tmp_path / result.outputs["importance"]).values()
    unchanged = [final[key] == value for key, value in initial.items()]
    assert all(unchanged) is drop
    assert any(unchanged) is drop


def test_more_batches_start_the_activations_in_full_precision(start, tmp_path):
    def initial(folder, batches):
        recipe = replace(RECIPE, steps=1, init_batches=batches, augment=False)
        result = run(spec_of(start, recipe), tmp_path / folder)
        table = load_importance(tmp_path / folder / result.outputs["initial"])
        return result, table.values()

    result, values = initial("three", 3)
    assert result.cost.forward_passes == 3 + 4
    assert result.cost.images == (3 + 4) * 32
    first, published = initial("one", 1)
    assert first.cost.forward_passes == 4
    weights = [key for key in values if key[1] == "weight"]
    assert {key: values[key] for key in weights} == {key: published[key] for key in weights}
    # In full precision every width sees the same input: starts are in the ratio of sqrt(Qp).
    for layer in LAYERS:
        wide, narrow = values[layer, "act", 6], values[layer, "act", 2]
        assert narrow / wide == pytest.approx((63 / 3) ** 0.5, rel=1e-5)
    assert any(values[n, "act", 2] != published[n, "act", 2] for n in LAYERS)


def test_the_share_of_images_is_half_by_default(start, tmp_path, learned):
    assert learned[0].facts["num_train_images"] == pytest.approx(1347 / 2, abs=5)
    whole = run(spec_of(start, replace(RECIPE, fraction=1.0, steps=1)), tmp_path)
    assert whole.facts["num_train_images"] == 1347


def test_the_same_seed_gives_the_same_table_and_another_another(start, learned, tmp_path):
    first = load_importance(learned[1] / "importance.parquet").values()
    run(spec_of(start), tmp_path / "again")
    assert load_importance(tmp_path / "again" / "importance.parquet").values() == first
    run(spec_of(start, seed=1), tmp_path / "other")
    assert load_importance(tmp_path / "other" / "importance.parquet").values() != first


def test_an_interrupted_run_ends_like_the_undisturbed_one(start, learned, tmp_path):
    asked = iter([False, True])
    with pytest.raises(InterruptedPhaseError):
        run(spec_of(start), tmp_path, should_stop=lambda: next(asked))
    result = run(spec_of(start), tmp_path)
    assert result.metrics == learned[0].metrics
    assert result.cost.images == learned[0].cost.images
    for name in ("importance.parquet", "importance-initial.parquet"):
        values = [load_importance(folder / name).values() for folder in (tmp_path, learned[1])]
        assert values[0] == values[1]
    states = [load_tensors(folder / "weights.pt") for folder in (tmp_path, learned[1])]
    assert state_hash(states[0]) == state_hash(states[1])


def test_a_finished_phase_is_not_run_again(start, learned, monkeypatch):
    def never(*args):
        raise AssertionError("it was run again")

    monkeypatch.setattr("trainers.limpq.indicators.make_data", never)
    assert run(spec_of(start), learned[1]) == learned[0]


def test_steps_that_the_published_clamp_holds_are_named(start, tmp_path):
    # Above the clamp a step has no gradient: its indicator is its start value, and says so.
    result = run(spec_of(start, replace(RECIPE, step_clamp=(1e-5, 0.3))), tmp_path)
    initial = load_importance(tmp_path / result.outputs["initial"]).values()
    final = load_importance(tmp_path / result.outputs["importance"]).values()
    held = [f"{layer} {tensor} {bits}" for (layer, tensor, bits), v in final.items() if v > 0.3]
    assert result.facts["clamped_steps"] == sorted(held)
    assert len(held) > 3
    stuck = [key for key, value in initial.items() if value > 0.33]
    assert all(final[key] == initial[key] for key in stuck)
    free = run(spec_of(start, replace(RECIPE, step_clamp=None)), tmp_path / "free")
    assert free.facts["clamped_steps"] == []


def test_a_step_that_crossed_zero_is_refused_by_name(start, tmp_path):
    recipe = replace(RECIPE, max_step_change=None, lr=50.0, clip_grad_value=None)
    with pytest.raises((SolversError, ModelError), match=r"layer|step"):
        run(spec_of(start, recipe), tmp_path)
    assert not (tmp_path / "result.json").exists()


# --- what it hands on


def test_plain_weights_start_a_plain_network_with_statistics_of_their_own(learned) -> None:
    result, folder = learned
    plain = load_tensors(folder / result.outputs["plain"])
    joint = load_tensors(folder / result.outputs["weights"])
    model = build_model(MODEL)
    model.load_state_dict(plain)  # strict: no quantizer and no copies left in it
    assert torch.equal(plain["layer1.0.conv1.weight"], joint["layer1.0.conv1.weight"])
    copies = [joint[f"layer1.0.bn1.copies.{bits}.weight"] for bits in (2, 4, 6)]
    assert torch.allclose(plain["layer1.0.bn1.weight"], torch.stack(copies).mean(0))
    # Statistics of the merged network, not a mean of the copies': they normalise its own input.
    means = [joint[f"layer1.0.bn1.copies.{bits}.running_mean"] for bits in (2, 4, 6)]
    assert not torch.allclose(plain["layer1.0.bn1.running_mean"], torch.stack(means).mean(0))
