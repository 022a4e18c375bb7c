"""How is equation 4 handed to PuLP, and how is the answer read back?

The only file that knows PuLP. One binary variable per unit and option, one equality per unit, one
row per additive limit, one row per crowded moment where the activation peak is limited.

Facts this adapter is built around (all met in practice):

* CBC demands that a new incumbent is better by an absolute ``increment`` of about 1e-5; learned
  indicators are around 0.005, so it stops early and says Optimal. The objective is scaled, and
  ``increment 1e-9`` given.
* CBC calls worse policies Optimal now and then, with its integer preprocessing and without, at
  every scale and tolerance tried. It is proven by others, or asked both ways (``hunt.py``).
* HiGHS stops at a relative gap of 1e-4 unless told otherwise. Both gaps are set to 0.
* After a time-out PuLP says "Optimal"; only ``sol_status`` tells. Without an incumbent, or when
  infeasible, the variables still hold numbers. Both fields are read, and every pick checked.
* HiGHS has one scheduler per process and refuses a second thread count without an exception.
  One thread, always.
"""

from __future__ import annotations

import functools
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import highspy
import numpy as np
import numpy.typing as npt
import pulp

from solvers.certificate import SolveStatus
from solvers.errors import BackendCrashedError, SolverFailedError
from solvers.peaks import Moment
from solvers.units import Unit

Backend = Literal["highs", "cbc"]
# Scaled objectives and right-hand sides are about this large: far above the solvers' absolute
# tolerances of 1e-6, far below where doubles lose the last integer digit.
_TARGET = 1e6


@dataclass(frozen=True, kw_only=True, slots=True)
class Program:
    """A 0/1 program: one option per unit.

    Attributes:
        units: the decisions.
        cost: per unit, objective of each option.
        use: per unit, int64 [rows, options].
        room: int64 [rows].
        peaks: (moments, bound in bits) of every limit on the activation peak.
        excluded: assignments that may not be returned.
        minimise_peak: the objective is the largest moment instead of ``cost``.
    """

    units: tuple[Unit, ...]
    cost: Sequence[npt.NDArray[np.float64]]
    use: Sequence[npt.NDArray[np.int64]]
    room: npt.NDArray[np.int64]
    peaks: tuple[tuple[tuple[Moment, ...], int], ...] = ()
    excluded: tuple[tuple[int, ...], ...] = ()
    minimise_peak: tuple[Moment, ...] = ()


@dataclass(frozen=True, kw_only=True, slots=True)
class Answer:
    """What a backend said, before anybody checked it.

    Attributes:
        status: read from both of PuLP's fields.
        picks: option per unit, None without a solution.
        bound: proven lower bound of the objective where the backend tells one.
        prices: objective per unit of each row (linear relaxation only).
    """

    status: SolveStatus
    picks: tuple[int, ...] | None
    bound: float | None
    prices: tuple[float, ...] = field(default=())


@functools.cache
def backend_version(backend: Backend) -> str:
    """Name and version of PuLP and of the backend as it will be used."""
    if backend == "highs":
        return f"highspy {highspy.Highs().version()}, PuLP {pulp.__version__}"
    return f"CBC bundled with PuLP {pulp.__version__}"


