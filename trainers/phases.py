"""The contract of a training phase: what it is given and what it owes.

A phase is a plain function ``run(spec, context) -> PhaseResult`` over torch. It knows no Ray: the
``context`` says which rank it is and takes its reports, so a test or a notebook runs the same
function in its own process with ``PhaseContext.alone(...)`` and ``worker.py`` runs it in a Ray
Train worker group.

What every phase promises:

* It starts from its newest complete checkpoint in ``context.step_dir`` if there is one, and is a
  no-op that returns the stored result when it already finished.
* Its outputs are files below ``context.step_dir``, written by rank 0 through
  ``solvers.atomic.write_atomically``; ``PhaseResult.outputs`` names them relative to it.
* Its result is the same on every rank and does not depend on the number of ranks beyond what the
  specification states (BatchNorm statistics are per rank, as published).
* A loss or parameter that stops being finite raises ``DivergedError`` within one step.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from solvers.tables import BitChoices

Report = Callable[[Mapping[str, float]], None]

# Keys of ``DataSpec.options`` that say how images are read and not what they are: no result
# depends on them, so no step is done again and no run is another one when they change.
EXECUTION_OPTIONS = ("decode_workers", "prefetch")


def _ignore(metrics: Mapping[str, float]) -> None:
    """Take a report and drop it: nobody listens when a phase runs alone."""


@dataclass(frozen=True, kw_only=True, slots=True)
class ModelSpec:
    """Which network, with what weights.

    Attributes:
        name: a name in ``trainers.models`` (``resnet14``, ``resnet18`` ...) or ``module:factory``.
        num_classes: width of the classifier.
        options: keyword arguments of the factory (``base_width: 16``).
        weights: None for fresh weights, ``torchvision`` for its published ones, else a file path.
    """

    name: str
    num_classes: int = 10
    options: Mapping[str, Any] = field(default_factory=dict)
    weights: str | None = None


@dataclass(frozen=True, kw_only=True, slots=True)
class DataSpec:
    """Which images, split how.

    Attributes:
        name: a name in ``trainers.data`` (``digits``, ``parquet``, ``torchvision``).
        path: root of file-based sets.
        options: what the set takes besides (mean, std, augmentation, image size).
        holdout: share of the training images set aside, whatever splits the set has; read by
            ``images_from: holdout`` alone. Accuracy is measured on the test split.
        max_images: at most so many images of each split, drawn once; None = all.
        on_bad_sample: ``stop`` at the first image that cannot be decoded, or ``skip`` it.
        max_bad_samples: how many images a step may skip, over all ranks.
    """

    name: str
    path: str | None = None
    options: Mapping[str, Any] = field(default_factory=dict)
    holdout: float = 0.0
    max_images: int | None = None
    on_bad_sample: Literal["stop", "skip"] = "stop"
    max_bad_samples: int = 0


@dataclass(frozen=True, kw_only=True, slots=True)
class PhaseSpec:
    """Everything that decides the result of a phase; plain values only.

    Attributes:
        phase: a name in ``trainers.registry``.
        model: the network.
        data: the images.
        config: the phase's own configuration (a frozen dataclass of ``trainers``).
        seed: the run's seed; every random stream is derived from it by name (``seeds.py``).
        inputs: file name by role (``weights``, ``importance``, ``policies``), absolute paths.
        eval_batch_size: images per forward pass when measuring, over all ranks; no result
            depends on it.
        choices: candidate bit-widths of the searched layers, where the phase has any.
        pins: (regular expression over layer names, weight bits, activation bits); 0 bits = leave
            the layer in full precision.
    """

    phase: str
    model: ModelSpec
    data: DataSpec
    config: Any
    seed: int
    inputs: Mapping[str, str] = field(default_factory=dict)
    eval_batch_size: int = 256
    choices: BitChoices | None = None
    pins: tuple[tuple[str, int, int], ...] = ()


@dataclass(frozen=True, kw_only=True, slots=True)
class PhaseContext:
    """Where a phase runs: its rank, its device, its folder, and who hears its reports.

    Attributes:
        step_dir: the step's folder on storage that every rank can reach.
        rank: index of this process in the worker group.
        world_size: number of processes.
        device: torch device string of this rank.
        report: called on every rank once an epoch, the same number of times on each.
        progress: called now and then on any rank, for people; no barrier, nothing depends on it.
        should_stop: asked between steps; true once the driver wants a checkpoint and an end. Asking
            is a sign of life too.
        alive: told between two batches wherever nobody asks ``should_stop`` for long (an
            evaluation): without a sign of life a worker counts as hung and is ended.
    """

    step_dir: Path
    rank: int = 0
    world_size: int = 1
    device: str = "cpu"
    report: Report = _ignore
    progress: Report = _ignore
    should_stop: Callable[[], bool] = lambda: False
    alive: Callable[[], None] = lambda: None

    @classmethod
    def alone(cls, step_dir: Path) -> PhaseContext:
        """The context of a phase in the caller's own process."""
        return cls(step_dir=step_dir)


@dataclass(frozen=True, kw_only=True, slots=True)
class Cost:
    """What work cost, summed over ranks, in the units every method is measured in.

    Attributes:
        wall_s: wall seconds of training and evaluation, without start-up.
        device_s: GPU-seconds where there are GPUs, else CPU-seconds of the worker processes.
        images: images that went through a forward pass, counted once per pass.
        forward_passes: forward passes over one global batch.
        backward_passes: backward passes over one global batch.
        hvps: Hessian-vector products.
    """

    wall_s: float = 0.0
    device_s: float = 0.0
    images: int = 0
    forward_passes: int = 0
    backward_passes: int = 0
    hvps: int = 0

    def __add__(self, other: Cost) -> Cost:
        return Cost(
            wall_s=self.wall_s + other.wall_s,
            device_s=self.device_s + other.device_s,
            images=self.images + other.images,
            forward_passes=self.forward_passes + other.forward_passes,
            backward_passes=self.backward_passes + other.backward_passes,
            hvps=self.hvps + other.hvps,
        )


@dataclass(frozen=True, kw_only=True, slots=True)
class PhaseResult:
    """What a phase leaves behind.

    Attributes:
        phase: its name.
        outputs: role -> file name below the step's folder.
        metrics: final numbers (``top1`` in percent, ``loss`` ...).
        cost: training cost; evaluation is counted apart in ``eval_cost``.
        eval_cost: cost of evaluating.
        device: ``cpu`` or the GPU's name: the unit of ``device_s``.
        facts: what the phase decided that a reader must know (signed layers, data fingerprint).
    """

    phase: str
    outputs: Mapping[str, str] = field(default_factory=dict)
    metrics: Mapping[str, float] = field(default_factory=dict)
    cost: Cost = Cost()
    eval_cost: Cost = Cost()
    device: str = "cpu"
    facts: Mapping[str, Any] = field(default_factory=dict)


Phase = Callable[[PhaseSpec, PhaseContext], PhaseResult]
