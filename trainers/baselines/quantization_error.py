"""How far can bits be chosen from the network's own rounding errors, without any training?

Phase ``baselines.quantization_error``: the smallest complete baseline (CONTRIBUTING.md walks
through it). The importance of a layer's tensor at b bits is the squared error it makes there,
v = ||Q_b(x) - x||^2, and the solver adds the errors up as it adds LIMPQ's indicators. Three units:

* ``plain``: as it is.
* ``relative``: over ||x||^2, so that layers of any size and scale count alike.
* ``fisher``: sum_i F_ii (Q_b(x_i) - x_i)^2 with the diagonal of the empirical Fisher matrix, twice
  the loss increase to second order.

Source: no one paper; the control that LIMPQ's indicators must beat to be worth their training.
``fisher`` follows Choi et al., "Towards the limit of network quantization" (ICLR 2017), who weigh a
weight's squared error by the diagonal of the Hessian. Deviations from that: the empirical Fisher
matrix in the Hessian's place, activations too, uniform levels instead of clusters. Needs: a forward
pass or five over the images (``fisher``: two backward).
"""

from __future__ import annotations

from trainers.baselines.calibration import Calibration, Key, calibrate
from trainers.baselines.config import QuantizationErrorConfig
from trainers.baselines.errors import as_tensor, energies, squared_errors
from trainers.baselines.fisher import fisher_errors
from trainers.baselines.progress import Progress
from trainers.baselines.step_rule import choose_steps, set_steps
from trainers.baselines.table import finish_importance
from trainers.phases import PhaseContext, PhaseResult, PhaseSpec
from trainers.results import load_result


def run(spec: PhaseSpec, context: PhaseContext) -> PhaseResult:
    """Measure every tensor's error at every width.

    ``config`` is a ``QuantizationErrorConfig``. Inputs: ``weights``, ``costs``. Outputs:
    ``importance``.

    Raises:
        DivergedError: the network holds values that are not finite.
        InterruptedPhaseError: the driver asked to stop; what was measured is kept.
    """
    done = load_result(context.step_dir / "result.json")
    if done is not None:
        return done
    config: QuantizationErrorConfig = spec.config
    calibration = calibrate(spec, context, config)
    progress = Progress(context, calibration.meter, spec.phase)
    set_steps(calibration, progress.once("steps", lambda: choose_steps(calibration, config)))
    errors = progress.once("errors", lambda: as_tensor(_errors(calibration, config)))
    values = dict(zip(calibration.keys, errors.tolist(), strict=True))
    return finish_importance(
        spec, calibration, progress, values, facts={"weighting": config.weighting}
    )


def _errors(calibration: Calibration, config: QuantizationErrorConfig) -> dict[Key, float]:
    match config.weighting:
        case "plain":
            return squared_errors(calibration)
        case "fisher":
            return fisher_errors(calibration)
        case "relative":
            norms = energies(calibration)
            # A tensor of zeros makes no error at any width.
            return {
                key: error / norms[key[:2]] if norms[key[:2]] else 0.0
                for key, error in squared_errors(calibration).items()
            }
