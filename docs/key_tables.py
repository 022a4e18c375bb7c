"""What does every key of an experiment file mean? Tables made from the configuration's types.

Type, range and default come from the dataclass fields, the meaning and its source from the
``Attributes`` of the docstrings, those of base classes included.
"""

from __future__ import annotations

import inspect
import json
import types
from collections.abc import Iterator, Mapping
from dataclasses import MISSING, Field, fields, is_dataclass
from typing import Annotated, Any, Literal, Union, get_args, get_origin, get_type_hints

from annotated_types import Ge, Gt, Le, Lt, MinLen

from orchestrator.config_schema import ExperimentConfig

_PLAIN = {int: "integer", float: "number", str: "text", bool: "true or false", Any: "any value"}
_BOUNDS = {Ge: ("ge", ">="), Gt: ("gt", ">"), Le: ("le", "<="), Lt: ("lt", "<")}


def every_key() -> str:
    """One table per section of an experiment file, in the order of the file."""
    return "\n".join(("## Top level", "", *_section("", ExperimentConfig, "")))


def all_keys(owner: type = ExperimentConfig, prefix: str = "") -> Iterator[str]:
    """Dotted names of all keys, sections of sections included."""
    for field in fields(owner):
        inner = _section_class(owner, field)
        if inner is None:
            yield f"{prefix}{field.name}"
        else:
            yield from all_keys(inner, f"{prefix}{field.name}.")


def _section(prefix: str, owner: type, default: str) -> Iterator[str]:
    """The tables of a section and of the sections in it, without its heading."""
    if prefix:
        yield from (_about(owner), "")
    if default:
        yield from (f"Default: {default}.", "")
    nested = [f for f in fields(owner) if _section_class(owner, f)]
    plain = [f for f in fields(owner) if f not in nested]
    if plain:
        yield from (*_table(owner, plain), "")
    meanings = _meanings(owner)
    for field in nested:
        inner = _section_class(owner, field)
        assert inner is not None
        name = f"{prefix}{field.name}{'[]' if _is_list(owner, field) else ''}"
        # All keys' own defaults are the section's default unless it says otherwise.
        differs = field.default_factory not in (inner, MISSING) or field.default is not MISSING
        shown = _default(field) if differs else ""
        yield from (f"##{'#' * prefix.count('.')} {name}", "")
        yield from (f"{meanings[field.name][:1].upper()}{meanings[field.name][1:]}", "")
        yield from _section(f"{prefix}{field.name}.", inner, shown)


def _table(owner: type, chosen: list[Field[Any]]) -> Iterator[str]:
    hints = get_type_hints(owner, include_extras=True)
    meanings = _meanings(owner)
    yield "| key | value | default | meaning |"
    yield "| --- | --- | --- | --- |"
    for field in chosen:
        shown = _shown(hints[field.name]).replace("|", "\\|")
        meaning = meanings[field.name].replace("|", "\\|")
        yield f"| `{field.name}` | {shown} | {_default(field)} | {meaning} |"


def _shown(hint: Any) -> str:
    """A type as a person would say it."""
    origin, inner = get_origin(hint), get_args(hint)
    if origin is Annotated:
        return ", ".join([_shown(inner[0]), *(b for b in map(_bound, inner[1:]) if b)])
    if origin is Literal:
        return ", ".join(f"`{value}`" for value in inner)
    if origin in (Union, types.UnionType):
        return " or ".join("null" if each is type(None) else _shown(each) for each in inner)
    if origin is tuple:
        if inner[-1] is Ellipsis:
            return f"list of {_shown(inner[0])}"
        return "[" + ", ".join(_shown(each) for each in inner) + "]"
    if origin in (Mapping, dict):
        return "mapping" if inner[1] is Any else "mapping of name to amount"
    return _PLAIN[hint]


def _bound(meta: object) -> str:
    if isinstance(meta, MinLen):
        return "not empty" if meta.min_length == 1 else f"at least {meta.min_length}"
    for kind, (name, sign) in _BOUNDS.items():
        if isinstance(meta, kind):
            value = getattr(meta, name)
            return f"{sign} {value:_}" if isinstance(value, int) else f"{sign} {value:g}"
    return ""


def _default(field: Field[Any]) -> str:
    if field.default is not MISSING:
        value = field.default
    elif field.default_factory is not MISSING:
        value = field.default_factory()
    else:
        return "required"
    return "see its section" if is_dataclass(value) else f"`{json.dumps(value, default=list)}`"


def _meanings(owner: type) -> dict[str, str]:
    """Attribute -> its text, the most derived class winning."""
    found: dict[str, str] = {}
    for each in reversed(owner.__mro__):
        _, _, listed = inspect.cleandoc(each.__doc__ or "").partition("Attributes:\n")
        name = ""
        for line in listed.splitlines():
            if line.startswith("    ") and not line.startswith("     "):
                name, _, text = line.strip().partition(": ")
                found[name] = text
            elif name and line.strip():
                found[name] += f" {line.strip()}"
    return {name: text.replace("``", "`") for name, text in found.items()}


def _about(section: type) -> str:
    text = inspect.cleandoc(section.__doc__ or "").partition("\n\nAttributes:")[0]
    return text.replace("``", "`")


def _section_class(owner: type, field: Field[Any]) -> type | None:
    """The dataclass behind a key; None for a plain value."""
    hint = get_type_hints(owner)[field.name]
    candidates = [hint, *get_args(hint)]
    return next(
        (each for each in candidates if isinstance(each, type) and is_dataclass(each)), None
    )


def _is_list(owner: type, field: Field[Any]) -> bool:
    return get_origin(get_type_hints(owner)[field.name]) is tuple
