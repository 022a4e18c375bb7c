"""What does the bit selection hand on, and in which files?

* ``meta.pt``: the meta-state with its optimizer, from which any number of selections start;
* plain weights: the state dict of the full-precision network, quantizers left out;
* activation step sizes as importance tables: the searched layers' for the solver (the natural join
  with LIMPQ), all layers' for weight training to inherit.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

from solvers.storage import save_importance
from solvers.tables import CostTable, Importance, ImportanceTable
from trainers.checkpoint import load_tensors, save_tensors
from trainers.errors import ModelError
from trainers.phases import PhaseSpec
from trainers.quant.handle import QuantNetwork

META, WEIGHTS, ACT_STEPS = "meta.pt", "weights.pt", "act-steps.parquet"
IMPORTANCE, INITIAL = "importance.parquet", "importance-initial.parquet"


def save_meta_state(
    path: Path, network: QuantNetwork, optimizer: torch.optim.Optimizer, num_updates: int
) -> None:
    """Write everything that a selection needs to go on as if it had trained the state itself."""
    save_tensors(
        path,
        {
            "model": network.model.state_dict(),
            "optimizer": optimizer.state_dict(),
            "num_updates": num_updates,
        },
    )


def load_meta_state(
    path: Path, network: QuantNetwork, optimizer: torch.optim.Optimizer, device: str
) -> int:
    """Put a meta-state into a network of the same shape and candidates; returns its updates.

    Raises:
        ModelError: it belongs to another network or other candidates.
    """
    state: dict[str, Any] = load_tensors(path, device)
    try:
        network.model.load_state_dict(state["model"])
        optimizer.load_state_dict(state["optimizer"])
        return int(state["num_updates"])
    except (RuntimeError, ValueError, KeyError, TypeError) as error:
        raise ModelError(
            f"meta-state {path} does not fit this network, its candidates and its BatchNorm "
            f"mode: {error}"
        ) from error


def act_steps(
    network: QuantNetwork,
    costs: CostTable,
    spec: PhaseSpec,
    data_fingerprint: str,
    method: str,
    *,
    pinned_too: bool,
) -> ImportanceTable:
    """The stored activation step sizes, as indicators are read.

    Raises:
        TableError: one is not positive and finite; the message names layer and bits.
    """
    layers = network.layers if pinned_too else network.searched
    return ImportanceTable(
        model=costs.model,
        fingerprint=costs.fingerprint,
        method=method,
        seed=spec.seed,
        data_fingerprint=data_fingerprint,
        rows=tuple(
            Importance(layer=name, tensor="act", bits=bits, value=value)
            for name in layers
            for bits, value in network.layers[name].act_quantizer.values().items()
        ),
    )


def save_act_steps(
    folder: Path, network: QuantNetwork, costs: CostTable, spec: PhaseSpec, data_fingerprint: str
) -> None:
    """Write both tables of activation step sizes."""
    for name, pinned_too in ((IMPORTANCE, False), (ACT_STEPS, True)):
        table = act_steps(network, costs, spec, data_fingerprint, "metamix", pinned_too=pinned_too)
        save_importance(folder / name, table)


def check_network(model: nn.Module) -> None:
    """Refuse a network that MetaMix has nothing to say about.

    Raises:
        ModelError: it has no BatchNorm, whose statistics the meta-state is there to steady.
    """
    if not any(isinstance(m, _BatchNorm) for m in model.modules()):
        raise ModelError(
            "MetaMix needs BatchNorm: the meta-state exists to steady its statistics, and this "
            "network has none; use method limpq, or a network with BatchNorm"
        )
