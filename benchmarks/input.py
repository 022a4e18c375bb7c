"""How fast do images come, as ratios in one run?

    python benchmarks/input.py [--images 300] [--repeats 7] [--folder IMAGEFOLDER] [--workers 0]

Training views (decode, random crop, resize to 224, flip, normalise) of the same JPEGs: packed
Parquet shards against the image folder they were packed from, in turns, one thread, by CPU time.
Without ``--folder`` it makes 500 x 375 JPEGs of coarse noise, nearly as many bytes as ImageNet's.
The third figure is torchvision's ImageFolder with the same recipe through Pillow.
"""

from __future__ import annotations

import argparse
import os
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from PIL import Image

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from trainers.data import BatchPlan, load_data
from trainers.data.pack import PackSettings, pack_folder
from trainers.phases import DataSpec

LIMIT = 1.0
BATCH = 50


def make_folder(root: Path, num_images: int) -> None:
    """JPEGs of about 90 kB, ten classes."""
    rng = np.random.default_rng(0)
    for split, count in (("train", num_images), ("val", 10)):
        for i in range(count):
            place = root / split / f"class{i % 10}"
            place.mkdir(parents=True, exist_ok=True)
            coarse = rng.integers(0, 256, (24, 32, 3), dtype=np.uint8)
            large = np.asarray(Image.fromarray(coarse).resize((500, 375), Image.Resampling.BICUBIC))
            noisy = large + rng.normal(0, 12, large.shape)
            image = Image.fromarray(np.clip(noisy, 0, 255).astype(np.uint8))
            image.save(place / f"{i:05d}.jpg", quality=90)


def ours(name: str, path: Path, workers: int) -> Callable[[int], int]:
    """An epoch of training batches; returns the images."""
    options = {"decode_workers": workers}
    data = load_data(DataSpec(name=name, path=str(path), options=options), 0)
    plan = BatchPlan(
        images=data.train, batch_size=min(BATCH, len(data.train)), seed=0, stream="s",
        augment=data.augment,
    )  # fmt: skip
    return lambda epoch: sum(len(labels) for _, labels in plan.epoch(epoch))


def torchvision_folder(path: Path) -> Callable[[int], int]:
    """The same views as torchvision's reference training makes them, without workers."""
    from torchvision import transforms
    from torchvision.datasets import ImageFolder

    recipe = transforms.Compose(
        [
            transforms.RandomResizedCrop(224),
            transforms.RandomHorizontalFlip(),
            transforms.ToTensor(),
            transforms.Normalize((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)),
        ]
    )
    images = ImageFolder(str(path / "train"), recipe)
    loader = torch.utils.data.DataLoader(images, batch_size=BATCH, shuffle=True)
    return lambda epoch: sum(len(labels) for _, labels in loader)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--images", type=int, default=300)
    parser.add_argument("--repeats", type=int, default=7)
    parser.add_argument("--folder", type=Path)
    parser.add_argument("--workers", type=int, default=0, help="decoding threads")
    chosen = parser.parse_args()
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory(prefix="mpq-input-") as scratch:
        folder = chosen.folder or Path(scratch) / "folder"
        if chosen.folder is None:
            make_folder(folder, chosen.images)
        pack_folder(str(folder), Path(scratch) / "shards", PackSettings())
        size = sum(p.stat().st_size for p in folder.rglob("*") if p.is_file())
        epochs = {
            "shards": ours("imagenet_parquet", Path(scratch) / "shards", chosen.workers),
            "folder": ours("imagefolder", folder, chosen.workers),
            "torchvision": torchvision_folder(folder),
        }
        rates: dict[str, list[float]] = {name: [] for name in epochs}
        for repeat in range(chosen.repeats + 1):
            # Turn about, so that neither always finds the caches the other left.
            for name in list(epochs)[:: 1 if repeat % 2 else -1]:
                start = time.process_time()
                count = epochs[name](repeat)
                if repeat:
                    rates[name].append(count / (time.process_time() - start))
    print(f"{size / 1e6:.0f} MB of images, {os.cpu_count()} cores, one thread for each figure")
    for name, values in rates.items():
        print(f"{name}: {statistics.median(values):.0f} images per CPU second")
    pairs = [a / b for a, b in zip(rates["shards"], rates["folder"], strict=True)]
    ratio = statistics.median(pairs)
    print(
        f"shards / folder = {ratio:.3f} x (at least {LIMIT}; {min(pairs):.3f} to {max(pairs):.3f})"
    )
    others = [a / b for a, b in zip(rates["folder"], rates["torchvision"], strict=True)]
    print(f"folder / torchvision's loader = {statistics.median(others):.3f} x")
    sys.exit(1 if ratio < LIMIT else 0)


if __name__ == "__main__":
    main()
