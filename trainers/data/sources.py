"""Which data sets are there, and how is each split?

A source is a function ``(DataSpec, seed) -> ImageData``. Small sets are decoded whole into memory;
``imagefolder`` and ``imagenet_parquet`` (``large_sets.py``) image by image, when its turn comes. A
set without a test split of its own (digits) is split here, class-balanced.
"""

from __future__ import annotations

import difflib
import hashlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from trainers.data.augment import AugmentSpec
from trainers.data.batches import balanced_fraction
from trainers.data.images import ImageData, InMemoryImages, Normalisation
from trainers.data.options import (
    AUGMENT,
    normalisation_of,
    refuse_options,
    refuse_skipping,
    root_of,
    small_augment,
    view_of,
)
from trainers.data.splits import at_most, complement, split
from trainers.errors import DataError
from trainers.phases import DataSpec
from trainers.seeds import derive

# Of the grey levels of all digits: 0.3053 and 0.3760.
_DIGITS = Normalisation(mean=(0.305,), std=(0.376,))
# Sets that are decoded image by image; the others are in memory.
ON_DEMAND = ("imagefolder", "imagenet_parquet")


def data_names() -> tuple[str, ...]:
    """Names that ``load_data`` knows."""
    return tuple(_SOURCES)


def load_data(spec: DataSpec, seed: int) -> ImageData:
    """Read a data set and split it.

    Args:
        spec: name, place and options.
        seed: of the run; decides the splits.

    Raises:
        DataError: unknown name, unreadable file, an empty split, an unknown option.
    """
    _check_name(spec.name)
    if spec.name not in ON_DEMAND:
        refuse_skipping(spec)
    return at_most(spec.max_images, _SOURCES[spec.name](spec, seed), seed)


def _check_name(name: str) -> None:
    if name not in _SOURCES:
        near = difflib.get_close_matches(name, _SOURCES, n=1)
        hint = f"; did you mean {near[0]!r}?" if near else ""
        raise DataError(f"unknown data set {name!r}{hint} (there are: {', '.join(_SOURCES)})")


def _digits(spec: DataSpec, seed: int) -> ImageData:
    """Scikit-learn's handwritten digits: 1,797 images 8x8, 10 classes, no download.

    A quarter of each class is the test split (fixed, not by the run's seed, so that accuracies of
    different seeds are on the same images).
    """
    refuse_options(spec, AUGMENT)
    from sklearn.datasets import load_digits

    raw = load_digits()
    # Grey levels are 0..16; spread over 0..255 they fit the uint8 form of every other set.
    pixels = torch.from_numpy(raw.images * (255.0 / 16.0)).round().to(torch.uint8)[:, None]
    labels = torch.from_numpy(raw.target).long()
    test_at = balanced_fraction(labels, 0.25, derive(0, "digits-test"))
    everything = InMemoryImages(pixels, labels, _DIGITS)
    return split(
        everything.subset(complement(len(labels), test_at)),
        everything.subset(test_at),
        holdout=spec.holdout,
        seed=seed,
        num_classes=10,
        input_shape=(1, 8, 8),
        augment=small_augment(spec, AugmentSpec(pad=1)),
    )


def _parquet(spec: DataSpec, seed: int) -> ImageData:
    """Parquet files with encoded images and labels; see ``parquet.py``."""
    from trainers.data.parquet import read_images

    refuse_options(spec, (*AUGMENT, "mean", "std"))
    root = root_of(spec)
    normalisation = normalisation_of(spec)
    train = read_images(root, "train", normalisation)
    test = read_images(root, "test", normalisation)
    return _in_memory_split(spec, seed, train, test)


def _torchvision(spec: DataSpec, seed: int) -> ImageData:
    """A torchvision data set by name (``options.dataset: CIFAR10``), downloaded on demand."""
    from trainers.data.torchvision_sets import read_images

    refuse_options(spec, (*AUGMENT, "dataset", "mean", "std", "download"))
    normalisation = normalisation_of(spec)
    train, test = read_images(root_of(spec), spec.options, normalisation)
    return _in_memory_split(spec, seed, train, test)


def _in_memory_split(
    spec: DataSpec, seed: int, train: InMemoryImages, test: InMemoryImages
) -> ImageData:
    shape = tuple(train.pixels.shape[1:])
    return split(
        train,
        test,
        holdout=spec.holdout,
        seed=seed,
        num_classes=int(max(train.labels.max(), test.labels.max())) + 1,
        input_shape=(shape[0], shape[1], shape[2]),
        augment=small_augment(spec, AugmentSpec()),
    )


