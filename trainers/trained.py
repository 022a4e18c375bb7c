"""How does a trained network come back from its weights, at the bits of its policy?

Nothing is looked at again: which inputs are signed, and from which step size each tensor starts,
was found on images in training and is part of its result. So neither images nor the
full-precision weights are needed, and nothing is drawn from the caller's random stream.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import torch

from solvers.policy import Policy, check_fits
from solvers.tables import CostTable
from trainers.checkpoint import load_tensors
from trainers.errors import ModelError
from trainers.models import build_model
from trainers.phases import ModelSpec
from trainers.quant.bank import RangeKind
from trainers.quant.handle import QuantNetwork
from trainers.quant.wrap import quantize_network
from trainers.recipes import TrainConfig
from trainers.setup import quant_options
from trainers.weight_training import fixed_bits


def load_network(
    model: ModelSpec,
    policy: Policy,
    costs: CostTable,
    recipe: TrainConfig,
    kinds: Mapping[str, RangeKind],
    weights: Path,
    device: str = "cpu",
) -> QuantNetwork:
    """The network of one weight training, in evaluation mode, at the policy's bits.

    It computes as it was measured: in float32, whatever precision it was trained in, and in the
    recipe's memory layout, since another one differs by rounding.

    Args:
        model: as it was trained; its own ``weights`` are not read.
        policy: the bits.
        costs: cost table of the network: its layers, pins and input shape.
        recipe: of the training; ``quantizer`` is the one that the policy was trained with.
        kinds: range of every layer's input, ``facts["input_ranges"]`` of the training's result.
        weights: ``weights.pt`` of the training.
        device: where the network goes.

    Raises:
        PolicyError: the policy is another network's.
        ModelError: the weights or ranges are another network's.
        CheckpointError: the weights cannot be read.
    """
    check_fits(policy, costs)
    pins, choices = fixed_bits(policy, costs)
    pact = recipe.pact if recipe.quantizer == "pact" else None
    with torch.random.fork_rng(devices=[]):
        bare = build_model(replace(model, weights=None))
    network = quantize_network(
        bare,
        choices=choices,
        sample=torch.zeros(1, *costs.input_shape),
        pins=pins,
        # The same numbers, and no compiler is needed to look at a network.
        options=replace(quant_options(recipe, pact), compiled=False),
        kinds=kinds,
    )
    network.set_bits({name: (b.weight_bits, b.act_bits) for name, b in policy.layers})
    try:
        network.model.load_state_dict(load_tensors(weights))
    except (RuntimeError, TypeError) as error:
        raise ModelError(
            f"{weights} does not fit {model.name} at policy {policy.policy_id}: {error}"
        ) from error
    network.model.to(device).eval()
    if recipe.channels_last:
        network.model.to(memory_format=torch.channels_last)
    return network
