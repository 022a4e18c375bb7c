"""Do the pages of the evidence say what the committed numbers say? Every table made again."""

from __future__ import annotations

import importlib.util
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import pytest

ROOT = Path(__file__).resolve().parents[1]
EVIDENCE = ROOT / "docs" / "evidence"


@pytest.fixture(scope="module")
def tables() -> ModuleType:
    spec = importlib.util.spec_from_file_location("evidence_tables", EVIDENCE / "tables.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_every_table_follows_from_the_results() -> None:
    found = subprocess.run(
        [sys.executable, "docs/evidence/tables.py", "--check"],
        cwd=ROOT, capture_output=True, text=True,
    )  # fmt: skip
    assert found.returncode == 0, found.stdout + found.stderr


def _run(seed: int, better: float) -> dict[str, object]:
    accuracy = {"limpq": 85.0 + better, "reversed": 84.0, "uniform_w2a3": 85.0 + seed / 10}
    rows = [
        {"limits": "x", "method": m, "alpha": 1.0, "policy_id": m, "top1": top1,
         "mean_weight_bits": 2.0, "mean_act_bits": 3.0, "bitops_g": 0.25}
        for m, top1 in accuracy.items()
    ]  # fmt: skip
    objective = dict(zip(accuracy, (1.0, 3.0, 2.0), strict=True))
    return {
        "seed": seed,
        "rows": rows,
        "predictions": {"limpq, learned": {"1": objective}},
        "search": [
            {"method": "limpq", "seconds": 20.0, "per_device": False, "images": 100.0},
            {"method": "limpq", "seconds": 0.5, "per_device": True},
        ],
    }


def test_differences_are_paired_by_seed_and_marked_when_decided(tables: ModuleType) -> None:
    shifts = {1: 2.0, 2: 2.11, 3: 2.19}
    text = tables.accuracy_table([_run(seed, shift) for seed, shift in shifts.items()])
    first = text.splitlines()[2]
    # Less uniform: 1.9, 1.91, 1.89; t(0.975, 2) = 4.303, sd 0.01, so 1.90 +- 0.0248.
    assert first.startswith("| limpq, alpha 1 |")
    assert "**+1.90 [+1.88, +1.92]**" in first
    assert "+0.00 (n = 3)" not in text


def test_one_seed_decides_nothing(tables: ModuleType) -> None:
    text = tables.accuracy_table([_run(1, 2.0)])
    assert "(n = 1)" in text
    assert "**" not in text


def test_search_cost_is_shared_by_devices(tables: ModuleType) -> None:
    line = tables.cost_table([_run(1, 2.0)]).splitlines()[2]
    assert line == "| limpq | 100 | 0 | 0 | 20.50 | 2.50 | 0.70 | 0.50 |"


def test_a_changed_table_is_noticed(tables: ModuleType, monkeypatch: pytest.MonkeyPatch) -> None:
    page = "<!-- table: x -->\n\n| 1 |\n\n<!-- end of x -->\n"
    monkeypatch.setattr(tables, "TABLES", {"x": lambda: "| 2 |"})
    assert tables.filled(page) == page.replace("1", "2")


def test_drift_is_read_where_a_width_ends(tables: ModuleType) -> None:
    """A running variance that comes near its value in 3 of 4 updates after each change."""
    bits = [8] * 4 + [2] * 8 + [8] * 4
    variance = [4.0] * 4 + [3.0, 2.5, 2.2, 2.0] * 2 + [3.0, 3.5, 3.8, 4.0]
    cells = {"variant": ["x"] * 16, "update": [*range(16)], "bits": bits, "variance": variance}
    run = {"drift": {"drift": {"cells": cells, "metrics": {"evidence/x_spread": 0.5}}}}
    assert tables.drift_table(run).splitlines()[2] == "| x | 0.50 | 1.00 | 0.500 |"


def test_policies_of_all_seeds_are_ranked_by_the_first_seeds_table(tables: ModuleType) -> None:
    """Ten policies over two seeds, one in both: nine distinct, in the order of their bits."""
    widths = {1: range(2, 7), 2: range(6, 11)}
    runs = [
        {
            "seed": seed,
            "rows": [{"policy_id": str(b), "top1": 50.0 + b + seed} for b in own],
            "policies": {str(b): {"layer": f"{b}/2"} for b in own},
            "predictions": {"limpq, learned": {"1": {str(b): -float(b) for b in own}}},
            "importance": {
                "limpq, learned": [["layer", "weight", b, 1 / b] for b in range(2, 11)]
                + [["layer", "act", 2, 0.5]]
            },
        }
        for seed, own in widths.items()
    ]
    head, _, line = tables.tau_table(runs).splitlines()
    assert head.endswith("| all 9 policies |")
    assert line.split(" | ")[-1].startswith("**+1.00 (p 0.00)**")


def test_draws_are_compared_unpaired_and_a_policy_counts_once(tables: ModuleType) -> None:
    """Means 2 and 5, variance 1 and three each: t(0.975, 4) = 2.776, so -3 +- 2.776 sqrt(2 / 3)."""
    runs = [
        {"seed": seed, "rows": [{"method": "metamix", "policy_id": "a", "top1": float(seed)},
                                {"method": "random", "policy_id": "b", "top1": 3.0 + seed}]}
        for seed in (1, 2, 3, 3)
    ]  # fmt: skip
    lines = tables.draws_table(runs).splitlines()
    assert lines[3] == "| metamix | 3 | 2.00 | 1.00 | **-3.00 [-5.27, -0.73]** | 3 |"
    assert lines[2].startswith("| random | 3 | 5.00 | 1.00 | - |")
