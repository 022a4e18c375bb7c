"""How curved is the loss in each layer's weight, and in what each layer reads?

Traces by Hutchinson (HAWQ-V2): for z of independent signs E[z . Hz] = tr H, and one
product with a z over all tensors at once serves every layer (``trainers/hessian.py``).

For an activation H is the second derivative of one image's loss by that image's tensor, averaged
over the images (HAWQ-V2): in evaluation mode the images of a batch do not
see each other, so one product with a z over the batch is all their products.

Largest eigenvalues by power iteration (HAWQ): v <- Hv / |Hv| with a layer's own block
of H, so a product a layer; its eigenvalue is v . Hv. All layers of a batch share one graph.
"""

from __future__ import annotations

from functools import partial

import torch
from torch import Tensor
from torch.nn import functional as F

from trainers.baselines.calibration import Calibration
from trainers.baselines.config import HawqConfig, TraceConfig
from trainers.baselines.input_leaves import input_leaves
from trainers.baselines.progress import Progress
from trainers.data import Batch
from trainers.distributed import sum_over_ranks
from trainers.hessian import converged, dots, products, rademacher, times_hessian
from trainers.metamix.evidence_config import HessianConfig
from trainers.quant.reduce import mean_over_ranks
from trainers.quant.tracing import evaluating
from trainers.seeds import generator


def traces(
    calibration: Calibration, config: TraceConfig, progress: Progress, seed: int, *, acts: bool
) -> Tensor:
    """Hessian traces, with probes until every layer's running mean has settled.

    Args:
        calibration: the network, in full precision.
        config: number of probes and tolerance.
        progress: keeps every probe.
        seed: of the run.
        acts: also by what the layers read.

    Returns:
        The traces' samples, float64 [probes, layers] or, with ``acts``, [probes, 2 x layers],
        weights first. Their mean is the estimate.
    """
    rule = HessianConfig(min_probes=config.min_probes, max_probes=config.max_probes, tol=config.tol)
    rows: list[Tensor] = []
    while len(rows) < config.max_probes and not converged(rows, rule):
        probe = partial(trace_probe, calibration, seed, len(rows), acts=acts)
        rows.append(progress.once(f"probe {len(rows)}", probe))
    return torch.stack(rows)


def trace_probe(calibration: Calibration, seed: int, index: int, *, acts: bool) -> Tensor:
    """One sample of every trace, the same on every rank: a row of ``traces``."""
    weights = _weights(calibration)
    signs = rademacher(weights, seed, index)
    num_images = len(calibration.indices)
    num_layers = len(weights)
    total = torch.zeros(num_layers * (1 + acts), dtype=torch.float64)
    with evaluating(calibration.network.model):
        for number, batch in enumerate(calibration.batches()):
            total[:num_layers] += products(
                calibration.network.model, weights, signs, batch, num_images, calibration.meter
            )
            if acts:
                total[num_layers:] += _act_products(calibration, batch, seed, index, number)
    summed = sum_over_ranks(total.tolist(), calibration.context.device)
    return torch.tensor(summed, dtype=torch.float64)


def top_eigenvalues(
    calibration: Calibration, config: HawqConfig, progress: Progress, seed: int
) -> tuple[Tensor, int]:
    """The largest eigenvalue (in absolute value) of each layer's Hessian block, float64 [layers].

    Returns:
        The eigenvalues, and the number of iterations.
    """
    weights = _weights(calibration)
    layers = range(len(weights))
    values = torch.full((len(weights),), torch.inf, dtype=torch.float64)
    vectors = [_unit(torch.randn(w.shape, generator=generator(seed, "power", i)).to(w))
               for i, w in enumerate(weights)]  # fmt: skip
    first, is_open = 0, [True] * len(weights)
    if progress.has("power"):
        first, *flags = (int(v) for v in progress.get("power iteration").tolist())
        values, is_open = progress.get("power"), [bool(flag) for flag in flags]
        vectors = [progress.get(f"vector {i}").to(w) for i, w in enumerate(weights)]
    iteration = first
    while iteration < config.max_iterations and any(is_open):
        turned = _block_products(calibration, weights, vectors, is_open)
        old, values = values, values.clone()
        for i in layers:
            if is_open[i]:
                values[i] = float((vectors[i].double() * turned[i].double()).sum())
                vectors[i] = _unit(turned[i])
                is_open[i] = bool((values[i] - old[i]).abs() > config.tol * old[i].abs())
        # The first value has none before it to be compared with.
        is_open = [True] * len(weights) if iteration == 0 else is_open
        iteration += 1
        state = {f"vector {i}": vectors[i] for i in layers}
        state["power iteration"] = torch.tensor([iteration, *is_open])
        progress.keep({**state, "power": values}, f"iteration {iteration}")
    return values, iteration


def _weights(calibration: Calibration) -> list[Tensor]:
    return [calibration.network.layers[name].weight for name in calibration.searched]


def _act_products(
    calibration: Calibration, batch: Batch, seed: int, index: int, number: int
) -> Tensor:
    """Dot products z . Hz of every layer's input: the mean over images of those of the batch."""
    images, labels = batch
    layers = {name: calibration.network.layers[name] for name in calibration.searched}
    ranks, rank = calibration.context.world_size, calibration.context.rank
    num_images = len(calibration.indices)
    in_batch = min(calibration.batch_size, num_images - number * calibration.batch_size)
    with input_leaves(layers) as leaves:
        logits = calibration.network.model(images)
    calibration.meter.forward(len(labels))
    loss = F.cross_entropy(logits, labels, reduction="sum") / num_images
    inputs = [leaves[name] for name in layers]
    signs = []
    for i, leaf in enumerate(inputs):
        # Drawn for the whole batch: an image's signs do not depend on the number of ranks.
        rng = generator(seed, "hessian-acts", index, number, i)
        drawn = torch.randint(2, (in_batch, *leaf.shape[1:]), generator=rng, dtype=torch.int8)
        # Broken images may have been left out of the batch.
        signs.append((drawn[rank::ranks][: len(leaf)] * 2 - 1).to(leaf))
    gradients = torch.autograd.grad(loss, inputs, create_graph=True)
    calibration.meter.backward()
    return dots(signs, times_hessian(gradients, inputs, signs, calibration.meter))


def _block_products(
    calibration: Calibration, weights: list[Tensor], vectors: list[Tensor], is_open: list[bool]
) -> list[Tensor]:
    """Each open layer's own block of H times its vector, summed over batches and ranks."""
    meter, num_images = calibration.meter, len(calibration.indices)
    sums = [torch.zeros_like(w) for w in weights]
    with evaluating(calibration.network.model):
        for images, labels in calibration.batches():
            logits = calibration.network.model(images)
            meter.forward(len(labels))
            loss = F.cross_entropy(logits, labels, reduction="sum") / num_images
            gradients = torch.autograd.grad(loss, weights, create_graph=True)
            meter.backward()
            for i, total in enumerate(sums):
                if is_open[i]:
                    own = [gradients[i]], [weights[i]], [vectors[i]]
                    total += times_hessian(*own, meter, keep_graph=True)[0]
    ranks = calibration.context.world_size
    return [mean_over_ranks(total) * ranks for total in sums]


def _unit(vector: Tensor) -> Tensor:
    norm = vector.double().norm()
    return vector if norm == 0 else (vector / norm).to(vector.dtype)
