"""How are latencies measured elsewhere read? CSV or Parquet with four named columns.

No cell is lost in silence. Python's CSV reader keeps the last of two columns with one name and puts
surplus cells aside, so that a latency or a limit would be gone without a word (``10,9`` for 10.9 is
one cell too many); both are refused. ``devices.py`` reads its CSV files by the same rules.
"""

from __future__ import annotations

import csv
from collections.abc import Iterable, Sequence
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from solvers.errors import FormatError, TableError
from solvers.latency import LatencyTable, latency_ps_from_us

_COLUMNS = ("layer", "weight_bits", "act_bits", "latency_us")


def load_latency(path: Path | str) -> LatencyTable:
    """Read ``layer, weight_bits, act_bits, latency_us`` from ``.csv`` or ``.parquet``.

    Raises:
        FormatError: missing, unreadable, a column is missing or stands twice, or a row has cells
            beyond the columns.
        TableError: an impossible or doubled entry, naming file, layer and key.
    """
    path = Path(path)
    if not path.is_file():
        raise FormatError(f"{path}: no such file; expected a latency table")
    rows = _parquet_rows(path) if path.suffix == ".parquet" else _csv_rows(path)
    return LatencyTable(name=str(path), rows=tuple(_checked(row, path, i) for i, row in rows))


def _csv_rows(path: Path) -> Iterable[tuple[int, dict[str, object]]]:
    return [(line, dict(cells)) for line, cells in read_csv_rows(path, _COLUMNS)]


def _parquet_rows(path: Path) -> Iterable[tuple[int, dict[str, object]]]:
    try:
        # Not pq.read_table: it imports pyarrow.dataset and with it pandas, 0.3 s.
        with pq.ParquetFile(path) as file:
            table = file.read(use_threads=False)
    except (pa.ArrowException, OSError, ValueError) as error:
        raise FormatError(f"{path}: cannot be read as Parquet, perhaps cut short") from error
    check_columns(path, table.column_names, _COLUMNS)
    columns = [table.column(name).to_pylist() for name in _COLUMNS]
    return [(i, dict(zip(_COLUMNS, row, strict=True))) for i, row in enumerate(zip(*columns))]  # noqa: B905


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


def read_csv_rows(path: Path, needed: Sequence[str]) -> list[tuple[int, dict[str, str | None]]]:
    """(line, cells by column name) of every row; a cell that a short row lacks is None.

    Args:
        path: of the file.
        needed: columns that must be there.

    Raises:
        FormatError: no such file, unreadable, a column that is missing or stands twice, or a row
            with more cells than columns.
    """
    rows = []
    try:
        # Excel marks the start of its UTF-8 files; the mark is no part of the first name.
        with path.open(newline="", encoding="utf-8-sig") as stream:
            reader = csv.DictReader(stream)
            check_columns(path, reader.fieldnames or (), needed)
            for cells in reader:
                if None in cells:
                    raise FormatError(
                        f"{path}: line {reader.line_num}: too many cells; a decimal comma is one "
                        "(write 10.9, not 10,9)"
                    )
                rows.append((reader.line_num, dict(cells)))
    except FileNotFoundError:
        raise FormatError(f"{path}: no such file") from None
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise FormatError(f"{path}: cannot be read as CSV ({error})") from error
    return rows


def check_columns(path: Path, found: Sequence[str], needed: Sequence[str]) -> None:
    """Refuse a header without a needed column, or with one name twice.

    Raises:
        FormatError: naming the column.
    """
    for name in needed:
        if name not in found:
            raise FormatError(f"{path}: column {name!r} is missing; needs {', '.join(needed)}")
    for name in found:
        if found.count(name) > 1:
            raise FormatError(
                f"{path}: column {name!r} stands {found.count(name)} times; keep one of them"
            )
