"""How does any network become a quantized one without a change to its code?

Every Conv2d and Linear that runs is replaced, in place and under its own name, by a layer with
two step banks; the answer is a handle that knows all of them.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import get_args

from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from solvers.tables import BitChoices
from trainers.errors import ModelError
from trainers.quant.bank import RangeKind, StepBank
from trainers.quant.batchnorm import BatchNormMode, SwitchableBatchNorm
from trainers.quant.handle import QuantNetwork
from trainers.quant.layers import QuantConv2d, QuantLayer, QuantLinear
from trainers.quant.merged_relu import merge_relus, sole_readers
from trainers.quant.options import QuantOptions
from trainers.quant.pact import DorefaBank, PactBank
from trainers.quant.pins import Pin, resolve_pins
from trainers.quant.ranges import trace_ranges
from trainers.quant.tracing import NetworkTrace, trace_network

_SWAPPED = (nn.Conv2d, nn.Linear)


def quantize_network(
    model: nn.Module,
    *,
    choices: BitChoices,
    sample: Tensor,
    pins: Sequence[Pin] = (),
    batchnorm: BatchNormMode = "shared",
    options: QuantOptions | None = None,
    kinds: Mapping[str, RangeKind] | None = None,
) -> QuantNetwork:
    """Quantize ``model`` in place; it starts in full precision, its pinned layers at their pins.

    Args:
        model: a network with its full-precision weights loaded, on the device of ``sample``.
        choices: candidate bit-widths of the searched layers.
        sample: a batch of images as training feeds them; it decides which inputs are signed, so
            16 images or more are better than one.
        pins: (expression over the whole layer name, weight bits, activation bits), first match
            wins; first and last layer are 8/8 unless a pin says otherwise; 0 is full precision.
        batchnorm: ``shared``, or ``switchable`` with one copy per candidate bit-width.
        options: see ``QuantOptions``.
        kinds: range of every layer's input as an earlier wrapping found it; ``sample`` then gives
            the shape alone. None = found on ``sample``.

    Raises:
        ModelError: nothing to quantize, a shared layer, a subclass whose own forward would be
            lost, a pin that matches nothing, negative inputs where they are refused, or
            ``kinds`` of another network.
    """
    options = options or QuantOptions()
    if kinds is None:
        trace, kinds = trace_ranges(model, sample, options)
    else:
        trace = trace_network(model, sample)
        _check_kinds(kinds, trace)
    pinned = resolve_pins(trace.order, pins)
    _check_types(model, trace)
    device = sample.device
    readers = sole_readers(model) if options.merge_relu else {}
    layers: dict[str, QuantLayer] = {}
    for name in trace.order:
        weight_bits, act_bits = _candidates(name, choices, pinned)
        is_pact = options.quantizer == "pact"
        make_weight, make_act = (DorefaBank, PactBank) if is_pact else (StepBank, StepBank)
        weight_bank = make_weight(weight_bits, "weight", name=f"{name} weight", options=options)
        act_bank = make_act(act_bits, kinds[name], name=f"{name} input", options=options)
        layers[name] = _wrap(model.get_submodule(name), weight_bank, act_bank).to(device)
        _replace(model, name, layers[name])
        if options.input_step == "range" and name in pinned and name in trace.reads_network_input:
            act_bank.fix_to_range(sample)
    merge_relus(model, readers, layers)
    norms = {}
    if batchnorm == "switchable":
        norms = _make_switchable(model, trace, layers, pinned, options)
    network = QuantNetwork(
        model, layers=layers, pinned=pinned, kinds=kinds, norms=norms, unused=trace.unused
    )
    network.initialize_weights()
    network.set_full_precision()
    return network


def _candidates(
    name: str, choices: BitChoices, pinned: dict[str, tuple[int, int]]
) -> tuple[tuple[int, ...], tuple[int, ...]]:
    if name in pinned:
        weight_bits, act_bits = pinned[name]
        return (weight_bits,), (act_bits,)
    for layer, weight_choices, act_choices in choices.overrides:
        if layer == name:
            return weight_choices, act_choices
    return choices.weight_bits, choices.act_bits


def _check_types(model: nn.Module, trace: NetworkTrace) -> None:
    for name in trace.order:
        module = model.get_submodule(name)
        if type(module) not in _SWAPPED:
            raise ModelError(
                f"layer {name!r} is a {type(module).__name__}: its own forward would be lost; "
                "only plain Conv2d and Linear can be quantized"
            )


def _check_kinds(kinds: Mapping[str, RangeKind], trace: NetworkTrace) -> None:
    known = get_args(RangeKind)
    if set(kinds) != set(trace.order) or not set(kinds.values()) <= set(known):
        raise ModelError(
            f"ranges are given for {len(kinds)} layers and the network calls {len(trace.order)}: "
            f"they must be the same layers, each range one of {', '.join(known)}"
        )


def _wrap(module: nn.Module, weight_bank: StepBank, act_bank: StepBank) -> QuantLayer:
    if isinstance(module, nn.Conv2d):
        return QuantConv2d.wrap(module, weight_bank, act_bank)
    assert isinstance(module, nn.Linear)
    return QuantLinear.wrap(module, weight_bank, act_bank)


def _replace(model: nn.Module, name: str, module: nn.Module) -> None:
    parent, _, leaf = name.rpartition(".")
    setattr(model.get_submodule(parent), leaf, module)


def _make_switchable(
    model: nn.Module,
    trace: NetworkTrace,
    layers: dict[str, QuantLayer],
    pinned: dict[str, tuple[int, int]],
    options: QuantOptions,
) -> dict[str, tuple[SwitchableBatchNorm, StepBank]]:
    """Norms that follow a pinned layer or no layer at all stay single."""
    for name, (first, second) in trace.norms_of_two.items():
        raise ModelError(
            f"BatchNorm {name!r} follows both {first!r} and {second!r}: it cannot switch with "
            "the bits of one layer; give the network two, or use batchnorm 'shared'"
        )
    norms = {}
    for name, source in trace.norm_source.items():
        if source in pinned:
            continue
        bank = _followed(layers[source], options)
        norm = model.get_submodule(name)
        assert isinstance(norm, _BatchNorm)
        switchable = SwitchableBatchNorm(norm, bank.candidates)
        switchable.train(norm.training)
        _replace(model, name, switchable)
        norms[name] = (switchable, bank)
    return norms


def _followed(layer: QuantLayer, options: QuantOptions) -> StepBank:
    follows = options.norm_follows
    if follows == "auto":
        follows = "act" if len(layer.act_quantizer.candidates) > 1 else "weight"
    return layer.act_quantizer if follows == "act" else layer.weight_quantizer