def solve_program(
    program: Program,
    backend: Backend,
    time_limit_s: float,
    *,
    preprocess: bool = False,
    gap: float = 0.0,
) -> Answer:
    """Solve to a relative gap, by default 0, or until the time is up.

    Args:
        program: what to solve.
        backend: who solves it.
        time_limit_s: seconds it may take.
        preprocess: CBC's integer preprocessing; HiGHS decides for itself.
        gap: above 0 a solution is only a good one, and is not called proven.

    Raises:
        SolverFailedError: the backend broke, or its answer is not one option per unit.
    """
    model, variables, scale = _build(program)
    started = time.monotonic()
    try:
        status = model.solve(
            _solver(backend, time_limit_s, mip=True, preprocess=preprocess, gap=gap)
        )
    except pulp.PulpSolverError as error:
        raise BackendCrashedError(f"{backend}: {error}") from error
    elapsed_s = time.monotonic() - started
    bound = None
    if backend == "highs":
        found = float(model.solverModel.getInfo().mip_dual_bound)
        bound = found / scale if np.isfinite(found) else None
    if status == pulp.LpStatusInfeasible:
        return Answer(status=SolveStatus.INFEASIBLE, picks=None, bound=None)
    if status == pulp.LpStatusOptimal and model.sol_status == pulp.LpSolutionOptimal:
        picks = _picks(variables, backend)
        proven = SolveStatus.PROVEN_OPTIMAL if gap == 0 else SolveStatus.FEASIBLE_UNPROVEN
        return Answer(status=proven, picks=picks, bound=bound)
    if model.sol_status == pulp.LpSolutionIntegerFeasible:
        picks = _picks(variables, backend)
        return Answer(status=SolveStatus.FEASIBLE_UNPROVEN, picks=picks, bound=bound)
    # CBC and HiGHS check their clocks between steps, so "time is up" may come a little early.
    if elapsed_s < 0.5 * time_limit_s:
        raise SolverFailedError(
            f"{backend}: ended after {elapsed_s:.2f} s of {time_limit_s:g} s with status "
            f"{pulp.LpStatus[status]!r} and {pulp.LpSolution[model.sol_status]!r}"
        )
    return Answer(status=SolveStatus.NO_SOLUTION_IN_TIME, picks=None, bound=bound)


def relaxed_prices(program: Program, time_limit_s: float) -> tuple[float, ...] | None:
    """Objective per unit of each additive row in the linear relaxation; None if it has none."""
    model, _, scale = _build(program, names=True)
    status = model.solve(_solver("highs", time_limit_s, mip=False))
    if status != pulp.LpStatusOptimal or model.sol_status != pulp.LpSolutionOptimal:
        return None
    rows = model.constraints
    # pi is per unit of the scaled row; a <= row of a minimisation has pi <= 0.
    return tuple(
        max(0.0, -rows[f"limit{k}"].pi) * _row_scale(program, k) / scale
        for k in range(len(program.room))
    )


def _row_scale(program: Program, row: int) -> float:
    largest = max((int(u[row].max(initial=0)) for u in program.use), default=0)
    return _TARGET / max(abs(int(program.room[row])), largest, 1)


def _divisor(program: Program, row: int) -> int:
    """Greatest common divisor of the uses of a row."""
    return max(1, int(np.gcd.reduce([int(np.gcd.reduce(u[row])) for u in program.use])))


def _solver(
    backend: Backend,
    time_limit_s: float,
    *,
    mip: bool,
    preprocess: bool = False,
    gap: float = 0.0,
) -> Any:
    if backend == "highs":
        return pulp.HiGHS(
            mip=mip, msg=False, timeLimit=time_limit_s, gapRel=gap, gapAbs=0.0, threads=1,
            random_seed=0,
        )  # fmt: skip
    return pulp.COIN_CMD(
        path=pulp.PULP_CBC_CMD.pulp_cbc_path,
        mip=mip, msg=False, timeLimit=time_limit_s, gapRel=gap, gapAbs=0.0, threads=1,
        options=[
            "increment 1e-9", f"preprocess {'on' if preprocess else 'off'}",
            "randomCbcSeed 1", "randomSeed 1",
            # Cuts are for the last 0.1 %; without them a good policy takes a quarter less.
            *(["cuts off"] if gap else []),
        ],
    )  # fmt: skip


