"""The figure of a device sweep: what more of the first limit buys, for each alpha."""

from __future__ import annotations

from collections.abc import Sequence

from matplotlib.figure import Figure

from orchestrator.records import alpha_text
from solvers.storage import ResultRow

COLOURS = ("#0072B2", "#E69F00", "#009E73", "#CC79A7", "#D55E00", "#56B4E9")


def objective_over_limit(rows: Sequence[ResultRow]) -> Figure:
    """Objective of every answered device over its use of the first limit, a colour an alpha.

    Args:
        rows: answers; those without a policy are counted in the title.
    """
    figure = Figure(figsize=(6.4, 4.0), layout="constrained")
    axes = figure.subplots()
    answered = [(row, row.objective) for row in rows if row.objective is not None and row.uses]
    for index, alpha in enumerate(sorted({row.alpha for row, _ in answered})):
        own = [(row.uses[0], objective) for row, objective in answered if row.alpha == alpha]
        axes.plot(
            [use for use, _ in own],
            [objective for _, objective in own],
            "o",
            markersize=3,
            alpha=0.6,
            color=COLOURS[index % len(COLOURS)],
            label=f"alpha {alpha_text(alpha)}",
        )
    first = answered[0][0].limits.split("=")[0] if answered else "the limit"
    axes.set_xlabel(f"use of {first}")
    axes.set_ylabel("objective (summed importance)")
    axes.set_title(
        f"{len(answered)} devices answered, {len(rows) - len(answered)} without a policy",
        fontsize=9,
    )
    axes.grid(alpha=0.3, linewidth=0.5)
    axes.spines[["top", "right"]].set_visible(False)
    if answered:
        axes.legend(fontsize=8, frameon=False)
    return figure
