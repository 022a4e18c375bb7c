"""What do the committed results hold, as the tables and pictures of the pages need it?"""

from __future__ import annotations

import json
import re
import statistics
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

RESULTS = Path(__file__).parent / "results"
Run = Mapping[str, Any]


def runs_of(stem: str) -> list[Run]:
    """Every committed run whose name starts with ``stem``, by seed."""
    paths = sorted(RESULTS.glob(f"{stem}*.json"))
    runs = [_told_apart(json.loads(path.read_text())) for path in paths]
    return sorted(runs, key=lambda run: run["seed"])


def _told_apart(run: Run) -> Run:
    """The run with MetaMix's variants as methods of their own."""
    asked = run["config"]["metamix"]
    name = "metamix"
    if not asked["search"]["fixed_meta_state"]:
        name = "metamix, state not fixed"
    elif asked["inherit"] == "nothing":
        name = "metamix's bits, from full precision"
    rows = [{**r, "method": name} if r["method"] == "metamix" else r for r in run["rows"]]
    return {**run, "rows": rows}


def one_a_seed(runs: Sequence[Run]) -> Sequence[Run]:
    """The runs as they are.

    Raises:
        ValueError: two of one seed, which would count twice: delete the smaller.
    """
    seeds = [run["seed"] for run in runs]
    if len(set(seeds)) < len(seeds):
        raise ValueError(f"several results of one seed: {[run['run'] for run in runs]}")
    return runs


def at(runs: Sequence[Run], limits: str) -> list[Run]:
    """The same runs with the rows of one set of limits alone."""
    return [{**run, "rows": [r for r in run["rows"] if r["limits"] == limits]} for run in runs]


def method_of(row: Mapping[str, Any]) -> str:
    """A row's method as the tables name it: limpq is a method at each alpha."""
    if row["method"] == "limpq":
        return f"limpq, alpha {row['alpha']:g}"
    return str(re.sub(r"^random-\d+$", "random", row["method"]))


def spoken(method: str) -> str:
    """A method's name for people: ``uniform_w2a3`` is uniform W2A3."""
    return method.replace("uniform_w2a3", "uniform W2A3").replace("uniform_w3a2", "uniform W3A2")


def accuracies(runs: Sequence[Run]) -> dict[str, dict[int, float]]:
    """Method -> seed -> top-1; several random draws of a seed are their mean.

    A policy that a later run of the seed took over counts once.
    """
    found: dict[str, dict[int, dict[str, float]]] = {}
    for run in runs:
        for row in run["rows"]:
            if row["top1"] is not None:
                own = found.setdefault(method_of(row), {})
                own.setdefault(run["seed"], {})[row["policy_id"]] = row["top1"]
    return {
        method: {seed: statistics.mean(drawn.values()) for seed, drawn in seeds.items()}
        for method, seeds in found.items()
    }


class Cell(NamedTuple):
    """One tensor at one width: rises of the loss, and the step size that joint training learned."""

    layer: str
    rise: float
    rise_after: float
    learned: float
    step: float
    step_after: float


def cells_of(run: Run, step: str, learned: Run, tensor: str, bits: int) -> list[Cell]:
    """The layers of one measurement at one width, in execution order."""
    found, columns = run["sensitivity"][step], run["sensitivity"][step]["cells"]
    known = {(r[0], r[1], r[2]): r[3] for r in learned["importance"]["limpq, learned"]}
    base = found["metrics"]["evidence/full_precision_loss"]
    names = ("layer", "tensor", "bits", "loss", "loss_after", "step", "step_after")
    rows = zip(*(columns[name] for name in names), strict=True)
    return [
        Cell(layer, loss - base, after - base, known[layer, tensor, bits], first, last)
        for layer, own, width, loss, after, first, last in rows
        if own == tensor and width == bits
    ]
