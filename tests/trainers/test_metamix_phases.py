"""Both phases on digits: what comes out, resume, two ranks, and what is refused."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from torch import nn

from solvers.errors import LimitError
from solvers.importance import read_indicators
from solvers.parquet import read_table
from solvers.storage import load_costs, load_importance, load_policy, save_costs
from solvers.tables import BitChoices
from trainers.checkpoint import load_tensors, save_tensors, state_hash
from trainers.costs import trace_costs
from trainers.errors import DivergedError, InterruptedPhaseError, ModelError
from trainers.metamix.config import BitSelectionConfig, MetaConfig, MetaMixConfig, SearchConfig
from trainers.metamix.tables import HISTORY_SCHEMA as SCHEMA
from trainers.models import build_model
from trainers.phases import Cost, DataSpec, ModelSpec, PhaseContext, PhaseSpec
from trainers.recipes import TrainConfig
from trainers.registry import find_phase

MODEL = ModelSpec(name="cifar_resnet8", options={"in_channels": 1, "base_width": 4})
RECIPE = MetaMixConfig(
    meta=MetaConfig(steps=4, batch_size=64, lr=0.02), search=SearchConfig(steps=6)
)
CHOICES = BitChoices(weight_bits=(4,), act_bits=(2, 4, 8))


@pytest.fixture(scope="module")
def start(tmp_path_factory):
    """Untrained weights and the cost table of the small network."""
    folder = tmp_path_factory.mktemp("start")
    torch.manual_seed(0)
    model = build_model(MODEL)
    save_tensors(folder / "weights.pt", model.state_dict())
    save_costs(folder / "costs.parquet", trace_costs(model, name=MODEL.name, input_shape=(1, 8, 8)))
    return folder


def meta_spec(start, recipe=RECIPE, choices=CHOICES, **changes):
    spec = PhaseSpec(
        phase="metamix.meta",
        model=MODEL,
        data=DataSpec(name="digits"),
        config=recipe,
        seed=0,
        inputs={"weights": str(start / "weights.pt"), "costs": str(start / "costs.parquet")},
        choices=choices,
    )
    return replace(spec, **changes)


def selection_spec(start, target="mean_act_bits=4", recipe=RECIPE, meta=None, **changes):
    spec = meta_spec(start, **changes)
    inputs = dict(spec.inputs) | ({} if meta is None else {"meta": str(meta / "meta.pt")})
    config = BitSelectionConfig(metamix=recipe, target=target)
    return replace(spec, phase="metamix.bit_selection", config=config, inputs=inputs)


def run(spec, folder, **context):
    return find_phase(spec.phase)(spec, replace(PhaseContext.alone(folder), **context))


@pytest.fixture(scope="module")
def meta(start, tmp_path_factory):
    folder = tmp_path_factory.mktemp("meta")
    return run(meta_spec(start), folder), folder


@pytest.fixture(scope="module")
def selection(start, meta, tmp_path_factory):
    folder = tmp_path_factory.mktemp("selection")
    return run(selection_spec(start, meta=meta[1]), folder), folder


def test_meta_counts_its_passes_and_writes_a_plain_network(start, meta):
    result, folder = meta
    assert (result.cost.forward_passes, result.cost.images) == (12, 12 * 64)
    weights = load_tensors(folder / result.outputs["weights"])
    model = build_model(MODEL)
    model.load_state_dict(weights)
    assert state_hash(weights) != state_hash(load_tensors(start / "weights.pt"))
    assert result.facts["input_ranges"]["conv1"] == "act_signed"
    assert result.facts["input_ranges"]["layer1.0.conv2"] == "act_unsigned"


def test_meta_state_is_an_activations_only_importance_table(meta):
    result, folder = meta
    table = load_importance(folder / result.outputs["importance"])
    initial = load_importance(folder / result.outputs["initial"])
    assert (table.method, initial.method) == ("metamix", "metamix-initial")
    assert {row.tensor for row in table.rows} == {"act"}
    assert {row.bits for row in table.rows} == {2, 4, 8}
    assert len(table.rows) == 6 * 3
    assert table.values().keys() == initial.values().keys()
    assert table.values() != initial.values()
    everything = load_importance(folder / result.outputs["act_steps"])
    assert {"conv1", "linear"} <= {row.layer for row in everything.rows}


def test_selection_yields_a_policy_in_the_band_and_records_the_argmax(selection):
    result, folder = selection
    policy = load_policy(folder / result.outputs["policy"])
    assert policy.source == "metamix"
    assert policy.policy_id == result.facts["policy_id"]
    assert 0.99 <= result.metrics["reached_share"] <= 1.0
    assert result.facts["in_band"] is True
    assert policy.cost.mean_act_bits == result.metrics["reached"] <= 4.0
    assert {b.weight_bits for n, b in policy.layers if n not in ("conv1", "linear")} == {4}
    argmax = load_policy(folder / result.outputs["argmax"])
    changed = [n for (n, a), (_, b) in zip(argmax.layers, policy.layers, strict=True) if a != b]
    assert changed == result.facts["changed_layers"]
    # 3 meta passes and 1 search pass on each of 6 batches.
    assert (result.cost.forward_passes, result.cost.backward_passes) == (24, 24)


def test_a_meta_training_inside_a_selection_is_counted_once(start, meta, tmp_path, monkeypatch):
    jump = [0.0]
    clock = SimpleNamespace(
        perf_counter=lambda: time.perf_counter() + jump[0],
        process_time=lambda: time.process_time() + jump[0],
    )
    monkeypatch.setattr("trainers.meters.time", clock)

    def takes_a_while(spec, context):
        jump[0] += 1e9
        context.step_dir.mkdir(parents=True)
        (context.step_dir / "meta.pt").write_bytes((meta[1] / "meta.pt").read_bytes())
        return replace(meta[0], cost=Cost(wall_s=1e9, device_s=1e9, forward_passes=12))

    monkeypatch.setattr("trainers.metamix.bit_selection.meta.run", takes_a_while)
    result = run(selection_spec(start), tmp_path)
    assert result.cost.wall_s == pytest.approx(1e9, rel=1e-3)
    assert result.cost.device_s == pytest.approx(1e9, rel=1e-3)
    assert result.cost.forward_passes == 12 + 24


def test_history_ends_at_the_recorded_alphas(selection):
    result, folder = selection
    columns = ["update", "unit", "tensor", "bits", "alpha", "probability"]
    _, rows = read_table(folder / result.outputs["history"], SCHEMA, columns)
    assert sorted(set(rows["update"])) == [1, 2, 3, 4, 5, 6]
    assert len(rows["update"]) == 6 * 6 * 3
    last = [i for i, update in enumerate(rows["update"]) if update == 6]
    argmax = load_policy(folder / result.outputs["argmax"])
    for unit in {rows["unit"][i] for i in last}:
        own = [i for i in last if rows["unit"][i] == unit]
        assert sum(rows["probability"][i] for i in own) == pytest.approx(1.0)
        best = max(own, key=lambda i: (rows["alpha"][i], rows["bits"][i]))
        assert argmax.bits_of(unit).act_bits == rows["bits"][best]


def test_a_finished_phase_is_not_run_again(start, meta, selection):
    result, folder = selection
    again = run(selection_spec(start, meta=meta[1]), folder, should_stop=lambda: True)
    assert again == replace(result, facts=json.loads(json.dumps(dict(result.facts))))


def test_without_a_meta_state_it_trains_the_same_one_first(start, meta, selection, tmp_path):
    own = run(selection_spec(start), tmp_path)
    given, folder = selection
    assert own.facts["alpha_sha256"] == given.facts["alpha_sha256"]
    assert state_hash(load_tensors(tmp_path / "weights.pt")) == state_hash(
        load_tensors(folder / "weights.pt")
    )
    assert own.cost.forward_passes == given.cost.forward_passes + meta[0].cost.forward_passes


def test_one_meta_state_serves_several_targets(start, meta, tmp_path):
    reached = []
    for target in ("mean_act_bits=2.5", "bitops_level=4x5"):
        result = run(selection_spec(start, target, meta=meta[1]), tmp_path / target)
        assert result.metrics["reached_share"] <= 1.0
        reached.append(result.facts["policy_id"])
    assert reached[0] != reached[1]


@pytest.mark.parametrize("stop_after", [1, 4])
def test_resume_inside_the_search_is_bit_identical(start, meta, selection, tmp_path, stop_after):
    asked = iter(range(1, 100))
    spec = selection_spec(start, meta=meta[1])
    # The loop asks once a move: two moves an update.
    with pytest.raises(InterruptedPhaseError, match=f"after update {stop_after} of 6"):
        run(spec, tmp_path, should_stop=lambda: next(asked) >= 2 * stop_after)
    resumed = run(spec, tmp_path)
    whole, folder = selection
    assert resumed.facts["alpha_sha256"] == whole.facts["alpha_sha256"]
    for name in ("weights.pt", "meta.pt"):
        assert state_hash(load_tensors(tmp_path / name)) == state_hash(load_tensors(folder / name))
    columns = ["update", "alpha"]
    assert (
        read_table(tmp_path / "alphas.parquet", SCHEMA, columns)[1]
        == read_table(folder / "alphas.parquet", SCHEMA, columns)[1]
    )
    assert resumed.cost.forward_passes == whole.cost.forward_passes


# One process imports and forks: a fork of the tests' own would take a used autograd engine along.
_RANKS = """
import json, os, sys
import torch
import torch.distributed as dist
torch.set_num_threads(1)
folder, start, root, file = sys.argv[1:]
sys.path.insert(0, root)
import importlib.util
from pathlib import Path
found = importlib.util.spec_from_file_location("phases_test", file)
tests = importlib.util.module_from_spec(found)
found.loader.exec_module(tests)
child = os.fork()
rank = 1 if child == 0 else 0
dist.init_process_group("gloo", init_method=f"file://{folder}/rendezvous", rank=rank, world_size=2)
spec = tests.selection_spec(Path(start))
result = tests.run(spec, Path(folder) / "out", rank=rank, world_size=2)
Path(folder, f"rank{rank}.json").write_text(json.dumps(dict(result.facts)))
dist.destroy_process_group()
if child:
    sys.exit(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))
