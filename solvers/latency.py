"""How long does a layer take at each pair of bits, on one device?

A latency table is measured outside this project and read from CSV or Parquet with the columns
``layer, weight_bits, act_bits, latency_us``. Entries are kept as whole picoseconds, rounded up,
so that sums are exact and a limit is never exceeded by rounding.
"""

from __future__ import annotations

import math
import re
from dataclasses import dataclass, field
from fractions import Fraction

from solvers.accounting import LARGEST_TOTAL
from solvers.errors import LatencyMissingError, TableError
from solvers.tables import LayerBits

PS_PER_US = 1_000_000
# Written out as an integer, a number of a few characters can fill the memory.
_HUGE_EXPONENT = re.compile(r"[eE][+-]?[0-9_]{4,}")


@dataclass(frozen=True, kw_only=True, slots=True)
class LatencyTable:
    """Latency of every (layer, weight bits, activation bits), in picoseconds.

    Attributes:
        name: what messages call it, usually the file.
        rows: ((layer, weight_bits, act_bits, latency_ps), ...).
    """

    name: str
    rows: tuple[tuple[str, int, int, int], ...]
    _index: dict[tuple[str, int, int], int] = field(
        init=False, repr=False, compare=False, default_factory=dict
    )

    def __post_init__(self) -> None:
        total = 0
        for layer, weight_bits, act_bits, latency_ps in self.rows:
            where = f"latency table {self.name}: layer {layer!r}, {weight_bits}x{act_bits} bit"
            if (layer, weight_bits, act_bits) in self._index:
                raise TableError(f"{where}: stands twice")
            if isinstance(latency_ps, bool) or not isinstance(latency_ps, int) or latency_ps < 0:
                raise TableError(f"{where}: latency is {latency_ps!r}; it must be 0 or more")
            total += latency_ps
            if total > LARGEST_TOTAL:
                raise TableError(f"{where}: latencies are too large to add up")
            self._index[layer, weight_bits, act_bits] = latency_ps

    def latency_ps(self, layer: str, bits: LayerBits) -> int:
        """Latency of one layer at its bits.

        Raises:
            LatencyMissingError: the table does not hold it.
        """
        try:
            return self._index[layer, bits.weight_bits, bits.act_bits]
        except KeyError:
            raise LatencyMissingError(
                f"latency table {self.name}: layer {layer!r} has no latency_us for "
                f"{bits.weight_bits} bit weights and {bits.act_bits} bit activations"
            ) from None


def latency_ps_from_us(value: float | int | str, where: str) -> int:
    """Picoseconds, rounded up, of a latency in microseconds.

    Raises:
        TableError: it is not a finite number, 0 or more, its exponent of three digits at most.
    """
    if _HUGE_EXPONENT.search(str(value)):
        raise TableError(
            f"{where}: latency_us is {value!r}; its exponent may have three digits at most"
        )
    try:
        us = Fraction(str(value).strip())
    except (ValueError, ZeroDivisionError):
        raise TableError(f"{where}: latency_us is {value!r}; it must be a finite number") from None
    if us < 0:
        raise TableError(f"{where}: latency_us is {value!r}; it must be 0 or more")
    return math.ceil(us * PS_PER_US)
