"""Which choices of the quantizer do the two papers leave open, and which side is taken?

Every field is a named switch of a point where LIMPQ's paper, its published code and MetaMix
differ or are silent. The defaults follow LIMPQ's published code except for signed inputs, which
that code clips to 0.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

WeightInit = Literal["lsq+", "lsq", "constant"]
ActInit = Literal["lsq", "constant"]
NegativeInputs = Literal["signed", "refuse"]
InputStep = Literal["range", "learned"]
NormFollows = Literal["auto", "weight", "act"]
Quantizer = Literal["lsq", "pact"]


@dataclass(frozen=True, kw_only=True, slots=True)
class QuantOptions:
    """How step sizes start, move and are read.

    Attributes:
        weight_init: ``lsq+`` max(|mean - 3 std|, |mean + 3 std|) / 2^(b-1); ``lsq``
            2 mean|w| / sqrt(Qp); ``constant`` 0.1 / b (LIMPQ, Figure 3).
        act_init: ``lsq`` or ``constant``; the former waits for the first batch.
        step_range: forward clamp of the step size, as published; the stored value is not clamped
            and gets no gradient while it is outside. None switches the clamp off.
        grad_scale: multiply the step's gradient by 1 / sqrt(numel * Qp).
        negative_inputs: ``signed`` gives a layer whose input can be negative a signed range,
            ``refuse`` raises naming the layers.
        input_step: step size of a pinned layer that reads the network's input. ``range`` fixes it
            at max|x| / Qp of the sample: images have known bounds, of which LSQ's start would use
            one eighth at 8 bits, and learning it costs the input gradient of the first
            convolution, which nothing else needs (11 % of a ResNet-18 step at 64 pixels).
            ``learned`` treats it like any other.
        shift_hardswish: an input that comes straight from ``nn.Hardswish`` is shifted by 3/8 and
            quantized unsigned; false leaves it signed.
        norm_follows: whose bit-width selects the copy of a switchable BatchNorm; ``auto`` is the
            activation's, or the weight's when the activation has only one candidate.
        compiled: run the quantizer's two functions through ``torch.compile`` (needs a C++
            compiler; the network itself stays eager).
        merge_relu: let quantizers do the work of the ReLUs before them (``merged_relu.py``).
        quantizer: ``lsq``, or ``pact``: learned clipping levels for activations and DoReFa's rule
            for weights (``pact.py``).
        clip_start: PACT's clipping levels at the start; None = the largest value of the first
            batch.
    """

    weight_init: WeightInit = "lsq+"
    act_init: ActInit = "lsq"
    step_range: tuple[float, float] | None = (1e-5, 1.0)
    grad_scale: bool = True
    negative_inputs: NegativeInputs = "signed"
    input_step: InputStep = "range"
    shift_hardswish: bool = True
    norm_follows: NormFollows = "auto"
    compiled: bool = False
    merge_relu: bool = False
    quantizer: Quantizer = "lsq"
    clip_start: float | None = None
