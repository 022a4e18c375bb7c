"""What are inputs from the residual stream and inner ones worth to a table, and to a training?

In a block of this network ``conv1`` reads the residual stream and ``conv2`` an inner ReLU.
"""

from __future__ import annotations

import statistics
from collections.abc import Sequence

from cell_text import markdown
from policy_tables import distinct
from read_results import Run

PRICED = ("limpq, initial", "limpq, learned", "fitted, learned")
FEWEST_BITS = 2


def marginal_table(runs: Sequence[Run]) -> str:
    """What one more bit is worth to an importance table, by what a layer reads.

    Values are over that of an inner input from 2 to 3 bits, means over layers and seeds.
    """
    rows = []
    for label in PRICED:
        cells: list[float] = []
        for bits in (2, 3):
            for tensor, suffix in (("act", "conv1"), ("act", "conv2"), ("weight", "")):
                cells.append(
                    statistics.mean(
                        prices[layer, tensor, bits] - prices[layer, tensor, bits + 1]
                        for run in runs
                        if label in run["importance"]
                        for prices in [{(r[0], r[1], r[2]): r[3] for r in run["importance"][label]}]
                        for layer in sorted({key[0] for key in prices if key[0].endswith(suffix)})
                    )
                )
        rows.append((label, *(f"{cell / cells[1]:.2f}" for cell in cells)))
    kinds = ("stream", "inner", "weights")
    columns = [f"{kind}, {bits} to {bits + 1} bit" for bits in (2, 3) for kind in kinds]
    return markdown(("importance", *columns), rows)


def inner_table(runs: Sequence[Run]) -> str:
    """Top-1 of the distinct policies by how many inner inputs they leave at the fewest bits."""
    found: dict[int, list[float]] = {}
    for bits, top1 in distinct(runs):
        inner = [own for layer, own in bits.items() if layer.endswith(".conv2")]
        few = sum(own.act_bits == FEWEST_BITS for own in inner)
        found.setdefault(few, []).append(top1)
    return markdown(
        ("inner inputs at 2 bit, of 9", "policies", "lowest top-1", "mean", "highest"),
        [
            (str(few), str(len(own)), f"{min(own):.2f}", f"{statistics.mean(own):.2f}",
             f"{max(own):.2f}")
            for few, own in sorted(found.items())
        ],
    )  # fmt: skip
