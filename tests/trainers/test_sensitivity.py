"""One tensor at few bits: what is measured, what moves, and that nothing else does."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing
from torch.nn import functional as F

from solvers.parquet import read_table
from solvers.storage import save_costs
from trainers.checkpoint import save_tensors, state_hash
from trainers.costs import trace_costs
from trainers.data import load_data
from trainers.errors import DivergedError, InterruptedPhaseError, ModelError
from trainers.meters import Meter
from trainers.models import build_model
from trainers.oneshot.measure import Measured, Streamed, num_images
from trainers.phases import DataSpec, ModelSpec, PhaseContext, PhaseSpec
from trainers.registry import find_phase
from trainers.sensitivity import COLUMNS, SCHEMA, TABLE
from trainers.sensitivity_bench import Bench, Cell
from trainers.sensitivity_config import SensitivityConfig

MODEL = ModelSpec(name="cifar_resnet8", options={"in_channels": 1, "base_width": 4})
RECIPE = SensitivityConfig(
    bits=(2, 4), layers=("layer1.0.conv1", "layer3.0.conv2"), steps=3, batch_size=64, images=96,
    bn_images=64, lr=0.05,
)  # fmt: skip


@pytest.fixture(scope="module")
def start(tmp_path_factory):
    """A network that knows the digits a little, and its costs."""
    folder = tmp_path_factory.mktemp("start")
    torch.manual_seed(0)
    model = build_model(MODEL)
    train = load_data(DataSpec(name="digits"), 0).train
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    for k in range(30):
        images, labels = train.batch(torch.arange(k * 40, k * 40 + 64), None)
        optimizer.zero_grad()
        F.cross_entropy(model(images), labels).backward()
        optimizer.step()
    save_tensors(folder / "start.pt", model.state_dict())
    save_costs(folder / "costs.parquet", trace_costs(model, name=MODEL.name, input_shape=(1, 8, 8)))
    return folder


def spec_of(start, recipe=RECIPE):
    return PhaseSpec(
        phase="sensitivity",
        model=MODEL,
        data=DataSpec(name="digits"),
        config=recipe,
        seed=0,
        inputs={"weights": str(start / "start.pt"), "costs": str(start / "costs.parquet")},
    )


def run(spec, folder, **context):
    return find_phase(spec.phase)(spec, replace(PhaseContext.alone(folder), **context))


def rows_of(folder):
    _, columns = read_table(folder / TABLE, SCHEMA, COLUMNS)
    return list(zip(*columns.values(), strict=True))


@pytest.fixture(scope="module")
def found(start, tmp_path_factory):
    folder = tmp_path_factory.mktemp("found")
    return run(spec_of(start), folder), folder


def test_there_is_a_row_for_each_cell_and_fewer_bits_hurt_more(found):
    result, folder = found
    rows = rows_of(folder)
    keys = [row[:3] for row in rows]
    assert len(set(keys)) == len(keys) == 2 * 2 * 2
    loss = {row[:3]: row[3] for row in rows}
    for layer in RECIPE.layers:
        assert loss[layer, "weight", 2] > loss[layer, "weight", 4]
    assert all(row[3] > result.metrics["full_precision_loss"] - 0.05 for row in rows)
    # Three passes in full precision; then 1 + 2, 3 updates, 1 + 2 for each of 8 cells.
    assert result.cost.forward_passes == 3 + 8 * 9
    assert result.cost.backward_passes == 8 * 3
    assert result.cost.images == 160 + 8 * (2 * 160 + 3 * 64)


def test_training_mends_and_moves_the_step(start, found, tmp_path):
    assert all(row[7] != row[8] for row in rows_of(found[1]))
    # Measured where it learned: on test images a network this small shows noise.
    recipe = replace(RECIPE, bits=(2,), steps=15, lr=0.02, images_from="train", images=640)
    result = run(spec_of(start, recipe), tmp_path)
    rises = [row[3] - result.metrics["full_precision_loss"] for row in rows_of(tmp_path)]
    left = [row[5] - result.metrics["full_precision_loss"] for row in rows_of(tmp_path)]
    assert sum(rises) > 0.02
    assert sum(left) < 0.7 * sum(rises)


@pytest.mark.parametrize("tensor", ["weight", "both"])
def test_the_loss_without_training_is_that_of_the_formula(start, tmp_path, tensor):
    """Weights, and then inputs as well, rounded by hand, the rest untouched."""
    recipe = replace(
        RECIPE, bn_images=0, steps=0, images_from="train", bits=(3,), tensors=("act", tensor)
    )
    run(spec_of(start, recipe), tmp_path)
    rows = {r[:3]: r for r in rows_of(tmp_path)}
    row, act_step = rows["layer1.0.conv1", tensor, 3], rows["layer1.0.conv1", "act", 3][7]
    torch.manual_seed(0)
    model = build_model(MODEL)
    model.load_state_dict(torch.load(start / "start.pt", weights_only=True))
    weight = model.get_submodule("layer1.0.conv1").weight.data
    mean, std = weight.mean(), weight.std()
    step = max((mean - 3 * std).abs(), (mean + 3 * std).abs()) / 4
    assert row[7] == row[8] == pytest.approx(float(step), rel=1e-6)
    weight.copy_((weight / step).round().clamp(-4, 3) * step)
    bench = Bench(spec_of(start, recipe), PhaseContext.alone(tmp_path), recipe, Meter())
    x, y = (torch.cat(part) for part in zip(*bench.batches, strict=True))
    model.eval()
    if tensor == "both":
        # What it reads comes from a ReLU: eight levels from zero.
        model.get_submodule("layer1.0.conv1").register_forward_pre_hook(
            lambda _, read: ((read[0] / act_step).round().clamp(0, 7) * act_step,)
        )
    with torch.no_grad():
        logits = model(x)
    assert row[3] == pytest.approx(float(F.cross_entropy(logits, y)), rel=1e-5)
    assert row[4] == pytest.approx(100 * float((logits.argmax(1) == y).float().mean()))
    assert row[5:7] == row[3:5]


@pytest.mark.parametrize("train", ["step", "step_and_weights"])
@pytest.mark.parametrize("tensor", ["act", "both"])
def test_only_the_cell_s_layer_moves_and_the_next_starts_afresh(start, tmp_path, train, tensor):
    recipe = replace(RECIPE, train=train)
    bench = Bench(spec_of(start, recipe), PhaseContext.alone(tmp_path), recipe, Meter())
    cell, other = Cell("layer1.0.conv1", tensor, 2), Cell("layer3.0.conv2", "weight", 4)
    first = bench.cell(cell)
    moved = {
        name
        for name, value in bench.network.model.state_dict().items()
        if not torch.equal(value, bench.start[name]) and not name.endswith(
            ("running_mean", "running_var", "num_batches_tracked"))
    }  # fmt: skip
    expected = {"layer1.0.conv1.act_quantizer.steps"}
    if tensor == "both":
        expected.add("layer1.0.conv1.weight_quantizer.steps")
    if train == "step_and_weights":
        expected.add("layer1.0.conv1.weight")
    assert moved == expected
    start_hash = state_hash(bench.start)
    bench.cell(other)
    assert bench.cell(cell) == first
    assert state_hash(bench.start) == start_hash


def test_frozen_statistics_stay_frozen_through_the_short_training(start, tmp_path):
    recipe = replace(RECIPE, bn_images=0)
    bench = Bench(spec_of(start, recipe), PhaseContext.alone(tmp_path), recipe, Meter())
    bench.cell(Cell("layer1.0.conv1", "weight", 2))
    for name, value in bench.network.model.state_dict().items():
        if "running" in name:
            assert torch.equal(value, bench.start[name])


def test_a_sample_too_large_to_hold_is_decoded_anew_to_the_same_numbers(
    start, tmp_path, monkeypatch
):
    recipe = replace(RECIPE, layers=RECIPE.layers[:1], bits=(2,))
    held = run(spec_of(start, recipe), tmp_path / "held")
    # 96 images of 64 numbers no longer fit, the 64 for BatchNorm do.
    monkeypatch.setattr("trainers.oneshot.measure.HELD_BYTES", 4 * 64 * 64)
    context = PhaseContext.alone(tmp_path)
    bench = Bench(spec_of(start, recipe), context, recipe, Meter())
    assert isinstance(bench.batches, Streamed)
    assert isinstance(bench.norm_batches, tuple)
    assert torch.equal(bench.batches[-1][1], list(bench.batches)[1][1])
    assert num_images(bench.batches) == 96
    streamed = run(spec_of(start, recipe), tmp_path / "streamed")
    assert rows_of(tmp_path / "streamed") == rows_of(tmp_path / "held")
    assert streamed.cost.images == held.cost.images


def test_same_starts_are_the_paper_s_figure_3(start, tmp_path):
    recipe = replace(RECIPE, weight_init="constant", act_init="constant", steps=0)
    run(spec_of(start, recipe), tmp_path)
    assert {row[2]: pytest.approx(row[7]) for row in rows_of(tmp_path)} == {2: 0.05, 4: 0.025}


@pytest.mark.parametrize(("stop_at", "cells"), [(1, 0), (6, 1), (8, 2)])
def test_a_stopped_measurement_goes_on_to_the_same_end(start, found, tmp_path, stop_at, cells):
    """Asked at each of a cell's three updates and after it; the cell in hand is not waited for."""
    asked = iter([False] * (stop_at - 1) + [True])
    with pytest.raises(InterruptedPhaseError, match=f"{cells} of 8"):
        run(spec_of(start), tmp_path, should_stop=lambda: next(asked))
    result = run(spec_of(start), tmp_path)
    assert rows_of(tmp_path) == rows_of(found[1])
    assert result.metrics == found[0].metrics
    assert result.cost.images == found[0].cost.images
    assert result.cost.forward_passes == found[0].cost.forward_passes
    assert run(spec_of(start), tmp_path) == result


