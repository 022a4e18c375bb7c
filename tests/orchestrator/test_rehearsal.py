from __future__ import annotations

from dataclasses import fields, is_dataclass, replace
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image

from orchestrator.config import LoadedConfig, load_config
from orchestrator.config_schema import ExperimentConfig
from orchestrator.contradictions import contradictions
from orchestrator.drift import refuse_drift
from orchestrator.errors import ExitCode, UserError
from orchestrator.plan import make_plan
from orchestrator.rehearsal import run as rehearsal_run
from orchestrator.rehearsal.config import MAX_IMAGES, STEPS, Stage, refuse_mixture, rehearsed
from orchestrator.rehearsal.files import make_images, prepare
from orchestrator.specs import phase_spec
from orchestrator.store import RunStore
from orchestrator.trace import images_fingerprint, traced_costs
from trainers.data import load_data
from trainers.errors import DataError
from trainers.phases import PhaseContext
from trainers.setup import make_plan as make_batches

EXPERIMENTS = sorted((Path(__file__).parents[2] / "configs" / "experiments").glob("*_imagenet*"))
PLAIN = """schema: experiment/1
name: small
runs_dir: {runs}
model: {{name: cifar_resnet8, num_classes: 3}}
data: {{name: imagefolder, options: {{resolution: 32}}}}
search: {{limits: [{{bitops_level: 3x3}}]}}
controls: [uniform]
"""


@pytest.fixture
def config(tmp_path: Path) -> ExperimentConfig:
    path = tmp_path / "small.yaml"
    path.write_text(PLAIN.format(runs=tmp_path / "runs"))
    return load_config(path).config


def sections(value: Any) -> list[Any]:
    """Every dataclass inside a configuration."""
    if isinstance(value, tuple):
        return [found for each in value for found in sections(each)]
    if not is_dataclass(value):
        return []
    inside = [found for f in fields(value) for found in sections(getattr(value, f.name))]
    return [value, *inside]


@pytest.mark.parametrize("path", EXPERIMENTS, ids=lambda path: path.stem)
def test_a_rehearsal_keeps_what_is_run_and_cuts_how_long(path: Path) -> None:
    config = load_config(path).config
    weights = None if config.model.weights is None else "random.pt"
    short = rehearsed(config, Stage(data_path="somewhere", weights=weights))
    for kept in ("method", "seed", "bits", "pins", "search", "controls", "accounting", "reports"):
        assert getattr(short, kept) == getattr(config, kept), kept
    assert short.model.name == config.model.name
    assert short.data.options == config.data.options  # the real resolution
    assert short.rehearsal
    assert short.name == f"{config.name}-rehearsal"
    assert (short.cluster.num_workers, short.cluster.gpus_per_worker) == (1, 0.0)
    assert short.data.max_images == MAX_IMAGES
    for section in sections(short):
        lengths = {f.name for f in fields(section)}
        if "steps" in lengths:
            assert section.steps == STEPS
        if "batch_size" in lengths:
            assert section.batch_size <= 4
    assert [type(s) for s in sections(short)] == [type(s) for s in sections(config)]
    assert not contradictions(short, {})


def test_workers_and_gpus_are_as_asked(config: ExperimentConfig) -> None:
    short = rehearsed(config, Stage(num_workers=3, has_gpus=True))
    assert short.cluster.num_workers == 3
    assert short.indicators.batch_size == 12
    assert short.cluster.gpus_per_worker == config.cluster.gpus_per_worker
    assert not contradictions(short, {})


def _plans(config: ExperimentConfig) -> None:
    """The batches of every training phase, as its workers make them."""
    for recipe in (config.pretrain, config.indicators, config.train):
        spec = phase_spec(config, "pretrain", recipe, {})
        data = load_data(spec.data, spec.seed)
        context = replace(PhaseContext.alone(Path()), world_size=config.cluster.num_workers)
        make_batches(data.train, data, recipe, spec, context)


