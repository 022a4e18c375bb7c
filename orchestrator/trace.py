"""What does the network of a configuration cost? The planning edge that imports torch."""

from __future__ import annotations

from dataclasses import replace

from orchestrator.config_schema import ExperimentConfig
from orchestrator.specs import pin_rules
from solvers.tables import CostTable


def traced_costs(config: ExperimentConfig) -> CostTable:
    """Build the network without its weights and trace one image through it.

    Raises:
        ModelError: unknown network, or pins and groups that match nothing.
        DataError: the images cannot be looked at.
    """
    from trainers.costs import trace_costs
    from trainers.data import input_shape
    from trainers.models import build_model

    model = build_model(replace(config.model.spec(), weights=None))
    return trace_costs(
        model,
        name=config.model.name,
        input_shape=input_shape(config.data.spec()),
        pins=pin_rules(config),
        groups=[group.match for group in config.groups],
    )


def images_fingerprint(config: ExperimentConfig) -> str:
    """Quick hash of the images' source, for the keys of the plan."""
    from trainers.data import source_fingerprint

    return source_fingerprint(config.data.spec())
