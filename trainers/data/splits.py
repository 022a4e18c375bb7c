"""Which images are trained on, chosen on, measured on?

``holdout`` takes a share of the *training* images for choices, class-balanced and by the run's
seed, so that nothing is ever chosen on the test images.
"""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor

from trainers.data.augment import AugmentSpec
from trainers.data.bad_samples import BadSamples
from trainers.data.batches import balanced_fraction
from trainers.data.images import ImageData, ImageSet
from trainers.errors import DataError
from trainers.seeds import derive, generator


def split(
    train: ImageSet,
    test: ImageSet,
    *,
    holdout: float,
    seed: int,
    num_classes: int,
    input_shape: tuple[int, int, int],
    augment: AugmentSpec,
    bad: BadSamples | None = None,
) -> ImageData:
    """Set aside ``holdout`` of the training images, and refuse a split that is empty."""
    held: ImageSet | None = None
    if holdout > 0:
        chosen = balanced_fraction(train.labels, holdout, derive(seed, "holdout"))
        rest = complement(len(train), chosen)
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
        bad=bad,
    )


def at_most(most: int | None, data: ImageData, seed: int) -> ImageData:
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


def complement(size: int, indices: Tensor) -> Tensor:
    """The indices below ``size`` that are not in ``indices``, ascending."""
    keep = torch.ones(size, dtype=torch.bool)
    keep[indices] = False
    return keep.nonzero().flatten()
