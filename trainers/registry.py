"""Which phases are there? Names to functions, imported only when one is run."""

from __future__ import annotations

from importlib import import_module

from trainers.errors import TrainersError
from trainers.phases import Phase

_PHASES = {
    "pretrain": "trainers.pretrain",
    "limpq.indicators": "trainers.limpq.indicators",
    "metamix.meta": "trainers.metamix.meta",
    "metamix.bit_selection": "trainers.metamix.bit_selection",
    "metamix.drift": "trainers.metamix.drift",
    "metamix.distributions": "trainers.metamix.distributions",
    "hessian": "trainers.hessian",
    "oneshot.search": "trainers.oneshot.search",
    "oneshot.fit": "trainers.oneshot.fit",
    "sensitivity": "trainers.sensitivity",
    "baselines.quantization_error": "trainers.baselines.quantization_error",
    "baselines.one_layer_loss": "trainers.baselines.one_layer_loss",
    "baselines.hawq": "trainers.baselines.hawq",
    "baselines.hawq_v2": "trainers.baselines.hawq_v2",
    "baselines.hawq_v3": "trainers.baselines.hawq_v3",
    "baselines.edmips": "trainers.baselines.edmips",
    "baselines.random_search": "trainers.baselines.random_search",
    "weight_training": "trainers.weight_training",
}


def phase_names() -> tuple[str, ...]:
    """Every phase that ``find_phase`` knows."""
    return tuple(_PHASES)


def find_phase(name: str) -> Phase:
    """The ``run`` function of a phase.

    Raises:
        TrainersError: no phase of that name.
    """
    if name not in _PHASES:
        raise TrainersError(f"unknown phase {name!r} (there are: {', '.join(_PHASES)})")
    phase: Phase = import_module(_PHASES[name]).run
    return phase
