"""What does a deployment tool get of a trained policy? Integers, steps and rules, in two files.

    OUT/weights.pt       codes of the quantized weights, their factors, steps of the inputs, and
                         everything else in float: a torch file of tensors, no code in it
    OUT/manifest.json    which network, layer by layer the bits, ranges, steps and rules

The folder appears whole, with one rename, or not at all. What the tensors mean is said in
``trainers.deployment``, which also compares them with the network bit by bit.
"""

from __future__ import annotations

import json
import os
import secrets
import shutil
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from orchestrator.errors import StoreError
from orchestrator.leftovers import sha256_of
from orchestrator.provenance import library_versions
from orchestrator.records import EVAL_LOSS, EVAL_TOP1, EVAL_TOP5
from orchestrator.trained import TrainedPolicy, find_trained, rebuilt
from solvers.atomic import TEMPORARY, flush_folder, write_atomically

if TYPE_CHECKING:
    from trainers.deployment import Deployment

SCHEMA = "export/1"
WEIGHTS, MANIFEST = "weights.pt", "manifest.json"
RULES: Mapping[str, str] = {
    "arithmetic": "float32, in the order written",
    "rounding": "half to even",
    "weight, rule step": "codes * factor",
    "weight, rule dorefa": "factor * (2 * (codes / highest) - 1)",
    "input": "clamp(round((x + shift) / step), lowest, highest) * step - shift, "
    "after the layer's own padding",
    "null": "left in full precision",
}


@dataclass(frozen=True, kw_only=True, slots=True)
class Exported:
    """What was written.

    Attributes:
        folder: where.
        run: name of the run.
        training: name of the training.
        policy_id: of the policy.
        num_layers: Conv2d and Linear layers.
        num_coded: of these, with whole numbers for weights.
        size_bytes: of both files.
        top1: as recorded, in percent; None when it was not measured.
    """

    folder: str
    run: str
    training: str
    policy_id: str
    num_layers: int
    num_coded: int
    size_bytes: int
    top1: float | None


def export_trained(
    run: str | Path, policy: str, out: str | Path, *, runs_dir: str | Path = "runs"
) -> Exported:
    """Write a trained policy for somebody who has only the network's architecture.

    Args:
        run: a run's folder, or its name in ``runs_dir``.
        policy: id of the policy, or name of its training.
        out: folder to make; it may exist if it is empty.
        runs_dir: where runs are kept.

    Raises:
        StoreError: as ``load_trained``, or ``out`` holds something.
        RuntimeError: the codes do not give the network's own weights: a defect; nothing is
            written.
    """
    folder = Path(out).expanduser().resolve()
    _refuse_full(folder)
    trained = find_trained(run, policy, runs_dir=runs_dir)
    from trainers.checkpoint import save_tensors
    from trainers.deployment import deployment_of

    deployment = deployment_of(rebuilt(trained))
    folder.parent.mkdir(parents=True, exist_ok=True)
    name = f"{TEMPORARY}{os.getpid()}-{secrets.token_hex(4)}-{folder.name}"
    temporary = folder.with_name(name)
    temporary.mkdir()
    try:
        save_tensors(temporary / WEIGHTS, deployment.tensors)
        manifest = _manifest(trained, deployment, temporary / WEIGHTS)
        text = json.dumps(manifest, indent=1, allow_nan=False) + "\n"
        write_atomically(temporary / MANIFEST, text)
        size = sum((temporary / name).stat().st_size for name in (WEIGHTS, MANIFEST))
        _refuse_full(folder)  # filled while the network was built
        os.replace(temporary, folder)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
    flush_folder(folder.parent)
    return Exported(
        folder=str(folder),
        run=trained.run,
        training=str(trained.record.facts["training"]),
        policy_id=trained.policy.policy_id,
        num_layers=len(deployment.layers),
        num_coded=sum(layer.weight is not None for layer in deployment.layers),
        size_bytes=size,
        top1=trained.record.metrics.get(EVAL_TOP1),
    )


def _refuse_full(folder: Path) -> None:
    if folder.is_dir() and not any(folder.iterdir()):
        return
    if folder.exists():
        what = "holds files" if folder.is_dir() else "is a file"
        raise StoreError(
            f"{folder} {what} already", str(folder), "an export is never mixed with anything else",
            "give a folder that does not exist yet, or delete this one",
        )  # fmt: skip


def _manifest(trained: TrainedPolicy, deployment: Deployment, weights: Path) -> dict[str, Any]:
    from trainers.data import input_rule

    model, record = trained.model, trained.record
    versions = library_versions()
    return {
        "schema": SCHEMA,
        "run": trained.run,
        "training": record.facts["training"],
        "policy_id": trained.policy.policy_id,
        "seed": trained.record.seed,
        "quantizer": trained.recipe.quantizer,
        "measured": {
            name: record.metrics[key]
            for name, key in (("top1", EVAL_TOP1), ("top5", EVAL_TOP5), ("loss", EVAL_LOSS))
            if key in record.metrics
        },
        "network": {
            "name": model.name,
            "num_classes": model.num_classes,
            "options": dict(model.options),
        },
        "input": {
            "shape": list(trained.costs.input_shape),
            **input_rule(trained.data),
            "pixels": "(value / 255 - mean) / std",
        },
        "rules": dict(RULES),
        "layers": [asdict(layer) for layer in deployment.layers],
        "files": {
            WEIGHTS: {"size_bytes": weights.stat().st_size, "sha256": sha256_of(weights)},
        },
        "versions": {name: versions[name] for name in ("mpq-orchestrator", "torch")},
    }
