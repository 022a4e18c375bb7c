"""The sets that are decoded on demand: a folder of image files, or Parquet shards of them.

``imagefolder`` is torchvision's layout, ``imagenet_parquet`` what ``mpq data pack`` makes of it.
Both give the same pixels for the same image, so a training may move from one to the other; the
order of images, and so the batches, are each set's own.
"""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

from trainers.data.bad_samples import BadSamples
from trainers.data.image_folder import class_names, evaluation_split, read_folder
from trainers.data.images import ImageData
from trainers.data.on_demand import ImageReader, ImagesOnDemand
from trainers.data.options import (
    VIEW,
    crop_augment,
    pool_of,
    refuse_options,
    root_of,
    view_of,
)
from trainers.data.parquet import shards
from trainers.data.shards import MANIFEST, open_split
from trainers.data.splits import split
from trainers.errors import DataError
from trainers.phases import DataSpec


def image_folder(spec: DataSpec, seed: int) -> ImageData:
    """``train/<class>/*`` and ``val/<class>/*``; see ``image_folder.py``."""
    root = root_of(spec)
    refuse_options(spec, VIEW)
    classes = class_names(root)
    evaluation = evaluation_split(root, spec.options.get("eval_split"))
    train = read_folder(root, "train", classes)
    return _on_demand(spec, seed, train, read_folder(root, evaluation, classes), len(classes))


def image_shards(spec: DataSpec, seed: int) -> ImageData:
    """Parquet shards below ``train/`` and ``val/``; see ``shards.py``."""
    root = root_of(spec)
    refuse_options(spec, VIEW)
    train = open_split(root, "train")
    test = open_split(root, shard_split(root, spec.options.get("eval_split")))
    num_classes = int(max(train.labels.max(), test.labels.max())) + 1
    return _on_demand(spec, seed, train, test, num_classes)


def shard_split(root: str, asked: Any = None) -> str:
    """The evaluation split of a set in shards: a folder, or one file of that name.

    Raises:
        DataError: there is none, or several and nobody said which.
    """
    if asked is not None:
        if not isinstance(asked, str):
            raise DataError(f"data.options.eval_split is {asked!r}; it is the name of a split")
        return asked
    found = [
        name
        for name in ("val", "test")
        if (Path(root) / name).is_dir() or (Path(root) / f"{name}.parquet").is_file()
    ]
    if len(found) != 1:
        what = "both val and test" if found else "neither val nor test"
        raise DataError(f"{root} has {what}; set data.path or data.options.eval_split")
    return found[0]


def viewed_shape(spec: DataSpec) -> tuple[int, int, int]:
    """(channels, height, width) that networks see, after a look at the layout of the set.

    A plan may be made where the images are not: without a path the options alone decide.

    Raises:
        DataError: a wrong option, or no such set.
    """
    view = view_of(spec)
    refuse_options(spec, VIEW)
    if spec.path is None:
        return view.channels, view.resolution, view.resolution
    root = root_of(spec)
    if spec.name == "imagefolder":
        class_names(root)
        evaluation_split(root, spec.options.get("eval_split"))
    else:
        for name in ("train", shard_split(root, spec.options.get("eval_split"))):
            shards(root, name)
    return view.channels, view.resolution, view.resolution


def declared_classes(spec: DataSpec) -> int | None:
    """Number of classes as the layout tells it, without reading labels; None where it does not.

    Raises:
        DataError: no such folder, or a damaged manifest.
    """
    if spec.path is None:
        return None
    if spec.name == "imagefolder":
        return len(class_names(spec.path))
    manifest = Path(spec.path) / MANIFEST
    if not manifest.is_file():
        return None
    try:
        return len(json.loads(manifest.read_text())["classes"])
    except (ValueError, KeyError, TypeError) as error:
        raise DataError(f"{manifest} is damaged: {error}; pack the images again") from error


def folder_listing(root: str) -> list[str]:
    """``path:bytes`` of every file below ``root``, sorted: a million need no open."""
    found = []
    for folder, _, names in os.walk(root):
        below = os.path.relpath(folder, root)
        found += [f"{below}/{n}:{os.stat(os.path.join(folder, n)).st_size}" for n in names]
    return sorted(found)


def _on_demand(
    spec: DataSpec, seed: int, train: ImageReader, test: ImageReader, num_classes: int
) -> ImageData:
    view, pool = view_of(spec), pool_of(spec)
    bad = BadSamples(spec.max_bad_samples if spec.on_bad_sample == "skip" else None)
    return split(
        ImagesOnDemand(train, view, pool, bad),
        ImagesOnDemand(test, view, pool, bad),
        holdout=spec.holdout,
        seed=seed,
        num_classes=num_classes,
        input_shape=(view.channels, view.resolution, view.resolution),
        augment=crop_augment(spec),
        bad=bad,
    )
