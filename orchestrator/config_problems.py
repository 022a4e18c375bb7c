"""How is a validator's complaint told to a person? With line, key, finding, rule and near names."""

from __future__ import annotations

import difflib
import re
import types
import typing
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, fields, is_dataclass
from functools import cache
from typing import Any, get_args, get_origin, get_type_hints

from pydantic import ValidationError

from orchestrator.config_schema import ExperimentConfig
from orchestrator.errors import ConfigProblem
from orchestrator.redact import redacted_text
from orchestrator.yaml_source import KeyPath, dotted

_MAX_SHOWN_CHARS = 80
_MAX_LISTED_NAMES = 12
_LOOKS_LIKE_NUMBER = re.compile(r"\s*[-+]?[0-9.]+([eE][-+]?[0-9]+)?\s*\Z")


@dataclass(frozen=True, kw_only=True, slots=True)
class Places:
    """Where each key of one configuration stands.

    Attributes:
        file: the file's name in messages.
        lines: line of every key path of the file.
        overridden: key paths that ``--set`` put there.
    """

    file: str
    lines: Mapping[KeyPath, int]
    overridden: frozenset[KeyPath] = frozenset()

    def problem(self, path: KeyPath, found: str, allowed: str, suggestion: str) -> ConfigProblem:
        """A problem at ``path``, or at the nearest key above it that stands in the file."""
        file, line = self.file, None
        if any(path[: len(o)] == o for o in self.overridden):
            file = "--set"
        else:
            line = next(
                (self.lines[path[:n]] for n in range(len(path), -1, -1) if path[:n] in self.lines),
                None,
            )
        return ConfigProblem(
            file=file,
            line=line,
            key=dotted(path),
            found=found,
            allowed=allowed,
            suggestion=suggestion,
        )


def explain(error: ValidationError, places: Places) -> list[ConfigProblem]:
    """Every complaint of the validator as one problem each."""
    problems = []
    complaints = error.errors(include_url=False)
    wrong = [tuple(each["loc"]) for each in complaints]
    for each in complaints:
        path = tuple(each["loc"])
        # The validator counts only sound entries, and calls a list of wrong ones too short.
        if each["type"] == "too_short" and any(w[:-1] == path for w in wrong):
            continue
        found = _shown(each["input"])
        context = each.get("ctx", {})
        kind = each["type"]
        suggestion = ""
        if kind == "unexpected_keyword_argument":
            allowed_keys = _keys_at(path[:-1])
            found = f"the unknown key {str(path[-1])!r}"
            allowed = _listed(allowed_keys)
            suggestion = near(str(path[-1]), allowed_keys) or _elsewhere(str(path[-1]))
        elif kind == "missing":
            found, allowed = "nothing", "a value; this key has no default"
        elif kind == "mpq_name":
            names = context["names"]
            allowed = f"one of the {context['kind']} {_listed(names)}"
            suggestion = near(str(each["input"]), names)
        elif kind == "literal_error":
            allowed = context["expected"]
            suggestion = near(str(each["input"]), re.findall(r"'([^']*)'", allowed))
        elif kind in ("dataclass_type", "dataclass_exact_type"):
            allowed = f"a section with keys {_listed(_keys_at(path))}"
        else:
            allowed = _rule(kind, context, each["msg"])
            suggestion = _number_hint(kind, each["input"])
        problems.append(places.problem(path, found, allowed, suggestion))
    return problems


def near(found: str, names: Iterable[str]) -> str:
    """``did you mean x?`` for the names close to what was found, else an empty text."""
    close = difflib.get_close_matches(found, list(names), n=3, cutoff=0.6)
    return f"did you mean {' or '.join(close)}?" if close else ""


def _rule(kind: str, context: Mapping[str, Any], message: str) -> str:
    """The validator's rule as a noun phrase."""
    plain = {
        "int_type": "a whole number",
        "int_from_float": "a whole number",
        "float_type": "a number",
        "finite_number": "a finite number",
        "bool_type": "true or false",
        "string_type": "text",
        "tuple_type": "a list",
        "mapping_type": "keys with values",
        "dict_type": "keys with values",
    }
    if kind in plain:
        return plain[kind]
    bounds = {
        "greater_than_equal": "{ge} or more",
        "greater_than": "more than {gt}",
        "less_than_equal": "{le} or less",
        "less_than": "less than {lt}",
    }
    if kind in bounds:
        return bounds[kind].format(**context)
    if kind in ("too_short", "string_too_short"):
        return f"at least {context.get('min_length')} entry or character"
    return message.removeprefix("Input should be ").removeprefix("Value error, ")


def _number_hint(kind: str, found: Any) -> str:
    if (
        isinstance(found, str)
        and _LOOKS_LIKE_NUMBER.match(found)
        and kind.startswith(("int", "fl"))
    ):
        return "write the number without quotes"
    if isinstance(found, float) and found.is_integer() and kind.startswith("int"):
        return f"write {int(found)}"
    if kind == "string_type" and isinstance(found, (int, float)):
        return "put it in quotes"
    return ""


def _shown(value: Any) -> str:
    text = repr(value) if not isinstance(value, bool) and value is not None else (
        {True: "true", False: "false", None: "null"}[value]
    )  # fmt: skip
    if isinstance(value, dict):
        text = f"keys {_listed(value)}" if value else "an empty section"
    text = redacted_text(text)  # a URI may carry a password
    return text if len(text) <= _MAX_SHOWN_CHARS else text[: _MAX_SHOWN_CHARS - 3] + "..."


def _listed(names: Iterable[str]) -> str:
    every = list(names)
    shown = ", ".join(every[:_MAX_LISTED_NAMES])
    more = len(every) - _MAX_LISTED_NAMES
    return f"{shown} and {more} more" if more > 0 else shown


def _keys_at(path: tuple[str | int, ...]) -> tuple[str, ...]:
    """The keys of the section at ``path``; empty where there is no section."""
    kind: Any = ExperimentConfig
    for part in path:
        kind = _inside(kind, part)
    kind = _section(kind)
    keys = tuple(f.name for f in fields(kind)) if is_dataclass(kind) else ()
    return ("schema", *keys) if kind is ExperimentConfig else keys


def _inside(kind: Any, part: str | int) -> Any:
    kind = _section(kind)
    if is_dataclass(kind):
        return get_type_hints(kind).get(str(part))
    arguments = get_args(kind)
    return arguments[0] if isinstance(part, int) and arguments else None


def _section(kind: Any) -> Any:
    """``X | None`` as ``X``."""
    if get_origin(kind) in (types.UnionType, typing.Union):
        return next((a for a in get_args(kind) if a is not type(None)), None)
    return kind


@cache
def _all_keys() -> Mapping[str, tuple[str, ...]]:
    """Key -> every section of the configuration that has it."""
    homes: dict[str, list[str]] = {}
    for top in fields(ExperimentConfig):
        for key in _keys_at((top.name,)):
            homes.setdefault(key, []).append(f"{top.name}.{key}")
    return {key: tuple(places) for key, places in homes.items()}


def _elsewhere(key: str) -> str:
    places = _all_keys().get(key, ())
    return f"did you mean {' or '.join(places)}?" if places else ""
