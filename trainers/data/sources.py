"""Which data sets are there, and how is each split?

A source is a function ``(DataSpec, seed) -> ImageData``. Sets without a test split of their own
(digits) are split here, class-balanced and by the run's seed; ``holdout`` takes a share of the
*training* images for choices, so that nothing is ever chosen on the test images.
"""

from __future__ import annotations

import difflib
import hashlib
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import torch
from torch import Tensor

from trainers.data.augment import AugmentSpec
from trainers.data.batches import balanced_fraction
from trainers.data.images import ImageData, ImageSet, InMemoryImages, Normalisation
from trainers.errors import DataError
from trainers.phases import DataSpec
from trainers.seeds import derive, generator

AUGMENT = ("pad", "flip")


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
    return _at_most(spec.max_images, _SOURCES[spec.name](spec, seed), seed)


def _at_most(most: int | None, data: ImageData, seed: int) -> ImageData:
    """No more than ``most`` images of each split: a rehearsal wants a handful of any set."""
    if most is None:
        return data

    def some(images: ImageSet, name: str) -> ImageSet:
        if len(images) <= most:
            return images
        rng = generator(seed, "max-images", name)
        return images.subset(torch.randperm(len(images), generator=rng)[:most].sort().values)

    return replace(
        data,
        train=some(data.train, "train"),
        test=some(data.test, "test"),
        holdout=None if data.holdout is None else some(data.holdout, "holdout"),
    )


def _check_name(name: str) -> None:
    if name not in _SOURCES:
        near = difflib.get_close_matches(name, _SOURCES, n=1)
        hint = f"; did you mean {near[0]!r}?" if near else ""
        raise DataError(f"unknown data set {name!r}{hint} (there are: {', '.join(_SOURCES)})")


def split(
    train: ImageSet,
    test: ImageSet,
    *,
    holdout: float,
    seed: int,
    num_classes: int,
    input_shape: tuple[int, int, int],
    augment: AugmentSpec,
) -> ImageData:
    """Set aside ``holdout`` of the training images, and refuse a split that is empty."""
    held: ImageSet | None = None
    if holdout > 0:
        chosen = balanced_fraction(train.labels, holdout, derive(seed, "holdout"))
        rest = _complement(len(train), chosen)
        train, held = train.subset(rest), train.subset(chosen)
    for name, part in (("train", train), ("test", test)):
        if len(part) == 0:
            raise DataError(f"the {name} split is empty; check the path and the holdout share")
    return ImageData(
        train=train,
        test=test,
        holdout=held,
        num_classes=num_classes,
        input_shape=input_shape,
        augment=augment,
    )


def _digits(spec: DataSpec, seed: int) -> ImageData:
    """Scikit-learn's handwritten digits: 1,797 images 8x8, 10 classes, no download.

    A quarter of each class is the test split (fixed, not by the run's seed, so that accuracies of
    different seeds are on the same images).
    """
    _refuse_options(spec, AUGMENT)
    from sklearn.datasets import load_digits

    raw = load_digits()
    # Grey levels are 0..16; spread over 0..255 they fit the uint8 form of every other set.
    pixels = torch.from_numpy(raw.images * (255.0 / 16.0)).round().to(torch.uint8)[:, None]
    labels = torch.from_numpy(raw.target).long()
    test_at = balanced_fraction(labels, 0.25, derive(0, "digits-test"))
    everything = InMemoryImages(pixels, labels, Normalisation(mean=(0.305,), std=(0.376,)))
    return split(
        everything.subset(_complement(len(labels), test_at)),
        everything.subset(test_at),
        holdout=spec.holdout,
        seed=seed,
        num_classes=10,
        input_shape=(1, 8, 8),
        augment=_augment(spec, AugmentSpec(pad=1)),
    )


def _parquet(spec: DataSpec, seed: int) -> ImageData:
    """Parquet files with encoded images and labels; see ``parquet.py``."""
    from trainers.data.parquet import read_images

    _refuse_options(spec, (*AUGMENT, "mean", "std"))
    root = _root(spec)
    normalisation = _normalisation(spec)
    train = read_images(root, "train", normalisation)
    test = read_images(root, "test", normalisation)
    return _in_memory_split(spec, seed, train, test)


def _torchvision(spec: DataSpec, seed: int) -> ImageData:
    """A torchvision data set by name (``options.dataset: CIFAR10``), downloaded on demand."""
    from trainers.data.torchvision_sets import read_images

    _refuse_options(spec, (*AUGMENT, "dataset", "mean", "std", "download"))
    normalisation = _normalisation(spec)
    train, test = read_images(_root(spec), spec.options, normalisation)
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
        augment=_augment(spec, AugmentSpec()),
    )


def _augment(spec: DataSpec, default: AugmentSpec) -> AugmentSpec:
    """The training augmentation: ``options.pad`` and ``options.flip``, else the set's default."""
    pad, flip = spec.options.get("pad", default.pad), spec.options.get("flip", default.flip)
    if isinstance(pad, bool) or not isinstance(pad, int) or pad < 0 or not isinstance(flip, bool):
        raise DataError(
            f"data.options: pad is {pad!r} and flip is {flip!r}; pad is a whole number of pixels, "
            "0 or more, and flip is true or false"
        )
    return AugmentSpec(pad=pad, flip=flip)


def _root(spec: DataSpec) -> str:
    if spec.path is None:
        raise DataError(f"data set {spec.name!r} needs data.path")
    return spec.path


def _normalisation(spec: DataSpec) -> Normalisation:
    """Mean and std of the configuration, else ImageNet's, as pretrained networks expect."""
    mean = tuple(spec.options.get("mean", (0.485, 0.456, 0.406)))
    std = tuple(spec.options.get("std", (0.229, 0.224, 0.225)))
    if len(mean) != len(std) or any(s <= 0 for s in std):
        raise DataError(f"data.options: mean {mean} and std {std} must be positive, one a channel")
    return Normalisation(mean=mean, std=std)


def _refuse_options(spec: DataSpec, allowed: tuple[str, ...]) -> None:
    for option in spec.options:
        if option not in allowed:
            raise DataError(
                f"data set {spec.name!r} has no option {option!r} "
                f"(it has: {', '.join(allowed) or 'none'})"
            )


def _complement(size: int, indices: Tensor) -> Tensor:
    keep = torch.ones(size, dtype=torch.bool)
    keep[indices] = False
    return keep.nonzero().flatten()


_SOURCES: dict[str, Callable[[DataSpec, int], ImageData]] = {
    "digits": _digits,
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


def source_fingerprint(spec: DataSpec) -> str:
    """A quick hash of what the specification points at, for telling whether a step is current.

    Files count by name, size and their first and last MiB: a changed file is noticed without
    reading 150 GB. What a phase has really read is hashed whole, in its result.
    """
    _check_name(spec.name)
    digest = hashlib.sha256(spec.name.encode())
    if spec.path is not None:
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


def _parquet_shape(spec: DataSpec) -> tuple[int, int, int]:
    from trainers.data.parquet import first_image_shape

    return first_image_shape(_root(spec))


def _torchvision_shape(spec: DataSpec) -> tuple[int, int, int]:
    from trainers.data.torchvision_sets import shape_of

    return shape_of(spec.options.get("dataset"))


_SHAPES: dict[str, Callable[[DataSpec], tuple[int, int, int]]] = {
    "digits": lambda spec: (1, 8, 8),
    "parquet": _parquet_shape,
    "torchvision": _torchvision_shape,
}
