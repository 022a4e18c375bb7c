"""How does a run get its Ray cluster, on a laptop and elsewhere?

Without an address the run starts a cluster of its own on this machine and ends it. It says
``address="local"`` out loud: a bare ``ray.init()`` joins whatever cluster the environment or the
machine happens to offer. With an address it joins that cluster and leaves it running.
"""

from __future__ import annotations

import logging
import math
import os
import signal
import threading
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass

from orchestrator.cluster_config import ClusterConfig
from orchestrator.errors import ResourceError
from orchestrator.head_watch import HeadWatch, can_connect
from orchestrator.ledger import Ledger
from orchestrator.open_cluster import place_of, refuse_open_cluster
from orchestrator.orphans import orphans_ended
from orchestrator.private import ensure_token

log = logging.getLogger(__name__)

# A trial of Ray Tune waits for its tasks or workers; it must not hold a core that they need.
TRIAL_CPUS = 0.01

# Workers share what those trials leave: workers that asked for whole cores would wait for ever on
# a machine that is exactly big enough.
CPU_HEADROOM = 0.1

# Tries of a cluster of our own.
STARTS = 3

# One mapping of resource amounts per living node.
Nodes = Sequence[Mapping[str, float]]


@dataclass(frozen=True, kw_only=True, slots=True)
class Resources:
    """What one worker group asks the cluster for.

    Attributes:
        num_workers: processes that share every batch.
        cpus_per_worker: CPU share of each; may be a fraction.
        gpus_per_worker: GPUs of each.
        num_threads: torch threads of each.
        placement: Ray's placement strategy, PACK or SPREAD.
    """

    num_workers: int
    cpus_per_worker: float
    gpus_per_worker: float
    num_threads: int
    placement: str


def set_environment() -> None:
    """Settings that must stand before Ray is imported: no telemetry, quick polling, quiet logs."""
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    os.environ.setdefault("RAY_AUTH_MODE", "token")
    # The controller drains reports and sees a finished group once per interval (2 s by default).
    os.environ.setdefault("RAY_TRAIN_HEALTH_CHECK_INTERVAL_S", "0.2")
    os.environ.setdefault("RAY_TRAIN_WORKER_GROUP_START_TIMEOUT_S", "120")
    # A frozen worker of a group without peers is noticed by Ray alone, after 10 min by default.
    os.environ.setdefault("RAY_TRAIN_WORKER_HEALTH_CHECK_TIMEOUT_S", "300")
    # Ray runs a task that ran out of memory again without end. What counts is the environment of
    # the task's owner: the nodes of a joined cluster set it too (cluster.yaml, docs/cluster.md).
    os.environ.setdefault("RAY_task_oom_retries", "1")
    # First SIGINT asks the workers to checkpoint; Tune would abort the trials instead.
    os.environ.setdefault("TUNE_DISABLE_SIGINT_HANDLER", "1")
    # Tune and the driver write progress of their own; the run prints one line per event.
    os.environ.setdefault("RAY_AIR_NEW_OUTPUT", "0")


@contextmanager
def ray_cluster(address: str | None, *, insecure: bool = False) -> Iterator[Nodes]:
    """A connection to Ray for the length of the block; yields what each living node has.

    Args:
        address: of a running cluster, or None for one of our own on this machine.
        insecure: join a cluster that asks for no token.

    Raises:
        ResourceError: the address does not answer, refuses our token, or asks for none.
    """
    set_environment()
    if address is None:
        # Nobody takes this machine back; the watcher is a process more for every worker group.
        os.environ.setdefault("RAY_TRAIN_ENABLE_PREEMPTION_WATCHER", "0")
    mended = ensure_token()
    if mended:
        log.warning("%s", mended)
    import ray

    with ExitStack() as stack:
        if address:
            if not insecure:
                _refuse_strangers(address)
            _connect(address)
        else:
            stack.enter_context(_cluster_here())
        stack.callback(ray.shutdown)
        yield living_nodes()


def _refuse_strangers(address: str) -> None:
    """Who is at the address, and does it turn strangers away? Asked before our token is shown.

    A place that cannot be asked is not joined: Ray might get through where we did not.
    """
    place = place_of(address)
    if place and can_connect(place):
        refuse_open_cluster(place)
        return
    if place:
        found = f"nothing answers at {place}"
    elif address == "auto":
        found = "there is none on this machine"
    else:
        found = "the address is neither host:port nor auto"
    raise ResourceError(
        f"cannot reach a Ray cluster: {found}",
        f"address {address!r}",
        "a run joins the control store of a cluster, whose token it is then asked for",
        f"mpq doctor --address {address} says more; or leave --address out",
    )


