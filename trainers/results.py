"""A phase's result as a JSON file: written last, so that its presence means the phase is done."""

from __future__ import annotations

import json
from dataclasses import asdict, replace
from pathlib import Path

from solvers.atomic import write_atomically
from trainers.checkpoint import Checkpoints
from trainers.data.bad_samples import skipped_images
from trainers.errors import CheckpointError
from trainers.phases import Cost, PhaseResult

SCHEMA = "phase-result/1"


def save_result(path: Path, result: PhaseResult) -> None:
    """Write ``result`` whole or not at all, with the images that the step skipped."""
    # A batch of policies shares its images, so their list is one folder up.
    skipped = skipped_images(path.parent) or skipped_images(path.parent.parent)
    if skipped:
        result = replace(result, facts={**result.facts, "skipped_images": skipped})
    text = json.dumps({"schema": SCHEMA, **asdict(result)}, indent=1, sort_keys=True)
    write_atomically(path, text.encode())


def finish_phase(step_dir: Path, result: PhaseResult) -> None:
    """Write the result of a phase that reached its end; its checkpoints are no longer needed.

    Two checkpoints of weights and momentum are four times the network, for every policy trained
    and every training of an experiment that has several, each in a folder of its own.
    """
    save_result(step_dir / "result.json", result)
    for folder in (step_dir / "checkpoints", *step_dir.glob("*/checkpoints")):
        Checkpoints(folder, rank=0).clear()


def load_result(path: Path) -> PhaseResult | None:
    """The result at ``path``, None when there is no file.

    Raises:
        CheckpointError: the file is not a result of this version.
    """
    if not path.is_file():
        return None
    try:
        raw = json.loads(path.read_text())
        if raw.pop("schema") != SCHEMA:
            raise ValueError(f"its schema is not {SCHEMA}")
        cost, eval_cost = Cost(**raw.pop("cost")), Cost(**raw.pop("eval_cost"))
        return PhaseResult(**raw, cost=cost, eval_cost=eval_cost)
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise CheckpointError(f"{path} is not a phase result: {error}") from error
