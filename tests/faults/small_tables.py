"""A made-up importance table, and how a fault that one check settles is counted."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

from solvers.tables import CostTable, Importance, ImportanceTable

if TYPE_CHECKING:
    from fault_ledger import Ledger


def importance_of(costs: CostTable) -> ImportanceTable:
    searched = [layer.name for layer in costs if layer.pinned is None]
    rows = tuple(
        Importance(layer=name, tensor=tensor, bits=b, value=(index + 2.0) / b)
        for index, name in enumerate(searched)
        for tensor in ("weight", "act")
        for b in (2, 4)
    )
    return ImportanceTable(model=costs.model, fingerprint=costs.fingerprint, method="test",
                           seed=0, data_fingerprint="d", rows=rows)  # fmt: skip


def survived(ledger: Ledger, row: int, kind: str, check: Callable[[], None]) -> None:
    ledger.inject(row, kind)
    check()
    ledger.survive(row, kind)
