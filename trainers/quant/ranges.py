"""Which layer inputs can be negative, and which range does each get?

LIMPQ quantizes every activation to [0, 2^b - 1], which clips the negative half of a linear
bottleneck or an h-swish without a word. Here a pass over real images, and one over their negation
for inputs inside the network, tell which inputs can be negative:

* never: unsigned;
* straight from ``nn.Hardswish``, whose minimum is -3/8: shifted up by 3/8, quantized unsigned and
  shifted back, so no level is spent below the minimum;
* else (linear bottlenecks, normalised images, squeeze-and-excitation): signed, symmetric.

Nothing is deduced from the network's structure: an input that is negative only for images unlike
both passes stays unsigned and clips at 0.
"""

from __future__ import annotations

from torch import Tensor, nn

from trainers.errors import ModelError
from trainers.quant.bank import RangeKind
from trainers.quant.options import QuantOptions
from trainers.quant.tracing import NetworkTrace, trace_network


def trace_ranges(
    model: nn.Module, sample: Tensor, options: QuantOptions
) -> tuple[NetworkTrace, dict[str, RangeKind]]:
    """Trace ``model`` and choose the range of every layer's input.

    Args:
        model: the full-precision network; its modes and statistics are left as they are.
        sample: a batch of images as training feeds them, already normalised.
        options: what to do about negative inputs.

    Raises:
        ModelError: negative inputs where ``options`` refuse them, or a network that cannot be
            traced.
    """
    trace = trace_network(model, sample)
    negated = trace_network(model, -sample)
    can_be_negative = [
        name
        for name in trace.order
        if trace.smallest_input[name] < 0
        or (name not in trace.reads_network_input and negated.smallest_input[name] < 0)
    ]
    if can_be_negative and options.negative_inputs == "refuse":
        shown = ", ".join(can_be_negative[:8]) + (" ..." if len(can_be_negative) > 8 else "")
        raise ModelError(
            f"{len(can_be_negative)} layers read negative values, which an unsigned range clips "
            f"to 0: {shown}; set negative_inputs to 'signed' to give them a range of their own"
        )
    return trace, {
        name: _kind(name in can_be_negative, name in trace.reads_hardswish, options)
        for name in trace.order
    }


def _kind(can_be_negative: bool, reads_hardswish: bool, options: QuantOptions) -> RangeKind:
    if not can_be_negative:
        return "act_unsigned"
    if reads_hardswish and options.shift_hardswish:
        return "act_shifted"
    return "act_signed"
