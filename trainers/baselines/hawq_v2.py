"""How much should a quantization error in each layer matter, by the Hessian's trace (HAWQ-V2)?

Dong et al., "HAWQ-V2: Hessian aware trace-weighted quantization of neural networks" (NeurIPS 2020,
arXiv 1911.03852). Phase ``baselines.hawq_v2``. The loss increase of a policy is (equation 2.11 of
the arXiv version)

    Omega = sum over layers of  avg tr(H_i) * ||Q_b(W_i) - W_i||^2

with the trace of the layer's Hessian block over its number of weights, estimated by Hutchinson;
for activations (the paper's part on mixed-precision activations) the same with the Hessian by what
the layer reads, one image's at a time and averaged over them, as the perturbation is. The policy
of least Omega within the limits is the solver's.

Deviations from the paper: one probe covers all layers (the paper probes one after another); the
settled-enough test takes the absolute value of the running mean, which may be negative; the least
Omega is found exactly instead of among a sampled Pareto front; steps are those of ``step_rule.py``;
a trace that is not positive counts as none (``table.FLOOR``). The paper released no trace code.
"""

from __future__ import annotations

import torch

from trainers.baselines.calibration import Calibration, calibrate
from trainers.baselines.config import HawqV2Config
from trainers.baselines.curvature import traces
from trainers.baselines.errors import as_tensor, squared_errors
from trainers.baselines.progress import Progress
from trainers.baselines.step_rule import choose_steps, set_steps
from trainers.baselines.table import finish_importance
from trainers.phases import PhaseContext, PhaseResult, PhaseSpec
from trainers.results import load_result


def run(spec: PhaseSpec, context: PhaseContext) -> PhaseResult:
    """Estimate traces and errors of every weight and every activation.

    ``config`` is a ``HawqV2Config``. Inputs: ``weights``, ``costs``. Outputs: ``importance``.
    Metrics: ``num_probes`` and ``largest_relative_error``, the largest standard error over its
    trace. Facts: ``average_traces`` by layer and tensor.

    Raises:
        DivergedError: a product is not finite.
        InterruptedPhaseError: the driver asked to stop; the probes so far are kept.
    """
    done = load_result(context.step_dir / "result.json")
    if done is not None:
        return done
    config: HawqV2Config = spec.config
    calibration = calibrate(spec, context, config)
    progress = Progress(context, calibration.meter, spec.phase)
    set_steps(calibration, progress.once("steps", lambda: choose_steps(calibration, config)))
    found = progress.once("errors", lambda: as_tensor(squared_errors(calibration)))
    errors = dict(zip(calibration.keys, found.tolist(), strict=True))
    samples = traces(calibration, config, progress, spec.seed, acts=True)
    average = average_traces(calibration, samples.mean(dim=0))
    values = {key: average[key[0], key[1]] * error for key, error in errors.items()}
    return finish_importance(
        spec,
        calibration,
        progress,
        values,
        metrics={
            "num_probes": float(len(samples)),
            "largest_relative_error": largest_relative_error(samples),
        },
        facts={"average_traces": {f"{n} {tensor}": v for (n, tensor), v in average.items()}},
    )


def average_traces(calibration: Calibration, means: torch.Tensor) -> dict[tuple[str, str], float]:
    """Trace over the number of elements: of the weight; of one image's input with activations."""
    names = calibration.searched
    sizes = {layer.name: (layer.num_weights, layer.num_inputs) for layer in calibration.costs}
    values = means.tolist()
    found = {
        (name, "weight"): value / sizes[name][0] for name, value in zip(names, values, strict=False)
    }
    for name, value in zip(names, values[len(names) :], strict=False):
        found[name, "act"] = value / sizes[name][1]
    return found


def largest_relative_error(samples: torch.Tensor) -> float:
    """The largest standard error over its trace."""
    errors = samples.std(dim=0) / len(samples) ** 0.5
    return float(torch.where(errors > 0, errors / samples.mean(dim=0).abs(), 0.0).max())
