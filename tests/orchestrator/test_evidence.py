"""The section ``evidence``: steps of the plan, refusals before training, records, figures."""

from __future__ import annotations

from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from orchestrator.cli import run_command
from orchestrator.config import load_config
from orchestrator.errors import ConfigError
from orchestrator.evidence import evidence_parts
from orchestrator.journal import read_journal
from orchestrator.outcomes import phase_record
from orchestrator.plan import Plan, make_plan
from orchestrator.records import EVIDENCE, RunRecord, State
from orchestrator.report.write import write_report
from orchestrator.results import results_of
from orchestrator.specs import phase_spec
from orchestrator.store import RunStore
from orchestrator.trace import images_fingerprint, traced_costs
from solvers.storage import save_costs
from trainers.checkpoint import save_tensors
from trainers.metamix.config import BitSelectionConfig
from trainers.models import build_model
from trainers.phases import PhaseContext
from trainers.registry import find_phase

TEXT = """schema: experiment/1
name: seen
method: metamix
model: {name: cifar_resnet8, options: {in_channels: 1, base_width: 4}}
data: {name: digits}
bits: {weight: [4], act: [2, 8]}
metamix: {meta: {steps: 1, batch_size: 64}, search: {steps: 2}}
search: {limits: [{bitops_level: 4x5}]}
controls: [uniform]
evidence:
  drift: {steps: 2, batch_size: 64, variants: [fp_weights, metamix]}
  distributions:
    - {training: meta, steps: 1, batch_size: 64, weight_bits: [0], images: 16}
    - {training: none, batch_size: 64, weight_bits: [0], images: 16}
    - {training: none, batch_size: 64, weight_bits: [4], images: 16}
  hessian: {images: 16, min_probes: 2, max_probes: 2}
  sensitivity:
    - {bits: [2], layers: [layer1.0.conv1], steps: 1, batch_size: 16, images: 16, bn_images: 16}
    - {bits: [2, 4], layers: [layer2.0.conv1], steps: 0, tensors: [act], images: 16,
       bn_images: 16}
"""
NAMES = [
    "evidence-drift", "evidence-inputs-meta", "evidence-inputs-none", "evidence-inputs-none-2",
    "evidence-hessian", "evidence-sensitivity", "evidence-sensitivity-2",
]  # fmt: skip


@pytest.fixture
def config_file(tmp_path: Path) -> Path:
    return _written(tmp_path)


def _written(folder: Path) -> Path:
    path = folder / "x.yaml"
    path.write_text(f"{TEXT}runs_dir: {folder}/runs\n")
    return path


def _plan(path: Path, *overrides: str) -> Plan:
    config = load_config(path, overrides).config
    return make_plan(config, traced_costs(config), images_fingerprint(config))


def test_every_observation_is_a_step_after_the_training(config_file: Path) -> None:
    plan = _plan(config_file)
    assert [step.name for step in plan.steps][-8:] == ["train", *NAMES]
    assert all(plan.step(name).needs == ("costs", "pretrain") for name in NAMES)
    assert len({step.key for step in plan.steps}) == len(plan.steps)


def test_keys_follow_their_own_settings_and_nothing_else(config_file: Path) -> None:
    first = _plan(config_file)
    other = _plan(config_file, "evidence.hessian.images=17", "metamix.search.steps=3")
    changed = {s.name for s in first.steps if s.key != other.step(s.name).key}
    assert changed == {"select-l0", "evidence-hessian"}
    # Asking for evidence leaves what was there as it is.
    none = _plan(config_file, "evidence.drift=null", "evidence.distributions=[]")
    assert [s for s in none.steps] == [s for s in first.steps if s.name not in NAMES[:4]]


def test_any_method_may_have_evidence(config_file: Path) -> None:
    plan = _plan(config_file, "method=uniform")
    assert set(NAMES) <= {step.name for step in plan.steps}


def test_settings_that_contradict_are_told_with_their_place(config_file: Path) -> None:
    overrides = ("cluster.num_workers=3", "evidence.drift.min_lr=1.0", "pretrain.batch_size=66",
                 "metamix.meta.batch_size=66", "train.batch_size=66")  # fmt: skip
    with pytest.raises(ConfigError) as caught:
        load_config(config_file, overrides)
    assert {p.key for p in caught.value.problems} == {
        "evidence.drift.batch_size", "evidence.drift.min_lr",
        *(f"evidence.distributions.{i}.batch_size" for i in range(3)),
    }  # fmt: skip


