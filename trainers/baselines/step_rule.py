"""Which step size does a tensor get where nothing is trained?

``mse``: the step of least squared error, min over s of E (Q_s(x) - x)^2, found on a histogram of
the tensor (4096 bins, 160 steps in geometric order, each 3 % from the next). ``lsq``: the
statistics that training starts from. A method without training quantizes at these steps and no
other, so that methods differ by what they measure and not by how they round.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from solvers.tables import TensorRole
from trainers.baselines.calibration import Calibration
from trainers.baselines.config import CalibrationConfig
from trainers.distributed import sum_over_ranks
from trainers.errors import DivergedError
from trainers.quant.bank import HARDSWISH_SHIFT, StepBank, range_of

_BINS = 4096
# Steps that are tried, in units of the one whose last level is the largest value.
_SHARES = np.geomspace(0.01, 1.1, 160)
_Floats = NDArray[np.float64]


def choose_steps(calibration: Calibration, config: CalibrationConfig) -> Tensor:
    """Set every quantizer's step size at every width; float64 [quantizers x bits].

    Pinned layers get theirs too, since a whole policy runs through them. Two passes over the images
    for ``mse``, one for ``lsq``. ``set_steps`` takes the result back.

    Raises:
        DivergedError: a tensor of the network is not finite.
    """
    if config.step_rule == "lsq":
        _choose_as_training_starts(calibration)
    else:
        _choose_by_error(calibration)
    banks = step_banks(calibration)
    values = [value for bank in banks.values() for value in bank.values().values()]
    return torch.tensor(values, dtype=torch.float64)


def set_steps(calibration: Calibration, steps: Tensor) -> None:
    """Put the steps of ``choose_steps`` into the network again."""
    values = iter(steps.tolist())
    for bank in step_banks(calibration).values():
        for bits in bank.candidates:
            bank.set_step(bits, next(values))


def step_banks(calibration: Calibration) -> dict[tuple[str, TensorRole], StepBank]:
    """Every quantizer that has a step to choose, pinned layers included."""
    roles: tuple[TensorRole, ...] = ("weight", "act")
    found = {
        (name, role): calibration.bank(name, role)
        for name in calibration.network.layers
        for role in roles
    }
    return {key: bank for key, bank in found.items() if not bank.is_fixed}


def least_error_step(counts: _Floats, values: _Floats, qn: int, qp: int) -> float:
    """The step of least squared error for values that occur ``counts`` times.

    Args:
        counts: [bins].
        values: [bins], the value each bin stands for.
        qn: lowest level, 0 or negative.
        qp: highest level.
    """
    low, high = float(values[0]), float(values[-1])
    widest = max(high / qp, low / qn if qn else 0.0)
    if widest <= 0:
        return 0.0
    steps = _SHARES * widest
    levels = np.clip(np.rint(values[None, :] / steps[:, None]), qn, qp)
    errors = ((levels * steps[:, None] - values[None, :]) ** 2 * counts[None, :]).sum(axis=1)
    return float(steps[int(errors.argmin())])


def _choose_as_training_starts(calibration: Calibration) -> None:
    """LSQ's and LSQ+'s statistics, the mean of |x| over all images of all ranks at once."""
    banks = step_banks(calibration)
    acts = {key[0]: bank for key, bank in banks.items() if key[1] == "act"}
    sums = {name: [0.0, 0.0] for name in acts}

    def note(name: str, x: Tensor) -> None:
        sums[name][0] += float(x.abs().double().sum())
        sums[name][1] += x.numel()

    _watch(calibration, acts, note)
    flat = [value for pair in sums.values() for value in pair]
    totals = iter(sum_over_ranks(flat, calibration.context.device))
    means = {name: next(totals) / next(totals) for name in sums}
    for (name, role), bank in banks.items():
        for bits in bank.candidates:
            if role == "weight":
                start = float(bank.start_of(calibration.network.layers[name].weight, bits))
            else:
                start = 2.0 * means[name] / math.sqrt(range_of(bank.kind, bits)[1])
            bank.start_at(bits, start)


def _choose_by_error(calibration: Calibration) -> None:
    banks = step_banks(calibration)
    acts = {key[0]: bank for key, bank in banks.items() if key[1] == "act"}
    bounds = _bounds(calibration, acts)
    histograms = _histograms(calibration, acts, bounds)
    for (name, role), bank in banks.items():
        if role == "weight":
            weight = calibration.network.layers[name].weight.detach()
            low, high = _finite(name, float(weight.min()), float(weight.max()))
            counts = _histogram(weight, low, high).cpu().numpy()
        else:
            (low, high), counts = bounds[name], histograms[name].numpy()
        values = low + (np.arange(_BINS) + 0.5) * (high - low) / _BINS
        for bits in bank.candidates:
            bank.start_at(bits, least_error_step(counts, values, *range_of(bank.kind, bits)))


def _bounds(
    calibration: Calibration, banks: Mapping[str, StepBank]
) -> dict[str, tuple[float, float]]:
    """Smallest and largest value of every layer's (shifted) input over all ranks."""
    seen = {name: (float("inf"), float("-inf")) for name in banks}

    def note(name: str, x: Tensor) -> None:
        low, high = seen[name]
        least, most = x.aminmax()
        seen[name] = min(low, float(least)), max(high, float(most))

    _watch(calibration, banks, note)
    ranks, rank = calibration.context.world_size, calibration.context.rank
    # A slot a rank: a sum then hands over what a maximum would need a collective of its own for.
    slots = [0.0] * (ranks * 2 * len(seen))
    mine = [value for pair in seen.values() for value in pair]
    slots[rank * len(mine) : (rank + 1) * len(mine)] = mine
    every = np.array(sum_over_ranks(slots, calibration.context.device)).reshape(ranks, -1, 2)
    lows, highs = every[:, :, 0].min(axis=0), every[:, :, 1].max(axis=0)
    return {name: _finite(name, float(lows[i]), float(highs[i])) for i, name in enumerate(seen)}


