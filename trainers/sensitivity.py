"""How much does one layer at few bits hurt, and how much of it does training mend?

Phase ``sensitivity``, LIMPQ's Figure 2 made a measurement: one layer's weight, what it reads, or
both, at b bits, everything else in full precision. Loss and accuracy are taken with the step size
that statistics give, and after a short training of that layer alone. Held against learned
indicators this tells whether they mean sensitivity.

Each cell (layer, tensor, bits) is done whole by one rank, so its numbers do not depend on how many
ranks there are.
"""

from __future__ import annotations

import math
import time
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Final

import pyarrow as pa

from solvers.parquet import read_table, write_table
from solvers.storage import load_costs
from solvers.tables import CostTable
from trainers.distributed import check_same, sum_over_ranks
from trainers.errors import DivergedError, InterruptedPhaseError, ModelError
from trainers.meters import Meter, device_name
from trainers.oneshot.measure import Measured
from trainers.phases import Cost, PhaseContext, PhaseResult, PhaseSpec
from trainers.results import load_result, save_result
from trainers.sensitivity_bench import Bench, Cell, Values
from trainers.sensitivity_config import SensitivityConfig

TABLE = "sensitivity.parquet"
SCHEMA: Final = "sensitivity/1"
COLUMNS: Final = (
    "layer", "tensor", "bits", "loss", "top1", "loss_after", "top1_after", "step", "step_after",
)  # fmt: skip
_SAVE_EVERY_S = 20.0


def run(spec: PhaseSpec, context: PhaseContext) -> PhaseResult:
    """Measure every cell.

    ``config`` is a ``SensitivityConfig``. Inputs: ``weights`` (full precision), ``costs``.
    Outputs: ``sensitivity`` (Parquet: layer, tensor, bits; loss, top-1 and step size, of ``both``
    the weight's, without training and after it). Metrics: ``full_precision_loss``,
    ``full_precision_top1``.

    Raises:
        ModelError: a layer that the network does not search.
        DivergedError: a loss is not finite.
        InterruptedPhaseError: the driver asked to stop; the cells so far are kept.
    """
    done = load_result(context.step_dir / "result.json")
    if done is not None:
        return done
    config: SensitivityConfig = spec.config
    costs = load_costs(Path(spec.inputs["costs"]))
    cells = cells_of(costs, config)
    meter = Meter(context.device)
    bench = Bench(spec, context, config, meter)
    rows, known = _read(context, meter)
    reference = known or bench.full_precision()
    saved_at = time.monotonic()
    waiting = [cell for cell in cells if cell not in rows]
    for start in range(0, len(waiting), context.world_size):
        chunk = waiting[start : start + context.world_size]
        late = context.rank == 0 and time.monotonic() - saved_at > _SAVE_EVERY_S
        num_stopping, is_late = _measure_chunk(chunk, bench, rows, late, context)
        context.progress({"cells": len(rows), "of": len(cells)})
        if num_stopping or is_late:
            _save(context, cells, rows, reference, meter)
            saved_at = time.monotonic()
        if num_stopping:
            raise InterruptedPhaseError(f"stopped after {len(rows)} of {len(cells)} tensors")
    _save(context, cells, rows, reference, meter)
    context.report({"cells": len(rows)})
    result = PhaseResult(
        phase=spec.phase,
        outputs={"sensitivity": TABLE},
        metrics={
            "full_precision_loss": reference.loss,
            "full_precision_top1": reference.top1,
            "cells": float(len(cells)),
        },
        cost=meter.total(),
        device=device_name(context.device),
        facts={
            "images_from": config.images_from,
            "data_fingerprint": bench.data.fingerprint,
            "num_updates": bench.updates,
        },
    )
    if context.rank == 0:
        save_result(context.step_dir / "result.json", result)
    return result


def cells_of(costs: CostTable, config: SensitivityConfig) -> tuple[Cell, ...]:
    """The cells, layers in execution order.

    Raises:
        ModelError: a layer that is not searched.
    """
    names = [layer.name for layer in costs.searched]
    for name in config.layers:
        if name not in names:
            raise ModelError(f"sensitivity: no searched layer {name!r}; they are {names}")
    return tuple(
        Cell(name, tensor, bits)
        for name in names
        if not config.layers or name in config.layers
        for tensor in config.tensors
        for bits in sorted(set(config.bits))
    )


def _measure_chunk(
    chunk: Sequence[Cell], bench: Bench, rows: dict[Cell, Values], late: bool, context: PhaseContext
) -> tuple[float, float]:
    """One cell a rank, entered on all; number of ranks that want to stop, and whether to save."""
    width = len(COLUMNS) - 2  # whether it was measured to its end, and the values
    words = [0.0] * (width * context.world_size + 2)
    stopped = False
    if context.rank < len(chunk):
        # All ranks are told first what one met: one that leaves alone would block the others.
        try:
            mine = (1.0, *bench.cell(chunk[context.rank]))
        except DivergedError:
            mine = (1.0,) + (math.nan,) * (width - 1)
        except InterruptedPhaseError:
            stopped, mine = True, (0.0,) * width
        words[width * context.rank : width * (context.rank + 1)] = mine
    words[-2:] = [float(stopped or context.should_stop()), float(late)]
    found = sum_over_ranks(words, context.device)
    forward, backward = bench.passes()
    for i, cell in enumerate(chunk):
        measured, *values = found[width * i : width * (i + 1)]
        if not measured:
            continue
        bench.meter.forward_passes += forward
        bench.meter.backward_passes += backward
        if not all(map(math.isfinite, values)):
            raise DivergedError(
                f"sensitivity: layer {cell.layer!r}, {cell.tensor} at {cell.bits} bits: the loss "
                "is not finite; lower lr"
            )
        rows[cell] = tuple(values)
    return found[-2], found[-1]


def _save(
    context: PhaseContext,
    cells: Sequence[Cell],
    rows: dict[Cell, Values],
    reference: Measured,
    meter: Meter,
) -> None:
    """Write the cells measured so far; every rank must call it."""
    cost = asdict(meter.total())
    if context.rank != 0:
        return
    records = [(*cell, *rows[cell]) for cell in cells if cell in rows]
    columns = zip(*records, strict=True) if records else ((),) * len(COLUMNS)
    arrays = {name: pa.array(list(v)) for name, v in zip(COLUMNS, columns, strict=True)}
    facts = {"full_precision": asdict(reference), "cost": cost}
    write_table(context.step_dir / TABLE, SCHEMA, facts, arrays)


def _read(context: PhaseContext, meter: Meter) -> tuple[dict[Cell, Values], Measured | None]:
    """The cells of an earlier attempt, and what it found in full precision."""
    path = context.step_dir / TABLE
    rows: dict[Cell, Values] = {}
    reference = None
    if path.is_file():
        facts, columns = read_table(path, SCHEMA, COLUMNS)
        for layer, tensor, bits, *values in zip(*columns.values(), strict=True):
            rows[Cell(layer, tensor, bits)] = tuple(values)
        meter.before = Cost(**facts["cost"])
        reference = Measured(**facts["full_precision"])
    check_same("the number of cells to go on from", len(rows), context.device)
    return rows, reference
