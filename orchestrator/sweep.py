"""The only file that knows Ray Tune: alphas and limits as trials.

A trial is one method at one alpha with a chunk of limit sets, never a single solve: Tune spends
30 to 1,500 ms on a trial, a solve takes 10 to 150. The trial itself asks for almost nothing and
sends its solves to the cluster as tasks. It leaves its answers in a file named after what was
asked, so a sweep that is started again runs only the trials whose file is missing, whatever Tune
remembers.
"""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path
from typing import Any

from orchestrator.cells import Cell
from orchestrator.solve_tasks import Solved, Tables, solve_on_cluster
from solvers.storage import ResultRow, Results, load_results, save_policy, save_results

# Trial drivers wait for their tasks; they must not hold a core that the tasks need.
TRIAL_CPUS = 0.01


@dataclass(frozen=True, kw_only=True, slots=True)
class Chunk:
    """One trial: a method at an alpha with some limit sets."""

    name: str
    cells: tuple[Cell, ...]


@dataclass(frozen=True, kw_only=True, slots=True)
class SweepOutcome:
    """What a sweep found and cost.

    Attributes:
        rows: cell name -> answer; policies are in ``folder/policies/<policy id>.json``.
        num_trials: trials that Tune ran now.
        num_reused: trials whose answers were there already.
        solve_wall_s: sum over the solving tasks.
        solve_cpu_s: likewise, CPU seconds with the solver's child processes.
        wall_s: of the whole sweep, Tune included.
    """

    rows: dict[str, ResultRow]
    num_trials: int
    num_reused: int
    solve_wall_s: float
    solve_cpu_s: float
    wall_s: float


def chunks_of(cells: Sequence[Cell], limits_per_trial: int, key: str) -> tuple[Chunk, ...]:
    """Group cells by (method, alpha) and cut each group; pure."""
    chunks = []
    ordered = sorted(cells, key=lambda c: (c.method, c.alpha, c.limit_set.index))
    for _, group in groupby(ordered, key=lambda c: (c.method, c.alpha)):
        members = tuple(group)
        for start in range(0, len(members), limits_per_trial):
            part = members[start : start + limits_per_trial]
            text = json.dumps([key, [cell.name for cell in part]])
            digest = hashlib.sha256(text.encode()).hexdigest()[:12]
            chunks.append(Chunk(name=f"{part[0].name}-{digest}", cells=part))
    return tuple(chunks)


def run_sweep(
    cells: Sequence[Cell], tables: Tables, *, folder: Path, key: str, concurrent: int
) -> SweepOutcome:
    """Solve every cell under Ray Tune on the connected cluster.

    Args:
        cells: what to solve.
        tables: what the solver reads.
        folder: where answers and Tune's state go.
        key: hash of everything that decides the answers.
        concurrent: trials at once.

    Raises:
        RuntimeError: a trial failed; its answers are missing.
    """
    began = time.perf_counter()
    chunks = chunks_of(cells, tables.search.limits_per_trial, key)
    missing = [c for c in chunks if not _path(folder, c).exists()]
    if missing:
        _run_trials(missing, tables, folder, key, concurrent)
    rows = {row.label: row for chunk in chunks for row in load_results(_path(folder, chunk)).rows}
    return SweepOutcome(
        rows=rows,
        num_trials=len(missing),
        num_reused=len(chunks) - len(missing),
        solve_wall_s=sum(row.wall_s for row in rows.values()),
        solve_cpu_s=sum(row.cpu_s for row in rows.values()),
        wall_s=time.perf_counter() - began,
    )


def _run_trials(
    chunks: Sequence[Chunk],
    tables: Tables,
    folder: Path,
    key: str,
    concurrent: int,
) -> None:
    import ray
    from ray import tune

    tables_ref = ray.put(tables)
    by_name = {chunk.name: chunk for chunk in chunks}
    per_task = tables.search.solves_per_task

    def trial(config: dict[str, Any]) -> None:
        chunk = by_name[config["chunk"]]
        solved = solve_on_cluster(tables_ref, chunk.cells, per_task)
        _store(folder, chunk, solved, ray.get(tables_ref))
        tune.report({"solves": len(solved.rows), "solve_cpu_s": solved.cpu_s})

    tuner = tune.Tuner(
        tune.with_resources(trial, {"CPU": TRIAL_CPUS}),
        param_space={"chunk": tune.grid_search([chunk.name for chunk in chunks])},
        tune_config=tune.TuneConfig(max_concurrent_trials=concurrent, reuse_actors=True),
        run_config=tune.RunConfig(
            name=f"sweep-{key[:12]}-{time.time_ns()}", storage_path=str(folder / "tune"), verbose=0
        ),
    )
    grid = tuner.fit()
    errors = [str(result.error) for result in grid if result.error is not None]
    if errors:
        raise RuntimeError(f"{len(errors)} of {len(chunks)} trials failed: {errors[0]}")


def _store(folder: Path, chunk: Chunk, solved: Solved, tables: Tables) -> None:
    """Policies first, answers last: the answers' file says the chunk is done."""
    for policy in solved.policies:
        path = folder / "policies" / f"{policy.policy_id}.json"
        path.parent.mkdir(parents=True, exist_ok=True)
        # The first cell that ends at these bits certifies them; later ones change nothing.
        if not path.exists():
            save_policy(path, policy)
    path = _path(folder, chunk)
    path.parent.mkdir(parents=True, exist_ok=True)
    save_results(
        path,
        Results(
            model=tables.costs.model,
            fingerprint=tables.costs.fingerprint,
            accounting=tables.accounting,
            layers=tables.costs.names,
            rows=solved.rows,
        ),
    )


def _path(folder: Path, chunk: Chunk) -> Path:
    return folder / "answers" / f"{chunk.name}.parquet"
