"""Which layers get 8 bits and which 4, by HAWQ-V3's integer program?

Yao et al., "HAWQ-V3: Dyadic neural network quantization" (ICML 2021, arXiv 2011.10680), its part on
mixed precision by integer linear programming, with the program of the released ``ILP.ipynb``. Phase
``baselines.hawq_v3``:

    minimise  sum over layers of  avg tr(H_i) * ||Q_b(W_i) - W_i||^2
    subject to limits on size, BOPs and latency, b_i in {4, 8} for weight and activation alike

The notebook writes it with x_i in {1, 2} and the objective sum (x_i - 1) avg tr(H_i) (error at 8
bits - error at 4), which differs by a constant. Layers that read the same tensor (the first
convolution of a block and its downsample) share their bits, as there. First and last layer stay at
8 bits, which is the harness's pin too.

Deviations: the limits are those of the experiment, whose cost counts the pinned layers (the
notebook takes a share between all-4 and all-8 and leaves them out); the project's exact solver
instead of GLPK; no dyadic arithmetic: all methods are trained and measured with the same simulated
quantizer; one probe covers all layers; steps are those of ``step_rule.py``; a trace that is not
positive counts as none (``table.FLOOR``), where the notebook would then prefer 4 bits. At limits
below what 4 bits everywhere use, it has no policy, and says so.
"""

from __future__ import annotations

from dataclasses import replace

from solvers.accounting import accounting_named
from solvers.policy import Policy
from solvers.result import SolveRequest, SolveResult
from solvers.solve import solve
from solvers.tables import BitChoices, CostTable, ImportanceTable
from trainers.baselines.answer import finish_policy, limits_of
from trainers.baselines.calibration import calibrate
from trainers.baselines.config import HawqV3Config
from trainers.baselines.curvature import traces
from trainers.baselines.errors import ErrorSums, add_weights
from trainers.baselines.hawq_v2 import average_traces, largest_relative_error
from trainers.baselines.progress import Progress
from trainers.baselines.step_rule import choose_steps, set_steps
from trainers.baselines.table import importance_rows
from trainers.phases import PhaseContext, PhaseResult, PhaseSpec
from trainers.results import load_result
from trainers.source_config import PolicySearch


def run(spec: PhaseSpec, context: PhaseContext) -> PhaseResult:
    """Measure the weights' sensitivity at the two widths and solve the program.

    ``config`` is a ``PolicySearch`` of a ``HawqV3Config``; the experiment's candidates are not
    read. Inputs: ``weights``, ``costs``. Outputs: ``policy``, unless the limits are out of reach of
    its widths. Metrics: ``reached_share``, ``num_probes``, ``solve_wall_s``.

    Raises:
        DivergedError: a product is not finite.
        InterruptedPhaseError: the driver asked to stop; the probes so far are kept.
    """
    done = load_result(context.step_dir / "result.json")
    if done is not None:
        return done
    config: HawqV3Config = spec.config.source
    spec = replace(
        spec, choices=BitChoices(weight_bits=config.bits, act_bits=config.bits, tied=True)
    )
    calibration = calibrate(spec, context, config)
    progress = Progress(context, calibration.meter, spec.phase)
    set_steps(calibration, progress.once("steps", lambda: choose_steps(calibration, config)))
    sums = ErrorSums(calibration)
    add_weights(sums)
    samples = traces(calibration, config, progress, spec.seed, acts=False)
    average = average_traces(calibration, samples.mean(dim=0))
    # The program has no activation term: the same value everywhere.
    omega = {
        key: average[key[0], "weight"] * error if key[1] == "weight" else 0.0
        for key, error in sums.means().items()
    }
    costs = with_tied_readers(calibration.costs) if config.tie_readers else calibration.costs
    rows, _ = importance_rows("hawq_v3", omega)
    table = ImportanceTable(
        model=costs.model,
        fingerprint=costs.fingerprint,
        method="hawq_v3",
        seed=spec.seed,
        data_fingerprint=calibration.data.fingerprint,
        rows=rows,
    )
    solved = _solve(table, costs, spec, config)
    policy: Policy | None = solved.policy
    return finish_policy(
        spec,
        calibration,
        progress,
        policy.bits_by_name() if policy is not None else None,
        metrics={
            "num_probes": float(len(samples)),
            "largest_relative_error": largest_relative_error(samples),
            "num_floored": float(
                sum(value <= 0 for key, value in omega.items() if key[1] == "weight")
            ),
            "solve_wall_s": solved.wall_s,
        },
        facts={
            "status": solved.status.name,
            "groups": len({layer.group for layer in costs if layer.group is not None}),
        },
        reason=""
        if policy is not None
        else f"no policy of {list(config.bits)} bits meets the limits ({solved.status.name})",
    )


def with_tied_readers(costs: CostTable) -> CostTable:
    """``costs`` with a group for the searched layers that read one tensor.

    Groups that the experiment states are kept, and joined where they overlap. A table without
    traced tensors has nothing to tie.
    """
    parent = {layer.name: layer.group or layer.name for layer in costs}
    searched = {layer.name for layer in costs.searched}
    for tensor in costs.tensors:
        labels = {parent[name] for name in tensor.layers if name in searched}
        if len(labels) > 1:
            first = min(labels)
            parent = {n: first if label in labels else label for n, label in parent.items()}
    sizes = {label: list(parent.values()).count(label) for label in parent.values()}
    layers = tuple(
        replace(s, group=parent[s.name] if sizes[parent[s.name]] > 1 else s.group) for s in costs
    )
    return replace(costs, layers=layers)


def _solve(
    table: ImportanceTable, costs: CostTable, spec: PhaseSpec, config: HawqV3Config
) -> SolveResult:
    search: PolicySearch = spec.config
    assert spec.choices is not None  # set above
    request = SolveRequest(
        costs=costs,
        importance=table,
        choices=spec.choices,
        limits=limits_of(search),
        alpha=1.0,
        accounting=accounting_named(search.accounting),
        time_limit_s=config.time_limit_s,
        prices="none",
        explain=False,
    )
    return solve(request)
