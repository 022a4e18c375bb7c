"""How do gradients survive 16-bit floats? Multiplied while they are small, and back before use.

In float16 a gradient below 6e-8 is zero. The loss is multiplied by a scale before the backward
pass and the gradients divided by it before anything looks at them. The rule is that of torch's
``GradScaler``: halve after an overflow, whose update is skipped, and double after 2,000 updates
without one. Unlike there, the decision is taken on gradients already averaged over ranks, so all
ranks take it alike.
"""

from __future__ import annotations

from collections.abc import Mapping

START = 2.0**16
GROW_AFTER = 2000
# Below it the gradients themselves overflow: the training has diverged.
LEAST = 2.0**-14


class LossScale:
    """The scale of one training; part of its checkpoint.

    Attributes:
        value: a power of two, so that multiplying by it rounds nothing.
        skipped: updates that overflowed.
        used: whether a backward pass has asked for it since ``begin``.
    """

    def __init__(self) -> None:
        self.value = START
        self.skipped = 0
        self.used = False
        self._clean = 0

    def after_update(self, *, overflowed: bool) -> None:
        """Adapt to what became of the last update."""
        if overflowed:
            self.value, self._clean = self.value / 2, 0
            self.skipped += 1
            return
        self._clean += 1
        if self._clean == GROW_AFTER:
            self.value, self._clean = self.value * 2, 0

    def state_dict(self) -> dict[str, float]:
        """For a checkpoint."""
        return {"value": self.value, "skipped": float(self.skipped), "clean": float(self._clean)}

    def load_state_dict(self, state: Mapping[str, float]) -> None:
        """From a checkpoint."""
        self.value = state["value"]
        self.skipped, self._clean = int(state["skipped"]), int(state["clean"])
