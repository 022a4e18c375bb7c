"""Small torchvision data sets by class name, held in memory."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch

from trainers.data.images import InMemoryImages, Normalisation
from trainers.errors import DataError

# Those whose images and labels torchvision keeps as plain arrays.
ARRAY_SETS = ("CIFAR10", "CIFAR100", "MNIST", "FashionMNIST", "KMNIST", "QMNIST")


def read_images(
    root: str, options: Mapping[str, Any], normalisation: Normalisation
) -> tuple[InMemoryImages, InMemoryImages]:
    """(train, test) of ``options['dataset']``, downloaded only with ``options['download']``.

    Raises:
        DataError: unknown set, or its files are not below ``root``.
    """
    from torchvision import datasets

    name = options.get("dataset")
    if name not in ARRAY_SETS:
        raise DataError(f"data.options.dataset is {name!r}; allowed: {', '.join(ARRAY_SETS)}")
    parts = []
    for train in (True, False):
        try:
            raw = getattr(datasets, name)(
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
