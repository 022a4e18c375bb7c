"""Why does no policy fit? What a person needs to know to ask for something that exists."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True, slots=True)
class LimitReach:
    """One limit against what the network and its candidates can reach.

    Attributes:
        kind: the limit's kind.
        limit: the limit as a person writes it.
        resource: the integer counted.
        bound: the most allowed.
        smallest: least use of any policy, the other limits aside.
        smallest_with_others: least use of a policy within all other limits; None where the others
            already clash among themselves, or it was not asked for.
        shown_bound: ``bound`` in the unit the limit was written in.
        shown_smallest: ``smallest`` in that unit.
    """

    kind: str
    limit: str
    resource: str
    bound: int
    smallest: int
    smallest_with_others: int | None
    shown_bound: float
    shown_smallest: float

    @property
    def is_reachable_alone(self) -> bool:
        """Some policy meets this limit if it were the only one."""
        return self.smallest <= self.bound


@dataclass(frozen=True, kw_only=True, slots=True)
class Cause:
    """A pin or a group without which more would fit.

    Attributes:
        what: ``pin`` or ``group``.
        name: the pinned layer, or the group.
        limit: the limit that it costs something.
        saves: use of that limit's resource that freeing it would save at the least policy.
        is_enough: freeing this one alone makes all limits reachable.
    """

    what: str
    name: str
    limit: str
    saves: int
    is_enough: bool


@dataclass(frozen=True, kw_only=True, slots=True)
class Infeasibility:
    """Why nothing fits.

    Attributes:
        limits: every limit with its reach.
        clash: limits that cannot be met together, as few as possible; one name = out of reach
            alone.
        causes: pins and groups that keep it from fitting, largest saving first.
        text: the same in one line.
    """

    limits: tuple[LimitReach, ...]
    clash: tuple[str, ...]
    causes: tuple[Cause, ...]
    text: str
