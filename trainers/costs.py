"""What does one image cost in every layer of a network?

One traced forward pass of one image gives MACs from true output shapes, element counts and the
lifetimes of activations. Nothing is multiplied by bits here: that is ``solvers.accounting``.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from solvers.tables import CostTable, LayerBits, LayerKind, LayerSpec
from trainers.errors import ModelError
from trainers.liveness import ActivationTrace
from trainers.quant.pins import Pin, resolve_pins
from trainers.quant.tracing import evaluating, quantizable_layers

_FULL_PRECISION_BITS = 32


def trace_costs(
    model: nn.Module,
    *,
    name: str,
    input_shape: tuple[int, ...],
    pins: Sequence[Pin] = (),
    groups: Sequence[str] = (),
) -> CostTable:
    """The cost table of ``model``, layers in execution order.

    Args:
        model: full precision, on any device ("meta" is enough); its modes are left as they are.
        name: what to call the network in the table.
        input_shape: (channels, height, width) of one image.
        pins: as in ``quantize_network``: (expression, weight bits, activation bits), first match
            wins, first and last layer 8/8 by default; 0 bits, full precision, is entered as 32.
        groups: expressions over whole layer names; the layers that one matches must share their
            bits. First match wins, pinned layers stay outside.

    Raises:
        ModelError: no quantizable layer, a shared one, one whose weight is used without calling
            it, a pin or group that matches nothing, or an input shape the network cannot take.
    """
    layers = quantizable_layers(model)
    facts: dict[str, dict[str, Any]] = {}
    trace = ActivationTrace()
    handles = []
    for layer_name, layer in layers.items():
        handles.append(layer.register_forward_pre_hook(_reader(layer_name, trace, facts)))
        handles.append(layer.register_forward_hook(_measure(layer_name, facts)))
    first = next(model.parameters())
    image = torch.zeros(1, *input_shape, device=first.device, dtype=first.dtype)
    try:
        with evaluating(model), torch.no_grad(), trace.watching(image):
            model(image)
    except (RuntimeError, TypeError, ValueError, IndexError) as error:
        raise ModelError(f"{name}: cannot take an input of {input_shape}: {error}") from error
    finally:
        for handle in handles:
            handle.remove()
    if not facts:
        raise ModelError(f"{name}: no Conv2d and no Linear was called: there is nothing to count")
    for layer_name, layer in layers.items():
        if layer_name not in facts and trace.used(layer.weight):
            raise ModelError(
                f"{name}: the weight of {layer_name!r} is used without calling the layer, as "
                "attention does, so its cost cannot be counted nor its input quantized"
            )
    order = tuple(facts)
    pinned = resolve_pins(order, pins)
    group_of = _groups([n for n in order if n not in pinned], groups)
    counted = sum(fact["num_weights"] + fact["num_biases"] for fact in facts.values())
    return CostTable(
        model=name,
        input_shape=tuple(input_shape),
        layers=tuple(
            LayerSpec(name=n, pinned=_pin(pinned.get(n)), group=group_of.get(n), **facts[n])
            for n in order
        ),
        num_other_params=sum(p.numel() for p in model.parameters()) - counted,
        tensors=trace.lives(),
    )


def _reader(name: str, trace: ActivationTrace, facts: dict[str, dict[str, Any]]) -> Any:
    def hook(_: nn.Module, args: tuple[Tensor, ...]) -> None:
        if name in facts:
            raise ModelError(
                f"layer {name!r} is called twice in one pass: a shared layer cannot have bits "
                "of its own; give the network two layers"
            )
        trace.read_by_layer(args[0], name)

    return hook


def _measure(name: str, facts: dict[str, dict[str, Any]]) -> Any:
    def hook(layer: nn.Module, args: tuple[Tensor, ...], output: Tensor) -> None:
        x = args[0]
        assert isinstance(layer, nn.Conv2d | nn.Linear)
        num_weights = layer.weight.numel()
        if isinstance(layer, nn.Conv2d):
            area = output.shape[-2] * output.shape[-1]
            published_area = _unfloored_area(layer, x)
        else:
            area = published_area = output.numel() // layer.out_features
        facts[name] = {
            "kind": _kind(layer),
            "num_macs": num_weights * area,
            "num_macs_unfloored": num_weights * published_area,
            "num_weights": num_weights,
            "num_biases": 0 if layer.bias is None else layer.bias.numel(),
            "num_inputs": x.numel(),
            "num_outputs": output.numel(),
        }

    return hook


def _kind(layer: nn.Conv2d | nn.Linear) -> LayerKind:
    if isinstance(layer, nn.Linear):
        return "linear"
    return "depthwise" if layer.groups == layer.in_channels > 1 else "conv"


def _unfloored_area(conv: nn.Conv2d, x: Tensor) -> int:
    """LIMPQ's published area: the product of both sides is floored, not each side."""
    # Four numbers for any padding, "same" included: left, right, top, bottom.
    left, right, top, bottom = conv._reversed_padding_repeated_twice
    sides = []
    for axis, border in ((0, top + bottom), (1, left + right)):
        reach = conv.dilation[axis] * (conv.kernel_size[axis] - 1) + 1
        sides.append((x.shape[axis - 2] + border - reach) / conv.stride[axis] + 1)
    return int(sides[0] * sides[1])


def _pin(bits: tuple[int, int] | None) -> LayerBits | None:
    if bits is None:
        return None
    return LayerBits(
        weight_bits=bits[0] or _FULL_PRECISION_BITS, act_bits=bits[1] or _FULL_PRECISION_BITS
    )


def _groups(searched: Sequence[str], patterns: Sequence[str]) -> dict[str, str]:
    group_of: dict[str, str] = {}
    for pattern in patterns:
        try:
            rule = re.compile(pattern)
        except re.error as error:
            raise ModelError(f"groups: {pattern!r} is no regular expression: {error}") from error
        matched = [name for name in searched if rule.fullmatch(name)]
        if not matched:
            raise ModelError(f"groups: {pattern!r} matches no searched layer as a whole")
        for name in matched:
            group_of.setdefault(name, pattern)
    return group_of