def _build(program: Program, *, names: bool = False) -> tuple[Any, list[list[Any]], float]:
    """The model, its variables by unit and option, and the scale of its objective."""
    model = pulp.LpProblem("equation_4", pulp.LpMinimize)
    variables = [
        [pulp.LpVariable(f"x{u}_{o}", 0, 1, pulp.LpInteger) for o in range(len(unit.options))]
        for u, unit in enumerate(program.units)
    ]
    total = sum(float(c.max(initial=0.0)) for c in program.cost)
    scale = _TARGET / total if total > 0 else 1.0
    if not program.minimise_peak:
        objective = [
            (x, v * scale)
            for xs, cost in zip(variables, program.cost, strict=True)
            for x, v in zip(xs, cost.tolist(), strict=True)
        ]
        model.setObjective(pulp.LpAffineExpression(objective))
    for xs in variables:
        one = pulp.LpAffineExpression([(x, 1) for x in xs])
        model.addConstraint(pulp.LpConstraint(one, pulp.LpConstraintEQ, rhs=1))
    for k, room in enumerate(program.room.tolist()):
        row_scale = _row_scale(program, k)
        terms = [
            (x, n * row_scale)
            for xs, use in zip(variables, program.use, strict=True)
            for x, n in zip(xs, use[k].tolist(), strict=True)
            if n
        ]
        # Uses are multiples of a divisor, so room is too, and half a divisor more admits nothing
        # new; it keeps a policy that uses a limit up to the last bit from being lost to the
        # rounding of scaled coefficients.
        divisor = _divisor(program, k)
        whole = room // divisor * divisor
        model.addConstraint(
            pulp.LpConstraint(
                pulp.LpAffineExpression(terms),
                pulp.LpConstraintLE,
                rhs=(whole + 0.5 * divisor) * row_scale,
            ),
            f"limit{k}" if names else None,
        )
    _add_peaks(model, program, variables)
    for picks in program.excluded:
        same = pulp.LpAffineExpression([(variables[u][o], 1) for u, o in enumerate(picks)])
        model.addConstraint(pulp.LpConstraint(same, pulp.LpConstraintLE, rhs=len(picks) - 1))
    return model, variables, scale


def _add_peaks(model: Any, program: Program, variables: list[list[Any]]) -> None:
    """One row per crowded moment, one width variable per set of units that share tensors."""
    widths: dict[tuple[tuple[int, ...], int], Any] = {}

    def width(units: tuple[int, ...], least: int) -> list[tuple[Any, int]]:
        of_units = [
            [(x, o.act_bits) for x, o in zip(variables[u], program.units[u].options, strict=True)]
            for u in units
        ]
        if len(units) == 1 and all(bits >= least for _, bits in of_units[0]):
            return of_units[0]
        key = (units, least)
        if key not in widths:
            z = pulp.LpVariable(f"z{len(widths)}", least, 32)
            widths[key] = z
            for terms in of_units:
                row = pulp.LpAffineExpression([*terms, (z, -1)])
                model.addConstraint(pulp.LpConstraint(row, pulp.LpConstraintLE, rhs=0))
        return [(widths[key], 1)]

    def terms_of(moment: Moment, scale: float) -> list[tuple[Any, float]]:
        return [
            (x, n * bits * scale)
            for units, least, n in moment.elements
            for x, bits in width(units, least)
        ]

    for moments, bound in program.peaks:
        scale = _TARGET / max(bound, 1)
        for moment in moments:
            row = pulp.LpAffineExpression(terms_of(moment, scale))
            room = (bound + 0.5 - moment.constant_bits) * scale
            model.addConstraint(pulp.LpConstraint(row, pulp.LpConstraintLE, rhs=room))
    if program.minimise_peak:
        scale = _TARGET / max(
            m.constant_bits + 32 * sum(n for _, _, n in m.elements) for m in program.minimise_peak
        )
        top = pulp.LpVariable("peak", 0)
        for moment in program.minimise_peak:
            row = pulp.LpAffineExpression([*terms_of(moment, scale), (top, -1)])
            room = -moment.constant_bits * scale
            model.addConstraint(pulp.LpConstraint(row, pulp.LpConstraintLE, rhs=room))
        model.setObjective(pulp.LpAffineExpression([(top, 1)]))


def _picks(variables: list[list[Any]], backend: str) -> tuple[int, ...]:
    """The one option at 1 of every unit.

    Raises:
        SolverFailedError: a unit has none, several, or fractions.
    """
    picks = []
    for u, xs in enumerate(variables):
        values = [x.varValue or 0.0 for x in xs]
        ones = [o for o, v in enumerate(values) if abs(v - 1) < 1e-4]
        if len(ones) != 1 or any(abs(v) > 1e-4 for o, v in enumerate(values) if o != ones[0]):
            raise SolverFailedError(f"{backend}: said solved, but unit {u} is {values}")
        picks.append(ones[0])
    return tuple(picks)
