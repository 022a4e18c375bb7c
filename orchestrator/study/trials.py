"""How are the runs of a study carried out? As trials of Ray Tune on one cluster, one a seed.

A trial is a driver of its own: a process that joins the study's cluster and does what ``mpq run``
does. So a study resumes as its runs do, a seed that fails stops no other, and as many seeds run at
once as the cluster has room for: one after another on a laptop.
"""

from __future__ import annotations

import ctypes
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from types import FrameType
from typing import Any

from orchestrator import events
from orchestrator.cluster import num_places, ray_cluster, resources_for
from orchestrator.cluster_config import ClusterConfig
from orchestrator.errors import ExitCode
from orchestrator.journal import read_journal
from orchestrator.phase_step import lost_for_good
from orchestrator.relaunch import GroupLostError
from orchestrator.retries import Decision
from orchestrator.runs import last_event
from orchestrator.study.store import StudyStore
from orchestrator.trials import run_trials

Say = Callable[[str], None]
_POLL_S = 0.5
# Ray sets these for the trial; a driver that inherits them would think it were a worker.
_OF_WORKERS = ("RAY_JOB_ID", "RAY_RAYLET_PID", "RAY_NODE_ID", "RAY_WORKER_ID", "OMP_NUM_THREADS",
               "CUDA_VISIBLE_DEVICES", "RAY_CLIENT_MODE", "RAY_ADDRESS", "PYTHONBREAKPOINT",
               "TUNE_ORIG_WORKING_DIR", "RAY_RUNTIME_ENV_HOOK")  # fmt: skip


def pending_seeds(store: StudyStore) -> list[int]:
    """Seeds whose run has not come to its end with everything done."""
    return [seed for seed in sorted(store.runs) if exit_code(store, seed) != ExitCode.DONE]


def exit_code(store: StudyStore, seed: int) -> int | None:
    """How the run of a seed ended, as its journal says; None when it did not end."""
    run = store.store(seed)
    if not run.exists():
        return None
    view = read_journal(run.journal_path)
    finished, started = last_event(view, events.RUN_FINISHED), last_event(view, events.RUN_STARTED)
    if finished is None or (started is not None and started.seq > finished.seq):
        return None
    return int(finished.data.get("exit_code", ExitCode.INTERNAL))