"""


def test_two_ranks_end_at_the_same_alphas(start, tmp_path):
    root = str(Path(__file__).resolve().parents[2])
    done = subprocess.run(
        [sys.executable, "-c", _RANKS, str(tmp_path), str(start), root, __file__],
        env=os.environ | {"OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=240,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-2000:]
    facts = [json.loads((tmp_path / f"rank{r}.json").read_text()) for r in range(2)]
    assert facts[0]["alpha_sha256"] == facts[1]["alpha_sha256"]
    assert facts[0]["policy_id"] == facts[1]["policy_id"]
    assert load_policy(tmp_path / "out" / "policy.json").policy_id == facts[1]["policy_id"]


@pytest.mark.parametrize(
    ("search", "choices"),
    [
        ({"fixed_meta_state": False}, CHOICES),
        ({"batchnorm": "running", "penalty": "absolute", "lambda_r": 1e-6}, CHOICES),
        ({"optimizer": "sgd", "repair": "none"}, BitChoices(weight_bits=(3,), act_bits=(3, 4, 8))),
        ({}, BitChoices(weight_bits=(2, 4), act_bits=(2, 4, 8))),
    ],
    ids=["weights move", "absolute", "argmax only", "weights searched"],
)
def test_options_run_to_a_policy(start, tmp_path, search, choices):
    recipe = replace(RECIPE, search=replace(RECIPE.search, **search))
    if choices.weight_bits != (4,):
        recipe = replace(recipe, meta=replace(recipe.meta, batchnorm="switchable"))
    result = run(selection_spec(start, recipe=recipe, choices=choices), tmp_path)
    policy = load_policy(tmp_path / "policy.json")
    assert {b.act_bits for _, b in policy.layers} <= {8, *choices.act_bits}
    build_model(MODEL).load_state_dict(load_tensors(tmp_path / "weights.pt"))
    if search.get("repair") == "none":
        assert result.facts["changed_layers"] == []
        assert policy.policy_id == result.facts["argmax_policy_id"]


def test_unfixed_search_moves_the_weights_further(start, meta, selection, tmp_path):
    recipe = replace(RECIPE, search=replace(RECIPE.search, fixed_meta_state=False))
    run(selection_spec(start, recipe=recipe, meta=meta[1]), tmp_path)
    loose = load_tensors(tmp_path / "weights.pt")
    fixed = load_tensors(selection[1] / "weights.pt")
    assert not torch.equal(loose["conv1.weight"], fixed["conv1.weight"])


def test_weight_training_takes_over_the_meta_state(start, selection, tmp_path):
    _, folder = selection
    spec = meta_spec(start)
    recipe = TrainConfig(
        steps=1, batch_size=64, lr=1e-9, min_lr=0.0, warmup_epochs=0.0, bn_reestimate_images=0
    )
    own = {
        "policy:p": folder / "policy.json",
        "weights:p": folder / "weights.pt",
        "act_steps:p": folder / "act-steps.parquet",
    }
    inputs = dict(spec.inputs) | {role: str(path) for role, path in own.items()}
    run(replace(spec, phase="weight_training", config=recipe, inputs=inputs), tmp_path)
    trained = load_tensors(tmp_path / "p" / "weights.pt")
    meta_weights = load_tensors(folder / "weights.pt")
    torch.testing.assert_close(trained["conv1.weight"], meta_weights["conv1.weight"])
    steps = load_importance(folder / "act-steps.parquet").values()
    for name, bits in load_policy(folder / "policy.json").layers:
        inherited = trained[f"{name}.act_quantizer.steps"].item()
        assert inherited == pytest.approx(steps[name, "act", bits.act_bits], rel=1e-5)


def test_the_solver_takes_the_meta_state_as_indicators(start, meta):
    """The natural join of the two methods: activations only, weights at one width."""
    _, folder = meta
    costs = load_costs(start / "costs.parquet")
    indicators = read_indicators(load_importance(folder / "importance.parquet"), costs, CHOICES)
    acts = [key for key in indicators.values if key[1] == "act"]
    assert len(acts) == 6 * 3
    assert all(indicators.values[n, t, 2] >= indicators.values[n, t, 8] for n, t, _ in acts)


@pytest.mark.parametrize("target", ["mean_act_bits=1.9", "mean_act_bits=8.5"])
def test_targets_out_of_reach_train_nothing(start, tmp_path, target):
    with pytest.raises(LimitError, match="reach 2 to 8"):
        run(selection_spec(start, target), tmp_path)
    assert not list(tmp_path.rglob("step-*"))


class NoNorm(nn.Module):
    def __init__(self, num_classes=10):
        super().__init__()
        self.a, self.b = nn.Conv2d(1, 4, 3), nn.Conv2d(4, 4, 3)
        self.c = nn.Linear(4, num_classes)

    def forward(self, x):
        return self.c(self.b(self.a(x).relu()).relu().mean(dim=(2, 3)))


def test_a_network_without_batchnorm_is_refused(start, tmp_path, monkeypatch):
    monkeypatch.setattr("trainers.setup.build_model", lambda spec: NoNorm())
    save_tensors(tmp_path / "weights.pt", NoNorm().state_dict())
    inputs = {"weights": str(tmp_path / "weights.pt"), "costs": str(start / "costs.parquet")}
    with pytest.raises(ModelError, match="MetaMix needs BatchNorm"):
        run(meta_spec(start, inputs=inputs), tmp_path / "out")


def test_signed_inputs_are_refused_where_only_unsigned_is_allowed(start, tmp_path):
    recipe = replace(RECIPE, meta=replace(RECIPE.meta, negative_inputs="refuse"))
    with pytest.raises(ModelError, match="read negative values"):
        run(meta_spec(start, recipe), tmp_path)


def test_another_networks_meta_state_is_refused(start, meta, tmp_path):
    choices = BitChoices(weight_bits=(4,), act_bits=(2, 8))
    with pytest.raises(ModelError, match="does not fit this network"):
        run(selection_spec(start, meta=meta[1], choices=choices), tmp_path)


def test_pins_that_differ_from_the_cost_table_are_refused(start, tmp_path):
    spec = meta_spec(start, pins=(("layer1.0.conv1", 8, 8),))
    with pytest.raises(ModelError, match=r"'layer1.0.conv1' is searched by .* not by both"):
        run(spec, tmp_path)


@pytest.mark.parametrize(
    ("lr", "factor", "what"), [(100.0, 1.0, "step size of layer"), (1e30, 0.0, "meta: loss")]
)
def test_divergence_stops_the_phase(start, tmp_path, lr, factor, what):
    meta = replace(
        RECIPE.meta, lr=lr, min_lr=lr, quantizer_lr_factor=factor, steps=60, max_step_change=None
    )
    with pytest.raises(DivergedError, match=what):
        run(meta_spec(start, replace(RECIPE, meta=meta)), tmp_path)
    assert not (tmp_path / "result.json").exists()
