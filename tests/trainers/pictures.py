"""Pictures and folders of them for tests of sets that are decoded on demand."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from PIL import Image

from trainers.data import BatchPlan
from trainers.phases import DataSpec

SIDE = 16
OPTIONS = {"resolution": SIDE, "decode_workers": 0}


def picture(seed: int, height: int = 40, width: int = 52) -> Image.Image:
    rng = np.random.default_rng(seed)
    coarse = rng.integers(0, 256, (5, 6, 3), dtype=np.uint8)
    return Image.fromarray(coarse).resize((width, height), Image.Resampling.BICUBIC)


def images(name: str, root: Path, **options: object) -> DataSpec:
    return DataSpec(name=name, path=str(root), options=OPTIONS | options)


def plan(data, rank=0, world_size=1) -> BatchPlan:
    return BatchPlan(
        images=data.train, batch_size=6, seed=3, stream="s", augment=data.augment,
        rank=rank, world_size=world_size,
    )  # fmt: skip


def equal(one, other) -> bool:
    pairs = list(zip(one, other, strict=True))
    return all(torch.equal(x, u) and torch.equal(y, v) for (x, y), (u, v) in pairs)
