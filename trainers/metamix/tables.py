"""Which tables do MetaMix's phases leave for figures? Schemas and columns, without torch."""

from __future__ import annotations

from typing import Final

DRIFT_SCHEMA: Final = "norm-drift/1"
DRIFT_COLUMNS: Final = ("variant", "update", "bits", "variance", "shift")

DISTRIBUTIONS_SCHEMA: Final = "input-distributions/1"
DISTRIBUTIONS_COLUMNS: Final = (
    "weight_bits", "act_bits", "layer", "left", "right", "count", "variance",
)  # fmt: skip

HISTORY_SCHEMA: Final = "alpha-history/1"
HISTORY_COLUMNS: Final = ("update", "unit", "tensor", "bits", "alpha", "probability")

HESSIAN_SCHEMA: Final = "hessian-trace/1"
HESSIAN_COLUMNS: Final = ("layer", "trace", "standard_error", "num_weights")
