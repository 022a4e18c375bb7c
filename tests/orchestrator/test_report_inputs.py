"""What a report predicts with: importance as the solver of the run reads it."""

from __future__ import annotations

from pathlib import Path

import pytest

from orchestrator.compare.proxies import predicted_objective
from orchestrator.journal import read_journal
from orchestrator.report.figures import run_figures
from orchestrator.report.inputs import RunInputs, read_inputs
from solvers.tables import ImportanceTable
from solvers.transforms import transform
from tests.orchestrator.run_folders import POLICIES, costs, table, write_run


def _inputs(folder: Path, way: str | None) -> RunInputs:
    config = None if way is None else {"importance": {"transform": way}}
    store = write_run(folder, "a", config=config)
    return read_inputs(store, read_journal(store.journal_path))


def _solved(run: RunInputs) -> dict[str, ImportanceTable | None]:
    return {each.source: each.solved for each in run.importance}


@pytest.mark.parametrize("way", [None, "raw"])
def test_raw_importance_predicts_as_it_was_learned(tmp_path: Path, way: str | None) -> None:
    run = _inputs(tmp_path, way)
    assert _solved(run) == {"limpq": table(), "initial": table(0.5)}


def test_transformed_importance_predicts_as_the_solver_was_given_it(tmp_path: Path) -> None:
    run = _inputs(tmp_path, "relative")
    read = transform(table(), costs(), "relative")
    # The solver reads the initial indicators as they are, whatever the transform.
    assert _solved(run) == {"limpq": read, "initial": table(0.5)}
    (learned,) = [each for each in run.importance if each.source == "limpq"]
    assert learned.table == table()
    bits = POLICIES["limpq", "1G"].bits_by_name()
    predicted = predicted_objective(read, bits, 1.0)
    assert predicted is not None
    assert predicted != predicted_objective(table(), bits, 1.0)
    scatter = next(d for d in run_figures(run).proxies if d.stem == "proxy-limpq")
    (shown,) = [row for row in scatter.rows if POLICIES["limpq", "1G"].policy_id in str(row)]
    assert any(value == pytest.approx(predicted) for value in shown if isinstance(value, float))


def test_a_transform_whose_statistics_are_missing_has_no_tau_and_says_so(tmp_path: Path) -> None:
    run = _inputs(tmp_path, "by_gradient")
    assert _solved(run) == {"limpq": None, "initial": table(0.5)}
    assert any("by_gradient" in lack and "statistics" in lack for lack in run.lacks)
    assert {found.source for found in run_figures(run).validity} == {"initial"}
