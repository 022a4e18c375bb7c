"""Which teachers does an experiment distil from, and what is a worker told about them?"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import fields, is_dataclass, replace
from typing import Any, TypeVar

from orchestrator.config_types import from_here, is_published
from orchestrator.yaml_source import KeyPath
from trainers.recipes import DistillationConfig

_T = TypeVar("_T")


def teachers_of(section: Any, path: KeyPath = ()) -> Iterator[tuple[KeyPath, DistillationConfig]]:
    """Every teacher below a section, with the path of its own section.

    Args:
        section: an experiment, or any part of one.
        path: where that part stands.
    """
    if isinstance(section, DistillationConfig):
        yield path, section
    elif is_dataclass(section):
        for f in fields(section):
            yield from teachers_of(getattr(section, f.name), (*path, f.name))
    elif isinstance(section, tuple):
        for index, each in enumerate(section):
            yield from teachers_of(each, (*path, index))


def seen_from_here(recipe: _T) -> _T:
    """The recipe with files of teachers' weights as absolute paths.

    They are written as seen from the driver's folder, and a worker runs in one of its own.
    """
    if isinstance(recipe, DistillationConfig):
        if recipe.weights is None or is_published(recipe.weights):
            return recipe
        return replace(recipe, weights=from_here(recipe.weights))
    if not is_dataclass(recipe) or isinstance(recipe, type):
        return recipe
    changed = {}
    for f in fields(recipe):
        found = getattr(recipe, f.name)
        told = seen_from_here(found)
        if told is not found:
            changed[f.name] = told
    return replace(recipe, **changed) if changed else recipe
