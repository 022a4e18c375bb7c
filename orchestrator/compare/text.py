"""How is a comparison printed, for the terminal and as Markdown?"""

from __future__ import annotations

from collections.abc import Sequence

from rich.console import Console

from orchestrator.compare.inputs import ReadRuns
from orchestrator.compare.policies import STABILITY_COLUMNS
from orchestrator.compare.runs import COST_COLUMNS, STABLE_QUESTION, Comparison, stability_rows
from orchestrator.literature import LiteratureRow
from orchestrator.report.cells_text import markdown_table, terminal_table
from orchestrator.report.literature import REPORTED_COLUMNS, reported_cells, reported_for

Part = tuple[str, Sequence[str], Sequence[Sequence[str]]]


def literature_rows(read: ReadRuns) -> list[LiteratureRow]:
    """What the papers report about the networks and images of some runs, each row once."""
    found: dict[str, LiteratureRow] = {}
    for run in read.runs:
        found |= {row.id: row for row in reported_for(run.config).every}
    return list(found.values())


def print_comparison(
    found: Comparison, reported: Sequence[LiteratureRow], console: Console | None = None
) -> None:
    """Every table of a comparison."""
    shown = console or Console()
    for title, columns, rows in _parts(found, reported):
        terminal_table(title, columns, rows, shown)


def comparison_markdown(found: Comparison, reported: Sequence[LiteratureRow]) -> str:
    """The same as Markdown."""
    return "\n\n".join(
        f"## {title}\n\n{markdown_table(columns, rows)}"
        for title, columns, rows in _parts(found, reported)
    )


def _parts(found: Comparison, reported: Sequence[LiteratureRow]) -> list[Part]:
    parts: list[Part] = [
        ("comparison", found.columns, found.rows),
        ("search cost", COST_COLUMNS, found.costs),
        ("policy stability", (*STABLE_QUESTION, *STABILITY_COLUMNS), stability_rows(found)),
        ("reported by the papers, not measured here", REPORTED_COLUMNS,
         [reported_cells(row) for row in reported]),
    ]  # fmt: skip
    return [part for part in parts if part[2]]
