"""Tables of trainings: learning curves, BatchNorm under random bits, and which runs there were."""

from __future__ import annotations

import statistics
from collections.abc import Sequence

from cell_text import markdown
from read_results import Run


def curves_table(runs: Sequence[Run]) -> str:
    """Top-1 during training, a row a policy; the last epoch's is the result."""
    rows, epochs = [], set()
    for run in runs:
        for row in run["rows"]:
            curve = {
                int(name.rpartition("_")[2]): value
                for name, value in run["curves"].get(row["policy_id"], {}).items()
            }
            if curve:
                epochs |= curve.keys()
                rows.append((f"{row['mean_weight_bits']:g} / {row['mean_act_bits']:g}", curve))
    shown = sorted(epochs)
    return markdown(
        ("W / A bits", *(f"epoch {epoch}" for epoch in shown)),
        [
            (bits, *(f"{curve[e]:.2f}" if e in curve else "-" for e in shown))
            for bits, curve in rows
        ],
    )


def drift_table(run: Run) -> str:
    """Running variance behind the watched layer, by the bits of its input (MetaMix, Figure 2)."""
    (found,) = run["drift"].values()
    cells = found["cells"]
    half = max(cells["update"]) // 2
    rows = []
    for variant in dict.fromkeys(cells["variant"]):
        variances: dict[int, list[float]] = {}
        for name, update, bits, variance in zip(
            *(cells[column] for column in ("variant", "update", "bits", "variance")), strict=True
        ):
            if name == variant and update >= half:
                variances.setdefault(bits, []).append(variance)
        means = {bits: statistics.mean(own) for bits, own in variances.items()}
        widest = means[max(means)]
        rows.append(
            (
                variant.replace("_", " "),
                *(f"{means[bits] / widest:.2f}" for bits in sorted(means)),
                f"{found['metrics'][f'evidence/{variant}_spread']:.3f}",
            )
        )
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
