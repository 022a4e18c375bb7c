"""Would the Ray cluster launcher take cluster.yaml, and does the file keep to what it promises?"""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest
import yaml
from jsonschema import ValidationError

ROOT = Path(__file__).resolve().parents[1]
TEXT = (ROOT / "cluster.yaml").read_text()
CLOUD_ONLY = ("available_node_types", "head_node_type", "head_setup_commands")


def cloud() -> dict[str, Any]:
    return dict(yaml.safe_load(TEXT))


def on_premise() -> dict[str, Any]:
    """The variant of the comments, put together as they say."""
    lines = [line[3:] for line in TEXT.splitlines() if line.startswith("#| ")]
    kept = {key: value for key, value in cloud().items() if key not in CLOUD_ONLY}
    return {**kept, **yaml.safe_load("\n".join(lines))}


VARIANTS = {"cloud": cloud, "on premise": on_premise}


def validate(config: dict[str, Any]) -> dict[str, Any]:
    """What ``ray up`` does before it reaches for the network."""
    from ray.autoscaler._private.util import prepare_config, validate_config

    # Prepared first: the raw schema refuses what preparing brings into shape.
    prepared: dict[str, Any] = prepare_config(copy.deepcopy(config))
    validate_config(prepared)
    return prepared


@pytest.mark.parametrize("variant", VARIANTS)
def test_ray_takes_it(variant: str) -> None:
    prepared = validate(VARIANTS[variant]())
    assert prepared["head_node_type"] in prepared["available_node_types"]


@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize(
    ("wrong", "right"),
    [("idle_timeout_minute", "idle_timeout_minutes"), ("setup_command", "setup_commands")],
)
def test_a_mistyped_key_is_caught(variant: str, wrong: str, right: str) -> None:
    config = VARIANTS[variant]()
    config[wrong] = config.pop(right)
    with pytest.raises(ValidationError, match=wrong):
        validate(config)


def test_workers_are_up_before_a_run_that_needs_them() -> None:
    workers = [kind for name, kind in cloud()["available_node_types"].items() if name != "head"]
    assert all(1 <= kind["min_workers"] <= kind["max_workers"] for kind in workers)


@pytest.mark.parametrize("variant", VARIANTS)
def test_every_ray_process_asks_for_the_token(variant: str) -> None:
    config = VARIANTS[variant]()
    for role in ("head_start_ray_commands", "worker_start_ray_commands"):
        starts = [command for command in config[role] if "ray start" in command]
        assert len(starts) == 1
        assert "RAY_AUTH_MODE=token" in starts[0]
    assert "~/.ray/auth_token" in config["file_mounts"]
    assert "--dashboard-host=127.0.0.1" in config["head_start_ray_commands"][1]


def test_what_is_mounted_can_be_installed() -> None:
    mounted = {
        remote: local for remote, local in cloud()["file_mounts"].items() if "mpq-" in remote
    }
    assert all((ROOT / local).exists() for local in mounted.values())
    assert {"orchestrator", "trainers", "solvers", "pyproject.toml"} <= set(mounted.values())
    assert {"README.md", "LICENSE"} <= set(mounted.values()), "pyproject.toml names them"


def test_it_knows_no_experiment() -> None:
    code = "\n".join(line for line in TEXT.splitlines() if not line.lstrip().startswith("#"))
    assert "configs/" not in code
    assert "mpq run" not in code
