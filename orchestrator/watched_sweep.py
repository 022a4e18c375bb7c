"""How does the driver wait for a sweep? As for a training: hearing signals, watching the head.

The sweep goes to a thread, and its trials look at the request to stop between their tasks. Chunks
that were answered are files, so what is asked to stop loses no more than the chunks in flight.
"""

from __future__ import annotations

from collections.abc import Sequence

from orchestrator.cluster import OnDemandCluster
from orchestrator.relaunch import Restart
from orchestrator.retries import Decision
from orchestrator.session import Session
from orchestrator.solve_tasks import Body, SweepTables
from orchestrator.sweep import Chunk, SweepOutcome, run_sweep
from orchestrator.watch import watched
from trainers.errors import InterruptedPhaseError


def watched_sweep(
    session: Session,
    step: str,
    key: str,
    chunks: Sequence[Chunk],
    body: Body,
    tables: SweepTables,
    cluster: OnDemandCluster,
) -> SweepOutcome:
    """Answer every chunk, with restarts in the journal.

    Args:
        session: this attempt.
        step: name of the sweep; its folder gets the answers.
        key: hash of everything that decides the answers.
        chunks: the trials.
        body: what a task does with a part of a chunk.
        tables: what the solver reads.
        cluster: where the solves run.

    Raises:
        InterruptedRunError: SIGINT asked to stop.
        TerminatedRunError: SIGTERM or ``mpq cancel`` did.
        ResourceError: the cluster is gone, or has no node with room for a task.
        GroupLostError: a trial failed for good.
    """
    # Connected here: Ray's own signal handlers are kept out in the main thread only.
    num_cpus = cluster.num_cpus
    cluster.check_solves_fit()
    restarts: list[Restart] = []

    def tell(names: Sequence[str], attempt: int, decision: Decision) -> None:
        at_once = min(num_cpus, len(names))
        restarts.append(Restart.after(decision, step=step, attempt=attempt, num_workers=at_once))

    try:
        return watched(
            session,
            [step],
            lambda: run_sweep(
                chunks,
                body,
                tables,
                folder=session.store.step_dir(step),
                run_dir=session.store.root,
                key=key,
                concurrent=num_cpus,
                tell=tell,
                cluster=session.config.cluster,
            ),
            restarts=restarts,
            lost=cluster.lost,
        )
    except InterruptedPhaseError:
        session.stop_if_asked()
        raise