@pytest.mark.parametrize(
    ("override", "key"),
    [("evidence.drift.layer=conv1", "evidence.drift.layer"),
     ("evidence.distributions.1.layers=[nowhere]", "evidence.distributions.1.layers"),
     ("evidence.sensitivity.1.layers=[conv1]", "evidence.sensitivity.1.layers")],
)  # fmt: skip
def test_layers_that_are_not_there_are_refused_in_the_plan(
    config_file: Path, override: str, key: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run_command(["plan", str(config_file), "--set", override]) == 2
    assert f"{key}: no layer" in capsys.readouterr().err


class NoNorm(nn.Module):
    def __init__(self, num_classes: int = 10) -> None:
        super().__init__()
        self.a, self.b = nn.Conv2d(1, 4, 3), nn.Conv2d(4, 4, 3)
        self.c = nn.Linear(4, num_classes)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.c(self.b(self.a(x).relu()).relu().mean(dim=(2, 3)))


@pytest.mark.parametrize("asked", ["method=metamix", "evidence.drift.steps=2"])
def test_a_network_without_batchnorm_is_refused_before_training(
    config_file: Path, monkeypatch: pytest.MonkeyPatch, asked: str, capsys: Any
) -> None:
    monkeypatch.setattr("trainers.models.build_model", lambda spec: NoNorm())
    bare = ["--set", "method=uniform", "--set", "evidence.drift=null",
            "--set", "evidence.distributions=[]",
            "--set", "evidence.sensitivity=[]"]  # fmt: skip
    assert run_command(["plan", str(config_file), *bare]) == 0
    assert run_command(["plan", str(config_file), *bare, "--set", asked]) == 2
    assert "MetaMix needs BatchNorm" in capsys.readouterr().err


@pytest.mark.parametrize("section", ["metamix.meta", "train"])
def test_signed_inputs_are_refused_before_training_where_only_unsigned_is_allowed(
    config_file: Path, section: str, capsys: Any
) -> None:
    refuse = f"{section}.negative_inputs=refuse"
    assert run_command(["plan", str(config_file), "--set", refuse]) == 2
    shown = capsys.readouterr().err
    assert f"{section}: 1 layers read negative values" in shown
    assert "conv1" in shown


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> RunStore:
    """Every phase of evidence and a selection, in this process, recorded as a run records them."""
    path = _written(tmp_path_factory.mktemp("finished"))
    config = load_config(path).config
    plan = _plan(path)
    store = RunStore(config.runs_dir, config.name)
    records: list[RunRecord] = []
    with store.opened() as journal:
        start = store.step_dir("pretrain")
        start.mkdir(parents=True)
        save_tensors(start / "weights.pt", build_model(config.model.spec()).state_dict())
        save_costs(start / "costs.parquet", plan.costs)
        inputs = {"weights": str(start / "weights.pt"), "costs": str(start / "costs.parquet")}
        records.append(
            RunRecord(run=config.name, step="costs", key=plan.step("costs").key, phase="costs",
                      method="any", state=State.DONE,
                      outputs={"costs": store.relative(start / "costs.parquet")})
        )  # fmt: skip
        recipe = BitSelectionConfig(metamix=config.metamix, target="bitops_level=4x5")
        work = [("select-l0", "metamix.bit_selection", recipe, "bit_selection", "metamix")]
        work += [(p.name, p.action, p.recipe, EVIDENCE, "any")
                 for p in evidence_parts(config.evidence)]  # type: ignore[misc] # fmt: skip
        for name, action, phase_config, phase, method in work:
            folder = store.step_dir(name)
            spec = phase_spec(config, action, phase_config, inputs, plan.choices)
            result = find_phase(action)(spec, PhaseContext.alone(folder))
            outputs = {role: store.relative(folder / f) for role, f in result.outputs.items()}
            records.append(
                phase_record(config.name, plan.step(name), result, phase=phase, method=method,
                             seed=0, outputs=outputs, wall_s=1.0)
            )  # fmt: skip
        journal.append_all(records)
    return store


def test_evidence_ends_in_records_figures_and_the_report(finished: RunStore) -> None:
    store = finished
    view = read_journal(store.journal_path)
    by_step = {r.step: r for r in view.records()}
    drift = by_step["evidence-drift"]
    assert set(drift.metrics) == {"evidence/fp_weights_spread", "evidence/metamix_spread"}
    assert drift.costs["forward_passes"] > 0
    assert by_step["evidence-hessian"].costs["hvps"] == 2
    assert by_step["evidence-sensitivity"].metrics["evidence/cells"] == 2
    assert by_step["evidence-sensitivity"].costs["backward_passes"] == 2
    assert by_step["evidence-sensitivity-2"].costs["backward_passes"] == 0
    # No search: nothing of it stands in any method's bill.
    assert results_of("seen", view.records()).search == (by_step["select-l0"],)
    write_report(store, view)
    drawn = {path.stem for path in store.figures_dir.glob("*.svg")}
    layers = by_step["evidence-inputs-meta"].facts["layers"]
    assert {
        "alphas-act-select-l0", "selected-select-l0", "norm-drift", "hessian",
        *(f"inputs-{name}-{layer}" for name in ("meta", "none", "none-2") for layer in layers),
    } <= drawn  # fmt: skip
    assert {path.stem for path in store.figures_dir.glob("*.png")} == drawn
    text = store.report_path.read_text()
    assert "## Evidence" in text
    assert "| drift | metamix\\_spread |" in text
    assert "steps/evidence-hessian/hessian.parquet" in text
    assert "(figures/selected-select-l0.png)" in text


def test_figure_7_shows_the_trace_over_the_operations(
    config_file: Path, finished: RunStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    from orchestrator.report import figures_metamix as chosen

    seen: dict[str, Any] = {}

    def note(bits: Any, depthwise: Any, lines: Any) -> None:
        seen.update(lines)

    monkeypatch.setattr(chosen.draw, "selected_bits", note)
    for name in ("alpha_paths", "norm_drift", "input_distributions", "hessian_traces"):
        monkeypatch.setattr(chosen.draw, name, lambda *_: None)
    chosen.metamix_figures(finished, read_journal(finished.journal_path).records(), [])
    plan = _plan(config_file)
    macs = {layer.name: float(layer.num_macs) for layer in plan.costs.searched}
    assert seen["MACs"] == macs
    assert seen["Hessian trace / MACs"].keys() == macs.keys()


def test_parts_carry_the_settings_of_the_file(config_file: Path) -> None:
    config = load_config(config_file).config.evidence
    recipes = [part.recipe for part in evidence_parts(config)]
    assert recipes == [config.drift, *config.distributions, config.hessian, *config.sensitivity]
    none = replace(config, drift=None, distributions=(), hessian=None, sensitivity=())
    assert evidence_parts(none) == ()
    assert asdict(recipes[0])["steps"] == 2
