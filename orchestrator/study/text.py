"""How is a study's table printed?"""

from __future__ import annotations

from rich.console import Console

from orchestrator.report.cells_text import terminal_table
from orchestrator.study.results import COLUMNS, StudyTable, study_cells


def print_study(table: StudyTable, console: Console | None = None) -> None:
    """The table, and every seed that lacks something."""
    shown = console or Console()
    rows = [study_cells(row) for row in table.rows]
    terminal_table(f"study {table.name}, {len(table.seeds)} seeds", COLUMNS[:-1],
                   [row[:-1] for row in rows], shown)  # fmt: skip
    lines = [*table.problems]
    lines += [
        f"{row.method} at {row.limits}, seed {seed}: {why}"
        for row in table.rows
        for seed, why in row.lacking.items()
    ]
    for line in lines:
        shown.print(line, markup=False, highlight=False, soft_wrap=True)
