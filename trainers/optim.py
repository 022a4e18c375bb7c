"""Optimizer and schedule of a phase, from its recipe.

SGD with momentum, linear warm-up, cosine decay: what both stages of LIMPQ and most published
recipes use. The schedule is a pure function of the update number, so a resume needs no scheduler
state and a test can print it.
"""

from __future__ import annotations

import math
from collections.abc import Iterable

import torch
from torch import nn

from trainers.recipes import OptimizerConfig


def make_sgd(
    parameters: Iterable[nn.Parameter],
    recipe: OptimizerConfig,
    *,
    steps: Iterable[nn.Parameter] = (),
    steps_lr_factor: float = 1.0,
    steps_weight_decay: float = 0.0,
) -> torch.optim.SGD:
    """SGD over ``parameters``; vectors (biases, BatchNorm, step sizes) decay only if asked to.

    Args:
        parameters: all of them; those that take no gradient are left out.
        recipe: rates and decay.
        steps: those of ``parameters`` that are step sizes.
        steps_lr_factor: their learning rate in units of the recipe's.
        steps_weight_decay: their weight decay, if vectors have none.
    """
    parameters = [p for p in parameters if p.requires_grad]
    differ = steps_lr_factor != 1.0 or steps_weight_decay > 0
    apart = {id(p) for p in steps} if differ else set()
    groups = []
    for is_apart, factor in ((False, 1.0), (True, steps_lr_factor)):
        chosen = [p for p in parameters if (id(p) in apart) == is_apart]
        matrices = [p for p in chosen if p.ndim > 1 or recipe.decay_vectors]
        vectors = [p for p in chosen if p.ndim <= 1 and not recipe.decay_vectors]
        groups += [
            {"params": matrices, "weight_decay": recipe.weight_decay, "lr_factor": factor},
            {
                "params": vectors,
                "weight_decay": steps_weight_decay if is_apart else 0.0,
                "lr_factor": factor,
            },
        ]
    return torch.optim.SGD(
        [group for group in groups if group["params"]],
        lr=recipe.lr,
        momentum=recipe.momentum,
        nesterov=recipe.nesterov and recipe.momentum > 0,
        fused=fused(parameters),
    )


def fused(parameters: Iterable[nn.Parameter]) -> bool | None:
    """One kernel for all parameters where they are on a GPU; elsewhere torch's own choice."""
    return True if any(p.is_cuda for p in parameters) else None


def num_updates(recipe: OptimizerConfig, batches_per_epoch: int) -> int:
    """Optimizer updates of the whole phase."""
    return recipe.steps if recipe.steps is not None else recipe.epochs * batches_per_epoch


def learning_rate(
    recipe: OptimizerConfig, update: int, total: int, batches_per_epoch: int
) -> float:
    """Learning rate of update number ``update`` (from 0) of ``total``: warm-up, then cosine."""
    warmup = min(round(recipe.warmup_epochs * batches_per_epoch), total)
    if update < warmup:
        return recipe.warmup_lr + (recipe.lr - recipe.warmup_lr) * (update + 1) / warmup
    floor = min(recipe.min_lr, recipe.lr)
    progress = (update - warmup) / max(1, total - warmup)
    return floor + 0.5 * (recipe.lr - floor) * (1.0 + math.cos(math.pi * progress))


def set_learning_rate(optimizer: torch.optim.Optimizer, lr: float) -> None:
    """Give every group the same rate, times its own ``lr_factor`` where it has one."""
    for group in optimizer.param_groups:
        group["lr"] = lr * group.get("lr_factor", 1.0)
