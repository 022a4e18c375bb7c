"""How does the driver wait for workers without losing its signals or its voice?

The work goes to a thread, because in the main thread Ray Train and Ray Tune would take over the
handling of SIGINT. The main thread looks about once a second: it passes on what the workers say
about their progress, and whatever else wants to be done meanwhile.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from typing import TypeVar

from orchestrator.plan import Step
from orchestrator.progress import ProgressLines
from orchestrator.session import Session
from trainers.messages import PROGRESS_FILE

T = TypeVar("T")


def watched(
    session: Session,
    steps: Sequence[Step],
    work: Callable[[], T],
    tick: Callable[[], None] | None = None,
) -> T:
    """Do ``work`` in a thread, tell the progress of ``steps``, and return or raise its outcome.

    Args:
        session: this attempt.
        steps: those whose workers are at work.
        work: blocks until they are done.
        tick: called about once a second.
    """
    results: list[T] = []
    errors: list[Exception] = []

    def run() -> None:
        try:
            results.append(work())
        except Exception as error:  # handed to the main thread, which decides
            errors.append(error)

    progress = [
        (step.name, ProgressLines(session.store.step_dir(step.name) / PROGRESS_FILE))
        for step in steps
    ]
    thread = threading.Thread(target=run, name="workers", daemon=True)
    thread.start()
    while thread.is_alive():
        thread.join(timeout=1.0)
        for name, lines in progress:
            for line in lines.fresh():
                session.say(f"{name}: {line}")
        if tick is not None:
            tick()
    if errors:
        raise errors[0]
    return results[0]
