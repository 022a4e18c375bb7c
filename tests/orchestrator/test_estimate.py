"""Work of every phase against the same counts by hand."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import pytest
import torch

from orchestrator.cells import bit_choices
from orchestrator.cli import run_command
from orchestrator.cluster import resources_for
from orchestrator.config import load_config
from orchestrator.config_schema import ExperimentConfig
from orchestrator.forecast.images_at_hand import IMAGENET, images_at_hand, require_path
from orchestrator.forecast.rate import measured_rate, stated_rate
from orchestrator.forecast.work import Work
from orchestrator.forecast.work_of_plan import ImageCount, hours, trained_policies, work_of
from orchestrator.plan import Plan, make_plan
from orchestrator.trace import traced_costs
from trainers.calibrate import TrainingRate, training_rate
from trainers.errors import DataError

CONFIGS = Path(__file__).parents[2] / "configs" / "experiments"
IMAGES = ImageCount(train=1000, test=200)


def planned(name: str, *overrides: str) -> tuple[ExperimentConfig, Plan]:
    config = load_config(CONFIGS / f"{name}.yaml", overrides).config
    return config, make_plan(config, traced_costs(config), "x")


def test_limpq_counts_every_pass_of_its_joint_update() -> None:
    config, plan = planned("limpq_resnet18_imagenet_23.07g")
    work = work_of(config, plan, IMAGES)
    assert work["costs"] == work["sweep"] == Work()
    assert work["pretrain"] == Work(forward=200)  # given weights are only measured
    # five widths and the random pass, five epochs of half the images
    assert work["indicators"] == Work(trained=6 * 5 * 500, forward=1000)
    assert work["train"] == Work(trained=90 * 1000, forward=200 + 1000)


def test_metamix_counts_meta_and_search_updates() -> None:
    config, plan = planned("metamix_mobilenet_v2_imagenet_5.28g")
    work = work_of(config, plan, IMAGES)
    assert work["meta"] == Work(trained=3 * 1000)
    assert work["select-l0"] == Work(trained=(3 + 1) * 1000)
    assert work["train"] == Work(trained=138 * 1000, forward=200 + 1000)


def test_steps_win_over_epochs_and_controls_are_trained_too() -> None:
    config, plan = planned(
        "limpq_resnet18_imagenet_23.07g", "train.steps=7", "controls=[uniform, random, reversed]"
    )
    assert trained_policies(config, plan) == 4
    assert work_of(config, plan, IMAGES)["train"] == Work(
        trained=4 * 7 * 512, forward=4 * (200 + 1000)
    )


def test_other_ways_to_a_policy_and_evidence_are_counted() -> None:
    config, plan = planned(
        "limpq_resnet18_imagenet_23.07g",
        "sources.quantization_error.images=100",
        "sources.one_layer_loss.images=100",
        "sources.hawq_v2.images=100",
        "sources.hawq.images=100",
        "sources.edmips.epochs=2",
        "sources.random_search.images=100",
        "sources.one_shot.evaluations=10",
        "sources.fitted.policies=20",
        "evidence.hessian.images=100",
    )
    work = work_of(config, plan, IMAGES)
    assert work["quantization_error"] == Work(forward=100)
    assert work["one_layer_loss"] == Work(forward=100 * (19 * 10 + 1))
    assert work["hawq_v2"] == Work(forward=100, hessian=50 * 100)
    assert work["hawq-l0"] == Work(forward=100, hessian=20 * 19 * 100)
    assert work["edmips-l0"] == Work(trained=2000)
    assert work["random_search-l0"] == Work(forward=64 * (100 + 512))
    assert work["one_shot-l0"] == Work(forward=10 * 1884)
    assert work["fitted"] == Work(forward=20 * 1884)
    assert work["evidence-hessian"] == Work(hessian=100 * 100)
    assert None not in work.values()


def test_a_teacher_is_a_forward_pass_whenever_it_is_asked() -> None:
    teacher = "{temperature: 2.0}"
    config, plan = planned(
        "metamix_mobilenet_v2_imagenet_5.28g",
        f"metamix.meta.distillation={teacher}",
        f"train.distillation={teacher}",
        f"evidence.drift={{epochs: 2, variants: [metamix, fp_weights], distillation: {teacher}}}",
        f"evidence.distributions=[{{images: 10, weight_bits: [4, 8], distillation: {teacher}}}]",
    )
    work = work_of(config, plan, IMAGES)
    assert work["meta"] == Work(trained=3 * 1000, forward=1000)
    assert work["select-l0"] == Work(trained=(3 + 1) * 1000, forward=2 * 1000)
    assert work["train"] == Work(trained=138 * 1000, forward=138 * 1000 + 200 + 1000)
    assert work["evidence-drift"] == Work(trained=(3 + 1) * 2000, forward=2 * 2000)
    assert work["evidence-inputs-meta"] == Work(trained=3 * 2 * 1000, forward=3 * 2 * 10 + 2 * 1000)


def test_single_layers_are_measured_before_and_after_their_training() -> None:
    config, plan = planned("limpq_mobilenet_v1_imagenet_contrast")
    work = work_of(config, plan, IMAGES)["evidence-sensitivity"]
    entries = 10 * 2 * 3
    assert work == Work(trained=entries * 2500 * 256, forward=entries * 2 * 50_000)


def test_hours_at_a_rate() -> None:
    work = Work(trained=3600, forward=300, hessian=50)
    assert work.units == pytest.approx(3600 + 100 + 100)
    assert hours(work, 3.8) == pytest.approx(3800 / 3.8 / 3600)


def test_images_that_are_not_here_are_reckoned_and_said() -> None:
    config, _ = planned("limpq_resnet18_imagenet_23.07g")
    found = images_at_hand(config)
    assert (found.are_here, found.fingerprint, found.count) == (False, "unknown", IMAGENET)
    assert "not given here, fingerprint unknown" in found.told
    with pytest.raises(DataError, match=r"--set data\.path=FOLDER"):
        require_path(config)


def test_images_that_are_here_are_counted() -> None:
    found = images_at_hand(planned("quickstart")[0])
    assert found.are_here
    assert found.count == ImageCount(train=1347, test=450)


def test_a_plan_downloads_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from torchvision import datasets

    asked = []

    def cifar10(root: str, train: bool, download: bool) -> None:
        asked.append(download)
        raise RuntimeError("Dataset not found or corrupted")

    monkeypatch.setattr(datasets, "CIFAR10", cifar10)
    overrides = (
        "data.name=torchvision", f"data.path={tmp_path}", "model.options={}",
        "data.options={dataset: CIFAR10, download: true}", "train.negative_inputs=refuse",
    )  # fmt: skip
    config = load_config(CONFIGS / "quickstart.yaml", overrides).config
    found = images_at_hand(config)
    assert (found.are_here, found.fingerprint, found.count) == (False, "unknown", None)
    assert "a run downloads them" in found.told
    # The look for negative inputs wants images too.
    assert traced_costs(config).input_shape == (3, 32, 32)
    assert asked == [False, False]
    without = load_config(
        CONFIGS / "quickstart.yaml", (*overrides, "data.options={dataset: CIFAR10}")
    ).config
    with pytest.raises(DataError, match="cannot read CIFAR10"):
        images_at_hand(without)


def test_shards_are_counted_from_their_footers(tmp_path: Path) -> None:
    import pyarrow as pa
    import pyarrow.parquet as pq

    for part, rows in (("train", 40), ("test", 12)):
        table = pa.table({"image": [b"x"] * rows, "label": [0] * rows})
        pq.write_table(table, tmp_path / f"{part}.parquet")
    config = load_config(
        CONFIGS / "quickstart.yaml",
        ("data.name=parquet", f"data.path={tmp_path}", "data.holdout=0.25"),
    ).config
    assert images_at_hand(config).count == ImageCount(train=30, test=12)


def test_rates_are_stated_or_measured() -> None:
    config, _ = planned("quickstart")
    assert stated_rate(config, None) is None
    asked, _ = planned("quickstart", "cluster.images_per_second=500")
    stated = stated_rate(asked, None)
    assert stated is not None
    assert "cluster.images_per_second" in stated.source
    over = stated_rate(asked, 3.0)
    assert over is not None
    assert over.images_per_second == 3.0
    measured = measured_rate(config, seconds=0.1)
    assert measured.images_per_second > 0
    assert "measured here: 1 x cpu" in measured.source


@pytest.mark.parametrize(
    ("overrides", "threads"),
    [
        (("cluster.num_workers=1",), 8),
        (("cluster.num_workers=2",), 4),
        (("cluster.num_workers=64",), 1),
        (("cluster.num_workers=2", "cluster.cpus_per_worker=3"), 3),
        (("cluster.num_workers=2", "cluster.threads_per_worker=5"), 5),
    ],
)
def test_a_rate_is_measured_with_the_threads_of_one_worker(
    monkeypatch: pytest.MonkeyPatch, overrides: tuple[str, ...], threads: int
) -> None:
    config, _ = planned("quickstart", *overrides)
    asked: list[int] = []

    def rate(*_: Any, threads: int, device: str | None, **__: Any) -> TrainingRate:
        asked.append(threads)
        assert device == "cpu"  # the workers ask for no GPU
        return TrainingRate(images_per_second=9.0, batch_size=1, steps=1, device="1 x cpu",
                            threads=threads)  # fmt: skip

    monkeypatch.setattr("trainers.calibrate.training_rate", rate)
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(8)))
    assert f"threads of a worker: {threads}" in measured_rate(config).source
    assert asked == [threads]
    nodes = [{"CPU": 8.0}]
    if config.cluster.num_workers <= 8:  # what a run on this machine would give a worker
        assert resources_for(config.cluster, nodes).num_threads == threads


def test_measuring_leaves_the_threads_of_this_process_as_they_were() -> None:
    config, _ = planned("quickstart")
    before = torch.get_num_threads()
    counts = []
    for threads in (before + 1, None):
        found = training_rate(
            config.model.spec(), (1, 8, 8), bit_choices(config), seconds=0.0, device="cpu",
            threads=threads, batch_size=2,
        )  # fmt: skip
        counts.append(found.threads)
    assert counts == [before + 1, before]
    assert torch.get_num_threads() == before


def test_the_command_adds_hours_disk_and_the_printed_figures(
    capsys: pytest.CaptureFixture[str],
) -> None:
    file = str(CONFIGS / "limpq_resnet50_imagenet_12.2x.yaml")
    assert run_command(["plan", file, "--images-per-s", "500", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    spent = {step["name"]: step["device_h"] for step in found["steps"]}
    assert spent["indicators"] == pytest.approx(6 * 3 * 640_584 / 500 / 3600, rel=1e-3)
    assert found["time"]["device_h"] == pytest.approx(sum(spent.values()))
    assert found["time"]["wall_h"] == pytest.approx(found["time"]["device_h"] / 4)
    assert [row["id"] for row in found["reported"]] == ["limpq-t3-ours", "limpq-s4.2-ours"]
    assert found["disk"]["checkpoints"] == 3 * 2 * 4 * 25_557_032
    assert found["images"]["are_here"] is False
    assert run_command(["plan", file]) == 0
    shown = capsys.readouterr().out
    assert "no rate is known; give --images-per-s N or --calibrate" in shown
    assert "LIMPQ Table 3, LIMPQ: top-1 76.90" in shown


def test_a_rate_is_stated_or_measured_not_both(capsys: pytest.CaptureFixture[str]) -> None:
    file = str(CONFIGS / "quickstart.yaml")
    assert run_command(["plan", file, "--images-per-s", "5", "--calibrate"]) == 2


def test_weights_that_nobody_publishes_are_found_by_the_plan(
    capsys: pytest.CaptureFixture[str],
) -> None:
    file = str(CONFIGS / "limpq_resnet18_imagenet_23.07g.yaml")
    arguments = ["plan", file, "--set", "model.weights=torchvision:IMAGENET1K_V7"]
    assert run_command(arguments) == 2
    assert "there are IMAGENET1K_V1" in capsys.readouterr().err


def test_a_row_that_no_table_has_is_refused(capsys: pytest.CaptureFixture[str]) -> None:
    file = str(CONFIGS / "quickstart.yaml")
    assert run_command(["plan", file, "--set", "reports=[limpq-t3-our]"]) == 2
    assert "did you mean limpq-t3-ours" in capsys.readouterr().err
