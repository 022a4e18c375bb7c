"""On what was a run made? Versions and machine, for the journal and the report."""

from __future__ import annotations

import os
import platform
import subprocess
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

LIBRARIES = (
    "mpq-orchestrator", "torch", "torchvision", "ray", "mlflow", "pulp", "highspy", "pyarrow",
    "numpy",
)  # fmt: skip


def library_versions() -> dict[str, str]:
    """Version of every library that decides results, read without importing them."""
    found = {"python": platform.python_version()}
    for name in LIBRARIES:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            found[name] = "not installed"
    return found


def code_commit() -> str:
    """The commit of the checkout that this code runs from, with a ``+`` where files differ from it.

    Empty for an installed copy, and where git is absent or refuses the folder.
    """
    root = Path(__file__).resolve().parents[1]
    if not (root / ".git").exists():
        return ""  # a repository further up is another project's
    told = []
    for asked in (("rev-parse", "HEAD"), ("status", "--porcelain", "--untracked-files=no")):
        try:
            done = subprocess.run(["git", "-C", str(root), *asked], capture_output=True, text=True,
                                  timeout=10, check=True)  # fmt: skip
        except (OSError, subprocess.SubprocessError):
            return ""
        told.append(done.stdout.strip())
    return f"{told[0]}{'+' if told[1] else ''}"


def machine_facts() -> dict[str, str | int | float]:
    """Cores, memory, processor and system of the machine that drives the run."""
    import psutil

    return {
        "cores": os.cpu_count() or 0,
        "memory_gib": round(psutil.virtual_memory().total / 2**30, 1),
        "processor": _processor(),
        "system": f"{platform.system()} {platform.machine()}",
    }


def _processor() -> str:
    """The model name where the system tells it."""
    try:
        with open("/proc/cpuinfo") as file:
            names = [line.partition(":")[2].strip() for line in file if "model name" in line]
    except OSError:
        names = []
    return names[0] if names else platform.processor() or "unknown"
