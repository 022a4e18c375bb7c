"""Which indicators does the solver benchmark use? Initial LSQ step sizes with a spread.

s_w(b) = 2 E|w| / sqrt(2^(b-1) - 1), s_a(b) = 2 E|a| / sqrt(2^b - 1); E log-normal over layers
(sigma 0.6), every value times log-normal noise (5 %), weights rescaled to the activations' mean,
candidates 2..6 for both. Synthetic: it is their spread that makes solvers work, not their truth.
"""

from __future__ import annotations

import numpy as np

from solvers.tables import BitChoices, CostTable, Importance, ImportanceTable, TensorRole

CHOICES = BitChoices(weight_bits=(2, 3, 4, 5, 6), act_bits=(2, 3, 4, 5, 6))


def indicators(
    costs: CostTable, seed: int, bits: tuple[int, ...] = (2, 3, 4, 5, 6)
) -> ImportanceTable:
    """Synthetic indicators of every searched layer."""
    rng = np.random.default_rng(seed)
    names = [layer.name for layer in costs.searched]
    widths = np.array(bits, dtype=float)
    spread = rng.lognormal(0.0, 0.6, size=(2, len(names), 1))
    noise = rng.lognormal(0.0, 0.05, size=(2, len(names), len(bits)))
    weight = 2 * spread[0] / np.sqrt(np.maximum(2 ** (widths - 1) - 1, 0.5)) * noise[0]
    act = 2 * spread[1] / np.sqrt(2**widths - 1) * noise[1]
    weight *= act.mean() / weight.mean()
    tensors: tuple[tuple[TensorRole, np.ndarray], ...] = (("weight", weight), ("act", act))
    rows = tuple(
        Importance(layer=name, tensor=tensor, bits=b, value=float(values[i, j]))
        for tensor, values in tensors
        for i, name in enumerate(names)
        for j, b in enumerate(bits)
    )
    return ImportanceTable(
        model=costs.model,
        fingerprint=costs.fingerprint,
        method="synthetic",
        seed=seed,
        data_fingerprint="none",
        rows=rows,
    )
