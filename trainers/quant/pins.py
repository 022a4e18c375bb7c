"""Which layers keep bits that no search may change?

Pins are (regular expression over the whole layer name, weight bits, activation bits), first match
wins; 0 bits leaves a tensor in full precision. Layers without a match are searched, except the
first and the last in execution order, which both papers keep at 8/8.
"""

from __future__ import annotations

import re
from collections.abc import Sequence

from trainers.errors import ModelError

Pin = tuple[str, int, int]

_ENDS = (8, 8)


def resolve_pins(names: Sequence[str], pins: Sequence[Pin]) -> dict[str, tuple[int, int]]:
    """Layer name -> (weight bits, activation bits) of the pinned layers.

    Args:
        names: layer names in execution order.
        pins: rules, first match wins; a rule that names the first or last layer replaces 8/8.

    Raises:
        ModelError: an expression cannot be read or matches no layer.
    """
    rules = [(_compiled(pattern), pattern, (w, a)) for pattern, w, a in pins]
    for rule, pattern, _ in rules:
        if not any(rule.fullmatch(name) for name in names):
            shown = ", ".join(names[:6]) + (" ..." if len(names) > 6 else "")
            raise ModelError(f"pins: {pattern!r} matches no layer as a whole; layers are {shown}")
    pinned: dict[str, tuple[int, int]] = {}
    for name in names:
        for rule, _, bits in rules:
            if rule.fullmatch(name):
                pinned[name] = bits
                break
        else:
            if name in (names[0], names[-1]):
                pinned[name] = _ENDS
    return pinned


def _compiled(pattern: str) -> re.Pattern[str]:
    try:
        return re.compile(pattern)
    except re.error as error:
        raise ModelError(f"pins: {pattern!r} is no regular expression: {error}") from error
