"""Images in Parquet: columns ``image`` (PNG or JPEG bytes) and ``label`` (integer).

``path`` holds ``train.parquet`` and ``test.parquet``, or folders ``train/`` and ``test/`` of
shards read in name order. A broken image stops the run with file and row: a silently shorter data
set is another data set.
"""

from __future__ import annotations

import io
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import torch

from trainers.data.images import InMemoryImages, Normalisation
from trainers.errors import DataError


def shards(root: str, part: str) -> list[Path]:
    """The files of one split.

    Raises:
        DataError: there are none.
    """
    single, folder = Path(root) / f"{part}.parquet", Path(root) / part
    found = [single] if single.is_file() else sorted(folder.glob("*.parquet"))
    if not found:
        raise DataError(f"no {single} and no Parquet files in {folder}; set data.path")
    return found


def read_images(root: str, part: str, normalisation: Normalisation) -> InMemoryImages:
    """Decode one split into memory; all images must have one size.

    Raises:
        DataError: a file or image is unreadable, a column is missing, sizes differ, a label is no
            integer from 0, or there is no image.
    """
    pixels: list[np.ndarray] = []
    labels: list[int] = []
    for path in shards(root, part):
        try:
            table = pq.read_table(path, columns=["image", "label"])
        except Exception as error:
            raise DataError(f"cannot read {path}: {error}") from error
        images = table.column("image").to_pylist()
        for row, (encoded, label) in enumerate(
            zip(images, table.column("label").to_pylist(), strict=True)
        ):
            pixels.append(_decode(encoded, path, row))
            if not isinstance(label, int) or label < 0:
                raise DataError(
                    f"{path}, row {row}: label is {label!r}; it must be an integer, 0 or more"
                )
            labels.append(label)
            if pixels[-1].shape != pixels[0].shape:
                raise DataError(
                    f"{path}, row {row}: image is {pixels[-1].shape}, the first is "
                    f"{pixels[0].shape}; this source takes images of one size"
                )
    if not pixels:
        raise DataError(f"{Path(root) / part}: its Parquet files hold no image")
    stacked = torch.from_numpy(np.stack(pixels)).permute(0, 3, 1, 2).contiguous()
    return InMemoryImages(stacked, torch.tensor(labels), normalisation)


def first_image_shape(root: str) -> tuple[int, int, int]:
    """(channels, height, width) of the first training image.

    Raises:
        DataError: no file, no row, or a broken image.
    """
    path = shards(root, "train")[0]
    try:
        first = next(pq.ParquetFile(path).iter_batches(batch_size=1, columns=["image"]), None)
    except Exception as error:
        raise DataError(f"cannot read {path}: {error}") from error
    if first is None or len(first) == 0:
        raise DataError(f"{path} holds no image")
    height, width, channels = _decode(first.column("image")[0].as_py(), path, 0).shape
    return channels, height, width


def _decode(encoded: bytes | None, path: Path, row: int) -> np.ndarray:
    from PIL import Image

    try:
        with Image.open(io.BytesIO(encoded or b"")) as image:
            # A palette's pixels are indices into it, not grey levels.
            array = np.asarray(image.convert("RGB") if image.mode == "P" else image)
    except MemoryError:
        raise
    except Exception as error:
        raise DataError(f"{path}, row {row}: broken image: {error}") from error
    if array.dtype != np.uint8:
        raise DataError(f"{path}, row {row}: image has {array.dtype} pixels; 8 bits are needed")
    return array[:, :, None] if array.ndim == 2 else array
