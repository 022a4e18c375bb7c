"""How does the driver wait for workers without losing its signals or its voice?

The work goes to a thread, because in the main thread Ray Train and Ray Tune would take over the
handling of SIGINT. The main thread looks about once a second: it passes on what the workers say
about their progress, and whatever else wants to be done meanwhile.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from typing import TypeVar

from orchestrator import events
from orchestrator.errors import ResourceError
from orchestrator.progress import ProgressLines
from orchestrator.relaunch import Restart
from orchestrator.session import Session
from trainers.messages import PROGRESS_FILE

T = TypeVar("T")


def watched(
    session: Session,
    steps: Sequence[str],
    work: Callable[[], T],
    tick: Callable[[], None] | None = None,
    *,
    restarts: Sequence[Restart] = (),
    lost: Callable[[], str] = lambda: "",
) -> T:
    """Do ``work`` in a thread, tell the progress of ``steps``, and return or raise its outcome.

    Args:
        session: this attempt.
        steps: names of those whose workers are at work.
        work: blocks until they are done.
        tick: called about once a second.
        restarts: grows in the thread; each goes into the journal, which only this thread writes.
        lost: why the whole cluster counts as gone, or empty.

    Raises:
        ResourceError: the cluster is gone; the thread that waits for it is left behind.
    """
    told = 0
    results: list[T] = []
    errors: list[Exception] = []

    def run() -> None:
        try:
            results.append(work())
        except Exception as error:  # handed to the main thread, which decides
            errors.append(error)

    progress = [
        (step, ProgressLines(session.store.step_dir(step) / PROGRESS_FILE)) for step in steps
    ]
    thread = threading.Thread(target=run, name="workers", daemon=True)
    thread.start()
    while thread.is_alive():
        thread.join(timeout=1.0)
        for name, lines in progress:
            for line in lines.fresh():
                session.say(f"{name}: {line}")
        while told < len(restarts):
            keep_restart(session, restarts[told])
            told += 1
        if tick is not None:
            tick()
        gone = lost()
        if gone and thread.is_alive():
            raise ResourceError(
                "the Ray cluster is gone",
                ", ".join(steps),
                gone,
                "start a cluster, then run the same command again: finished steps are kept and "
                "this one goes on from what it saved",
            )
    for restart in restarts[told:]:
        keep_restart(session, restart)
    if errors:
        raise errors[0]
    return results[0]


def keep_restart(session: Session, restart: Restart) -> None:
    """Into the journal and to the person who waits."""
    session.journal.event(events.STEP_RESTARTED, restart.to_json())
    session.say(f"{restart.step}: {restart.reason}, on {restart.num_workers} workers")
