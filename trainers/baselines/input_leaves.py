"""How does one differentiate by what a layer reads?

An activation is no leaf of the graph, so a tensor of zeros that is one is added to each layer's
input. Derivatives of the loss by the zeros, first and second, are those by the activations: all
layers at once, and an image's rows belong to that image alone while BatchNorm does not mix images.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn


@contextmanager
def input_leaves(layers: Mapping[str, nn.Module]) -> Iterator[dict[str, Tensor]]:
    """Within it, every forward pass fills the yielded dict: layer name -> zeros like its input.

    Args:
        layers: by name.
    """
    leaves: dict[str, Tensor] = {}

    def hook_of(name: str) -> Any:
        def hook(_: nn.Module, args: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
            leaves[name] = torch.zeros_like(args[0], requires_grad=True)
            return (args[0] + leaves[name], *args[1:])

        return hook

    handles = [layer.register_forward_pre_hook(hook_of(name)) for name, layer in layers.items()]
    try:
        yield leaves
    finally:
        for handle in handles:
            handle.remove()
