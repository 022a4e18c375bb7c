"""How are thousands of questions answered in one go?

A question is an alpha and a set of limits. Questions with one additive limit share a front for
each (alpha, resource); the others, and those whose front grew too large, are solved one by one on
a problem laid out once for each (alpha, kinds of limits). Pure functions: who runs the chunks,
and where, is the orchestrator's matter.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

import numpy as np

from solvers.accounting import STANDARD, Accounting
from solvers.certificate import SolveStatus
from solvers.errors import SolverFailedError
from solvers.frontier import DEFAULT_CAP, Front, FrontTooLargeError, front_of
from solvers.importance import RepairRule
from solvers.limits import Ceiling, Limit, ceilings_of
from solvers.policy import policy_id_of
from solvers.problem import Problem, build_problem
from solvers.reach import out_of_reach, reach_of
from solvers.result import SolverName
from solvers.result_files import ResultRow, Results, row_of
from solvers.solve import solve_problem
from solvers.tables import BitChoices, CostTable, ImportanceTable, LayerBits
from solvers.uses import is_additive


@dataclass(frozen=True, kw_only=True, slots=True)
class Question:
    """One policy that somebody wants.

    Attributes:
        label: what to call it, e.g. the device.
        alpha: weight of the weight indicators.
        limits: what must not be exceeded, all at once.
    """

    label: str
    alpha: float
    limits: tuple[Limit, ...]


@dataclass(frozen=True, kw_only=True, slots=True)
class Tables:
    """What all questions have in common."""

    costs: CostTable
    importance: ImportanceTable
    choices: BitChoices
    accounting: Accounting = STANDARD
    repair: RepairRule = "isotonic"


def chunked(questions: Sequence[Question], size: int) -> Iterator[tuple[Question, ...]]:
    """Questions in chunks of at most ``size``, those of one alpha together.

    A chunk should take seconds: 25 to 100 solves, or any number of questions for one front.
    """
    if size < 1:
        raise ValueError(f"chunks of {size} questions")
    ordered = sorted(questions, key=lambda q: q.alpha)
    for i in range(0, len(ordered), size):
        yield tuple(ordered[i : i + size])


def answer(
    tables: Tables,
    questions: Sequence[Question],
    *,
    solver: SolverName = "auto",
    time_limit_s: float = 60.0,
    use_fronts: bool = True,
    cap: int = DEFAULT_CAP,
) -> Results:
    """Answer every question, in the order asked; infeasible ones are rows like any other.

    Raises:
        TableError: the tables contradict themselves or each other.
        LimitError: a limit does not apply to the network.
        SolverFailedError: a backend broke, or an answer exceeds a limit.
    """
    rows: list[ResultRow | None] = [None] * len(questions)
    for problem, members in _alike(tables, questions):
        alpha = questions[members[0][0]].alpha
        fronted = use_fronts and len(problem.ceilings) == 1 and is_additive(problem.ceilings[0])
        front: Front | None = None
        if fronted:
            try:
                front = front_of(problem, alpha=alpha, cap=cap)
            except FrontTooLargeError:
                # Exact as well, and bounded in memory: each limit on its own.
                front = None
        if front is not None:
            for i, row in _from_front(front, questions, members):
                rows[i] = row
            continue
        for i, ceilings in members:
            rows[i] = _solved(problem.with_ceilings(ceilings), questions[i], solver, time_limit_s)
    return Results(
        model=tables.costs.model,
        fingerprint=tables.costs.fingerprint,
        accounting=tables.accounting.name,
        layers=tables.costs.names,
        rows=tuple(row for row in rows if row is not None),
    )


def whole_fronts(tables: Tables, alphas: Sequence[float], limit: Limit) -> Results:
    """Every point of the front over the limit's kind up to its height, for each alpha.

    Points are labelled ``point-00000`` onwards by ascending use, and each states its own use as
    its limit, so a front is read like any other results. No rows: even the least point exceeds
    the limit.

    Raises:
        TableError: the tables contradict themselves or each other.
        LimitError: the limit is not a sum over layers, or does not apply to the network.
        FrontTooLargeError: the front needs more labels than memory should hold.
    """
    rows: list[ResultRow] = []
    (ceiling,) = ceilings_of([limit], tables.costs, tables.accounting)
    for alpha in alphas:
        question = Question(label="", alpha=alpha, limits=(limit,))
        ((problem, _),) = _alike(tables, [question])
        front = front_of(problem, alpha=alpha)
        bounds = [use for use in front.use.tolist() if use <= ceiling.bound]
        points = [
            Question(label=f"point-{i:05d}", alpha=alpha, limits=(limit,))
            for i in range(len(bounds))
        ]
        members: _Members = [(i, (ceiling.tightened_to(b),)) for i, b in enumerate(bounds)]
        found = (row for _, row in _from_front(front, points, members)) if members else ()
        rows.extend(
            replace(row, limits=f"{ceiling.resource}<={bound}")
            for row, bound in zip(found, bounds, strict=True)
        )
    return Results(
        model=tables.costs.model,
        fingerprint=tables.costs.fingerprint,
        accounting=tables.accounting.name,
        layers=tables.costs.names,
        rows=tuple(rows),
    )


_Members = list[tuple[int, tuple[Ceiling, ...]]]


def _alike(tables: Tables, questions: Sequence[Question]) -> Iterator[tuple[Problem, _Members]]:
    """Questions that differ in the heights of their limits only, with their common problem."""
    groups: dict[object, _Members] = {}
    for i, question in enumerate(questions):
        ceilings = ceilings_of(question.limits, tables.costs, tables.accounting)
        key = (question.alpha, tuple((c.resource, c.layers, c.limit.latency) for c in ceilings))
        groups.setdefault(key, []).append((i, ceilings))
    for members in groups.values():
        question = questions[members[0][0]]
        problem = build_problem(
            tables.costs,
            tables.choices,
            question.limits,
            importance=tables.importance,
            alpha=question.alpha,
            accounting=tables.accounting,
            repair=tables.repair,
        )
        yield problem, members


def _from_front(
    front: Front, questions: Sequence[Question], members: _Members
) -> Iterator[tuple[int, ResultRow]]:
    started = time.perf_counter()
    bounds = [ceilings[0].bound for _, ceilings in members]
    points = front.points(bounds)
    distinct, which = np.unique(points, return_inverse=True)
    reached = distinct[distinct >= 0]
    picks = front.picks(reached)
    answers: dict[int, tuple[str, tuple[LayerBits, ...], int]] = {}
    problem = front.problem
    fingerprint = problem.costs.fingerprint
    for point, of_units in zip(reached.tolist(), picks.tolist(), strict=True):
        bits = problem.bits_by_name(of_units)
        (use,) = problem.total_uses(bits)
        if use != int(front.use[point]):
            raise SolverFailedError(
                f"front: point {point} was counted as {front.use[point]}, its policy uses {use}"
            )
        answers[point] = (policy_id_of(fingerprint, bits), tuple(bits.values()), use)
    share_s = (front.build_s + time.perf_counter() - started) / len(members)
    least = front.reach[0]
    for (i, ceilings), at in zip(members, which.tolist(), strict=True):
        question, point = questions[i], int(distinct[at])
        policy_id, bits_of_layers, use = answers.get(point, ("", (), 0))
        if use > ceilings[0].bound:
            raise SolverFailedError(f"front: {question.label}: uses {use} of {ceilings[0].bound}")
        objective = float(front.objective[point]) if policy_id else None
        row = ResultRow(
            label=question.label,
            alpha=question.alpha,
            limits=" ".join(limit.text for limit in question.limits),
            status=SolveStatus.PROVEN_OPTIMAL if policy_id else SolveStatus.INFEASIBLE,
            policy_id=policy_id,
            objective=objective,
            bound=objective,
            uses=(use,) if policy_id else (),
            solver="front",
            wall_s=share_s,
            cpu_s=share_s,
            bits=bits_of_layers,
            reason="" if policy_id else _too_small(ceilings[0], least),
        )
        yield i, row


def _solved(
    problem: Problem, question: Question, solver: SolverName, time_limit_s: float
) -> ResultRow:
    result = solve_problem(
        problem,
        alpha=question.alpha,
        solver=solver,
        time_limit_s=time_limit_s,
        prices="none",
        explain_infeasible=False,
    )
    reason = ""
    if result.status is SolveStatus.INFEASIBLE:
        alone = out_of_reach(problem)
        reason = (
            _too_small(alone[0], reach_of(problem, alone[0])[0])
            if alone
            else "the limits cannot be met together"
        )
    elif result.policy is None:
        reason = f"no policy within {time_limit_s:g} s"
    return row_of(
        result, label=question.label, alpha=question.alpha, limits=question.limits, reason=reason
    )


def _too_small(ceiling: Ceiling, least: int) -> str:
    return (
        f"{ceiling.limit.text} is out of reach: {ceiling.shown(least):.6g} is the closest "
        "any policy comes"
    )
