"""Would a run work on this cluster? What ``mpq doctor --address`` looks at.

Asked in the order in which a run would stumble: is there something at the address, does it turn
strangers away, does it take our token and our versions, and does every node have the same Python,
the same packages, the run folder, an end to restarts and the GPUs that Ray hands out there.
"""

from __future__ import annotations

import platform
from collections.abc import Iterator
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

from orchestrator.checkup import Check
from orchestrator.cluster_probe import PACKAGES, NodeReport, probe_nodes
from orchestrator.head_watch import can_connect
from orchestrator.open_cluster import door_of, place_of


def cluster_checkup(address: str, runs_dir: str) -> Iterator[Check]:
    """Look at the running cluster at ``host:port`` or ``auto``, from outside to inside.

    Stops at the first thing without which the next cannot be looked at.
    """
    from orchestrator.cluster import set_environment
    from orchestrator.errors import UserError
    from orchestrator.private import ensure_token

    set_environment()
    place = place_of(address)
    reached = reachable(address, place)
    yield reached
    if reached.grade == "fail":
        return
    door = door_check(place)
    yield door
    if door.grade == "fail":
        return  # our token is not shown to a cluster that no run would join
    folder = Path(runs_dir).absolute()
    try:
        ensure_token()
        folder.mkdir(parents=True, exist_ok=True)
    except (UserError, OSError) as error:
        yield Check(name="run folder", grade="fail", found=str(error).splitlines()[0],
                    advice="choose a --runs-dir that can be written")  # fmt: skip
        return
    import ray

    try:
        ray.init(address=place, log_to_driver=False, logging_level="ERROR")
    except Exception as error:
        yield refused(str(error))
        return
    try:
        yield Check(name="token", grade="ok", found="accepted")
        for report in probe_nodes(folder):
            yield from node_checks(report, folder, own_versions(), platform.python_version())
    finally:
        ray.shutdown()


def reachable(address: str, place: str) -> Check:
    """Whether something listens there."""
    if not place:
        none = address == "auto"
        found = "no cluster on this machine" if none else f"{address!r} is not host:port"
        advice = "start one: ray start --head" if none else (
            "give the address of the control store, like 10.0.0.1:6379, or auto; an http:// "
            "address is for mpq submit"
        )  # fmt: skip
        return Check(name="address", grade="fail", found=found, advice=advice)
    if not can_connect(place):
        return Check(name="address", grade="fail", found=f"nothing answers at {place}",
                     advice="wrong address, a closed port, or the cluster is down: ray status "
                     "on the head")  # fmt: skip
    return Check(name="address", grade="ok", found=f"{place} answers")


def door_check(place: str) -> Check:
    """Whether callers without a token are turned away, as a run asks before it joins."""
    door = door_of(place)
    if door == "closed":
        return Check(name="strangers", grade="ok", found="turned away without a token")
    found = (
        "the cluster answers callers without a token"
        if door == "open"
        else "whether it asks for a token cannot be told; is it Ray's control store?"
    )
    advice = (
        "start it with RAY_AUTH_MODE=token on every node (docs/cluster.md): anyone who reaches its "
        "ports can run code as you; runs join it only with --set cluster.insecure=true"
    )
    return Check(name="strangers", grade="fail", found=found, advice=advice)


def refused(told: str) -> Check:
    """Why Ray did not let us in: versions, else most likely the token."""
    lines = [line.strip() for line in told.splitlines() if line.strip()] or ["no reason given"]
    if "version mismatch" in told.lower():
        return Check(name="versions", grade="fail", found=" ".join(lines)[:300],
                     advice="install the cluster's versions of Ray and Python here")  # fmt: skip
    # Ray tells a wrong token as "Failed to connect". The port answers and turns strangers away, so
    # little else is left.
    return Check(name="token", grade="fail", found=lines[0][:200],
                 advice="most likely another token than the cluster's: copy that to "
                 "~/.ray/auth_token (mode 600) or set RAY_AUTH_TOKEN")  # fmt: skip


def own_versions() -> dict[str, str]:
    """Of the packages that must be alike, on this machine."""
    found = {}
    for name in PACKAGES:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            found[name] = ""
    return found


def node_checks(
    report: NodeReport, folder: Path, ours: dict[str, str], python: str
) -> Iterator[Check]:
    """What one node's answers mean for a run; pure."""
    name = f"node {report.node}"
    if report.error:
        yield Check(name=name, grade="fail", found=report.error,
                    advice="see `ray status` and the node's logs")  # fmt: skip
        return
    same = report.python.split(".")[:2] == python.split(".")[:2]
    # Another patch version on a node works; of the driver, Ray refuses it before we get here.
    alike = report.python == python
    yield Check(
        name=f"{name} python", grade="ok" if alike else "warn" if same else "fail",
        found=report.python, advice="" if alike else f"the driver has {python}",
    )  # fmt: skip
    told = ", ".join(f"{p} {v or 'missing'}" for p, v in report.versions.items())
    wrong = [p for p, v in report.versions.items() if v != ours.get(p)]
    advice = ", ".join(f"{p} {ours.get(p) or 'missing'}" for p in wrong)
    yield Check(
        name=f"{name} packages", grade="fail" if wrong else "ok", found=told,
        advice=f"the driver has {advice}; install the same on every node" if wrong else "",
    )  # fmt: skip
    yield Check(
        name=f"{name} run folder", grade="ok" if report.shared else "fail",
        found=f"{folder} {'is shared' if report.shared else 'is not what the driver sees there'}",
        advice="" if report.shared else "mount one folder under this path on every node, for the "
        "user that Ray runs as, and give it as --runs-dir",
    )  # fmt: skip
    yield Check(
        name=f"{name} restarts", grade="ok" if report.oom_retries else "warn",
        found=f"RAY_task_oom_retries={report.oom_retries or '(not set)'}",
        advice="" if report.oom_retries else "export RAY_task_oom_retries=1 before `ray start` "
        "there: Ray runs a task that ran out of memory again without end",
    )  # fmt: skip
    yield _gpus(report, name)


def _gpus(report: NodeReport, name: str) -> Check:
    offered, devices, seen = report.gpus_offered, report.devices, report.torch_gpus
    if offered and seen != offered:
        return Check(
            name=f"{name} GPUs", grade="fail",
            found=f"Ray hands out {offered}, torch sees {seen if seen is not None else 'none'}",
            advice="a driver or a build of torch without CUDA, or a wrong --num-gpus",
        )  # fmt: skip
    if not offered and devices:
        return Check(
            name=f"{name} GPUs", grade="warn", found=f"{devices} device files, none in Ray",
            advice="ray start --num-gpus=N there, if runs are to use them",
        )  # fmt: skip
    return Check(name=f"{name} GPUs", grade="ok", found=f"{offered}, as torch sees" if offered
                 else "none")  # fmt: skip
