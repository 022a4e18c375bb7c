"""How much does the loss rise when one tensor alone is quantized?

Phase ``baselines.one_layer_loss``: the importance of a layer's weight at b bits is

    L(only this weight at b bits) - L(full precision)

on training images, and likewise for what the layer reads; everything else, pinned layers included,
stays in full precision. It is the measurement that indicators, traces and errors stand in for, as
far as layers add up; it sees no interaction between them.

Source: sensitivity analysis as in Zhou et al., "Adaptive quantization for deep neural network"
(AAAI 2018, which adds noise to one layer at a time and reads the accuracy) and in most quantization
tools. Deviations: the layer's own rounding in the noise's place, the loss in the accuracy's;
nothing is trained or re-estimated between evaluations; steps are those of ``step_rule.py``. Needs:
an evaluation per layer, tensor and width.
A loss that falls counts as no rise (``table.FLOOR``).
"""

from __future__ import annotations

from functools import partial

import torch

from trainers.baselines.calibration import Calibration, Key, calibrate
from trainers.baselines.config import OneLayerLossConfig
from trainers.baselines.progress import Progress
from trainers.baselines.step_rule import choose_steps, set_steps
from trainers.baselines.table import finish_importance
from trainers.phases import PhaseContext, PhaseResult, PhaseSpec
from trainers.results import load_result


def run(spec: PhaseSpec, context: PhaseContext) -> PhaseResult:
    """Measure every loss increase.

    ``config`` is a ``OneLayerLossConfig``. Inputs: ``weights``, ``costs``. Outputs:
    ``importance``. Metrics: ``evaluations``, ``full_precision_loss``.

    Raises:
        DivergedError: a loss is not finite.
        InterruptedPhaseError: the driver asked to stop; evaluations so far are kept.
    """
    done = load_result(context.step_dir / "result.json")
    if done is not None:
        return done
    config: OneLayerLossConfig = spec.config
    calibration = calibrate(spec, context, config)
    progress = Progress(context, calibration.meter, spec.phase)
    set_steps(calibration, progress.once("steps", lambda: choose_steps(calibration, config)))
    reference = float(progress.once("full precision", partial(_loss, calibration, None)))
    values = {
        key: float(progress.once(f"{key}", partial(_loss, calibration, key))) - reference
        for key in calibration.keys
    }
    return finish_importance(
        spec,
        calibration,
        progress,
        values,
        metrics={"evaluations": len(values) + 1.0, "full_precision_loss": reference},
    )


def _loss(calibration: Calibration, key: Key | None) -> torch.Tensor:
    """Loss with one tensor quantized, or none."""
    network = calibration.network
    network.set_full_precision()
    if key is not None:
        layer, role, bits = key
        calibration.bank(layer, role).set_bits(bits)
    loss, _ = calibration.loss_and_top1()
    network.set_full_precision()
    return torch.tensor(loss, dtype=torch.float64)
