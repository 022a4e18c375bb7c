"""What is the trainers room told to do for each step? Configuration to ``PhaseSpec``, pure."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from orchestrator.config_schema import ExperimentConfig
from orchestrator.teachers import seen_from_here
from solvers.tables import BitChoices
from trainers.phases import PhaseSpec


def phase_spec(
    config: ExperimentConfig,
    phase: str,
    recipe: Any,
    inputs: Mapping[str, str],
    choices: BitChoices | None = None,
) -> PhaseSpec:
    """The specification of one phase.

    Args:
        config: the experiment.
        phase: a name of ``trainers.registry``.
        recipe: the phase's own configuration.
        inputs: absolute paths by role.
        choices: candidate bits, for phases that search.
    """
    return PhaseSpec(
        phase=phase,
        model=config.model.spec(),
        data=config.data.spec(),
        config=seen_from_here(recipe),
        seed=config.seed,
        inputs=dict(inputs),
        eval_batch_size=config.evaluate.batch_size,
        choices=choices,
        pins=pin_rules(config),
    )


def pin_rules(config: ExperimentConfig) -> tuple[tuple[str, int, int], ...]:
    """Pins as the trainers room takes them."""
    return tuple((pin.match, pin.weight_bits, pin.act_bits) for pin in config.pins)
