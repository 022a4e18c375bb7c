"""Tables of trainings: learning curves, BatchNorm under random bits, and which runs there were."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from typing import NamedTuple

from cell_text import markdown
from read_results import Run


def curves(runs: Sequence[Run]) -> list[tuple[str, dict[int, float]]]:
    """The bits of every policy that was looked at between epochs, and top-1 by epoch."""
    found = []
    for run in runs:
        for row in run["rows"]:
            looks = run["curves"].get(row["policy_id"], {})
            curve = {int(name.rpartition("_")[2]): value for name, value in looks.items()}
            if curve:
                found.append((f"{row['mean_weight_bits']:g} / {row['mean_act_bits']:g}", curve))
    return found


def curves_table(runs: Sequence[Run]) -> str:
    """Top-1 during training, a row a policy; the last epoch's is the result."""
    rows = curves(runs)
    epochs = {epoch for _, curve in rows for epoch in curve}
    shown = sorted(epochs)
    return markdown(
        ("W / A bits", *(f"epoch {epoch}" for epoch in shown)),
        [
            (bits, *(f"{curve[e]:.2f}" if e in curve else "-" for e in shown))
            for bits, curve in rows
        ],
    )


class Watched(NamedTuple):
    """One update of the drift: the width of the layer's input and the variance behind the layer."""

    update: int
    bits: int
    variance: float


def variances(run: Run) -> dict[str, list[Watched]]:
    """Variant -> its updates in order."""
    (found,) = run["drift"].values()
    names = ("variant", "update", "bits", "variance")
    columns = zip(*(found["cells"][name] for name in names), strict=True)
    points: dict[str, list[Watched]] = {}
    for variant, *point in columns:
        points.setdefault(variant, []).append(Watched(*point))
    return points


def drift_table(run: Run) -> str:
    """Running variance behind the watched layer, by the bits of its input (MetaMix, Figure 2).

    Taken where each width ends: a running mean over ten updates or so still holds the width before.
    """
    (found,) = run["drift"].values()
    rows = []
    for variant, points in variances(run).items():
        ends = [p for p, after in zip(points, [*points[1:], None], strict=True)
                if after is None or after.bits != p.bits]  # fmt: skip
        means = {
            bits: statistics.mean(p.variance for p in ends if p.bits == bits)
            for bits in sorted({p.bits for p in ends})
        }
        widest = means[max(means)]
        rows.append(
            (
                variant.replace("_", " "),
                *(f"{mean / widest:.2f}" for mean in means.values()),
                f"{found['metrics'][f'evidence/{variant}_spread']:.3f}",
            )
        )
    cells = found["cells"]
    shown = sorted(set(cells["bits"]))
    return markdown(
        ("training", *(f"variance at {b} bit over {shown[-1]} bit" for b in shown),
         "standard deviation of its logarithm"),
        rows,
    )  # fmt: skip


def provenance(runs: Sequence[Run]) -> str:
    """Which runs, when, on what."""
    return markdown(
        ("run", "seed", "began (UTC)", "commit", "hours of its steps", "machine"),
        [
            (
                run["run"], str(run["seed"]), run["began_utc"][:16].replace("T", " "),
                run["commit"], f"{run['steps_hours']:.2f}",
                f"{run['machine']['processor']}, {run['machine']['cores']} cores, "
                f"torch {run['versions']['torch']}",
            )
            for run in runs
        ],
    )  # fmt: skip
