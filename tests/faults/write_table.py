"""Which faults did the last runs inject? Puts their counts into docs/reliability.md.

python tests/faults/write_table.py COUNTS.json ...
"""

from __future__ import annotations

import json
import os
import platform
import sys
from datetime import UTC, datetime
from pathlib import Path

from fault_ledger import merged, table

PAGE = Path(__file__).resolve().parents[2] / "docs" / "reliability.md"
BEGIN, END = "<!-- measured: faults -->", "<!-- end of faults -->"


def main(files: list[str]) -> int:
    """Merge counts and write the table; 1 when a fault was not survived."""
    body = merged([json.loads(Path(file).read_text()) for file in files])
    figures = [f"| {name} | {value} |" for name, value in sorted(body["figures"].items())]
    where = f"{os.cpu_count()} cores, Python {platform.python_version()}, Linux"
    text = "\n".join(
        [f"{datetime.now(UTC):%Y-%m-%d}, {where}.", "", table(body), ""]
        + (["| figure | measured |", "| --- | --- |", *figures, ""] if figures else [])
    )
    page = PAGE.read_text()
    head, _, rest = page.partition(BEGIN)
    _, _, tail = rest.partition(END)
    PAGE.write_text(f"{head}{BEGIN}\n{text}{END}{tail}")
    lost = [f for f in body["faults"] if f["injected"] != f["survived"]]
    for fault in lost:
        print("not survived:", fault, file=sys.stderr)
    return 1 if lost else 0


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1:]))
