"""How much work are the other ways to a policy? Upper ends: searches that settle stop earlier."""

from __future__ import annotations

from typing import Any

from orchestrator.forecast.work import Work, trained_images
from orchestrator.plan import Plan
from trainers.baselines.config import (
    EdmipsConfig,
    HawqConfig,
    OneLayerLossConfig,
    QuantizationErrorConfig,
    RandomSearchConfig,
    TraceConfig,
)
from trainers.oneshot.config import FittedConfig, OneShotConfig
from trainers.sensitivity_config import SensitivityConfig


def source_work(recipe: Any, plan: Plan, num_train: int) -> Work | None:
    """Work of one step of a source; None for one that is not known here.

    Args:
        recipe: the source's own configuration.
        plan: layers and candidates.
        num_train: training images of the set.
    """
    layers = len(plan.costs.searched)
    tensors = layers * (len(plan.choices.weight_bits) + len(plan.choices.act_bits))
    match recipe:
        case EdmipsConfig():
            return Work(trained=trained_images(recipe, num_train))
        case OneShotConfig():
            return Work(forward=recipe.evaluations * (recipe.images + recipe.bn_images))
        case FittedConfig():
            return Work(forward=recipe.policies * (recipe.images + recipe.bn_images))
    images = min(getattr(recipe, "images", 0), num_train)
    match recipe:
        case QuantizationErrorConfig(weighting="fisher"):
            return Work(trained=images, forward=images)
        case QuantizationErrorConfig():
            return Work(forward=images)
        case OneLayerLossConfig():
            return Work(forward=images * (tensors + 1))
        case HawqConfig():
            return Work(forward=images, hessian=images * recipe.max_iterations * layers)
        case TraceConfig():
            return Work(forward=images, hessian=images * recipe.max_probes)
        case RandomSearchConfig():
            again = min(recipe.bn_reestimate_images, num_train)
            return Work(forward=recipe.evaluations * (images + again))
    return None


def sensitivity_work(recipe: SensitivityConfig, plan: Plan, num_train: int) -> Work:
    """Every tensor at every width: measured, trained shortly, measured again."""
    layers = len(recipe.layers) or len(plan.costs.searched)
    each = layers * len(recipe.tensors) * len(recipe.bits)
    trained = 0 if recipe.steps == 0 else trained_images(recipe, num_train)
    measured = (2 if trained else 1) * (recipe.images + min(recipe.bn_images, num_train))
    return Work(trained=each * trained, forward=each * measured)
