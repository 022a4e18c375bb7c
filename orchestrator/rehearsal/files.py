"""What does a rehearsal need on disk that the machine does not have? Images and weights, made up.

Nothing is replaced in silence: every stand-in is told, and what the experiment names but is not
there is an error as it is in a real run. Only images that nobody has named yet (``data.path`` is
null) and weights that torchvision would have to download are made.
"""

from __future__ import annotations

import os
import shutil
from dataclasses import dataclass
from pathlib import Path

from orchestrator.config_schema import ExperimentConfig
from orchestrator.config_types import is_published
from orchestrator.errors import LockedError, UserError
from orchestrator.forecast.images_at_hand import needs_path
from orchestrator.lock import lock_owner
from orchestrator.rehearsal.config import MAX_IMAGES, STEPS, SUFFIX, Stage, num_images
from orchestrator.store import RunStore
from orchestrator.yaml_source import read_yaml

MADE = "made"
# What one that was stopped early left: its configuration is stored after these, before any step.
_BEFORE_CONFIG = {MADE, "steps", "lock", "lock.guard", "journal.jsonl", "driver.log"}
# Distinct pictures; the folders of all classes hold links to them.
_PICTURES = 16
# Sides as photographs have them: the transforms must scale and crop.
_SIDES = ((320, 256), (256, 384), (500, 375), (224, 300))


@dataclass(frozen=True, kw_only=True, slots=True)
class Prepared:
    """What was made.

    Attributes:
        stage: for ``rehearsed``.
        told: one line for each stand-in and for what a rehearsal is.
    """

    stage: Stage
    told: tuple[str, ...]


def prepare(config: ExperimentConfig, *, num_workers: int = 1, has_gpus: bool = False) -> Prepared:
    """Empty the rehearsal's folder and put into it what the machine lacks.

    Args:
        config: the experiment.
        num_workers: of the rehearsal.
        has_gpus: whether workers find the GPUs they ask for.

    Raises:
        UserError: the folder belongs to a real run, or images would have to be made for a source
            that is no folder of images.
        LockedError: another process is at the same rehearsal.
    """
    store = _emptied(config)
    most = num_images(num_workers)
    told = [
        f"REHEARSAL of {config.name}: every phase for {STEPS} updates on at most {most} "
        "images; its figures mean nothing",
        f"workers: {num_workers}, {'as the experiment asks' if has_gpus else 'no GPU, float32'}",
    ]
    made = store.root / MADE
    data_path = weights = None
    if needs_path(config) and config.data.path is None:
        if config.data.name != "imagefolder":
            raise UserError(
                f"a rehearsal cannot make images for data set {config.data.name!r}",
                "data.path",
                "it makes folders of JPEG files",
                "give --set data.path=..., or --set data.name=imagefolder",
            )
        make_images(made / "images", config.model.num_classes, most)
        data_path = str(made / "images")
        told.append(f"images: MADE UP in {data_path}, because data.path is not set")
    else:
        told.append(f"images: a sample of {config.data.path or config.data.name}")
    if is_published(config.model.weights) and not _is_here(config):
        weights = str(made / "weights.pt")
        _random_weights(config, Path(weights))
        told.append(
            f"weights: RANDOM, because those of {config.model.weights} are not on this machine "
            "(a real run downloads them)"
        )
    else:
        told.append(f"weights: {config.model.weights or 'trained first, as the experiment says'}")
    stage = Stage(num_workers=num_workers, has_gpus=has_gpus, data_path=data_path, weights=weights)
    return Prepared(stage=stage, told=tuple(told))


def make_images(folder: Path, num_classes: int, least: int = MAX_IMAGES) -> None:
    """An ImageFolder of gradients with noise, as many a class as needed, in ``train`` and ``val``.

    Among them are a grey and a CMYK one, as ImageNet has them.

    Args:
        folder: where to make it.
        num_classes: folders of each part.
        least: images of each part.
    """
    import numpy as np
    from PIL import Image

    pictures = folder / "pictures"
    pictures.mkdir(parents=True)
    rng = np.random.default_rng(0)
    for index in range(_PICTURES):
        width, height = _SIDES[index % len(_SIDES)]
        ramp = np.linspace(0, 255, width)[None, :, None] * rng.random(3)
        noise = rng.normal(0, 24, (height, width, 3))
        picture = Image.fromarray(np.clip(ramp + noise, 0, 255).astype(np.uint8))
        mode = {1: "L", 2: "CMYK"}.get(index, "RGB")
        picture.convert(mode).save(pictures / f"{index}.jpg", quality=85)
    digits = len(str(num_classes - 1))
    for part in ("train", "val"):
        for index in range(max(least, num_classes)):
            home = folder / part / f"class{index % num_classes:0{digits}d}"
            home.mkdir(parents=True, exist_ok=True)
            os.link(pictures / f"{index % _PICTURES}.jpg", home / f"{index}.jpg")
    shutil.rmtree(pictures)


def _emptied(config: ExperimentConfig) -> RunStore:
    """The store of the rehearsal, without what an earlier one left."""
    store = RunStore(config.runs_dir, config.name[: 128 - len(SUFFIX)] + SUFFIX)
    if not store.root.exists():
        return store
    owner = lock_owner(store.lock_path)
    if owner is not None:
        raise LockedError("the rehearsal is running already", str(store.root), f"by {dict(owner)}")
    if not _is_rehearsal(store):
        raise UserError(
            "the folder of the rehearsal holds something that is none (a run, a study)",
            str(store.root),
            "it would be lost",
            "move it away, or give the experiment another name",
        )
    shutil.rmtree(store.root)
    return store


def _is_rehearsal(store: RunStore) -> bool:
    """Whether nothing but a rehearsal is lost with the folder."""
    if store.config_path.is_file():
        tree = read_yaml(store.config_path).tree
        return isinstance(tree, dict) and tree.get("rehearsal") is True
    steps = store.root / "steps"
    is_begun = not steps.exists() or not any(steps.iterdir())
    return is_begun and {path.name for path in store.root.iterdir()} <= _BEFORE_CONFIG


def _is_here(config: ExperimentConfig) -> bool:
    from trainers.models.published import published_file

    _, _, which = (config.model.weights or "").partition(":")
    return published_file(config.model.name, which).is_file()


def _random_weights(config: ExperimentConfig, path: Path) -> None:
    import torch

    from trainers.checkpoint import save_tensors
    from trainers.models import build_model
    from trainers.phases import ModelSpec

    model = config.model
    torch.manual_seed(config.seed)
    network = build_model(
        ModelSpec(name=model.name, num_classes=model.num_classes, options=dict(model.options))
    )
    path.parent.mkdir(parents=True, exist_ok=True)
    save_tensors(path, network.state_dict())
