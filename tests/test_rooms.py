"""Which libraries does each door load? Asked of fresh interpreters, since imports stick."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]

HEAVY = ("torch", "torchvision", "ray", "mlflow")
FORBIDDEN_IN_SOLVERS = (*HEAVY, "yaml", "pydantic", "matplotlib", "trainers", "orchestrator")

SOLVE = """
import solvers
from solvers.solve import solve
assert all(getattr(solvers, name) is not None for name in solvers.__all__)
from solvers import (
    BitChoices, CostTable, Importance, ImportanceTable, LayerSpec, SolveRequest, parse_limit,
)
layers = tuple(
    LayerSpec(
        name=f"l{i}", kind="conv", num_macs=100, num_macs_unfloored=100, num_weights=10,
        num_biases=0, num_inputs=10, num_outputs=10,
    )
    for i in range(3)
)
costs = CostTable(model="m", input_shape=(1, 8, 8), layers=layers)
rows = tuple(
    Importance(layer=layer.name, tensor=tensor, bits=bits, value=1.0 / bits)
    for layer in layers for tensor in ("weight", "act") for bits in (2, 4)
)
importance = ImportanceTable(
    model="m", fingerprint=costs.fingerprint, method="t", seed=0, data_fingerprint="d", rows=rows
)
found = solve(SolveRequest(
    costs=costs, importance=importance, alpha=1.0, limits=(parse_limit("bitops_level=3x3"),),
    choices=BitChoices(weight_bits=(2, 4), act_bits=(2, 4)),
))
assert found.policy is not None, found
"""
HELP = """
from orchestrator.cli import run_command
assert run_command(["--help"]) == 0
"""


def loaded_by(code: str, names: tuple[str, ...]) -> list[str]:
    """Those of ``names`` that ``code`` has imported, itself or through others."""
    probe = f"{code}\nimport sys\nprint('LOADED', *sorted({set(names)!r} & set(sys.modules)))"
    done = subprocess.run(
        [sys.executable, "-c", probe], cwd=ROOT, capture_output=True, text=True, timeout=120
    )
    assert done.returncode == 0, done.stderr
    return done.stdout.splitlines()[-1].split()[1:]


def test_the_probe_sees_what_is_loaded() -> None:
    assert loaded_by("import yaml", ("yaml", "torch")) == ["yaml"]


def test_solving_loads_nothing_but_tables_and_solvers() -> None:
    assert loaded_by(SOLVE, FORBIDDEN_IN_SOLVERS) == []


def test_help_loads_nothing_heavy() -> None:
    assert loaded_by(HELP, (*HEAVY, "pulp", "pyarrow", "matplotlib", "pydantic")) == []


@pytest.mark.parametrize("verb", ["run", "plan", "solve", "sweep", "status", "compare", "doctor"])
def test_help_of_a_verb_loads_nothing_heavy(verb: str) -> None:
    assert loaded_by(HELP.replace('"--help"', f'"{verb}", "--help"'), HEAVY) == []


def test_experiment_files_are_checked_without_torch_and_ray() -> None:
    assert loaded_by("import orchestrator.config", HEAVY) == []


def test_phases_are_described_without_torch() -> None:
    assert loaded_by("import trainers.phases, trainers.recipes", (*HEAVY, "pydantic")) == []
