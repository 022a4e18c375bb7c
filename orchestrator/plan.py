"""What will a run do? A pure function from a configuration and a cost table to steps.

A step says *what*, never *how*: workers, threads and addresses are not in it, so a run may go on
with other resources. Its key is a hash of everything that decides its result, the keys of the
steps before it included; a stored result under the same key is that result.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

from orchestrator.cells import (
    Cell,
    LimitSet,
    bit_choices,
    resolve_limits,
    search_cells,
    trained_alphas,
    trained_limits,
)
from orchestrator.config_schema import DataConfig, ExperimentConfig
from orchestrator.evidence import evidence_parts
from orchestrator.source_parts import SourcePart, source_parts
from solvers.policy import Policy
from solvers.tables import BitChoices, CostTable
from trainers.phases import EXECUTION_OPTIONS
from trainers.sources import SOURCES

# Raised when a step would compute something else from the same configuration.
STEP_VERSIONS = {
    "costs": 1,
    "pretrain": 1,
    "limpq.indicators": 4,
    "metamix.meta": 1,
    "metamix.bit_selection": 2,
    "metamix.drift": 2,
    "metamix.distributions": 2,
    "hessian": 1,
    "sensitivity": 2,
    "sweep": 2,
    "weight_training": 2,
    **{source.phase: source.version for source in SOURCES},
}


@dataclass(frozen=True, kw_only=True, slots=True)
class Step:
    """One piece of work whose result is stored under its key.

    Attributes:
        name: its folder below ``steps/``.
        action: a phase of the trainers room, ``costs`` or ``sweep``.
        key: hash of everything that decides the result.
        needs: names of the steps whose outputs it reads.
        about: one clause for ``mpq plan``.
    """

    name: str
    action: str
    key: str
    needs: tuple[str, ...]
    about: str


@dataclass(frozen=True, kw_only=True, slots=True)
class Plan:
    """The whole run.

    Attributes:
        steps: in the order they run.
        costs: what the network costs.
        choices: candidate bits.
        limit_sets: every set of limits with its reachable range.
        cells: every question to the solver.
        given: the user's own policies by name.
    """

    steps: tuple[Step, ...]
    costs: CostTable
    choices: BitChoices
    limit_sets: tuple[LimitSet, ...]
    cells: tuple[Cell, ...]
    given: Mapping[str, Policy] = field(default_factory=dict)

    @property
    def feasible_limits(self) -> tuple[LimitSet, ...]:
        """Limit sets that some policy may meet."""
        return tuple(limits for limits in self.limit_sets if not limits.problem)

    def step(self, name: str) -> Step:
        """The step of that name."""
        return next(step for step in self.steps if step.name == name)

    @property
    def selections(self) -> tuple[tuple[Step, LimitSet], ...]:
        """MetaMix's bit selections: each step with the limits it aims at."""
        return tuple(
            (step, limits)
            for step in self.steps
            for limits in self.limit_sets
            if step.name == selection_name(limits)
        )


def make_plan(
    config: ExperimentConfig,
    costs: CostTable,
    data_fingerprint: str,
    weights: Mapping[str, str] | None = None,
    given: Mapping[str, Policy] | None = None,
) -> Plan:
    """Plan a run.

    Args:
        config: what was asked for.
        costs: the traced network.
        data_fingerprint: quick hash of the images' source.
        weights: file of given weights -> its hash; published ones are known by their name.
        given: the user's own policies by name.

    Raises:
        LimitError: a limit that cannot be understood.
    """
    choices = bit_choices(config)
    # MetaMix selects towards a target, and what lies above its reach is no target.
    limit_sets = resolve_limits(
        config.search, costs, choices, config.accounting, to_spend=config.method == "metamix"
    )
    common = {
        "seed": config.seed,
        "model": asdict(config.model),
        "data": _deciding(config.data),
        "data_fingerprint": data_fingerprint,
        "pins": [asdict(pin) for pin in config.pins],
        **({"weights": dict(weights)} if weights else {}),
    }
    steps = [
        _step(
            "costs", "costs", (), {**common, "groups": [asdict(g) for g in config.groups]},
            f"trace {len(costs.layers)} layers, {len(costs.searched)} of them searched",
        )
    ]  # fmt: skip
    # Nothing is trained for limits that nothing can meet.
    if any(not limits.problem for limits in limit_sets):
        steps += _training_steps(config, common, limit_sets, steps[0], given or {})
    return Plan(
        steps=tuple(steps),
        costs=costs,
        choices=choices,
        limit_sets=limit_sets,
        cells=search_cells(config, limit_sets),
        given=given or {},
    )


def _deciding(data: DataConfig) -> dict[str, Any]:
    """What of section ``data`` decides results: not how many threads decode images."""
    options = {k: v for k, v in data.options.items() if k not in EXECUTION_OPTIONS}
    return {**asdict(data), "options": options}


