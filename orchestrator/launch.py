"""How does a phase become one Ray Train worker group, and what comes back?

The group's name holds the hash of what it computes, because Ray Train resumes whatever it finds
under a name: a changed configuration must never meet an old run's state. Ray restarts nothing by
itself here; ``relaunch`` does, which can tell one failure from another.
"""

from __future__ import annotations

import os
import secrets
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path

from orchestrator.cluster import Resources
from orchestrator.redact import secrets_of
from orchestrator.retries import Loss
from solvers.errors import SolversError
from trainers.errors import TrainersError
from trainers.phases import PhaseSpec
from trainers.watchdog import raise_fence


@dataclass(frozen=True, kw_only=True, slots=True)
class Launch:
    """One finished worker group.

    Attributes:
        wall_s: from the request to the return of the last worker.
        worked_s: of these, inside the phase itself; the rest is Ray placing and importing.
        error: what the phase raised, None when it finished.
    """

    wall_s: float
    worked_s: float
    error: Exception | None


def launch(
    spec: PhaseSpec,
    *,
    step_dir: Path,
    run_dir: Path,
    key: str,
    ask: Resources,
    hang_s: float | None = None,
) -> Launch:
    """Run a phase on a worker group of the connected cluster and wait for it.

    Args:
        spec: what to compute.
        step_dir: where the phase leaves checkpoints, outputs and its result.
        run_dir: where the driver may leave a request to stop.
        key: hash of everything that decides the result.
        ask: workers and what each gets.
        hang_s: seconds without an update after which a worker ends itself; None = never.

    Raises:
        ray.train.TrainingFailedError: workers were lost, or raised what is no refusal.
    """
    from ray.train import FailureConfig, RunConfig, ScalingConfig
    from ray.train.torch import TorchConfig, TorchTrainer

    from trainers.worker import run_worker

    began = time.perf_counter()
    per_worker = {"CPU": ask.cpus_per_worker}
    if ask.gpus_per_worker:
        per_worker["GPU"] = ask.gpus_per_worker
    token = secrets.token_hex(8)
    raise_fence(step_dir, token)
    trainer = TorchTrainer(
        run_worker,
        train_loop_config={
            "spec": spec,
            "step_dir": str(step_dir),
            "run_dir": str(run_dir),
            "num_threads": ask.num_threads,
            "token": token,
            "hang_s": hang_s,
            "umask": _umask(),
            # The configuration reaches workers as it is; what they log of it does not leave them.
            "secrets": sorted(secrets_of(asdict(spec)), key=len, reverse=True),
        },
        torch_config=TorchConfig(backend="nccl" if ask.gpus_per_worker else "gloo"),
        scaling_config=ScalingConfig(
            num_workers=ask.num_workers,
            use_gpu=ask.gpus_per_worker > 0,
            resources_per_worker=per_worker,
            placement_strategy=ask.placement,
        ),
        run_config=RunConfig(
            name=f"{spec.phase}-{key[:12]}",
            storage_path=str(run_dir / "ray"),
            failure_config=FailureConfig(
                max_failures=0, controller_failure_limit=0, max_preemption_failures=0
            ),
        ),
    )
    returned = trainer.fit().return_value
    return Launch(
        wall_s=time.perf_counter() - began,
        worked_s=returned["worked_s"],
        error=returned["error"],
    )


def _umask() -> int:
    """This process's mask; there is no way to read it but to set it."""
    mask = os.umask(0o077)
    os.umask(mask)
    return mask


def losses_of(error: BaseException) -> tuple[Loss, ...]:
    """What ``fit`` raised as plain values, one a rank where it says so."""
    failures = getattr(error, "worker_failures", None)
    if failures:
        return tuple(_loss(rank, failure) for rank, failure in sorted(failures.items()))
    return (_loss(None, error),)


def refusal_of(error: BaseException) -> Exception | None:
    """What a phase refused, if that is among what ``fit`` raised; of the first rank that did.

    A rank that refuses alone raises (``trainers.worker``), or the others would wait for it; what
    it says is no less a refusal than one that all ranks returned.
    """
    failures = getattr(error, "worker_failures", None) or {0: error}
    for _, failure in sorted(failures.items()):
        for link in reversed(tuple(_unwrapped(failure))):
            if isinstance(link, TrainersError | SolversError):
                return link
    return None


def _loss(rank: int | None, error: BaseException) -> Loss:
    chain = tuple(_unwrapped(error))
    kinds = frozenset(kind.__name__ for link in chain for kind in type(link).__mro__)
    return Loss(
        rank=rank,
        kinds=kinds - {"object", "BaseException", "Exception"},
        text=str(chain[-1]) or type(chain[-1]).__name__,
        errno=next((e for link in chain if (e := getattr(link, "errno", None))), 0),
        preempted=any(getattr(link, "preempted", False) is True for link in chain),
    )


def _unwrapped(error: BaseException) -> Iterator[BaseException]:
    """The error, what Ray wrapped in it, and so on."""
    seen: set[int] = set()
    link: BaseException | None = error
    while link is not None and id(link) not in seen:
        seen.add(id(link))
        yield link
        wrapped = (
            getattr(link, "health_check_failure", None)
            or getattr(link, "controller_failure", None)
            or getattr(link, "_base_exc", None)
            or getattr(link, "cause", None)
        )
        link = wrapped if isinstance(wrapped, BaseException) else None
