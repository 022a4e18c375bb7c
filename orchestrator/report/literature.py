"""What do the papers say about the same thing? Reported rows beside measured ones, never mixed.

An experiment names in ``reports`` the printed rows that it repeats: those stand beside its own
rows with the difference. All other rows that the papers print for the same network and images are
shown apart.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from orchestrator.errors import UserError
from orchestrator.figures.accuracy import AccuracyPoint
from orchestrator.figures.cost import ReportedCost
from orchestrator.literature import LiteratureRow, dataset_of, rows_for, rows_named
from orchestrator.report.escape import html_table
from orchestrator.results import ResultRow

# A printed cost has three or four figures, and no accounting gives some of them exactly.
_NEAR = 0.03


@dataclass(frozen=True, kw_only=True, slots=True)
class Reported:
    """What the papers print.

    Attributes:
        repeated: rows that the experiment names in ``reports``.
        others: all others of the same network and images.
        problem: why named rows are not there, or empty.
    """

    repeated: tuple[LiteratureRow, ...] = ()
    others: tuple[LiteratureRow, ...] = ()
    problem: str = ""

    @property
    def every(self) -> tuple[LiteratureRow, ...]:
        """Both kinds."""
        return (*self.repeated, *self.others)


def reported_for(config: Mapping[str, Any]) -> Reported:
    """What the papers print about the network, the images and the rows of a configuration."""
    model, data = config.get("model") or {}, config.get("data") or {}
    names = [str(name) for name in config.get("reports") or ()]
    problem = ""
    try:
        repeated = rows_named(names)
    except UserError as error:
        repeated, problem = (), f"{error.what}: {error.todo}"
    classes = model.get("num_classes")
    dataset = dataset_of(str(data.get("name", "")), classes if isinstance(classes, int) else 0)
    others = tuple(
        row for row in rows_for(str(model.get("name", "")), dataset) if row not in repeated
    )
    return Reported(repeated=repeated, others=others, problem=problem)


def paired_row(row: ResultRow, repeated: Sequence[LiteratureRow]) -> LiteratureRow | None:
    """The printed row that a measured one repeats: of its method, nearest in cost, within 3 %."""
    own = [r for r in repeated if _method(r) == row.method and r.top1 is not None]
    gaps = [(gap, index) for index, r in enumerate(own) if (gap := _gap(row, r)) is not None]
    if gaps:
        gap, index = min(gaps)
        return own[index] if gap <= _NEAR else None
    # A table that prints no cost: only without a choice is it clear which row is meant.
    return own[0] if len(own) == 1 else None


def paper_cells(row: ResultRow, repeated: Sequence[LiteratureRow]) -> tuple[str, str, str]:
    """The paper's top-1, its drop, and by how much ours differs, as cells of a table."""
    found = paired_row(row, repeated)
    if found is None or found.top1 is None:
        return "", "", ""
    drop = "" if found.drop is None else f"{found.drop:+.2f}"
    return f"{found.top1:.2f}", drop, "" if row.top1 is None else f"{row.top1 - found.top1:+.2f}"


def reported_points(rows: Sequence[LiteratureRow]) -> list[AccuracyPoint]:
    """Printed accuracies with BitOps, for the figure."""
    return [
        AccuracyPoint(method=row.method, label=f"({row.source})", cost=row.bitops_g,
                      top1=row.top1, reported=True)
        for row in rows
        if row.bitops_g is not None and row.top1 is not None
    ]  # fmt: skip


def reported_costs(rows: Sequence[LiteratureRow]) -> list[ReportedCost]:
    """Printed search costs, for the figure: GPU-hours as seconds, and solves."""
    costs = []
    for row in rows:
        note = f"{row.source}{'; ' + row.note if row.note else ''}"
        if row.search_gpu_h is not None:
            name = f"{row.method} ({row.paper}, GPU)"
            costs.append(ReportedCost(method=name, device_s=row.search_gpu_h * 3600, note=note))
        if row.solve_s is not None:
            name = f"{row.method} ({row.paper}, solve)"
            costs.append(ReportedCost(method=name, device_s=row.solve_s, note=note))
    return costs


REPORTED_COLUMNS = ("method", "W bits", "A bits", "BitOps (1e9)", "size (MB)", "top-1 %",
                    "drop", "GPU hours", "solve s", "from")  # fmt: skip


def reported_cells(row: LiteratureRow) -> tuple[str, ...]:
    """A line of ``REPORTED_COLUMNS``."""
    numbers = (row.bitops_g, row.size_mb, row.top1, row.drop, row.search_gpu_h, row.solve_s)
    texts = ["" if value is None else f"{value:g}" for value in numbers]
    return (row.method, row.weight_bits or "", row.act_bits or "", *texts, row.source)


def _method(row: LiteratureRow) -> str:
    """Our name of a printed method."""
    name = row.method.lower()
    return "reversed" if name == "limpq reversed" else name


def _gap(row: ResultRow, printed: LiteratureRow) -> float | None:
    """Relative distance in cost; None when they have no cost in common."""
    if printed.bitops_g is not None and row.bitops_g is not None:
        return abs(row.bitops_g / printed.bitops_g - 1)
    if printed.size_mb is not None and row.weight_mib is not None:
        return abs(row.weight_mib / printed.size_mb - 1)
    return None


def reported_table(rows: Sequence[LiteratureRow]) -> str:
    """Markup of what papers report, in the style that sets it apart; empty without rows."""
    if not rows:
        return ""
    numeric = frozenset(REPORTED_COLUMNS[1:-1])
    cells = [reported_cells(row) for row in rows]
    return html_table(REPORTED_COLUMNS, cells, numeric=numeric, row_kinds=["lit"] * len(cells))
