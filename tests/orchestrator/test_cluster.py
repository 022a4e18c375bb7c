"""What workers ask for, decided without a cluster."""

from __future__ import annotations

import pytest

from orchestrator.cluster import (
    Resources,
    check_fits,
    check_solves_fit,
    groups_at_once,
    num_places,
    resources_for,
    worker_cpus,
)
from orchestrator.cluster_config import ClusterConfig
from orchestrator.errors import ResourceError


def _ask(num_workers: int, cpus: float, gpus: float = 0.0) -> Resources:
    return Resources(
        num_workers=num_workers,
        cpus_per_worker=cpus,
        gpus_per_worker=gpus,
        num_threads=1,
        placement="PACK",
    )


def test_two_workers_share_two_cores_less_what_trial_drivers_need() -> None:
    assert worker_cpus([{"CPU": 2.0}], 2) == 0.95
    assert num_places([{"CPU": 2.0}], 0.95, 0) == 2


def test_a_share_of_the_total_that_no_node_has_is_never_asked_for() -> None:
    nodes = [{"CPU": 8.0}, {"CPU": 4.0, "GPU": 1.0}, {"CPU": 4.0, "GPU": 1.0}]
    assert worker_cpus(nodes, 2, gpus=1.0) == 3.9
    share = worker_cpus(nodes, 3)
    assert num_places(nodes, share, 0) >= 3
    assert num_places(nodes, share + 0.5, 0) < 3


def test_what_cannot_be_placed_is_refused_with_what_there_is() -> None:
    check_fits(_ask(2, 1.0), [{"CPU": 1.0}, {"CPU": 1.0}])
    with pytest.raises(ResourceError, match=r"1 workers of 2 CPU; the cluster has room for 0"):
        check_fits(_ask(1, 2.0), [{"CPU": 1.0}, {"CPU": 1.0}])
    with pytest.raises(ResourceError, match="GPU"):
        check_fits(_ask(1, 1.0, 1.0), [{"CPU": 8.0}])


def test_tasks_of_solves_that_no_node_can_hold_are_refused() -> None:
    # One whole core is too much where the trial that waits holds a hundredth of it.
    check_solves_fit(ClusterConfig(), [{"CPU": 1.0}])
    check_solves_fit(ClusterConfig(cpus_per_solve=4.0), [{"CPU": 1.0}, {"CPU": 8.0}])
    with pytest.raises(ResourceError, match=r"largest of 1 nodes has 1 CPU"):
        check_solves_fit(ClusterConfig(cpus_per_solve=1.0), [{"CPU": 1.0}])
    with pytest.raises(ResourceError, match=r"cpus_per_solve"):
        resources_for(ClusterConfig(cpus_per_solve=16.0), [{"CPU": 8.0}, {"CPU": 8.0}])


def test_more_workers_than_places_are_refused_with_default_shares() -> None:
    with pytest.raises(ResourceError):
        resources_for(ClusterConfig(num_workers=2, gpus_per_worker=1.0), [{"CPU": 8.0, "GPU": 1.0}])


def test_threads_follow_the_share() -> None:
    ask = resources_for(ClusterConfig(num_workers=1), [{"CPU": 8.0}])
    assert (ask.cpus_per_worker, ask.num_threads) == (7.9, 8)


@pytest.mark.parametrize(
    ("num_workers", "cpus", "nodes", "expected"),
    [
        (1, 1.0, [2.0], 1),  # two whole CPUs and a trial's hundredth do not fit in two
        (1, 0.9, [2.0], 2),
        (2, 1.0, [2.0], 0),  # not even one beside its trial: one after another, without Tune
        (2, 0.95, [2.0], 1),
        (1, 4.0, [16.0], 3),
        (2, 1.9, [4.0, 4.0, 4.0], 3),
    ],
)
def test_worker_groups_side_by_side_leave_room_for_the_trials_that_launch_them(
    num_workers: int, cpus: float, nodes: list[float], expected: int
) -> None:
    ask = Resources(num_workers=num_workers, cpus_per_worker=cpus, gpus_per_worker=0.0,
                    num_threads=1, placement="PACK")  # fmt: skip
    assert groups_at_once(tuple({"CPU": cpu} for cpu in nodes), ask) == expected
