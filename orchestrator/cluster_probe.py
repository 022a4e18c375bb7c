"""What does each node of a cluster say of itself? A small task on every one of them.

The task asks for no CPU, so a busy node answers too, and travels by value, so a node without this
project can say that it lacks it.
"""

from __future__ import annotations

import os
import secrets
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

PACKAGES = ("mpq-orchestrator", "ray", "torch")
# A worker that imports torch on a slow file server; a node that has not answered by then is amiss.
ANSWER_WITHIN_S = 120.0
# Ray's spelling of it.
OOM_RETRIES = "RAY_task_oom_retries"
PROBE_FILE = ".mpq-doctor-"


@dataclass(frozen=True, kw_only=True, slots=True)
class NodeReport:
    """What one node says.

    Attributes:
        node: its address, and its host name where it answered.
        gpus_offered: GPUs that Ray hands out there.
        error: why it did not answer; the rest is empty then.
        python: version, like ``3.11.7``.
        versions: installed version by package, empty for a package that is missing.
        devices: NVIDIA device files of the node.
        torch_gpus: GPUs that torch sees in a worker that was given all of them; None = not asked.
        oom_retries: its ``RAY_task_oom_retries``; empty = not set.
        shared: whether it read what the driver left in the run folder, and the driver its answer.
    """

    node: str
    gpus_offered: int = 0
    error: str = ""
    python: str = ""
    versions: Mapping[str, str] = field(default_factory=dict)
    devices: int = 0
    torch_gpus: int | None = None
    oom_retries: str = ""
    shared: bool = False


def probe_nodes(folder: Path) -> tuple[NodeReport, ...]:
    """Ask every living node of the connected cluster; ``folder`` is where runs are kept."""
    import ray
    from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

    word = secrets.token_hex(8)
    mark = folder / f"{PROBE_FILE}{word}"
    reports = []
    mark.write_text(word)
    try:
        nodes = [node for node in ray.nodes() if node["Alive"]]
        asked = []
        for number, node in enumerate(nodes):
            gpus = int(node["Resources"].get("GPU", 0))
            task = ray.remote(num_cpus=0, max_retries=0)(_question()).options(
                num_gpus=gpus,
                scheduling_strategy=NodeAffinitySchedulingStrategy(node["NodeID"], soft=False),
            )
            answer = f"{mark}-{number}"
            asked.append((node, gpus, answer, task.remote(PACKAGES, str(mark), answer, gpus > 0)))
        for node, gpus, answer, ref in asked:
            reports.append(_report(node["NodeManagerAddress"], gpus, word, Path(answer), ref))
    finally:
        for path in folder.glob(f"{mark.name}*"):
            path.unlink(missing_ok=True)
    return tuple(reports)


def _report(node: str, gpus: int, word: str, answer: Path, ref: Any) -> NodeReport:
    import ray

    try:
        said = ray.get(ref, timeout=ANSWER_WITHIN_S)
    except ray.exceptions.GetTimeoutError:
        ray.cancel(ref, force=True)
        busy = ", or its GPUs are in use" if gpus else ""
        why = f"no answer within {ANSWER_WITHIN_S:g} s: no worker started there{busy}"
        return NodeReport(node=node, gpus_offered=gpus, error=why)
    except Exception as error:
        lines = str(error).strip().splitlines() or [type(error).__name__]
        return NodeReport(node=node, gpus_offered=gpus, error=lines[-1][:200])
    # Listing the folder makes an NFS client look again before it says that there is no such file.
    came_back = answer.name in os.listdir(answer.parent) and answer.read_text() == word
    return NodeReport(
        node=f"{said['host']} ({node})",
        gpus_offered=gpus,
        python=said["python"],
        versions=said["versions"],
        devices=said["devices"],
        torch_gpus=said["torch_gpus"],
        oom_retries=said["oom_retries"],
        shared=said["read"] == word and came_back,
    )


def _question() -> Callable[[Sequence[str], str, str, bool], dict[str, Any]]:
    """The task; nested, because Ray sends a nested function by value and others by name."""

    def question(packages: Sequence[str], mark: str, answer: str, ask_torch: bool) -> Any:
        import glob
        import os
        import platform
        import socket
        from importlib.metadata import PackageNotFoundError, version

        versions = {}
        for name in packages:
            try:
                versions[name] = version(name)
            except PackageNotFoundError:
                versions[name] = ""
        torch_gpus = None
        if ask_torch and versions.get("torch"):
            import torch

            torch_gpus = torch.cuda.device_count()
        read = ""
        try:
            with open(mark) as stream:
                read = stream.read()
            with open(answer, "w") as stream:
                stream.write(read)
        except OSError:
            read = ""  # told as a folder that is not shared
        return {
            "host": socket.gethostname(), "python": platform.python_version(),
            "versions": versions, "torch_gpus": torch_gpus, "read": read,
            "devices": len(glob.glob("/dev/nvidia[0-9]*")),
            "oom_retries": os.environ.get(OOM_RETRIES, ""),
        }  # fmt: skip

    return question
