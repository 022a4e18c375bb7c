"""How are results printed? One set of cells for the terminal and for Markdown."""

from __future__ import annotations

import re
from collections.abc import Sequence

from rich.cells import cell_len
from rich.console import Console
from rich.text import Text

from orchestrator.records import alpha_text
from orchestrator.results import NOT_RECORDED, ResultRow, Results, bitops_text, skipped_text

COLUMNS = (
    "method", "alpha", "limits", "W bits", "A bits", "BitOps", "size", "top-1 %", "drop",
    "search", "policy", "status",
)  # fmt: skip
NUMERIC = {"alpha", "W bits", "A bits", "BitOps", "size", "top-1 %", "drop", "search"}
_NONE = "-"
_CONTROLS = re.compile("[\x00-\x1f\x7f-\x9f]")


def result_cells(results: Results, rows: Sequence[ResultRow]) -> list[tuple[str, ...]]:
    """The full-precision network first, then the rows."""
    lines = []
    top1 = results.full_precision_top1
    if top1 is not None:
        lines.append(
            ("full precision", _NONE, _NONE, "32", "32", _NONE, _NONE, f"{top1:.2f}", _NONE, _NONE,
             _NONE, "DONE")
        )  # fmt: skip
    return lines + [_cells(row) for row in rows]


def print_results(results: Results, console: Console | None = None) -> None:
    """Print the result table and why rows have no accuracy."""
    shown = console or Console()
    rows = result_cells(results, results.shown)
    terminal_table(f"results of {results.run}", COLUMNS, rows, shown)
    for row in results.shown:
        if row.reason:
            told = f"{row.method} at {row.limits_text}: {row.status}: {row.reason}"
            shown.print(told, markup=False, highlight=False, soft_wrap=True)
    if results.skipped:
        shown.print(skipped_text(results), markup=False, highlight=False, soft_wrap=True)


def terminal_table(
    title: str, columns: Sequence[str], rows: Sequence[Sequence[str]], console: Console
) -> None:
    """Print a table; lines are as long as they must be, since a cut number is a wrong one.

    The same characters as rich's ``Table`` in box ``SIMPLE``, which styles every cell: of a
    comparison of 500 runs it took 8.6 of 10.2 CPU seconds.
    """
    lines = [tuple(columns), *[tuple(map(_one_line, cells)) for cells in rows]]
    widths = [max(map(cell_len, column)) for column in zip(*lines, strict=True)]
    at_right = [name in NUMERIC for name in columns]
    head, *body = [f" {'   '.join(map(_padded, cells, widths, at_right))} " for cells in lines]
    width = sum(widths) + 3 * (len(widths) - 1) + 2
    blank = " " * width
    for line in Text(title).wrap(console, width):
        console.out(_padded(line.plain, width), style="table.title", highlight=False)
    console.out(blank, highlight=False)
    console.out(head, style="table.header", highlight=False)
    rule = "\u2500" * (width - 2)
    console.out("\n".join([f" {rule} ", *body, blank]), highlight=False)


def _one_line(cell: str) -> str:
    """Text that moves no cursor and sets no colour."""
    return _CONTROLS.sub(" ", cell)


def _padded(cell: str, width: int, at_right: bool = False) -> str:
    room = " " * (width - cell_len(cell))
    return room + cell if at_right else cell + room


def markdown_table(columns: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A Markdown table; numbers to the right."""
    rule = ["---:" if name in NUMERIC else "---" for name in columns]
    lines = [columns, rule, *[[escaped(cell) for cell in row] for row in rows]]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def escaped(text: str) -> str:
    """Text that stays text in Markdown."""
    clean = " ".join(text.split())
    for char in "\\|`*_[]<>":
        clean = clean.replace(char, {"<": "&lt;", ">": "&gt;"}.get(char, "\\" + char))
    return clean


def _cells(row: ResultRow) -> tuple[str, ...]:
    return (
        row.method,
        _NONE if row.alpha is None else alpha_text(row.alpha),
        row.limits_text or _NONE,
        _number(row.mean_weight_bits, "{:.2f}"),
        _number(row.mean_act_bits, "{:.2f}"),
        _NONE if row.bitops_g is None else bitops_text(row.bitops_g),
        _number(row.weight_mib, "{:.3f} MiB"),
        _number(row.top1, "{:.2f}"),
        _number(row.drop, "{:+.2f}"),
        _search(row),
        row.policy_id or _NONE,
        row.status,
    )


def _search(row: ResultRow) -> str:
    """Device seconds of the search phase, plus the milliseconds of this row's solve."""
    solve = f"{row.solve_wall_s * 1000:.0f} ms"
    if row.search_device_s is None:
        return f"{NOT_RECORDED} + {solve}" if row.solve_wall_s else NOT_RECORDED
    if row.search_device_s == 0.0 and row.solve_wall_s == 0.0:
        return "0"
    return solve if row.search_device_s == 0.0 else f"{row.search_device_s:.1f} s + {solve}"


def _number(value: float | None, form: str) -> str:
    return _NONE if value is None else form.format(value)
