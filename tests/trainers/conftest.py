"""What every test of the trainers room runs under."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from tests.trainers.pictures import picture
from trainers.data.pack import PackSettings, pack_folder

# The networks are small: with more threads the tests wait for each other's, twice as long on two
# cores, and sums would depend on the machine.
torch.set_num_threads(1)


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    """Thirty training and nine test JPEGs of three classes, of different sizes."""
    root = tmp_path_factory.mktemp("images")
    for split, count in (("train", 30), ("val", 9)):
        for i in range(count):
            place = root / split / f"class{i % 3}"
            place.mkdir(parents=True, exist_ok=True)
            picture(100 * len(split) + i, 30 + i % 5, 40).save(place / f"{i:02d}.jpg", quality=95)
    return root


@pytest.fixture(scope="module")
def packed(folder, tmp_path_factory) -> Path:
    out = tmp_path_factory.mktemp("packed") / "shards"
    pack_folder(str(folder), out, PackSettings(images_per_shard=8))
    return out
