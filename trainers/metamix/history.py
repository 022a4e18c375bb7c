"""How did the architecture parameters move?

A record of every alpha at regular updates, written as one Parquet table (schema
``alpha-history/1``): update, unit (layer or group), tensor, bits, alpha, probability.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pyarrow as pa
import torch
from torch import Tensor

from solvers.parquet import write_table
from trainers.metamix.architecture import Architecture
from trainers.metamix.tables import HISTORY_COLUMNS, HISTORY_SCHEMA


class AlphaHistory:
    """The records of one search; part of its checkpoint, so that a resume loses none.

    Args:
        architecture: the alphas.
        every: updates between two records.
        total: updates in all; the last is always recorded.
    """

    def __init__(self, architecture: Architecture, every: int, total: int) -> None:
        self.architecture, self.every, self.total = architecture, every, total
        self.updates: list[int] = []
        self.alphas: list[Tensor] = []

    def record(self, update: int) -> None:
        """Note the alphas after ``update`` (from 0) if it is due."""
        if (update + 1) % self.every and update + 1 != self.total:
            return
        self.updates.append(update + 1)
        self.alphas.append(torch.cat([a.detach().cpu() for a in self.architecture.alphas]))

    def state_dict(self) -> dict[str, Any]:
        """For a checkpoint."""
        return {"updates": list(self.updates), "alphas": list(self.alphas)}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """From a checkpoint."""
        self.updates = list(state["updates"])
        self.alphas = [alpha.cpu() for alpha in state["alphas"]]

    def save(self, path: Path) -> None:
        """Write the table."""
        columns: dict[str, list[Any]] = {name: [] for name in HISTORY_COLUMNS}
        sizes = [len(unit.bits) for unit in self.architecture.searched]
        for update, flat in zip(self.updates, self.alphas, strict=True):
            for unit, alpha in zip(
                self.architecture.searched, torch.split(flat, sizes), strict=True
            ):
                probabilities = torch.softmax(alpha.double(), dim=0)
                for bits, a, p in zip(
                    unit.bits, alpha.tolist(), probabilities.tolist(), strict=True
                ):
                    row = (update, unit.name, unit.tensor, bits, a, p)
                    for column, value in zip(columns.values(), row, strict=True):
                        column.append(value)
        arrays = {name: pa.array(values) for name, values in columns.items()}
        write_table(path, HISTORY_SCHEMA, {"updates": self.total}, arrays)
