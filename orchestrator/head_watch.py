"""Is the cluster's head still there? Asked with a plain connection, because Ray would wait.

When the head is lost, Ray's client in the driver waits for a minute and then ends the process
without a word to us. The run's state lives in its folder, so there is nothing to wait for: the
driver says what happened and how to go on while it still can.
"""

from __future__ import annotations

import socket
import time
from collections.abc import Callable

LOOK_EVERY_S = 2.0
# A head that restarts within this time, or a moment of a full backlog, is not a lost one. Ray
# itself ends the driver after 60 s.
PATIENCE_S = 20.0


def can_connect(address: str, timeout_s: float = 2.0) -> bool:
    """Whether something accepts connections at ``host:port``."""
    host, _, port = address.rpartition(":")
    try:
        with socket.create_connection((host.strip("[]"), int(port)), timeout=timeout_s):
            return True
    except OSError:
        return False


class HeadWatch:
    """Counts how long the head has not answered.

    Args:
        address: of the head's control store, ``host:port``.
        answers: asks it.
        clock: monotonic seconds.
    """

    def __init__(
        self,
        address: str,
        *,
        answers: Callable[[str], bool] = can_connect,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._address, self._answers, self._clock = address, answers, clock
        self._next_look = 0.0
        self._silent_since: float | None = None

    def look(self) -> str:
        """Why the head counts as lost, or empty; asks every two seconds at most."""
        now = self._clock()
        if now >= self._next_look:
            self._next_look = now + LOOK_EVERY_S
            if self._answers(self._address):
                self._silent_since = None
            elif self._silent_since is None:
                self._silent_since = now
        if self._silent_since is None or now - self._silent_since < PATIENCE_S:
            return ""
        return f"its head at {self._address} has not answered for {PATIENCE_S:g} s"