def _connect(address: str) -> None:
    """Join the cluster at the address."""
    import ray

    try:
        with _own_signals():
            ray.init(address=address, log_to_driver=False, logging_level="WARNING")
    except Exception as error:
        raise ResourceError(
            f"cannot reach a Ray cluster: {error}",
            f"address {address!r}",
            "the address is wrong, the cluster is down, or it asks for another token",
            f"mpq doctor --address {address} says which; or leave --address out",
        ) from error


def _cluster_here() -> ExitStack:
    """A cluster of our own, of which nothing is left when the block ends or this process dies.

    Ray's node gives up on an agent that is not up within about 15 s, and the driver on its node
    after 30 s. On a machine with much to do that is a matter of luck (seen: three of five starts
    at a load of 12 on 2 cores), so it is tried again.
    """
    import ray

    last: Exception | None = None
    for number in range(1, STARTS + 1):
        with ExitStack() as stack:
            note_processes = stack.enter_context(orphans_ended())
            try:
                with _own_signals():
                    # A dashboard is two processes and an open port such a run has no use for.
                    ray.init(
                        address="local",
                        include_dashboard=False,
                        log_to_driver=False,
                        logging_level="WARNING",
                    )
            except Exception as error:
                log.warning("Ray did not start (%d of %d tries): %s", number, STARTS, error)
                last = error
                continue
            note_processes()
            return stack.pop_all()
    raise ResourceError(
        f"cannot start a Ray cluster: {last}",
        "this machine",
        "Ray gives its processes 15 to 30 s to start; memory, disk or processors may be short",
        "run the same command again when the machine is less busy; mpq doctor looks at it",
    ) from last


def living_nodes() -> Nodes:
    """What each node that is up now has."""
    import ray

    return tuple(
        {name: float(amount) for name, amount in node["Resources"].items()}
        for node in ray.nodes()
        if node["Alive"]
    )


