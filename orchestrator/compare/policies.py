"""In which layers do two policies differ, and how stable is what a method finds?

A distance counts layers, not bits: two policies one bit apart in every layer are as different as
can be, and a mean of bit-widths would call them near. Pinned layers never differ and are left out
where the caller knows them.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations

from solvers.tables import LayerBits

Bits = Mapping[str, LayerBits]


@dataclass(frozen=True, kw_only=True, slots=True)
class PolicyDistance:
    """How far two policies of one network are apart.

    Attributes:
        layers: names of the layers whose weight or activation bits differ, in network order.
        num_weight: layers whose weight bits differ.
        num_act: layers whose activation bits differ.
        num_layers: layers that were compared.
        weight_bits: sum of absolute differences of weight bits.
        act_bits: sum of absolute differences of activation bits.
    """

    layers: tuple[str, ...]
    num_weight: int
    num_act: int
    num_layers: int
    weight_bits: int
    act_bits: int

    @property
    def changed(self) -> int:
        """Bit-widths that differ, of two in every layer."""
        return self.num_weight + self.num_act


def distance(first: Bits, second: Bits, pinned: Collection[str] = ()) -> PolicyDistance | None:
    """Distance of two policies; None when they are not of the same layers."""
    if list(first) != list(second):
        return None
    names = [name for name in first if name not in pinned]
    weight = {n: abs(first[n].weight_bits - second[n].weight_bits) for n in names}
    act = {n: abs(first[n].act_bits - second[n].act_bits) for n in names}
    return PolicyDistance(
        layers=tuple(n for n in names if weight[n] or act[n]),
        num_weight=sum(map(bool, weight.values())),
        num_act=sum(map(bool, act.values())),
        num_layers=len(names),
        weight_bits=sum(weight.values()),
        act_bits=sum(act.values()),
    )


@dataclass(frozen=True, kw_only=True, slots=True)
class Stability:
    """What one method finds for one question, in several runs.

    Attributes:
        question: method, alpha and limits.
        num_runs: runs that gave a policy.
        num_distinct: different policies among them.
        mean_changed: bit-widths that differ, mean over all pairs of runs; None for one run.
        max_changed: the same, largest pair.
        num_widths: bit-widths that could differ: two in every searched layer.
        unstable: layers that differ in any pair, in network order.
    """

    question: tuple[str, ...]
    num_runs: int
    num_distinct: int
    mean_changed: float | None
    max_changed: int | None
    num_widths: int
    unstable: tuple[str, ...]


def stability(
    question: tuple[str, ...], policies: Sequence[Bits], pinned: Collection[str] = ()
) -> Stability | None:
    """How much the answer to one question changes; None without policies or over networks."""
    if not policies:
        return None
    # Of many equal policies each kind is compared once; 500 runs have 124,750 pairs.
    kinds: dict[tuple[tuple[str, int, int], ...], int] = {}
    for bits in policies:
        key = tuple((n, b.weight_bits, b.act_bits) for n, b in bits.items())
        kinds[key] = kinds.get(key, 0) + 1
    distinct = [
        ({n: LayerBits(weight_bits=w, act_bits=a) for n, w, a in key}, count)
        for key, count in kinds.items()
    ]
    num_pairs, total, largest = len(policies) * (len(policies) - 1) // 2, 0, 0
    unstable: set[str] = set()
    for (first, one), (second, other) in combinations(distinct, 2):
        found = distance(first, second, pinned)
        if found is None:
            return None
        total += found.changed * one * other
        largest = max(largest, found.changed)
        unstable.update(found.layers)
    names = [n for n in policies[0] if n not in pinned]
    return Stability(
        question=question,
        num_runs=len(policies),
        num_distinct=len(distinct),
        mean_changed=total / num_pairs if num_pairs else None,
        max_changed=largest if num_pairs else None,
        num_widths=2 * len(names),
        unstable=tuple(n for n in names if n in unstable),
    )


def stability_row(found: Stability) -> tuple[str, ...]:
    """A line of ``STABILITY_COLUMNS``, after the columns of the question."""
    if found.mean_changed is None:
        return ("1", "1", "-", "-", str(found.num_widths), "one run: no claim")
    return (
        str(found.num_runs),
        str(found.num_distinct),
        f"{found.mean_changed:.1f}",
        str(found.max_changed),
        str(found.num_widths),
        ", ".join(found.unstable) or "none",
    )


STABILITY_COLUMNS = (
    "runs", "distinct", "bits changed, mean", "bits changed, most", "of", "layers that change",
)  # fmt: skip
