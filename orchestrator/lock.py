"""Who is running this run? At most one process, and everyone else learns which.

The lock is a file made with O_EXCL that names its owner. Its modification time is a heartbeat,
compared with itself only, never with a clock. A lock whose owner is a dead process of this boot
of this machine, or of an earlier one, is stale at once; any other is stale when its heartbeat stood
still for ``GRACE_S`` by this process's monotonic clock. Taking a stale lock over is a read and a
write, so it happens under ``flock`` on a guard file that stays. An owner that stood still so long
(a paused machine, a file server that was away) may go on later: it asks ``check`` before it writes.
"""

from __future__ import annotations

import fcntl
import hashlib
import json
import os
import re
import secrets
import socket
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from datetime import UTC, datetime
from pathlib import Path
from types import TracebackType
from typing import Any

import psutil

from orchestrator.errors import LockedError, ResourceError

HEARTBEAT_S = 5.0
# Six heartbeats, and longer than the attribute cache of a default NFS mount for an open file.
GRACE_S = 30.0


class RunLock:
    """The lock of one run; a context manager.

    Attributes:
        notices: a takeover from a dead owner, for the user and the journal.
    """

    def __init__(
        self,
        path: Path,
        *,
        grace_s: float = GRACE_S,
        heartbeat_s: float = HEARTBEAT_S,
        clock: Callable[[], float] = time.monotonic,
        sleep: Callable[[float], None] = time.sleep,
    ) -> None:
        self._path = path
        self._guard = path.with_name(path.name + ".guard")
        self._grace_s, self._heartbeat_s = grace_s, heartbeat_s
        self._clock, self._sleep = clock, sleep
        self._handle, self._token = -1, ""
        self._stop = threading.Event()
        self._thread: threading.Thread | None = None
        self.notices: tuple[str, ...] = ()

    def __enter__(self) -> RunLock:
        self.acquire()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.release()

    def acquire(self) -> None:
        """Take the lock, from a dead owner if need be.

        Raises:
            LockedError: somebody alive holds it.
        """
        self._path.parent.mkdir(parents=True, exist_ok=True)
        standstill: tuple[str, int, float] | None = None  # owner's token, heartbeat, since when
        while True:
            with self._guarded():
                seen = _read(self._path)
                if seen is None:
                    self._create()
                    break
                owner, heartbeat = seen
                verdict = _owner_is_gone(owner)
                token = str(owner.get("token"))
                if verdict is None and standstill is not None and standstill[0] == token:
                    if heartbeat != standstill[1]:
                        verdict = ""
                    elif self._clock() - standstill[2] >= self._grace_s:
                        verdict = f"its heartbeat stood still for {self._grace_s:g} s"
                if verdict:
                    self._path.unlink()
                    self._create()
                    told = _told(owner)
                    self.notices = (f"lock: taken over from {told}: {verdict}",)
                    break
            if verdict == "":
                raise LockedError(
                    "this run is already running",
                    str(self._path.parent),
                    f"held by {_told(owner)}",
                    "wait for it, stop it, or start a run under another name",
                )
            if standstill is None or standstill[0] != token:
                standstill = (token, heartbeat, self._clock())
            self._sleep(min(1.0, self._grace_s / 4))
        self._thread = threading.Thread(target=self._beat, name="run-lock", daemon=True)
        self._thread.start()

    def release(self) -> None:
        """Give it back; removes the file only if it is still ours."""
        self._stop.set()
        if self._thread is not None:
            self._thread.join()
            self._thread = None
        if self._handle >= 0:
            with self._guarded():
                if self.held():
                    self._path.unlink()
            os.close(self._handle)
            self._handle = -1

    def held(self) -> bool:
        """Whether the file is still the one this process made.

        By its content: a file server gives the number of a removed file to the next one, and tells
        who only looks at a name what it told before.
        """
        seen = _read(self._path)
        return seen is not None and seen[0].get("token") == self._token

    def check(self) -> None:
        """Make sure that nobody took the run over, before something is written for good.

        Raises:
            LockedError: somebody did.
        """
        if self._handle < 0 or not self.held():
            raise LockedError(
                "this run was taken over by another process",
                str(self._path.parent),
                "this process did not give a sign of life for too long",
                "let the other one finish; nothing more is written here",
            )

    def _create(self) -> None:
        owner = _myself()
        self._token = owner["token"]
        self._handle = os.open(self._path, os.O_RDWR | os.O_CREAT | os.O_EXCL, 0o666)
        os.write(self._handle, json.dumps(owner).encode())
        os.fsync(self._handle)

    def _beat(self) -> None:
        while not self._stop.wait(self._heartbeat_s):
            # One missed beat does no harm, and ``check`` sees a lock that was lost over it.
            with suppress(OSError):
                os.utime(self._handle)

    @contextmanager
    def _guarded(self) -> Iterator[None]:
        handle = os.open(self._guard, os.O_RDWR | os.O_CREAT, 0o666)
        try:
            try:
                fcntl.flock(handle, fcntl.LOCK_EX)
            except OSError as error:
                raise ResourceError(
                    "the file system of the run folder cannot lock files", str(self._guard),
                    error.strerror or str(error), "put runs_dir on one that can (flock)",
                ) from error  # fmt: skip
            yield
        finally:
            os.close(handle)


