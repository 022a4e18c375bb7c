"""How curved is the loss in each layer's weights? Hessian traces by Hutchinson: phase ``hessian``.

For v with independent entries +1 and -1, E[v . Hv] = tr H. One product with a v over all weights
at once serves every layer: v_l . (Hv)_l has expectation tr H_ll, because the blocks between layers
meet independent signs. That costs one product a probe instead of one a layer, for more variance,
which the standard errors hold. The network is in full precision and in evaluation mode, so the
loss is a mean over images, and a product is the sum of the ranks' products over their share.

A layer's trace over its number of weights is HAWQ-V2's average trace; MetaMix's Figure 7 (b)
divides the trace by the layer's operations.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import torch
from torch import Tensor, nn

from solvers.parquet import write_table
from solvers.storage import load_costs
from trainers.checkpoint import load_tensors, save_tensors
from trainers.data import Batch
from trainers.distributed import check_same, sum_over_ranks
from trainers.errors import DivergedError, InterruptedPhaseError
from trainers.metamix.evidence_config import HessianConfig
from trainers.metamix.tables import HESSIAN_COLUMNS, HESSIAN_SCHEMA
from trainers.meters import Meter, device_name
from trainers.phases import Cost, PhaseContext, PhaseResult, PhaseSpec
from trainers.quant.tracing import evaluating
from trainers.results import load_result, save_result
from trainers.seeds import generator
from trainers.setup import make_data, make_network

TABLE, PROBES = "hessian.parquet", "probes.pt"


def run(spec: PhaseSpec, context: PhaseContext) -> PhaseResult:
    """Estimate the trace of every layer that the cost table counts.

    ``config`` is a ``HessianConfig``. Inputs: ``weights``, ``costs``. Outputs: ``hessian``
    (Parquet: layer, trace, standard_error, num_weights). Metrics: ``num_probes``, and
    ``largest_relative_error``, the largest standard error over its trace.

    Raises:
        DivergedError: a product is not finite.
        InterruptedPhaseError: the driver asked to stop; the probes so far are kept.
    """
    done = load_result(context.step_dir / "result.json")
    if done is not None:
        return done
    config: HessianConfig = spec.config
    names = load_costs(Path(spec.inputs["costs"])).names
    data = make_data(spec, context)
    model = make_network(spec, context)
    weights = [model.get_parameter(f"{name}.weight") for name in names]
    num_images = min(config.images, len(data.train))
    meter = Meter(context.device)
    rows = _restore(context, meter)
    with evaluating(model):
        while len(rows) < config.max_probes and not converged(rows, config):
            probe = rademacher(weights, spec.seed, len(rows))
            own = torch.zeros(len(weights), dtype=torch.float64)
            # A rank's images are every world_size-th; batches follow the same order on each.
            for start in range(context.rank, num_images, config.batch_size):
                context.alive()
                stop = min(start - context.rank + config.batch_size, num_images)
                images, labels = data.train.batch(
                    torch.arange(start, stop, context.world_size), None
                )
                batch = (images.to(context.device), labels.to(context.device))
                own += products(model, weights, probe, batch, num_images, meter)
            words = [*own.tolist(), float(context.should_stop())]
            *total, num_stopping = sum_over_ranks(words, context.device)
            row = torch.tensor(total, dtype=torch.float64)
            if not row.isfinite().all():
                raise DivergedError(
                    f"hessian: the product of probe {len(rows)} is not finite in layer "
                    f"{names[int((~row.isfinite()).nonzero()[0])]!r}; look at the weights"
                )
            rows.append(row)
            if num_stopping:
                _keep(context, rows, meter.total())
                raise InterruptedPhaseError(f"stopped after probe {len(rows)}")
    values = torch.stack(rows)
    traces = values.mean(dim=0)
    errors = values.std(dim=0) / len(rows) ** 0.5
    relative = torch.where(errors > 0, errors / traces.abs(), 0.0)
    result = PhaseResult(
        phase=spec.phase,
        outputs={"hessian": TABLE},
        metrics={
            "num_probes": float(len(rows)),
            "largest_relative_error": float(relative.max()),
        },
        cost=meter.total(),
        device=device_name(context.device),
        facts={
            "converged": converged(rows, config),
            "num_images": num_images,
            "data_fingerprint": data.fingerprint,
        },
    )
    if context.rank == 0:
        sizes = [weight.numel() for weight in weights]
        columns = (names, traces.tolist(), errors.tolist(), sizes)
        arrays = {n: pa.array(v) for n, v in zip(HESSIAN_COLUMNS, columns, strict=True)}
        write_table(context.step_dir / TABLE, HESSIAN_SCHEMA, {"num_probes": len(rows)}, arrays)
        save_result(context.step_dir / "result.json", result)
    return result


def rademacher(weights: Sequence[Tensor], seed: int, index: int) -> list[Tensor]:
    """Probe number ``index``: +1 and -1 in the shapes of ``weights``, the same on every rank."""
    rng = generator(seed, "hessian", index)
    return [
        (torch.randint(2, w.shape, generator=rng) * 2 - 1).to(device=w.device, dtype=w.dtype)
        for w in weights
    ]


def products(
    model: nn.Module,
    weights: Sequence[Tensor],
    probe: Sequence[Tensor],
    batch: Batch,
    num_images: int,
    meter: Meter,
) -> Tensor:
    """v_l . (Hv)_l for each tensor of ``weights``, shape [len(weights)], float64 on the CPU.

    H is that of the batch's summed cross entropy over ``num_images``.
    """
    images, labels = batch
    loss = nn.functional.cross_entropy(model(images), labels, reduction="sum") / num_images
    meter.forward(len(labels))
    gradients = torch.autograd.grad(loss, weights, create_graph=True)
    meter.backward()
    return dots(probe, times_hessian(gradients, weights, probe, meter))


def times_hessian(
    gradients: Sequence[Tensor],
    tensors: Sequence[Tensor],
    vector: Sequence[Tensor],
    meter: Meter,
    *,
    keep_graph: bool = False,
) -> tuple[Tensor, ...]:
    """H times ``vector``, where ``gradients`` are those of the loss by ``tensors``, with graph."""
    product = torch.autograd.grad(
        gradients, tensors, grad_outputs=vector, materialize_grads=True, retain_graph=keep_graph
    )
    meter.hessian_vector_product()
    return product


def dots(a: Sequence[Tensor], b: Sequence[Tensor]) -> Tensor:
    """a_l . b_l of each pair of tensors, shape [len(a)], float64 on the CPU."""
    return torch.stack([(x.double() * y.double()).sum() for x, y in zip(a, b, strict=True)]).cpu()


def converged(rows: Sequence[Tensor], config: HessianConfig) -> bool:
    """Whether the newest probe changed no layer's running mean by more than ``tol``, relatively.

    Absolute values in the denominator: a trace may be negative. A layer whose trace is exactly 0
    (dead) has converged.
    """
    if len(rows) < config.min_probes:
        return False
    values = torch.stack(list(rows))
    before, after = values[:-1].mean(dim=0), values.mean(dim=0)
    return bool(((after - before).abs() <= config.tol * before.abs()).all())


def _keep(context: PhaseContext, rows: Sequence[Tensor], cost: Cost) -> None:
    if context.rank == 0:
        spent = {name: getattr(cost, name) for name in Cost.__dataclass_fields__}
        save_tensors(context.step_dir / PROBES, {"rows": torch.stack(list(rows)), "cost": spent})


def _restore(context: PhaseContext, meter: Meter) -> list[Tensor]:
    """The probes of an attempt that was stopped."""
    rows: list[Tensor] = []
    path = context.step_dir / PROBES
    if path.is_file():
        state: dict[str, Any] = load_tensors(path)
        rows, meter.before = list(state["rows"]), Cost(**state["cost"])
    check_same("the probe to go on from", len(rows), context.device)
    return rows
