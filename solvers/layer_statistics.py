"""What is known of a tensor besides its importance: how large it is, and how much its step matters?

Schema layer-statistics/1: one row per layer, tensor and bit-width, written by whoever trains
indicators and read by the transforms that need more than the indicators themselves.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import pyarrow as pa

from solvers.errors import TableError
from solvers.parquet import read_table, write_table
from solvers.tables import TensorRole

SCHEMA: Final = "layer-statistics/1"
COLUMNS: Final = (
    "layer", "tensor", "bits", "std", "mean_abs", "num_elements", "mean_abs_gradient",
)  # fmt: skip


@dataclass(frozen=True, kw_only=True, slots=True)
class TensorStatistics:
    """One tensor at one bit-width.

    Attributes:
        layer: its layer.
        tensor: ``weight``, or ``act``, the layer's input.
        bits: the width of the quantizer.
        std: standard deviation of the tensor before it is quantized; the same at every width.
        mean_abs: mean absolute value, likewise.
        num_elements: of the tensor, for one image where it is an input.
        mean_abs_gradient: mean over batches of |dL/ds|, the loss by the step size, without the
            quantizer's gradient scale.
    """

    layer: str
    tensor: TensorRole
    bits: int
    std: float
    mean_abs: float
    num_elements: int
    mean_abs_gradient: float

    def __post_init__(self) -> None:
        for name in ("std", "mean_abs", "mean_abs_gradient"):
            value = getattr(self, name)
            if not math.isfinite(value) or value < 0:
                raise TableError(
                    f"layer statistics: layer {self.layer!r}, {self.tensor}, {self.bits} bit: "
                    f"{name} is {value!r}; it must be finite, 0 or more"
                )


def save_statistics(path: Path | str, rows: Sequence[TensorStatistics]) -> None:
    """Write the rows atomically."""
    columns = {name: pa.array([getattr(row, name) for row in rows]) for name in COLUMNS}
    write_table(path, SCHEMA, {}, columns)


def load_statistics(path: Path | str) -> tuple[TensorStatistics, ...]:
    """Read what ``save_statistics`` wrote.

    Raises:
        FormatError: missing, unreadable, or another schema.
        TableError: a value that is no statistic.
    """
    _, columns = read_table(path, SCHEMA, COLUMNS)
    rows: list[dict[str, Any]] = [
        dict(zip(COLUMNS, values, strict=True))
        for values in zip(*(columns[name] for name in COLUMNS), strict=True)
    ]
    return tuple(TensorStatistics(**row) for row in rows)
