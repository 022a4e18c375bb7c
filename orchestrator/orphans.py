"""Who ends a run's own Ray processes when the driver was killed and could not?

The kernel ends raylet and control store together with the driver. Ray's workers are left to notice:
once a second they ask whether the raylet's process id still exists, and it does for as long as
nobody collects the dead raylet. The first process of many containers never does, and there idle
workers stayed (measured: two of them for the 180 s that were watched, 100 MB each). Ray's agents
first try for a minute to tell the dead control store.

So a small process in a session of its own holds the reading end of a pipe. When the pipe closes,
however the driver ended, it ends what is left of the cluster: every process with this cluster's
mark, a random value, in its environment; and those that were below such a process when the cluster
had started, by process id and start time (an agent's title is written over its environment).
Neither a name nor an id that somebody else got meanwhile decides, and the signal goes to a handle
that was taken before the process was looked at.

This file is also that process's program, run by its path without site packages: it may import
nothing but the standard library.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

MARK = "MPQ_CLUSTER_MARK"
# After a whole end of the cluster its processes take a moment to go; after a kill nothing is owed.
PATIENCE_S = 10.0
# What cannot be ended within this time (a call into the kernel that does not return) is left.
GIVE_UP_S = 60.0
_LOOK_EVERY_S = 0.2
_WHOLE_END = b"over\n"
_PROC = Path("/proc")

# Process id and start time in clock ticks since the machine started: together they are one process.
Known = frozenset[tuple[int, int]]


@contextmanager
def orphans_ended(*, supported: bool = sys.platform == "linux") -> Iterator[Callable[[], None]]:
    """A cluster started within the block does not outlive this process, even if it is killed.

    Yields:
        What to call when the cluster has started: notes its processes.

    Elsewhere than on Linux 5.3 or newer, whose ``/proc`` and handles of processes this needs,
    Ray's own means are all there is.
    """
    if not supported:
        yield lambda: None
        return
    before, mark = os.environ.get(MARK), os.urandom(16).hex()
    # Started before the mark is set, so that it never counts itself.
    guard = subprocess.Popen(
        [sys.executable, "-I", "-S", __file__, mark],
        stdin=subprocess.PIPE, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
        start_new_session=True, cwd="/", bufsize=0,
    )  # fmt: skip
    pipe = guard.stdin
    assert pipe is not None
    os.environ[MARK] = mark

    def tell(text: bytes) -> None:
        # Somebody may have ended it; then there is nobody to tell.
        with suppress(BrokenPipeError):
            pipe.write(text)

    def note() -> None:
        tell(b"".join(b"%d %d\n" % one for one in sorted(cluster_of(mark))))

    try:
        yield note
    finally:
        if before is None:
            del os.environ[MARK]
        else:
            os.environ[MARK] = before
        tell(_WHOLE_END)
        pipe.close()
        guard.wait()


def cluster_of(mark: str) -> Known:
    """The processes that carry the mark, and everything below them."""
    table = _processes()
    found = {pid for pid in table if _carries(mark, pid)}
    grown = True
    while grown:
        below = {pid for pid, (parent, _) in table.items() if parent in found} - found
        found |= below
        grown = bool(below)
    return frozenset((pid, table[pid][1]) for pid in found)


def living(mark: str, known: Known) -> Iterator[int]:
    """Handles of the living processes of a cluster; the caller closes each.

    A handle is taken before its process is looked at: if that ends in between and its id is given
    away, the handle still means the one that ended.
    """
    for pid in _processes():
        try:
            handle = os.pidfd_open(pid)
        except OSError:  # gone
            continue
        now = _processes([pid]).get(pid)
        if now is not None and ((pid, now[1]) in known or _carries(mark, pid)):
            yield handle
        else:
            os.close(handle)


def end_cluster(mark: str, known: Known, patience_s: float, *, give_up_s: float = GIVE_UP_S) -> int:
    """Wait for a cluster's processes to end, then end them; returns how many signals that took."""
    began = time.monotonic()
    sent = 0
    while True:
        passed = time.monotonic() - began
        handles = list(living(mark, known))
        for handle in handles:
            if passed >= patience_s:
                with suppress(ProcessLookupError):
                    signal.pidfd_send_signal(handle, signal.SIGKILL)
                    sent += 1
            os.close(handle)
        if not handles or passed >= patience_s + give_up_s:
            return sent
        time.sleep(_LOOK_EVERY_S)


def _processes(pids: list[int] | None = None) -> dict[int, tuple[int, int]]:
    """Parent and start time by process id, of what is alive and no zombie."""
    if pids is None:
        pids = [int(name) for name in os.listdir(_PROC) if name.isdigit()]
    found = {}
    for pid in pids:
        with suppress(OSError):  # gone meanwhile
            # The name in brackets may hold anything, brackets included.
            fields = (_PROC / str(pid) / "stat").read_text().rpartition(")")[2].split()
            if fields[0] not in "ZX" and pid != os.getpid():
                found[pid] = int(fields[1]), int(fields[19])
    return found


def _carries(mark: str, pid: int) -> bool:
    try:
        environment = (_PROC / str(pid) / "environ").read_bytes()
    except OSError:  # gone, or somebody else's
        return False
    return f"{MARK}={mark}".encode() in environment.split(b"\0")


def main(mark: str) -> None:
    """Wait for the driver's end, then see to what it left."""
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)  # a terminal's or a supervisor's, for the driver
    known = set()
    patience_s = 0.0
    for line in sys.stdin.buffer:
        if line == _WHOLE_END:
            patience_s = PATIENCE_S
        elif line.endswith(b"\n"):  # a driver that is killed may leave half a line
            pid, _, ticks = line.partition(b" ")
            known.add((int(pid), int(ticks)))
    end_cluster(mark, frozenset(known), patience_s)


if __name__ == "__main__":
    main(sys.argv[1])