def _training_steps(
    config: ExperimentConfig,
    common: Mapping[str, Any],
    limit_sets: tuple[LimitSet, ...],
    costs: Step,
    given: Mapping[str, Policy],
) -> list[Step]:
    pretrain = _step(
        "pretrain", "pretrain", (costs,),
        {**common, "config": None if config.pretrain is None else asdict(config.pretrain)},
        "measure the given full-precision weights"
        if config.pretrain is None
        else f"train the full-precision network, {_length(config.pretrain)}",
    )  # fmt: skip
    steps = [pretrain]
    search_needs: tuple[Step, ...] = (costs,)
    if config.learns_indicators:
        indicators = _step(
            "indicators", "limpq.indicators", (costs, pretrain),
            {**common, "bits": asdict(config.bits), "config": asdict(config.indicators)},
            f"learn the indicators jointly, {_length(config.indicators)}",
        )  # fmt: skip
        steps.append(indicators)
        search_needs = (*search_needs, indicators)
    selections: list[Step] = []
    if config.method == "metamix":
        start = indicators if config.metamix.start == "limpq" else pretrain
        meta, selections = _metamix_steps(config, common, limit_sets, (costs, start))
        steps += [meta, *selections]
        search_needs = (*search_needs, meta)
    sources = source_parts(config, limit_sets)
    by_name = {step.name: step for step in (costs, *steps)}
    source_steps = [_source_step(config, common, part, by_name) for part in sources]
    steps += source_steps
    search_needs += tuple(
        step for step, part in zip(source_steps, sources, strict=True) if part.limits is None
    )
    num_cells = len(search_cells(config, limit_sets))
    sweep = _step(
        "sweep", "sweep", search_needs,
        {
            "search": asdict(config.search), "bits": asdict(config.bits), "method": config.method,
            "accounting": config.accounting, "controls": config.controls, "seed": config.seed,
            "random_draws": config.random_draws, "importance": asdict(config.importance),
            **({"given": {name: p.policy_id for name, p in given.items()}} if given else {}),
        },
        f"solve {num_cells} cells ({len(config.search.alphas)} alphas x {len(limit_sets)} limit "
        "sets, and comparisons) and make the controls"
        if config.method == "limpq"
        else f"solve {num_cells} cells and make the controls, at the limits that are trained",
    )  # fmt: skip
    # Which policies there are is not in its key: each has one of its own (``training_key``).
    train = _step(
        "train", "weight_training", (costs, pretrain),
        {**common, "config": asdict(config.train)},
        f"train each distinct policy of {len(trained_alphas(config.search))} alphas x "
        f"{len(trained_limits(config.search, limit_sets))} limit sets and the controls, "
        f"{_length(config.train)} each",
        waits=(*selections, *source_steps, sweep),
    )  # fmt: skip
    evidence = [
        _step(
            part.name, part.action, (costs, pretrain),
            {**common, "bits": asdict(config.bits), "config": asdict(part.recipe)}, part.about,
        )
        for part in evidence_parts(config.evidence)
    ]  # fmt: skip
    return [*steps, sweep, train, *evidence]


def _metamix_steps(
    config: ExperimentConfig,
    common: Mapping[str, Any],
    limit_sets: tuple[LimitSet, ...],
    needs: tuple[Step, ...],
) -> tuple[Step, list[Step]]:
    """One meta-state, and a bit selection for every target that is trained and can be met."""
    bits = asdict(config.bits)
    # What weight training takes over changes no selection; the key of the training has it.
    search = {k: v for k, v in asdict(config.metamix).items() if k != "inherit"}
    meta = _step(
        "meta", "metamix.meta", needs,
        {**common, "bits": bits, "config": asdict(config.metamix.meta)},
        f"train the meta-state, {_length(config.metamix.meta)}",
    )  # fmt: skip
    selections = [
        _step(
            selection_name(limits), "metamix.bit_selection", (*needs, meta),
            {
                **common, "bits": bits, "config": search,
                "target": dict(limits.texts), "accounting": config.accounting,
            },
            f"select bits for {limits.name}, {_length(config.metamix.search)}",
        )
        for limits in trained_limits(config.search, limit_sets)
        if not limits.problem
    ]  # fmt: skip
    return meta, selections


def _source_step(
    config: ExperimentConfig,
    common: Mapping[str, Any],
    part: SourcePart,
    by_name: Mapping[str, Step],
) -> Step:
    """A source that yields importance, once; one that yields a policy, at one set of limits."""
    target = {"target": dict(part.limits.texts)} if part.limits else {}
    return _step(
        part.name, part.source.phase, tuple(by_name[name] for name in part.needs),
        {
            **common, "bits": asdict(config.bits), "config": asdict(part.recipe), **target,
            "accounting": config.accounting,
        },
        part.about,
    )  # fmt: skip


def selection_name(limits: LimitSet) -> str:
    """Name of the bit selection that aims at these limits."""
    return f"select-l{limits.index}"


def _step(
    name: str,
    action: str,
    needs: tuple[Step, ...],
    identity: Mapping[str, Any],
    about: str,
    waits: tuple[Step, ...] = (),
) -> Step:
    facts = {
        "name": name,
        "action": action,
        "version": STEP_VERSIONS[action],
        "needs": [need.key for need in needs],
        "identity": identity,
    }
    text = json.dumps(facts, sort_keys=True, default=list)
    return Step(
        name=name,
        action=action,
        key=hashlib.sha256(text.encode()).hexdigest()[:24],
        needs=tuple(need.name for need in (*needs, *waits)),
        about=about,
    )


def _length(recipe: Any) -> str:
    return f"{recipe.steps} updates" if recipe.steps is not None else f"{recipe.epochs} epochs"
