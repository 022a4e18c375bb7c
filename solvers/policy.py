"""Which bits does each layer get, and for which network?

Layers are told apart by name. ``policy_id`` is a hash of the network's fingerprint and the bits
alone, so that two searches that end at the same bits give one policy, trained once.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass

from solvers.accounting import STANDARD, Accounting, CostBreakdown, bits_in, cost_breakdown
from solvers.certificate import Certificate
from solvers.errors import PolicyError
from solvers.tables import CostTable, LayerBits


@dataclass(frozen=True, kw_only=True, slots=True)
class Policy:
    """Bits of every layer of one network, in execution order.

    Attributes:
        model: name of the network.
        fingerprint: of the cost table it was made for.
        layers: (layer name, bits), pinned layers included.
        num_macs: MACs of each layer, to say later which layer of another network differs.
        num_weights: weights of each layer, likewise.
        source: what found it: ``ilp``, ``front``, ``uniform``, ``metamix``, ...
        accounting: name of the accounting behind ``cost``.
        cost: what it costs.
        certificate: what was proven about it; None for policies that no solver made.
    """

    model: str
    fingerprint: str
    layers: tuple[tuple[str, LayerBits], ...]
    num_macs: tuple[int, ...]
    num_weights: tuple[int, ...]
    source: str
    accounting: str
    cost: CostBreakdown
    certificate: Certificate | None = None

    @property
    def policy_id(self) -> str:
        """12 hexadecimal digits; the same bits on the same network have the same."""
        return policy_id_of(self.fingerprint, dict(self.layers))

    def bits_by_name(self) -> dict[str, LayerBits]:
        """Layer name -> bits, in execution order."""
        return dict(self.layers)

    def bits_of(self, name: str) -> LayerBits:
        """Bits of one layer.

        Raises:
            PolicyError: the policy has no such layer.
        """
        for layer, bits in self.layers:
            if layer == name:
                return bits
        raise PolicyError(f"policy {self.policy_id}: no layer {name!r}")


def policy_id_of(fingerprint: str, bits_by_name: Mapping[str, LayerBits]) -> str:
    """Hash of canonical JSON of a network's fingerprint and bits by layer name."""
    bits = {name: [b.weight_bits, b.act_bits] for name, b in bits_by_name.items()}
    text = json.dumps({"bits": bits, "fingerprint": fingerprint}, sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()[:12]


def make_policy(
    costs: CostTable,
    bits_by_name: Mapping[str, LayerBits],
    source: str,
    accounting: Accounting = STANDARD,
    certificate: Certificate | None = None,
) -> Policy:
    """A policy for a network, with pinned layers and groups checked.

    Raises:
        PolicyError: a layer has no bits or is unknown, a pin is broken, a group does not share.
    """
    known = set(costs.names)
    for name in bits_by_name:
        if name not in known:
            raise PolicyError(f"policy: layer {name!r} is not in {costs.model!r}")
    shared: dict[str, tuple[str, LayerBits]] = {}
    for layer in costs:
        bits = bits_in(bits_by_name, layer.name)
        _check_width(layer.name, bits)
        if layer.pinned is not None and bits != layer.pinned:
            raise PolicyError(
                f"policy: layer {layer.name!r} has {_text(bits)} bits but is pinned to "
                f"{_text(layer.pinned)}"
            )
        if layer.group is not None:
            before, group_bits = shared.setdefault(layer.group, (layer.name, bits))
            if group_bits != bits:
                raise PolicyError(
                    f"policy: layers {before!r} ({_text(group_bits)}) and {layer.name!r} "
                    f"({_text(bits)}) of group {layer.group!r} must share bits"
                )
    return Policy(
        model=costs.model,
        fingerprint=costs.fingerprint,
        layers=tuple((name, bits_by_name[name]) for name in costs.names),
        num_macs=tuple(s.num_macs for s in costs),
        num_weights=tuple(s.num_weights for s in costs),
        source=source,
        accounting=accounting.name,
        cost=cost_breakdown(costs, bits_by_name, accounting),
        certificate=certificate,
    )


def check_fits(policy: Policy, costs: CostTable) -> None:
    """Refuse a policy made for another network.

    Raises:
        PolicyError: naming the first layer that differs.
    """
    what = f"policy {policy.policy_id} was made for {policy.model!r}, not for {costs.model!r}"
    for i, layer in enumerate(costs):
        if i >= len(policy.layers):
            raise PolicyError(f"{what}: it ends before layer {layer.name!r}")
        name = policy.layers[i][0]
        if name != layer.name:
            raise PolicyError(f"{what}: layer {i} is {name!r} there and {layer.name!r} here")
        sizes = (policy.num_macs[i], policy.num_weights[i])
        if sizes != (layer.num_macs, layer.num_weights):
            raise PolicyError(
                f"{what}: layer {name!r} has {sizes[0]} MACs and {sizes[1]} weights there, "
                f"{layer.num_macs} and {layer.num_weights} here"
            )
    if len(policy.layers) > len(costs.layers):
        raise PolicyError(f"{what}: layer {policy.layers[len(costs.layers)][0]!r} is too many")
    if policy.fingerprint != costs.fingerprint:
        raise PolicyError(
            f"{what}: layer {costs.names[0]!r} and the others have the same names and sizes, but "
            f"the fingerprints {policy.fingerprint} and {costs.fingerprint} differ "
            "(input shape, layer kind or activation sizes)"
        )


def _check_width(name: str, bits: LayerBits) -> None:
    for b in (bits.weight_bits, bits.act_bits):
        if isinstance(b, bool) or not isinstance(b, int) or not 1 <= b <= 32:
            raise PolicyError(f"policy: layer {name!r}: {b!r} is not a bit-width from 1 to 32")


def _text(bits: LayerBits) -> str:
    return f"{bits.weight_bits}x{bits.act_bits}"
