"""Which random change does each training image get? Drawn per image, reproducible by address.

Small images: zero padding, a random crop back to size, a random horizontal flip. Images of any
size: a crop of random area and aspect, resized ("random resized crop", the ImageNet recipe).
Draws are made for the whole global batch from one generator and cut to this rank's part, so they
do not depend on how many ranks share the batch or who decodes it.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

# Tries to find a crop that fits before the central one is taken, as torchvision has it.
CROP_TRIES = 10


@dataclass(frozen=True, kw_only=True, slots=True)
class AugmentSpec:
    """What may happen to a training image.

    Attributes:
        pad: zero pixels added on each side before the random crop; 0 for none.
        flip: mirror half of the images left to right. Wrong for digits and text.
        crop_scale: (least, most) share of an image's area that its random crop keeps; None for
            the central crop. Only for sets that are decoded on demand.
        crop_ratio: (least, most) width by height of that crop.
    """

    pad: int = 0
    flip: bool = False
    crop_scale: tuple[float, float] | None = None
    crop_ratio: tuple[float, float] = (3 / 4, 4 / 3)


@dataclass(frozen=True, kw_only=True, slots=True)
class Augmentation:
    """The draws for one batch.

    Attributes:
        spec: what they are for.
        offsets: int64 [B, 2], rows and columns of the crop after padding.
        flips: bool [B].
        crops: float32 [B, tries, 4] in [0, 1): area, aspect, row and column of random resized
            crops; None without them.
    """

    spec: AugmentSpec
    offsets: Tensor
    flips: Tensor
    crops: Tensor | None = None

    @classmethod
    def draw(cls, spec: AugmentSpec, num_images: int, rng: torch.Generator) -> Augmentation:
        """Draw for ``num_images`` images."""
        return cls(
            spec=spec,
            offsets=torch.randint(0, 2 * spec.pad + 1, (num_images, 2), generator=rng),
            flips=torch.rand(num_images, generator=rng) < (0.5 if spec.flip else 0.0),
            crops=None
            if spec.crop_scale is None
            else torch.rand(num_images, CROP_TRIES, 4, generator=rng),
        )

    def part(self, start: int, stop: int) -> Augmentation:
        """The draws of images ``start`` to ``stop`` of the batch."""
        return Augmentation(
            spec=self.spec,
            offsets=self.offsets[start:stop],
            flips=self.flips[start:stop],
            crops=None if self.crops is None else self.crops[start:stop],
        )

    def apply(self, images_BCHW: Tensor) -> Tensor:
        """Normalised images in, the changed ones out, same shape.

        Padding is in normalised units, so it is the mean colour rather than black; with the usual
        statistics the difference is under a grey level and published recipes use both.
        """
        images = images_BCHW
        if self.spec.pad:
            B, C, H, W = images.shape
            padded = F.pad(images, (self.spec.pad,) * 4)
            rows = self.offsets[:, 0, None] + torch.arange(H)
            columns = self.offsets[:, 1, None] + torch.arange(W)
            at = torch.arange(B)[:, None, None, None]
            channel = torch.arange(C)[None, :, None, None]
            images = padded[at, channel, rows[:, None, :, None], columns[:, None, None, :]]
        if self.spec.flip and bool(self.flips.any()):
            images = torch.where(self.flips[:, None, None, None], images.flip(-1), images)
        return images


def crop_box(
    draws: Sequence[Sequence[float]],
    height: int,
    width: int,
    scale: tuple[float, float],
    ratio: tuple[float, float],
) -> tuple[int, int, int, int]:
    """(top, left, height, width) of the random resized crop of one image.

    The rule of torchvision's ``RandomResizedCrop`` with its random numbers given: the first try
    whose crop fits, else the largest central crop of an allowed aspect.

    Args:
        draws: [tries, 4] numbers in [0, 1) for area, aspect, row and column.
        height: of the image.
        width: of the image.
        scale: (least, most) share of the area.
        ratio: (least, most) width by height; the aspect is uniform in its logarithm.
    """
    least, most = math.log(ratio[0]), math.log(ratio[1])
    for area_u, aspect_u, row_u, column_u in draws:
        area = height * width * (scale[0] + (scale[1] - scale[0]) * area_u)
        aspect = math.exp(least + (most - least) * aspect_u)
        w, h = round(math.sqrt(area * aspect)), round(math.sqrt(area / aspect))
        if 0 < w <= width and 0 < h <= height:
            return int(row_u * (height - h + 1)), int(column_u * (width - w + 1)), h, w
    h, w = height, width
    if width / height < ratio[0]:
        h = round(width / ratio[0])
    elif width / height > ratio[1]:
        w = round(height * ratio[1])
    return (height - h) // 2, (width - w) // 2, h, w
