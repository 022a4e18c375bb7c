"""Section ``sources`` of an experiment: which other ways to a policy to run, and how."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from trainers.baselines.config import (
    EdmipsConfig,
    HawqConfig,
    HawqV2Config,
    HawqV3Config,
    OneLayerLossConfig,
    QuantizationErrorConfig,
    RandomSearchConfig,
)
from trainers.oneshot.config import FittedConfig, OneShotConfig
from trainers.recipes import CLOSED


@dataclass(frozen=True, kw_only=True, slots=True)
class SourcesConfig:
    """Other ways to find a policy within the same limits; null = not run.

    Attributes:
        quantization_error: squared quantization error of the full-precision network.
        one_layer_loss: loss with one tensor quantized at a time.
        hawq: layers ordered by their Hessian's largest eigenvalue.
        hawq_v2: Hessian traces times squared quantization errors.
        hawq_v3: HAWQ-V3's integer program over its own two widths.
        edmips: bits learned by gradient together with shared weights.
        random_search: the best of random policies, each evaluated without training.
        one_shot: evolution over whole policies judged by the jointly trained weights.
        fitted: an additive table fitted to verdicts of the jointly trained weights.
    """

    __pydantic_config__ = CLOSED

    # A field a source, under its name, in the order of ``sources.SOURCES``.
    quantization_error: QuantizationErrorConfig | None = None
    one_layer_loss: OneLayerLossConfig | None = None
    hawq: HawqConfig | None = None
    hawq_v2: HawqV2Config | None = None
    hawq_v3: HawqV3Config | None = None
    edmips: EdmipsConfig | None = None
    random_search: RandomSearchConfig | None = None
    one_shot: OneShotConfig | None = None
    fitted: FittedConfig | None = None


@dataclass(frozen=True, kw_only=True, slots=True)
class PolicySearch:
    """What a source that yields a policy is asked. Made by the plan, not by a file.

    Attributes:
        source: the source's own configuration, a field of ``SourcesConfig``.
        limits: all limits to meet, as the solver's room writes them (``Limit.text``).
        accounting: how costs are counted.
    """

    source: Any
    limits: tuple[str, ...]
    accounting: str = "standard"
