"""How does the mirror keep up without a step waiting for it? In one thread of the driver.

The driver wakes it after writing to the journal and goes on; at the end it is given a few seconds
to finish. A thread that does not make it is left behind: it is a daemon, the journal has
everything, and ``mpq sync`` brings MLflow up to date.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable

from orchestrator.journal import JournalView
from orchestrator.tracking import Mirror, SyncOutcome

# What all waits for one thread take together, unless a wait has a limit of its own.
PATIENCE_S = 20.0


class MirrorThread:
    """Mirrors in the background, started with the run and finished with it."""

    def __init__(self, mirror: Mirror, view: Callable[[], JournalView]) -> None:
        """Tie a mirror to a journal.

        Args:
            mirror: what to bring up to date.
            view: the journal as it is now; called in the thread.
        """
        self._mirror, self._view = mirror, view
        self._waited_s = 0.0
        # Guards what follows: how often it was woken, how many of these are served, after which one
        # it ends, and whether it has.
        self._changed = threading.Condition()
        self._asked = self._served = 0
        self._last, self._ended = -1, False
        self._outcome = SyncOutcome()
        self._thread = threading.Thread(target=self._work, name="mlflow-mirror", daemon=True)

    @property
    def open_command(self) -> str:
        """What to type to look at MLflow."""
        return self._mirror.open_command

    def start(self) -> None:
        """Begin making the schema (seconds on a new database) and mirroring."""
        self._thread.start()

    def wake(self) -> None:
        """Say that there is something new; returns at once."""
        with self._changed:
            self._asked += 1
            self._changed.notify_all()

    def catch_up(self) -> SyncOutcome:
        """Mirror what the journal has by now; waits no longer than what is left of the patience."""
        return self._wait(None, last=False)

    def finish(self, timeout_s: float | None = None) -> SyncOutcome:
        """The same and stop; ``timeout_s`` is a limit in place of what is left of the patience."""
        return self._wait(timeout_s, last=True)

    def _wait(self, timeout_s: float | None, *, last: bool) -> SyncOutcome:
        began = time.monotonic()
        if timeout_s is None:
            timeout_s = max(0.0, PATIENCE_S - self._waited_s)
        with self._changed:
            self._asked += 1
            wanted = self._asked
            if last:
                self._last = wanted
            self._changed.notify_all()
            self._changed.wait_for(lambda: self._served >= wanted or self._ended, timeout_s)
            served, outcome = self._served >= wanted, self._outcome
        self._waited_s += time.monotonic() - began
        if served:
            return outcome
        pending = len(self._view().records()) - outcome.mirrored
        error = f"MLflow did not answer within {self._waited_s:.0f} s"
        return SyncOutcome(mirrored=outcome.mirrored, pending=max(pending, 0), error=error)

    def _work(self) -> None:
        try:
            self._mirror.prepare()
            while self._served != self._last:
                with self._changed:
                    self._changed.wait_for(lambda: self._served < self._asked)
                    wanted = self._asked
                outcome = self._mirror.sync(self._view())
                with self._changed:
                    self._outcome, self._served = outcome, wanted
                    self._changed.notify_all()
        finally:
            with self._changed:
                self._ended = True
                self._changed.notify_all()