def run_study(
    store: StudyStore,
    seeds: Sequence[int],
    *,
    study_file: str,
    cluster: ClusterConfig,
    say: Say,
    reuse: Mapping[int, Sequence[str]],
) -> dict[int, int]:
    """Run the experiments of some seeds; returns seed -> exit code of its process.

    Args:
        store: the study.
        seeds: those to run.
        study_file: what people type after ``mpq study``.
        cluster: where; every run asks for the same.
        say: one line for the person who waits.
        reuse: seed -> run folders whose finished steps it may take over.

    Raises:
        StepFailedError: the process beside a driver was lost too often.
        ResourceError: memory or disk ran out, or there is no cluster.
    """

    def tell(again: Sequence[str], attempt: int, decision: Decision) -> None:
        say(f"seeds {', '.join(again)}: {decision.reason}")

    store.stop_path.unlink(missing_ok=True)
    with ray_cluster(cluster.address, insecure=cluster.insecure) as nodes:
        import ray

        ask = resources_for(cluster, nodes)
        places = num_places(nodes, ask.cpus_per_worker, ask.gpus_per_worker)
        concurrent = max(1, min(len(seeds), places // ask.num_workers))
        address = ray.get_runtime_context().gcs_address
        # Beside this process: the same folders, environment and project.
        here = {f"node:{ray.util.get_node_ip_address()}": 0.001}
        say(f"{len(seeds)} runs on the cluster at {address}, {concurrent} at a time")
        work = _work(store, study_file, address, os.getcwd(), reuse)
        names = {str(seed): seed for seed in seeds}
        with _stoppable(store, say):
            try:
                told = _told_while(
                    lambda: run_trials(
                        list(names), work, folder=store.root / "ray", label="study",
                        concurrent=concurrent, tell=tell, resources=here,
                    ),
                    [(f"seed {seed}", store.log_path(seed)) for seed in seeds],
                    say,
                )  # fmt: skip
            except GroupLostError as error:
                raise lost_for_good("the study", store.root, error) from error
    return {seed: int(told[name]["exit_code"]) for name, seed in names.items()}


def _work(
    store: StudyStore, study_file: str, address: str, folder: str,
    reuse: Mapping[int, Sequence[str]],
) -> Callable[[str], Mapping[str, Any]]:  # fmt: skip
    """What a trial does: start the driver of its seed, pass on a request to stop, wait."""

    def work(name: str) -> Mapping[str, Any]:
        seed = int(name)
        if store.stop_path.exists():
            return {"exit_code": int(ExitCode.INTERRUPTED), "wall_s": 0.0}
        log = store.log_path(seed)
        log.parent.mkdir(parents=True, exist_ok=True)
        command = [
            sys.executable, "-m", "orchestrator.study.child", study_file,
            str(store.config_path(seed)), address, *reuse.get(seed, ()),
        ]  # fmt: skip
        own = {key: value for key, value in os.environ.items() if key not in _OF_WORKERS}
        began = time.perf_counter()
        with log.open("a") as stream:
            process = subprocess.Popen(
                command, cwd=folder, env={**own, "PYTHONUNBUFFERED": "1"}, stdout=stream,
                stderr=subprocess.STDOUT, preexec_fn=_end_with_parent,
            )  # fmt: skip
            asked = False
            while process.poll() is None:
                if not asked and store.stop_path.exists():
                    process.send_signal(signal.SIGINT)
                    asked = True
                time.sleep(_POLL_S)
        return {"exit_code": process.returncode, "wall_s": time.perf_counter() - began}

    return work


def _end_with_parent() -> None:
    """A trial that is killed takes its driver along, which else would hold the run's lock."""
    if sys.platform == "linux":
        pr_set_pdeathsig = 1
        ctypes.CDLL(None).prctl(pr_set_pdeathsig, signal.SIGTERM)
    # Ray's workers may ignore it, and a program inherits that.
    signal.signal(signal.SIGINT, signal.SIG_DFL)


@contextmanager
def _stoppable(store: StudyStore, say: Say) -> Iterator[None]:
    """First SIGINT or SIGTERM: every run stops at its next checkpoint. Second: at once."""
    asked = False

    def ask(number: int, _: FrameType | None) -> None:
        nonlocal asked
        if asked:
            raise KeyboardInterrupt
        asked = True
        store.stop_path.touch()
        say(f"{signal.Signals(number).name}: every run stops at its next checkpoint; once more "
            "stops at once")  # fmt: skip

    before = {number: signal.signal(number, ask) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _told_while(
    work: Callable[[], dict[str, dict[str, Any]]], logs: Sequence[tuple[str, Path]], say: Say
) -> dict[str, dict[str, Any]]:
    """Do ``work`` in a thread, pass on what is new in the logs, and return or raise its outcome."""
    results: list[dict[str, dict[str, Any]]] = []
    errors: list[Exception] = []

    def run() -> None:
        try:
            results.append(work())
        except Exception as error:  # handed to the main thread, which decides
            errors.append(error)

    at = {path: path.stat().st_size if path.is_file() else 0 for _, path in logs}
    thread = threading.Thread(target=run, name="study", daemon=True)
    thread.start()
    while thread.is_alive():
        thread.join(timeout=1.0)
        for name, path in logs:
            at[path] = _passed_on(name, path, at[path], say)
    if errors:
        raise errors[0]
    return results[0]


def _passed_on(name: str, path: Path, start: int, say: Say) -> int:
    """Say the whole lines of a log after ``start``; returns where the next ones begin."""
    if not path.is_file():
        return start
    with path.open("rb") as stream:
        stream.seek(start)
        fresh = stream.read()
    whole = fresh[: fresh.rfind(b"\n") + 1]
    for line in whole.decode(errors="replace").splitlines():
        # Every run prints its table at its end; the study prints one for all.
        if line.startswith("["):
            say(f"{name}: {line.partition('] ')[2]}")
    return start + len(whole)
