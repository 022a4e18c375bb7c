"""Images as files in a folder for each class, ``train/<class>/*`` and ``val/<class>/*``.

The layout of torchvision's ``ImageFolder`` and of ImageNet as it is distributed. Class numbers are
the order of the class folders' names in ``train``; the evaluation split must not have others.
"""

from __future__ import annotations

import hashlib
import os
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from trainers.data.views import unreadable
from trainers.errors import DataError

# torchvision's list; whatever else lies in a class folder is no image.
EXTENSIONS = (".jpg", ".jpeg", ".png", ".ppm", ".bmp", ".pgm", ".tif", ".tiff", ".webp")
EVALUATION_SPLITS = ("val", "test")


@dataclass(kw_only=True)
class FolderReader:
    """One split.

    Attributes:
        root: its folder.
        names: file names below ``root``, bytes [N] of one width (a tenth of a list's memory).
        labels: int64 [N].
        classes: names of all classes.
        fingerprint: hash of names, sizes and labels. Contents are not read: 150 GB.
    """

    root: Path
    names: np.ndarray
    labels: Tensor
    classes: tuple[str, ...]
    fingerprint: str

    def read(self, index: int) -> bytes:
        """See ``ImageReader.read``."""
        try:
            with open(self._path(index), "rb") as file:
                return file.read()
        except OSError as error:
            raise unreadable(self._path(index), error) from error

    def place(self, index: int) -> str:
        """See ``ImageReader.place``."""
        return self._path(index)

    def _path(self, index: int) -> str:
        return os.path.join(self.root, os.fsdecode(bytes(self.names[index])))


def evaluation_split(root: str, asked: object = None) -> str:
    """The name of the split that accuracies are measured on.

    Args:
        root: of the data set.
        asked: ``data.options.eval_split``; None takes the one there is of val and test.

    Raises:
        DataError: there is none, or both and nobody said which.
    """
    if asked is not None:
        if not isinstance(asked, str) or not (Path(root) / asked).is_dir():
            raise DataError(f"{root}: data.options.eval_split is {asked!r}, no folder there")
        return asked
    found = [name for name in EVALUATION_SPLITS if (Path(root) / name).is_dir()]
    if len(found) != 1:
        what = "both val and test" if found else "no folder val or test"
        raise DataError(f"{root} has {what}; set data.path or data.options.eval_split")
    return found[0]


def class_names(root: str) -> tuple[str, ...]:
    """The class folders of ``train``, sorted.

    Raises:
        DataError: there is no such folder, or none in it.
    """
    folder = Path(root) / "train"
    if not folder.is_dir():
        raise DataError(f"no folder {folder}; data.path must hold train/<class>/*.jpg")
    names = _folders(folder)
    if not names:
        raise DataError(f"{folder} holds no class folders; images must be in train/<class>/")
    return names


def read_folder(root: str, split: str, classes: tuple[str, ...]) -> FolderReader:
    """List one split.

    Raises:
        DataError: no image, a class of ``train`` without one, or a class that ``train`` has not.
    """
    folder = Path(root) / split
    unknown = [name for name in _folders(folder) if name not in classes]
    if unknown:
        raise DataError(
            f"{folder} has the class {unknown[0]!r}, {Path(root) / 'train'} has not "
            f"({len(unknown)} such); the splits are of different sets"
        )
    names: list[bytes] = []
    labels: list[int] = []
    digest = hashlib.sha256("/".join(classes).encode())
    for label, name in enumerate(classes):
        found = _images(folder, name)
        if not found and split == "train":
            raise DataError(f"{folder / name} holds no image; remove the folder or fill it")
        for path, size in found:
            names.append(os.fsencode(path))
            labels.append(label)
            digest.update(f"{path}:{size}\n".encode(errors="surrogateescape"))
    if not names:
        raise DataError(f"the {split} split is empty: no image below {folder}")
    return FolderReader(
        root=folder,
        names=np.array(names),
        labels=torch.tensor(labels, dtype=torch.int64),
        classes=classes,
        fingerprint=digest.hexdigest()[:16],
    )


def _folders(folder: Path) -> tuple[str, ...]:
    with os.scandir(folder) as entries:
        return tuple(sorted(e.name for e in entries if e.is_dir() and not e.name.startswith(".")))


def _images(folder: Path, name: str) -> list[tuple[str, int]]:
    """(path below ``folder``, bytes) of the images of a class, sorted; nested folders count."""
    found: list[tuple[str, int]] = []
    pending = [name]
    while pending:
        below = pending.pop()
        if not (folder / below).is_dir():
            continue
        with os.scandir(folder / below) as entries:
            for entry in entries:
                path = f"{below}/{entry.name}"
                if entry.name.startswith("."):
                    continue
                if entry.is_dir():
                    pending.append(path)
                elif entry.name.lower().endswith(EXTENSIONS):
                    found.append((path, entry.stat().st_size))
    return sorted(found)
