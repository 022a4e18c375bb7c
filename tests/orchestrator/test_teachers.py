"""Teachers are checked with the configuration, told by absolute paths, and part of the keys."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from orchestrator.config import KnownNames, load_config
from orchestrator.config_schema import ExperimentConfig
from orchestrator.errors import ConfigError, ConfigProblem
from orchestrator.specs import phase_spec
from orchestrator.trace import traced_costs, weight_hashes
from trainers.errors import ModelError

TEXT = """schema: experiment/1
name: taught
model: {name: cifar_resnet8, options: {in_channels: 1}}
data: {name: digits}
"""
NAMES = KnownNames(models=["cifar_resnet8", "resnet101"], datasets=["digits"])


def load(folder: Path, extra: str) -> ExperimentConfig:
    path = folder / "x.yaml"
    path.write_text(f"{TEXT}{extra}\n")
    return load_config(path, (), NAMES).config


def problem(folder: Path, extra: str) -> ConfigProblem:
    with pytest.raises(ConfigError) as caught:
        load(folder, extra)
    (found,) = caught.value.problems
    return found


@pytest.mark.parametrize(
    ("extra", "key"),
    [
        ("train: {distillation: {model: resnet101}}", "train.distillation.weights"),
        ("train: {distillation: {weights: torchvision}}", "train.distillation.weights"),
        ("train: {distillation: {options: {width: 2}}}", "train.distillation.options"),
        (
            "train: {distillation: {model: resnet11, weights: torchvision}}",
            "train.distillation.model",
        ),
        (
            "train: {distillation: {model: resnet101, weights: gone.pt}}",
            "train.distillation.weights",
        ),
        (
            "metamix: {meta: {distillation: {model: resnet101}}}",
            "metamix.meta.distillation.weights",
        ),
        (
            "evidence: {distributions: [{distillation: {model: resnet101}}]}",
            "evidence.distributions.0.distillation.weights",
        ),
    ],
)
def test_teachers_that_cannot_be_meant_are_refused(tmp_path: Path, extra: str, key: str) -> None:
    assert problem(tmp_path, extra).key == key


def test_a_teacher_that_is_nearly_right_gets_a_hint(tmp_path: Path) -> None:
    found = problem(tmp_path, "train: {distillation: {model: resnet11, weights: torchvision}}")
    assert "resnet101" in found.suggestion


def test_teachers_that_are_fine(tmp_path: Path) -> None:
    load(tmp_path, "train: {distillation: {temperature: 2.0}}")
    load(tmp_path, "train: {distillation: {model: resnet101, weights: torchvision}}")
    (tmp_path / "w.pt").touch()
    load(tmp_path, f"train: {{distillation: {{model: my.nets:big, weights: {tmp_path}/w.pt}}}}")


EVERYWHERE = """train: {distillation: {model: resnet101, weights: w.pt}}
metamix: {meta: {distillation: {model: resnet101, weights: torchvision}}}
evidence:
  distributions: [{distillation: {model: resnet101, weights: v.pt}}]
"""


@pytest.fixture
def everywhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> ExperimentConfig:
    """A configuration with teachers in every kind of place; their files are in this folder."""
    monkeypatch.chdir(tmp_path)
    for name in ("w.pt", "v.pt"):
        (tmp_path / name).write_text(name)
    return load(tmp_path, EVERYWHERE)


def test_workers_get_teachers_as_seen_from_the_drivers_folder(
    tmp_path: Path, everywhere: ExperimentConfig
) -> None:
    config = everywhere
    train = phase_spec(config, "weight_training", config.train, {}).config
    assert train.distillation.weights == str(tmp_path / "w.pt")
    assert replace(train, distillation=config.train.distillation) == config.train
    # A recipe inside of another, and one that is told as it is.
    meta = phase_spec(config, "metamix.meta", config.metamix, {}).config
    assert meta is config.metamix
    other = load(tmp_path, EVERYWHERE.replace("torchvision", "w.pt"))
    meta = phase_spec(other, "metamix.meta", other.metamix, {}).config
    assert meta.meta.distillation.weights == str(tmp_path / "w.pt")
    assert phase_spec(config, "pretrain", None, {}).config is None


def test_teachers_in_lists_are_part_of_the_keys(
    tmp_path: Path, everywhere: ExperimentConfig
) -> None:
    before = weight_hashes(everywhere)
    assert set(before) == {"w.pt", "v.pt"}
    (tmp_path / "v.pt").write_text("other weights")
    assert weight_hashes(everywhere)["v.pt"] != before["v.pt"]


def test_weights_that_nobody_publishes_are_found_by_the_plan(tmp_path: Path) -> None:
    config = load(tmp_path, "train: {distillation: {model: resnet101, weights: 'torchvision:V9'}}")
    with pytest.raises(ModelError, match=r"'resnet101'.*no weights 'V9'"):
        traced_costs(config)
