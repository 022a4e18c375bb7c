"""Which (alpha, limits) cells does a sweep have, and which of them can be met at all?

A cell is one question to the solver. Whether its limits are within reach depends only on the
network and the candidate bits, so it is known before anything is trained.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from orchestrator.config_schema import ExperimentConfig, SearchConfig
from orchestrator.records import alpha_text
from solvers.accounting import Accounting, accounting_named
from solvers.errors import SolversError
from solvers.limits import Limit, limit_from
from solvers.problem import build_problem
from solvers.reach import reach_of
from solvers.tables import BitChoices, CostTable


@dataclass(frozen=True, kw_only=True, slots=True)
class LimitSet:
    """One entry of ``search.limits``, resolved against a network.

    Attributes:
        index: its place in the configuration.
        texts: kind -> value as written.
        limits: what the solver is asked.
        bounds: kind -> the integer ceiling, in the unit of ``resources``.
        smallest: kind -> least use of any policy, the other limits aside.
        largest: kind -> greatest use of any policy.
        resources: kind -> what is counted.
        layers: kind -> number of layers that a mean is taken over.
        problem: why no policy can meet it; empty when each limit can be met alone.
    """

    index: int
    texts: Mapping[str, str]
    limits: tuple[Limit, ...]
    bounds: Mapping[str, int]
    smallest: Mapping[str, int]
    largest: Mapping[str, int]
    resources: Mapping[str, str]
    layers: Mapping[str, int] = field(default_factory=dict)
    problem: str = ""

    @property
    def name(self) -> str:
        """The limits as a person writes them."""
        return ", ".join(f"{kind}={value}" for kind, value in self.texts.items())


@dataclass(frozen=True, kw_only=True, slots=True)
class Cell:
    """One question: a method's importance at one alpha under one set of limits."""

    method: str
    alpha: float
    limit_set: LimitSet

    @property
    def name(self) -> str:
        """Unique in a run, and fit for a file name."""
        return f"{self.method}-a{alpha_text(self.alpha)}-l{self.limit_set.index}"


def bit_choices(config: ExperimentConfig) -> BitChoices:
    """The candidates of the configuration."""
    return BitChoices(
        weight_bits=config.bits.weight, act_bits=config.bits.act, tied=config.bits.tied
    )


def resolve_limits(
    search: SearchConfig,
    costs: CostTable,
    choices: BitChoices,
    accounting: str,
    *,
    to_spend: bool = False,
) -> tuple[LimitSet, ...]:
    """Every limit set in integers, with the reachable range of each limit.

    Raises:
        LimitError: a limit that cannot be understood, naming its place.
    """
    named = accounting_named(accounting)
    return tuple(
        _resolve(index, texts, costs, choices, named, to_spend)
        for index, texts in enumerate(search.limits)
    )


def search_cells(config: ExperimentConfig, limit_sets: tuple[LimitSet, ...]) -> tuple[Cell, ...]:
    """Every cell that the solver is asked: the method's own, the controls, then the sources.

    Controls and sources stand at the limits that are trained, and at the first alpha that is
    trained unless a source has one of its own: they are there to be compared with a trained
    policy.
    """
    search = config.search
    cells: list[Cell] = []
    if config.method == "limpq":
        cells += [
            Cell(method="limpq", alpha=alpha, limit_set=limits)
            for alpha in search.alphas
            for limits in limit_sets
        ]
    asked = [(method, trained_alphas(search)[0]) for method in _solved_controls(config)]
    asked += [
        (source.name, trained_alphas(search)[0] if source.alpha is None else source.alpha)
        for source, _ in config.asked_sources
        if source.yields == "importance"
    ]
    cells += [
        Cell(method=method, alpha=alpha, limit_set=limits)
        for method, alpha in asked
        for limits in trained_limits(search, limit_sets)
    ]
    return tuple(cells)


def _solved_controls(config: ExperimentConfig) -> list[str]:
    """Controls that the solver makes, as far as this run has what they are made from."""
    from_indicators = ("reversed", "initial", "limpq", *limpq_transforms(config))
    return [
        control
        for control in config.controls
        if (control == "metamix_ilp" and config.method == "metamix")
        or (control in from_indicators and config.learns_indicators and control != config.method)
    ]


def limpq_transforms(config: ExperimentConfig) -> dict[str, str]:
    """Controls that read the learned indicators in another way: name -> transform."""
    prefix = "limpq_"
    return {c: c.removeprefix(prefix) for c in config.controls if c.startswith(prefix)}


def trained_alphas(search: SearchConfig) -> tuple[float, ...]:
    """Alphas whose policies are trained."""
    return search.alphas if search.train_alphas is None else search.train_alphas


def trained_limits(search: SearchConfig, limit_sets: tuple[LimitSet, ...]) -> tuple[LimitSet, ...]:
    """Limit sets whose policies are trained."""
    if search.train_limits is None:
        return limit_sets
    return tuple(limit_sets[index] for index in search.train_limits)


def _resolve(
    index: int,
    texts: Mapping[str, str],
    costs: CostTable,
    choices: BitChoices,
    accounting: Accounting,
    to_spend: bool,
) -> LimitSet:
    try:
        limits = tuple(limit_from(kind, value) for kind, value in texts.items())
        problem = build_problem(costs, choices, limits, importance=None, accounting=accounting)
    except SolversError as error:
        raise type(error)(f"search.limits.{index}: {error}") from error
    bounds, smallest, largest, resources, layers = {}, {}, {}, {}, {}
    reasons = []
    for kind, ceiling in zip(texts, problem.ceilings, strict=True):
        low, high = reach_of(problem, ceiling)
        bounds[kind], smallest[kind], largest[kind] = ceiling.bound, low, high
        resources[kind] = ceiling.resource
        if ceiling.layers:
            layers[kind] = len(ceiling.layers)
        if low > ceiling.bound:
            reasons.append(
                f"{kind}={texts[kind]} allows {ceiling.shown(ceiling.bound):,.6g}, the smallest "
                f"reachable is {ceiling.shown(low):,.6g}"
            )
        elif to_spend and high < ceiling.bound:
            reasons.append(
                f"{kind}={texts[kind]} is to be spent: {ceiling.shown(ceiling.bound):,.6g}, the "
                f"largest reachable is {ceiling.shown(high):,.6g}"
            )
    return LimitSet(
        index=index,
        texts=dict(texts),
        limits=limits,
        bounds=bounds,
        smallest=smallest,
        largest=largest,
        resources=resources,
        layers=layers,
        problem="; ".join(reasons),
    )
