"""Which failures are tried again, how often, and how: decided over made-up failures."""

from __future__ import annotations

import itertools
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from orchestrator.cluster import Resources
from orchestrator.cluster_config import ClusterConfig
from orchestrator.launch import Launch, losses_of
from orchestrator.relaunch import GroupLostError, Restart, batch_sizes, run_group
from orchestrator.retries import (
    FailureClass,
    Loss,
    RetriesConfig,
    backoff_s,
    classify,
    decide,
    workers_that_fit,
)
from solvers.errors import FormatError
from trainers.errors import DataError, InterruptedPhaseError
from trainers.messages import STOP_FILE
from trainers.phases import DataSpec, ModelSpec, PhaseSpec
from trainers.recipes import PretrainConfig

INFRA, PREEMPT, RESOURCE = (
    FailureClass.INFRASTRUCTURE, FailureClass.PREEMPTION, FailureClass.RESOURCE,
)  # fmt: skip
NUMERIC, USER = FailureClass.NUMERIC, FailureClass.USER


def loss(*kinds: str, text: str = "gone", rank: int | None = 0, **more: Any) -> Loss:
    return Loss(rank=rank, kinds=frozenset(kinds), text=text, **more)


CLOSED_BY_PEER = loss("RuntimeError", text="[gloo/pair.cc:547] Connection closed by peer", rank=1)


@pytest.mark.parametrize(
    ("losses", "expected"),
    [
        ([loss("ActorDiedError", "RayActorError")], INFRA),
        ([loss("WorkerHealthCheckTimeoutError")], INFRA),
        ([loss("NodeDiedError")], INFRA),
        ([loss("WorkerGroupStartupTimeoutError", rank=None)], INFRA),
        ([loss("ConnectionResetError", "ConnectionError", "OSError", errno=104)], INFRA),
        ([loss("OSError", text="Stale file handle", errno=116)], INFRA),
        ([loss("OSError", text="w.pt", errno=5)], INFRA),
        ([loss("OSError", text="w.pt", errno=107)], INFRA),
        ([loss("TimeoutError", "OSError", text="w.pt", errno=110)], INFRA),
        ([loss("OSError", text="w.pt", errno=112)], INFRA),
        ([loss("OSError", text="w.pt", errno=113)], INFRA),
        # a library of C++ keeps the words and loses the number
        ([loss("RuntimeError", text="write failed: Input/output error")], INFRA),
        ([loss("OSError", errno=5), loss("OSError", errno=28, rank=1)], RESOURCE),
        ([loss("OSError", errno=5), loss("ValueError", rank=1)], INFRA),
        ([CLOSED_BY_PEER], INFRA),
        ([loss("ActorDiedError", "RayActorError"), CLOSED_BY_PEER], INFRA),
        # a rank that raised while another died is collateral
        ([loss("ActorDiedError", "RayActorError"), loss("ValueError", rank=1)], INFRA),
        ([loss("RayActorError", preempted=True)], PREEMPT),
        ([loss("PreemptionError", rank=None)], PREEMPT),
        ([loss("ActorDiedError", "RayActorError", preempted=True), loss("MemoryError")], PREEMPT),
        ([loss("OutOfMemoryError", text="the node runs low on memory")], RESOURCE),
        ([loss("MemoryError")], RESOURCE),
        ([loss("OSError", text="No space left on device", errno=28)], RESOURCE),
        ([loss("OSError", text="Disk quota exceeded", errno=122)], RESOURCE),
        ([loss("MemoryError"), CLOSED_BY_PEER], RESOURCE),
        ([loss("DivergedError", "TrainersError")], NUMERIC),
        ([loss("DivergedError", "TrainersError"), CLOSED_BY_PEER], NUMERIC),
        ([loss("ValueError", text="shapes do not fit")], USER),
        ([loss("ValueError", text="shapes do not fit"), CLOSED_BY_PEER], USER),
        ([loss("PermissionError", "OSError", errno=13)], USER),
        ([], USER),
    ],
)
def test_every_failure_has_its_class(losses: list[Loss], expected: FailureClass) -> None:
    assert classify(losses) is expected
    assert classify(list(reversed(losses))) is expected


BUDGET = RetriesConfig(infrastructure=3, preemption=None, resource=1)
CASES = {
    INFRA: [loss("RayActorError")],
    PREEMPT: [loss("RayActorError", preempted=True)],
    RESOURCE: [loss("MemoryError")],
    NUMERIC: [loss("DivergedError")],
    USER: [loss("ValueError")],
}


