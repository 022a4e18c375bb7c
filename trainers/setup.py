"""What every phase does first: images, network, quantizers, from a specification."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import islice
from pathlib import Path

import torch
from torch import Tensor, nn

from solvers.tables import BitChoices
from trainers.checkpoint import load_tensors
from trainers.data import BatchPlan, ImageData, balanced_fraction, load_data
from trainers.data.images import ImageSet
from trainers.distributed import share_from_rank_zero
from trainers.errors import ModelError
from trainers.meters import Meter
from trainers.models import build_model
from trainers.phases import PhaseContext, PhaseSpec
from trainers.precision import run_as
from trainers.quant.batchnorm import BatchNormMode
from trainers.quant.handle import QuantNetwork
from trainers.quant.options import QuantOptions
from trainers.quant.wrap import quantize_network
from trainers.recipes import OptimizerConfig, PactConfig, QuantTrainingConfig
from trainers.seeds import derive

# Images that decide which layer inputs can be negative.
SAMPLE_IMAGES = 64


def make_network(spec: PhaseSpec, context: PhaseContext) -> nn.Module:
    """The full-precision network, alike on every rank.

    Weights come from ``spec.inputs["weights"]`` (an earlier step) if given, else as the model
    specification says; fresh ones are drawn from the run's seed.

    Raises:
        ModelError: the weights belong to another network.
    """
    torch.manual_seed(derive(spec.seed, "weights"))
    model = build_model(spec.model)
    if "weights" in spec.inputs:
        path = Path(spec.inputs["weights"])
        state = load_tensors(path)
        try:
            model.load_state_dict(state)
        except RuntimeError as error:
            raise ModelError(f"{path} does not fit {spec.model.name}: {error}") from error
    model.to(context.device)
    share_from_rank_zero(model)
    return model


def make_data(spec: PhaseSpec, context: PhaseContext | None = None) -> ImageData:
    """The images of the specification; those that are skipped are listed in the step's folder.

    Raises:
        ModelError: the classifier is narrower than the data has classes.
    """
    data = load_data(spec.data, spec.seed)
    if data.num_classes > spec.model.num_classes:
        raise ModelError(
            f"{spec.data.name} has {data.num_classes} classes and {spec.model.name} was built for "
            f"{spec.model.num_classes}; set model.num_classes"
        )
    if data.bad is not None and context is not None:
        data.bad.write_to(context.step_dir, context.rank)
    return data


def make_plan(
    images: ImageSet,
    data: ImageData,
    recipe: OptimizerConfig,
    spec: PhaseSpec,
    context: PhaseContext,
) -> BatchPlan:
    """The training batches of a phase: its fraction of ``images``, its order, its augmentation."""
    if recipe.fraction < 1.0:
        images = images.subset(balanced_fraction(images.labels, recipe.fraction, spec.seed))
    return BatchPlan(
        images=images,
        batch_size=recipe.batch_size,
        seed=spec.seed,
        stream=spec.phase,
        augment=data.augment if recipe.augment else None,
        rank=context.rank,
        world_size=context.world_size,
        accumulate=recipe.accumulate,
        pinned=context.device.startswith("cuda"),
    )


def quantize(
    model: nn.Module,
    data: ImageData,
    choices: BitChoices,
    recipe: QuantTrainingConfig,
    spec: PhaseSpec,
    context: PhaseContext,
    *,
    pins: tuple[tuple[str, int, int], ...],
    batchnorm: BatchNormMode = "shared",
    pact: PactConfig | None = None,
) -> QuantNetwork:
    """Wrap ``model``; which inputs are signed is decided on the same training images everywhere.

    With ``pact`` its quantizers are PACT's instead of LSQ's.
    """
    some = torch.arange(min(SAMPLE_IMAGES, len(data.train)))
    sample, _ = data.train.batch(some, None)
    network = quantize_network(
        model,
        choices=choices,
        sample=sample.to(context.device),
        pins=pins,
        batchnorm=batchnorm,
        options=quant_options(recipe, pact),
    )
    network.set_world_size(context.world_size, accumulation=recipe.accumulate)
    run_as(network.model, recipe)
    return network


def quant_options(recipe: QuantTrainingConfig, pact: PactConfig | None = None) -> QuantOptions:
    """The quantizer that a recipe asks for; PACT's with ``pact``."""
    return QuantOptions(
        weight_init="lsq+" if recipe.weight_init == "lsq_plus" else recipe.weight_init,
        act_init=recipe.act_init,
        step_range=recipe.step_clamp,
        grad_scale=recipe.grad_scale,
        negative_inputs=recipe.negative_inputs,
        compiled=recipe.compile_quantizer,
        merge_relu=recipe.merge_relu,
        quantizer="lsq" if pact is None else "pact",
        clip_start=None if pact is None else pact.clip_start,
    )


def start_steps(
    network: QuantNetwork,
    plan: BatchPlan,
    recipe: QuantTrainingConfig,
    context: PhaseContext,
    meter: Meter,
) -> None:
    """Start activation step sizes from ``init_batches`` batches, seen in full precision.

    With one batch there is nothing to do: the first training pass at each bit-width starts its
    entry from the quantized network's own activations, as the published code does.
    """
    if recipe.init_batches == 1:
        return

    def some() -> Iterator[Tensor]:
        for images, _ in islice(plan.epoch(0), recipe.init_batches):
            context.alive()
            meter.forward(len(images))
            yield images.to(context.device)

    network.initialize(some())
