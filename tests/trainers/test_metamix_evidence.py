"""The experiments behind Figures 1, 2 and 6 on digits."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from solvers.parquet import read_table
from solvers.storage import load_costs, save_costs
from solvers.tables import BitChoices, LayerBits
from tests.trainers.small_start import MODEL, small_start
from trainers.data import load_data
from trainers.errors import InterruptedPhaseError, ModelError
from trainers.metamix import tables
from trainers.metamix.evidence_config import DistributionConfig, DriftConfig
from trainers.optim import set_learning_rate
from trainers.phases import DataSpec, PhaseContext, PhaseSpec
from trainers.recipes import DistillationConfig
from trainers.registry import find_phase

DRIFT = DriftConfig(steps=6, batch_size=64, lr=0.01, change_every=2, layer="layer1.0.conv2")
CELLS = DistributionConfig(steps=2, batch_size=64, lr=0.01, weight_bits=(0, 4), images=32, bins=8)


@pytest.fixture(scope="module")
def inputs(tmp_path_factory):
    return small_start(tmp_path_factory.mktemp("start"))


def run(phase, config, inputs, folder, pins=(), **context):
    spec = PhaseSpec(
        phase=phase, model=MODEL, data=DataSpec(name="digits"), config=config, seed=0,
        inputs=inputs, choices=BitChoices(weight_bits=(4,), act_bits=(2, 4, 8)), pins=pins,
    )  # fmt: skip
    return find_phase(phase)(spec, replace(PhaseContext.alone(folder), **context))


def rows_of(result, folder):
    columns = ["variant", "update", "bits", "variance", "shift"]
    return read_table(folder / result.outputs["drift"], tables.DRIFT_SCHEMA, columns)[1]


@pytest.mark.parametrize(("phase", "config"), [
    ("metamix.drift", DRIFT),
    ("metamix.distributions", CELLS),
])  # fmt: skip
def test_no_training_of_several_leaves_its_checkpoints_behind(phase, config, inputs, tmp_path):
    result = run(phase, config, inputs, tmp_path)
    left = [p for p in tmp_path.rglob("*") if p.is_file() and "checkpoints" in p.parts]
    assert left == []
    assert sorted(p.name for p in tmp_path.iterdir() if p.is_file()) == sorted(
        [*result.outputs.values(), "result.json"]
    )


def test_drift_leaves_layers_in_full_precision_that_are_pinned_to_it(inputs, tmp_path):
    layers = load_costs(Path(inputs["costs"]))
    as_pinned = tuple(
        replace(s, pinned=LayerBits(weight_bits=32, act_bits=32)) if s.name == "linear" else s
        for s in layers.layers
    )
    save_costs(tmp_path / "costs.parquet", replace(layers, layers=as_pinned, fingerprint=""))
    mine = {**inputs, "costs": str(tmp_path / "costs.parquet")}
    config = replace(DRIFT, steps=2)
    result = run("metamix.drift", config, mine, tmp_path / "step", pins=(("linear", 0, 0),))
    assert len(rows_of(result, tmp_path / "step")["update"]) == 2 * 3


def test_drift_records_every_update_of_every_variant(inputs, tmp_path):
    result = run("metamix.drift", DRIFT, inputs, tmp_path)
    rows = rows_of(result, tmp_path)
    assert result.facts["norm"] == "layer1.0.bn2"
    assert rows["update"] == [1, 2, 3, 4, 5, 6] * 3
    # The same draws for all variants, changing every second update.
    assert rows["bits"][:6] == rows["bits"][6:12] == rows["bits"][12:]
    assert rows["bits"][0] == rows["bits"][1]
    assert all(v > 0 for v in rows["variance"])
    assert len({*rows["variance"]}) == 18
    # Plain: 6 passes each; MetaMix: 3 widths and one that tracks.
    assert result.cost.forward_passes == 6 + 6 + 6 * 4
    assert result.cost.backward_passes == 6 + 6 + 6 * 3


def test_a_teacher_s_passes_are_counted(inputs, tmp_path):
    config = replace(DRIFT, steps=2, distillation=DistillationConfig())
    result = run("metamix.drift", config, inputs, tmp_path)
    # One more an update, however many widths.
    assert result.cost.forward_passes == 2 * (2 + 2 + 5)
    assert result.cost.backward_passes == 2 * (1 + 1 + 3)
    assert result.cost.images == 64 * result.cost.forward_passes


@pytest.mark.parametrize(("phase", "config"), [
    ("metamix.drift", replace(DRIFT, variants=("fp_weights",), steps=40)),
    ("metamix.distributions", replace(CELLS, weight_bits=(0,), steps=40)),
])  # fmt: skip
def test_the_rate_ends_where_the_recipe_says(phase, config, inputs, tmp_path, monkeypatch):
    """One epoch of search, which does not follow here, would leave it far above."""
    rates = []
    monkeypatch.setattr(
        "trainers.loop.set_learning_rate",
        lambda optimizer, rate: rates.append(rate) or set_learning_rate(optimizer, rate),
    )
    result = run(phase, replace(config, min_lr=1e-5), inputs, tmp_path)
    assert rates[0] == config.lr
    assert len(rates) == 40
    assert rates[-1] < 0.01 * config.lr
    assert result.facts["data_fingerprint"] == load_data(DataSpec(name="digits"), 0).fingerprint


def test_drift_resumes_with_its_records(inputs, tmp_path):
    whole = run("metamix.drift", DRIFT, inputs, tmp_path / "whole")
    asked = iter(range(1, 100))
    with pytest.raises(InterruptedPhaseError):
        run("metamix.drift", DRIFT, inputs, tmp_path / "cut", should_stop=lambda: next(asked) >= 9)
    resumed = run("metamix.drift", DRIFT, inputs, tmp_path / "cut")
    assert rows_of(resumed, tmp_path / "cut") == rows_of(whole, tmp_path / "whole")
    assert resumed.metrics == whole.metrics


def test_variance_follows_the_bits_of_a_network_that_stands_still(inputs, tmp_path):
    still = replace(
        DRIFT, lr=1e-12, min_lr=0.0, variants=("fp_weights",), steps=60, change_every=20,
        augment=False,
    )  # fmt: skip
    result = run("metamix.drift", still, inputs, tmp_path)
    rows = rows_of(result, tmp_path)
    settled = dict(zip(rows["bits"][19::20], rows["variance"][19::20], strict=True))
    assert len(settled) > 1, "this seed draws one width only"
    values = sorted(settled.values())
    assert values[-1] > 1.01 * values[0]


def test_a_pinned_layer_cannot_drift(inputs, tmp_path):
    with pytest.raises(ModelError, match="no searched layer 'conv1'"):
        run("metamix.drift", replace(DRIFT, layer="conv1"), inputs, tmp_path)


@pytest.mark.parametrize("training", ["single", "meta", "none"])
def test_distributions_count_every_value_of_every_cell(inputs, tmp_path, training):
    config = replace(CELLS, training=training, layers=("layer1.0.conv2", "layer3.0.conv1"))
    result = run("metamix.distributions", config, inputs, tmp_path)
    columns = ["weight_bits", "act_bits", "layer", "left", "right", "count", "variance"]
    rows = read_table(
        tmp_path / result.outputs["distributions"], tables.DISTRIBUTIONS_SCHEMA, columns
    )[1]
    totals: dict[tuple, int] = {}
    for w, a, layer, count in zip(
        rows["weight_bits"], rows["act_bits"], rows["layer"], rows["count"], strict=True
    ):
        totals[w, a, layer] = totals.get((w, a, layer), 0) + count
    assert set(totals) == {
        (w, a, name) for w in (0, 4) for a in (2, 4, 8) for name in config.layers
    }
    for (_, _, name), total in totals.items():
        assert total == 32 * {"layer1.0.conv2": 4 * 64, "layer3.0.conv1": 8 * 16}[name]
    assert set(result.metrics) == {"w32_spread", "w4_spread"}
    assert all(v >= 1 for v in result.metrics.values())
    passes = {"single": 2 * 3 * 2, "meta": 2 * 3 * 2, "none": 0}[training]
    assert result.cost.backward_passes == passes
