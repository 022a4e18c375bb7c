"""Is this machine fit to run experiments, and safely? What ``mpq doctor`` looks at."""

from __future__ import annotations

import fcntl
import os
import re
import shutil
import stat
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Literal

import psutil

from orchestrator.private import readable_by_others, token_path

Grade = Literal["ok", "warn", "fail"]

# Lowest versions and what is wrong below them; the same bounds as in pyproject.toml.
FLOORS: dict[str, tuple[str, str]] = {
    "ray": ("2.60", "older ones start clusters without token authentication"),
    "torch": ("2.10", "older ones can run code while loading weights_only checkpoints"),
    "torchvision": ("0.25", "must be of torch's release"),
    "mlflow": ("3.17.2", "older ones have path traversals in their stores"),
    "pulp": ("3.3", "the solver interface used here"),
    "highspy": ("1.13", "HiGHS for one limit"),
    "pyarrow": ("17", "Parquet files"),
    "numpy": ("2", "arrays"),
    "pydantic": ("2.7", "experiment files"),
}
MIN_FREE_GIB = 2.0
# Measured: a Ray worker with torch keeps 0.9 GiB; the quick start has two, a driver and Ray.
MIN_MEMORY_GIB = 6.0


@dataclass(frozen=True, kw_only=True, slots=True)
class Check:
    """One thing looked at.

    Attributes:
        name: what.
        grade: ok, warn (works, but) or fail (a run will not work).
        found: what was found.
        advice: what to do; empty when ok.
    """

    name: str
    grade: Grade
    found: str
    advice: str = ""


def checkup(runs_dir: str) -> tuple[Check, ...]:
    """Look at versions, machine, storage and security settings; imports nothing heavy."""
    return (
        _python(),
        *_versions(),
        _memory(),
        _shared_memory(),
        *_storage(Path(runs_dir)),
        *_security(),
        *_privacy(Path(runs_dir)),
    )


def _python() -> Check:
    found = ".".join(map(str, sys.version_info[:3]))
    fit = sys.version_info >= (3, 11)
    return Check(name="python", grade="ok" if fit else "fail", found=found,
                 advice="" if fit else "use Python 3.11 or newer")  # fmt: skip


def _versions() -> Iterator[Check]:
    for name, (floor, why) in FLOORS.items():
        try:
            found = version(name)
        except PackageNotFoundError:
            yield Check(name=name, grade="fail", found="not installed",
                        advice="install mpq-orchestrator with its dependencies")  # fmt: skip
            continue
        fit = _numbers(found) >= _numbers(floor)
        advice = "" if fit else f"install {name} >= {floor}: {why}"
        yield Check(name=name, grade="ok" if fit else "fail", found=found, advice=advice)


def _memory() -> Check:
    total = psutil.virtual_memory().available / 2**30
    fit = total >= MIN_MEMORY_GIB
    advice = "" if fit else "0.9 GiB per worker are needed, and 2 GiB for the driver and Ray"
    found = f"{total:.1f} GiB available, {os.cpu_count()} cores"
    return Check(name="memory", grade="ok" if fit else "warn", found=found, advice=advice)


def _shared_memory() -> Check:
    path = Path("/dev/shm")
    if not path.is_dir():
        return Check(name="shared memory", grade="ok", found="not used on this system")
    free = shutil.disk_usage(path).free / 2**30
    fit = free >= 1.0
    advice = "" if fit else "start the container with --shm-size=2g; Ray keeps its objects there"
    return Check(name="shared memory", grade="ok" if fit else "warn",
                 found=f"{free:.1f} GiB free in /dev/shm", advice=advice)  # fmt: skip


