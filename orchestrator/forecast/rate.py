"""How many images a second does one worker train? Stated by a person, or measured here."""

from __future__ import annotations

from dataclasses import dataclass

from orchestrator.config_schema import ExperimentConfig
from orchestrator.specs import pin_rules


@dataclass(frozen=True, kw_only=True, slots=True)
class Rate:
    """Speed of one worker in quantization-aware training of a network.

    Attributes:
        images_per_second: forward, backward and update.
        source: where it is from, for a person.
    """

    images_per_second: float
    source: str


def stated_rate(config: ExperimentConfig, images_per_second: float | None) -> Rate | None:
    """What the command line says, else the configuration, else None."""
    if images_per_second is not None:
        return Rate(images_per_second=images_per_second, source="stated, --images-per-s")
    if config.cluster.images_per_second is not None:
        stated = config.cluster.images_per_second
        return Rate(images_per_second=stated, source="stated, cluster.images_per_second")
    return None


def measured_rate(config: ExperimentConfig, seconds: float = 5.0) -> Rate:
    """A few training steps on this machine, at the real resolution, on random pixels.

    Args:
        config: the network, its candidates and its images' size.
        seconds: of measuring.

    Raises:
        ModelError: the network cannot be built or quantized.
    """
    from orchestrator.cells import bit_choices
    from trainers.calibrate import training_rate
    from trainers.data import input_shape

    found = training_rate(
        config.model.spec(),
        input_shape(config.data.spec()),
        bit_choices(config),
        pins=pin_rules(config),
        seconds=seconds,
    )
    threads = f", {found.threads} threads" if found.device == "cpu" else ""
    return Rate(
        images_per_second=found.images_per_second,
        source=f"measured here: {found.device}{threads}, float32, {found.steps} steps of "
        f"{found.batch_size} random images",
    )
