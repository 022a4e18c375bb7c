"""How does a long measurement go on where it was stopped?

A measurement is a list of named results, each a tensor that is the same on every rank. A result is
written when it is there, with what the work has cost so far; whoever runs the phase again gets it
from the file. So a kill costs one result, and a cost is never counted twice or left out.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch import Tensor

from trainers.checkpoint import load_tensors, save_tensors
from trainers.distributed import check_same, sum_over_ranks
from trainers.errors import DivergedError, InterruptedPhaseError
from trainers.meters import Meter
from trainers.phases import Cost, PhaseContext

FILE = "progress.pt"


class Progress:
    """Named results of one phase, kept in its folder; every rank has one.

    Args:
        context: this rank and the folder.
        meter: of the phase; takes over the cost of earlier attempts.
        what: the phase, for messages.
    """

    def __init__(self, context: PhaseContext, meter: Meter, what: str) -> None:
        self.context, self.meter, self.what = context, meter, what
        self._path = context.step_dir / FILE
        self._found: dict[str, Tensor] = {}
        if self._path.is_file():
            state: dict[str, Any] = load_tensors(self._path)
            self._found, meter.before = state["found"], Cost(**state["cost"])
        check_same("the measurement to go on from", len(self._found), context.device)

    def has(self, name: str) -> bool:
        """Whether that result is there."""
        return name in self._found

    def get(self, name: str) -> Tensor:
        """The result of that name, which must be there."""
        return self._found[name]

    def once(self, name: str, measure: Callable[[], Tensor]) -> Tensor:
        """The result of that name, measured now if no attempt has.

        Args:
            name: of the result.
            measure: gives the same tensor on every rank; may use collectives.

        Raises:
            DivergedError: it holds NaN or infinity; it is not kept.
            InterruptedPhaseError: the driver asked to stop; the result is kept.
        """
        if name not in self._found:
            self.keep({name: measure()}, name)
        return self._found[name]

    def keep(self, results: dict[str, Tensor], name: str) -> None:
        """Write results, in place of earlier ones of the same names; every rank must call it.

        Raises:
            DivergedError: one holds NaN or infinity.
            InterruptedPhaseError: the driver asked to stop.
        """
        for result in results.values():
            if not result.isfinite().all():
                raise DivergedError(
                    f"{self.what}: the result of {name} holds NaN or infinity; "
                    "look at the full-precision weights"
                )
        self._found |= {key: result.detach().cpu() for key, result in results.items()}
        cost = self.meter.total()
        (num_stopping,) = sum_over_ranks([float(self.context.should_stop())], self.context.device)
        if self.context.rank == 0:
            spent = {field: getattr(cost, field) for field in Cost.__dataclass_fields__}
            save_tensors(self._path, {"found": self._found, "cost": spent})
        self.context.progress({"measured": float(len(self._found))})
        if num_stopping:
            raise InterruptedPhaseError(
                f"{self.what}: stopped after {name}; the same command goes on from there"
            )

    def clear(self) -> None:
        """Remove the file: the phase's own outputs are written."""
        if self.context.rank == 0:
            self._path.unlink(missing_ok=True)
