"""What did the person ask ``mpq solve`` and ``mpq explain`` for? Files and options to values."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace

from orchestrator.solve_options import TableOptions
from solvers.accounting import Accounting, accounting_named
from solvers.errors import SolversError, TableError
from solvers.importance import choices_from
from solvers.limits import Limit
from solvers.result import SolveRequest
from solvers.table_files import load_costs, load_importance
from solvers.tables import BitChoices, CostTable, ImportanceTable


@dataclass(frozen=True, kw_only=True, slots=True)
class SolveInputs:
    """Two tables from disk and how to read them.

    Attributes:
        costs: the network.
        importance: learned indicators of that network.
        choices: candidates, from the options or from what the indicators cover.
        accounting: how costs are counted.
        files: both paths, for messages about their contents.
    """

    costs: CostTable
    importance: ImportanceTable
    choices: BitChoices
    accounting: Accounting
    files: str


def read_inputs(asked: TableOptions) -> SolveInputs:
    """Load both tables and settle the candidates.

    Raises:
        SolversError: naming the file, layer and key.
    """
    costs = load_costs(asked.costs)
    importance = load_importance(asked.importance)
    files = f"{asked.importance} with {asked.costs}"
    with naming(files):
        weights = _widths("--weight-bits", asked.weight_bits)
        acts = _widths("--act-bits", asked.act_bits)
        if weights and acts:
            choices = BitChoices(weight_bits=weights, act_bits=acts, tied=asked.tied)
        else:
            choices = replace(choices_from(importance, costs, weights, acts), tied=asked.tied)
        return SolveInputs(
            costs=costs,
            importance=importance,
            choices=choices,
            accounting=accounting_named(asked.accounting),
            files=files,
        )


def request_for(
    asked: TableOptions, inputs: SolveInputs, alpha: float, limits: tuple[Limit, ...]
) -> SolveRequest:
    """The question of one alpha and one set of limits."""
    return SolveRequest(
        costs=inputs.costs,
        importance=inputs.importance,
        choices=inputs.choices,
        limits=limits,
        alpha=alpha,
        accounting=inputs.accounting,
        repair=asked.repair,  # type: ignore[arg-type]  # click.Choice holds it to the names
        solver=asked.solver,  # type: ignore[arg-type]
        time_limit_s=asked.time_limit_s,
    )


@contextmanager
def naming(files: str) -> Iterator[None]:
    """Complaints about tables get the names of the files that the tables came from."""
    try:
        yield
    except SolversError as error:
        if any(part and part in str(error) for part in files.split(" with ")):
            raise
        raise type(error)(f"{files}: {error}") from error


def _widths(option: str, text: str | None) -> tuple[int, ...]:
    if text is None:
        return ()
    parts: Sequence[str] = [part.strip() for part in text.split(",")]
    if not all(part.isdecimal() and len(part) <= 2 for part in parts):
        raise TableError(f"{option}: {text!r} is not a list of bit-widths such as 2,3,4")
    return tuple(sorted({int(part) for part in parts}))


def percent(option: str, text: str) -> float:
    """A share written as ``0.5%`` or ``0.5``, in percent.

    Raises:
        TableError: not a number, negative or not finite.
    """
    try:
        value = float(text.strip().removesuffix("%"))
    except ValueError:
        value = math.nan
    if not math.isfinite(value) or value < 0:
        raise TableError(f"{option}: {text!r} is not a share such as 0.5%, 0 or more")
    return value
