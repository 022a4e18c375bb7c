"""How do Python values become Arrow columns without loading pandas?

``pyarrow.array`` imports pandas to ask whether its argument is a Series: 0.25 s of a process that
has no use for it. Columns are built from their buffers instead, which is also faster for the long
lists of bits.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
import pyarrow as pa

_NUMPY = {pa.float64(): np.float64, pa.int64(): np.int64, pa.int32(): np.int32, pa.int8(): np.int8}


def texts(values: Sequence[str | None]) -> Any:
    """A string column; None is null."""
    builder = pa.lib.StringBuilder()
    builder.append_values(values)
    return builder.finish()


def numbers(values: Sequence[float | int | None], kind: Any) -> Any:
    """A column of numbers of an Arrow type; None is null."""
    missing = [v is None for v in values]
    filled = [0 if v is None else v for v in values] if any(missing) else values
    validity = None
    if any(missing):
        present = ~np.array(missing, dtype=bool)
        validity = pa.py_buffer(np.packbits(present, bitorder="little").tobytes())
    data = pa.py_buffer(np.array(filled, dtype=_NUMPY[kind]))
    return pa.Array.from_buffers(kind, len(values), [validity, data])


def lists(values: Iterable[Sequence[int]], kind: Any) -> Any:
    """A column of lists of integers, none of them null."""
    rows = [np.asarray(row, dtype=_NUMPY[kind]) for row in values]
    ends = np.zeros(len(rows) + 1, dtype=np.int32)
    np.cumsum([len(row) for row in rows], out=ends[1:])
    flat = np.concatenate(rows) if rows else np.zeros(0, dtype=_NUMPY[kind])
    inner = pa.Array.from_buffers(kind, len(flat), [None, pa.py_buffer(flat)])
    offsets = pa.Array.from_buffers(pa.int32(), len(ends), [None, pa.py_buffer(ends)])
    return pa.ListArray.from_arrays(offsets, inner)
