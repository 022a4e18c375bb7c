"""Where does each kind of file live in this room? The door to reading and writing.

costs/1 and importance/1: ``table_files``; policy/1: ``policy_file``; results/1: ``result_files``;
latency tables from other tools: ``latency_files``.
"""

from solvers.policy_file import load_policy, policy_record, save_policy
from solvers.result_files import ResultRow, Results, load_results, merge_results, save_results
from solvers.table_files import load_costs, load_importance, save_costs, save_importance

__all__ = [
    "ResultRow",
    "Results",
    "load_costs",
    "load_importance",
    "load_policy",
    "load_results",
    "merge_results",
    "policy_record",
    "save_costs",
    "save_importance",
    "save_policy",
    "save_results",
]
