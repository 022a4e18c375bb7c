"""How does a phase become a Ray Train worker group, and what comes back?

The group's name holds the hash of what it computes, because Ray Train resumes whatever it finds
under a name: a changed configuration must never meet an old run's state.
"""

from __future__ import annotations

import time
from dataclasses import dataclass
from pathlib import Path

from orchestrator.cluster import Resources
from trainers.phases import PhaseSpec


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


def launch(spec: PhaseSpec, *, step_dir: Path, run_dir: Path, key: str, ask: Resources) -> Launch:
    """Run a phase on a worker group of the connected cluster and wait for it.

    Args:
        spec: what to compute.
        step_dir: where the phase leaves checkpoints, outputs and its result.
        run_dir: where the driver may leave a request to stop.
        key: hash of everything that decides the result.
        ask: workers and what each gets.

    Raises:
        ray.train.TrainingFailedError: workers were lost more often than ``ask.max_failures``.
    """
    from ray.train import FailureConfig, RunConfig, ScalingConfig
    from ray.train.torch import TorchConfig, TorchTrainer

    from trainers.worker import run_worker

    began = time.perf_counter()
    per_worker = {"CPU": ask.cpus_per_worker}
    if ask.gpus_per_worker:
        per_worker["GPU"] = ask.gpus_per_worker
    trainer = TorchTrainer(
        run_worker,
        train_loop_config={
            "spec": spec,
            "step_dir": str(step_dir),
            "run_dir": str(run_dir),
            "num_threads": ask.num_threads,
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
            failure_config=FailureConfig(max_failures=ask.max_failures),
        ),
    )
    returned = trainer.fit().return_value
    return Launch(
        wall_s=time.perf_counter() - began,
        worked_s=returned["worked_s"],
        error=returned["error"],
    )
