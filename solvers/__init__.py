"""Which bits for which layer, within which limits, and with what proof? Tables in, policy out.

Pure Python over tables: no torch, no Ray, no files of configuration. The names below are the
room's door, and ``solvers.solve.solve`` behind it. They are loaded on first use: whoever reads a
cost table should not wait for PuLP.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from solvers.accounting import (
        AS_PUBLISHED_LIMPQ,
        STANDARD,
        Accounting,
        CostBreakdown,
        accounting_named,
        cost_breakdown,
        layer_bitops,
        total_bitops,
    )
    from solvers.certificate import Certificate, LimitUse, SolveStatus
    from solvers.controls import (
        greedy,
        random_policy,
        reversed_importance,
        uniform,
        uniform_at,
        uniform_mixes,
    )
    from solvers.errors import (
        FormatError,
        LimitError,
        PolicyError,
        SolverFailedError,
        SolversError,
        TableError,
    )
    from solvers.importance import RepairRule, Violation
    from solvers.infeasibility import Infeasibility
    from solvers.limits import Limit, LimitKind, limit_from, parse_limit
    from solvers.policy import Policy, check_fits, make_policy
    from solvers.reach import reachable
    from solvers.result import SolveRequest, SolveResult
    from solvers.storage import (
        load_costs,
        load_importance,
        load_policy,
        load_results,
        save_costs,
        save_importance,
        save_policy,
        save_results,
    )
    from solvers.tables import (
        BitChoices,
        CostTable,
        Importance,
        ImportanceTable,
        LayerBits,
        LayerSpec,
        TensorLife,
    )

_HOME = {
    "AS_PUBLISHED_LIMPQ": "accounting",
    "Accounting": "accounting",
    "CostBreakdown": "accounting",
    "STANDARD": "accounting",
    "accounting_named": "accounting",
    "cost_breakdown": "accounting",
    "layer_bitops": "accounting",
    "total_bitops": "accounting",
    "Certificate": "certificate",
    "LimitUse": "certificate",
    "SolveStatus": "certificate",
    "greedy": "controls",
    "random_policy": "controls",
    "reversed_importance": "controls",
    "uniform": "controls",
    "uniform_at": "controls",
    "uniform_mixes": "controls",
    "FormatError": "errors",
    "LimitError": "errors",
    "PolicyError": "errors",
    "SolverFailedError": "errors",
    "SolversError": "errors",
    "TableError": "errors",
    "RepairRule": "importance",
    "Violation": "importance",
    "Infeasibility": "infeasibility",
    "Limit": "limits",
    "LimitKind": "limits",
    "limit_from": "limits",
    "parse_limit": "limits",
    "Policy": "policy",
    "check_fits": "policy",
    "make_policy": "policy",
    "reachable": "reach",
    "SolveRequest": "result",
    "SolveResult": "result",
    "load_costs": "storage",
    "load_importance": "storage",
    "load_policy": "storage",
    "load_results": "storage",
    "save_costs": "storage",
    "save_importance": "storage",
    "save_policy": "storage",
    "save_results": "storage",
    "BitChoices": "tables",
    "CostTable": "tables",
    "Importance": "tables",
    "ImportanceTable": "tables",
    "LayerBits": "tables",
    "LayerSpec": "tables",
    "TensorLife": "tables",
}

__all__ = [
    "AS_PUBLISHED_LIMPQ",
    "STANDARD",
    "Accounting",
    "BitChoices",
    "Certificate",
    "CostBreakdown",
    "CostTable",
    "FormatError",
    "Importance",
    "ImportanceTable",
    "Infeasibility",
    "LayerBits",
    "LayerSpec",
    "Limit",
    "LimitError",
    "LimitKind",
    "LimitUse",
    "Policy",
    "PolicyError",
    "RepairRule",
    "SolveRequest",
    "SolveResult",
    "SolveStatus",
    "SolverFailedError",
    "SolversError",
    "TableError",
    "TensorLife",
    "Violation",
    "accounting_named",
    "check_fits",
    "cost_breakdown",
    "greedy",
    "layer_bitops",
    "limit_from",
    "load_costs",
    "load_importance",
    "load_policy",
    "load_results",
    "make_policy",
    "parse_limit",
    "random_policy",
    "reachable",
    "reversed_importance",
    "save_costs",
    "save_importance",
    "save_policy",
    "save_results",
    "total_bitops",
    "uniform",
    "uniform_at",
    "uniform_mixes",
]


def __getattr__(name: str) -> object:
    if name not in _HOME:
        raise AttributeError(f"module 'solvers' has no attribute {name!r}")
    return getattr(importlib.import_module(f"solvers.{_HOME[name]}"), name)
