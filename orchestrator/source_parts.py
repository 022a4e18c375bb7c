"""Which steps do the sources of a run become, and what is each told? Section ``sources``, pure.

A source that yields importance is one step, and the solver answers for every set of limits. One
that yields a policy is a step for each set of limits that is trained and can be met.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from orchestrator.cells import LimitSet, trained_limits
from orchestrator.config_schema import ExperimentConfig
from trainers.source_config import PolicySearch
from trainers.sources import Source

# Which step gives an input, and under which role that step has it.
PROVIDERS = {
    "costs": ("costs", "costs"),
    "weights": ("pretrain", "weights"),
    "joint": ("indicators", "joint"),
    "importance": ("indicators", "importance"),
}


@dataclass(frozen=True, kw_only=True, slots=True)
class SourcePart:
    """One step of a source.

    Attributes:
        source: what it is.
        recipe: its own configuration, a field of the section.
        limits: what a policy has to meet; None for importance, which serves all limits.
    """

    source: Source
    recipe: Any
    limits: LimitSet | None = None

    @property
    def name(self) -> str:
        """Of its step."""
        at = "" if self.limits is None else f"-l{self.limits.index}"
        return self.source.name + at

    @property
    def roles(self) -> tuple[str, ...]:
        """Its inputs."""
        return ("costs", *self.source.needs)

    @property
    def needs(self) -> tuple[str, ...]:
        """Names of the steps whose outputs it reads."""
        return tuple(dict.fromkeys(PROVIDERS[role][0] for role in self.roles))

    @property
    def about(self) -> str:
        """One clause for ``mpq plan``."""
        return self.source.about + (f", for {self.limits.name}" if self.limits else "")

    def task(self, accounting: str) -> Any:
        """What its phase is configured with."""
        if self.limits is None:
            return self.recipe
        texts = tuple(limit.text for limit in self.limits.limits)
        return PolicySearch(source=self.recipe, limits=texts, accounting=accounting)


def source_parts(
    config: ExperimentConfig, limit_sets: tuple[LimitSet, ...]
) -> tuple[SourcePart, ...]:
    """Every step of the section, in the order of ``trainers.sources``."""
    parts: list[SourcePart] = []
    for source, recipe in config.asked_sources:
        if source.yields == "importance":
            parts.append(SourcePart(source=source, recipe=recipe))
            continue
        parts += [
            SourcePart(source=source, recipe=recipe, limits=limits)
            for limits in trained_limits(config.search, limit_sets)
            if not limits.problem
        ]
    return tuple(parts)