def test_an_unknown_layer_and_a_broken_loss_are_refused(start, tmp_path, monkeypatch):
    with pytest.raises(ModelError, match="no searched layer 'conv1'"):
        run(spec_of(start, replace(RECIPE, layers=("conv1",))), tmp_path)
    verdicts = iter([Measured(loss=1.0, top1=1.0)])

    def broken(*_):
        found = next(verdicts, None)
        if found is None:
            raise DivergedError("the loss is nan")
        return found

    monkeypatch.setattr("trainers.sensitivity_bench.measure", broken)
    with pytest.raises(DivergedError, match="weight at 2 bits"):
        run(spec_of(start), tmp_path)


def both_ranks(rank, start, folder):
    torch.set_num_threads(1)
    dist.init_process_group(
        "gloo", init_method=f"file://{folder}/rendezvous", rank=rank, world_size=2
    )
    run(spec_of(start), folder / "found", rank=rank, world_size=2)
    dist.destroy_process_group()


def test_two_ranks_measure_what_one_measures(start, found, tmp_path):
    torch.multiprocessing.spawn(both_ranks, args=(start, tmp_path), nprocs=2)
    assert rows_of(tmp_path / "found") == rows_of(found[1])


def test_an_update_in_parts_is_the_update_of_the_whole(start, found, tmp_path):
    one = replace(RECIPE, layers=RECIPE.layers[:1])
    rows = {}
    for parts in (1, 4):
        run(spec_of(start, replace(one, accumulate=parts)), tmp_path / str(parts))
        rows[parts] = rows_of(tmp_path / str(parts))
    for whole, cut in zip(rows[1], rows[4], strict=True):
        assert cut[:3] == whole[:3]
        assert cut[3:] == pytest.approx(whole[3:], rel=1e-3)
        # What the short training moved, not only where it began.
        assert cut[-1] - cut[-2] == pytest.approx(whole[-1] - whole[-2], rel=1e-3)
