"""Where did the wall time of a run go?

Every second between the first line of a run and its end belongs to one named share. Training,
evaluating and solving are what the run is for; the rest is what it costs to orchestrate them, and
the report shows both.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager

USEFUL = ("train", "evaluate", "solve")
OTHER = "other"


class Ledger:
    """Adds up wall seconds by share, from its construction on."""

    def __init__(self) -> None:
        self._began = time.perf_counter()
        self._shares: dict[str, float] = {}
        self._nested = 0.0

    @contextmanager
    def span(self, share: str) -> Iterator[None]:
        """Book the block's wall time to ``share``, less what is booked inside it."""
        outer, self._nested = self._nested, 0.0
        began = time.perf_counter()
        try:
            yield
        finally:
            spent = time.perf_counter() - began
            self._book(share, spent - self._nested)
            self._nested = outer + spent

    def add(self, share: str, wall_s: float) -> None:
        """Book seconds measured elsewhere that passed inside the current block.

        At most what no share has yet: a phase that goes on from a checkpoint reports the seconds of
        earlier attempts too, and phases side by side report more than passed.
        """
        free = time.perf_counter() - self._began - sum(self._shares.values())
        passed = max(0.0, min(wall_s, free))
        self._book(share, passed)
        self._nested += passed

    def shares(self) -> dict[str, float]:
        """Share -> wall seconds, summing to the wall time so far."""
        total = time.perf_counter() - self._began
        booked = sum(self._shares.values())
        return {**self._shares, OTHER: max(0.0, total - booked)}

    def _book(self, share: str, wall_s: float) -> None:
        self._shares[share] = self._shares.get(share, 0.0) + max(0.0, wall_s)


def overhead_share(shares: dict[str, float]) -> float:
    """Part of the wall time, 0 to 1, that is not training, evaluating or solving."""
    total = sum(shares.values())
    useful = sum(shares.get(name, 0.0) for name in USEFUL)
    return 1.0 - useful / total if total else 0.0
