"""A user's own policies: held against the network, a row at every limit they meet."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from orchestrator.config import load_config
from orchestrator.config_schema import ExperimentConfig
from orchestrator.errors import ConfigError
from orchestrator.given_policies import given_policies
from orchestrator.made_controls import made_controls
from orchestrator.outcomes import candidate_record
from orchestrator.plan import Plan, make_plan
from orchestrator.policies import to_train
from orchestrator.results import results_of
from solvers.errors import FormatError, PolicyError
from solvers.policy import make_policy
from solvers.storage import save_policy
from solvers.tables import CostTable, LayerBits, LayerSpec

TEXT = """schema: experiment/1
name: given
method: uniform
model: {name: anything}
data: {name: anything}
bits: {weight: [2, 4], act: [2, 4]}
search:
  limits: [{bitops_level: 2x2}, {bitops_level: 4x4}]
controls: []
"""
EIGHT = LayerBits(weight_bits=8, act_bits=8)


def _layer(name: str, macs: int, pinned: LayerBits | None = None) -> LayerSpec:
    return LayerSpec(
        name=name, kind="conv", num_macs=macs, num_macs_unfloored=macs, num_weights=10,
        num_biases=0, num_inputs=4, num_outputs=4, pinned=pinned,
    )  # fmt: skip


def _costs(macs: int = 200) -> CostTable:
    layers = (_layer("a", 100, EIGHT), _layer("b", macs), _layer("c", 300))
    return CostTable(model="anything", input_shape=(1, 2, 2), layers=layers)


def _write(path: Path, costs: CostTable, **bits: tuple[int, int]) -> Path:
    widths = {"a": (8, 8), "b": (3, 4), "c": (4, 3), **bits}
    by_name = {n: LayerBits(weight_bits=w, act_bits=a) for n, (w, a) in widths.items()}
    save_policy(path, make_policy(costs, by_name, "mine"))
    return path


def _config(folder: Path, *overrides: str) -> ExperimentConfig:
    path = folder / "given.yaml"
    path.write_text(TEXT)
    return load_config(path, overrides).config


def _plan(config: ExperimentConfig, costs: CostTable) -> Plan:
    return make_plan(config, costs, "images", {}, given_policies(config, costs))


def test_a_policy_is_trained_where_it_meets_the_limits(tmp_path: Path) -> None:
    """Widths that are no candidates are fine; 2x2 is exceeded: 6400 + 200 * 12 + 300 * 12."""
    _write(tmp_path / "p.json", _costs())
    config = _config(tmp_path, f"policies={{mine: {tmp_path}/p.json}}")
    plan = _plan(config, _costs())
    tight, wide = made_controls(config, plan)
    assert (tight.method, tight.policy) == ("mine", None)
    assert tight.reason == "it uses 12,400 where bitops_level=2x2 allows 8,400"
    assert wide.policy is not None
    assert wide.policy.bits_of("b") == LayerBits(weight_bits=3, act_bits=4)
    assert [row.method for row in to_train(config, plan, (tight, wide))] == ["mine"]
    record = candidate_record("r", plan.step("sweep"), tight, seed=0, policy_file="")
    (shown,) = results_of("r", [record]).rows
    assert (shown.status, shown.reason) == ("INFEASIBLE", tight.reason)
    assert shown.search_device_s is None


def test_controls_stand_beside_it_when_asked_for(tmp_path: Path) -> None:
    _write(tmp_path / "p.json", _costs())
    config = _config(tmp_path, f"policies={{mine: {tmp_path}/p.json}}", "controls=[uniform]")
    found = made_controls(config, _plan(config, _costs()))
    assert [row.method for row in found] == ["uniform", "mine"] * 2


def test_without_one_method_uniform_trains_uniform_bits(tmp_path: Path) -> None:
    config = _config(tmp_path)
    assert {row.method for row in made_controls(config, _plan(config, _costs()))} == {"uniform"}


@pytest.mark.parametrize(
    ("bits", "macs", "told"),
    [
        ({}, 201, "layer 'b' has 200 MACs"),
        ({"c": (1, 4)}, 200, "layer 'c' has 1 bit; what can be trained is 2 to 16 bit"),
        ({"c": (4, 24)}, 200, "layer 'c' has 24 bit"),
    ],
)
def test_what_does_not_fit_is_refused_by_key(
    tmp_path: Path, bits: dict[str, tuple[int, int]], macs: int, told: str
) -> None:
    _write(tmp_path / "p.json", _costs(), **bits)
    config = _config(tmp_path, f"policies={{mine: {tmp_path}/p.json}}")
    with pytest.raises(PolicyError, match=r"^policies\.mine: ") as caught:
        given_policies(config, _costs(macs))
    assert told in str(caught.value)


def test_other_pins_are_refused(tmp_path: Path) -> None:
    here = _costs()
    there = replace(here, layers=tuple(replace(layer, pinned=None) for layer in here))
    path = _write(tmp_path / "p.json", there, a=(4, 8))
    config = _config(tmp_path, f"policies={{mine: {path}}}")
    told = "layer 'a' has 4/8 bit there and is pinned to 8/8 here"
    with pytest.raises(PolicyError, match=told):
        given_policies(config, here)


def test_a_file_that_is_no_policy_is_refused_by_key(tmp_path: Path) -> None:
    (tmp_path / "p.json").write_text(json.dumps({"schema": "costs/1"}))
    config = _config(tmp_path, f"policies={{mine: {tmp_path}/p.json}}")
    with pytest.raises(FormatError, match=r"^policies\.mine: .*costs/1"):
        given_policies(config, _costs())


@pytest.mark.parametrize(
    ("override", "key"),
    [
        ("policies={mine: gone.json}", "policies.mine"),
        ("policies={uniform_w2a2: P}", "policies.uniform_w2a2"),
        ("policies={reversed: P}", "policies.reversed"),
        ("policies={hawq: P}", "policies.hawq"),
        ("policies={a/b: P}", "policies.a/b.[key]"),
    ],
)
def test_a_name_or_path_that_cannot_be_is_a_fault_of_the_file(
    tmp_path: Path, override: str, key: str
) -> None:
    path = _write(tmp_path / "p.json", _costs())
    with pytest.raises(ConfigError) as caught:
        _config(tmp_path, override.replace("P}", f"{path}}}"))
    assert key in {problem.key for problem in caught.value.problems}


def test_nothing_to_train_at_is_a_fault_of_the_file(tmp_path: Path) -> None:
    path = _write(tmp_path / "p.json", _costs())
    with pytest.raises(ConfigError) as caught:
        _config(tmp_path, f"policies={{mine: {path}}}", "search.train_limits=[]")
    assert {problem.key for problem in caught.value.problems} == {"policies"}


def test_the_sweep_is_another_when_the_bits_are(tmp_path: Path) -> None:
    path = _write(tmp_path / "p.json", _costs())
    config = _config(tmp_path, f"policies={{mine: {path}}}")
    first = _plan(config, _costs())
    _write(path, _costs(), b=(4, 4))
    second = _plan(config, _costs())
    assert first.step("sweep").key != second.step("sweep").key
    assert first.step("train").key == second.step("train").key
    without = _config(tmp_path)
    assert _plan(without, _costs()).step("sweep").key == make_plan(
        without, _costs(), "images"
    ).step("sweep").key  # fmt: skip


def test_a_bad_policy_leaves_no_run_behind(tmp_path: Path) -> None:
    """Else the mended command would be another configuration under the same name."""
    (tmp_path / "p.json").write_text('{"schema": "costs/1"}')
    (tmp_path / "x.yaml").write_text(
        "schema: experiment/1\nname: bad\nmethod: uniform\n"
        "model: {name: cifar_resnet8, options: {in_channels: 1}}\ndata: {name: digits}\n"
        "search: {limits: [{bitops: 1G}]}\npolicies: {mine: p.json}\n"
    )
    found = subprocess.run(
        [sys.executable, "-m", "orchestrator.cli", "run", "x.yaml"],
        cwd=tmp_path, capture_output=True, text=True,
        env={**os.environ, "PYTHONPATH": str(Path(__file__).parents[2])},
    )  # fmt: skip
    assert found.returncode == 2, found.stderr
    assert "policies.mine: " in found.stderr
    assert not (tmp_path / "runs").exists()
