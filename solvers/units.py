"""Which decisions are there to take?

One decision covers the layers that must get the same bits: the members of a group, or a layer on
its own. Its options are the pairs that every member may take; a pinned member leaves one.
"""

from __future__ import annotations

from dataclasses import dataclass

from solvers.errors import TableError
from solvers.tables import BitChoices, CostTable, LayerBits, LayerSpec


@dataclass(frozen=True, kw_only=True, slots=True)
class Unit:
    """Layers that are decided together.

    Attributes:
        label: the group's name, or the layer's.
        layers: its members in execution order.
        options: the pairs open to it, ordered by (weight bits, activation bits).
    """

    label: str
    layers: tuple[LayerSpec, ...]
    options: tuple[LayerBits, ...]

    @property
    def is_pinned(self) -> bool:
        """No member is searched."""
        return all(layer.pinned is not None for layer in self.layers)


def units_of(costs: CostTable, choices: BitChoices) -> tuple[Unit, ...]:
    """The decisions of a network, in the order of their first layers.

    Raises:
        TableError: members of a group share no pair, or an override names no layer.
    """
    known = set(costs.names)
    special = {name for name, _, _ in choices.overrides}
    usual: tuple[LayerBits, ...] | None = None

    def options_of(layer: LayerSpec) -> tuple[LayerBits, ...]:
        # One tuple for all layers without a pin or candidates of their own: it is made once.
        nonlocal usual
        if layer.pinned is not None or layer.name in special:
            return choices.of(layer)
        if usual is None:
            usual = choices.of(layer)
        return usual

    for name, _, _ in choices.overrides:
        if name not in known:
            raise TableError(f"choices: overrides name layer {name!r}, which {costs.model!r} lacks")
    members: dict[tuple[str, str], list[LayerSpec]] = {}
    for layer in costs:
        key = ("layer", layer.name) if layer.group is None else ("group", layer.group)
        members.setdefault(key, []).append(layer)
    units = []
    for (_, label), layers in members.items():
        options = options_of(layers[0])
        for layer in layers[1:]:
            open_to_it = set(options_of(layer))
            options = tuple(o for o in options if o in open_to_it)
        if not options:
            names = ", ".join(layer.name for layer in layers)
            raise TableError(
                f"cost table of {costs.model!r}: group {label!r} ({names}) must share bits, but "
                "its pins and candidates have no pair in common"
            )
        units.append(Unit(label=label, layers=tuple(layers), options=options))
    return tuple(units)
