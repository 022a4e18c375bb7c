"""A small network for the digits, as every search phase gets it: weights and costs on disk."""

from __future__ import annotations

from pathlib import Path

import torch

from solvers.storage import save_costs
from trainers.checkpoint import save_tensors
from trainers.costs import trace_costs
from trainers.models import build_model
from trainers.phases import ModelSpec

MODEL = ModelSpec(name="cifar_resnet8", options={"in_channels": 1, "base_width": 4})


def small_start(folder: Path) -> dict[str, str]:
    """Inputs ``weights`` and ``costs`` of a phase, made in ``folder``."""
    torch.manual_seed(0)
    model = build_model(MODEL)
    save_tensors(folder / "weights.pt", model.state_dict())
    save_costs(folder / "costs.parquet", trace_costs(model, name=MODEL.name, input_shape=(1, 8, 8)))
    return {"weights": str(folder / "weights.pt"), "costs": str(folder / "costs.parquet")}
