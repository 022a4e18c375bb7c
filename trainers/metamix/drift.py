"""How far do BatchNorm statistics follow the bits? Phase ``metamix.drift``, Figure 2.

The activation width of one layer is drawn anew every so many updates, all others stay at the
widest, and the running variance of the BatchNorm behind that layer is recorded after every update.
Plain training tracks statistics in its own pass. With MetaMix the bit-meta passes leave them alone
and one more forward pass at the drawn bits tracks them: the same observer on other weights.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pyarrow as pa
import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from solvers.parquet import write_table
from solvers.tables import BitChoices
from trainers.data import Batch
from trainers.distributed import sum_over_ranks, world_size
from trainers.errors import ModelError
from trainers.loop import Training
from trainers.metamix.config import MetaMixConfig
from trainers.metamix.evidence_config import DriftConfig, Variant
from trainers.metamix.search_step import norms_at
from trainers.metamix.setup import MetaTraining, prepare
from trainers.metamix.tables import DRIFT_COLUMNS, DRIFT_SCHEMA
from trainers.meters import device_name
from trainers.phases import Cost, PhaseContext, PhaseResult, PhaseSpec
from trainers.precision import backward
from trainers.quant.handle import Bits
from trainers.quant.tracing import trace_network
from trainers.results import finish_phase, load_result
from trainers.seeds import generator
from trainers.setup import SAMPLE_IMAGES, make_data, make_network

TABLE = "drift.parquet"


def run(spec: PhaseSpec, context: PhaseContext) -> PhaseResult:
    """Record the drift of every variant from the same weights and the same draws.

    ``config`` is a ``DriftConfig``. Inputs: ``weights``, ``costs``. Outputs: ``drift`` (Parquet:
    variant, update, bits, variance, shift). Metrics: ``<variant>_spread``, the standard deviation
    of log variance over the second half, which is 0 when statistics do not follow the bits.

    Raises:
        DivergedError: a loss or gradient stopped being finite.
        ModelError: no such layer, or no BatchNorm reads its output.
    """
    done = load_result(context.step_dir / "result.json")
    if done is not None:
        return done
    config: DriftConfig = spec.config
    assert spec.choices is not None, "the plan gives every search phase its candidates"
    columns: dict[str, list[Any]] = {name: [] for name in DRIFT_COLUMNS}
    metrics, cost = {}, Cost()
    layer = norm = fingerprint = ""
    for variant in config.variants:
        training = prepare(
            replace(spec, choices=_choices(spec.choices, config, variant)),
            context,
            MetaMixConfig(meta=config),
        )
        fingerprint = training.data.fingerprint
        layer = layer or _watched_layer(training, config)
        norm = norm or _norm_behind(spec, context, layer)
        watch = _Watch(training, config, variant, layer, norm, spec.seed)
        Training(
            model=training.network.model,
            plan=training.plan,
            total_updates=training.meta_updates,
            moves=lambda update, watch=watch: (watch.move,),  # type: ignore[misc]
            context=context,
            stream=spec.phase,
            seed=spec.seed,
            meter=training.meter,
            folder=context.step_dir / variant / "checkpoints",
            extra={"records": watch},
        ).run()
        cost = cost + training.meter.total()
        for record in watch.records:
            for column, value in zip(columns.values(), (variant, *record), strict=True):
                column.append(value)
        settled = torch.tensor([r[2] for r in watch.records[len(watch.records) // 2 :]])
        metrics[f"{variant}_spread"] = float(settled.double().log().std(correction=0))
    result = PhaseResult(
        phase=spec.phase,
        outputs={"drift": TABLE},
        metrics=metrics,
        cost=cost,
        device=device_name(context.device),
        facts={
            "data_fingerprint": fingerprint,
            "layer": layer,
            "norm": norm,
            "variants": list(config.variants),
        },
    )
    if context.rank == 0:
        arrays = {name: pa.array(values) for name, values in columns.items()}
        write_table(context.step_dir / TABLE, DRIFT_SCHEMA, {"layer": layer, "norm": norm}, arrays)
        finish_phase(context.step_dir, result)
    return result


class _Watch:
    """One variant: its update, and (update, bits, variance, shift) after each."""

    def __init__(
        self,
        training: MetaTraining,
        config: DriftConfig,
        variant: Variant,
        layer: str,
        norm: str,
        seed: int,
    ) -> None:
        self.training, self.variant, self.layer, self.seed = training, variant, layer, seed
        found = training.network.model.get_submodule(norm)
        assert isinstance(found, _BatchNorm)
        self.norm = found
        self.change_every = config.change_every or training.plan.num_batches
        self.candidates = training.network.layers[layer].act_quantizer.candidates
        self.records: list[tuple[int, int, float, float]] = []
        # No search follows, so the schedule ends with the observation.
        move = training.move(MetaMixConfig(meta=config), 0, total=training.meta_updates)
        self.move = replace(move, accumulate=self._accumulate, after=self._record)

    def drawn_bits(self, update: int) -> int:
        """The layer's width in ``update``, the same for every variant."""
        rng = generator(self.seed, "drift", update // self.change_every)
        return self.candidates[int(torch.randint(len(self.candidates), (1,), generator=rng))]

    def state_dict(self) -> dict[str, Any]:
        """For a checkpoint."""
        return {"records": list(self.records)}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """From a checkpoint."""
        self.records = list(state["records"])

    def _bits(self, update: int) -> dict[str, Bits]:
        network = self.training.network
        is_quantized = self.variant == "quantized_weights"
        widest = {
            name: (
                max(layer.weight_quantizer.candidates, default=None) if is_quantized else None,
                # A pin of 0 bits leaves no candidates: full precision.
                max(layer.act_quantizer.candidates, default=None),
            )
            for name, layer in network.layers.items()
        }
        return {**widest, self.layer: (widest[self.layer][0], self.drawn_bits(update))}

    def _accumulate(self, batch: Batch, update: int) -> Tensor:
        training, (images, labels) = self.training, batch
        model = training.network.model
        if self.variant == "metamix":
            with norms_at(model, "batch"):
                loss = training.step.accumulate(batch, update)
            training.network.restore_bits(self._bits(update))
            with torch.no_grad():
                model(images)
            training.meter.forward(len(labels))
            return loss
        training.network.restore_bits(self._bits(update))
        soft = training.loss.targets(images)
        if soft is not None:
            training.meter.forward(len(labels))
        loss = training.loss(model(images), labels, soft)
        training.meter.forward(len(labels))
        backward(model, loss)
        training.meter.backward()
        return loss

    def _record(self, update: int) -> None:
        assert self.norm.running_var is not None
        assert self.norm.running_mean is not None
        # Statistics are per rank; what is recorded is their mean, the same on every rank.
        device = str(self.norm.running_var.device)
        own = [float(self.norm.running_var.mean()), float(self.norm.running_mean.abs().mean())]
        variance, shift = (v / world_size() for v in sum_over_ranks(own, device))
        self.records.append((update + 1, self.drawn_bits(update), variance, shift))


def _choices(choices: BitChoices, config: DriftConfig, variant: Variant) -> BitChoices:
    bits = config.weight_bits if variant == "quantized_weights" else choices.weight_bits[-1]
    return BitChoices(weight_bits=(bits,), act_bits=choices.act_bits)


def _watched_layer(training: MetaTraining, config: DriftConfig) -> str:
    searched = training.costs.searched
    if config.layer is not None:
        if config.layer not in {layer.name for layer in searched}:
            raise ModelError(f"drift: no searched layer {config.layer!r}")
        return config.layer
    depthwise = [layer.name for layer in searched if layer.kind == "depthwise"]
    return depthwise[0] if depthwise else searched[min(2, len(searched) - 1)].name


def _norm_behind(spec: PhaseSpec, context: PhaseContext, layer: str) -> str:
    images, _ = make_data(spec).train.batch(torch.arange(min(2, SAMPLE_IMAGES)), None)
    model: nn.Module = make_network(spec, context)
    for norm, source in trace_network(model, images.to(context.device)).norm_source.items():
        if source == layer:
            return norm
    raise ModelError(f"drift: no BatchNorm reads the output of layer {layer!r}")