def test_budgets_are_apart() -> None:
    """A thousand preemptions use up nothing; three lost processes use up three."""
    spent: dict[FailureClass, int] = {PREEMPT: 1000, RESOURCE: 1, INFRA: 2}

    def again(kind: FailureClass) -> bool:
        return decide(CASES[kind], spent, BUDGET, num_workers=2, draw=0.5).again

    assert again(PREEMPT)
    assert again(INFRA)
    assert not again(RESOURCE)
    spent[INFRA] = 3
    assert not again(INFRA)
    assert again(PREEMPT)


def test_the_rank_whose_storage_went_away_is_told_not_the_one_that_noticed() -> None:
    away = loss("OSError", text="[Errno 5] Input/output error: 'w.pt'", errno=5, rank=1)
    peer = loss("RuntimeError", text="Connection closed by peer", rank=0)
    decision = decide([peer, away], {}, BUDGET, num_workers=2, draw=0.5)
    assert decision.again
    assert decision.wait_s > 0
    assert "rank 1: [Errno 5] Input/output error" in decision.reason


@pytest.mark.parametrize("kind", [NUMERIC, USER])
def test_what_would_happen_again_is_never_tried_again(kind: FailureClass) -> None:
    generous = RetriesConfig(infrastructure=100, preemption=100, resource=10)
    decision = decide(CASES[kind], {}, generous, num_workers=2, draw=0.5)
    assert not decision.again
    assert "again" in decision.reason


def test_host_memory_halves_the_workers_and_a_full_disk_or_gpu_does_not() -> None:
    host = decide([loss("MemoryError")], {}, BUDGET, num_workers=8, draw=0.5)
    assert (host.num_workers, host.sweep) == (4, False)
    gpu = decide([loss("OutOfMemoryError", text="CUDA out of memory")], {}, BUDGET,
                 num_workers=8, draw=0.5)  # fmt: skip
    assert gpu.num_workers == 8
    disk = decide([loss("OSError", errno=28)], {}, BUDGET, num_workers=8, draw=0.5)
    assert (disk.num_workers, disk.sweep) == (8, True)


@given(st.integers(0, 10_000), st.floats(0, 1, exclude_max=True))
def test_waits_double_up_to_a_bound_and_are_spread(restart: int, draw: float) -> None:
    budget = RetriesConfig(first_wait_s=2.0, longest_wait_s=60.0)
    wait = backoff_s(restart, budget, draw)
    full = min(2.0 * 2 ** min(restart, 10), 60.0)
    assert full / 2 <= wait <= full
    assert backoff_s(restart + 1, budget, draw) >= wait


@given(
    st.lists(st.sampled_from(list(CASES)), max_size=30),
    st.builds(
        RetriesConfig,
        infrastructure=st.integers(0, 4),
        preemption=st.none() | st.integers(0, 4),
        resource=st.integers(0, 2),
    ),
)
def test_no_order_of_failures_gets_more_restarts_than_its_budget(
    failures: list[FailureClass], budget: RetriesConfig
) -> None:
    spent: dict[FailureClass, int] = dict.fromkeys(FailureClass, 0)
    for kind in failures:
        if decide(CASES[kind], spent, budget, num_workers=2, draw=0.0).again:
            spent[kind] += 1
    assert spent[INFRA] == min(failures.count(INFRA), budget.infrastructure)
    assert spent[RESOURCE] == min(failures.count(RESOURCE), budget.resource)
    allowed = failures.count(PREEMPT) if budget.preemption is None else budget.preemption
    assert spent[PREEMPT] == min(failures.count(PREEMPT), allowed)
    assert spent[NUMERIC] == spent[USER] == 0


@pytest.mark.parametrize(
    ("wanted", "places", "least", "sizes", "expected"),
    [
        (4, 4, None, (64,), 4),
        (4, 9, None, (64,), 4),
        (4, 3, None, (64,), None),
        (4, 3, 1, (64,), 2),  # three workers do not share 64 images alike
        (4, 3, 1, (), 3),
        (4, 3, 3, (64,), None),
        (8, 6, 1, (96, 64), 4),
        (2, 0, 1, (), None),
    ],
)
def test_a_shrunken_cluster_gets_as_many_workers_as_fit(
    wanted: int, places: int, least: int | None, sizes: tuple[int, ...], expected: int | None
) -> None:
    assert workers_that_fit(wanted, places, least, *sizes) == expected


