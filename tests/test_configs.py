"""Can every file in ``configs/`` be run as far as this machine has what it needs?"""

from __future__ import annotations

import io
from dataclasses import replace
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from orchestrator.cells import bit_choices, resolve_limits
from orchestrator.config import LoadedConfig, load_config
from orchestrator.device_files import load_devices
from orchestrator.errors import ConfigError
from orchestrator.forecast.images_at_hand import images_at_hand
from orchestrator.literature import dataset_of, rows_named, shipped_rows
from orchestrator.names import known_names
from orchestrator.plan import make_plan
from orchestrator.study.config import expand, load_study
from orchestrator.trace import traced_costs

CONFIGS = Path(__file__).resolve().parents[1] / "configs"
EXPERIMENTS = sorted(
    path for path in (CONFIGS / "experiments").glob("*.yaml") if not path.stem.startswith("study_")
)
STUDIES = sorted((CONFIGS / "experiments").glob("study_*.yaml"))
EVIDENCE = sorted((CONFIGS / "evidence").glob("*.yaml"))
DEVICES = sorted(p for p in (CONFIGS / "devices").glob("*.yaml"))


def loaded(path: Path) -> LoadedConfig:
    """The checked file; none names images or weights that a checkout has not."""
    return load_config(path, (), known_names())


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
    plan = make_plan(config, traced_costs(config), images_at_hand(config).fingerprint)
    assert plan.feasible_limits, "nothing would be trained"
    assert [step.name for step in plan.steps][:2] == ["costs", "pretrain"]
    assert len({step.key for step in plan.steps}) == len(plan.steps)


@pytest.mark.parametrize("path", EVIDENCE, ids=lambda path: path.stem)
def test_evidence_plans_whatever_the_images(path: Path, tmp_path: Path) -> None:
    weights = tmp_path / "weights.pt"
    weights.touch()
    picture = io.BytesIO()
    Image.new("RGB", (32, 32)).save(picture, "PNG")
    table = pa.table({"image": [picture.getvalue()] * 10, "label": list(range(10))})
    for split in ("train", "test"):
        pq.write_table(table, tmp_path / f"{split}.parquet")
    own = (f"data.path={tmp_path}", f"model.weights={weights}")
    config = load_config(path, own, known_names()).config
    # The costs need the network only; its weights are the user's.
    costs = traced_costs(replace(config, model=replace(config.model, weights=None)))
    plan = make_plan(config, costs, "images")
    assert plan.feasible_limits
    assert config.name.startswith("evidence-")


@pytest.mark.parametrize("path", STUDIES, ids=lambda path: path.stem)
def test_study_expands_and_plans_every_seed(path: Path) -> None:
    study = load_study(path)
    assert study.name == path.stem
    experiments = expand(study, known_names())
    assert list(experiments) == list(study.seeds)
    config = next(iter(experiments.values()))[1].config
    plan = make_plan(config, traced_costs(config), images_at_hand(config).fingerprint)
    assert len(plan.feasible_limits) == len(study.budgets)


# What the network costs at the level that a printed budget stands for, in GBitOps.
LEVELS = {
    "limpq_resnet18_imagenet_19.81g": 20.30,
    "limpq_resnet18_imagenet_23.07g": 22.85,
    "limpq_resnet18_imagenet_33.05g": 34.71,
    "limpq_resnet50_imagenet_12.2x": 55.31,
    "limpq_mobilenet_v1_imagenet_5.78g": 5.771,
    "limpq_mobilenet_v1_imagenet_9.68g": 9.669,
    "metamix_mobilenet_v2_imagenet_5.28g": 5.28,
    "metamix_mobilenet_v3_large_imagenet_3.29g": 3.29,
    "metamix_resnet18_imagenet_32.86g": 32.86,
}


@pytest.mark.parametrize(("name", "level_g"), LEVELS.items())
def test_budgets_are_near_the_level_they_are_called(name: str, level_g: float) -> None:
    config = loaded(CONFIGS / "experiments" / f"{name}.yaml").config
    (limits,) = resolve_limits(
        config.search, traced_costs(config), bit_choices(config), config.accounting
    )
    (bound,) = [b for kind, b in limits.bounds.items() if kind.startswith("bitops")]
    assert bound / 1e9 == pytest.approx(level_g, rel=0.05)
    assert not limits.problem


def test_every_own_row_of_the_papers_has_a_recipe_and_every_recipe_its_rows() -> None:
    asked = set()
    for path in EXPERIMENTS:
        config = loaded(path).config
        for row in rows_named(config.reports):
            asked.add(row.id)
            assert row.model == config.model.name
            assert row.dataset == dataset_of(config.data.name, config.model.num_classes)
            assert row.method.lower().startswith(config.method)
    assert asked == {row.id for row in shipped_rows() if row.own}


def test_printed_limits_stand_in_the_recipes() -> None:
    for path in EXPERIMENTS:
        config = loaded(path).config
        texts = {kind: text for limits in config.search.limits for kind, text in limits.items()}
        for row in rows_named(config.reports):
            if row.bitops_g is not None and row.source != "MetaMix Figure 7":
                assert float(texts["bitops"].removesuffix("G")) == row.bitops_g, path.stem
            if row.compression is not None:
                assert float(texts["compression_rate"].removesuffix("x")) == row.compression
            if row.weight_bits is not None and row.weight_bits.isdecimal():
                assert config.bits.weight == (int(row.weight_bits),)
            if row.act_bits == "32":
                assert config.bits.act == (32,)
                assert float(texts["weight_mib"]) == row.size_mb


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
