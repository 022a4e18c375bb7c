"""What a set of labelled images is to a phase: something that yields whole batches by index.

``ImageSet.batch(indices, augmentation)`` gives one batch and ``batches`` many, where a set may work
ahead; there is no other way to pixels. The augmentation of an image is drawn from (seed, epoch,
position in the global batch), never from a worker's own stream, so a batch is the same on one
rank or eight, with any number of decoding threads, first run or resumed.
"""

from __future__ import annotations

import hashlib
from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from trainers.data.augment import Augmentation, AugmentSpec
from trainers.data.bad_samples import BadSamples
from trainers.errors import DataError


@dataclass(frozen=True, kw_only=True, slots=True)
class Normalisation:
    """Per-channel mean and standard deviation in [0, 1] pixel units."""

    mean: tuple[float, ...]
    std: tuple[float, ...]

    def apply(self, pixels_BCHW: Tensor) -> Tensor:
        """uint8 [B, C, H, W] to normalised float32 of the same shape."""
        mean = torch.tensor(self.mean).view(1, -1, 1, 1)
        std = torch.tensor(self.std).view(1, -1, 1, 1)
        return (pixels_BCHW.float() / 255.0 - mean) / std


@dataclass(frozen=True, kw_only=True, slots=True)
class Request:
    """One batch to be made.

    Attributes:
        indices: int64 [B] into the set.
        augmentation: draws for these B images, None for evaluation.
        replace_broken: put another image where one cannot be decoded (and may be skipped), so
            that the batch keeps its size; false leaves it out.
    """

    indices: Tensor
    augmentation: Augmentation | None = None
    replace_broken: bool = False


class ImageSet(ABC):
    """Images with integer labels, read by index.

    Attributes:
        labels: int64 [N], always in memory.
        fingerprint: hash of the content, or of what identifies it where hashing all is too slow.
    """

    labels: Tensor
    fingerprint: str

    def __len__(self) -> int:
        return len(self.labels)

    @abstractmethod
    def batch(self, indices: Tensor, augmentation: Augmentation | None) -> tuple[Tensor, Tensor]:
        """Normalised float32 images [B, C, H, W] and int64 labels [B].

        Args:
            indices: int64 [B] into this set.
            augmentation: draws for these B images, None for evaluation.
        """

    def batches(
        self, requests: Iterable[Request], *, pinned: bool = False
    ) -> Iterator[tuple[Tensor, Tensor]]:
        """One batch for each request, in order.

        Args:
            requests: taken as far ahead as the set wants to work.
            pinned: give page-locked memory, which a GPU copies from without waiting.
        """
        for request in requests:
            images, labels = self.batch(request.indices, request.augmentation)
            yield (images.pin_memory(), labels.pin_memory()) if pinned else (images, labels)

    @abstractmethod
    def subset(self, indices: Tensor) -> ImageSet:
        """The set of these images, in this order."""


class InMemoryImages(ImageSet):
    """All pixels as one uint8 tensor [N, C, H, W]: the fastest form for small images."""

    def __init__(self, pixels: Tensor, labels: Tensor, normalisation: Normalisation) -> None:
        if pixels.dtype != torch.uint8 or pixels.ndim != 4 or len(pixels) != len(labels):
            raise DataError(
                f"images must be uint8 [N, C, H, W] with N labels; got {pixels.dtype} "
                f"{tuple(pixels.shape)} with {len(labels)} labels"
            )
        if pixels.shape[1] != len(normalisation.mean):
            raise DataError(
                f"images have {pixels.shape[1]} channels, the normalisation has "
                f"{len(normalisation.mean)}; set data.options.mean and data.options.std"
            )
        self.pixels = pixels
        self.labels = labels.long()
        self.normalisation = normalisation
        digest = hashlib.sha256(pixels.contiguous().numpy().data)
        digest.update(self.labels.contiguous().numpy().data)
        self.fingerprint = digest.hexdigest()[:16]

    def batch(self, indices: Tensor, augmentation: Augmentation | None) -> tuple[Tensor, Tensor]:
        """See ``ImageSet.batch``."""
        images = self.normalisation.apply(self.pixels[indices])
        if augmentation is not None:
            images = augmentation.apply(images)
        return images, self.labels[indices]

    def subset(self, indices: Tensor) -> InMemoryImages:
        """See ``ImageSet.subset``."""
        return InMemoryImages(self.pixels[indices], self.labels[indices], self.normalisation)


@dataclass(frozen=True, kw_only=True, slots=True)
class ImageData:
    """A data set as the phases use it.

    Attributes:
        train: images to learn from.
        test: images that accuracies are reported on; nothing is chosen on them.
        holdout: training images set aside for choices; empty when none were asked for.
        num_classes: number of labels.
        input_shape: (channels, height, width) of one image after preprocessing.
        augment: what training images go through.
        bad: broken images met so far; None for sets that are checked when they are read.
    """

    train: ImageSet
    test: ImageSet
    holdout: ImageSet | None
    num_classes: int
    input_shape: tuple[int, int, int]
    augment: AugmentSpec
    bad: BadSamples | None = None

    @property
    def fingerprint(self) -> str:
        """Hash over the content and the split."""
        parts = [self.train.fingerprint, self.test.fingerprint]
        parts.append(self.holdout.fingerprint if self.holdout is not None else "-")
        return hashlib.sha256("/".join(parts).encode()).hexdigest()[:16]