# --- the loop around a group, with a made-up group ------------------------------------------------

SPEC = PhaseSpec(
    phase="pretrain", model=ModelSpec(name="resnet14"), data=DataSpec(name="digits"), seed=0,
    config=PretrainConfig(batch_size=64),
)  # fmt: skip
ASK = Resources(
    num_workers=4, cpus_per_worker=1.0, gpus_per_worker=0.0, num_threads=1, placement="PACK"
)


class Died(Exception):  # noqa: N818 - as Ray names it
    """Named like Ray's."""


class RayActorError(Exception):
    """Named like Ray's."""


class WorkerGroupError(Exception):
    """Shaped like Ray Train's."""

    def __init__(self, failures: dict[int, Exception]) -> None:
        super().__init__("Training failed due to worker errors")
        self.worker_failures = failures


class Group:
    """Fails as told, then finishes; remembers what it was asked for."""

    def __init__(self, *failures: Exception) -> None:
        self.failures = list(failures)
        self.asked: list[int] = []

    def __call__(self, spec: PhaseSpec, *, ask: Resources, **_: Any) -> Launch:
        self.asked.append(ask.num_workers)
        if self.failures:
            raise self.failures.pop(0)
        return Launch(wall_s=1.0, worked_s=1.0, error=None)


def run(
    tmp_path: Path, group: Group, cluster: ClusterConfig, nodes: Any, sleeps: list[float]
) -> tuple[Launch, list[Restart]]:
    told: list[Restart] = []
    done = run_group(
        SPEC, step="pretrain", step_dir=tmp_path, run_dir=tmp_path, key="k" * 64, ask=ASK,
        cluster=cluster, tell=told.append, start=group, nodes=nodes, sleep=sleeps.append,
    )  # fmt: skip
    return done, told


def dead(rank: int = 1) -> WorkerGroupError:
    return WorkerGroupError({rank: RayActorError("The actor died")})


def test_lost_workers_are_started_again_and_each_restart_is_told(tmp_path: Path) -> None:
    group, sleeps = Group(dead(), dead(2)), list[float]()
    done, told = run(tmp_path, group, ClusterConfig(), lambda: [{"CPU": 8.0}], sleeps)
    assert done.error is None
    assert [(r.attempt, r.failure) for r in told] == [(2, "infrastructure"), (3, "infrastructure")]
    assert 0.5 <= sum(sleeps) <= 3.0
    assert "rank 2: The actor died" in told[1].reason


def test_who_takes_a_lost_worker_for_a_defect_starts_nothing_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Negative control: it is the class of the loss that starts the group again."""
    monkeypatch.setattr("orchestrator.retries._LOST", set())
    monkeypatch.setattr("orchestrator.retries._COLLATERAL", ())
    group = Group(dead(), dead(2))
    with pytest.raises(GroupLostError, match="the same input would raise it again"):
        run(tmp_path, group, ClusterConfig(), lambda: [{"CPU": 8.0}], [])
    assert group.asked == [4]


def test_a_spent_budget_ends_it_with_the_class(tmp_path: Path) -> None:
    cluster = ClusterConfig(retries=RetriesConfig(infrastructure=2))
    group = Group(*(dead() for _ in range(9)))
    with pytest.raises(GroupLostError, match=r"2 restarts of 2 allowed") as caught:
        run(tmp_path, group, cluster, lambda: [{"CPU": 8.0}], [])
    assert len(group.asked) == 3
    assert caught.value.failure == INFRA


def test_a_defect_of_the_phase_is_not_repeated(tmp_path: Path) -> None:
    group = Group(WorkerGroupError({0: ValueError("shapes"), 1: RuntimeError("gloo: closed")}))
    with pytest.raises(GroupLostError, match="shapes"):
        run(tmp_path, group, ClusterConfig(), lambda: [{"CPU": 8.0}], [])
    assert group.asked == [4]


class UserExceptionWithTraceback(Exception):  # noqa: N818 - as Ray names it
    """Shaped like the wrapper that Ray Train hands a worker's error over in."""

    def __init__(self, base: Exception) -> None:
        super().__init__("Traceback (most recent call last) ...")
        self._base_exc = base