def _histograms(
    calibration: Calibration,
    banks: Mapping[str, StepBank],
    bounds: Mapping[str, tuple[float, float]],
) -> dict[str, Tensor]:
    """Counts of every layer's (shifted) input over all ranks, float64 [bins]."""
    device = calibration.context.device
    counts = {name: torch.zeros(_BINS, dtype=torch.float64, device=device) for name in banks}

    def note(name: str, x: Tensor) -> None:
        counts[name] += _histogram(x, *bounds[name])

    _watch(calibration, banks, note)
    flat = torch.cat([c.cpu() for c in counts.values()]).tolist() if counts else []
    total = torch.tensor(sum_over_ranks(flat, device), dtype=torch.float64)
    return dict(zip(counts, total.reshape(-1, _BINS), strict=True)) if counts else {}


def _histogram(x: Tensor, low: float, high: float) -> Tensor:
    if high <= low:
        counts = torch.zeros(_BINS, dtype=torch.float64, device=x.device)
        counts[0] = x.numel()
        return counts
    places = ((x.flatten() - low) * (_BINS / (high - low))).long().clamp_(0, _BINS - 1)
    return torch.bincount(places, minlength=_BINS).double()


def _finite(name: str, low: float, high: float) -> tuple[float, float]:
    if not np.isfinite(low) or not np.isfinite(high):
        raise DivergedError(
            f"a tensor of layer {name!r} lies between {low} and {high}; look at the weights"
        )
    return low, high


def _watch(calibration: Calibration, banks: Mapping[str, StepBank], note: Any) -> None:
    """One pass in full precision; ``note(layer name, its input)`` at every layer."""

    def hook_of(name: str, shift: float) -> Any:
        def hook(_: torch.nn.Module, args: tuple[Tensor, ...]) -> None:
            note(name, args[0].float() + shift if shift else args[0].float())

        return hook

    handles = []
    for name, bank in banks.items():
        shift = HARDSWISH_SHIFT if bank.kind == "act_shifted" else 0.0
        layer = calibration.network.layers[name]
        handles.append(layer.register_forward_pre_hook(hook_of(name, shift)))
    try:
        calibration.forward_all()
    finally:
        for handle in handles:
            handle.remove()
