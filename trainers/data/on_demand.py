"""How is a set trained on that does not fit into memory? Image by image, when its turn comes.

A reader knows where the encoded images are; this set decodes them, cuts its view out of each and
normalises. Only labels and places are in memory.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator
from functools import partial
from typing import Protocol

import numpy as np
import torch
from torch import Tensor

from trainers.data.augment import Augmentation
from trainers.data.bad_samples import BadSamples
from trainers.data.images import ImageSet, Request
from trainers.data.prefetch import DecodePool, Task
from trainers.data.views import BrokenImageError, View


class ImageReader(Protocol):
    """Where encoded images come from.

    Attributes:
        labels: int64 [N].
        fingerprint: hash of what identifies the images.
    """

    labels: Tensor
    fingerprint: str

    def read(self, index: int) -> bytes:
        """The encoded image ``index``; any thread may ask.

        Raises:
            BrokenImageError: what is there is no image.
            DataError: the file system does not give it.
        """

    def place(self, index: int) -> str:
        """Where that is, for messages: a file, or a file and a row."""


class ImagesOnDemand(ImageSet):
    """Images of any size behind a reader.

    Args:
        reader: where they are.
        view: what of an image is seen.
        pool: the threads that decode.
        bad: what to do with broken ones.
        indices: int64 [N] into the reader; None for all.
        fingerprint: None for the reader's.
    """

    def __init__(
        self,
        reader: ImageReader,
        view: View,
        pool: DecodePool,
        bad: BadSamples,
        indices: Tensor | None = None,
        fingerprint: str | None = None,
    ) -> None:
        self.reader, self.view, self.pool, self.bad = reader, view, pool, bad
        self.indices = torch.arange(len(reader.labels)) if indices is None else indices
        self.labels = reader.labels[self.indices]
        self.fingerprint = fingerprint or reader.fingerprint
        self._table = view.table()

    def batch(self, indices: Tensor, augmentation: Augmentation | None) -> tuple[Tensor, Tensor]:
        """See ``ImageSet.batch``; broken images that may be skipped are left out."""
        return next(self.batches([Request(indices=indices, augmentation=augmentation)]))

    def batches(
        self, requests: Iterable[Request], *, pinned: bool = False
    ) -> Iterator[tuple[Tensor, Tensor]]:
        """See ``ImageSet.batches``; decoded ahead by the pool."""
        return self.pool.run(partial(self._begin, request, pinned) for request in requests)

    def subset(self, indices: Tensor) -> ImagesOnDemand:
        """See ``ImageSet.subset``; shares reader, threads and list of broken images."""
        digest = hashlib.sha256(self.fingerprint.encode())
        digest.update(indices.contiguous().numpy().data)
        return ImagesOnDemand(
            self.reader,
            self.view,
            self.pool,
            self.bad,
            self.indices[indices],
            digest.hexdigest()[:16],
        )

    def _begin(self, request: Request, pinned: bool) -> Task:
        side = self.view.resolution
        shape = (len(request.indices), self.view.channels, side, side)
        images = torch.empty(shape, pin_memory=pinned)
        buffer = images.numpy()
        rows = tuple(
            self.pool.submit(self._fill, buffer[row], index, request, row)
            for row, index in enumerate(request.indices.tolist())
        )
        return Task(images=images, rows=rows)

    def _fill(self, out: np.ndarray, index: int, request: Request, row: int) -> int | None:
        """Write one image, float32 [C, H, W], into ``out``; its label, None when it is left out.

        A broken training image is replaced by the next one of the set, so that batches keep their
        size and every rank and every resume makes the same choice.
        """
        for step in range(len(self) if request.replace_broken else 1):
            at = (index + step) % len(self)
            where = int(self.indices[at])
            try:
                pixels = self.view.pixels(self.reader.read(where), request.augmentation, row)
            except BrokenImageError as error:
                self.bad.note(self.reader.place(where), str(error))
                continue
            levels = pixels.numpy()
            for channel, table in enumerate(self._table):
                np.take(table, levels[channel], out=out[channel], mode="clip")
            return int(self.labels[at])
        return None
