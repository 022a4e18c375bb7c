"""What does a mirror remember, and how do two mirrors keep out of each other's way?"""

from __future__ import annotations

import fcntl
import json
import os
import stat
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from solvers.atomic import write_atomically

STATE_FILE = "mirror.json"
_SCHEMA = "mirror/1"


class MirrorError(Exception):
    """MLflow cannot take what is to be mirrored; the message says why."""


@dataclass(slots=True)
class MirrorState:
    """What one address is known to have of one run; only a hint, since a database may be lost.

    Attributes:
        uri: the address, without secrets.
        mirrored: identities of records.
        files: path below the run folder -> hash of what was sent.
    """

    uri: str
    mirrored: set[str] = field(default_factory=set)
    files: dict[str, str] = field(default_factory=dict)


def read_state(folder: Path, uri: str) -> MirrorState:
    """What is remembered of this address; another address starts from nothing."""
    try:
        body = json.loads((folder / STATE_FILE).read_text())
        if body["schema"] == _SCHEMA and body["uri"] == uri:
            return MirrorState(uri=uri, mirrored=set(body["mirrored"]), files=dict(body["files"]))
    except (OSError, ValueError, KeyError, TypeError):
        # Absent or unreadable: the index in MLflow says what is there, and nothing is added twice.
        return MirrorState(uri=uri)
    return MirrorState(uri=uri)


def write_state(folder: Path, state: MirrorState) -> None:
    """Remember."""
    body = {
        "schema": _SCHEMA, "uri": state.uri, "mirrored": sorted(state.mirrored),
        "files": state.files,
    }  # fmt: skip
    write_atomically(folder / STATE_FILE, json.dumps(body, indent=1, sort_keys=True))


@contextmanager
def exclusive(path: Path, timeout_s: float) -> Iterator[None]:
    """Hold ``path`` against other processes and threads.

    Raises:
        MirrorError: somebody else held it all the time.
    """
    handle = _open_for_the_group(path)
    deadline = time.monotonic() + timeout_s
    try:
        while True:
            try:
                fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError as error:
                if time.monotonic() >= deadline:
                    raise MirrorError(f"another process is mirroring ({path.name})") from error
                time.sleep(0.1)
        yield
    finally:
        os.close(handle)


def _open_for_the_group(path: Path) -> int:
    """A file to lock, made if need be.

    NFS locks only what is open for writing, so a group that may read it (MPQ_UMASK=027) may write
    it too; nothing ever stands in it.
    """
    handle = os.open(path, os.O_RDWR | os.O_CREAT, 0o666)
    there = os.fstat(handle)
    mode = stat.S_IMODE(there.st_mode)
    wanted = mode | (mode & stat.S_IRGRP) >> 1
    if wanted != mode and there.st_uid == os.geteuid():
        os.fchmod(handle, wanted)
    return handle
