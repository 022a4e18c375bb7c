"""Classes that are not the network's are refused by the plan, before anything is started."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
from PIL import Image

from orchestrator.cli import run_command
from orchestrator.config_schema import DataConfig, ExperimentConfig, ModelConfig
from orchestrator.errors import ExitCode
from orchestrator.trace import traced_costs
from trainers.errors import ModelError


def config_of(folder: Path, classes: int, outputs: int) -> ExperimentConfig:
    for split in ("train", "val"):
        for i in range(classes):
            place = folder / split / f"c{i}"
            place.mkdir(parents=True)
            Image.new("RGB", (8, 8)).save(place / "0.png")
    data = DataConfig(name="imagefolder", path=str(folder), options={"resolution": 16})
    model = ModelConfig(name="cifar_resnet8", num_classes=outputs)
    return ExperimentConfig(name="x", model=model, data=data)


def test_more_class_folders_than_classes_are_refused(tmp_path: Path) -> None:
    config = config_of(tmp_path, classes=3, outputs=2)
    with pytest.raises(ModelError, match=r"has 3 classes and model\.num_classes is 2"):
        traced_costs(config)
    wide = replace(config, model=replace(config.model, num_classes=3))
    assert traced_costs(wide).input_shape == (3, 16, 16)


def test_given_weights_of_more_classes_than_the_images_have_are_refused(tmp_path: Path) -> None:
    config = config_of(tmp_path / "images", classes=3, outputs=5)
    weights = tmp_path / "w.pt"
    weights.touch()
    given = replace(config, model=replace(config.model, weights=str(weights)))
    with pytest.raises(ModelError, match=r"has 3 classes and model\.weights are of a network of 5"):
        traced_costs(given)
    # Outputs that are learned here stay unused, and a rehearsal has a sample of the images.
    for fine in (config, replace(given, rehearsal=True)):
        assert traced_costs(fine).input_shape == (3, 16, 16)
    same = replace(given, model=replace(given.model, num_classes=3))
    assert traced_costs(same).input_shape == (3, 16, 16)


@pytest.mark.parametrize("whose", ["its own", "a teacher's"])
def test_published_weights_of_other_classes_are_refused_by_the_plan(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], whose: str
) -> None:
    model = "resnet18, num_classes: 10, weights: torchvision"
    more = ""
    if whose == "a teacher's":
        model = "cifar_resnet8, num_classes: 10"
        more = "train: {distillation: {model: resnet18, weights: torchvision}}\n"
    file = tmp_path / "x.yaml"
    file.write_text(
        f"schema: experiment/1\nname: x\nmodel: {{name: {model}}}\ndata: {{name: digits}}\n"
        f"{more}runs_dir: {tmp_path}/runs\n"
    )
    assert run_command(["plan", str(file)]) == ExitCode.BAD_INPUT
    assert "know 1000 classes and num_classes is 10" in capsys.readouterr().err
    assert not (tmp_path / "runs").exists()
