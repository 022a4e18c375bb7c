"""What do layers read at which bits? Phase ``metamix.distributions``, Figures 1 and 6.

For every weight width (rows) and activation width (columns) the inputs of a few layers, before
their quantizer, as histograms over the same bins. ``single`` trains one network per cell;
``meta`` trains one meta-state per row, whose columns should then look alike; ``none`` trains
nothing. BatchNorm uses its running statistics throughout, which a cell of ``single`` has to itself
and all columns of the others share.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import pyarrow as pa
import torch
from torch import Tensor, nn

from solvers.parquet import write_table
from solvers.tables import BitChoices
from trainers.data import Batch
from trainers.errors import ModelError
from trainers.loop import Training
from trainers.metamix.config import MetaMixConfig
from trainers.metamix.evidence_config import DistributionConfig
from trainers.metamix.setup import MetaTraining, prepare
from trainers.metamix.tables import DISTRIBUTIONS_COLUMNS, DISTRIBUTIONS_SCHEMA
from trainers.meters import device_name
from trainers.phases import Cost, PhaseContext, PhaseResult, PhaseSpec
from trainers.quant.handle import Bits
from trainers.quant.tracing import evaluating
from trainers.results import finish_phase, load_result

TABLE = "distributions.parquet"


def run(spec: PhaseSpec, context: PhaseContext) -> PhaseResult:
    """Train and count every cell.

    ``config`` is a ``DistributionConfig``. Inputs: ``weights``, ``costs``. Outputs:
    ``distributions`` (Parquet: weight_bits, act_bits, layer, left, right, count, variance).
    Metrics: ``w<bits>_spread``, for each weight width the largest over the smallest variance over
    activation widths, averaged over the layers; 1 = they agree.

    Raises:
        DivergedError: a loss or gradient stopped being finite.
        ModelError: no such layer.
    """
    done = load_result(context.step_dir / "result.json")
    if done is not None:
        return done
    config: DistributionConfig = spec.config
    assert spec.choices is not None, "the plan gives every search phase its candidates"
    acts = spec.choices.act_bits
    columns: dict[str, list[Any]] = {name: [] for name in DISTRIBUTIONS_COLUMNS}
    metrics, cost = {}, Cost()
    ranges: dict[str, tuple[float, float]] = {}
    fingerprint = ""
    for weight_bits in config.weight_bits:
        variances: dict[str, list[float]] = {}
        groups = [(a,) for a in acts] if config.training == "single" else [acts]
        for group in groups:
            choices = BitChoices(weight_bits=(weight_bits or 8,), act_bits=group)
            training = prepare(replace(spec, choices=choices), context, MetaMixConfig(meta=config))
            fingerprint = training.data.fingerprint
            layers = config.layers or _two_layers(training)
            if not ranges:
                ranges = _full_precision_ranges(training, config, layers)
            passes = [_bits(training, weight_bits, a) for a in group]
            _train(training, passes, spec, context, f"w{weight_bits}a{'-'.join(map(str, group))}")
            cost = cost + training.meter.total()
            for act_bits, bits in zip(group, passes, strict=True):
                context.alive()
                for layer, (counts, variance) in _count(training, config, bits, ranges).items():
                    variances.setdefault(layer, []).append(variance)
                    low, high = ranges[layer]
                    width = (high - low) / config.bins
                    for i, count in enumerate(counts):
                        left = low + i * width
                        row = (weight_bits, act_bits, layer, left, left + width, count, variance)
                        for column, value in zip(columns.values(), row, strict=True):
                            column.append(value)
        spreads = [max(v) / max(min(v), 1e-30) for v in variances.values()]
        metrics[f"w{weight_bits or 32}_spread"] = sum(spreads) / len(spreads)
    result = PhaseResult(
        phase=spec.phase,
        outputs={"distributions": TABLE},
        metrics=metrics,
        cost=cost,
        device=device_name(context.device),
        facts={
            "data_fingerprint": fingerprint,
            "layers": list(ranges),
            "training": config.training,
        },
    )
    if context.rank == 0:
        arrays = {name: pa.array(values) for name, values in columns.items()}
        write_table(
            context.step_dir / TABLE, DISTRIBUTIONS_SCHEMA, {"training": config.training}, arrays
        )
        finish_phase(context.step_dir, result)
    return result


def _bits(training: MetaTraining, weight_bits: int, act_bits: int) -> dict[str, Bits]:
    """Uniform bits of searched layers; pinned layers have full-precision weights where all do."""
    network = training.network
    return {
        name: (
            (network.pinned[name][0] if name in network.pinned else weight_bits)
            if weight_bits
            else None,
            network.pinned[name][1] if name in network.pinned else act_bits,
        )
        for name in network.layers
    }


def _train(
    training: MetaTraining,
    passes: list[dict[str, Bits]],
    spec: PhaseSpec,
    context: PhaseContext,
    name: str,
) -> None:
    """Train at every one of ``passes`` with the mean of their losses (equation 1)."""
    config: DistributionConfig = spec.config
    if config.training == "none":
        images, _ = _images(training, config)
        training.network.initialize([images.to(context.device)])
        return
    training.step.passes = tuple(passes)
    # No search follows, so the schedule ends with this training.
    move = training.move(MetaMixConfig(meta=config), 0, total=training.meta_updates)
    Training(
        model=training.network.model,
        plan=training.plan,
        total_updates=training.meta_updates,
        moves=lambda update: (move,),
        context=context,
        stream=f"{spec.phase}/{name}",
        seed=spec.seed,
        meter=training.meter,
        folder=context.step_dir / name / "checkpoints",
    ).run()


def _two_layers(training: MetaTraining) -> tuple[str, ...]:
    names = training.network.searched
    return (names[min(2, len(names) - 1)], names[-min(3, len(names))])


def _full_precision_ranges(
    training: MetaTraining, config: DistributionConfig, layers: tuple[str, ...]
) -> dict[str, tuple[float, float]]:
    """Layer -> histogram bounds, from the untrained full-precision network."""
    unknown = [name for name in layers if name not in training.network.layers]
    if unknown:
        raise ModelError(f"distributions: no layer {unknown[0]!r}")
    training.network.set_full_precision()
    inputs = _inputs(training, config, layers)
    return {
        name: (min(0.0, config.reach * float(x.min())), config.reach * float(x.max()))
        for name, x in inputs.items()
    }


def _count(
    training: MetaTraining,
    config: DistributionConfig,
    bits: Mapping[str, Bits],
    ranges: Mapping[str, tuple[float, float]],
) -> dict[str, tuple[list[int], float]]:
    """Layer -> (counts of each bin, variance); values beyond the bounds count in the end bins."""
    training.network.restore_bits(bits)
    found = {}
    for name, x in _inputs(training, config, tuple(ranges)).items():
        low, high = ranges[name]
        counts = torch.histc(x.clamp(low, high), bins=config.bins, min=low, max=high)
        found[name] = ([int(c) for c in counts], float(x.double().var(correction=0)))
    return found


@torch.no_grad()
def _inputs(
    training: MetaTraining, config: DistributionConfig, layers: tuple[str, ...]
) -> dict[str, Tensor]:
    """What the layers read in evaluation mode, flat, on the CPU."""
    network = training.network
    found: dict[str, Tensor] = {}

    def note(name: str) -> Any:
        def hook(_: nn.Module, args: tuple[Tensor, ...]) -> None:
            found[name] = args[0].detach().float().cpu().flatten()

        return hook

    images, _ = _images(training, config)
    device = next(network.model.parameters()).device
    handles = [network.layers[n].register_forward_pre_hook(note(n)) for n in layers]
    try:
        with evaluating(network.model):
            network.model(images.to(device))
    finally:
        for handle in handles:
            handle.remove()
    return {name: found[name] for name in layers}


def _images(training: MetaTraining, config: DistributionConfig) -> Batch:
    """The training images that are counted, unchanged."""
    images = training.data.train
    return images.batch(torch.arange(min(config.images, len(images))), None)
