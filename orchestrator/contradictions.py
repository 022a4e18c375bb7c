"""Which settings are fine alone but contradict each other?"""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping
from dataclasses import dataclass, fields
from difflib import get_close_matches
from pathlib import Path
from typing import Any, get_args

from orchestrator.config_schema import Control, ExperimentConfig
from orchestrator.config_types import from_here, is_published
from orchestrator.teachers import teachers_of
from orchestrator.yaml_source import KeyPath
from trainers.recipes import OptimizerConfig, QuantTrainingConfig
from trainers.sources import SOURCES


@dataclass(frozen=True, slots=True)
class Contradiction:
    """One setting that cannot stand beside others.

    Attributes:
        path: the key to point at.
        found: what stands there.
        allowed: what would agree with the rest.
        suggestion: what was probably meant; empty when nothing is near.
        beside: the other keys it rests on.
    """

    path: KeyPath
    found: str
    allowed: str
    suggestion: str = ""
    beside: tuple[KeyPath, ...] = ()

    def rests_on(self, wrong: KeyPath) -> bool:
        """Whether a fault at ``wrong`` may make this no contradiction at all."""
        return any(
            path[: len(wrong)] == wrong or wrong[: len(path)] == path
            for path in (self.path, *self.beside)
        )


def contradictions(
    config: ExperimentConfig, body: Mapping[str, Any], models: Collection[str] | None = None
) -> list[Contradiction]:
    """Every pair of settings that cannot both be meant.

    Args:
        config: the checked configuration.
        body: the tree it came from, to tell what was written from what was implied.
        models: names of networks that exist; None = do not check those of teachers.
    """
    return [
        *_about_weights(config),
        *_about_teachers(config, models),
        *_about_bits(config),
        *_about_bit_searches(config),
        *_about_cells(config),
        *_about_workers(config),
        *_about_schedule("pretrain", config.pretrain),
        *_about_schedule("indicators", config.indicators),
        *_about_schedule("metamix.meta", config.metamix.meta),
        *_about_schedule("train", config.train),
        *_about_controls(config, body),
        *_about_policies(config),
        *_about_targets(config),
        *_about_sources(config),
        *(
            found
            for section, recipe in (_other_trainings(config) | _sensitivity(config)).items()
            for found in _about_schedule(section, recipe)
        ),
    ]


def _about_weights(config: ExperimentConfig) -> list[Contradiction]:
    given, trained = config.model.weights, config.pretrain is not None
    if given is not None and trained:
        allowed = "null when model.weights is given, or no model.weights"
        found = f"a section beside model.weights {given!r}"
        return [Contradiction(("pretrain",), found, allowed, beside=(("model", "weights"),))]
    if given is None and not trained:
        allowed = "a section, or model.weights: nothing says where weights come from"
        found = "null without model.weights"
        return [Contradiction(("pretrain",), found, allowed, beside=(("model", "weights"),))]
    return []


def _about_teachers(
    config: ExperimentConfig, models: Collection[str] | None
) -> list[Contradiction]:
    """A network of its own has weights of its own, and the other way round."""
    found: list[Contradiction] = []
    for path, teacher in teachers_of(config):
        name, weights = (*path, "model"), (*path, "weights")
        if teacher.model is None:
            ignored = {"weights": teacher.weights, "options": dict(teacher.options)}
            for key, value in ignored.items():
                if value:
                    what = f"{value!r} beside model null"
                    allowed = "null: without a model the teacher is the network itself"
                    if key == "options":
                        allowed = "{}: without a model the teacher is the network itself"
                    found.append(Contradiction((*path, key), what, allowed, beside=(name,)))
            continue
        if models is not None and teacher.model not in models and ":" not in teacher.model:
            near = get_close_matches(teacher.model, models, n=1)
            hint = f"did you mean {near[0]}?" if near else ""
            allowed = "a name that mpq doctor --names lists, or module:factory"
            found.append(Contradiction(name, repr(teacher.model), allowed, hint))
        if teacher.weights is None:
            allowed = "torchvision or a file: a teacher of random weights teaches noise"
            what = f"null beside model {teacher.model!r}"
            found.append(Contradiction(weights, what, allowed, beside=(name,)))
        elif not (is_published(teacher.weights) or _is_file(teacher.weights)):
            allowed = "torchvision, torchvision:NAME, or a file that is there"
            found.append(Contradiction(weights, repr(teacher.weights), allowed))
    return found


