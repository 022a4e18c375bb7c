"""How much does each option of each layer cost in accuracy?

LIMPQ's objective (equation 3) is the sum over layers of s_a + alpha * s_w, where s are the learned
step sizes at the chosen bits; alpha multiplies the *weight* term. An indicator should not rise
when bits rise. Trained ones sometimes do; each such entry is a violation, listed and treated by a
named rule:

* ``isotonic`` (default): the closest non-increasing sequence in least squares (pool adjacent
  violators), each (layer, tensor) on its own.
* ``keep``: as learned.
* ``erase``: as in the published code: where the next wider candidate has the larger value, the
  narrower one is forbidden. Compared on the learned values, so that one bad entry cannot forbid
  all below it; forbidden here means removed, not a cost of 1e8.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal, get_args

from solvers.errors import TableError
from solvers.tables import BitChoices, CostTable, ImportanceTable, LayerSpec, TensorRole

RepairRule = Literal["isotonic", "keep", "erase"]


@dataclass(frozen=True, kw_only=True, slots=True)
class Violation:
    """One pair of neighbouring candidates whose indicators stand the wrong way round.

    Attributes:
        layer: whose indicator.
        tensor: weight or act.
        bits: the narrower candidate, whose value is the smaller.
        next_bits: the next wider candidate.
        value: learned value at ``bits``.
        next_value: learned value at ``next_bits``.
        used: value the rule uses at ``bits``; None = the candidate is forbidden.
    """

    layer: str
    tensor: TensorRole
    bits: int
    next_bits: int
    value: float
    next_value: float
    used: float | None


@dataclass(frozen=True, kw_only=True, slots=True)
class Indicators:
    """Indicators after repair, ready to be summed.

    Attributes:
        rule: the rule applied.
        values: (layer, tensor, bits) -> value; a forbidden candidate is infinite.
        violations: what the rule met.
    """

    rule: RepairRule
    values: Mapping[tuple[str, str, int], float]
    violations: tuple[Violation, ...]


def repair_rule(name: str) -> RepairRule:
    """The rule of a name.

    Raises:
        TableError: there is none.
    """
    if name not in get_args(RepairRule):
        raise TableError(f"repair rule {name!r}: unknown; use {', '.join(get_args(RepairRule))}")
    return name  # type: ignore[return-value]


def check_alpha(alpha: float) -> None:
    """Refuse an alpha that is no weight.

    Raises:
        TableError: negative or not finite.
    """
    if not math.isfinite(alpha) or alpha < 0:
        raise TableError(f"alpha is {alpha!r}; it must be a finite number, 0 or more")


def read_indicators(
    importance: ImportanceTable, costs: CostTable, choices: BitChoices, rule: str = "isotonic"
) -> Indicators:
    """Join indicators with a network by layer name and repair them.

    A tensor with a single candidate may lack its value: it adds the same to every policy.

    Raises:
        TableError: another network, an unknown or missing layer, or a missing bit-width.
    """
    checked = repair_rule(rule)
    if importance.fingerprint and importance.fingerprint != costs.fingerprint:
        raise TableError(
            f"importance table of {importance.model!r} was learned on another network "
            f"(fingerprint {importance.fingerprint}) than the cost table of {costs.model!r} "
            f"({costs.fingerprint})"
        )
    learned = importance.values()
    known = set(costs.names)
    for row in importance.rows:
        if row.layer not in known:
            raise TableError(
                f"importance table: layer {row.layer!r} is not in the cost table of {costs.model!r}"
            )
    values: dict[tuple[str, str, int], float] = {}
    violations: list[Violation] = []
    special = {name for name, _, _ in choices.overrides}
    usual: _Candidates | None = None
    for layer in costs.searched:
        if layer.name in special:
            candidates = _candidates(layer, choices)
        else:
            usual = candidates = usual or _candidates(layer, choices)
        for tensor, bits in candidates:
            raw = _learned(learned, layer.name, tensor, bits)
            used = _repaired(raw, checked)
            violations.extend(
                Violation(
                    layer=layer.name,
                    tensor=tensor,
                    bits=bits[i],
                    next_bits=bits[i + 1],
                    value=raw[i],
                    next_value=raw[i + 1],
                    used=used[i] if math.isfinite(used[i]) else None,
                )
                for i in range(len(bits) - 1)
                if raw[i] < raw[i + 1]
            )
            values.update(((layer.name, tensor, b), v) for b, v in zip(bits, used, strict=True))
    return Indicators(rule=checked, values=values, violations=tuple(violations))


_Candidates = tuple[tuple[TensorRole, tuple[int, ...]], tuple[TensorRole, tuple[int, ...]]]


def _candidates(layer: LayerSpec, choices: BitChoices) -> _Candidates:
    options = choices.of(layer)
    return (
        ("weight", tuple(sorted({o.weight_bits for o in options}))),
        ("act", tuple(sorted({o.act_bits for o in options}))),
    )


def _learned(
    learned: Mapping[tuple[str, str, int], float], layer: str, tensor: str, bits: tuple[int, ...]
) -> list[float]:
    if len(bits) == 1 and (layer, tensor, bits[0]) not in learned:
        return [0.0]
    for b in bits:
        if (layer, tensor, b) not in learned:
            held = sorted(k[2] for k in learned if k[:2] == (layer, tensor))
            raise TableError(
                f"importance table: layer {layer!r} has no {tensor} value at {b} bit "
                f"(it has {held or 'none'}); learn it, or leave {b} out of the candidates"
            )
    return [learned[layer, tensor, b] for b in bits]


def _repaired(raw: list[float], rule: RepairRule) -> list[float]:
    match rule:
        case "keep":
            return raw
        case "isotonic":
            return non_increasing(raw)
        case "erase":
            return [
                math.inf if i + 1 < len(raw) and v < raw[i + 1] else v for i, v in enumerate(raw)
            ]


def non_increasing(values: Sequence[float]) -> list[float]:
    """Least-squares closest non-increasing sequence, by pooling adjacent violators."""
    blocks: list[tuple[float, int]] = []  # (mean, length)
    for value in values:
        mean, length = value, 1
        while blocks and blocks[-1][0] < mean:
            before, n = blocks.pop()
            mean, length = (before * n + mean * length) / (n + length), n + length
        blocks.append((mean, length))
    return [mean for mean, length in blocks for _ in range(length)]


def choices_from(
    importance: ImportanceTable,
    costs: CostTable,
    weight_bits: tuple[int, ...] = (),
    act_bits: tuple[int, ...] = (),
) -> BitChoices:
    """The candidates that the indicators cover: those most layers share, others as overrides.

    Args:
        importance: learned indicators.
        costs: the network.
        weight_bits: candidates of the weights, in place of those covered.
        act_bits: the same for activations.

    Raises:
        TableError: a searched layer has no value for a tensor whose candidates are not named.
    """
    named = {"weight": weight_bits, "act": act_bits}
    held: dict[tuple[str, str], set[int]] = {}
    for row in importance.rows:
        held.setdefault((row.layer, row.tensor), set()).add(row.bits)
    by_layer: dict[str, tuple[tuple[int, ...], tuple[int, ...]]] = {}
    for layer in costs.searched:
        sets = []
        for tensor in get_args(TensorRole):
            bits = named[tensor] or held.get((layer.name, tensor))
            if not bits:
                raise TableError(
                    f"importance table: layer {layer.name!r} has no {tensor} values; learn them, "
                    f"or name the candidates of the {tensor} tensor (one for a fixed width)"
                )
            sets.append(tuple(sorted(bits)))
        by_layer[layer.name] = (sets[0], sets[1])
    if not by_layer:
        raise TableError(f"cost table of {costs.model!r}: every layer is pinned, nothing to decide")
    counts = Counter(by_layer.values())
    usual = max(counts, key=lambda sets: (counts[sets], sets))
    return BitChoices(
        weight_bits=usual[0],
        act_bits=usual[1],
        overrides=tuple((name, *sets) for name, sets in by_layer.items() if sets != usual),
    )