@pytest.mark.parametrize(("workers", "fraction"), [(1, 0.01), (3, 0.5), (5, 0.01), (5, 1.0)])
def test_every_worker_gets_its_share_of_a_batch(
    config: ExperimentConfig, workers: int, fraction: float
) -> None:
    part = replace(config, train=replace(config.train, fraction=fraction))
    stage = prepare(part, num_workers=workers).stage
    _plans(rehearsed(part, stage))


@pytest.mark.parametrize(("accumulate", "parts"), [(1, 1), (2, 2), (8, 2), (16, 2)])
def test_a_share_is_passed_through_in_parts_where_the_experiment_does_so(
    config: ExperimentConfig, accumulate: int, parts: int
) -> None:
    own = replace(config, train=replace(config.train, batch_size=64, accumulate=accumulate))
    short = rehearsed(own, prepare(own, num_workers=3).stage)
    assert short.train.accumulate == parts
    _plans(short)


def test_parts_that_the_experiment_cannot_have_stop_its_rehearsal_too(
    config: ExperimentConfig,
) -> None:
    wrong = replace(config, train=replace(config.train, batch_size=64, accumulate=3))
    with pytest.raises(DataError, match="3 equal parts"):
        _plans(rehearsed(wrong, prepare(wrong).stage))
    tiny = replace(config, train=replace(config.train, batch_size=4, accumulate=4))
    assert rehearsed(tiny, Stage()).train.accumulate == 4


def test_what_is_shorter_already_stays(config: ExperimentConfig) -> None:
    tiny = replace(config, train=replace(config.train, bn_reestimate_images=0, batch_size=2))
    short = rehearsed(tiny, Stage())
    assert (short.train.bn_reestimate_images, short.train.batch_size) == (0, 2)
    assert short.train.warmup_epochs == 0.0


def test_made_images_are_read_by_the_source_they_are_made_for(tmp_path: Path) -> None:
    from trainers.phases import DataSpec

    make_images(tmp_path / "images", 20)
    data = load_data(DataSpec(name="imagefolder", path=str(tmp_path / "images"), max_images=5), 0)
    assert (len(data.train), len(data.test), data.num_classes) == (5, 5, 20)
    assert data.input_shape == (3, 224, 224)
    pixels, _ = data.train.batch(torch.arange(5), None)
    assert pixels.shape == (5, 3, 224, 224)
    modes = {Image.open(path).mode for path in (tmp_path / "images/train").rglob("*.jpg")}
    assert modes == {"RGB", "L", "CMYK"}


def test_what_is_missing_is_made_and_told(config: ExperimentConfig) -> None:
    prepared = prepare(config)
    told = "\n".join(prepared.told)
    assert "figures mean nothing" in told
    assert "images: MADE UP" in told
    assert "weights: trained first" in told
    short = rehearsed(config, prepared.stage)
    plan = make_plan(short, traced_costs(short), images_fingerprint(short))
    assert {step.action for step in plan.steps} >= {"pretrain", "limpq.indicators", "sweep"}


def test_published_weights_that_are_not_here_are_random_and_said_so(tmp_path: Path) -> None:
    path = tmp_path / "x.yaml"
    body = PLAIN.replace("name: cifar_resnet8", "name: mobilenet_v3_small, weights: torchvision")
    path.write_text(body.format(runs=tmp_path / "runs"))
    config = load_config(path).config
    prepared = prepare(config)
    assert "weights: RANDOM, because those of torchvision" in "\n".join(prepared.told)
    from trainers.models import build_model

    short = rehearsed(config, prepared.stage)
    assert short.model.weights == prepared.stage.weights
    build_model(short.model.spec())


def test_a_rehearsal_takes_the_place_of_the_last_one_and_of_nothing_else(
    config: ExperimentConfig,
) -> None:
    first = rehearsed(config, prepare(config).stage)
    store = RunStore(first.runs_dir, first.name)
    refuse_drift(store, first)
    (store.root / "left").touch()
    prepare(config)
    assert not (store.root / "left").exists()
    real = replace(config, name=first.name)
    refuse_drift(store, real)
    with pytest.raises(UserError, match="holds something that is none"):
        prepare(config)