def _is_file(weights: str) -> bool:
    return Path(from_here(weights) or "").is_file()


def _about_bits(config: ExperimentConfig) -> list[Contradiction]:
    bits = config.bits
    if bits.tied and not set(bits.weight) & set(bits.act):
        found = f"true with weight {list(bits.weight)} and act {list(bits.act)}"
        return [Contradiction(("bits", "tied"), found, "candidates that weight and act share")]
    searches_both = len(bits.weight) > 1 and len(bits.act) > 1
    is_tied = config.learns_indicators and config.indicators.random_pass == "tied"
    if is_tied and searches_both and bits.weight != bits.act:
        found = f"'tied' with weight {list(bits.weight)} and act {list(bits.act)}"
        allowed = "the same candidates for weight and act, or another random_pass"
        path: KeyPath = ("indicators", "random_pass")
        return [Contradiction(path, found, allowed, "did you mean separate?", (("bits",),))]
    return []


def _about_bit_searches(config: ExperimentConfig) -> list[Contradiction]:
    """What MetaMix and EdMIPS refuse once they run, hours after the start."""
    edmips = [source.name for source, _ in config.asked_sources if source.name == "edmips"]
    by_method: list[KeyPath] = [("method",)] if config.method == "metamix" else []
    searches: list[KeyPath] = [*by_method, *(("sources", name) for name in edmips)]
    if not searches:
        return []
    who = " and ".join(["method metamix"] * len(by_method) + [f"sources.{n}" for n in edmips])
    bits = config.bits
    found: list[Contradiction] = []
    if bits.tied:
        allowed = "false: weights and activations are searched apart"
        found.append(
            Contradiction(("bits", "tied"), f"true with {who}", allowed, beside=(*searches,))
        )
    if len(bits.weight) == len(bits.act) == 1:
        what = f"{list(bits.act)} beside weight {list(bits.weight)}, with {who}"
        allowed = "several widths, here or for weight: otherwise there is nothing to search"
        beside: tuple[KeyPath, ...] = (("bits", "weight"), *searches)
        found.append(Contradiction(("bits", "act"), what, allowed, beside=beside))
    meta = config.metamix.meta
    if by_method and not config.metamix.search.fixed_meta_state:
        beside = (("metamix", "search", "fixed_meta_state"), ("method",))
        if meta.accumulate > 1:
            allowed = "1 where search.fixed_meta_state is false: two updates share one pass"
            path: KeyPath = ("metamix", "meta", "accumulate")
            found.append(Contradiction(path, str(meta.accumulate), allowed, beside=beside))
        if meta.precision == "fp16":
            allowed = (
                "bf16 or fp32 where search.fixed_meta_state is false: two updates share one pass"
            )
            path = ("metamix", "meta", "precision")
            found.append(Contradiction(path, "fp16", allowed, beside=beside))
    return found


def _about_cells(config: ExperimentConfig) -> list[Contradiction]:
    search = config.search
    found: list[Contradiction] = []
    path: KeyPath = ("search", "train_limits")
    for index in search.train_limits or ():
        if index >= len(search.limits):
            allowed = f"indexes of search.limits, 0 to {len(search.limits) - 1}"
            found.append(Contradiction(path, str(index), allowed, beside=(("search", "limits"),)))
    path = ("search", "train_alphas")
    for alpha in search.train_alphas or ():
        if alpha not in search.alphas:
            allowed = f"entries of search.alphas, {list(search.alphas)}"
            found.append(Contradiction(path, str(alpha), allowed, beside=(("search", "alphas"),)))
    for index, limits in enumerate(search.limits):
        if limits in search.limits[:index]:
            first = search.limits.index(limits)
            path = ("search", "limits", index)
            found.append(Contradiction(path, f"entry {first} again", "every set once"))
    return found


