"""What keeps a step size positive? A bound on how far one update may move it.

The gradient of a step size is scaled by 1 / sqrt(Qp * N), which is tiny in ImageNet layers and is
not in small ones: the classifier of a network for 10 classes has a few hundred weights and a step
of 0.004, and one update at the published learning rate of 0.01 moves it by up to 0.02. Once a step
is negative the published clamp gives it no gradient, the layer outputs nothing and the network is
dead (measured: joint loss 0.7 to 2.28 within one update on 8x8 digits, 4-batch-old step 0.0015 to
-0.019). A bound of 10 % an update is not met in normal training and cannot be crossed by a spike.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor, nn


def bound_step_changes(
    optimizer: torch.optim.Optimizer, steps: Iterable[nn.Parameter], max_change: float | None
) -> None:
    """Make ``optimizer`` change each step size by at most a factor 1 + ``max_change`` an update.

    Args:
        optimizer: of the phase.
        steps: step-size vectors; those that do not learn are left alone.
        max_change: relative bound, e.g. 0.1; None leaves the optimizer as it is (published code).
    """
    learning = [p for p in steps if p.requires_grad]
    if max_change is None or not learning:
        return
    before: list[Tensor] = []

    def remember(*_: Any) -> None:
        before[:] = [p.detach().clone() for p in learning]

    @torch.no_grad()
    def bound(*_: Any) -> None:
        for p, old in zip(learning, before, strict=True):
            p.copy_(torch.clamp(p, old / (1.0 + max_change), old * (1.0 + max_change)))

    optimizer.register_step_pre_hook(remember)
    optimizer.register_step_post_hook(bound)