def lock_owner(path: Path) -> Mapping[str, Any] | None:
    """Who holds the lock, as far as this host can tell; None when nobody alive does."""
    seen = _read(path)
    if seen is None or _owner_is_gone(seen[0]):
        return None
    return seen[0]


def is_here(owner: Mapping[str, Any]) -> bool:
    """Whether the owner's process number means the owner to us too, so that it may be signalled.

    A container may share the host's name and not its process numbers.
    """
    return _owner_is_gone(owner) == ""


def _read(path: Path) -> tuple[dict[str, Any], int] | None:
    """The owner and the heartbeat; an unreadable owner is an empty one."""
    try:
        # Opened, not only looked at: opening makes NFS fetch fresh attributes.
        with path.open("rb") as stream:
            heartbeat = os.fstat(stream.fileno()).st_mtime_ns
            text = stream.read(65536)
    except FileNotFoundError:
        return None
    try:
        owner = json.loads(text)
    except ValueError:
        owner = {}
    return (owner if isinstance(owner, dict) else {}), heartbeat


def _owner_is_gone(owner: Mapping[str, Any]) -> str | None:
    """Why the owner is surely dead; "" when it is surely alive; None when only time can tell."""
    if not owner:
        # Files are filled under the guard, so an empty one has lost its maker.
        return "it was killed while taking the lock"
    if owner.get("host") != socket.gethostname():
        return None
    if owner.get("boot_id") != _boot_id():
        # Clones of one virtual machine share its name, and both may be up.
        machine = _machine_id()
        same = machine and owner.get("machine_id") == machine
        return "the machine was restarted since" if same else None
    if owner.get("pid_space") != _pid_space():
        return None
    started = _process_started(int(owner.get("pid", 0)))
    if started is None:
        return "its process is gone"
    if started != owner.get("process_started"):
        return "its process is gone and its number belongs to another"
    return ""


def _told(owner: Mapping[str, Any]) -> str:
    if not owner:
        return "an unnamed process"
    return f"process {owner.get('pid')} on {owner.get('host')} since {owner.get('since_utc')}"


def _myself() -> dict[str, Any]:
    return {
        "schema": "lock/1",
        "host": socket.gethostname(),
        "pid": os.getpid(),
        "process_started": _process_started(os.getpid()),
        "machine_id": _machine_id(),
        "boot_id": _boot_id(),
        "pid_space": _pid_space(),
        "since_utc": datetime.now(UTC).isoformat(timespec="seconds"),
        "command": os.path.basename(sys.argv[0]) if sys.argv else "",
        "token": secrets.token_hex(8),
    }


def _machine_id() -> str:
    """A mark of this machine, empty where it has none (an image that was never booted).

    A hash, as systemd asks of whoever writes its id where others can read it.
    """
    path = Path("/etc/machine-id")
    text = path.read_text().strip() if path.is_file() else ""
    if not re.fullmatch("[0-9a-f]{32}", text):
        return ""
    return hashlib.sha256(f"mpq lock {text}".encode()).hexdigest()[:16]


def _boot_id() -> str:
    path = Path("/proc/sys/kernel/random/boot_id")
    return path.read_text().strip() if path.exists() else f"{psutil.boot_time():.0f}"


def _pid_space() -> str:
    """Process numbers mean something only inside one container."""
    path = "/proc/self/ns/pid"
    return os.readlink(path) if os.path.exists(path) else ""


def _process_started(pid: int) -> str | None:
    """A mark of when that process started; None when there is no such process.

    On Linux in ticks since boot: psutil's ``create_time`` adds the boot time of the wall clock,
    which moves when the clock is set.
    """
    try:
        if sys.platform == "linux":
            after_name = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2]
            return after_name.split()[19]
        return f"{psutil.Process(pid).create_time():.0f}"
    except (OSError, psutil.NoSuchProcess):
        return None
