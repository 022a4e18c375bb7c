"""Which faults were injected, and how many were survived? Counted as it happens, told at the end.

A fault is written down when it is injected, and again when everything that must hold after it was
checked. What is injected and not survived stands in the table.
"""

from __future__ import annotations

import json
from collections import defaultdict
from dataclasses import dataclass, field
from pathlib import Path

# Rows of the fault list, as docs/reliability.md names them.
ROWS = {
    1: "worker killed",
    2: "node lost",
    3: "driver asked to stop (SIGINT, SIGTERM)",
    4: "driver killed (SIGKILL)",
    5: "head lost, new cluster",
    6: "disk full",
    7: "checkpoint damaged",
    8: "MLflow down, slow or talking nonsense",
    9: "SQLite locked, first-start race",
    10: "NaN or infinity in training",
    11: "limit out of reach",
    12: "solver out of time",
    13: "malformed input",
    14: "unknown network or data set",
    15: "broken image or Parquet file",
    16: "policy of another network",
    17: "same run started twice",
    18: "clock set",
    19: "memory ran out",
    20: "file that would run code",
    21: "path that leads out",
    22: "secret in configuration",
    23: "cluster without a token",
    24: "file of another version",
    25: "late result of a lost worker",
    26: "worker hangs",
}


@dataclass
class Ledger:
    """Counts by row and kind."""

    injected: dict[tuple[int, str], int] = field(default_factory=lambda: defaultdict(int))
    survived: dict[tuple[int, str], int] = field(default_factory=lambda: defaultdict(int))
    figures: dict[str, str] = field(default_factory=dict)

    def inject(self, row: int, kind: str, count: int = 1) -> None:
        """A fault happened."""
        assert row in ROWS
        self.injected[row, kind] += count

    def survive(self, row: int, kind: str, count: int = 1) -> None:
        """Everything that must hold after it holds."""
        self.survived[row, kind] += count
        assert self.survived[row, kind] <= self.injected[row, kind]

    def figure(self, name: str, value: str) -> None:
        """A measured number for the document."""
        self.figures[name] = value

    def to_json(self) -> dict[str, object]:
        return {
            "faults": [
                {"row": row, "kind": kind, "injected": n, "survived": self.survived[row, kind]}
                for (row, kind), n in sorted(self.injected.items())
            ],
            "figures": self.figures,
        }

    def save(self, path: Path) -> None:
        path.write_text(json.dumps(self.to_json(), indent=1))


def table(body: dict[str, object]) -> str:
    """Markdown of one or several ledgers put together."""
    lines = ["| # | fault | how it was made | injected | survived |",
             "| ---: | --- | --- | ---: | ---: |"]  # fmt: skip
    total = [0, 0]
    for fault in body["faults"]:  # type: ignore[attr-defined]
        row, n, ok = fault["row"], fault["injected"], fault["survived"]
        lines.append(f"| {row} | {ROWS[row]} | {fault['kind']} | {n} | {ok} |")
        if row != 13:
            total = [total[0] + n, total[1] + ok]
    lines.append(f"| | **all but row 13** | | **{total[0]}** | **{total[1]}** |")
    return "\n".join(lines)


def merged(bodies: list[dict[str, object]]) -> dict[str, object]:
    """Several ledgers as one; of two measurements of one kind the later counts."""
    faults: dict[tuple[int, str], dict[str, object]] = {}
    figures: dict[str, str] = {}
    for body in bodies:
        for fault in body["faults"]:  # type: ignore[attr-defined]
            faults[fault["row"], fault["kind"]] = fault
        figures.update(body["figures"])  # type: ignore[arg-type]
    return {"faults": [faults[key] for key in sorted(faults)], "figures": figures}
