"""Every setting of the baselines, with the source of each default.

Sources: "paper" and "published code" are the method's own, named in the phase's file;
"PyHessian" = the released code by HAWQ's authors; "ours" = chosen here.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Literal

from annotated_types import Ge, Gt, Le, MinLen

from trainers.recipes import CLOSED, Count, CountFromZero, QuantTrainingConfig, Rate


@dataclass(frozen=True, kw_only=True, slots=True)
class CalibrationConfig:
    """Training images that a method looks at, and how a tensor's step size is chosen on them.

    Attributes:
        images: training images, a seeded draw that all these methods share. Ours.
        batch_size: images per pass over all workers; only memory and time depend on it.
        step_rule: step size of a tensor at b bits. ``mse`` = the one of least squared error over
            these images; ``lsq`` = the statistics that training starts from. Ours.
    """

    __pydantic_config__ = CLOSED

    images: Count = 512
    batch_size: Count = 256
    step_rule: Literal["mse", "lsq"] = "mse"


@dataclass(frozen=True, kw_only=True, slots=True)
class QuantizationErrorConfig(CalibrationConfig):
    """The solver over the full-precision network's own quantization errors.

    Attributes:
        weighting: what an error is worth. ``plain`` = the squared error, summed over a tensor
            (of an image, for activations); ``relative`` = over the tensor's own sum of squares;
            ``fisher`` = every element's squared error times its mean squared gradient (the
            empirical Fisher information), which takes a backward pass. Ours.
    """

    __pydantic_config__ = CLOSED

    weighting: Literal["plain", "relative", "fisher"] = "plain"


@dataclass(frozen=True, kw_only=True, slots=True)
class OneLayerLossConfig(CalibrationConfig):
    """Loss increase with one layer's weight or activation quantized, the rest untouched."""

    __pydantic_config__ = CLOSED


@dataclass(frozen=True, kw_only=True, slots=True)
class HawqConfig(CalibrationConfig):
    """HAWQ: the largest eigenvalue of each layer's Hessian orders the layers.

    Attributes:
        max_iterations: power iterations of a layer at most, one Hessian-vector product each.
            PyHessian: 100; HAWQ's paper used about 20.
        tol: relative change of every layer's eigenvalue that ends them. PyHessian: 1e-3.
    """

    __pydantic_config__ = CLOSED

    max_iterations: Annotated[int, Ge(2)] = 20
    tol: Annotated[float, Ge(0.0), Le(1.0)] = 1e-3


@dataclass(frozen=True, kw_only=True, slots=True)
class TraceConfig(CalibrationConfig):
    """Hutchinson's estimate of Hessian traces.

    Attributes:
        min_probes: random vectors at least. Ours.
        max_probes: random vectors at most. PyHessian: 100.
        tol: relative change of every running mean that ends it. PyHessian: 1e-3; ours is looser,
            because all layers must settle at once.
    """

    __pydantic_config__ = CLOSED

    min_probes: Annotated[int, Ge(2)] = 10
    max_probes: Annotated[int, Ge(2)] = 50
    tol: Annotated[float, Ge(0.0), Le(1.0)] = 1e-2


@dataclass(frozen=True, kw_only=True, slots=True)
class HawqV2Config(TraceConfig):
    """HAWQ-V2: average Hessian trace times squared quantization error, weights and activations."""

    __pydantic_config__ = CLOSED


@dataclass(frozen=True, kw_only=True, slots=True)
class HawqV3Config(TraceConfig):
    """HAWQ-V3: the same weight term in an integer program over few, tied widths.

    Attributes:
        bits: candidates, for a layer's weight and activation alike. Paper: 4 and 8.
        tie_readers: layers that read the same tensor (a block's first convolution and its
            downsample) share their bits. Published code: true.
        time_limit_s: of the integer program.
    """

    __pydantic_config__ = CLOSED

    bits: Annotated[tuple[Annotated[int, Ge(2), Le(16)], ...], MinLen(1)] = (4, 8)
    tie_readers: bool = True
    time_limit_s: Annotated[float, Gt(0.0), Le(86_400.0)] = 60.0


@dataclass(frozen=True, kw_only=True, slots=True)
class EdmipsConfig(QuantTrainingConfig):
    """EdMIPS: weights and bit probabilities learn together, one shared weight a layer.

    Attributes:
        epochs: of the search. Published code: 25.
        batch_size: published code: 256.
        lr: of the weights. Published code: 0.1.
        weight_decay: of the weights. Published code: 1e-4.
        nesterov: published code: false.
        init_batches: batches that start the activations' step sizes, in full precision: the
            mixture reads all widths at once. Ours.
        decay_every: epochs after which both rates fall to a tenth. Published code: 10.
        alpha_lr: of the bit probabilities' logits. Published code: 0.01.
        alpha_weight_decay: published code: 1e-4.
        alpha_init: start of every logit. Published code: 0.01.
        complexity_decay: factor of the expected cost, which is in units of one operation at one
            bit of the first searched layer. Published code: 0.00335 for ResNet-18, 0.00015 for
            ResNet-50. It has no target: where the search ends depends on it alone.
        repair: ``probable`` = the most probable policy within ``band`` of the limit when the
            argmax misses it, as for MetaMix; ``none`` = the argmax as it is, over the limit or
            under it. Published code: none, each factor gives one point.
        band: smallest share of the limit that a policy should use. Ours.
    """

    __pydantic_config__ = CLOSED

    epochs: Count = 25
    batch_size: Count = 256
    lr: Rate = 0.1
    nesterov: bool = False
    weight_decay: Annotated[float, Ge(0.0), Le(1.0)] = 1e-4
    step_clamp: tuple[Annotated[float, Gt(0.0)], Annotated[float, Gt(0.0)]] | None = (1e-5, 1e4)
    init_batches: Annotated[int, Ge(2)] = 4
    decay_every: Count = 10
    alpha_lr: Rate = 0.01
    alpha_weight_decay: Annotated[float, Ge(0.0), Le(1.0)] = 1e-4
    alpha_init: Annotated[float, Ge(-10.0), Le(10.0)] = 0.01
    complexity_decay: Annotated[float, Ge(0.0), Le(1e6)] = 0.00335
    repair: Literal["probable", "none"] = "probable"
    band: Annotated[float, Gt(0.0), Le(1.0)] = 0.99


@dataclass(frozen=True, kw_only=True, slots=True)
class RandomSearchConfig(CalibrationConfig):
    """Random policies within the limits, each evaluated without training; the best is kept.

    Attributes:
        evaluations: policies that are evaluated. Ours.
        bn_reestimate_images: training images that take BatchNorm statistics anew before each
            evaluation; 0 = the full-precision network's. Ours.
        keep: what is best. ``loss`` = least cross entropy, ``top1`` = most accurate. Ours.
    """

    __pydantic_config__ = CLOSED

    evaluations: Count = 64
    bn_reestimate_images: CountFromZero = 512
    keep: Literal["loss", "top1"] = "loss"