@pytest.mark.parametrize("refused", [DataError("cat.jpg is broken"), FormatError("no table")])
def test_what_one_rank_alone_refuses_is_a_refusal(tmp_path: Path, refused: Exception) -> None:
    group = Group(
        WorkerGroupError({0: RuntimeError("gloo: closed"), 1: UserExceptionWithTraceback(refused)})
    )
    done, told = run(tmp_path, group, ClusterConfig(), lambda: [{"CPU": 8.0}], [])
    assert done.error is refused
    assert (group.asked, told) == ([4], [])


def test_a_rank_that_refuses_while_another_dies_is_started_again(tmp_path: Path) -> None:
    both = WorkerGroupError({0: DataError("no such file"), 1: RayActorError("The actor died")})
    done, told = run(tmp_path, Group(both), ClusterConfig(), lambda: [{"CPU": 8.0}], [])
    assert done.error is None
    assert [r.failure for r in told] == ["infrastructure"]


def test_a_lost_node_is_waited_for(tmp_path: Path) -> None:
    seen = itertools.chain([[{"CPU": 2.0}]] * 3, itertools.repeat([{"CPU": 8.0}]))
    group, sleeps = Group(dead()), list[float]()
    cluster = ClusterConfig(cpus_per_worker=1.0)
    _, told = run(tmp_path, group, cluster, lambda: next(seen), sleeps)
    assert group.asked == [4, 4]
    assert sum(sleeps) >= 6.0
    assert told[0].num_workers == 4


def test_a_node_that_does_not_come_back_ends_it_unless_fewer_workers_are_allowed(
    tmp_path: Path,
) -> None:
    def two() -> list[dict[str, float]]:
        return [{"CPU": 3.0}]

    fixed = ClusterConfig(cpus_per_worker=1.0, wait_for_nodes_s=4.0)
    with pytest.raises(GroupLostError, match="room for 3 of 4 workers"):
        run(tmp_path, Group(dead()), fixed, two, [])
    elastic = ClusterConfig(cpus_per_worker=1.0, min_workers=1)
    group = Group(dead(), dead())
    _, told = run(tmp_path, group, elastic, two, [])
    # 3 would fit, but 64 images are not shared by 3 alike
    assert group.asked == [4, 2, 2]
    assert [r.num_workers for r in told] == [2, 2]


def test_a_stop_request_ends_the_waiting(tmp_path: Path) -> None:
    (tmp_path / STOP_FILE).touch()
    done, _ = run(tmp_path, Group(dead()), ClusterConfig(), lambda: [{"CPU": 8.0}], [])
    assert isinstance(done.error, InterruptedPhaseError)


def test_real_errors_of_ray_are_read(tmp_path: Path) -> None:
    from ray.exceptions import ActorDiedError, OutOfMemoryError
    from ray.exceptions import RayActorError as Actor
    from ray.train.v2._internal.exceptions import (
        UserExceptionWithTraceback,
        WorkerGroupStartupTimeoutError,
        WorkerHealthCheckFailedError,
    )
    from ray.train.v2.api.exceptions import ControllerError
    from ray.train.v2.api.exceptions import WorkerGroupError as Failed

    def kind(failure: Exception) -> FailureClass:
        return classify(losses_of(Failed("x", {0: failure})))

    assert kind(WorkerHealthCheckFailedError("x", ActorDiedError())) is INFRA
    taken = Actor(preempted=True)
    assert kind(WorkerHealthCheckFailedError("x", taken)) is PREEMPT
    assert kind(WorkerHealthCheckFailedError("x", OutOfMemoryError("low"))) is RESOURCE
    assert kind(OSError(28, "No space left on device")) is RESOURCE
    assert kind(OSError(5, "Input/output error")) is INFRA
    hiccup = UserExceptionWithTraceback(TimeoutError(110, "Connection timed out"), "...")
    assert kind(hiccup) is INFRA
    assert kind(UserExceptionWithTraceback(ValueError("x"), "...")) is USER
    late = ControllerError(WorkerGroupStartupTimeoutError(2))
    assert classify(losses_of(late)) is INFRA


@pytest.mark.parametrize(
    ("accumulate", "places", "count"), [(1, 4, 4), (16, 4, 3), (16, 5, 3), (32, 5, 3), (96, 5, 1)]
)
def test_a_smaller_group_still_shares_the_parts_of_a_batch(
    accumulate: int, places: int, count: int
) -> None:
    recipe = PretrainConfig(batch_size=96, accumulate=accumulate)
    found = workers_that_fit(6, places, 1, *batch_sizes({"recipe": recipe}))
    assert found == count
    assert 96 % (count * accumulate) == 0
