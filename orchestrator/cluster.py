"""How does a run get its Ray cluster, on a laptop and elsewhere?

Without an address the run starts a cluster of its own on this machine and ends it. It says
``address="local"`` out loud: a bare ``ray.init()`` joins whatever cluster the environment or the
machine happens to offer. With an address it joins that cluster and leaves it running.
"""

from __future__ import annotations

import math
import os
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass

from orchestrator.config_schema import ClusterConfig
from orchestrator.errors import ResourceError
from orchestrator.ledger import Ledger

# Workers share what the trial drivers of Ray Tune leave: one of those asks for 0.01 CPU, so
# workers that asked for whole cores would wait for ever on a machine that is exactly big enough.
CPU_HEADROOM = 0.1


@dataclass(frozen=True, kw_only=True, slots=True)
class Resources:
    """What one worker group asks the cluster for.

    Attributes:
        num_workers: processes that share every batch.
        cpus_per_worker: CPU share of each; may be a fraction.
        gpus_per_worker: GPUs of each.
        num_threads: torch threads of each.
        placement: Ray's placement strategy, PACK or SPREAD.
        max_failures: restarts of the group after a lost worker.
    """

    num_workers: int
    cpus_per_worker: float
    gpus_per_worker: float
    num_threads: int
    placement: str
    max_failures: int


def set_environment() -> None:
    """Settings that must stand before Ray is imported: no telemetry, quick polling, quiet logs."""
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    os.environ.setdefault("RAY_AUTH_MODE", "token")
    # The controller drains reports and sees a finished group once per interval (2 s by default).
    os.environ.setdefault("RAY_TRAIN_HEALTH_CHECK_INTERVAL_S", "0.2")
    os.environ.setdefault("RAY_TRAIN_WORKER_GROUP_START_TIMEOUT_S", "120")
    # First SIGINT asks the workers to checkpoint; Tune would abort the trials instead.
    os.environ.setdefault("TUNE_DISABLE_SIGINT_HANDLER", "1")
    # Tune and the driver write progress of their own; the run prints one line per event.
    os.environ.setdefault("RAY_AIR_NEW_OUTPUT", "0")


@contextmanager
def ray_cluster(address: str | None) -> Iterator[dict[str, float]]:
    """A connection to Ray for the length of the block; yields what the cluster has.

    Args:
        address: of a running cluster, or None for one of our own on this machine.

    Raises:
        ResourceError: the address does not answer, or refuses our token.
    """
    set_environment()
    import ray

    try:
        if address is None:
            ray.init(address="local", log_to_driver=False, logging_level="WARNING")
        else:
            ray.init(address=address, log_to_driver=False, logging_level="WARNING")
    except Exception as error:
        raise ResourceError(
            f"cannot start or reach a Ray cluster: {error}",
            f"address {address!r}" if address else "this machine",
            "the address is wrong, the cluster is down, or it asks for another token",
            "check `ray status --address ...` and RAY_AUTH_TOKEN, or leave --address out",
        ) from error
    try:
        yield {name: float(amount) for name, amount in ray.cluster_resources().items()}
    finally:
        ray.shutdown()


def worker_cpus(num_cpus: float, num_workers: int) -> float:
    """An equal CPU share for each worker, with headroom for Tune's trial drivers."""
    return math.floor((num_cpus - CPU_HEADROOM) / num_workers * 100) / 100


def check_fits(resources: Resources, available: dict[str, float]) -> None:
    """Refuse a request that the cluster cannot ever meet, instead of waiting for it for ever.

    Raises:
        ResourceError: naming what was asked for and what there is.
    """
    asked = {
        "CPU": resources.num_workers * resources.cpus_per_worker,
        "GPU": resources.num_workers * resources.gpus_per_worker,
    }
    for name, amount in asked.items():
        if amount > available.get(name, 0.0) + 1e-9:
            raise ResourceError(
                f"the run asks for {amount:g} {name} and the cluster has "
                f"{available.get(name, 0.0):g}",
                "cluster.num_workers, cluster.cpus_per_worker, cluster.gpus_per_worker",
                "Ray would wait for ever for workers that cannot be placed",
                "ask for fewer workers or less per worker, or join a larger cluster",
            )


def resources_for(cluster: ClusterConfig, available: dict[str, float]) -> Resources:
    """What each worker group of a run asks for; defaults are equal shares of the cluster.

    Raises:
        ResourceError: more than the cluster has.
    """
    cpus = cluster.cpus_per_worker
    if cpus is None:
        cpus = worker_cpus(available.get("CPU", 1.0), cluster.num_workers)
    resources = Resources(
        num_workers=cluster.num_workers,
        cpus_per_worker=cpus,
        gpus_per_worker=cluster.gpus_per_worker,
        num_threads=cluster.threads_per_worker or max(1, round(cpus)),
        placement=cluster.placement,
        max_failures=cluster.max_failures,
    )
    check_fits(resources, available)
    return resources


class OnDemandCluster:
    """Ray, connected when the first step needs it: a run whose steps are all done needs none.

    Args:
        cluster: the configuration's section.
        ledger: books the start and the end.
    """

    def __init__(self, cluster: ClusterConfig, ledger: Ledger) -> None:
        self._config, self._ledger = cluster, ledger
        self._stack = ExitStack()
        self._available: dict[str, float] | None = None

    @property
    def available(self) -> dict[str, float]:
        """What the cluster has; connects on the first look."""
        if self._available is None:
            with self._ledger.span("Ray start and stop"):
                self._available = self._stack.enter_context(ray_cluster(self._config.address))
        return self._available

    def resources(self) -> Resources:
        """What each worker group asks for.

        Raises:
            ResourceError: more than the cluster has, or it cannot be reached.
        """
        return resources_for(self._config, self.available)

    def __enter__(self) -> OnDemandCluster:
        return self

    def __exit__(self, *error: object) -> None:
        with self._ledger.span("Ray start and stop"):
            self._stack.close()
