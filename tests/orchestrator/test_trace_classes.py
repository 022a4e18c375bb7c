"""More classes than outputs are refused by the plan, before anything is started."""

from __future__ import annotations

from dataclasses import replace

import pytest
from PIL import Image

from orchestrator.config_schema import DataConfig, ExperimentConfig, ModelConfig
from orchestrator.trace import traced_costs
from trainers.errors import ModelError


def test_more_class_folders_than_classes_are_refused(tmp_path):
    for split in ("train", "val"):
        for i in range(3):
            place = tmp_path / split / f"c{i}"
            place.mkdir(parents=True)
            Image.new("RGB", (8, 8)).save(place / "0.png")
    data = DataConfig(name="imagefolder", path=str(tmp_path), options={"resolution": 16})
    model = ModelConfig(name="cifar_resnet8", num_classes=2)
    config = ExperimentConfig(name="x", model=model, data=data)
    with pytest.raises(ModelError, match=r"has 3 classes and model\.num_classes is 2"):
        traced_costs(config)
    wide = replace(config, model=replace(model, num_classes=3))
    assert traced_costs(wide).input_shape == (3, 16, 16)