@pytest.mark.parametrize(
    "found", ["study.json", "steps/pretrain/weights.pt", "notes.txt", "config.yaml"]
)
def test_what_is_no_rehearsal_is_not_deleted(config: ExperimentConfig, found: str) -> None:
    path = RunStore(config.runs_dir, f"{config.name}-rehearsal").root / found
    path.parent.mkdir(parents=True)
    path.touch()
    with pytest.raises(UserError, match="holds something that is none"):
        prepare(config)
    assert path.exists()


def test_a_rehearsal_that_was_stopped_before_its_first_step_is_no_hindrance(
    config: ExperimentConfig,
) -> None:
    prepare(config)
    store = RunStore(config.runs_dir, f"{config.name}-rehearsal")
    with store.opened():
        pass
    assert not store.config_path.exists()
    prepare(config)
    assert not store.exists()


def test_sets_that_are_no_folder_of_images_need_a_path(config: ExperimentConfig) -> None:
    other = replace(config, data=replace(config.data, name="imagenet_parquet", options={}))
    with pytest.raises(UserError, match="cannot make images"):
        prepare(other)


def test_running_without_images_is_refused_before_anything_starts(tmp_path: Path) -> None:
    from orchestrator.cli import run_command

    path = tmp_path / "small.yaml"
    path.write_text(PLAIN.format(runs=tmp_path / "runs"))
    assert run_command(["run", str(path)]) == ExitCode.BAD_INPUT
    assert not (tmp_path / "runs").exists()


def test_the_command_asks_for_one_worker_unless_told(
    config: ExperimentConfig, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    seen: list[ExperimentConfig] = []

    def run_experiment(loaded: LoadedConfig) -> ExitCode:
        seen.append(loaded.config)
        return ExitCode.DONE

    monkeypatch.setattr("orchestrator.pipeline.run_experiment", run_experiment)
    loaded = LoadedConfig(config=config, path=Path("small.yaml"))
    assert rehearsal_run.rehearse_experiment(loaded) == ExitCode.DONE
    assert seen[0].cluster.num_workers == 1
    assert "*** REHEARSAL of small" in capsys.readouterr().err
    two = replace(config, cluster=replace(config.cluster, num_workers=2))
    asked = LoadedConfig(config=two, path=Path("x"), overrides=("cluster.num_workers=2",))
    rehearsal_run.rehearse_experiment(asked)
    assert seen[1].cluster.num_workers == 2


def test_rehearsals_never_stand_beside_real_runs() -> None:
    refuse_mixture({"a": False, "b": False})
    refuse_mixture({"a-rehearsal": True})
    with pytest.raises(UserError, match="rehearsals cannot stand beside real runs: b") as caught:
        refuse_mixture({"a": False, "b": True})
    assert caught.value.exit_code == ExitCode.BAD_INPUT


def test_every_record_of_a_rehearsal_says_so(config: ExperimentConfig) -> None:
    from orchestrator.attempts import attempt
    from orchestrator.records import RunRecord, State

    short = rehearsed(config, Stage())
    short = replace(short, tracking=replace(short.tracking, enabled=False))
    store = RunStore(short.runs_dir, short.name)
    record = RunRecord(
        run=short.name, step="costs", key="k", phase="costs", method="any", state=State.DONE
    )
    with attempt(store, short, quiet=True) as session:
        session.keep(record)
        assert session.stamped(record).facts["rehearsal"] is True
        assert [r.facts["rehearsal"] for r in session.journal.records()] == [True]


def test_a_report_of_a_rehearsal_says_so_first(config: ExperimentConfig) -> None:
    from orchestrator.attempts import attempt
    from orchestrator.report.write import write_report

    short = rehearsed(config, Stage())
    short = replace(short, tracking=replace(short.tracking, enabled=False))
    store = RunStore(short.runs_dir, short.name)
    refuse_drift(store, short)
    with attempt(store, short, quiet=True) as session:
        write_report(store, session.journal.view)
    assert "REHEARSAL" in store.report_path.read_text()
    assert "REHEARSAL" in (store.root / "report.html").read_text()
