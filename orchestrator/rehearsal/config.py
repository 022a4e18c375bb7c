"""What is a rehearsal of an experiment? The same phases on a handful of images, pure.

Network, resolution, candidates, limits, phases and files stay as they are; lengths, batches and
samples shrink to the least that still goes through every line. So what would stop a launch after
two hours on a cluster stops it after two minutes on a laptop. Its figures mean nothing.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields, is_dataclass, replace
from typing import Any

from orchestrator.config_schema import ExperimentConfig
from orchestrator.errors import UserError

SUFFIX = "-rehearsal"
# Two updates: the first starts step sizes and momentum, the second uses them.
STEPS = 2
# A worker's share of a batch: BatchNorm of the last feature maps needs more than one image.
IMAGES_A_WORKER = 4
# Training images for each worker: batches of its share, after a phase took its fraction of them.
MAX_IMAGES = 16
# Half of them is two batches. A hundredth of 16 images would be one image.
_LEAST_FRACTION = 0.5
# Images in one pass of a share that is passed through in parts; one would stop BatchNorm.
_IMAGES_A_PART = 2
# Anything of these names, in whatever section, is at most so much.
_CAPS: Mapping[str, int] = {
    "images": 8,
    "bn_images": 8,
    "bn_reestimate_images": 8,
    "batch": 8,
    "init_batches": 2,
    "min_probes": 2,
    "max_probes": 2,
    "max_iterations": 2,
    "evaluations": 4,
    "population": 2,
    "parents": 2,
    "policies": 20,
    "evaluate_every": 1,
}


@dataclass(frozen=True, kw_only=True, slots=True)
class Stage:
    """What a rehearsal has to do with.

    Attributes:
        num_workers: training processes.
        has_gpus: whether workers may ask for GPUs as the experiment says.
        data_path: images that were made for it; None = those of the experiment.
        weights: a file with random weights; None = those of the experiment.
    """

    num_workers: int = 1
    has_gpus: bool = False
    data_path: str | None = None
    weights: str | None = None


def num_images(num_workers: int) -> int:
    """Training images of a rehearsal: every worker needs its share of a batch."""
    return MAX_IMAGES * num_workers


def rehearsed(config: ExperimentConfig, stage: Stage) -> ExperimentConfig:
    """The rehearsal of an experiment, under a name and in a folder of its own.

    Args:
        config: the experiment.
        stage: workers, images and weights there are.
    """
    cluster = replace(config.cluster, num_workers=stage.num_workers, min_workers=None)
    if not stage.has_gpus:
        cluster = replace(cluster, gpus_per_worker=0.0, cpus_per_worker=None)
    shrunk = {
        f.name: _shrunk(getattr(config, f.name), stage)
        for f in fields(config)
        if f.name not in ("model", "data", "search", "cluster", "tracking")
    }
    data = replace(config.data, max_images=num_images(stage.num_workers))
    if stage.data_path is not None:
        data = replace(data, path=stage.data_path)
    model = config.model if stage.weights is None else replace(config.model, weights=stage.weights)
    return replace(
        config,
        **{
            **shrunk,
            "name": config.name[: 128 - len(SUFFIX)] + SUFFIX,
            "model": model,
            "data": data,
            "cluster": cluster,
            "rehearsal": True,
        },
    )


def _shrunk(value: Any, stage: Stage) -> Any:
    """A section with everything in it at its least; what is no section stays."""
    if isinstance(value, tuple):
        return tuple(_shrunk(each, stage) for each in value)
    if not is_dataclass(value) or isinstance(value, type):
        return value
    names = {f.name for f in fields(value)}
    changed: dict[str, Any] = {}
    for name in names:
        found = getattr(value, name)
        if name in _CAPS and isinstance(found, int) and not isinstance(found, bool):
            changed[name] = min(found, _CAPS[name])
        elif name == "batch_size":
            changed[name] = min(found, IMAGES_A_WORKER * stage.num_workers)
        elif name == "fraction":
            changed[name] = max(found, _LEAST_FRACTION)
        elif is_dataclass(found) or isinstance(found, tuple):
            changed[name] = _shrunk(found, stage)
    whole = getattr(value, "batch_size", 0)
    if "accumulate" in names and changed["batch_size"] < whole:
        share = changed["batch_size"] // stage.num_workers
        changed["accumulate"] = _parts(getattr(value, "accumulate", 1), whole, share)
    if "steps" in names:
        changed["steps"] = STEPS
    if "warmup_epochs" in names:
        changed["warmup_epochs"] = 0.0
    if not stage.has_gpus:
        changed |= {name: plain for name, plain in _WITHOUT_GPU.items() if name in names}
    return replace(value, **changed)


def _parts(accumulate: int, batch_size: int, share: int) -> int:
    """The most parts, at most ``accumulate``, that a worker's share of the shrunk batch has.

    What does not divide the experiment's own batch stays: its rehearsal has to stop at it too.
    """
    if batch_size % accumulate:
        return accumulate
    room = max(1, share // _IMAGES_A_PART)
    return max(n for n in range(1, min(accumulate, room) + 1) if share % n == 0)


# Without a GPU 16-bit passes are slow or missing, and compiling a kernel takes minutes.
_WITHOUT_GPU: Mapping[str, Any] = {"precision": "fp32", "compile_quantizer": False}


def refuse_mixture(rehearsals: Mapping[str, bool]) -> None:
    """Refuse to put rehearsals beside real runs.

    Args:
        rehearsals: run -> whether it is one.

    Raises:
        UserError: some are and some are not.
    """
    made_up = sorted(run for run, is_one in rehearsals.items() if is_one)
    if made_up and len(made_up) < len(rehearsals):
        raise UserError(
            f"rehearsals cannot stand beside real runs: {', '.join(made_up)}",
            why="the figures of a rehearsal mean nothing",
            todo="leave them out",
        )
