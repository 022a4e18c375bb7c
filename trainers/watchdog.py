"""Has a worker stopped getting on, or has another group taken its place?

A worker that hangs (a collective whose peer is frozen, a file server that does not answer) is not
dead, so nobody restarts it. Phases ask ``should_stop`` at every update and say ``alive`` at every
batch they only measure; a thread here notices when they no longer do, writes every thread's stack
to the step's folder, and ends the process, which the driver counts as a lost worker.

A worker that was cut off from the cluster and comes back must not write beside the group that
replaced it. Every group start leaves its token in the step's folder; a worker that finds another
one there ends without writing.
"""

from __future__ import annotations

import faulthandler
import os
import socket
import threading
import time
from collections.abc import Callable
from pathlib import Path

from solvers.atomic import write_atomically
from trainers.errors import FolderNotSharedError

FENCE_FILE = "group"
HANG_EXIT_CODE = 75
_LOOK_EVERY_S = 1.0


class SupersededError(RuntimeError):
    """Another worker group took this one's place; nothing more may be written."""

    def __init__(self, message: str) -> None:
        super().__init__(message)


def raise_fence(step_dir: Path, token: str) -> None:
    """Make ``token`` the group whose workers may write; the driver's part."""
    write_atomically(step_dir / FENCE_FILE, token)


def check_shared(step_dir: Path, token: str, *, patience_s: float = 10.0) -> None:
    """Before this node makes a folder of its own: does it see the run's?

    Args:
        step_dir: folder of the step.
        token: of this group; empty when nobody started a group.
        patience_s: how long a new folder may take to show on a network file system.

    Raises:
        FolderNotSharedError: the group's fence, which the driver wrote, is not here.
    """
    until = time.monotonic() + patience_s
    while token and not (step_dir / FENCE_FILE).is_file():
        if time.monotonic() < until:
            time.sleep(0.5)
            continue
        raise FolderNotSharedError(
            f"{socket.gethostname()} does not see {step_dir}, which the driver made: runs_dir must "
            "be one folder on every node (docs/cluster.md; mpq doctor --address asks each node)"
        )


class Fence:
    """Whether this worker's group is still the one that counts.

    Args:
        step_dir: folder of the step.
        token: of this group; empty when nobody started a group (a phase that runs alone).
        clock: monotonic seconds.
    """

    def __init__(
        self, step_dir: Path, token: str, *, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._path, self._token, self._clock = step_dir / FENCE_FILE, token, clock
        self._next_look = 0.0

    def check(self) -> None:
        """Look at most once a second.

        Raises:
            SupersededError: another group was started.
        """
        now = self._clock()
        if not self._token or now < self._next_look:
            return
        self._next_look = now + _LOOK_EVERY_S
        try:
            found = self._path.read_text()
        except FileNotFoundError:
            found = ""
        if found != self._token:
            raise SupersededError(f"another worker group took over in {self._path.parent}")


class Watchdog:
    """Ends this process when it has not been told of progress for too long.

    Args:
        patience_s: how long; None never ends anything.
        stacks: where the stacks go.
        end: what ends the process.
        clock: monotonic seconds, so that setting the machine's clock fires nothing.
    """

    def __init__(
        self,
        patience_s: float | None,
        stacks: Path,
        *,
        end: Callable[[int], object] = os._exit,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._patience_s, self._stacks, self._end, self._clock = patience_s, stacks, end, clock
        self._last = clock()
        self._over = threading.Event()

    def start(self) -> None:
        """Begin to watch, in a daemon thread."""
        if self._patience_s is not None:
            threading.Thread(target=self._watch, name="watchdog", daemon=True).start()

    def beat(self) -> None:
        """There was progress."""
        self._last = self._clock()

    def stop(self) -> None:
        """The work is over."""
        self._over.set()

    def look(self) -> bool:
        """End the process if patience is over; whether it was."""
        if self._patience_s is None or self._clock() - self._last < self._patience_s:
            return False
        self._stacks.parent.mkdir(parents=True, exist_ok=True)
        with self._stacks.open("w") as stream:
            stream.write(f"no update for {self._patience_s:g} s\n")
            stream.flush()
            faulthandler.dump_traceback(stream, all_threads=True)
        self._end(HANG_EXIT_CODE)
        return True

    def _watch(self) -> None:
        assert self._patience_s is not None  # ``start`` is the only caller
        while not self._over.wait(min(5.0, self._patience_s / 4)):
            if self.look():
                return
