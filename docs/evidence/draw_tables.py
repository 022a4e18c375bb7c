"""Is a method's policy better than one drawn at random? Policies as they were drawn, not by seed.

A seed shares nothing with its draws, so pairing by seed takes nothing out of their scatter.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence

from cell_text import interval, markdown
from read_results import Run, method_of, spoken

from orchestrator.compare.statistics import CONFIDENCE, Summary, student_quantile

RANDOM = "random"


def draws_table(runs: Sequence[Run]) -> str:
    """Every method's trained policies beside all random ones; a policy of a seed counts once."""
    found: dict[str, dict[tuple[int, str], float]] = {}
    for run in runs:
        for row in run["rows"]:
            if row["top1"] is not None:
                own = found.setdefault(method_of(row), {})
                own[run["seed"], row["policy_id"]] = row["top1"]
    rows = []
    drawn = list(found[RANDOM].values())
    for method, own in sorted(found.items(), key=lambda item: -statistics.mean(item[1].values())):
        values = list(own.values())
        difference = interval(welch(values, drawn)) if method != RANDOM else "-"
        spread = f"{statistics.stdev(values):.2f}" if len(values) > 1 else "-"
        mean = f"{statistics.mean(values):.2f}"
        above = "-" if method == RANDOM else f"{sum(d > statistics.mean(values) for d in drawn)}"
        rows.append((spoken(method), str(len(values)), mean, spread, difference, above))
    return markdown(
        ("method", "trainings", "mean", "standard deviation", "less random",
         f"of {len(drawn)} random ones above its mean"),
        rows,
    )  # fmt: skip


def welch(first: Sequence[float], second: Sequence[float]) -> Summary | None:
    """Difference of two means with Welch's t interval; None where one side has a single value.

    Unequal variances; degrees of freedom by Welch and Satterthwaite.
    """
    if min(len(first), len(second)) < 2:
        return None
    parts = [statistics.variance(side) / len(side) for side in (first, second)]
    error = math.sqrt(sum(parts))
    freedom = sum(parts) ** 2 / sum(
        part**2 / (len(side) - 1) for part, side in zip(parts, (first, second), strict=True)
    )
    mean = statistics.mean(first) - statistics.mean(second)
    half = student_quantile(0.5 + CONFIDENCE / 2, freedom) * error
    return Summary(
        n=len(first) + len(second), mean=mean, sd=None, low=mean - half, high=mean + half
    )
