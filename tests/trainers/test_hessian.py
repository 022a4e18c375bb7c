"""Hutchinson's traces against exact ones, and the phase on digits."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch import nn

from solvers.parquet import read_table
from tests.trainers.small_start import MODEL, small_start
from trainers.checkpoint import save_tensors
from trainers.errors import DivergedError, InterruptedPhaseError
from trainers.hessian import converged, products, rademacher
from trainers.metamix.evidence_config import HessianConfig
from trainers.metamix.tables import HESSIAN_COLUMNS, HESSIAN_SCHEMA
from trainers.meters import Meter
from trainers.models import build_model
from trainers.phases import DataSpec, PhaseContext, PhaseSpec
from trainers.registry import find_phase

CONFIG = HessianConfig(images=48, batch_size=32, min_probes=2, max_probes=6, tol=0.0)


def exact_traces(model, weights, batch):
    """The diagonal of the Hessian, one entry at a time."""
    loss = nn.functional.cross_entropy(model(batch[0]), batch[1])
    gradients = torch.autograd.grad(loss, weights, create_graph=True)
    traces = []
    for gradient, weight in zip(gradients, weights, strict=True):
        trace = 0.0
        for i in range(weight.numel()):
            (row,) = torch.autograd.grad(gradient.flatten()[i], weight, retain_graph=True)
            trace += row.flatten()[i].item()
        traces.append(trace)
    return traces


@pytest.fixture(scope="module")
def tiny():
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Conv2d(1, 3, 3), nn.BatchNorm2d(3), nn.Tanh(), nn.Flatten(), nn.Linear(12, 4)
    )
    model.double().eval()
    images = torch.randn(20, 1, 4, 4).double()
    # Labels the network agrees with: far from them the Hessian is mostly noise around zero.
    return model, [model[0].weight, model[4].weight], (images, model(images).argmax(dim=1))


def test_the_estimate_is_within_three_standard_errors_of_the_exact_trace(tiny):
    model, weights, batch = tiny
    meter = Meter()
    rows = torch.stack(
        [products(model, weights, rademacher(weights, 0, i), batch, 20, meter) for i in range(200)]
    )
    exact = exact_traces(model, weights, batch)
    assert meter.total().hvps == meter.total().backward_passes == 200
    errors = rows.std(dim=0) / 200**0.5
    for mean, error, trace in zip(rows.mean(dim=0), errors, exact, strict=True):
        assert abs(float(mean) - trace) < 3 * float(error)
        # Else the interval would hold anything.
        assert float(error) < 0.25 * abs(trace)


def test_products_of_parts_add_up_to_that_of_the_whole(tiny):
    model, weights, (images, labels) = tiny
    probe = rademacher(weights, 0, 0)
    whole = products(model, weights, probe, (images, labels), 20, Meter())
    parts = sum(
        products(model, weights, probe, (images[i::2], labels[i::2]), 20, Meter()) for i in (0, 1)
    )
    torch.testing.assert_close(parts, whole, rtol=1e-10, atol=1e-12)


def test_probes_are_signs_that_depend_on_seed_and_number_alone(tiny):
    _, weights, _ = tiny
    first = rademacher(weights, 1, 0)
    assert all(((v == 1) | (v == -1)).all() for v in first)
    assert all(torch.equal(a, b) for a, b in zip(first, rademacher(weights, 1, 0), strict=True))
    assert not torch.equal(first[0], rademacher(weights, 1, 1)[0])
    assert not torch.equal(first[0], rademacher(weights, 2, 0)[0])


@pytest.mark.parametrize(
    ("rows", "is_settled"),
    [
        ([[-1.0], [-1.0], [-1.01]], True),
        # A change of 50 % of a negative mean: without abs() it would count as settled.
        ([[-1.0], [-1.0], [-2.5]], False),
        ([[0.0], [0.0], [0.0]], True),
        ([[1.0, 1.0], [1.0, 1.0], [1.0, 4.0]], False),
        ([[1.0], [1.0]], False),
    ],
)
def test_every_layer_must_settle_whatever_its_sign(rows, is_settled):
    config = HessianConfig(min_probes=3, tol=0.01)
    assert converged([torch.tensor(row).double() for row in rows], config) is is_settled


@pytest.fixture(scope="module")
def inputs(tmp_path_factory):
    return small_start(tmp_path_factory.mktemp("start"))


def run(config, inputs, folder, **context):
    spec = PhaseSpec(
        phase="hessian", model=MODEL, data=DataSpec(name="digits"), config=config, seed=0,
        inputs=inputs,
    )  # fmt: skip
    return find_phase("hessian")(spec, replace(PhaseContext.alone(folder), **context))


def rows_of(folder):
    return read_table(folder / "hessian.parquet", HESSIAN_SCHEMA, HESSIAN_COLUMNS)[1]


def test_the_phase_writes_a_trace_for_every_layer_and_counts_its_products(inputs, tmp_path):
    result = run(CONFIG, inputs, tmp_path)
    rows = rows_of(tmp_path)
    assert rows["layer"][0] == "conv1"
    assert rows["layer"][-1] == "linear"
    assert rows["num_weights"][0] == 4 * 9
    assert len({*rows["trace"]}) == len(rows["layer"]) == 8
    assert all(error > 0 for error in rows["standard_error"])
    # Six probes over batches of 32 and 16 images.
    assert (result.cost.hvps, result.cost.images) == (12, 6 * 48)
    assert result.facts["converged"] is False
    assert run(CONFIG, inputs, tmp_path).metrics == result.metrics


def test_the_batch_size_changes_no_trace(inputs, tmp_path):
    run(CONFIG, inputs, tmp_path / "a")
    run(replace(CONFIG, batch_size=11), inputs, tmp_path / "b")
    assert rows_of(tmp_path / "b")["trace"] == pytest.approx(rows_of(tmp_path / "a")["trace"], 1e-4)


def test_a_loose_tolerance_ends_it_early(inputs, tmp_path):
    result = run(replace(CONFIG, tol=1.0, min_probes=3, max_probes=100), inputs, tmp_path)
    assert result.metrics["num_probes"] < 100
    assert result.facts["converged"] is True


def test_it_goes_on_where_it_was_stopped(inputs, tmp_path):
    whole = run(CONFIG, inputs, tmp_path / "whole")
    asked = iter(range(1, 100))
    with pytest.raises(InterruptedPhaseError, match="after probe 3"):
        run(CONFIG, inputs, tmp_path / "cut", should_stop=lambda: next(asked) >= 3)
    resumed = run(CONFIG, inputs, tmp_path / "cut")
    assert rows_of(tmp_path / "cut") == rows_of(tmp_path / "whole")
    assert resumed.cost.hvps == whole.cost.hvps


def test_weights_that_are_not_finite_are_named(inputs, tmp_path):
    state = build_model(MODEL).state_dict()
    state["linear.weight"][0, 0] = float("nan")
    save_tensors(tmp_path / "weights.pt", state)
    broken = {**inputs, "weights": str(tmp_path / "weights.pt")}
    with pytest.raises(DivergedError, match="not finite in layer"):
        run(CONFIG, broken, tmp_path / "out")
