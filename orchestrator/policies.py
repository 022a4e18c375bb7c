"""Which policies does a run train, and for which rows of its table?

Many cells of a sweep end at the same bits: a policy is trained once, under its ``policy_id``, and
every row that asked for it points there.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

from orchestrator.cells import Cell, LimitSet, trained_alphas, trained_limits
from orchestrator.config_schema import ExperimentConfig
from orchestrator.plan import Plan
from orchestrator.records import alpha_text
from solvers.policy import Policy
from solvers.storage import ResultRow


@dataclass(frozen=True, kw_only=True, slots=True)
class Candidate:
    """A row of the result table: who proposes which policy at which limits.

    Attributes:
        method: ``limpq``, ``metamix``, the name of a source or of a control.
        alpha: of the solve; None where there was none.
        limit_set: what it had to meet.
        policy: what it proposes; None when it found nothing.
        solved: the solver's answer, where one was asked.
        start: what its training inherits, role -> absolute path; empty = full precision.
        start_key: key of the step that left it.
        search: cost of the phases behind it, by the common metric keys.
        facts: what a reader must know about how it was found.
        reason: why there is none.
        quantizer: what its training quantizes with; None = ``train.quantizer``.
        failed: whether what should have found it gave no result, so that asking again may help.
    """

    method: str
    alpha: float | None
    limit_set: LimitSet
    policy: Policy | None
    solved: ResultRow | None = None
    start: Mapping[str, str] = field(default_factory=dict)
    start_key: str = ""
    search: Mapping[str, float] = field(default_factory=dict)
    facts: Mapping[str, Any] = field(default_factory=dict)
    reason: str = ""
    quantizer: Literal["pact"] | None = None
    failed: bool = False

    @property
    def name(self) -> str:
        """Unique in a run, and fit for a file name."""
        alpha = "" if self.alpha is None else f"-a{alpha_text(self.alpha)}"
        return f"{self.method}{alpha}-l{self.limit_set.index}"

    @property
    def entry(self) -> str | None:
        """Name of its training: the same bits, start and quantizer are trained once."""
        if self.policy is None:
            return None
        quantizer = "" if self.quantizer is None else f"-{self.quantizer}"
        start = f"-{self.method}-l{self.limit_set.index}" if self.start else ""
        return self.policy.policy_id + start + quantizer


def solved_candidates(
    cells: Sequence[Cell],
    rows: Mapping[str, ResultRow],
    policies: Mapping[str, Policy],
    search: Mapping[str, Mapping[str, float]],
    facts: Mapping[str, Mapping[str, Any]],
) -> tuple[Candidate, ...]:
    """One candidate per solved cell, in the order of the cells.

    Args:
        cells: the questions; those without an answer are left out.
        rows: the answers by cell name.
        policies: by policy id.
        search: cost of the phases behind each method, by the common metric keys.
        facts: what a row of each method says besides, the steps of those phases among it.
    """
    return tuple(
        Candidate(
            method=cell.method,
            alpha=cell.alpha,
            limit_set=cell.limit_set,
            policy=policies.get(rows[cell.name].policy_id),
            solved=rows[cell.name],
            search=search.get(cell.method, {}),
            facts=facts.get(cell.method, {}),
            reason=rows[cell.name].reason,
        )
        for cell in cells
        if cell.name in rows
    )


def failed_candidates(cells: Sequence[Cell], failed: Mapping[str, str]) -> tuple[Candidate, ...]:
    """The rows of methods whose importance is not there, with the reason by method."""
    return tuple(
        Candidate(
            method=cell.method, alpha=cell.alpha, limit_set=cell.limit_set, policy=None,
            failed=True, reason=failed[cell.method],
        )
        for cell in cells
        if cell.method in failed
    )  # fmt: skip


def unmet_candidates(method: str, limit_sets: Sequence[LimitSet]) -> tuple[Candidate, ...]:
    """The rows of limits that nothing can meet: nothing is solved, searched or trained for them."""
    return tuple(
        Candidate(method=method, alpha=None, limit_set=limits, policy=None, reason=limits.problem)
        for limits in limit_sets
        if limits.problem
    )


def to_train(
    config: ExperimentConfig, plan: Plan, candidates: Sequence[Candidate]
) -> tuple[Candidate, ...]:
    """The rows whose training is run: the first of each distinct ``entry``, in their order."""
    alphas = set(trained_alphas(config.search))
    indexes = {limits.index for limits in trained_limits(config.search, plan.limit_sets)}
    chosen: dict[str, Candidate] = {}
    for candidate in candidates:
        is_asked = candidate.method != config.method or candidate.alpha in alphas | {None}
        if candidate.entry and is_asked and candidate.limit_set.index in indexes:
            chosen.setdefault(candidate.entry, candidate)
    return tuple(chosen.values())
