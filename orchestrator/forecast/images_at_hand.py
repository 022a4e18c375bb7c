"""Are a run's images here, and how many are there? Looked at without decoding them.

A plan must not need them: a recipe leaves ``data.path`` to whoever has the images, and is planned
with what is known about the set. A run needs them.
"""

from __future__ import annotations

import os
from dataclasses import dataclass, replace
from pathlib import Path

from orchestrator.config_schema import ExperimentConfig
from orchestrator.forecast.work_of_plan import ImageCount
from orchestrator.literature import dataset_of
from trainers.errors import DataError
from trainers.phases import DataSpec

# ILSVRC-2012 as published: images, and bytes of its two archives.
IMAGENET = ImageCount(train=1_281_167, test=50_000)
IMAGENET_BYTES = 147_897_477_120 + 6_744_924_160
UNKNOWN = "unknown"


@dataclass(frozen=True, kw_only=True, slots=True)
class ImagesAtHand:
    """What is known about the images of a run.

    Attributes:
        are_here: whether the configuration says where they are, and they were looked at.
        fingerprint: quick hash of their source; ``unknown`` where they are not here.
        count: how many; None = unknown.
        size_bytes: of their files; None = unknown or none.
        told: one clause for a person.
    """

    are_here: bool
    fingerprint: str
    count: ImageCount | None
    size_bytes: int | None
    told: str


def images_at_hand(config: ExperimentConfig) -> ImagesAtHand:
    """Look at the images of a configuration, or say that it names none.

    Nothing is downloaded: that is for a run.

    Raises:
        DataError: what it names cannot be read.
    """
    from trainers.data import source_fingerprint

    data = config.data
    if not needs_path(config) or data.path is not None:
        try:
            count = _counted(config)
        except DataError:
            if not data.options.get("download"):
                raise
            return _to_be_downloaded()
        size = None if data.path is None else _size_bytes(Path(data.path))
        return ImagesAtHand(
            are_here=True,
            fingerprint=source_fingerprint(data.spec()),
            count=count,
            size_bytes=size,
            told=f"{count.train:,} to train on, {count.test:,} to measure on",
        )
    known = dataset_of(data.name, config.model.num_classes) == "imagenet"
    reckoned = "reckoned as ImageNet-1k" if known else "their number is unknown"
    return ImagesAtHand(
        are_here=False,
        fingerprint=UNKNOWN,
        count=_limited(config, IMAGENET) if known else None,
        size_bytes=IMAGENET_BYTES if known else None,
        told=f"not given here, fingerprint unknown, {reckoned}; give --set data.path=FOLDER",
    )


def _to_be_downloaded() -> ImagesAtHand:
    return ImagesAtHand(
        are_here=False,
        fingerprint=UNKNOWN,
        count=None,
        size_bytes=None,
        told="not here yet, a run downloads them (data.options.download); number and fingerprint "
        "are unknown",
    )


def without_download(spec: DataSpec) -> DataSpec:
    """The images as they are: a set that is not here is an error and not fetched."""
    return replace(spec, options={k: v for k, v in spec.options.items() if k != "download"})


def needs_path(config: ExperimentConfig) -> bool:
    """Whether the images are files that somebody must point at."""
    return config.data.name != "digits"


def require_path(config: ExperimentConfig) -> None:
    """Refuse to run without images, before anything is started.

    Raises:
        DataError: the configuration says nowhere where they are.
    """
    if needs_path(config) and config.data.path is None:
        raise DataError(
            f"data set {config.data.name!r} needs data.path: give the folder of the images with "
            "--set data.path=FOLDER (mpq plan needs none; mpq run --rehearse makes some)"
        )


def _counted(config: ExperimentConfig) -> ImageCount:
    from trainers.data import load_data

    data = config.data
    if data.name == "parquet" and data.path is not None:
        train, test = (_rows(data.path, part) for part in ("train", "test"))
        train -= round(data.holdout * train)
        return _limited(config, ImageCount(train=train, test=test))
    found = load_data(without_download(data.spec()), config.seed)
    return ImageCount(train=len(found.train), test=len(found.test))


def _rows(root: str, part: str) -> int:
    """Rows of a split, from the footers of its files: decoding them all would take minutes."""
    import pyarrow.parquet as pq

    from trainers.data.parquet import shards

    try:
        return sum(pq.read_metadata(path).num_rows for path in shards(root, part))
    except (OSError, ValueError) as error:
        raise DataError(f"cannot read the {part} split below {root}: {error}") from error


def _limited(config: ExperimentConfig, count: ImageCount) -> ImageCount:
    most = config.data.max_images
    if most is None:
        return count
    return ImageCount(train=min(most, count.train), test=min(most, count.test))


def _size_bytes(path: Path) -> int:
    if path.is_file():
        return path.stat().st_size
    return sum(
        (Path(folder) / name).stat().st_size for folder, _, names in os.walk(path) for name in names
    )
