"""How much work is a plan: images through the network, forward only or forward and backward? Pure.

Work is counted in images, because seconds belong to a machine: ``hours`` turns it into device
hours at a stated or measured rate. One image there and back through a network whose layers are
quantized at one bit-width is the unit; a forward pass alone counts as a third of it, and a
Hessian-vector product as two (forward, backward, and backward through both).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from orchestrator.cells import trained_alphas, trained_limits
from orchestrator.config_schema import ExperimentConfig
from orchestrator.evidence import evidence_parts
from orchestrator.forecast.work import Work, trained_images
from orchestrator.forecast.work_of_sources import sensitivity_work, source_work
from orchestrator.made_controls import made_controls
from orchestrator.plan import Plan, Step
from orchestrator.source_parts import source_parts
from trainers.metamix.config import MetaConfig
from trainers.recipes import TrainConfig

# Images that re-estimate the merged BatchNorm after the joint training (trainers.limpq).
MERGED_IMAGES = 2048


@dataclass(frozen=True, kw_only=True, slots=True)
class ImageCount:
    """How many images a run has.

    Attributes:
        train: training images, those held out left out.
        test: images that accuracies are measured on.
    """

    train: int
    test: int


def work_of(config: ExperimentConfig, plan: Plan, images: ImageCount) -> dict[str, Work | None]:
    """Work of every step by name; None where it cannot be reckoned.

    The number of trained policies is an upper bound: equal ones are trained once.

    Args:
        config: the experiment.
        plan: its steps.
        images: of its data set.
    """
    sources = {part.name: part for part in source_parts(config, plan.limit_sets)}
    evidence = {part.name: part.recipe for part in evidence_parts(config.evidence)}
    found: dict[str, Work | None] = {}
    for step in plan.steps:
        if step.name in sources:
            found[step.name] = source_work(sources[step.name].recipe, plan, images.train)
        elif step.name in evidence:
            found[step.name] = _evidence(config, step, evidence[step.name], plan, images)
        else:
            rule = _RULES.get(step.action)
            found[step.name] = None if rule is None else rule(config, plan, images)
    return found


def trained_policies(config: ExperimentConfig, plan: Plan) -> int:
    """At most how many policies are trained."""
    limits = [x for x in trained_limits(config.search, plan.limit_sets) if not x.problem]
    indexes = {x.index for x in limits}
    alphas = set(trained_alphas(config.search))
    solved = [
        cell
        for cell in plan.cells
        if cell.limit_set.index in indexes
        and (cell.alpha in alphas or cell.method != "limpq")
        and not cell.limit_set.problem
    ]
    made = {row.entry for row in made_controls(config, plan) if row.entry is not None}
    parts = source_parts(config, plan.limit_sets)
    found = sum(part.limits is not None for part in parts)
    return len(solved) + len(made) + len(plan.selections) + found


def hours(work: Work, images_per_second: float) -> float:
    """Device hours of one worker's device at that rate."""
    return work.units / images_per_second / 3600.0


def _nothing(config: ExperimentConfig, plan: Plan, images: ImageCount) -> Work:
    return Work()


def _pretrain(config: ExperimentConfig, plan: Plan, images: ImageCount) -> Work:
    trained = 0 if config.pretrain is None else trained_images(config.pretrain, images.train)
    return Work(trained=trained, forward=images.test)


def _indicators(config: ExperimentConfig, plan: Plan, images: ImageCount) -> Work:
    recipe = config.indicators
    passes = _widths(plan) + (recipe.random_pass != "none")
    trained = passes * trained_images(recipe, images.train)
    return Work(trained=trained, forward=min(MERGED_IMAGES, images.train))


def _meta(config: ExperimentConfig, plan: Plan, images: ImageCount) -> Work:
    meta = config.metamix.meta
    length = trained_images(meta, images.train)
    return Work(trained=_widths(plan) * length, forward=_taught(meta, length))


def _selection(config: ExperimentConfig, plan: Plan, images: ImageCount) -> Work:
    """A meta update and a search update on each batch; the latter mixes all widths in one pass."""
    meta, search = config.metamix.meta, config.metamix.search
    length = trained_images(meta, images.train, epochs=search.epochs, steps=search.steps)
    # The teacher is asked by either update.
    return Work(trained=(_widths(plan) + 1) * length, forward=_taught(meta, 2 * length))


def _train(config: ExperimentConfig, plan: Plan, images: ImageCount) -> Work:
    recipe = config.train
    length = trained_images(recipe, images.train)
    measured = 1 + (recipe.epochs // recipe.evaluate_every if recipe.evaluate_every else 0)
    forward = measured * (images.test + min(recipe.bn_reestimate_images, images.train))
    forward += _taught(recipe, length)
    policies = trained_policies(config, plan)
    return Work(trained=policies * length, forward=policies * forward)


_RULES: Mapping[str, Callable[[ExperimentConfig, Plan, ImageCount], Work]] = {
    "costs": _nothing,
    "sweep": _nothing,
    "pretrain": _pretrain,
    "limpq.indicators": _indicators,
    "metamix.meta": _meta,
    "metamix.bit_selection": _selection,
    "weight_training": _train,
}


def _evidence(
    config: ExperimentConfig, step: Step, recipe: Any, plan: Plan, images: ImageCount
) -> Work | None:
    match step.action:
        case "metamix.drift":
            passes = sum(_widths(plan) if v == "metamix" else 1 for v in recipe.variants)
            length = trained_images(recipe, images.train)
            taught = _taught(recipe, len(recipe.variants) * length)
            return Work(trained=passes * length, forward=taught)
        case "metamix.distributions":
            widths, rows = len(plan.choices.act_bits), len(recipe.weight_bits)
            length = trained_images(recipe, images.train)
            passes = 0 if recipe.training == "none" else widths * rows * length
            # One training of all widths asks the teacher once a batch.
            asked = passes // widths if recipe.training == "meta" else passes
            counted = widths * rows * min(recipe.images, images.train)
            return Work(trained=passes, forward=counted + _taught(recipe, asked))
        case "hessian":
            return Work(hessian=recipe.max_probes * min(recipe.images, images.train))
        case "sensitivity":
            return sensitivity_work(recipe, plan, images.train)
    return None


def _taught(recipe: TrainConfig | MetaConfig, images: int) -> int:
    """Images through a teacher that is asked about so many."""
    return images if recipe.distillation is not None else 0


def _widths(plan: Plan) -> int:
    """Passes at one width each: the longer list of candidates decides."""
    return max(len(plan.choices.weight_bits), len(plan.choices.act_bits))
