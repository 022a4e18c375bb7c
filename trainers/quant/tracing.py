"""In which order do a network's layers run, and what feeds them?

One forward pass of the full-precision network in evaluation mode, watched by hooks. Tensor
identity tells which module's output another module reads; outputs are held until the end of the
pass, so that no identity is used twice.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from trainers.errors import ModelError


@dataclass(slots=True)
class NetworkTrace:
    """What one pass showed.

    Attributes:
        order: names of the Conv2d and Linear modules in execution order.
        smallest_input: smallest value each of them read.
        reads_network_input: layers that read the network's own input tensor.
        reads_hardswish: layers whose input is the output of an ``nn.Hardswish``.
        norm_source: BatchNorm name -> the layer whose output it reads; absent for any other.
        norms_of_two: BatchNorm name -> two layers whose outputs it reads in turn.
        unused: Conv2d and Linear modules that the pass never called.
    """

    order: list[str] = field(default_factory=list)
    smallest_input: dict[str, float] = field(default_factory=dict)
    reads_network_input: set[str] = field(default_factory=set)
    reads_hardswish: set[str] = field(default_factory=set)
    norm_source: dict[str, str] = field(default_factory=dict)
    norms_of_two: dict[str, tuple[str, str]] = field(default_factory=dict)
    unused: tuple[str, ...] = ()


@contextmanager
def evaluating(model: nn.Module) -> Iterator[None]:
    """Evaluation mode for every module, each module's own mode restored after."""
    modes = {module: module.training for module in model.modules()}
    model.eval()
    try:
        yield
    finally:
        for module, mode in modes.items():
            module.training = mode


def trace_network(model: nn.Module, sample: Tensor) -> NetworkTrace:
    """Run ``sample`` (a batch) through ``model`` and watch its layers.

    Raises:
        ModelError: no Conv2d or Linear ran, one ran twice or stands under two names, or the
            network cannot take the sample.
    """
    layers = quantizable_layers(model)
    watch = _Watch(sample)
    handles = []
    for name, module in model.named_modules():
        if isinstance(module, nn.Conv2d | nn.Linear):
            handles.append(module.register_forward_pre_hook(watch.before_layer(name)))
            handles.append(module.register_forward_hook(watch.after(("layer", name))))
        elif isinstance(module, nn.Hardswish):
            handles.append(module.register_forward_hook(watch.after(("hardswish", name))))
        elif isinstance(module, _BatchNorm):
            handles.append(module.register_forward_pre_hook(watch.before_norm(name)))
    try:
        with evaluating(model), torch.no_grad():
            model(sample)
    except (RuntimeError, TypeError, ValueError, IndexError) as error:
        raise ModelError(
            f"the network cannot take a batch of shape {tuple(sample.shape)}: {error}"
        ) from error
    finally:
        for handle in handles:
            handle.remove()
    found = watch.trace
    if not found.order:
        raise ModelError("no Conv2d and no Linear was called: there is nothing to quantize")
    called = set(found.order)
    found.unused = tuple(name for name in layers if name not in called)
    return found


def quantizable_layers(model: nn.Module) -> dict[str, nn.Conv2d | nn.Linear]:
    """Conv2d and Linear modules by name, in order of registration.

    Raises:
        ModelError: there is none, or one stands under two names.
    """
    layers: dict[str, nn.Conv2d | nn.Linear] = {}
    first_name: dict[nn.Module, str] = {}
    for name, module in model.named_modules(remove_duplicate=False):
        if not isinstance(module, nn.Conv2d | nn.Linear):
            continue
        if module in first_name:
            raise ModelError(
                f"layer {first_name[module]!r} also stands as {name!r}: a shared layer cannot "
                "have bits of its own; give the network two layers"
            )
        first_name[module] = name
        layers[name] = module
    if not layers:
        raise ModelError("the network has no Conv2d and no Linear: there is nothing to quantize")
    return layers


class _Watch:
    """The hooks of one pass; identity of live tensors, which ``held`` keeps alive."""

    def __init__(self, sample: Tensor) -> None:
        self.trace = NetworkTrace()
        self.held: list[Tensor] = [sample]
        self.writer: dict[int, tuple[str, str]] = {id(sample): ("input", "")}

    def before_layer(self, name: str) -> Any:
        def hook(_: nn.Module, args: tuple[Tensor, ...]) -> None:
            if name in self.trace.smallest_input:
                raise ModelError(
                    f"layer {name!r} is called twice in one pass: a shared layer cannot have "
                    "bits of its own; give the network two layers"
                )
            x = args[0]
            self.trace.order.append(name)
            # A meta tensor has shapes only.
            self.trace.smallest_input[name] = 0.0 if x.is_meta else x.min().item()
            writer = self.writer.get(id(x), ("", ""))[0]
            if writer == "input":
                self.trace.reads_network_input.add(name)
            elif writer == "hardswish":
                self.trace.reads_hardswish.add(name)

        return hook

    def before_norm(self, name: str) -> Any:
        def hook(_: nn.Module, args: tuple[Tensor, ...]) -> None:
            kind, layer = self.writer.get(id(args[0]), ("", ""))
            if kind != "layer":
                return
            first = self.trace.norm_source.setdefault(name, layer)
            if first != layer:
                self.trace.norms_of_two[name] = (first, layer)

        return hook

    def after(self, writer: tuple[str, str]) -> Any:
        def hook(_: nn.Module, args: Any, output: Tensor) -> None:
            self.held.append(output)
            self.writer[id(output)] = writer

        return hook
