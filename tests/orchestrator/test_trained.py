"""Trained policies out of a run folder: as networks in Python, and as an export."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch

from orchestrator import export as export_module
from orchestrator.cells import LimitSet
from orchestrator.cli import run_command
from orchestrator.config import dump_config, load_config
from orchestrator.errors import ConfigError, ExitCode, StoreError
from orchestrator.export import SCHEMA, export_trained
from orchestrator.leftovers import sha256_of
from orchestrator.outcomes import training_record
from orchestrator.plan import Step
from orchestrator.policies import Candidate
from orchestrator.records import EVAL_LOSS, EVAL_TOP1, EVAL_TOP5, RunRecord, State
from orchestrator.specs import phase_spec
from orchestrator.store import RunStore
from orchestrator.trained import find_trained, load_trained
from solvers.policy import Policy, make_policy
from solvers.storage import save_costs, save_policy
from solvers.tables import CostTable, LayerBits
from tests.trainers.deployed import deployed
from trainers import weight_training
from trainers.checkpoint import save_tensors
from trainers.costs import trace_costs
from trainers.data import load_data
from trainers.evaluate import evaluate
from trainers.meters import Meter
from trainers.models import build_model
from trainers.phases import DataSpec, ModelSpec, PhaseContext
from trainers.results import load_result

torch.set_num_threads(1)

MODEL = "{name: cifar_resnet8, options: {in_channels: 1, base_width: 4}, weights: %s}"
FULL = LayerBits(weight_bits=32, act_bits=32)


def bits_of(costs: CostTable, weight: int, act: int) -> Policy:
    """One pair for all searched layers but one, which is left in full precision."""
    bits = {s.name: s.pinned or LayerBits(weight_bits=weight, act_bits=act) for s in costs}
    return make_policy(costs, bits | {"layer2.0.conv2": FULL}, "test")


def row(policy: Policy, **values: Any) -> Candidate:
    limits = LimitSet(index=0, texts={"bitops_level": "3x3"}, limits=(), bounds={}, smallest={},
                      largest={}, resources={})  # fmt: skip
    return Candidate(method="uniform", alpha=None, limit_set=limits, policy=policy, **values)


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> tuple[RunStore, dict[str, str]]:
    """A run as ``mpq run`` leaves it: two policies trained, one of them also with PACT's
    quantizers, one that diverged and one that was only found."""
    folder = tmp_path_factory.mktemp("runs")
    given = folder / "first.pt"
    torch.manual_seed(3)
    model = build_model(
        ModelSpec(name="cifar_resnet8", options={"in_channels": 1, "base_width": 4})
    )
    save_tensors(given, model.state_dict())
    (folder / "x.yaml").write_text(
        f"schema: experiment/1\nname: small\nmethod: uniform\nmodel: {MODEL % given}\n"
        f"data: {{name: digits}}\nruns_dir: {folder}\ntrain: {{steps: 3, batch_size: 256, "
        "lr: 0.02, warmup_epochs: 0.0, bn_reestimate_images: 256}\n"
    )
    config = load_config(folder / "x.yaml").config
    store = RunStore(folder, config.name)
    step = Step(name="train", action="weight_training", key="k", needs=(), about="")
    table = store.step_dir("costs") / "costs.parquet"
    costs = trace_costs(model, name="cifar_resnet8", input_shape=(1, 8, 8))
    save_costs(table, costs)
    low, high, idle, lost = (bits_of(costs, *pair) for pair in ((2, 3), (5, 4), (6, 6), (3, 3)))
    rows = [row(low), row(high), row(low, quantizer="pact")]
    inputs = {"weights": str(given), "costs": str(table)}
    for each in (*rows, row(lost)):
        path = store.step_dir(f"train/{each.entry}") / "policy.json"
        assert each.policy is not None
        save_policy(path, each.policy)
        role = "policy" if each.quantizer is None else f"policy_{each.quantizer}"
        if each in rows:
            inputs[f"{role}:{each.entry}"] = str(path)
    spec = phase_spec(config, "weight_training", config.train, inputs)
    weight_training.run(spec, PhaseContext.alone(store.step_dir("train")))

    records = [RunRecord(run="small", step="costs", key="c", phase="costs", method="any",
                         state=State.DONE, outputs={"costs": store.relative(table)})]  # fmt: skip
    store.finish_step("costs", records[0])
    for each in rows:
        place = store.step_dir(f"train/{each.entry}")
        result = load_result(place / "result.json")
        assert result is not None
        outputs = {r: store.relative(place / f) for r, f in result.outputs.items()}
        outputs["policy"] = store.relative(place / "policy.json")
        records.append(training_record("small", step, each, result, seed=0, asked_by=["u"],
                                       outputs=outputs))  # fmt: skip
        store.finish_step(f"train/{each.entry}", records[-1])
    for policy, phase, state in ((idle, "solve", State.DONE), (lost, "train", State.DIVERGED)):
        records.append(RunRecord(
            run="small", step=f"{phase}/{policy.policy_id}", key=f"{phase}{policy.policy_id}",
            phase=phase, method="uniform", state=state, policy_id=policy.policy_id,
            message="the loss is nan" if phase == "train" else "",
        ))  # fmt: skip
    with store.opened() as journal:
        journal.append_all(records)
    store.config_path.write_text(dump_config(config))
    # The weights that the run began with are gone, as on another machine.
    given.unlink()
    return store, {
        "low": low.policy_id, "high": high.policy_id, "pact": f"{low.policy_id}-pact",
        "idle": idle.policy_id, "lost": lost.policy_id,
    }  # fmt: skip


@pytest.fixture
def run(made: tuple[RunStore, dict[str, str]], tmp_path: Path) -> tuple[Path, dict[str, str]]:
    """A copy that a test may damage."""
    store, names = made
    shutil.copytree(store.root, tmp_path / "elsewhere" / "small")
    return tmp_path / "elsewhere" / "small", names


IMAGES = load_data(DataSpec(name="digits"), 0).test
ALL = IMAGES.batch(torch.arange(len(IMAGES)), None)[0]


def measured(network: torch.nn.Module) -> dict[str, float]:
    return evaluate(network, IMAGES, 256, PhaseContext.alone(Path()), Meter("cpu"))


@pytest.mark.parametrize("which", ["low", "high", "pact"])
def test_a_loaded_network_has_the_recorded_accuracy(
    run: tuple[Path, dict[str, str]], which: str
) -> None:
    folder, names = run
    network = load_trained(folder, names[which])
    recorded = find_trained(folder, names[which]).record.metrics
    assert not network.training
    found = measured(network)
    assert found == {
        "top1": recorded[EVAL_TOP1], "top5": recorded[EVAL_TOP5], "loss": recorded[EVAL_LOSS]
    }  # fmt: skip


def test_the_same_bits_trained_twice_are_told_apart_by_their_training(
    run: tuple[Path, dict[str, str]],
) -> None:
    folder, names = run
    by_name = load_trained("small", names["low"], runs_dir=folder.parent)
    by_pact = load_trained("small", names["pact"], runs_dir=folder.parent)
    assert not torch.equal(by_name(ALL), by_pact(ALL))
    assert find_trained(folder, names["pact"]).recipe.quantizer == "pact"


def test_an_id_of_two_trainings_is_refused(
    run: tuple[Path, dict[str, str]], monkeypatch: pytest.MonkeyPatch
) -> None:
    from orchestrator import trained

    folder, names = run
    of = trained._name
    monkeypatch.setattr(trained, "_name", lambda record: f"{of(record)}-x")
    with pytest.raises(StoreError, match=f"trained 2 times(.|\n)*{names['pact']}-x"):
        load_trained(folder, names["low"])


def test_what_cannot_be_loaded_is_told_with_what_can(run: tuple[Path, dict[str, str]]) -> None:
    folder, names = run
    with pytest.raises(StoreError, match=r"there is no run 'smal'(.|\n)*runs there: small"):
        load_trained("smal", names["low"], runs_dir=folder.parent)
    listed = f"{names['low']} .uniform bitops_level=3x3, [0-9.]+ %.; {names['high']} "
    with pytest.raises(StoreError, match=f"has no policy 'abc'(.|\n)*{listed}"):
        load_trained(folder, "abc")
    with pytest.raises(StoreError, match=f"found and not trained(.|\n)*{listed}"):
        load_trained(folder, names["idle"])
    with pytest.raises(StoreError, match=f"left no weights(.|\n)*the loss is nan(.|\n)*{listed}"):
        load_trained(folder, names["lost"])


@pytest.mark.parametrize("file", ["weights.pt", "policy.json", "../../costs/costs.parquet"])
def test_damaged_files_are_refused(run: tuple[Path, dict[str, str]], file: str) -> None:
    folder, names = run
    path = folder / "steps" / "train" / names["low"] / file
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)
    with pytest.raises(StoreError, match=f"cannot be used(.|\n)*{path.name} has another content"):
        load_trained(folder, names["low"])
    path.unlink()
    with pytest.raises(StoreError, match="is missing"):
        load_trained(folder, names["low"])


@pytest.mark.parametrize("which", ["low", "high", "pact"])
def test_an_export_is_the_network_without_this_project(
    run: tuple[Path, dict[str, str]], which: str, tmp_path: Path
) -> None:
    folder, names = run
    done = export_trained(folder, names[which], tmp_path / "new" / "out")
    out = Path(done.folder)
    assert {p.name for p in out.iterdir()} == {"weights.pt", "manifest.json"}
    assert [p.name for p in out.parent.iterdir()] == ["out"]
    manifest = json.loads((out / "manifest.json").read_text())
    assert manifest["schema"] == SCHEMA
    assert manifest["training"] == names[which]
    assert manifest["files"]["weights.pt"]["sha256"] == sha256_of(out / "weights.pt")
    assert done.size_bytes == sum(p.stat().st_size for p in out.iterdir())
    assert manifest["input"]["shape"] == [1, 8, 8]
    assert manifest["measured"]["top1"] == done.top1
    layers = {layer["name"]: layer for layer in manifest["layers"]}
    assert layers["conv1"]["weight"]["bits"] == layers["linear"]["input"]["bits"] == 8
    assert layers["layer2.0.conv2"]["weight"] is layers["layer2.0.conv2"]["input"] is None
    assert (done.num_layers, done.num_coded) == (8, 7)
    tensors = torch.load(out / "weights.pt", weights_only=True)
    weights = {k: v for k, v in tensors.items() if k.endswith(".weight.codes")}
    assert len(weights) == 7
    assert all(not v.is_floating_point() for v in weights.values())
    mean, std = manifest["input"]["mean"], manifest["input"]["std"]
    images = (IMAGES.pixels.float() / 255 - torch.tensor(mean)) / torch.tensor(std)
    spec = ModelSpec(**manifest["network"])
    network = deployed(build_model(spec), manifest["layers"], tensors)
    logits = network(images)
    assert logits.std(dim=0).min() > 0
    assert torch.equal(logits, load_trained(folder, names[which])(ALL))
    # Negative control: one code of one weight is another network.
    codes = tensors["layer1.0.conv1.weight.codes"]
    codes[0, 0, 1, 1] += 1 if codes[0, 0, 1, 1] <= 0 else -1
    assert not torch.equal(deployed(build_model(spec), manifest["layers"], tensors)(images), logits)


def test_the_command_writes_once_and_says_what(
    run: tuple[Path, dict[str, str]], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder, names = run
    (tmp_path / "empty").mkdir()
    ask = ["export", str(folder), names["low"], str(tmp_path / "empty")]
    assert run_command(ask) is ExitCode.DONE
    assert "7 of 8 layers" in capsys.readouterr().out
    before = {p: p.stat().st_mtime_ns for p in (tmp_path / "empty").iterdir()}
    assert run_command(ask) is ExitCode.BAD_INPUT
    assert "holds files already" in capsys.readouterr().err
    assert before == {p: p.stat().st_mtime_ns for p in (tmp_path / "empty").iterdir()}
    ask = ["export", "small", names["pact"], str(tmp_path / "b"), "--runs-dir", str(folder.parent)]
    assert run_command([*ask, "--json"]) is ExitCode.DONE
    told = json.loads(capsys.readouterr().out)
    assert (told["training"], told["num_layers"]) == (names["pact"], 8)
    (tmp_path / "file").write_text("x")
    assert run_command([*ask[:3], str(tmp_path / "file"), *ask[4:]]) is ExitCode.BAD_INPUT
    assert run_command([*ask[:2], "abc", str(tmp_path / "c"), *ask[4:]]) is ExitCode.BAD_INPUT
    assert names["high"] in capsys.readouterr().err
    assert not (tmp_path / "c").exists()


def test_a_failed_export_leaves_nothing(
    run: tuple[Path, dict[str, str]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    from trainers import deployment

    folder, names = run
    target = tmp_path / "place" / "out"
    replace = os.replace

    def no_space(source: Any, to: Any) -> None:
        if Path(to).name == "manifest.json":
            raise OSError(28, "No space left on device", str(to))
        replace(source, to)

    with monkeypatch.context() as patched:
        patched.setattr(os, "replace", no_space)
        ask = ["export", str(folder), names["low"], str(target)]
        assert run_command(ask) is ExitCode.RESOURCES
    assert list(target.parent.iterdir()) == []
    # Codes that are not the network's are a defect of the program, not of the input.
    codes_of = deployment.codes_of
    monkeypatch.setattr(deployment, "codes_of", lambda *a: codes_of(*a).neg_())
    assert run_command(ask) is ExitCode.INTERNAL
    assert "do not give the weights" in capsys.readouterr().err
    assert list(target.parent.iterdir()) == []


def test_a_folder_that_fills_meanwhile_is_kept(
    run: tuple[Path, dict[str, str]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder, names = run
    rebuilt = export_module.rebuilt

    def and_somebody_writes(trained: Any) -> Any:
        (tmp_path / "out").mkdir()
        (tmp_path / "out" / "theirs").write_text("x")
        return rebuilt(trained)

    monkeypatch.setattr(export_module, "rebuilt", and_somebody_writes)
    with pytest.raises(StoreError, match="holds files already"):
        export_trained(folder, names["low"], tmp_path / "out")
    assert [p.name for p in (tmp_path / "out").iterdir()] == ["theirs"]
    assert [p.name for p in tmp_path.glob(".tmp-*")] == []


def test_a_record_or_configuration_of_another_version_is_named(
    run: tuple[Path, dict[str, str]],
) -> None:
    folder, names = run
    path = folder / "config.yaml"
    text = path.read_text()
    path.write_text(text.replace("\n  bn_reestimate_images:", "\n  bn_images:"))
    with pytest.raises(ConfigError, match=r"config\.yaml: train\.bn_images: "):
        load_trained(folder, names["low"])
    path.write_text(text.replace("\ntrain:", "\ntraining:"))
    with pytest.raises(ConfigError, match=r"config\.yaml: train: found nothing"):
        load_trained(folder, names["low"])
    path.unlink()
    with pytest.raises(ConfigError, match=r"config\.yaml"):
        load_trained(folder, names["low"])
    path.write_text(text)
    place = folder / "steps" / "train" / names["low"] / "record.json"
    body = json.loads(place.read_text())
    del body["record"]["facts"]["quantizer"]
    place.write_text(json.dumps(body))
    with pytest.raises(StoreError, match="says nothing of quantizer"):
        load_trained(folder, names["low"])
