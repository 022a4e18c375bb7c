"""Precision, layout and accumulation: what they change, and what they must leave alone."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch
from PIL import Image
from torch import nn
from torch.nn import functional as F

from solvers.tables import BitChoices
from trainers.checkpoint import load_tensors, state_hash
from trainers.data import BatchPlan, load_data
from trainers.errors import DataError, DivergedError, InterruptedPhaseError, ModelError
from trainers.limpq.config import IndicatorConfig
from trainers.limpq.indicators import JointStep
from trainers.loop import Move, Training
from trainers.loss_scale import GROW_AFTER, LEAST, START, LossScale
from trainers.meters import Meter
from trainers.optim import fused, make_sgd
from trainers.phases import DataSpec, PhaseContext
from trainers.precision import backward, loss_scale_of, run_as
from trainers.quant.wrap import quantize_network
from trainers.recipes import OptimizerConfig

IMAGES = load_data(DataSpec(name="digits"), 0).train.subset(torch.arange(64))
CHOICES = BitChoices(weight_bits=(2, 4), act_bits=(2, 4))


def network(*, norm: bool = False) -> nn.Sequential:
    torch.manual_seed(1)
    return nn.Sequential(
        nn.Conv2d(1, 4, 3, padding=1),
        nn.BatchNorm2d(4) if norm else nn.Identity(),
        nn.ReLU(),
        nn.Conv2d(4, 4, 3, padding=1, groups=4),
        nn.ReLU(),
        nn.Flatten(),
        nn.Linear(256, 32),
        nn.ReLU(),
        nn.Linear(32, 10),
    )


def train(folder, model, accumulate, *, parts=1, updates=3, **settings):
    recipe = OptimizerConfig(lr=0.01)
    optimizer = make_sgd(model.parameters(), recipe)
    meter = settings.pop("meter", Meter())
    move = Move(name="job", optimizer=optimizer, accumulate=accumulate, **settings)
    training = Training(
        model=model,
        plan=BatchPlan(images=IMAGES, batch_size=16, seed=0, stream="job", accumulate=parts),
        total_updates=updates,
        moves=lambda update: (move,),
        context=PhaseContext.alone(folder),
        stream="job",
        seed=0,
        meter=meter,
        folder=folder / "checkpoints",
    )
    return training.run()


def task(model):
    def accumulate(batch, update):
        loss = F.cross_entropy(model(batch[0].to(next(model.parameters()).dtype)), batch[1])
        backward(model, loss)
        return loss.detach()

    return accumulate


def joint(folder, parts):
    """Three joint updates of LIMPQ in float64 without BatchNorm; parameters and loss."""
    model = network().double()
    recipe = IndicatorConfig(batchnorm="shared", random_pass="separate")
    quantized = quantize_network(
        model, choices=CHOICES, sample=IMAGES.batch(torch.arange(8), None)[0].double()
    )
    quantized.set_world_size(1, accumulation=parts)
    meter = Meter()
    step = JointStep(quantized, CHOICES, recipe, 0, meter)
    metrics = train(
        folder,
        model,
        lambda batch, update: step.accumulate((batch[0].double(), batch[1]), update),
        parts=parts,
        meter=meter,
    )
    return {name: p.detach().clone() for name, p in model.named_parameters()}, metrics, meter


def test_accumulated_joint_updates_are_those_of_the_whole_batch(tmp_path):
    whole, metrics, meter = joint(tmp_path / "whole", 1)
    cut, cut_metrics, cut_meter = joint(tmp_path / "cut", 4)
    assert any("steps" in name for name in whole)
    for name, value in whole.items():
        assert torch.allclose(cut[name], value, rtol=1e-9, atol=1e-12), name
    assert cut_metrics["job_loss"] == pytest.approx(metrics["job_loss"], rel=1e-9)
    # The same passes, and one without gradients that starts the step sizes.
    assert cut_meter.backward_passes == meter.backward_passes == 9
    assert cut_meter.images == meter.images + 3 * 16


def test_accumulation_without_the_gradient_scale_of_the_whole_batch_would_be_noticed(
    tmp_path, monkeypatch
):
    whole, _, _ = joint(tmp_path / "whole", 1)
    monkeypatch.setattr(
        "trainers.quant.handle.QuantNetwork.set_world_size", lambda self, n, accumulation: None
    )
    cut, _, _ = joint(tmp_path / "cut", 4)
    assert any(not torch.allclose(cut[name], value, rtol=1e-9) for name, value in whole.items())


def test_the_pass_that_starts_step_sizes_leaves_batchnorm_alone(tmp_path):
    model = network(norm=True)
    quantized = quantize_network(
        model, choices=CHOICES, sample=IMAGES.batch(torch.arange(8), None)[0]
    )
    quantized.set_uniform(4)
    train(tmp_path, model, task(model), parts=2, updates=1)
    assert int(model[1].num_batches_tracked) == 2, "one for each part"


def test_parts_must_be_equal():
    with pytest.raises(DataError, match="16 on 2 workers cannot be passed in 3 equal parts"):
        BatchPlan(images=IMAGES, batch_size=16, seed=0, stream="s", accumulate=3, world_size=2)


def outputs(model, *, training: bool) -> torch.Tensor:
    model.train(training)
    return model(IMAGES.batch(torch.arange(16), None)[0])


def test_bf16_passes_are_close_and_evaluation_is_untouched():
    model, plain = network(), network()
    run_as(model, OptimizerConfig(precision="bf16"))
    seen = []
    model[0].register_forward_hook(lambda m, args, y: seen.append(y.dtype))
    low, high = outputs(model, training=True), outputs(plain, training=True)
    assert seen == [torch.bfloat16]
    assert low.dtype == torch.float32
    assert not torch.equal(low, high)
    assert torch.allclose(low, high, atol=0.05)
    assert torch.equal(outputs(model, training=False), outputs(plain, training=False))
    assert not torch.is_autocast_enabled("cpu")


def test_an_error_inside_a_pass_leaves_autocast():
    model = network()
    run_as(model, OptimizerConfig(precision="bf16"))
    with pytest.raises(RuntimeError):
        model(torch.zeros(2, 3, 8, 8))
    assert not torch.is_autocast_enabled("cpu")


@pytest.mark.parametrize("bits", [2, 6])
def test_quantized_codes_survive_bf16(bits):
    """The levels of a 16-bit input are those of its float32 value: v / s is computed in 32 bits."""
    model = network()
    choices = BitChoices(weight_bits=(bits,), act_bits=(bits,))
    quantized = quantize_network(
        model, choices=choices, sample=IMAGES.batch(torch.arange(8), None)[0]
    )
    quantized.set_uniform(bits)
    run_as(model, OptimizerConfig(precision="bf16"))
    seen = {}
    layer = quantized.layers[quantized.searched[0]]
    layer.act_quantizer.register_forward_hook(
        lambda m, args, y: seen.update(v=args[0].detach(), o=y.detach())
    )
    loss = F.cross_entropy(outputs(model, training=True), torch.zeros(16, dtype=torch.long))
    assert seen["v"].dtype == seen["o"].dtype == torch.bfloat16
    step = float(layer.act_quantizer.steps.detach())
    levels = torch.clamp(torch.round(seen["v"].float() / step), 0, 2**bits - 1)
    assert torch.equal(seen["o"], (levels * step).bfloat16())
    loss.backward()
    assert layer.act_quantizer.steps.grad.dtype == torch.float32
    assert math.isfinite(float(layer.act_quantizer.steps.grad))


def test_channels_last_gives_the_same_network_and_layout_reaches_the_layers():
    model, plain = network(norm=True), network(norm=True)
    run_as(model, OptimizerConfig(channels_last=True))
    layouts = []
    model[3].register_forward_pre_hook(
        lambda m, args: layouts.append(args[0].is_contiguous(memory_format=torch.channels_last))
    )
    low, high = outputs(model, training=True), outputs(plain, training=True)
    assert layouts == [True]
    assert torch.allclose(low, high, atol=1e-5)


def test_full_precision_in_the_usual_layout_adds_nothing_to_a_network():
    model = network()
    run_as(model, OptimizerConfig())
    assert not model._forward_pre_hooks
    assert not model._forward_hooks
    assert loss_scale_of(model) is None


def test_a_loss_scale_that_overflows_nothing_changes_nothing(tmp_path):
    """Scaling by a power of two is exact: fp16's loop over a float32 network is fp32's."""
    model, scaled = network(), network()
    run_as(scaled, OptimizerConfig(precision="fp16"))
    scaled._forward_pre_hooks[next(iter(scaled._forward_pre_hooks))].__self__.dtype = None
    train(tmp_path / "a", model, task(model))
    train(tmp_path / "b", scaled, task(scaled))
    assert state_hash(model.state_dict()) == state_hash(scaled.state_dict())
    newest = sorted((tmp_path / "b" / "checkpoints").glob("step-*"))[-1]
    saved = load_tensors(newest / "shared.pt")
    assert saved["loss_scale"] == {"value": START, "skipped": 0.0, "clean": 3.0}
    assert "loss_scale" not in load_tensors(
        sorted((tmp_path / "a" / "checkpoints").glob("step-*"))[-1] / "shared.pt"
    )


def test_an_overflow_skips_the_update_and_halves_the_scale(tmp_path):
    model = network()
    run_as(model, OptimizerConfig(precision="fp16"))
    model._forward_pre_hooks[next(iter(model._forward_pre_hooks))].__self__.dtype = None
    before = state_hash(model.state_dict())
    inner = task(model)

    def accumulate(batch, update):
        loss = inner(batch, update)
        model[0].bias.grad[0] = math.inf
        return loss

    train(tmp_path / "once", model, accumulate, updates=1)
    scale = loss_scale_of(model)
    assert (scale.value, scale.skipped) == (START / 2, 1)
    assert state_hash(model.state_dict()) == before
    scale.value = LEAST
    with pytest.raises(DivergedError):
        train(tmp_path / "dead", model, accumulate, updates=1)


def test_a_phase_without_loss_scaling_is_refused_in_fp16(tmp_path):
    model = network()
    run_as(model, OptimizerConfig(precision="fp16"))
    model._forward_pre_hooks[next(iter(model._forward_pre_hooks))].__self__.dtype = None

    def accumulate(batch, update):
        loss = F.cross_entropy(model(batch[0]), batch[1])
        loss.backward()
        return loss

    with pytest.raises(ModelError, match="job does not scale its loss; use precision bf16"):
        train(tmp_path, model, accumulate)


def test_the_loss_scale_grows_after_a_while_without_overflow():
    scale = LossScale()
    for _ in range(GROW_AFTER):
        scale.after_update(overflowed=False)
    assert scale.value == 2 * START
    other = LossScale()
    other.load_state_dict(scale.state_dict())
    assert (other.value, other.state_dict()) == (scale.value, scale.state_dict())


def test_determinism_is_switched_on_and_off():
    run_as(network(), OptimizerConfig(deterministic=True))
    assert torch.are_deterministic_algorithms_enabled()
    run_as(network(), OptimizerConfig())
    assert not torch.are_deterministic_algorithms_enabled()


def test_fused_updates_are_for_gpus_only():
    assert fused(network().parameters()) is None


class Training3(nn.Sequential):
    """A small network for colour images."""

    def __init__(self) -> None:
        torch.manual_seed(2)
        super().__init__(
            nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Flatten(), nn.Linear(4 * 100, 3)
        )


@pytest.mark.parametrize("name", ["imagefolder", "imagenet_parquet"])
def test_a_resume_in_mid_epoch_of_a_set_on_demand_is_exact(tmp_path, name):
    from trainers.data.pack import PackSettings, pack_folder

    for split, count in (("train", 30), ("val", 3)):
        for i in range(count):
            place = tmp_path / "images" / split / f"c{i % 3}"
            place.mkdir(parents=True, exist_ok=True)
            noise = torch.randint(0, 256, (20, 24, 3), generator=torch.Generator().manual_seed(i))
            Image.fromarray(noise.to(torch.uint8).numpy()).save(place / f"{i}.jpg")
    root = tmp_path / "images"
    if name == "imagenet_parquet":
        pack_folder(str(root), tmp_path / "shards", PackSettings(images_per_shard=7))
        root = tmp_path / "shards"

    def run(folder, threads, stop_at):
        options = {"resolution": 12, "decode_workers": threads}
        data = load_data(DataSpec(name=name, path=str(root), options=options), 0)
        plan = BatchPlan(images=data.train, batch_size=6, seed=0, stream="s", augment=data.augment)
        model, asked = Training3(), []
        move = Move(
            name="job", optimizer=make_sgd(model.parameters(), OptimizerConfig(lr=0.1)),
            accumulate=task(model),
        )  # fmt: skip

        def should_stop():
            asked.append(1)
            return len(asked) == stop_at

        training = Training(
            model=model, plan=plan, total_updates=8, moves=lambda update: (move,), stream="s",
            context=replace(PhaseContext.alone(folder), should_stop=should_stop), seed=0,
            meter=Meter(), folder=folder / "checkpoints",
        )  # fmt: skip
        if stop_at:
            with pytest.raises(InterruptedPhaseError):
                training.run()
            return run(folder, threads + 1, 0)
        training.run()
        return state_hash({"model": model.state_dict(), "sgd": move.optimizer.state_dict()})

    assert run(tmp_path / "a", 0, 0) == run(tmp_path / "b", 1, 3)
