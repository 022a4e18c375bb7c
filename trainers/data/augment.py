"""Which random change does each training image get? Drawn per image, reproducible by address.

The standard small-image recipe: zero padding, a random crop back to size, a random horizontal
flip. Draws are made for the whole global batch from one generator and cut to this rank's part, so
they do not depend on how many ranks share the batch.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F


@dataclass(frozen=True, kw_only=True, slots=True)
class AugmentSpec:
    """What may happen to a training image.

    Attributes:
        pad: zero pixels added on each side before the random crop; 0 for none.
        flip: mirror half of the images left to right. Wrong for digits and text.
    """

    pad: int = 0
    flip: bool = False


@dataclass(frozen=True, kw_only=True, slots=True)
class Augmentation:
    """The draws for one batch: crop offsets int64 [B, 2] (rows, columns) and flips bool [B]."""

    spec: AugmentSpec
    offsets: Tensor
    flips: Tensor

    @classmethod
    def draw(cls, spec: AugmentSpec, num_images: int, rng: torch.Generator) -> Augmentation:
        """Draw for ``num_images`` images."""
        return cls(
            spec=spec,
            offsets=torch.randint(0, 2 * spec.pad + 1, (num_images, 2), generator=rng),
            flips=torch.rand(num_images, generator=rng) < (0.5 if spec.flip else 0.0),
        )

    def part(self, start: int, stop: int) -> Augmentation:
        """The draws of images ``start`` to ``stop`` of the batch."""
        return Augmentation(
            spec=self.spec, offsets=self.offsets[start:stop], flips=self.flips[start:stop]
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