@contextmanager
def _own_signals() -> Iterator[None]:
    """Keep our handlers: Ray installs one on SIGTERM that leaves at once with exit code 15.

    It is kept from doing so, since a signal may come while Ray starts; and whatever it installed
    all the same is put back.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    import ray

    before = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    inner = ray._private.utils.set_sigterm_handler
    ray._private.utils.set_sigterm_handler = lambda handler: None
    try:
        yield
    finally:
        ray._private.utils.set_sigterm_handler = inner
        for number, handler in before.items():
            signal.signal(number, handler)


def total(nodes: Nodes, name: str) -> float:
    """Amount of a resource over all nodes."""
    return sum(node.get(name, 0.0) for node in nodes)


def num_places(nodes: Nodes, cpus: float, gpus: float) -> int:
    """How many workers of that size the nodes can hold; a worker lives on one node."""
    places = 0
    for node in nodes:
        rooms = [(node.get("CPU", 0.0) + 1e-9) / cpus]
        if gpus:
            rooms.append((node.get("GPU", 0.0) + 1e-9) / gpus)
        places += int(min(rooms))
    return places


def beside_trials(nodes: Nodes, share: float = CPU_HEADROOM) -> Nodes:
    """What the nodes have for workers while trial drivers of Ray Tune hold their share."""
    return tuple({**node, "CPU": node.get("CPU", 0.0) - share} for node in nodes)


def groups_at_once(nodes: Nodes, ask: Resources) -> int:
    """How many worker groups find room beside the trials that launch them; 0 = not even one.

    Counted without the trials' share, a group too many would wait for its room until its start
    timed out, be started again, and use up its restarts.
    """
    places = num_places(beside_trials(nodes), ask.cpus_per_worker, ask.gpus_per_worker)
    return places // ask.num_workers


def worker_cpus(nodes: Nodes, num_workers: int, gpus: float = 0.0) -> float:
    """The largest CPU share at which every worker finds a place, rounded down to a hundredth.

    Each node keeps headroom for Tune's trial drivers. Nodes differ: a share of the total could be
    more than any single node has, and Ray would wait for it for ever.
    """
    roomy = beside_trials(nodes)
    shares = {
        math.floor(node["CPU"] / k * 100) / 100 for node in roomy for k in range(1, num_workers + 1)
    }
    fitting = [c for c in shares if c > 0 and num_places(roomy, c, gpus) >= num_workers]
    # None fits: ask for a little, and let ``check_fits`` say what is missing.
    return max(fitting, default=CPU_HEADROOM)


def check_fits(resources: Resources, nodes: Nodes) -> None:
    """Refuse a request that the cluster cannot ever meet, instead of waiting for it for ever.

    Raises:
        ResourceError: naming what was asked for and what there is.
    """
    places = num_places(nodes, resources.cpus_per_worker, resources.gpus_per_worker)
    if places < resources.num_workers:
        each = f"{resources.cpus_per_worker:g} CPU"
        if resources.gpus_per_worker:
            each += f" and {resources.gpus_per_worker:g} GPU"
        has = f"{total(nodes, 'CPU'):g} CPU and {total(nodes, 'GPU'):g} GPU"
        raise ResourceError(
            f"the run asks for {resources.num_workers} workers of {each}; the cluster has room "
            f"for {places} ({has} on {len(nodes)} nodes)",
            "cluster.num_workers, cluster.cpus_per_worker, cluster.gpus_per_worker",
            "Ray would wait for ever for workers that cannot be placed",
            "ask for fewer workers or less per worker, or join a larger cluster",
        )


def check_solves_fit(cluster: ClusterConfig, nodes: Nodes) -> None:
    """Refuse tasks of solves that no node has room for beside the trial that waits for them.

    Raises:
        ResourceError: naming what was asked for and what there is.
    """
    if num_places(beside_trials(nodes, TRIAL_CPUS), cluster.cpus_per_solve, 0.0) == 0:
        largest = max((node.get("CPU", 0.0) for node in nodes), default=0.0)
        raise ResourceError(
            f"the run asks for tasks of ILP solves with {cluster.cpus_per_solve:g} CPU each; the "
            f"largest of {len(nodes)} nodes has {largest:g} CPU, of which the trial that waits "
            f"for them holds {TRIAL_CPUS:g}",
            "cluster.cpus_per_solve",
            "Ray would wait for ever for tasks that cannot be placed",
            "ask for less; a solve runs on one thread, and the default is 0.95",
        )


def threads_of(cluster: ClusterConfig, cpus: float) -> int:
    """Compute threads of a worker with so many CPUs."""
    return cluster.threads_per_worker or max(1, round(cpus))


def resources_for(cluster: ClusterConfig, nodes: Nodes) -> Resources:
    """What each worker group of a run asks for; by default as much CPU as fits.

    Raises:
        ResourceError: more than the cluster has.
    """
    cpus = cluster.cpus_per_worker
    if cpus is None:
        cpus = worker_cpus(nodes, cluster.num_workers, cluster.gpus_per_worker)
    resources = Resources(
        num_workers=cluster.num_workers,
        cpus_per_worker=cpus,
        gpus_per_worker=cluster.gpus_per_worker,
        num_threads=threads_of(cluster, cpus),
        placement=cluster.placement,
    )
    check_fits(resources, nodes)
    check_solves_fit(cluster, nodes)
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
        self._nodes: Nodes | None = None
        self._head: HeadWatch | None = None

    @property
    def nodes(self) -> Nodes:
        """What the cluster has; connects on the first look."""
        if self._nodes is None:
            with self._ledger.span("Ray start and stop"):
                self._nodes = self._stack.enter_context(
                    ray_cluster(self._config.address, insecure=self._config.insecure)
                )
        return self._nodes

    @property
    def num_cpus(self) -> int:
        """Whole CPUs of the cluster, at least one."""
        return max(1, int(total(self.nodes, "CPU")))

    def lost(self) -> str:
        """Why the cluster counts as gone (its head did not answer for a while), or empty."""
        if self._head is None:
            import ray

            self._head = HeadWatch(ray.get_runtime_context().gcs_address)
        return self._head.look()

    def resources(self) -> Resources:
        """What each worker group asks for.

        Raises:
            ResourceError: more than the cluster has, or it cannot be reached.
        """
        return resources_for(self._config, self.nodes)

    def check_solves_fit(self) -> None:
        """Refuse tasks of solves that could never start.

        Raises:
            ResourceError: more than any node has, or the cluster cannot be reached.
        """
        check_solves_fit(self._config, self.nodes)

    def __enter__(self) -> OnDemandCluster:
        return self

    def __exit__(self, *error: object) -> None:
        with self._ledger.span("Ray start and stop"):
            self._stack.close()
