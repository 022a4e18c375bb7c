"""Do the container file and the KubeRay manifest keep to what docs/cluster.md promises?"""

from __future__ import annotations

import re
import shlex
from pathlib import Path
from typing import Any

import pytest
import yaml

from orchestrator.cluster import set_environment

ROOT = Path(__file__).resolve().parents[1]
DOCUMENTS: dict[str, dict[str, Any]] = {
    document["kind"]: document
    for document in yaml.safe_load_all((ROOT / "kuberay.yaml").read_text())
}
CLUSTER = DOCUMENTS["RayCluster"]["spec"]
GROUPS = [CLUSTER["headGroupSpec"], *CLUSTER["workerGroupSpecs"]]
DOCKERFILE = (ROOT / "Dockerfile").read_text()


def instructions() -> list[tuple[str, str]]:
    """Keyword and rest of every instruction, continued lines joined."""
    text = re.sub(r"\\\n", " ", "\n".join(
        line for line in DOCKERFILE.splitlines() if not line.startswith("#")
    ))  # fmt: skip
    return [(word, rest) for word, _, rest in (x.partition(" ") for x in text.splitlines() if x)]


def test_the_manifest_has_the_three_documents_of_their_versions() -> None:
    versions = {kind: body["apiVersion"] for kind, body in DOCUMENTS.items()}
    assert versions == {
        "PersistentVolumeClaim": "v1", "NetworkPolicy": "networking.k8s.io/v1",
        "RayCluster": "ray.io/v1",
    }  # fmt: skip
    assert DOCUMENTS["PersistentVolumeClaim"]["spec"]["accessModes"] == ["ReadWriteMany"]


def test_every_pod_has_token_shared_folder_and_room_for_objects() -> None:
    for group in GROUPS:
        pod = group["template"]["spec"]
        volumes = {volume["name"] for volume in pod["volumes"]}
        assert pod["securityContext"]["runAsNonRoot"] is True
        (container,) = pod["containers"]
        env = {entry["name"]: entry for entry in container["env"]}
        assert env["RAY_AUTH_MODE"]["value"] == "token"
        assert "value" not in env["RAY_AUTH_TOKEN"], "a token must not stand in a manifest"
        assert env["RAY_AUTH_TOKEN"]["valueFrom"]["secretKeyRef"]["name"] == "mpq-ray-token"
        mounts = {mount["name"]: mount["mountPath"] for mount in container["volumeMounts"]}
        assert mounts == {"shared": "/shared", "shm": "/dev/shm"}
        assert set(mounts) <= volumes
        limits = container["resources"]["limits"]
        assert container["resources"]["requests"] == limits, "Ray counts what it is promised"


def owners() -> dict[str, list[str]]:
    """File -> the environment that each of its ``ray start``, pods or images gives to Ray."""
    launcher = yaml.safe_load((ROOT / "cluster.yaml").read_text())
    lines = [*launcher["head_start_ray_commands"], *launcher["worker_start_ray_commands"]]
    walk = (ROOT / "docs/cluster.md").read_text().split("\n## ")[1]
    pods = [group["template"]["spec"]["containers"][0]["env"] for group in GROUPS]
    return {
        "cluster.yaml": [line for line in lines if "ray start" in line],
        "docs/cluster.md": re.findall(r"^    export (.+)\n    ray start", walk, flags=re.MULTILINE),
        "kuberay.yaml": [
            " ".join(f"{entry['name']}={entry.get('value')}" for entry in env) for env in pods
        ],
        "Dockerfile": [rest for word, rest in instructions() if word == "ENV"],
    }


@pytest.mark.parametrize(
    ("file", "number"),
    [("cluster.yaml", 2), ("docs/cluster.md", 2), ("kuberay.yaml", 2), ("Dockerfile", 1)],
)
def test_every_node_bounds_what_ran_out_of_memory(
    file: str, number: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As the driver does for a cluster of its own: a task's owner may be on any node."""
    own: dict[str, str] = {}
    monkeypatch.setattr("os.environ", own)
    set_environment()
    found = owners()[file]
    assert len(found) == number
    asked = f"RAY_task_oom_retries={own['RAY_task_oom_retries']}"
    assert all(asked in text.split() for text in found)


def test_nobody_outside_reaches_the_ports() -> None:
    assert CLUSTER["headGroupSpec"]["serviceType"] == "ClusterIP"
    policy = DOCUMENTS["NetworkPolicy"]["spec"]
    cluster = DOCUMENTS["RayCluster"]["metadata"]["name"]
    assert policy["podSelector"]["matchLabels"] == {"ray.io/cluster": cluster}
    (rule,) = policy["ingress"]
    assert rule == {"from": [{"podSelector": policy["podSelector"]}]}


def test_workers_are_up_before_a_run_that_needs_them() -> None:
    for group in CLUSTER["workerGroupSpecs"]:
        assert 1 <= group["minReplicas"] <= group["replicas"] <= group["maxReplicas"]


def test_ray_in_the_manifest_is_at_least_what_the_project_asks_for() -> None:
    asked = re.search(r'"ray\[[a-z,]+\]>=([\d.]+)"', (ROOT / "pyproject.toml").read_text())
    assert asked is not None
    numbers = [tuple(map(int, v.split(".")[:2])) for v in (CLUSTER["rayVersion"], asked.group(1))]
    assert numbers[0] >= numbers[1]


def test_the_image_copies_what_installs_and_nothing_else() -> None:
    copied = [rest.split()[:-1] for word, rest in instructions() if word == "COPY"]
    sources = {source for line in copied for source in line}
    assert all((ROOT / source).exists() for source in sources)
    assert {
        "orchestrator",
        "trainers",
        "solvers",
        "pyproject.toml",
        "README.md",
        "LICENSE",
    } <= sources
    ignore = (ROOT / ".dockerignore").read_text().splitlines()
    allowed = {line[1:] for line in ignore if line.startswith("!")}
    assert "*" in ignore
    assert sources <= allowed, "the image cannot copy what is kept out of its context"


def test_the_image_is_of_a_python_that_fits_and_does_not_run_as_root() -> None:
    steps = instructions()
    assert steps[0][0] == "FROM"
    version = re.search(r"python:3\.(\d+)", steps[0][1])
    assert version is not None
    assert int(version.group(1)) >= 11
    users = [rest for word, rest in steps if word == "USER"]
    assert users[-1] not in ("root", "0")
    env = dict(
        pair.split("=", 1) for word, rest in steps if word == "ENV" for pair in shlex.split(rest)
    )
    assert env["RAY_AUTH_MODE"] == "token"
    assert not any("TOKEN" in key for key in env)


@pytest.mark.parametrize("word", ["ADD", "EXPOSE"])
def test_nothing_is_fetched_unchecked_or_published(word: str) -> None:
    assert word not in [keyword for keyword, _ in instructions()]
