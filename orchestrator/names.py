"""Which networks and data sets exist? Imports torch, so only when an experiment file is read."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator
from functools import cached_property

from orchestrator.config import KnownNames


def known_names() -> KnownNames:
    """Every name that an experiment file may use."""
    from trainers.data import data_names
    from trainers.models import model_names

    # torchvision takes 3-4 s to import, so its names are listed only for a name not found before.
    models = _InTwoSteps(model_names(torchvision=False), model_names)
    return KnownNames(models=models, datasets=data_names())


class _InTwoSteps(Collection[str]):
    """Names of which the quick ones are looked at first."""

    def __init__(self, quick: Collection[str], every: Callable[[], Collection[str]]) -> None:
        self._quick = quick
        self._make_every = every

    @cached_property
    def _every(self) -> Collection[str]:
        return self._make_every()

    def __contains__(self, name: object) -> bool:
        return name in self._quick or name in self._every

    def __iter__(self) -> Iterator[str]:
        return iter(self._every)

    def __len__(self) -> int:
        return len(self._every)
