"""How many images a second does one worker train? Stated by a person, or measured here."""

from __future__ import annotations

import os
from dataclasses import dataclass

from orchestrator.cluster_config import ClusterConfig
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


def threads_of_a_worker(cluster: ClusterConfig, cores: int) -> int:
    """Compute threads of a worker on a cluster of one machine, by the rule of a run."""
    from orchestrator.cluster import threads_of, worker_cpus

    cpus = cluster.cpus_per_worker or worker_cpus([{"CPU": float(cores)}], cluster.num_workers)
    return threads_of(cluster, cpus)


def measured_rate(config: ExperimentConfig, seconds: float = 5.0) -> Rate:
    """A few training steps on this machine, at the real resolution, on random pixels.

    One process stands for a worker, so it computes with the threads that a worker of this machine
    would get: with all of them, every one of several workers would be taken to be as fast as the
    whole machine. That workers slow each other's memory down is not in it.

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
        device=None if config.cluster.gpus_per_worker else "cpu",
        threads=threads_of_a_worker(config.cluster, len(os.sched_getaffinity(0))),
    )
    threads = "" if found.threads is None else f", threads of a worker: {found.threads}"
    return Rate(
        images_per_second=found.images_per_second,
        source=f"measured here: {found.device}{threads}, float32, {found.steps} steps of "
        f"{found.batch_size} random images",
    )
