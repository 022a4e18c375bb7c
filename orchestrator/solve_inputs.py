"""What did the person ask ``mpq solve`` and ``mpq explain`` for? Files and options to values."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

from solvers.accounting import Accounting, accounting_named
from solvers.errors import SolversError, TableError
from solvers.importance import choices_from
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


def read_inputs(
    costs_path: str,
    importance_path: str,
    *,
    accounting: str,
    weight_bits: str | None,
    act_bits: str | None,
    tied: bool,
) -> SolveInputs:
    """Load both tables and settle the candidates.

    Raises:
        SolversError: naming the file, layer and key.
    """
    costs = load_costs(costs_path)
    importance = load_importance(importance_path)
    files = f"{importance_path} with {costs_path}"
    with naming(files):
        weights, acts = _widths("--weight-bits", weight_bits), _widths("--act-bits", act_bits)
        if weights and acts:
            choices = BitChoices(weight_bits=weights, act_bits=acts, tied=tied)
        else:
            found = choices_from(importance, costs)
            choices = BitChoices(
                weight_bits=weights or found.weight_bits,
                act_bits=acts or found.act_bits,
                tied=tied,
                overrides=tuple((n, weights or w, acts or a) for n, w, a in found.overrides),
            )
        return SolveInputs(
            costs=costs,
            importance=importance,
            choices=choices,
            accounting=accounting_named(accounting),
            files=files,
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
