"""Every switch of LIMPQ's joint indicator training, with the published behaviour as default.

Each optimizer step runs n uniform passes (all searched layers at the same bit-width) and one pass
at random bits, adds up their gradients and updates once (paper, section 3.3 and Algorithm 1). The
paper leaves much open; where it is silent the released code decides, and every such decision is a
field here.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Literal

from annotated_types import Ge, Gt, Le

from trainers.recipes import CLOSED, BelowOne, Count, QuantTrainingConfig, Rate, Share


@dataclass(frozen=True, kw_only=True, slots=True)
class IndicatorConfig(QuantTrainingConfig):
    """Joint training of one step size per layer, tensor and bit-width.

    Attributes:
        epochs: passes over the fraction of the training images. Published code: 5 for ResNet-18,
            3 for ResNet-50.
        fraction: share of the training images. Paper: 0.5; published code: all of them.
        aggregate: ``sum`` adds the n + 1 gradients (published code), ``mean`` averages them.
            Clipping comes after it, so the two differ by more than a learning rate.
        batchnorm: ``switchable`` = one copy of each BatchNorm per bit-width, chosen by the
            layer's bits (published code); ``shared`` = one.
        random_pass: bits of the random pass: ``tied`` draws one width for a layer's weight and
            activation (published code), ``separate`` draws two, ``none`` leaves the pass out.
        freeze_weights: train step sizes and BatchNorm only. Published code: false.
        clip_grad_value: published code clips every gradient entry to 1.0 after the aggregation.
        step_clamp: published code clamps steps to [1e-5, 1.0] in the forward pass; the stored
            value, which is the indicator, is not clamped.
        drop_zero_grads: a parameter whose gradient is all zero gets neither momentum nor decay
            in that step. Published code: true.
        quantize_pinned: pinned layers run at their pinned bits while indicators are learned;
            false leaves them in full precision, as the published code does. Ours: true, so that
            the indicators see the network that will be deployed.
    """

    __pydantic_config__ = CLOSED

    epochs: Count = 5
    batch_size: Count = 256
    lr: Rate = 0.01
    weight_decay: Annotated[float, Ge(0.0), Le(1.0)] = 2.5e-5
    label_smoothing: BelowOne = 0.1
    fraction: Share = 0.5
    clip_grad_value: Annotated[float, Gt(0.0)] | None = 1.0
    step_clamp: tuple[Annotated[float, Gt(0.0)], Annotated[float, Gt(0.0)]] | None = (1e-5, 1.0)
    aggregate: Literal["sum", "mean"] = "sum"
    batchnorm: Literal["switchable", "shared"] = "switchable"
    random_pass: Literal["tied", "separate", "none"] = "tied"
    freeze_weights: bool = False
    drop_zero_grads: bool = True
    quantize_pinned: bool = True
