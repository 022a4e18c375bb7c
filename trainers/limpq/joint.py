"""What does joint training leave, so that its quantized network can be made again?

The state alone does not say how it was wrapped: which layers were pinned at what, whether each
BatchNorm has copies, where step sizes are clamped. One file holds both, for phases that judge whole
policies by the jointly trained weights.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from solvers.tables import BitChoices
from trainers.checkpoint import load_tensors
from trainers.data import ImageData
from trainers.errors import CheckpointError
from trainers.limpq.config import IndicatorConfig
from trainers.phases import PhaseContext, PhaseSpec
from trainers.quant.handle import QuantNetwork
from trainers.quant.pins import Pin
from trainers.setup import make_network, quantize

JOINT = "joint.pt"


def joint_state(
    network: QuantNetwork, recipe: IndicatorConfig, pins: tuple[Pin, ...]
) -> dict[str, Any]:
    """What ``load_joint`` needs: the state, and how the network was wrapped for it."""
    return {
        "state": network.model.state_dict(),
        "settings": {
            "batchnorm": recipe.batchnorm,
            "step_clamp": None if recipe.step_clamp is None else list(recipe.step_clamp),
            "negative_inputs": recipe.negative_inputs,
            "pins": [list(pin) for pin in pins],
            "input_ranges": dict(network.kinds),
        },
    }


def load_joint(
    path: Path, data: ImageData, choices: BitChoices, spec: PhaseSpec, context: PhaseContext
) -> QuantNetwork:
    """The network of joint training with its weights, step sizes and BatchNorm copies.

    Args:
        path: output ``joint`` of phase ``limpq.indicators``.
        data: the images of that training; a sample of them decides which inputs are signed.
        choices: its candidates.
        spec: names the network; ``weights`` among its inputs is what the training started from.
        context: this rank.

    Raises:
        CheckpointError: the file holds no joint state, or that of another network or candidates.
    """
    stored = load_tensors(path, context.device)
    if not isinstance(stored, dict) or not {"state", "settings"} <= stored.keys():
        raise CheckpointError(
            f"{path} holds no joint state; take output 'joint' of phase limpq.indicators"
        )
    settings = stored["settings"]
    clamp = settings["step_clamp"]
    recipe = IndicatorConfig(
        batchnorm=settings["batchnorm"],
        step_clamp=None if clamp is None else (clamp[0], clamp[1]),
        negative_inputs=settings["negative_inputs"],
    )
    network = quantize(
        make_network(spec, context),
        data,
        choices,
        recipe,
        spec,
        context,
        pins=tuple((pattern, w, a) for pattern, w, a in settings["pins"]),
        batchnorm=recipe.batchnorm,
    )
    try:
        network.model.load_state_dict(stored["state"])
    except RuntimeError as error:
        raise CheckpointError(
            f"{path} does not fit {spec.model.name} with candidates {list(choices.weight_bits)} "
            f"and {list(choices.act_bits)}: {error}"
        ) from error
    if dict(network.kinds) != settings["input_ranges"]:
        raise CheckpointError(
            f"{path} was trained with other input ranges (signed or not) than this network has; "
            "give the same full-precision weights and data as the joint training had"
        )
    return network
