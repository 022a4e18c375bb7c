"""How does a page show a table, a difference with its interval, a rank correlation?"""

from __future__ import annotations

import sys
from collections.abc import Iterable, Sequence
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from orchestrator.compare.proxies import tau_text
from orchestrator.compare.statistics import Summary, kendall


def markdown(columns: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """A table, the first column to the left and the others to the right."""
    line = ["---", *["---:"] * (len(columns) - 1)]
    return "\n".join(f"| {' | '.join(cells)} |" for cells in (columns, line, *rows))


def interval(found: Summary | None) -> str:
    """A difference with its interval; the decided ones stand out."""
    if found is None:
        return "-"
    if found.low is None or found.high is None:
        return f"{found.mean:+.2f} (n = {found.n})"
    text = f"{found.mean:+.2f} [{found.low:+.2f}, {found.high:+.2f}]"
    return f"**{text}**" if found.low * found.high > 0 else text


def tau(first: Sequence[float], second: Sequence[float]) -> str:
    """Kendall's tau with its interval or p-value; those whose test finds p below 0.05 stand out."""
    found = kendall(first, second)
    if found.tau is None:
        return "-"
    text = tau_text(found)
    return f"**{text}**" if found.p_value is not None and found.p_value < 0.05 else text
