"""How are tables kept in Parquet so that a reader knows what it reads?

The file's metadata holds ``mpq.schema`` (name/version) and ``mpq.facts`` (JSON: everything that is
not a column). A reader accepts exactly the schema it names and says what it found otherwise.
"""

from __future__ import annotations

import io
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from solvers.atomic import write_atomically
from solvers.errors import FormatError

_SCHEMA = b"mpq.schema"
_FACTS = b"mpq.facts"


def write_table(
    path: Path | str, schema: str, facts: Mapping[str, Any], columns: Mapping[str, Any]
) -> None:
    """Write columns (name -> pyarrow array) with a schema name and JSON facts, atomically."""
    metadata = {_SCHEMA: schema.encode(), _FACTS: json.dumps(facts, allow_nan=False).encode()}
    table = pa.table(dict(columns)).replace_schema_metadata(metadata)
    buffer = io.BytesIO()
    pq.write_table(table, buffer, compression="zstd")
    write_atomically(path, buffer.getvalue())


def read_table(
    path: Path | str, schema: str, columns: Sequence[str]
) -> tuple[dict[str, Any], dict[str, list[Any]]]:
    """Facts and the named columns as lists.

    Raises:
        FormatError: missing, unreadable or cut short, another schema, or a column is missing
            or stands twice.
    """
    facts, table = read_arrow(path, schema, columns)
    return facts, {name: table.column(name).to_pylist() for name in columns}


def read_arrow(path: Path | str, schema: str, columns: Sequence[str]) -> tuple[dict[str, Any], Any]:
    """As ``read_table``, leaving the columns in Arrow.

    Raises:
        FormatError: missing, unreadable or cut short, another schema, or a column is missing
            or stands twice.
    """
    path = Path(path)
    if not path.is_file():
        raise FormatError(f"{path}: no such file; expected {schema}")
    try:
        # Not pq.read_table: it imports pyarrow.dataset and with it pandas, 0.3 s.
        with pq.ParquetFile(path) as file:
            table = file.read(use_threads=False)
    except (pa.ArrowException, OSError, ValueError) as error:
        first_line = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise FormatError(
            f"{path}: cannot be read as Parquet, perhaps it is cut short ({first_line})"
        ) from error
    metadata = table.schema.metadata or {}
    found = metadata.get(_SCHEMA, b"no schema").decode(errors="replace")
    if found != schema:
        raise FormatError(f"{path}: holds {found}, but {schema} is what can be read here")
    for name in columns:
        num = table.column_names.count(name)
        if num != 1:
            how = "is missing" if num == 0 else f"stands {num} times"
            raise FormatError(f"{path}: column {name!r} of {schema} {how}")
    try:
        facts = json.loads(metadata.get(_FACTS, b"{}"))
    except (ValueError, RecursionError) as error:
        # Brackets within brackets by the thousand end Python's stack before its patience.
        raise FormatError(f"{path}: its {schema} facts are not JSON") from error
    if not isinstance(facts, dict):
        raise FormatError(f"{path}: its {schema} facts are not a JSON object")
    return facts, table
