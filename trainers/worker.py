"""The only file that knows Ray Train: it turns a phase into the loop of one worker.

Everything that outlives the worker is in the step's folder: checkpoints, outputs, ``result.json``.
So a worker group that Ray restarts after a failure, and a whole run that is started again, take
the same road: the phase looks for its newest checkpoint. Ray's own report carries only numbers,
once an epoch at most, because each one is a barrier that the controller drains at its polling
interval.
"""

from __future__ import annotations

import logging
import os
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import ray.train
import ray.train.torch
import torch

from solvers.errors import SolversError
from trainers.errors import TrainersError
from trainers.memory import keep_freed_memory
from trainers.messages import StopRequest, append_progress
from trainers.phases import PhaseContext, PhaseSpec, Report
from trainers.registry import find_phase
from trainers.watchdog import Fence, Watchdog, check_shared

log = logging.getLogger(__name__)

AGREE_WITHIN_S = 30.0


def run_worker(settings: dict[str, Any]) -> dict[str, Any]:
    """The training function of every rank.

    Args:
        settings: ``spec`` (PhaseSpec), ``step_dir``, ``run_dir`` (where the driver leaves its stop
            request), ``num_threads``, ``token`` of this group, ``hang_s``,
            ``umask`` of the driver, so that what workers write is as private as what it writes,
            ``secrets`` of the configuration, longest first, which no log may hold.

    Returns:
        When this rank began and how long it worked, for the run's account of its wall time; and
        the error of a phase that refused or gave up. That one is returned, not raised: Ray would
        restart the group for it, and a diverged training or an unreadable file fails again.
    """
    began = time.time()
    os.umask(settings["umask"])
    torch.set_num_threads(settings["num_threads"])
    if ray.train.torch.get_device().type == "cpu":
        keep_freed_memory()
    train_context = ray.train.get_context()
    spec: PhaseSpec = settings["spec"]
    step_dir, rank = Path(settings["step_dir"]), train_context.get_world_rank()
    check_shared(step_dir, settings["token"])
    _log_to(step_dir / "logs" / f"rank{rank}.log", settings["secrets"])
    fence = Fence(step_dir, settings["token"])
    watchdog = Watchdog(settings["hang_s"], step_dir / f"hang-rank{rank}.txt")
    stop_request = StopRequest(Path(settings["run_dir"]))

    def alive() -> None:
        watchdog.beat()
        fence.check()

    def should_stop() -> bool:
        alive()
        return stop_request()

    context = PhaseContext(
        step_dir=step_dir,
        rank=rank,
        world_size=train_context.get_world_size(),
        device=str(ray.train.torch.get_device()),
        report=_reporter(step_dir, rank),
        progress=_teller(step_dir, rank),
        should_stop=should_stop,
        alive=alive,
    )
    error: Exception | None = None
    watchdog.start()
    try:
        find_phase(spec.phase)(spec, context)
    except (TrainersError, SolversError) as refused:
        log.warning("%s ended: %s", spec.phase, refused)
        if not _all_ended(context):
            raise
        error = refused
    finally:
        watchdog.stop()
    return {"began_unix_s": began, "worked_s": time.time() - began, "error": error}


def _log_to(path: Path, secrets: Sequence[str] = ()) -> None:
    """To stderr, which Ray keeps on this node, and to a file that outlives the node."""
    path.parent.mkdir(parents=True, exist_ok=True)
    handlers: list[logging.Handler] = [logging.StreamHandler(), logging.FileHandler(path)]
    for handler in handlers:
        handler.setFormatter(_Discreet(secrets))
    logging.basicConfig(
        level=logging.INFO,
        handlers=handlers,
        force=True,  # an actor that is used again logs to its new step's folder
    )


class _Discreet(logging.Formatter):
    """Log lines, tracebacks included, without what is secret in the configuration.

    Args:
        secrets: texts to hide.
    """

    def __init__(self, secrets: Sequence[str]) -> None:
        super().__init__("%(asctime)s %(name)s: %(message)s")
        self._secrets = tuple(secrets)

    def format(self, record: logging.LogRecord) -> str:
        text = super().format(record)
        for secret in self._secrets:
            text = text.replace(secret, "(hidden)")
        return text


def _all_ended(context: PhaseContext) -> bool:
    """Whether every rank of this group gave up too, within half a minute.

    A rank that refuses alone (a file that only its node cannot read) must not return as if all
    were well: the others would wait for it in their next collective until that times out. Raising
    makes Ray end the whole group.
    """
    # Each start of a group meets at another port, so marks of an earlier start do not count.
    start = os.environ.get("MASTER_PORT", "alone")
    marks = [context.step_dir / f"ended-{start}-{rank}" for rank in range(context.world_size)]
    context.step_dir.mkdir(parents=True, exist_ok=True)
    marks[context.rank].touch()
    deadline = time.monotonic() + AGREE_WITHIN_S
    while not all(mark.exists() for mark in marks):
        if time.monotonic() > deadline:
            return False
        time.sleep(0.2)
    return True


def _teller(step_dir: Path, rank: int) -> Report:
    """Tell the driver, through a file, from rank 0."""

    def tell(metrics: Mapping[str, float]) -> None:
        if rank == 0:
            append_progress(step_dir, metrics)

    return tell


def _reporter(step_dir: Path, rank: int) -> Report:
    """Tell Ray on every rank, and the driver."""
    tell = _teller(step_dir, rank)

    def report(metrics: Mapping[str, float]) -> None:
        tell(metrics)
        ray.train.report(dict(metrics))

    return report
