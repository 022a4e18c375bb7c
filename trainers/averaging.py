"""What is the moving average of the weights, and how does it survive a restart?

average <- decay * average + (1 - decay) * weights after every update, over all trained parameters.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn


class MovingAverage:
    """Exponential moving average of a network's parameters; part of the checkpoint.

    Args:
        model: the network; averaged from its present parameters on.
        decay: weight of the past.
    """

    def __init__(self, model: nn.Module, decay: float) -> None:
        self.model, self.decay = model, decay
        self.averages: dict[str, Tensor] = {}
        self.restart()

    def restart(self) -> None:
        """Begin again at the parameters as they are now."""
        self.averages = {name: p.detach().clone() for name, p in self.model.named_parameters()}

    @torch.no_grad()
    def update(self) -> None:
        """Take in the parameters as they are now."""
        for name, p in self.model.named_parameters():
            self.averages[name].lerp_(p, 1.0 - self.decay)

    @torch.no_grad()
    def apply(self) -> None:
        """Put the averages into the network, for good."""
        for name, p in self.model.named_parameters():
            p.copy_(self.averages[name])

    @contextmanager
    def in_place(self) -> Iterator[None]:
        """The averages in the network for a while; then the weights again, bit for bit."""
        kept = {name: p.detach().clone() for name, p in self.model.named_parameters()}
        self.apply()
        try:
            yield
        finally:
            with torch.no_grad():
                for name, p in self.model.named_parameters():
                    p.copy_(kept[name])

    def state_dict(self) -> dict[str, Any]:
        """For a checkpoint."""
        return dict(self.averages)

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """From a checkpoint."""
        for name, average in self.averages.items():
            average.copy_(state[name])
