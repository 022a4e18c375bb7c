"""How does a sweep become trials? Alphas with chunks of limits or devices.

A trial is one method at one alpha with a chunk of limit sets or devices, never a single solve,
which takes 10 to 150 ms. It sends its solves to the cluster as tasks and leaves its answers in a
file named after what was asked, so a sweep that is started again runs only what is missing.
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
from orchestrator.cluster_config import ClusterConfig
from orchestrator.leftovers import sweep_temporaries
from orchestrator.records import alpha_text
from orchestrator.solve_tasks import Body, SweepTables, solve_on_cluster
from orchestrator.trials import Tell, run_trials
from solvers.batch import Question
from solvers.policy import Policy
from solvers.storage import (
    ResultRow,
    Results,
    load_results,
    merge_results,
    save_policy,
    save_results,
)
from trainers.errors import InterruptedPhaseError
from trainers.messages import STOP_FILE, StopRequest


@dataclass(frozen=True, kw_only=True, slots=True)
class Chunk:
    """One trial: a method at an alpha with some limit sets, or an alpha with some devices."""

    name: str
    items: tuple[Any, ...]


@dataclass(frozen=True, kw_only=True, slots=True)
class SweepOutcome:
    """What a sweep found and cost.

    Attributes:
        results: every answer; policies are in ``folder/policies/<policy id>.json``.
        num_trials: trials that Tune ran now.
        num_reused: trials whose answers were there already.
        wall_s: of the whole sweep, Tune included.
    """

    results: Results
    num_trials: int
    num_reused: int
    wall_s: float

    @property
    def rows(self) -> dict[str, ResultRow]:
        """Label -> answer."""
        return {row.label: row for row in self.results.rows}

    @property
    def solve_wall_s(self) -> float:
        """Wall seconds of all solves, added up."""
        return sum(row.wall_s for row in self.results.rows)

    @property
    def solve_cpu_s(self) -> float:
        """CPU seconds of all solves, the backends' processes included."""
        return sum(row.cpu_s for row in self.results.rows)


def cell_chunks(cells: Sequence[Cell], limits_per_trial: int, key: str) -> tuple[Chunk, ...]:
    """Cells by (method, alpha), each group cut into trials; pure."""
    ordered = sorted(cells, key=lambda c: (c.method, c.alpha, c.limit_set.index))
    groups = [tuple(g) for _, g in groupby(ordered, key=lambda c: (c.method, c.alpha))]
    return _cut(groups, [[c.name for c in group] for group in groups], limits_per_trial, key)


def question_chunks(
    questions: Sequence[Question], devices_per_trial: int, key: str
) -> tuple[Chunk, ...]:
    """Questions by alpha, each group cut into trials; pure."""
    ordered = sorted(questions, key=lambda q: q.alpha)
    groups = [tuple(g) for _, g in groupby(ordered, key=lambda q: q.alpha)]
    names = [[f"a{alpha_text(q.alpha)}-{q.label}" for q in group] for group in groups]
    return _cut(groups, names, devices_per_trial, key)


def run_sweep(
    chunks: Sequence[Chunk],
    body: Body,
    tables: SweepTables,
    *,
    folder: Path,
    run_dir: Path,
    key: str,
    concurrent: int,
    tell: Tell,
    cluster: ClusterConfig,
) -> SweepOutcome:
    """Answer every chunk under Ray Tune on the connected cluster.

    Args:
        chunks: the trials.
        body: what a task does with a part of a chunk.
        tables: what the solver reads.
        folder: where answers and Tune's state go.
        run_dir: where the driver may leave a request to stop.
        key: hash of everything that decides the answers.
        concurrent: trials at once.
        tell: hears of trials that are started again; may be called in a thread.
        cluster: CPUs of a task, and how often lost tasks and trials are started again.

    Raises:
        GroupLostError: a trial failed for good; its answers are missing.
        InterruptedPhaseError: asked to stop; the answers of finished trials are kept.
    """
    began = time.perf_counter()
    missing = [c for c in chunks if not answers_path(folder, c).exists()]
    if missing:
        _run_trials(missing, body, tables, folder, run_dir, key, concurrent, tell, cluster)
    return SweepOutcome(
        results=merge_results([load_results(answers_path(folder, c)) for c in chunks]),
        num_trials=len(missing),
        num_reused=len(chunks) - len(missing),
        wall_s=time.perf_counter() - began,
    )


def answers_path(folder: Path, chunk: Chunk) -> Path:
    """Where the answers of a trial are."""
    return folder / "answers" / f"{chunk.name}.parquet"


def _cut(
    groups: Sequence[tuple[Any, ...]], names: Sequence[Sequence[str]], size: int, key: str
) -> tuple[Chunk, ...]:
    chunks: list[Chunk] = []
    for items, labels in zip(groups, names, strict=True):
        for start in range(0, len(items), size):
            part = slice(start, start + size)
            text = json.dumps([key, list(labels[part])])
            digest = hashlib.sha256(text.encode()).hexdigest()[:12]
            chunks.append(Chunk(name=f"trial-{len(chunks):04d}-{digest}", items=items[part]))
    return tuple(chunks)


def _run_trials(
    chunks: Sequence[Chunk],
    body: Body,
    tables: SweepTables,
    folder: Path,
    run_dir: Path,
    key: str,
    concurrent: int,
    tell: Tell,
    cluster: ClusterConfig,
) -> None:
    import ray

    tables_ref = ray.put(tables)
    by_name = {chunk.name: chunk for chunk in chunks}
    per_task = tables.search.solves_per_task

    def work(name: str) -> dict[str, int]:
        chunk = by_name[name]
        try:
            results = solve_on_cluster(
                body, tables_ref, chunk.items, per_task, lambda found: _keep(folder, found),
                cluster, StopRequest(run_dir),
            )  # fmt: skip
        except InterruptedPhaseError:
            # Returned, not raised: it is no failure, and the trials that wait end likewise.
            return {"stopped": 1}
        # Policies first, answers last: the answers' file says the chunk is done.
        save_results(answers_path(folder, chunk), results)
        return {"stopped": 0}

    told = run_trials(
        list(by_name),
        work,
        folder=folder,
        label=f"sweep-{key[:12]}",
        concurrent=concurrent,
        tell=tell,
        stopped=(run_dir / STOP_FILE).exists,
        retries=cluster.retries,
    )
    # What a killed trial tore would be hashed with the policies, and missed when it is swept.
    sweep_temporaries(folder)
    num_stopped = sum(trial["stopped"] for trial in told.values())
    if num_stopped:
        raise InterruptedPhaseError(
            f"the sweep was asked to stop with {num_stopped} of {len(chunks)} trials to do"
        )


def _keep(folder: Path, policies: Sequence[Policy]) -> None:
    """The first cell that ends at some bits certifies them; later ones change nothing."""
    for policy in policies:
        path = folder / "policies" / f"{policy.policy_id}.json"
        if not path.exists():
            save_policy(path, policy)
