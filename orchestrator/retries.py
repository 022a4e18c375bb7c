"""What is done after workers were lost: start again, wait, ask for less, or give up?

A failure belongs to one of five classes, and each has a budget of its own, so that ten preempted
nodes do not use up what was kept for a broken one, and nothing deterministic is tried twice:

* *infrastructure*: a process, node or connection is gone, or storage did not answer. Again, after a
  wait that doubles.
* *preemption*: the node was taken back by whoever lends it. Again at once; not charged.
* *resource*: memory or disk ran out. Once more, with less: half the workers where host memory ran
  out, swept temporary files where the disk did.
* *numeric*: the training diverged. The same numbers would come again.
* *user*: everything else that a phase raised. The same input would raise it again.

Values in, decisions out: nothing here knows Ray or a clock, so made-up failures test it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import Annotated

from annotated_types import Ge, Gt, Le

from trainers.recipes import CLOSED


class FailureClass(StrEnum):
    """Why an attempt at a phase ended."""

    INFRASTRUCTURE = "infrastructure"
    PREEMPTION = "preemption"
    RESOURCE = "resource"
    NUMERIC = "numeric"
    USER = "user"


@dataclass(frozen=True, kw_only=True, slots=True)
class RetriesConfig:
    """How often one phase is started again, by what ended it. Ours.

    Attributes:
        infrastructure: after a lost process, node or connection, or storage that did not answer.
        preemption: after a node was taken back by whoever lends it; null = any number of times.
        resource: after memory or disk ran out, each time with less where less is possible.
        first_wait_s: before the first restart after a lost process; doubles with each, and a part
            of it is drawn, so that many runs do not come back in the same second.
        longest_wait_s: what it doubles up to.
    """

    __pydantic_config__ = CLOSED

    infrastructure: Annotated[int, Ge(0), Le(10_000)] = 5
    preemption: Annotated[int, Ge(0)] | None = None
    resource: Annotated[int, Ge(0), Le(10)] = 1
    first_wait_s: Annotated[float, Ge(0.0), Le(3600.0)] = 1.0
    longest_wait_s: Annotated[float, Gt(0.0), Le(86_400.0)] = 60.0


@dataclass(frozen=True, kw_only=True, slots=True)
class Loss:
    """What one rank, or the controller of all of them, ended with.

    Attributes:
        rank: of the worker; None for the controller.
        kinds: class names of the error, of what it wraps and of their base classes.
        text: what it says.
        errno: of an operating system error, else 0.
        preempted: the node said that it was being taken back.
    """

    rank: int | None
    kinds: frozenset[str]
    text: str = ""
    errno: int = 0
    preempted: bool = False


@dataclass(frozen=True, kw_only=True, slots=True)
class Decision:
    """What to do next.

    Attributes:
        failure: the class that was found.
        again: whether to start another worker group.
        wait_s: before that.
        num_workers: of that group.
        sweep: remove torn temporary files of the step first.
        reason: for the journal and the person who waits.
    """

    failure: FailureClass
    again: bool
    wait_s: float
    num_workers: int
    sweep: bool
    reason: str


_NUMERIC = {"DivergedError"}
_MEMORY = {"OutOfMemoryError", "MemoryError"}
_DISK = {"OutOfDiskError", "ObjectStoreFullError"}
# ENOSPC, EDQUOT, EFBIG
_NO_SPACE = (28, 122, 27)
_ENOMEM = 12
_LOST = {
    "RayActorError", "ActorUnavailableError", "NodeDiedError", "WorkerCrashedError",
    "LocalRayletDiedError", "OwnerDiedError", "ObjectLostError", "RpcError", "RaySystemError",
    "WorkerHealthCheckFailedError", "WorkerHealthCheckTimeoutError", "CollectiveTimeoutError",
    "WorkerGroupStartupTimeoutError", "WorkerGroupStartupFailedError", "NCCLHangError",
    "ActorPlacementGroupRemoved", "TaskPlacementGroupRemoved", "ActorUnschedulableError",
    "ConnectionError", "DistBackendError", "DistNetworkError", "DistStoreError", "SupersededError",
}  # fmt: skip
# What ranks say when another one has gone: gloo, NCCL, the store that they meet at. Lower case.
_COLLATERAL = (
    "connection closed by peer", "connection reset by peer", "connection refused", "broken pipe",
    "gloo", "nccl", "socket timeout", "timed out waiting", "store->get", "rendezvous",
    "stale file handle", "input/output error", "transport endpoint is not connected",
    "connection timed out", "no route to host", "host is down",
)  # fmt: skip
# What a file server that is away for a while makes of a call: EIO (NFS mounted `soft`), ENETDOWN,
# ENETUNREACH, ENOTCONN (FUSE), ETIMEDOUT, EHOSTDOWN, EHOSTUNREACH, ESTALE. A disk that is broken
# says EIO too, again and again until the budget is used up.
_AWAY = (5, 100, 101, 107, 110, 112, 113, 116)


def classify(losses: Sequence[Loss]) -> FailureClass:
    """The class of one failure from what every rank ended with.

    When one rank dies, the others fail too, with a closed connection or worse; so a preempted
    rank decides for all, then a diverged one, one that ran out, a lost one, and only what is left
    counts as the phase's own fault. A rank that raised while another died is collateral as well:
    a defect of the phase raises again without a death.
    """
    if any(loss.preempted or "PreemptionError" in loss.kinds for loss in losses):
        return FailureClass.PREEMPTION
    if any(loss.kinds & _NUMERIC for loss in losses):
        return FailureClass.NUMERIC
    if any(_ran_out(loss) for loss in losses):
        return FailureClass.RESOURCE
    if any(loss.kinds & _LOST or loss.errno in _AWAY for loss in losses):
        return FailureClass.INFRASTRUCTURE
    if losses and all(_collateral(loss) for loss in losses):
        return FailureClass.INFRASTRUCTURE
    return FailureClass.USER


def decide(
    losses: Sequence[Loss],
    spent: Mapping[FailureClass, int],
    budget: RetriesConfig,
    *,
    num_workers: int,
    draw: float,
) -> Decision:
    """Whether another attempt is worth it, and how.

    Args:
        losses: what every rank ended with.
        spent: restarts of this phase so far, by class.
        budget: how many there may be.
        num_workers: of the group that failed.
        draw: uniform in [0, 1), for the wait.
    """
    failure = classify(losses)
    used = spent.get(failure, 0)
    allowed = {
        FailureClass.INFRASTRUCTURE: budget.infrastructure,
        FailureClass.PREEMPTION: budget.preemption,
        FailureClass.RESOURCE: budget.resource,
    }.get(failure, 0)
    told = _told(losses)
    out_of_memory = failure is FailureClass.RESOURCE and any(_host_memory(x) for x in losses)
    fewer = max(1, num_workers // 2) if out_of_memory else num_workers
    if allowed is not None and used >= allowed:
        limits = {
            FailureClass.NUMERIC: "the same numbers would come again",
            FailureClass.USER: "the same input would raise it again",
        }
        why = limits.get(failure, f"{used} restarts of {allowed} allowed are used up")
        return Decision(
            failure=failure, again=False, wait_s=0.0, num_workers=num_workers, sweep=False,
            reason=f"{failure}: {told}; {why}",
        )  # fmt: skip
    wait_s = 0.0
    if failure is FailureClass.INFRASTRUCTURE:
        wait_s = backoff_s(used, budget, draw)
    left = "" if allowed is None else f" of {allowed}"
    less = f", with {fewer} workers instead of {num_workers}" if fewer != num_workers else ""
    return Decision(
        failure=failure,
        again=True,
        wait_s=wait_s,
        num_workers=fewer,
        sweep=failure is FailureClass.RESOURCE and not out_of_memory,
        reason=f"{failure}: {told}; restart {used + 1}{left}{less}",
    )


def task_options(budget: RetriesConfig) -> dict[str, int | bool]:
    """The same classes as Ray's options of a task, which Ray itself starts again.

    A lost process, node or connection counts against the infrastructure budget (a preempted node
    does not, by Ray's own rule), and what the task raised is never tried again. Memory that ran out
    has a budget of Ray's, set in ``cluster.set_environment`` and where a cluster's nodes start.
    """
    return {"max_retries": budget.infrastructure, "retry_exceptions": False}


def backoff_s(restart: int, budget: RetriesConfig, draw: float) -> float:
    """Seconds before restart number ``restart`` (from 0): doubled each time, half of it drawn."""
    full = min(budget.first_wait_s * 2.0 ** min(restart, 60), budget.longest_wait_s)
    return full * (0.5 + 0.5 * draw)


def workers_that_fit(wanted: int, places: int, least: int | None, *dividing: int) -> int | None:
    """How many workers a group gets from a cluster that may have shrunk.

    Args:
        wanted: the configuration's ``num_workers``.
        places: workers that the living nodes can hold.
        least: the configuration's ``min_workers``; None asks for exactly ``wanted``.
        dividing: images of one pass, which a group shares in equal parts.

    Returns:
        The largest number that fits, or None when not even the least does.
    """
    for count in range(min(wanted, places), (least or wanted) - 1, -1):
        if all(size % count == 0 for size in dividing):
            return count
    return None


def _ran_out(loss: Loss) -> bool:
    return bool(loss.kinds & (_MEMORY | _DISK)) or loss.errno in (*_NO_SPACE, _ENOMEM)


def _host_memory(loss: Loss) -> bool:
    """Fewer processes need less of it; a GPU's memory would need more, for larger shares."""
    on_gpu = "cuda" in loss.text.lower() or "hip" in loss.text.lower()
    return (bool(loss.kinds & _MEMORY) or loss.errno == _ENOMEM) and not on_gpu


def _collateral(loss: Loss) -> bool:
    text = loss.text.lower()
    return loss.errno not in _AWAY and any(words in text for words in _COLLATERAL)


def _told(losses: Sequence[Loss]) -> str:
    """One clause: whose error, and its first line."""
    if not losses:
        return "no rank said why"
    # The rank that explains the class, not one that only noticed.
    loss = min(losses, key=lambda x: (_collateral(x), x.rank if x.rank is not None else -1))
    who = "the controller" if loss.rank is None else f"rank {loss.rank}"
    lines = [line for line in loss.text.strip().splitlines() if line.strip()]
    return f"{who}: {(lines[0] if lines else 'ended without a word')[:200]}"
