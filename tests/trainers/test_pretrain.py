"""The full-precision network: trained, measured, resumed, and refused when it is another one."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from trainers.checkpoint import load_tensors, save_tensors, state_hash
from trainers.errors import InterruptedPhaseError, ModelError, TrainersError
from trainers.models import build_model
from trainers.phases import DataSpec, ModelSpec, PhaseContext, PhaseSpec
from trainers.recipes import PretrainConfig
from trainers.registry import find_phase
from trainers.results import load_result

MODEL = ModelSpec(name="cifar_resnet8", options={"in_channels": 1, "base_width": 4})
SPEC = PhaseSpec(
    phase="pretrain",
    model=MODEL,
    data=DataSpec(name="digits"),
    config=PretrainConfig(epochs=3, batch_size=64, lr=0.1),
    seed=0,
)


def run(folder, spec=SPEC, **context):
    return find_phase("pretrain")(spec, replace(PhaseContext.alone(folder), **context))


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    folder = tmp_path_factory.mktemp("trained")
    return run(folder), folder


def test_three_epochs_learn_digits(trained):
    result, folder = trained
    # Measured: 76 %; chance is 10 %.
    assert result.metrics["top1"] > 60
    assert result.cost.forward_passes == result.cost.backward_passes == 3 * 21
    assert result.eval_cost.images == result.facts["num_test_images"] == 450
    assert load_result(folder / "result.json") == result
    assert not (folder / "checkpoints").exists()
    build_model(MODEL).load_state_dict(load_tensors(folder / "weights.pt"))


def test_given_weights_are_only_measured(trained, tmp_path):
    weights = str(trained[1] / "weights.pt")
    result = run(tmp_path, replace(SPEC, config=None, inputs={"weights": weights}))
    assert result.metrics == trained[0].metrics
    assert result.cost.forward_passes == 0
    assert state_hash(load_tensors(tmp_path / "weights.pt")) == state_hash(load_tensors(weights))


def test_a_stop_and_a_resume_give_the_same_weights(trained, tmp_path):
    asked = iter(range(1, 100))
    with pytest.raises(InterruptedPhaseError):
        run(tmp_path, should_stop=lambda: next(asked) == 30)
    result = run(tmp_path)
    states = [load_tensors(folder / "weights.pt") for folder in (tmp_path, trained[1])]
    assert state_hash(states[0]) == state_hash(states[1])
    assert result.metrics == trained[0].metrics
    assert result.cost.images == trained[0].cost.images


def test_another_seed_is_another_network(trained, tmp_path):
    recipe = replace(SPEC.config, epochs=1)
    run(tmp_path / "a", replace(SPEC, config=recipe))
    run(tmp_path / "b", replace(SPEC, config=recipe, seed=1))
    states = [load_tensors(tmp_path / d / "weights.pt") for d in "ab"]
    assert state_hash(states[0]) != state_hash(states[1])


def test_weights_of_another_network_are_refused(tmp_path):
    other = build_model(replace(MODEL, options={"in_channels": 1, "base_width": 8}))
    save_tensors(tmp_path / "other.pt", other.state_dict())
    with pytest.raises(ModelError, match=r"other\.pt does not fit cifar_resnet8"):
        run(tmp_path, replace(SPEC, inputs={"weights": str(tmp_path / "other.pt")}))


def test_an_unreadable_result_is_refused_and_not_overwritten(tmp_path):
    for text in ("", "[]", "7", '{"schema": "phase-result/0"}', '{"schema": "phase-result/1"}'):
        (tmp_path / "result.json").write_text(text)
        with pytest.raises(TrainersError, match=r"result\.json is not a phase result"):
            run(tmp_path)
        assert (tmp_path / "result.json").read_text() == text


def test_training_does_not_depend_on_torch_s_own_stream(trained, tmp_path):
    torch.manual_seed(321)
    run(tmp_path)
    states = [load_tensors(folder / "weights.pt") for folder in (tmp_path, trained[1])]
    assert state_hash(states[0]) == state_hash(states[1])


def test_an_unknown_phase_is_told_which_there_are():
    with pytest.raises(TrainersError, match=r"unknown phase 'pretraining' .*limpq\.indicators"):
        find_phase("pretraining")
