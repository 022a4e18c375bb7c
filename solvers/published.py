"""How are LIMPQ's published policies read and written?

That code keeps a policy as two lists, weight bits and activation bits of the searched layers, in
the order in which the network runs them; the first and last layer are 8 bit and not listed. Lists
carry no names, so the cost table supplies them and a wrong length is refused.
"""

from __future__ import annotations

from collections.abc import Sequence

from solvers.accounting import STANDARD, Accounting
from solvers.errors import PolicyError
from solvers.policy import Policy, check_fits, make_policy
from solvers.tables import CostTable, LayerBits


def policy_from_lists(
    costs: CostTable,
    weight_bits: Sequence[int],
    act_bits: Sequence[int],
    *,
    accounting: Accounting = STANDARD,
) -> Policy:
    """A policy from the two published lists.

    Raises:
        PolicyError: a list is too short or too long, or breaks a group.
    """
    names = [layer.name for layer in costs.searched]
    for what, bits in (("weight", weight_bits), ("activation", act_bits)):
        if len(bits) != len(names):
            raise PolicyError(
                f"published list: {len(bits)} {what} bits for {len(names)} searched layers of "
                f"{costs.model!r}, {names[0]!r} to {names[-1]!r}"
            )
    bits_by_name = {layer.name: layer.pinned for layer in costs.layers if layer.pinned is not None}
    for name, w, a in zip(names, weight_bits, act_bits, strict=True):
        bits_by_name[name] = LayerBits(weight_bits=w, act_bits=a)
    return make_policy(costs, bits_by_name, "published", accounting)


def lists_from_policy(policy: Policy, costs: CostTable) -> tuple[list[int], list[int]]:
    """(weight bits, activation bits) of the searched layers, in execution order.

    Raises:
        PolicyError: the policy is for another network.
    """
    check_fits(policy, costs)
    bits = [policy.bits_of(layer.name) for layer in costs.searched]
    return [b.weight_bits for b in bits], [b.act_bits for b in bits]
