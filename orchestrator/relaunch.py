"""How is a phase brought to its end although workers and nodes are lost on the way?

Every failure is classed by ``retries``; the group is started again from the newest checkpoint as
often as its class allows, on as many workers as the cluster still has room for, and the driver is
told of each restart. A cluster without room is waited for, for a time that the user chose.
"""

from __future__ import annotations

import random
import time
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass, fields, is_dataclass, replace
from pathlib import Path
from typing import Any

from orchestrator.cluster import Nodes, Resources, living_nodes, num_places, worker_cpus
from orchestrator.cluster_config import ClusterConfig
from orchestrator.launch import Launch, launch, losses_of, refusal_of
from orchestrator.leftovers import sweep_temporaries
from orchestrator.retries import Decision, FailureClass, decide, workers_that_fit
from trainers.errors import InterruptedPhaseError
from trainers.messages import STOP_FILE
from trainers.phases import PhaseSpec

LOOK_FOR_NODES_EVERY_S = 2.0


class GroupLostError(Exception):
    """Workers or trials were lost more often than their budget allows, or for want of room.

    Args:
        message: what happened last.
        failure: its class.
    """

    def __init__(self, message: str, failure: str = "infrastructure") -> None:
        super().__init__(message, str(failure))
        self.message, self.failure = message, str(failure)

    def __str__(self) -> str:
        return self.message


@dataclass(frozen=True, kw_only=True, slots=True)
class Restart:
    """One start of a group or of trials after a failure, for the journal."""

    step: str
    attempt: int
    failure: str
    reason: str
    wait_s: float
    num_workers: int

    @classmethod
    def after(cls, decision: Decision, *, step: str, attempt: int, num_workers: int) -> Restart:
        """The start that a decision led to."""
        return cls(
            step=step,
            attempt=attempt,
            failure=str(decision.failure),
            reason=decision.reason,
            wait_s=decision.wait_s,
            num_workers=num_workers,
        )

    def to_json(self) -> dict[str, Any]:
        """As plain values."""
        return {field.name: getattr(self, field.name) for field in fields(self)}


def run_group(
    spec: PhaseSpec,
    *,
    step: str,
    step_dir: Path,
    run_dir: Path,
    key: str,
    ask: Resources,
    cluster: ClusterConfig,
    tell: Callable[[Restart], None],
    start: Callable[..., Launch] = launch,
    nodes: Callable[[], Nodes] = living_nodes,
    sleep: Callable[[float], None] = time.sleep,
) -> Launch:
    """Run a phase to its end on the connected cluster.

    Args:
        spec: the phase.
        step: name of the step, for what is told.
        step_dir: where the phase leaves what it makes.
        run_dir: folder of the run.
        key: hash of everything that decides the result.
        ask: workers of the first group.
        cluster: budgets and bounds.
        tell: hears of every restart; may be called in a thread.
        start: starts one group.
        nodes: what the cluster has now.
        sleep: waits.

    Returns:
        The launch; its ``error`` is what the phase refused, on all ranks or on one alone.

    Raises:
        GroupLostError: the budget of a class is used up, or no room came back.
    """

    def pause(seconds: float) -> None:
        """Wait, unless the user wants to stop."""
        for _ in range(max(1, round(seconds))):
            if (run_dir / STOP_FILE).exists():
                raise InterruptedPhaseError("stopped while waiting for workers")
            sleep(min(1.0, seconds))

    spent: Counter[FailureClass] = Counter()
    attempt = 1
    wanted = ask.num_workers
    while True:
        try:
            done = start(
                spec, step_dir=step_dir, run_dir=run_dir, key=key, ask=ask, hang_s=cluster.hang_s
            )
        except Exception as error:
            decision = decide(
                losses_of(error),
                spent,
                cluster.retries,
                num_workers=ask.num_workers,
                draw=random.random(),
            )
            if not decision.again:
                refusal = refusal_of(error) if decision.failure is FailureClass.USER else None
                if refusal is not None:
                    return Launch(wall_s=0.0, worked_s=0.0, error=refusal)
                raise GroupLostError(decision.reason, decision.failure) from error
        else:
            return done
        spent[decision.failure] += 1
        attempt += 1
        if decision.num_workers < ask.num_workers:
            wanted = decision.num_workers
        if decision.sweep:
            sweep_temporaries(step_dir)
        try:
            pause(decision.wait_s)
            ask = _room(replace(ask, num_workers=wanted), spec, cluster, decision, nodes, pause)
        except InterruptedPhaseError as stopped:
            return Launch(wall_s=0.0, worked_s=0.0, error=stopped)
        tell(Restart.after(decision, step=step, attempt=attempt, num_workers=ask.num_workers))


def batch_sizes(config: Any) -> tuple[int, ...]:
    """Every ``batch_size`` in a phase's configuration that workers share in equal parts.

    Of one that is passed through in parts (``accumulate``) it is the parts that are shared.
    """
    found: list[int] = []
    if is_dataclass(config):
        parts = getattr(config, "accumulate", 1)
        for field in fields(config):
            value = getattr(config, field.name)
            if field.name == "batch_size" and isinstance(value, int):
                found.append(value // parts if value % parts == 0 else value)
            found += batch_sizes(value)
    elif isinstance(config, Mapping):
        for value in config.values():
            found += batch_sizes(value)
    return tuple(found)


def _room(
    ask: Resources,
    spec: PhaseSpec,
    cluster: ClusterConfig,
    decision: Decision,
    nodes: Callable[[], Nodes],
    pause: Callable[[float], None],
) -> Resources:
    """The request fitted to the nodes that are up, waited for if need be."""
    sizes = batch_sizes(spec.config)
    # Less than was asked for is allowed where the user says so, or where less is the remedy.
    least = cluster.min_workers
    if decision.failure is FailureClass.RESOURCE:
        least = 1
    waited_s = 0.0
    while True:
        there = nodes()
        places = num_places(there, ask.cpus_per_worker, ask.gpus_per_worker)
        count = workers_that_fit(ask.num_workers, places, least, *sizes)
        if count is not None:
            return replace(ask, num_workers=count)
        if cluster.cpus_per_worker is None and places < ask.num_workers:
            # The share was ours to choose: a smaller one may find room on what is left.
            share = worker_cpus(there, ask.num_workers, ask.gpus_per_worker)
            if num_places(there, share, ask.gpus_per_worker) >= ask.num_workers and share >= 0.5:
                return replace(ask, cpus_per_worker=share)
        if waited_s >= cluster.wait_for_nodes_s:
            raise GroupLostError(
                f"the cluster has room for {places} of {ask.num_workers} workers and got no "
                f"more within {cluster.wait_for_nodes_s:g} s, after {decision.reason}"
            )
        pause(LOOK_FOR_NODES_EVERY_S)
        waited_s += LOOK_FOR_NODES_EVERY_S
