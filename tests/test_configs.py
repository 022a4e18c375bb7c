"""Can every file in ``configs/`` be run as far as this machine has what it needs?"""

from __future__ import annotations

from pathlib import Path

import pytest

from orchestrator.config import LoadedConfig, load_config
from orchestrator.device_files import load_devices
from orchestrator.errors import ConfigError
from orchestrator.names import known_names
from orchestrator.plan import make_plan
from orchestrator.trace import images_fingerprint, traced_costs

CONFIGS = Path(__file__).resolve().parents[1] / "configs"
EXPERIMENTS = sorted((CONFIGS / "experiments").glob("*.yaml"))
DEVICES = sorted(p for p in (CONFIGS / "devices").glob("*.yaml"))
# What a person has and a checkout has not.
OWN_FILES = {"data.path", "model.weights"}


def loaded(path: Path) -> LoadedConfig:
    """The checked file; skips when only images or weights of the user's own are missing."""
    try:
        return load_config(path, (), known_names())
    except ConfigError as error:
        missing = [problem for problem in error.problems if problem.key in OWN_FILES]
        if len(missing) < len(error.problems):
            raise
        pytest.skip(f"needs {', '.join(p.key for p in missing)}: {missing[0].found}")


def test_there_are_experiments() -> None:
    assert CONFIGS / "experiments" / "quickstart.yaml" in EXPERIMENTS


@pytest.mark.parametrize("path", EXPERIMENTS, ids=lambda path: path.stem)
def test_file_says_what_it_shows_and_is_named_after_its_run(path: Path) -> None:
    first, second = path.read_text().splitlines()[:2]
    assert first == "schema: experiment/1"
    assert second.startswith("# ")
    assert f"\nname: {path.stem}\n" in path.read_text()


@pytest.mark.parametrize("path", EXPERIMENTS, ids=lambda path: path.stem)
def test_file_loads_and_plans(path: Path) -> None:
    config = loaded(path).config
    if config.data.name != "digits" and config.data.path is None:
        pytest.skip("needs data.path")
    plan = make_plan(config, traced_costs(config), images_fingerprint(config))
    assert plan.feasible_limits, "nothing would be trained"
    assert [step.name for step in plan.steps][:2] == ["costs", "pretrain"]
    assert len({step.key for step in plan.steps}) == len(plan.steps)


def test_a_file_with_a_fault_fails(tmp_path: Path) -> None:
    text = (CONFIGS / "experiments" / "quickstart.yaml").read_text()
    bad = tmp_path / "bad.yaml"
    bad.write_text(text.replace("epochs: 20", "epoch: 20"))
    with pytest.raises(ConfigError, match=r"pretrain\.epoch"):
        loaded(bad)


def test_device_files_load() -> None:
    assert DEVICES
    for path in DEVICES:
        assert load_devices(str(path)), path
