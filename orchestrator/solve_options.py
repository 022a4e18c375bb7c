"""Which options do ``mpq solve`` and ``mpq explain`` share, and what do they say?"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, fields
from functools import wraps
from typing import Any

import click

from orchestrator.errors import ExitCode


@dataclass(frozen=True, kw_only=True, slots=True)
class TableOptions:
    """The shared options as given.

    Attributes:
        importance: path of the importance table.
        costs: path of the cost table.
        accounting: its name.
        repair: rule for indicators that rise with bits.
        solver: auto, highs or cbc.
        time_limit_s: seconds for the backend.
        weight_bits: candidates as written, None = all with indicators.
        act_bits: the same for activations.
        tied: a layer's weights and activations share bits.
        as_json: print JSON.
    """

    importance: str
    costs: str
    accounting: str
    repair: str
    solver: str
    time_limit_s: float
    weight_bits: str | None
    act_bits: str | None
    tied: bool
    as_json: bool


_OPTIONS = (
    click.option("--importance", required=True, help="Importance table, Parquet."),
    click.option("--costs", required=True, help="Cost table, Parquet."),
    click.option("--accounting", default="standard", show_default=True),
    click.option(
        "--repair", default="isotonic", show_default=True,
        type=click.Choice(["isotonic", "keep", "erase"]),
        help="For indicators that rise with bits.",
    ),
    click.option(
        "--solver", default="auto", show_default=True, type=click.Choice(["auto", "highs", "cbc"])
    ),
    click.option("--time-limit", "time_limit_s", default=60.0, show_default=True, help="Seconds."),
    click.option("--weight-bits", help="Candidates, e.g. 2,3,4; default: all with indicators."),
    click.option("--act-bits", help="Candidates; one width makes a weights-only search."),
    click.option("--tied", is_flag=True, help="Weights and activations of a layer share bits."),
    click.option("--json", "as_json", is_flag=True, help="Print JSON."),
)  # fmt: skip


def table_options(command: Callable[..., ExitCode]) -> Callable[..., ExitCode]:
    """Add the shared options; the command gets them as one ``TableOptions`` named ``asked``."""
    names = [field.name for field in fields(TableOptions)]

    @wraps(command)
    def with_options(**given: Any) -> ExitCode:
        asked = TableOptions(**{name: given.pop(name) for name in names})
        return command(asked=asked, **given)

    decorated: Callable[..., ExitCode] = with_options
    for option in reversed(_OPTIONS):
        decorated = option(decorated)
    return decorated
