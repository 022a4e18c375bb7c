"""How do measured values become an importance table, and a source's result?

The solver takes positive values. A method's own theory does not always give them: a trace or a
measured loss increase may be negative or zero. Such values are raised to ``FLOOR`` times the
table's largest, which ranks the option as harmless; how many there were is a fact of the result.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from solvers.storage import save_importance
from solvers.tables import Importance, ImportanceTable
from trainers.baselines.calibration import Calibration, Key
from trainers.baselines.progress import Progress
from trainers.errors import DivergedError
from trainers.meters import device_name
from trainers.phases import PhaseResult, PhaseSpec
from trainers.results import save_result

TABLE = "importance.parquet"
FLOOR = 1e-12


def finish_importance(
    spec: PhaseSpec,
    calibration: Calibration,
    progress: Progress,
    values: Mapping[Key, float],
    *,
    metrics: Mapping[str, float] | None = None,
    facts: Mapping[str, Any] | None = None,
) -> PhaseResult:
    """Write table and result of an importance source; every rank must call it.

    Args:
        spec: the phase.
        calibration: its network and images.
        progress: what it kept; removed once the outputs are written.
        values: of every key, in any unit.
        metrics: numbers beside the cost.
        facts: what a reader must know.

    Raises:
        DivergedError: no value is positive.
    """
    method = spec.phase.rpartition(".")[2]
    rows, num_floored = importance_rows(method, values)
    result = PhaseResult(
        phase=spec.phase,
        outputs={"importance": TABLE},
        metrics={"num_floored": float(num_floored), **(metrics or {})},
        cost=calibration.meter.total(),
        device=device_name(calibration.context.device),
        facts={
            "data_fingerprint": calibration.data.fingerprint,
            "num_images": len(calibration.indices),
            "input_ranges": dict(calibration.network.kinds),
            **(facts or {}),
        },
    )
    if calibration.context.rank == 0:
        table = ImportanceTable(
            model=calibration.costs.model,
            fingerprint=calibration.costs.fingerprint,
            method=method,
            seed=spec.seed,
            data_fingerprint=calibration.data.fingerprint,
            rows=rows,
        )
        save_importance(calibration.context.step_dir / TABLE, table)
        save_result(calibration.context.step_dir / "result.json", result)
        progress.clear()
    return result


def importance_rows(method: str, values: Mapping[Key, float]) -> tuple[tuple[Importance, ...], int]:
    """The rows of a table, and how many of them had to be raised to the floor.

    Raises:
        DivergedError: no value is positive.
    """
    largest = max(values.values())
    if not largest > 0:
        raise DivergedError(
            f"{method}: no layer's value is positive (the largest is {largest}), so it says "
            "nothing about bits; train the network before, or look at its weights"
        )
    floor = FLOOR * largest
    rows = tuple(
        Importance(layer=layer, tensor=tensor, bits=bits, value=max(value, floor))
        for (layer, tensor, bits), value in values.items()
    )
    return rows, sum(value < floor for value in values.values())
