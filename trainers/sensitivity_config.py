"""What does measuring the sensitivity of single layers need to be told? LIMPQ, Figure 2."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Literal

from annotated_types import Ge, Gt, Le, MinLen

from trainers.recipes import CLOSED, Count, CountFromZero, QuantTrainingConfig, Rate


@dataclass(frozen=True, kw_only=True, slots=True)
class SensitivityConfig(QuantTrainingConfig):
    """One layer at few bits, the rest in full precision: loss without and with a short training.

    The optimizer's keys belong to that short training. ``weight_init`` and ``act_init`` at
    ``constant`` are the paper's experiment of same starts (Figure 3); a long training of the step
    alone gives the indicator that is learned apart from all others.

    Attributes:
        bits: widths that each tensor is set to. Ours.
        layers: searched layers to measure; empty = all.
        tensors: what of a layer is quantized at a time: its ``weight``, ``act`` (what it reads), or
            ``both`` at the same bits, as in the paper.
        train: what moves in the short training: the ``step`` of what is quantized alone, or the
            step and the layer's weights. All else is fixed, BatchNorm in evaluation mode. Ours.
        steps: updates of it; 0 = none, null = ``epochs``. Ours.
        batch_size: images an update. Ours.
        lr: learning rate. Ours.
        precision: ``fp32`` alone: its passes are those of an evaluation. Ours.
        images: images that loss and accuracy are measured on, a seeded sample, the same for all
            tensors. One of more than 2 GiB in float32 is decoded anew for every measurement. Ours.
        images_from: ``test`` by default: this is a measurement, and nothing is chosen by it;
            ``train`` where its result goes on to choose something.
        bn_images: training images that BatchNorm statistics are re-estimated on before each
            measurement; 0 keeps those of the full-precision network. Ours.
        batch: images per forward pass when measuring.
    """

    __pydantic_config__ = CLOSED

    bits: Annotated[tuple[Annotated[int, Ge(2), Le(16)], ...], MinLen(1)] = (2, 3, 4)
    layers: tuple[str, ...] = ()
    tensors: Annotated[tuple[Literal["weight", "act", "both"], ...], MinLen(1)] = ("weight", "act")
    train: Literal["step", "step_and_weights"] = "step_and_weights"
    steps: CountFromZero | None = 20
    epochs: Count = 1
    batch_size: Count = 128
    lr: Rate = 0.01
    weight_decay: Annotated[float, Ge(0.0), Le(1.0)] = 0.0
    clip_grad_value: Annotated[float, Gt(0.0)] | None = None
    precision: Literal["fp32"] = "fp32"
    images: Count = 2000
    images_from: Literal["train", "test"] = "test"
    bn_images: CountFromZero = 512
    batch: Count = 64
