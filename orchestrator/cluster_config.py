"""Where may a run's processes go, and how much trouble may they have? Section ``cluster``."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Annotated, Literal

from annotated_types import Ge, Gt, Le

from orchestrator.retries import RetriesConfig
from trainers.recipes import CLOSED


@dataclass(frozen=True, kw_only=True, slots=True)
class ClusterConfig:
    """Where the run's processes go. Not part of what a result is: changing it never drifts.

    Attributes:
        num_workers: Ray Train workers of one training phase.
        min_workers: fewest workers that a phase goes on with when nodes are lost; null = exactly
            ``num_workers``. BatchNorm statistics are per worker, so fewer of them change results
            a little.
        cpus_per_worker: null = an equal share of the cores, less what the driver needs.
        gpus_per_worker: GPUs each worker asks for.
        threads_per_worker: compute threads of each worker; null = its CPUs, rounded, at
            least 1.
        placement: how Ray spreads workers over nodes.
        retries: how often a phase is started again, by what ended it.
        wait_for_nodes_s: how long a phase that lost nodes waits for room before the run gives up.
        hang_s: a worker that finished no update and measured no batch for so long ends itself,
            with its stack in the step's folder, and the group is started again; null = never.
        cpus_per_solve: CPUs that each task of ILP solves asks for; a solve runs on one thread. A
            little below 1 by default, since the trial that waits for the tasks holds a hundredth.
        images_per_second: of one worker in quantization-aware training of this network, as
            measured or guessed; ``mpq plan`` reckons hours with it. null = not said.
        address: of a running Ray cluster; null starts one on this machine.
        insecure: join a cluster that answers without a token, where anyone who reaches its ports
            can run code as you.
    """

    __pydantic_config__ = CLOSED

    num_workers: Annotated[int, Ge(1), Le(4096)] = 1
    min_workers: Annotated[int, Ge(1), Le(4096)] | None = None
    cpus_per_worker: Annotated[float, Gt(0.0)] | None = None
    gpus_per_worker: Annotated[float, Ge(0.0)] = 0.0
    threads_per_worker: Annotated[int, Ge(1)] | None = None
    placement: Literal["PACK", "SPREAD", "STRICT_PACK", "STRICT_SPREAD"] = "PACK"
    retries: RetriesConfig = field(default_factory=RetriesConfig)
    wait_for_nodes_s: Annotated[float, Ge(0.0), Le(604_800.0)] = 600.0
    hang_s: Annotated[float, Ge(1.0), Le(604_800.0)] | None = 1800.0
    cpus_per_solve: Annotated[float, Gt(0.0), Le(1024.0)] = 0.95
    images_per_second: Annotated[float, Gt(0.0)] | None = None
    address: str | None = None
    insecure: bool = False