def _about_workers(config: ExperimentConfig) -> list[Contradiction]:
    found: list[Contradiction] = []
    workers = config.cluster.num_workers
    shared: dict[str, OptimizerConfig | None] = {
        "pretrain": config.pretrain,
        "indicators": config.indicators if config.learns_indicators else None,
        "metamix.meta": config.metamix.meta if config.method == "metamix" else None,
        "train": config.train,
        **_other_trainings(config),
    }
    alone = _sensitivity(config)
    for section, recipe in (shared | alone).items():
        if recipe is None:
            continue
        ranks = 1 if section in alone else workers
        beside: tuple[KeyPath, ...] = () if section in alone else (("cluster", "num_workers"),)
        path: KeyPath = (*_keys(section), "batch_size")
        if recipe.batch_size % ranks:
            allowed = f"a multiple of cluster.num_workers, {workers}: batch sizes are global"
            found.append(Contradiction(path, str(recipe.batch_size), allowed, beside=beside))
        elif recipe.batch_size % (ranks * recipe.accumulate):
            parts = f"accumulate, {recipe.accumulate}"
            if ranks > 1:
                parts = f"cluster.num_workers x accumulate, {ranks} x {recipe.accumulate}"
            allowed = f"a multiple of {parts}: parts are equal"
            beside = (*beside, (*_keys(section), "accumulate"))
            found.append(Contradiction(path, str(recipe.batch_size), allowed, beside=beside))
    return found


def _about_schedule(section: str, phase: OptimizerConfig | None) -> list[Contradiction]:
    if phase is None:
        return []
    found: list[Contradiction] = []
    path: KeyPath
    if phase.min_lr > phase.lr:
        allowed = f"at most lr, {phase.lr}"
        path = (*_keys(section), "min_lr")
        beside: tuple[KeyPath, ...] = ((*_keys(section), "lr"),)
        found.append(Contradiction(path, str(phase.min_lr), allowed, beside=beside))
    if phase.steps is None and phase.warmup_epochs >= phase.epochs:
        allowed = f"less than epochs, {phase.epochs}"
        path = (*_keys(section), "warmup_epochs")
        beside = ((*_keys(section), "epochs"), (*_keys(section), "steps"))
        found.append(Contradiction(path, str(phase.warmup_epochs), allowed, beside=beside))
    clamp = phase.step_clamp if isinstance(phase, QuantTrainingConfig) else None
    if clamp is not None and clamp[0] >= clamp[1]:
        path = (*_keys(section), "step_clamp")
        found.append(Contradiction(path, str(list(clamp)), "[lowest, highest]"))
    return found


def _other_trainings(config: ExperimentConfig) -> dict[str, OptimizerConfig]:
    """Sources and evidence that train, by dotted name."""
    recipes: dict[str, OptimizerConfig] = {
        f"sources.{source.name}": recipe
        for source, recipe in config.asked_sources
        if isinstance(recipe, OptimizerConfig)
    }
    if config.evidence.drift is not None:
        recipes["evidence.drift"] = config.evidence.drift
    for index, recipe in enumerate(config.evidence.distributions):
        recipes[f"evidence.distributions.{index}"] = recipe
    return recipes


def _sensitivity(config: ExperimentConfig) -> dict[str, OptimizerConfig]:
    """Short trainings that one worker does alone: their batches are not divided."""
    recipes = config.evidence.sensitivity
    return {f"evidence.sensitivity.{index}": recipe for index, recipe in enumerate(recipes)}


def _keys(section: str) -> KeyPath:
    """A dotted name as the path of a problem; numbers are places in a list."""
    return tuple(int(key) if key.isdecimal() else key for key in section.split("."))


