"""How does the mirror keep up without anyone waiting for it? In one thread of the driver.

The driver wakes it after writing to the journal and goes on; at the end it is given a few seconds
to finish. A thread that does not make it is left behind: it is a daemon, the journal has
everything, and ``mpq sync`` brings MLflow up to date.
"""

from __future__ import annotations

import threading
from collections.abc import Callable

from orchestrator.journal import JournalView
from orchestrator.tracking import Mirror, SyncOutcome


class MirrorThread:
    """Mirrors in the background, started with the run and finished with it."""

    def __init__(self, mirror: Mirror, view: Callable[[], JournalView]) -> None:
        """Tie a mirror to a journal.

        Args:
            mirror: what to bring up to date.
            view: the journal as it is now; called in the thread.
        """
        self._mirror, self._view = mirror, view
        self._wake, self._stop = threading.Event(), threading.Event()
        self._outcome = SyncOutcome()
        self._thread = threading.Thread(target=self._work, name="mlflow-mirror", daemon=True)

    def start(self) -> None:
        """Begin making the schema (seconds on a new database) and mirroring."""
        self._thread.start()

    def wake(self) -> None:
        """Say that there is something new; returns at once."""
        self._wake.set()

    def finish(self, timeout_s: float = 20.0) -> SyncOutcome:
        """Mirror what is left and stop; waits no longer than ``timeout_s``."""
        self._stop.set()
        self._wake.set()
        self._thread.join(timeout_s)
        if self._thread.is_alive():
            pending = len(self._view().records()) - self._outcome.mirrored
            error = f"MLflow did not answer within {timeout_s:g} s"
            return SyncOutcome(
                mirrored=self._outcome.mirrored, pending=max(pending, 0), error=error
            )
        return self._outcome

    def _work(self) -> None:
        self._mirror.prepare()
        while True:
            self._wake.wait()
            self._wake.clear()
            stopping = self._stop.is_set()
            self._outcome = self._mirror.sync(self._view())
            if stopping:
                return
