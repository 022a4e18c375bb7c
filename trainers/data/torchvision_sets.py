"""Small torchvision data sets by class name, held in memory."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch

from trainers.data.images import InMemoryImages, Normalisation
from trainers.errors import DataError

# Those whose images and labels torchvision keeps as plain arrays.
ARRAY_SETS = {
    "CIFAR10": (3, 32, 32),
    "CIFAR100": (3, 32, 32),
    "MNIST": (1, 28, 28),
    "FashionMNIST": (1, 28, 28),
    "KMNIST": (1, 28, 28),
    "QMNIST": (1, 28, 28),
}


def shape_of(name: object) -> tuple[int, int, int]:
    """(channels, height, width) of the images of a set.

    Raises:
        DataError: unknown set.
    """
    if name not in ARRAY_SETS:
        raise DataError(f"data.options.dataset is {name!r}; allowed: {', '.join(ARRAY_SETS)}")
    return ARRAY_SETS[str(name)]


def classes_of(name: object) -> int:
    """Number of classes of a set.

    Raises:
        DataError: unknown set.
    """
    shape_of(name)
    return 100 if name == "CIFAR100" else 10


def read_images(
    root: str, options: Mapping[str, Any], normalisation: Normalisation
) -> tuple[InMemoryImages, InMemoryImages]:
    """(train, test) of ``options['dataset']``, downloaded only with ``options['download']``.

    Raises:
        DataError: unknown set, or its files are not below ``root``.
    """
    from torchvision import datasets

    name = options.get("dataset")
    shape_of(name)
    parts = []
    for train in (True, False):
        try:
            raw = getattr(datasets, str(name))(
                root, train=train, download=bool(options.get("download", False))
            )
        except Exception as error:
            raise DataError(f"cannot read {name} below {root}: {error}") from error
        pixels = torch.as_tensor(raw.data)
        pixels = pixels[:, None] if pixels.ndim == 3 else pixels.permute(0, 3, 1, 2)
        parts.append(
            InMemoryImages(pixels.contiguous(), torch.as_tensor(raw.targets), normalisation)
        )
    return parts[0], parts[1]
