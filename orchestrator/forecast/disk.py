"""How much disk will a run take? Reckoned from the network's size, pure but for a look at the disk.

A checkpoint holds weights and momentum, two are kept and a third is being written; a finished
phase leaves none, so only the largest moment counts.
"""

from __future__ import annotations

import shutil
from dataclasses import dataclass
from pathlib import Path

from orchestrator.plan import Plan

FLOAT_BYTES = 4
# trainers.checkpoint keeps two, and writes the next beside them.
CHECKPOINTS = 3
# Weights and momentum.
TENSORS_A_CHECKPOINT = 2
# Weight files that a step of an action leaves; weight training leaves one a policy.
_LEFT = {"pretrain": 1, "limpq.indicators": 2, "metamix.meta": 1, "metamix.bit_selection": 1}
# Policy, certificate, record and curves of one policy.
POLICY_BYTES = 64 * 1024


@dataclass(frozen=True, kw_only=True, slots=True)
class DiskNeed:
    """Bytes of a run.

    Attributes:
        weights: state dicts that it leaves.
        checkpoints: at the largest moment; gone at the end.
        tables: policies and records.
        images_packed: the images packed into Parquet shards, about what their files take; not
            part of ``total``. None = unknown.
        free: where the run's folder is.
    """

    weights: int
    checkpoints: int
    tables: int
    images_packed: int | None
    free: int

    @property
    def total(self) -> int:
        """What the run's folder needs at most."""
        return self.weights + self.checkpoints + self.tables


def disk_need(plan: Plan, policies: int, size_bytes: int | None, runs_dir: str) -> DiskNeed:
    """Reckon it.

    Args:
        plan: the run.
        policies: at most so many are trained.
        size_bytes: of the images' files.
        runs_dir: where its folder will be.
    """
    costs = plan.costs
    parameters = costs.num_other_params + sum(x.num_weights + x.num_biases for x in costs.layers)
    state = FLOAT_BYTES * parameters
    left = sum(_LEFT.get(step.action, 0) for step in plan.steps) + policies
    return DiskNeed(
        weights=left * state,
        checkpoints=CHECKPOINTS * TENSORS_A_CHECKPOINT * state,
        tables=POLICY_BYTES * (policies + len(plan.cells)),
        images_packed=size_bytes,
        free=shutil.disk_usage(_existing(Path(runs_dir).absolute())).free,
    )


def _existing(path: Path) -> Path:
    return next(p for p in (path, *path.parents) if p.exists())
