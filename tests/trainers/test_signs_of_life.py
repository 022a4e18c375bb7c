"""Is a worker that only measures heard of at every batch? One that is not counts as hung."""

from __future__ import annotations

import os
from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch

from solvers.tables import BitChoices
from tests.trainers.small_start import MODEL, small_start
from trainers import worker
from trainers.baselines.config import (
    HawqConfig,
    HawqV2Config,
    OneLayerLossConfig,
    QuantizationErrorConfig,
)
from trainers.errors import FolderNotSharedError
from trainers.limpq.config import IndicatorConfig
from trainers.messages import STOP_FILE
from trainers.metamix.evidence_config import HessianConfig
from trainers.phases import DataSpec, PhaseContext, PhaseSpec
from trainers.registry import find_phase
from trainers.sensitivity_config import SensitivityConfig
from trainers.source_config import PolicySearch
from trainers.watchdog import check_shared, raise_fence

CHOICES = BitChoices(weight_bits=(2, 4), act_bits=(2, 4))
SHARED = {"images": 256, "batch_size": 16}
# What one batch of the phases below takes, three passes and Fisher's two chunks among them.
LONGEST = 4
PHASES = {
    "pretrain": None,
    "limpq.indicators": IndicatorConfig(steps=2, batch_size=32, init_batches=12),
    "hessian": HessianConfig(images=256, batch_size=16, min_probes=2, max_probes=2),
    "sensitivity": SensitivityConfig(
        images=256, bn_images=256, batch=16, bits=(2,), layers=("layer1.0.conv1",), steps=12,
        batch_size=16,
    ),
    "baselines.quantization_error": QuantizationErrorConfig(**SHARED, weighting="fisher"),
    "baselines.one_layer_loss": OneLayerLossConfig(**SHARED),
    "baselines.hawq": PolicySearch(
        source=HawqConfig(**SHARED, max_iterations=2), limits=("bitops_level=3x3",)
    ),
    "baselines.hawq_v2": HawqV2Config(**SHARED, min_probes=2, max_probes=2),
}  # fmt: skip


@pytest.fixture(scope="module")
def inputs(tmp_path_factory):
    return small_start(tmp_path_factory.mktemp("start"))


@pytest.mark.parametrize("phase", PHASES)
def test_there_is_a_sign_between_any_few_passes(phase, inputs, tmp_path, monkeypatch):
    since, longest, asked = [0], [0], [0]
    linear = torch.nn.functional.linear

    def one_pass(*args):
        since[0] += 1
        longest[0] = max(longest[0], since[0])
        return linear(*args)

    def alive():
        since[0] = 0

    def should_stop():
        asked[0] += 1
        alive()
        return False

    # The networks here end in their only linear layer.
    monkeypatch.setattr("torch.nn.functional.linear", one_pass)
    spec = PhaseSpec(
        phase=phase, model=MODEL, data=DataSpec(name="digits"), config=PHASES[phase], seed=0,
        inputs=inputs, eval_batch_size=16, choices=CHOICES,
    )  # fmt: skip
    context = replace(PhaseContext.alone(tmp_path), should_stop=should_stop, alive=alive)
    find_phase(phase)(spec, context)
    assert 0 < longest[0] <= LONGEST


def test_a_sign_of_life_reaches_the_watchdog_and_takes_no_wish_to_stop(tmp_path, monkeypatch):
    beats, heard = [], []

    class Dog:
        def __init__(self, patience_s, stacks):
            pass

        def start(self):
            pass

        def stop(self):
            pass

        def beat(self):
            beats.append(1)

    def phase(spec, context):
        (tmp_path / STOP_FILE).touch()
        context.alive()
        heard.append((len(beats), context.should_stop(), context.should_stop(), len(beats)))

    alone = SimpleNamespace(get_world_rank=lambda: 0, get_world_size=lambda: 1)
    monkeypatch.setattr(worker.ray.train, "get_context", lambda: alone)
    monkeypatch.setattr(worker.ray.train.torch, "get_device", lambda: torch.device("cpu"))
    monkeypatch.setattr(worker, "Watchdog", Dog)
    monkeypatch.setattr(worker, "find_phase", lambda name: phase)
    monkeypatch.setattr(worker, "_log_to", lambda path, secrets: None)
    monkeypatch.setattr(worker, "keep_freed_memory", lambda: None)
    umask = os.umask(0o022)
    os.umask(umask)
    settings = {
        "spec": PhaseSpec(
            phase="x", model=MODEL, data=DataSpec(name="digits"), config=None, seed=0
        ),
        "step_dir": str(tmp_path / "step"), "run_dir": str(tmp_path), "token": "",
        "num_threads": torch.get_num_threads(), "hang_s": 60.0, "umask": umask, "secrets": (),
    }  # fmt: skip
    assert worker.run_worker(settings)["error"] is None
    assert heard == [(1, True, True, 3)]


def test_a_node_without_the_runs_folder_says_so_and_makes_none(tmp_path):
    step_dir = tmp_path / "steps" / "train"
    check_shared(step_dir, "")  # nobody started a group: nothing to see
    with pytest.raises(FolderNotSharedError, match="must be one folder on every node"):
        check_shared(step_dir, "token", patience_s=0.0)
    assert not step_dir.exists()
    step_dir.mkdir(parents=True)
    raise_fence(step_dir, "another group's")  # late, but on a folder that is shared
    check_shared(step_dir, "token", patience_s=0.0)
