"""How are latencies measured elsewhere read? CSV or Parquet with four named columns."""

from __future__ import annotations

import csv
from collections.abc import Iterable
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from solvers.errors import FormatError, TableError
from solvers.latency import LatencyTable, latency_ps_from_us

_COLUMNS = ("layer", "weight_bits", "act_bits", "latency_us")


def load_latency(path: Path | str) -> LatencyTable:
    """Read ``layer, weight_bits, act_bits, latency_us`` from ``.csv`` or ``.parquet``.

    Raises:
        FormatError: missing, unreadable, or a column is missing.
        TableError: an impossible or doubled entry, naming file, layer and key.
    """
    path = Path(path)
    if not path.is_file():
        raise FormatError(f"{path}: no such file; expected a latency table")
    rows = _parquet_rows(path) if path.suffix == ".parquet" else _csv_rows(path)
    return LatencyTable(name=str(path), rows=tuple(_checked(row, path, i) for i, row in rows))


def _csv_rows(path: Path) -> Iterable[tuple[int, dict[str, object]]]:
    try:
        with path.open(newline="", encoding="utf-8") as stream:
            reader = csv.DictReader(stream)
            _require_columns(path, reader.fieldnames or ())
            return [(line, dict(row)) for line, row in enumerate(reader, 2)]
    except (UnicodeDecodeError, csv.Error) as error:
        raise FormatError(f"{path}: cannot be read as CSV ({error})") from error


def _parquet_rows(path: Path) -> Iterable[tuple[int, dict[str, object]]]:
    try:
        # Not pq.read_table: it imports pyarrow.dataset and with it pandas, 0.3 s.
        with pq.ParquetFile(path) as file:
            table = file.read(use_threads=False)
    except (pa.ArrowException, OSError, ValueError) as error:
        raise FormatError(f"{path}: cannot be read as Parquet, perhaps cut short") from error
    _require_columns(path, table.column_names)
    columns = [table.column(name).to_pylist() for name in _COLUMNS]
    return [(i, dict(zip(_COLUMNS, row, strict=True))) for i, row in enumerate(zip(*columns))]  # noqa: B905


def _require_columns(path: Path, found: Iterable[str]) -> None:
    for name in _COLUMNS:
        if name not in set(found):
            raise FormatError(f"{path}: column {name!r} is missing; needs {', '.join(_COLUMNS)}")


def _checked(row: dict[str, object], path: Path, number: int) -> tuple[str, int, int, int]:
    layer = row["layer"]
    if not isinstance(layer, str) or not layer:
        raise TableError(f"{path}: row {number}: layer is {layer!r}; it must be a name")
    where = f"{path}: row {number}: layer {layer!r}"
    bits = []
    for key in ("weight_bits", "act_bits"):
        text = str(row[key]).strip()
        # Cut first: a text of thousands of digits is no integer to Python either.
        if not text.isdecimal() or len(text) > 2 or not 1 <= int(text) <= 32:
            raise TableError(f"{where}: {key} is {row[key]!r}; bit-widths are 1 to 32")
        bits.append(int(text))
    latency = row["latency_us"]
    if isinstance(latency, bool) or not isinstance(latency, (int, float, str)):
        raise TableError(f"{where}: latency_us is {latency!r}; it must be a number")
    return (layer, bits[0], bits[1], latency_ps_from_us(latency, where))
