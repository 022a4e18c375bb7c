"""Which of the papers' observations does a run repeat? Section ``evidence`` as steps, pure.

Each part is a phase of its own on the full-precision weights: none needs another.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass

from solvers.tables import CostTable
from trainers.errors import ModelError
from trainers.metamix.evidence_config import (
    DistributionConfig,
    DriftConfig,
    EvidenceConfig,
    HessianConfig,
)
from trainers.sensitivity_config import SensitivityConfig

_TRAINED = {"single": "one network a pair of bits", "meta": "one meta-state", "none": "untrained"}


@dataclass(frozen=True, kw_only=True, slots=True)
class Part:
    """One observation.

    Attributes:
        name: of its step.
        action: its phase in the trainers room.
        recipe: the phase's configuration.
        about: one clause for ``mpq plan``.
    """

    name: str
    action: str
    recipe: DriftConfig | DistributionConfig | HessianConfig | SensitivityConfig
    about: str


def evidence_parts(config: EvidenceConfig) -> tuple[Part, ...]:
    """Every observation that is asked for, each under a name of its own."""
    parts: list[Part] = []
    if config.drift is not None:
        parts.append(
            Part(
                name="evidence-drift",
                action="metamix.drift",
                recipe=config.drift,
                about=f"BatchNorm under random bits: {', '.join(config.drift.variants)}",
            )
        )
    seen: Counter[str] = Counter()
    for recipe in config.distributions:
        seen[recipe.training] += 1
        again = f"-{seen[recipe.training]}" if seen[recipe.training] > 1 else ""
        parts.append(
            Part(
                name=f"evidence-inputs-{recipe.training}{again}",
                action="metamix.distributions",
                recipe=recipe,
                about=f"what layers read, over bits: {_TRAINED[recipe.training]}",
            )
        )
    if config.hessian is not None:
        parts.append(
            Part(
                name="evidence-hessian",
                action="hessian",
                recipe=config.hessian,
                about=f"Hessian traces over {config.hessian.images} images",
            )
        )
    for index, sensitivity in enumerate(config.sensitivity):
        parts.append(
            Part(
                name=f"evidence-sensitivity{f'-{index + 1}' if index else ''}",
                action="sensitivity",
                recipe=sensitivity,
                about=f"one tensor at {_listed(sensitivity.bits)} bits at a time, "
                f"{_training(sensitivity)}",
            )
        )
    return tuple(parts)


def _training(recipe: SensitivityConfig) -> str:
    if recipe.steps == 0:
        return "untrained"
    length = f"{recipe.steps} updates" if recipe.steps else f"{recipe.epochs} epochs"
    return f"without and with {length} of its {recipe.train.replace('_', ' ')}"


def _listed(bits: tuple[int, ...]) -> str:
    return ", ".join(str(width) for width in bits)


def check_layers(config: EvidenceConfig, costs: CostTable) -> None:
    """Refuse layers that are not there before hours of training, not after.

    Raises:
        ModelError: naming the key, the layer and those that may stand there.
    """
    searched = [layer.name for layer in costs.searched]
    if config.drift is not None and config.drift.layer is not None:
        _check("drift.layer", config.drift.layer, searched)
    for index, recipe in enumerate(config.distributions):
        for layer in recipe.layers:
            _check(f"distributions.{index}.layers", layer, list(costs.names))
    for index, sensitivity in enumerate(config.sensitivity):
        for layer in sensitivity.layers:
            _check(f"sensitivity.{index}.layers", layer, searched)


def _check(key: str, layer: str, allowed: list[str]) -> None:
    if layer not in allowed:
        raise ModelError(f"evidence.{key}: no layer {layer!r}; there are: {', '.join(allowed)}")
