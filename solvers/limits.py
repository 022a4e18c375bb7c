"""What must a policy not exceed, and how does a person write it?

A ``Limit`` is what somebody asked for: ``bitops=23.07G``, ``bitops_level=2.5x3``,
``weight_bytes=7.97MiB``, ``compression_rate=12.2x``, ``mean_weight_bits=3@layer4.*``,
``peak_activation_bytes=1MiB``, ``latency_us=850``. ``ceiling_of`` turns it, once a cost table and
an accounting are known, into a ``Ceiling``: an integer amount of an integer resource. Nothing
after that compares floats.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterable
from dataclasses import dataclass, replace
from fnmatch import fnmatchcase
from fractions import Fraction
from typing import Literal, get_args

from solvers.accounting import (
    Accounting,
    full_precision_size_bits,
    layer_bitops,
    num_macs,
)
from solvers.errors import LimitError
from solvers.latency import PS_PER_US, LatencyTable
from solvers.liveness import require_tensors
from solvers.tables import CostTable

LimitKind = Literal[
    "bitops", "bitops_level", "mean_weight_bits", "mean_act_bits", "weight_bytes",
    "compression_rate", "peak_activation_bytes", "latency_us",
]  # fmt: skip
_KINDS: tuple[str, ...] = get_args(LimitKind)
# Another way to write ``weight_bytes``, for people: a number without a unit.
_IN_MIB = "weight_mib"
KINDS_WRITTEN = (*_KINDS, _IN_MIB)
# What is added up or, for the peak, maximised: the integer behind each kind.
Resource = Literal[
    "bitops", "weight_bits_sum", "act_bits_sum", "size_bits", "peak_bits", "latency_ps"
]

_COUNTS = {"": 1, "K": 10**3, "M": 10**6, "G": 10**9, "T": 10**12}
_BYTES = {
    "": 1, "B": 1, "KB": 10**3, "MB": 10**6, "GB": 10**9,
    "KiB": 2**10, "MiB": 2**20, "GiB": 2**30,
}  # fmt: skip
_UNITS: dict[str, dict[str, int]] = {
    "bitops": _COUNTS,
    "mean_weight_bits": {"": 1, "bit": 1, "bits": 1},
    "mean_act_bits": {"": 1, "bit": 1, "bits": 1},
    "weight_bytes": _BYTES,
    "compression_rate": {"": 1, "x": 1},
    "peak_activation_bytes": _BYTES,
    "latency_us": {"": 1, "us": 1, "ms": 1000, "s": 1_000_000},
}
# Whatever is written leaves numbers that a float can show; networks use a millionth of it.
_LARGEST = 10**19
_MOST_DIGITS = 100
_QUANTITY = re.compile(r"\s*([+-]?[0-9]+(?:\.[0-9]*)?(?:[eE][+-]?[0-9]{1,3})?)\s*([A-Za-z]*)\s*")


@dataclass(frozen=True, kw_only=True, slots=True)
class Limit:
    """One limit as asked for.

    Attributes:
        kind: what is limited.
        limit: the amount in the base unit of the kind (BitOps, bits, bytes, ratio, microseconds);
            an int or an exact Fraction. For ``bitops_level`` the level of the weights.
        act_level: for ``bitops_level``, the level of the activations.
        layers: for means, patterns of the layers averaged over; empty = all searched layers.
        latency: for ``latency_us``, the device's table.
    """

    kind: LimitKind
    limit: Fraction | int
    act_level: Fraction | int | None = None
    layers: tuple[str, ...] = ()
    latency: LatencyTable | None = None

    def __post_init__(self) -> None:
        if self.kind not in _KINDS:
            raise LimitError(f"limit {self.kind!r}: unknown; use {', '.join(_KINDS)}")
        amounts = [self.limit] if self.act_level is None else [self.limit, self.act_level]
        for amount in amounts:
            if isinstance(amount, bool) or not isinstance(amount, (int, Fraction)) or amount <= 0:
                raise LimitError(f"limit {self.kind}: the amount is {amount!r}; it must be above 0")
            if amount > _LARGEST or amount * _LARGEST < 1:
                raise LimitError(f"limit {self.kind}: the amount must be from 1e-19 to 1e19")
        if (self.kind == "bitops_level") != (self.act_level is not None):
            raise LimitError("limit bitops_level: give weight and activation bits, e.g. 3x4")
        if self.layers and self.kind not in ("mean_weight_bits", "mean_act_bits"):
            raise LimitError(f"limit {self.kind}: layers can be chosen for means only")

    @property
    def text(self) -> str:
        """The limit in the words of a command line; ``parse_limit`` reads it back."""
        amount = _plain(self.limit)
        if self.kind == "bitops" and self.limit % 10**6 == 0:
            amount = f"{_plain(Fraction(self.limit) / 10**9)}G"
        if self.act_level is not None:
            amount += f"x{_plain(self.act_level)}"
        return f"{self.kind}={amount}" + (f"@{','.join(self.layers)}" if self.layers else "")


@dataclass(frozen=True, kw_only=True, slots=True)
class Ceiling:
    """A limit for one network: ``use of resource <= bound``, all integers.

    Attributes:
        limit: the limit it comes from.
        resource: what is counted.
        bound: the most that may be used.
        layers: layers that count (means only).
        full_bits: size of the 32-bit network (sizes only), to show a compression rate.
    """

    limit: Limit
    resource: Resource
    bound: int
    layers: tuple[str, ...] = ()
    full_bits: int = 0

    @property
    def kind(self) -> LimitKind:
        """The kind of the limit."""
        return self.limit.kind

    def shown(self, use: int) -> float:
        """``use`` in the unit the limit was written in, for people."""
        match self.resource:
            case "bitops":
                return float(use)
            case "weight_bits_sum" | "act_bits_sum":
                return use / len(self.layers)
            case "size_bits" if self.kind == "compression_rate":
                return self.full_bits / use if use else math.inf
            case "size_bits" | "peak_bits":
                return use / 8
            case "latency_ps":
                return use / PS_PER_US

    def tightened_to(self, bound: int) -> Ceiling:
        """The same ceiling at another height."""
        return replace(self, bound=bound)


def parse_limit(text: str, latency: LatencyTable | None = None) -> Limit:
    """Read ``kind=amount[unit][@layer patterns]``.

    Raises:
        LimitError: unknown kind or unit, not a number, zero or negative.
    """
    kind, equals, amount = text.partition("=")
    if not equals:
        raise LimitError(f"limit {text!r}: write kind=amount, e.g. bitops=23.07G")
    return limit_from(kind.strip(), amount, latency)


def limit_from(kind: str, amount: object, latency: LatencyTable | None = None) -> Limit:
    """A limit from a name and a number or text, as device files and options give them.

    Raises:
        LimitError: unknown kind or unit, not a number, zero or negative.
    """
    if kind == _IN_MIB:
        return limit_from("weight_bytes", f"{amount}MiB")
    if kind not in _KINDS:
        raise LimitError(f"limit {kind!r}: unknown; use one of {', '.join(KINDS_WRITTEN)}")
    if isinstance(amount, bool) or not isinstance(amount, (int, float, str)):
        raise LimitError(f"limit {kind}: the amount is {amount!r}; give a number, e.g. 23.07G")
    text, _, patterns = str(amount).partition("@")
    layers = tuple(p.strip() for p in patterns.split(",") if p.strip())
    if kind == "bitops_level":
        weight_level, x, act_level = text.partition("x")
        if not x:
            raise LimitError(f"limit bitops_level: {text!r} is not weight x activation bits (3x4)")
        return Limit(
            kind="bitops_level",
            limit=_quantity(kind, weight_level, {"": 1}),
            act_level=_quantity(kind, act_level, {"": 1}),
            layers=layers,
        )
    return Limit(
        kind=kind,  # type: ignore[arg-type]
        limit=_quantity(kind, text, _UNITS[kind]),
        layers=layers,
        latency=latency if kind == "latency_us" else None,
    )


def ceiling_of(limit: Limit, costs: CostTable, accounting: Accounting) -> Ceiling:
    """The integer form of a limit on one network.

    Raises:
        LimitError: the network cannot be measured that way, or no layer matches.
    """
    match limit.kind:
        case "bitops":
            return Ceiling(limit=limit, resource="bitops", bound=math.floor(limit.limit))
        case "bitops_level":
            assert limit.act_level is not None  # Limit refuses it otherwise
            bound = _level_bitops(costs, limit.limit * limit.act_level, accounting)
            return Ceiling(limit=limit, resource="bitops", bound=bound)
        case "mean_weight_bits" | "mean_act_bits":
            layers = averaged_layers(limit, costs)
            return Ceiling(
                limit=limit,
                resource="weight_bits_sum" if limit.kind == "mean_weight_bits" else "act_bits_sum",
                bound=math.floor(limit.limit * len(layers)),
                layers=layers,
            )
        case "weight_bytes" | "compression_rate":
            full_bits = full_precision_size_bits(costs, accounting)
            size = limit.limit * 8 if limit.kind == "weight_bytes" else full_bits / limit.limit
            if limit.kind == "compression_rate":
                size = Fraction(full_bits) / limit.limit
            return Ceiling(
                limit=limit, resource="size_bits", bound=math.floor(size), full_bits=full_bits
            )
        case "peak_activation_bytes":
            require_tensors(costs)
            return Ceiling(limit=limit, resource="peak_bits", bound=math.floor(limit.limit * 8))
        case "latency_us":
            if limit.latency is None:
                raise LimitError(
                    "limit latency_us: no latency table; only a device file in YAML can name one "
                    "(latency_table: file.csv)"
                )
            bound = math.floor(limit.limit * PS_PER_US)
            return Ceiling(limit=limit, resource="latency_ps", bound=bound)


def ceilings_of(
    limits: Iterable[Limit], costs: CostTable, accounting: Accounting
) -> tuple[Ceiling, ...]:
    """The integer forms of several limits, in their order."""
    return tuple(ceiling_of(limit, costs, accounting) for limit in limits)


def averaged_layers(limit: Limit, costs: CostTable) -> tuple[str, ...]:
    """Layers that a mean runs over.

    Raises:
        LimitError: a pattern matches no layer, or nothing is searched.
    """
    if not limit.layers:
        names = tuple(layer.name for layer in costs.searched)
        if not names:
            raise LimitError(f"limit {limit.kind}: {costs.model!r} has no searched layer")
        return names
    for pattern in limit.layers:
        if not any(fnmatchcase(name, pattern) for name in costs.names):
            raise LimitError(
                f"limit {limit.kind}: {pattern!r} matches no layer of {costs.model!r}; "
                f"layers look like {costs.names[0]!r}"
            )
    return tuple(n for n in costs.names if any(fnmatchcase(n, p) for p in limit.layers))


def _level_bitops(costs: CostTable, product: Fraction | int, accounting: Accounting) -> int:
    """BitOps of the network whose searched layers all cost ``product`` a MAC, pins as they are."""
    pinned = 0
    searched = 0
    for i, layer in enumerate(costs):
        if layer.pinned is None:
            searched += num_macs(layer, accounting)
        else:
            pinned += layer_bitops(layer, layer.pinned, accounting, is_first=i == 0)
    return pinned + math.floor(searched * product)


def _quantity(kind: str, text: str, units: dict[str, int]) -> Fraction | int:
    found = _QUANTITY.fullmatch(text)
    if found is None:
        raise LimitError(f"limit {kind}: {text.strip()!r} is not a number with a unit, e.g. 23.07G")
    number, unit = found.groups()
    if len(number) > _MOST_DIGITS:
        raise LimitError(f"limit {kind}: a number of {len(number)} digits; write 100 at most")
    if unit not in units:
        known = ", ".join(repr(u) for u in units if u) or "none"
        raise LimitError(f"limit {kind}: unit {unit!r} is unknown; units are {known}")
    # Plain integers stay such: fractions take ten times as long, and device files are long.
    amount = (int(number) if number.isdecimal() else Fraction(number)) * units[unit]
    if amount <= 0:
        raise LimitError(f"limit {kind}: the amount is {text.strip()}; it must be above 0")
    return amount


def _plain(amount: Fraction | int) -> str:
    if amount.denominator == 1:
        return str(amount.numerator)
    # 17 digits give every double back; amounts that people write have far fewer.
    return f"{float(amount):.12g}"