def _storage(runs_dir: Path) -> Iterator[Check]:
    folder = next(p for p in (runs_dir.absolute(), *runs_dir.absolute().parents) if p.is_dir())
    free = shutil.disk_usage(folder).free / 2**30
    yield Check(name="disk", grade="ok" if free >= MIN_FREE_GIB else "warn",
                found=f"{free:.1f} GiB free for {runs_dir}",
                advice="" if free >= MIN_FREE_GIB else "checkpoints may not fit")  # fmt: skip
    try:
        with tempfile.TemporaryFile(dir=folder) as stream:
            stream.write(b"x")
            os.fsync(stream.fileno())
            fcntl.flock(stream, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        yield Check(name="runs_dir", grade="fail", found=f"{folder}: {error.strerror}",
                    advice="choose a runs_dir that can be written and locked (flock)")  # fmt: skip
    else:
        yield Check(name="runs_dir", grade="ok", found=f"{folder} can be written and locked")
    kind = _file_system(folder)
    network = kind in ("nfs", "nfs4", "cifs", "smb3", "fuse.sshfs", "9p")
    advice = "set tracking.uri to a server: SQLite must not lie on a network file system"
    yield Check(name="file system", grade="warn" if network else "ok", found=kind,
                advice=advice if network else "")  # fmt: skip


def _security() -> Iterator[Check]:
    mode = os.environ.get("RAY_AUTH_MODE", "token (set by the tool)")
    fit = mode.startswith("token")
    yield Check(name="RAY_AUTH_MODE", grade="ok" if fit else "warn", found=mode,
                advice="" if fit else "anyone who reaches the cluster's ports can run code; "
                "unset it or set it to token")  # fmt: skip
    path = token_path()
    if os.environ.get("RAY_AUTH_TOKEN"):
        yield Check(name="Ray token", grade="ok", found="in RAY_AUTH_TOKEN")
    elif path.is_file():
        private = not readable_by_others(path)
        grade: Grade = "ok" if private else "warn"
        found = f"{path}, mode {stat.S_IMODE(path.stat().st_mode):o}"
        advice = "" if private else f"chmod 600 {path}; the next run does it"
        yield Check(name="Ray token", grade=grade, found=found, advice=advice)
    else:
        yield Check(name="Ray token", grade="ok", found="none yet; the first run makes one")
    address = os.environ.get("RAY_ADDRESS")
    if address:
        yield Check(name="RAY_ADDRESS", grade="warn", found=address,
                    advice="runs on one machine ignore it; Ray's own tools do not")  # fmt: skip


def _privacy(runs_dir: Path) -> Iterator[Check]:
    """Who else may read runs, or write into them and so steer them."""
    open_runs = [
        path.name
        for path in (sorted(runs_dir.iterdir()) if runs_dir.is_dir() else [])
        if (path / "journal.jsonl").is_file() and readable_by_others(path)
    ]
    told = f"{', '.join(open_runs[:5])} can be read by others" if open_runs else "the owner's alone"
    advice = f"chmod -R go= {runs_dir}, unless a group shares them (MPQ_UMASK)"
    yield Check(name="run folders", grade="warn" if open_runs else "ok", found=told,
                advice=advice if open_runs else "")  # fmt: skip
    if runs_dir.is_dir() and runs_dir.stat().st_mode & (stat.S_IWOTH | stat.S_IWGRP):
        mode = stat.S_IMODE(runs_dir.stat().st_mode)
        grade: Grade = "fail" if mode & stat.S_IWOTH and not mode & stat.S_ISVTX else "warn"
        yield Check(name="runs_dir mode", grade=grade, found=f"{mode:o}",
                    advice="whoever writes there can steer runs: chmod go-w")  # fmt: skip
    if os.environ.get("MLFLOW_TRACKING_INSECURE_TLS"):
        yield Check(name="MLflow TLS", grade="warn", found="MLFLOW_TRACKING_INSECURE_TLS is set",
                    advice="the tracking server's certificate is not checked")  # fmt: skip


def _file_system(folder: Path) -> str:
    mounts = [p for p in psutil.disk_partitions(all=True) if folder.is_relative_to(p.mountpoint)]
    return max(mounts, key=lambda p: len(p.mountpoint)).fstype if mounts else "unknown"


def _numbers(text: str) -> tuple[int, ...]:
    return tuple(int(part) for part in re.findall(r"\d+", text.partition("+")[0])[:3])