def _about_controls(config: ExperimentConfig, body: Mapping[str, Any]) -> list[Contradiction]:
    """Controls made from indicators need a method that learns them; only if chosen.

    The default names them for every method, and a stored configuration writes the default out.
    """
    (default,) = (f.default for f in fields(config) if f.name == "controls")
    chosen = "controls" in body and config.controls != default
    from_indicators = [c for c in config.controls if c in ("reversed", "initial")]
    found: list[Contradiction] = []
    path: KeyPath = ("controls",)
    if from_indicators and chosen and not config.learns_indicators:
        what = f"{from_indicators} with method {config.method!r}, which learns no indicators"
        allowed = "uniform, random, or limpq beside them"
        found.append(Contradiction(path, what, allowed, beside=(("method",),)))
    again = f"limpq_{config.importance.transform}"
    if again in config.controls:
        what = f"{again} beside importance.transform {config.importance.transform!r}"
        allowed = "another transform: this one is the row limpq already"
        found.append(Contradiction(path, what, allowed, beside=(("importance", "transform"),)))
    if "metamix_ilp" in config.controls and config.method != "metamix":
        what = f"metamix_ilp with method {config.method!r}, which has no meta-state"
        found.append(Contradiction(path, what, "method metamix", beside=(("method",),)))
    return found


def _about_policies(config: ExperimentConfig) -> list[Contradiction]:
    """A name of its own for every row, and no row that is never trained."""
    taken = {"limpq", *get_args(Control), *(source.name for source in SOURCES)}
    found = [
        Contradiction(
            ("policies", name),
            repr(name),
            "a name that no method, control or source has",
        )
        for name in config.policies
        if name in taken or re.fullmatch(r"(uniform|random|select).*", name)
    ]
    if config.policies and config.search.train_limits == ():
        what, allowed = "a section beside an empty search.train_limits", "limits to train at"
        beside: tuple[KeyPath, ...] = (("search", "train_limits"),)
        found.append(Contradiction(("policies",), what, allowed, beside=beside))
    return found


def _about_sources(config: ExperimentConfig) -> list[Contradiction]:
    """One limit where a source aims at one, and held-out images where it wants them."""
    unheld = [
        Contradiction(
            ("sources", source.name, "images_from"),
            "holdout without data.holdout",
            "train, or a share of the training images as data.holdout",
            beside=(("data", "holdout"),),
        )
        for source, recipe in config.asked_sources
        if getattr(recipe, "images_from", None) == "holdout" and not config.data.holdout
    ]
    single = [source.name for source, _ in config.asked_sources if source.takes_one_limit]
    trained = config.search.train_limits
    return unheld + [
        Contradiction(
            ("sources", name),
            f"a section beside search.limits.{index}, {sorted(limits)}",
            "null, or sets of one limit among those that are trained: it aims at one number",
            beside=(("search", "limits"), ("search", "train_limits")),
        )
        for name in single
        for index, limits in enumerate(config.search.limits)
        if len(limits) > 1 and (trained is None or index in trained)
    ]


_TARGETS = ("bitops", "bitops_level", "mean_act_bits")
_WEIGHT_TARGETS = ("mean_weight_bits", "weight_bytes", "compression_rate")


def _about_targets(config: ExperimentConfig) -> list[Contradiction]:
    """MetaMix is steered to one number, equation 4; a set of several limits is the solver's."""
    if config.method != "metamix":
        return []
    searches_weights = len(config.bits.weight) > 1
    targets = (*_TARGETS, *_WEIGHT_TARGETS) if searches_weights else _TARGETS
    return [
        Contradiction(
            ("search", "limits", index),
            f"{sorted(limits)} with method 'metamix'",
            f"one target of {', '.join(targets)}",
            beside=(("method",),),
        )
        for index, limits in enumerate(config.search.limits)
        if len(limits) != 1 or next(iter(limits)) not in targets
    ]
