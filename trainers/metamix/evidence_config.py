"""Which observations of the papers are repeated, and how? Section ``evidence``.

Here are the settings of MetaMix's Figures 1, 2, 6 and 7; LIMPQ's Figure 2 has a file of its own.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Literal

from annotated_types import Ge, Gt, Le, MinLen

from trainers.metamix.config import MetaConfig
from trainers.recipes import CLOSED, Count
from trainers.sensitivity_config import SensitivityConfig

Variant = Literal["fp_weights", "quantized_weights", "metamix"]
# 0 = full precision.
WeightBits = Annotated[int, Ge(0), Le(16)]


@dataclass(frozen=True, kw_only=True, slots=True)
class DriftConfig(MetaConfig):
    """Figure 2: BatchNorm statistics while the bits of one layer change at random.

    Attributes:
        epochs: of each variant. Ours.
        variants: ``fp_weights`` and ``quantized_weights`` train plainly (top and middle of the
            figure), ``metamix`` makes bit-meta updates on full-precision weights (bottom).
        layer: whose activation bits change and whose BatchNorm is watched; null = the first
            searched depth-wise layer, else the third searched one. Paper: the depth-wise layer
            of MobileNet-V2's second block.
        change_every: updates between two draws of bits; null = one epoch (paper).
        weight_bits: of the variant ``quantized_weights``. Paper: 4.
    """

    __pydantic_config__ = CLOSED

    epochs: Count = 12
    variants: Annotated[tuple[Variant, ...], MinLen(1)] = (
        "fp_weights",
        "quantized_weights",
        "metamix",
    )
    layer: str | None = None
    change_every: Count | None = None
    weight_bits: Annotated[int, Ge(2), Le(16)] = 4


@dataclass(frozen=True, kw_only=True, slots=True)
class DistributionConfig(MetaConfig):
    """Figures 1 and 6: what a layer reads, over activation bits and weight bits.

    Attributes:
        epochs: of each training. Ours.
        training: ``single`` trains one network for every pair of bits (Figure 1), ``meta`` one
            meta-state for every weight width (Figure 6), ``none`` only starts the step sizes of
            the full-precision network: what bit-meta training has to improve on (ours).
        weight_bits: rows of the figure; 0 = full precision. Paper: 0, 8, 4.
        layers: whose inputs are counted; empty = a searched layer near the start and one near
            the end. Paper: the 5th and the 32nd.
        images: training images that are counted.
        bins: of the histograms.
        reach: upper end of the histograms in units of the full-precision network's largest input.
    """

    __pydantic_config__ = CLOSED

    training: Literal["single", "meta", "none"] = "meta"
    weight_bits: Annotated[tuple[WeightBits, ...], MinLen(1)] = (0, 8, 4)
    layers: tuple[str, ...] = ()
    images: Count = 512
    bins: Annotated[int, Ge(2), Le(10_000)] = 64
    reach: Annotated[float, Gt(0.0), Le(100.0)] = 1.5


@dataclass(frozen=True, kw_only=True, slots=True)
class HessianConfig:
    """The line of Figure 7 (b): Hessian trace of each layer of the full-precision network.

    Attributes:
        images: training images that the loss is averaged over. Ours.
        batch_size: images per product, over all workers; only memory and time depend on it.
        min_probes: random vectors at least: two equal means in a row may be chance. Ours.
        max_probes: random vectors at most. PyHessian: 100.
        tol: relative change of every layer's running mean that ends it. PyHessian: 1e-3.
    """

    __pydantic_config__ = CLOSED

    images: Count = 512
    batch_size: Count = 256
    min_probes: Annotated[int, Ge(2)] = 10
    max_probes: Annotated[int, Ge(2)] = 100
    tol: Annotated[float, Ge(0.0), Le(1.0)] = 1e-3


@dataclass(frozen=True, kw_only=True, slots=True)
class EvidenceConfig:
    """Which of the papers' observations to repeat on this network and these images.

    Each is a step with data and figures of its own, run after everything else, whatever the
    method. Null and empty = not run.

    Attributes:
        drift: BatchNorm statistics under random bit changes (MetaMix, Figure 2).
        distributions: what layers read, over weight and activation bits (MetaMix, Figures 1 and
            6).
        hessian: Hessian traces, drawn beside the selected bits (MetaMix, Figure 7 b).
        sensitivity: one tensor at few bits at a time, without and with a short training (LIMPQ,
            Figures 2 and 3); each entry is a measurement of its own.
    """

    __pydantic_config__ = CLOSED

    drift: DriftConfig | None = None
    distributions: tuple[DistributionConfig, ...] = ()
    hessian: HessianConfig | None = None
    sensitivity: tuple[SensitivityConfig, ...] = ()
