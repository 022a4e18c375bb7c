"""What do the pages' tables say? Made from ``results/*.json``, never by hand.

    python docs/evidence/tables.py            write the tables into the pages
    python docs/evidence/tables.py --check    list the pages that are out of date, exit 1 if any

A table stands between ``<!-- table: NAME -->`` and ``<!-- end of NAME -->``.
"""

from __future__ import annotations

import re
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

HERE = Path(__file__).parent
sys.path[:0] = [str(HERE), str(HERE.parents[1])]

from draw_tables import draws_table  # noqa: E402
from indicator_tables import learning_table, sensitivity_table, separate_table  # noqa: E402
from policy_tables import (  # noqa: E402
    accuracy_table,
    bits_table,
    cost_table,
    tau_table,
)
from read_results import Run, at, one_a_seed, runs_of  # noqa: E402
from stream_tables import inner_table, marginal_table  # noqa: E402
from training_tables import curves_table, drift_table, provenance  # noqa: E402


def _limpq(make: Callable[[Sequence[Run]], str]) -> Callable[[], str]:
    return lambda: make(one_a_seed(runs_of("evidence-limpq-25")))


def _metamix(limits: str) -> Callable[[], str]:
    return lambda: accuracy_table(at(runs_of("evidence-metamix"), limits), ("uniform", "random"))


def _sensitivity(make: Callable[[Run, Run], str]) -> Callable[[], str]:
    return lambda: make(runs_of("evidence-sensitivity")[0], runs_of("evidence-limpq-25")[0])


TABLES: Mapping[str, Callable[[], str]] = {
    "sensitivity": _sensitivity(sensitivity_table),
    "sensitivity-separate": _sensitivity(separate_table),
    "sensitivity-runs": lambda: provenance(runs_of("evidence-sensitivity")),
    "learning": lambda: learning_table(
        runs_of("evidence-learning"), runs_of("evidence-limpq-25")[0]
    ),
    "learning-accuracy": lambda: accuracy_table(runs_of("evidence-policies"), ()),
    "learning-runs": lambda: provenance(
        [*runs_of("evidence-learning"), *runs_of("evidence-policies")]
    ),
    "curves": lambda: curves_table(runs_of("evidence-lsq-curves")),
    "curves-runs": lambda: provenance(runs_of("evidence-lsq-curves")),
    "metamix-accuracy": _metamix("bitops_level=4x3.4"),
    "metamix-accuracy-4x4": _metamix("bitops_level=4x4"),
    # Variants of a seed are runs of their own, beside its core.
    "metamix-draws": lambda: draws_table(at(runs_of("evidence-metamix"), "bitops_level=4x3.4")),
    "metamix-bits": lambda: bits_table(runs_of("evidence-metamix-core")[0]),
    "metamix-cost": lambda: cost_table(runs_of("evidence-metamix-core")),
    "metamix-drift": lambda: drift_table(runs_of("evidence-metamix-core")[0]),
    "metamix-runs": lambda: provenance(runs_of("evidence-metamix")),
    "limpq-25-accuracy": _limpq(accuracy_table),
    "limpq-25-tau": _limpq(tau_table),
    "limpq-25-bits": _limpq(lambda runs: bits_table(runs[0])),
    "limpq-25-marginal": _limpq(marginal_table),
    "limpq-25-inner": _limpq(inner_table),
    "limpq-25-cost": _limpq(cost_table),
    "limpq-25-runs": _limpq(provenance),
    "one-shot-again": lambda: accuracy_table(runs_of("evidence-again"), ("reversed_s1",)),
    "one-shot-again-runs": lambda: provenance(runs_of("evidence-again")),
    "limpq-long-accuracy": lambda: accuracy_table(
        runs_of("evidence-limpq-long"), ("uniform", "reversed")
    ),
    "limpq-long-runs": lambda: provenance(runs_of("evidence-limpq-long")),
}


def filled(text: str) -> str:
    """A page with each of its tables made again.

    Raises:
        KeyError: the page names a table that is not here.
    """

    def table(match: re.Match[str]) -> str:
        name = match["name"]
        return f"<!-- table: {name} -->\n\n{TABLES[name]()}\n\n<!-- end of {name} -->"

    return re.sub(
        r"<!-- table: (?P<name>\S+) -->.*?<!-- end of (?P=name) -->", table, text, flags=re.S
    )


def main(check: bool) -> int:
    """Write the tables, or compare them; the number of pages that were out of date."""
    stale = 0
    for page in sorted(HERE.glob("*.md")):
        text = page.read_text()
        made = filled(text)
        if made != text:
            stale += 1
            print(f"{page.name} {'is out of date' if check else 'written'}")
            if not check:
                page.write_text(made)
    return stale if check else 0


if __name__ == "__main__":
    sys.exit(min(main("--check" in sys.argv[1:]), 1))