def _image_folder(spec: DataSpec, seed: int) -> ImageData:
    """Image files in class folders, decoded on demand; see ``large_sets.py``."""
    from trainers.data.large_sets import image_folder

    return image_folder(spec, seed)


def _image_shards(spec: DataSpec, seed: int) -> ImageData:
    """Encoded images in Parquet shards, decoded on demand; see ``large_sets.py``."""
    from trainers.data.large_sets import image_shards

    return image_shards(spec, seed)


_SOURCES: dict[str, Callable[[DataSpec, int], ImageData]] = {
    "digits": _digits,
    "imagefolder": _image_folder,
    "imagenet_parquet": _image_shards,
    "parquet": _parquet,
    "torchvision": _torchvision,
}


def input_shape(spec: DataSpec) -> tuple[int, int, int]:
    """(channels, height, width) of one image, read without decoding the whole set.

    Raises:
        DataError: unknown name or unreadable file.
    """
    _check_name(spec.name)
    return _SHAPES[spec.name](spec)


def input_rule(spec: DataSpec) -> dict[str, Any]:
    """What an image goes through before a network sees it in an evaluation; nothing is read.

    Returns:
        ``mean`` and ``std``, a number a channel, of pixels divided by 255; for sets of images of
        any size also ``interpolation``, ``shorter_side`` (pixels after the resize) and ``crop``
        (side of the central square).

    Raises:
        DataError: unknown name, or a wrong option.
    """
    _check_name(spec.name)
    rule: dict[str, Any] = {}
    normalisation = _DIGITS if spec.name == "digits" else normalisation_of(spec)
    if spec.name in ON_DEMAND:
        view = view_of(spec)
        rule = {
            "interpolation": view.interpolation,
            "shorter_side": view.eval_resize,
            "crop": view.resolution,
        }
    return {**rule, "mean": list(normalisation.mean), "std": list(normalisation.std)}


def known_classes(spec: DataSpec) -> int | None:
    """Number of classes as the set or its layout declares it, without reading labels.

    Returns:
        None where nothing declares it, or the images are not here.

    Raises:
        DataError: unknown name, no such folder, or a damaged manifest.
    """
    _check_name(spec.name)
    if spec.name == "digits":
        return 10
    if spec.name == "torchvision":
        return _torchvision_classes(spec)
    if spec.name in ON_DEMAND:
        from trainers.data.large_sets import declared_classes

        return declared_classes(spec)
    return None


def source_fingerprint(spec: DataSpec) -> str:
    """A quick hash of what the specification points at, for telling whether a step is current.

    Files count by name, size and their first and last MiB: a changed file is noticed without
    reading 150 GB. Of an image folder only names and sizes count: an image is smaller than that,
    so the whole set would be read. Sets in memory are hashed whole by the phase that reads them.
    """
    _check_name(spec.name)
    digest = hashlib.sha256(spec.name.encode())
    if spec.path is not None and spec.name == "imagefolder":
        from trainers.data.large_sets import folder_listing

        digest.update("\n".join(folder_listing(spec.path)).encode(errors="surrogateescape"))
    elif spec.path is not None:
        root = Path(spec.path)
        files = [root] if root.is_file() else sorted(p for p in root.rglob("*") if p.is_file())
        for path in files:
            size = path.stat().st_size
            digest.update(f"{path.relative_to(root.parent)}:{size}".encode())
            with path.open("rb") as file:
                digest.update(file.read(2**20))
                file.seek(max(0, size - 2**20))
                digest.update(file.read())
    return digest.hexdigest()[:16]


def _viewed_shape(spec: DataSpec) -> tuple[int, int, int]:
    from trainers.data.large_sets import viewed_shape

    return viewed_shape(spec)


def _parquet_shape(spec: DataSpec) -> tuple[int, int, int]:
    from trainers.data.parquet import first_image_shape

    return first_image_shape(root_of(spec))


def _torchvision_shape(spec: DataSpec) -> tuple[int, int, int]:
    from trainers.data.torchvision_sets import shape_of

    return shape_of(spec.options.get("dataset"))


def _torchvision_classes(spec: DataSpec) -> int:
    from trainers.data.torchvision_sets import classes_of

    return classes_of(spec.options.get("dataset"))


_SHAPES: dict[str, Callable[[DataSpec], tuple[int, int, int]]] = {
    "digits": lambda spec: (1, 8, 8),
    "imagefolder": _viewed_shape,
    "imagenet_parquet": _viewed_shape,
    "parquet": _parquet_shape,
    "torchvision": _torchvision_shape,
}
