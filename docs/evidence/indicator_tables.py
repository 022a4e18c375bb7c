"""Tables of indicators: what one tensor at few bits costs, and how far training moves the steps."""

from __future__ import annotations

import statistics
from collections.abc import Iterator, Sequence

from cell_text import markdown, tau
from read_results import Cell, Run, cells_of

TENSORS = {"weight": "weights", "act": "input"}


def _measured(run: Run, step: str, learned: Run) -> Iterator[tuple[str, list[Cell]]]:
    """The layers of one measurement, a block for each tensor and width, under its name."""
    for tensor, label in TENSORS.items():
        for bits in sorted(set(run["sensitivity"][step]["cells"]["bits"])):
            yield f"{label}, {bits} bit", cells_of(run, step, learned, tensor, bits)


def sensitivity_table(run: Run, learned: Run) -> str:
    """Tau of the learned step size and the rise of the loss, over layers."""
    rows = []
    for label, cells in _measured(run, "evidence-sensitivity", learned):
        steps = [c.learned for c in cells]
        rows.append(
            (
                label,
                str(len(cells)),
                f"{max(c.rise for c in cells):.3f}",
                f"{max(c.rise_after for c in cells):.3f}",
                tau(steps, [c.rise for c in cells]),
                tau(steps, [c.rise_after for c in cells]),
            )
        )
    return markdown(
        ("tensor", "layers", "largest rise", "largest after training", "tau with the rise",
         "tau with the rise after training"),
        rows,
    )  # fmt: skip


def separate_table(run: Run, learned: Run) -> str:
    """Do step sizes learned one tensor at a time order the layers as the joint ones do?"""
    rows = []
    starts = {"evidence-sensitivity-2": "statistics", "evidence-sensitivity-3": "0.1 / bits"}
    for step, start in starts.items():
        whole = dict(_measured(run, "evidence-sensitivity", learned))
        for label, cells in _measured(run, step, learned):
            after = [c.step_after for c in cells]
            rises = {c.layer: c.rise for c in whole[label]}
            rows.append(
                (
                    label,
                    start,
                    f"{min(c.step for c in cells):.3f} to {max(c.step for c in cells):.3f}",
                    f"{min(after):.3f} to {max(after):.3f}",
                    tau(after, [c.learned for c in cells]),
                    tau(after, [rises[c.layer] for c in cells]),
                )
            )
    return markdown(
        ("tensor", "start", "steps at the start", "after 60 updates", "tau with the joint ones",
         "tau with the rise of the loss"),
        rows,
    )  # fmt: skip


def learning_table(variants: Sequence[Run], epoch: Run) -> str:
    """How far joint training moves the step sizes, and in how many layers the policy with them.

    The order is that of the searched layers at two bits, before and after; policies are compared
    with those after one epoch, at the same alpha.
    """
    known = {r["alpha"]: r["policy_id"] for r in epoch["rows"] if r["method"] == "limpq"}
    rows = []
    for run in [epoch, *variants]:
        first, last = _steps(run)
        cells = []
        for tensor in TENSORS:
            moved = median_change(run, tensor)
            cells += [f"{moved[bits]:.1%}" for bits in (min(moved), max(moved))]
        for tensor in TENSORS:
            own = [key for key in sorted(first) if key[1:] == (tensor, 2)]
            cells.append(tau([first[key] for key in own], [last[key] for key in own]))
        for alpha, other in sorted(known.items()):
            (mine,) = {r["policy_id"] for r in run["rows"]
                       if (r["method"], r["alpha"]) == ("limpq", alpha)}  # fmt: skip
            bits, base = run["policies"][mine], epoch["policies"][other]
            cells.append(str(sum(bits[layer] != base[layer] for layer in base)))
        rows.append((learning_variant(run), *cells))
    return markdown(
        ("joint training",
         *(f"median change, {t} at {bits} bit" for t in TENSORS.values() for bits in (2, 6)),
         *(f"tau, {t}" for t in TENSORS.values()),
         *(f"layers that differ, alpha {alpha:g}" for alpha in sorted(known))),
        rows,
    )  # fmt: skip


def _steps(run: Run) -> tuple[dict[tuple[str, str, int], float], ...]:
    """(layer, tensor, bits) -> step size, before and after joint training."""
    return tuple(
        {(r[0], r[1], r[2]): r[3] for r in run["importance"][f"limpq, {when}"]}
        for when in ("initial", "learned")
    )


def median_change(run: Run, tensor: str) -> dict[int, float]:
    """Bits -> relative change of the step sizes of one kind of tensor, the median over layers."""
    first, last = _steps(run)
    moved: dict[int, list[float]] = {}
    for key in first:
        if key[1] == tensor:
            moved.setdefault(key[2], []).append(abs(last[key] / first[key] - 1))
    return {bits: statistics.median(own) for bits, own in sorted(moved.items())}


def learning_variant(run: Run) -> str:
    """A variant of joint training by what sets it apart; a fraction is one of the images."""
    recipe = run["config"]["indicators"]
    frozen = ", weights frozen" if recipe["freeze_weights"] else ""
    epochs = "" if recipe["epochs"] == 1 else f"{recipe['epochs']:g} epochs of "
    return f"{epochs}{recipe['fraction']:.0%} of the images, lr {recipe['lr']:g}{frozen}"
