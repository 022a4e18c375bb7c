"""What exactly was asked for? An experiment file in, one checked ``ExperimentConfig`` out.

Everything from outside is validated here, once, before anything is started, and everything that
is wrong is reported at once: unknown keys, wrong types, values out of range, unknown names,
unreadable files, and settings that contradict each other.
"""

from __future__ import annotations

import json
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any, TypeVar

from pydantic import TypeAdapter, ValidationError

from orchestrator.config_problems import Places, explain
from orchestrator.config_schema import SCHEMA, ExperimentConfig
from orchestrator.contradictions import Contradiction, contradictions
from orchestrator.errors import ConfigError, ConfigProblem
from orchestrator.yaml_source import KeyPath, YamlSource, dotted, dump_yaml, parse_value, read_yaml

OVERRIDE = "--set"
STUDY_SCHEMA = "study/"
_T = TypeVar("_T")


@dataclass(frozen=True, kw_only=True, slots=True)
class KnownNames:
    """Names that exist, brought by the caller so that this file imports neither torch nor Ray.

    Attributes:
        models: networks; None = do not check.
        datasets: data sets; None = do not check.
    """

    models: Collection[str] | None = None
    datasets: Collection[str] | None = None


@dataclass(frozen=True, kw_only=True, slots=True)
class LoadedConfig:
    """A checked configuration and where it came from.

    Attributes:
        config: what was asked for, defaults filled in.
        path: the file as the user gave it.
        overrides: the ``--set`` texts, in order.
    """

    config: ExperimentConfig
    path: Path
    overrides: tuple[str, ...] = ()


def load_config(
    path: str | Path, overrides: Sequence[str] = (), names: KnownNames | None = None
) -> LoadedConfig:
    """Read, override and check one experiment file.

    Args:
        path: the YAML file.
        overrides: ``a.b=value`` texts; later ones win.
        names: names that exist, for checking ``model.name`` and ``data.name``.

    Raises:
        ConfigError: anything is wrong; holds every problem.
    """
    source = read_yaml(path)
    problems = list(source.problems)
    tree = source.tree
    if not isinstance(tree, dict):
        shown = "nothing" if tree is None else type(tree).__name__
        problem = _file_problem(source, f"{shown} instead of sections")
        raise ConfigError((*problems, problem))
    if is_study_tree(tree):
        raise ConfigError((_study_problem(source),))
    overridden: set[KeyPath] = set()
    for text in overrides:
        problems += _apply_override(tree, text, overridden)
    places = Places(file=source.file, lines=source.lines, overridden=frozenset(overridden))
    problems += _schema_problems(tree, places)
    config, found = _validate(tree, places, names or KnownNames())
    problems += found
    if problems or config is None:
        raise ConfigError(tuple(_in_file_order(problems)))
    return LoadedConfig(config=config, path=Path(path), overrides=tuple(overrides))


def is_study_tree(tree: object) -> bool:
    """Whether what a file says is a study, of whatever version, and no experiment."""
    return isinstance(tree, dict) and str(tree.get("schema", "")).startswith(STUDY_SCHEMA)


def config_tree(config: ExperimentConfig) -> dict[str, Any]:
    """The whole configuration, defaults included, as plain JSON-able values."""
    tree = _adapter().dump_python(config, mode="json")
    return {"schema": SCHEMA, **tree}


def dump_config(config: ExperimentConfig) -> str:
    """The resolved configuration as YAML that ``load_config`` reads back to an equal one."""
    return dump_yaml(config_tree(config))


def stored_section(tree: Mapping[str, Any], name: str, kind: type[_T], file: str) -> _T:
    """One section of a run's resolved configuration, checked by itself.

    For those who need no more: other sections may name files that are not here.

    Raises:
        ConfigError: it is missing or wrong.
    """
    if name not in tree:
        problem = ConfigProblem(
            file=file, line=None, key=name, found="nothing", allowed="a section"
        )
        raise ConfigError((problem,))
    try:
        return TypeAdapter(kind).validate_json(json.dumps(tree[name]), strict=True)
    except ValidationError as error:
        raise ConfigError(
            tuple(
                ConfigProblem(
                    file=file, line=None, key=dotted((name, *each["loc"])),
                    found="what another version wrote", allowed=each["msg"],
                )
                for each in error.errors(include_url=False, include_input=False)
            )
        ) from error  # fmt: skip


def config_differences(old: Mapping[str, Any], new: Mapping[str, Any]) -> tuple[str, ...]:
    """Every key in which two ``config_tree`` values differ, as ``key: old -> new`` lines."""
    before, after = _leaves(old, ()), _leaves(new, ())
    lines = []
    for path in sorted({*before, *after}):
        was, now = before.get(path, "(absent)"), after.get(path, "(absent)")
        if was != now:
            lines.append(f"{path}: {was} -> {now}")
    return tuple(lines)


@cache
def _adapter() -> TypeAdapter[ExperimentConfig]:
    return TypeAdapter(ExperimentConfig)


def _validate(
    tree: dict[str, Any], places: Places, names: KnownNames
) -> tuple[ExperimentConfig | None, list[ConfigProblem]]:
    """The configuration if it is valid, and what is wrong with it if not.

    Contradictions between keys are looked for even when single keys are wrong: the wrong ones are
    left out, and a contradiction that would rest on one of them is not reported.
    """
    body = _with_implied(tree)
    context = {"models": names.models, "datasets": names.datasets}
    config, error = _try(body, context)
    if error is None:
        assert config is not None
        return config, [_told(each, places) for each in contradictions(config, body, names.models)]
    problems = explain(error, places)
    wrong = {tuple(e["loc"]) for e in error.errors(include_url=False, include_input=False)}
    partial, _ = _try(_without(body, wrong), {})
    if partial is not None:
        problems += [
            _told(each, places)
            for each in contradictions(partial, body, names.models)
            if not any(each.rests_on(path) for path in wrong)
        ]
    return None, problems


def _told(each: Contradiction, places: Places) -> ConfigProblem:
    return places.problem(each.path, each.found, each.allowed, each.suggestion)


def _try(
    body: dict[str, Any], context: Mapping[str, Any]
) -> tuple[ExperimentConfig | None, ValidationError | None]:
    # Through JSON, because strict validation of Python values refuses mappings for dataclasses;
    # and strict it must be, or true would pass for 1 and "5" for 5.
    try:
        text = json.dumps(body)
        return _adapter().validate_json(text, strict=True, context=dict(context)), None
    except ValidationError as error:
        return None, error


def _with_implied(tree: dict[str, Any]) -> dict[str, Any]:
    """Given weights make pre-training pointless, so its section defaults to null then."""
    body = {key: value for key, value in tree.items() if key != "schema"}
    model = body.get("model")
    if isinstance(model, dict) and model.get("weights") is not None and "pretrain" not in body:
        body["pretrain"] = None
    return body


def _without(body: dict[str, Any], wrong: set[tuple[Any, ...]]) -> dict[str, Any]:
    """A copy with the wrong keys left out; a wrong list entry takes its whole list along."""
    copy: dict[str, Any] = json.loads(json.dumps(body))
    for path in wrong:
        keys = list(path)
        for index, key in enumerate(keys):
            if isinstance(key, int):
                keys = keys[:index]
                break
        node: Any = copy
        for key in keys[:-1]:
            node = node.get(key) if isinstance(node, dict) else None
        if isinstance(node, dict) and keys:
            node.pop(keys[-1], None)
    # Keys without a default get any value that passes: their own fault is already on the list.
    copy.setdefault("name", "unnamed")
    for section in ("model", "data"):
        copy.setdefault(section, {}).setdefault("name", "unnamed")
    return copy


def _schema_problems(tree: Mapping[str, Any], places: Places) -> list[ConfigProblem]:
    found = tree.get("schema")
    if found == SCHEMA:
        return []
    shown = "no such key" if "schema" not in tree else repr(found)
    return [places.problem(("schema",), shown, f"'{SCHEMA}', as the first line", "")]


def _apply_override(tree: dict[str, Any], text: str, done: set[KeyPath]) -> list[ConfigProblem]:
    """Put one ``a.b=value`` into the tree; a fault is returned, not raised."""
    dotted_key, equals, value_text = text.partition("=")
    parts = [part.strip() for part in dotted_key.split(".")]
    if not equals or not all(parts):
        return [_override_problem(text, repr(text), "a.b=value")]
    try:
        value = parse_value(value_text, OVERRIDE)
    except ConfigError as error:
        return [_override_problem(dotted_key, p.found, p.allowed) for p in error.problems]
    node: Any = tree
    path: list[str | int] = []
    for index, part in enumerate(parts):
        key: str | int = part
        if isinstance(node, list):
            if not part.isdecimal() or int(part) >= len(node):
                allowed = f"an index from 0 to {len(node) - 1}"
                return [_override_problem(dotted_key, f"{part!r} in a list", allowed)]
            key = int(part)
        elif not isinstance(node, dict):
            return [_override_problem(dotted_key, f"a value at {part!r}", "a key of a section")]
        path.append(key)
        if index == len(parts) - 1:
            node[key] = value
        elif isinstance(node, dict) and node.get(part) is None:
            node[part] = node = {}
        else:
            node = node[key]
    done.add(tuple(path))
    return []


def _override_problem(key: str, found: str, allowed: str) -> ConfigProblem:
    return ConfigProblem(file=OVERRIDE, line=None, key=key, found=found, allowed=allowed)


def _file_problem(source: YamlSource, found: str) -> ConfigProblem:
    allowed = f"sections as keys, the first being 'schema: {SCHEMA}'"
    return ConfigProblem(file=source.file, line=1, key="(file)", found=found, allowed=allowed)


def _study_problem(source: YamlSource) -> ConfigProblem:
    """The one thing to know of a study given as an experiment: its keys would all be unknown."""
    return ConfigProblem(
        file=source.file,
        line=source.lines.get(("schema",)),
        key="schema",
        found=f"{source.tree['schema']!r}: this is a study",
        allowed=f"'{SCHEMA}', an experiment",
        suggestion=f"run it with: mpq study {source.file}; --plan says what it would do",
    )


def _in_file_order(problems: list[ConfigProblem]) -> list[ConfigProblem]:
    return sorted(problems, key=lambda p: (p.line is None, p.line or 0, p.key))


def _leaves(value: Any, path: tuple[str, ...]) -> dict[str, str]:
    if isinstance(value, Mapping) and value:
        merged: dict[str, str] = {}
        for key in value:
            merged.update(_leaves(value[key], (*path, str(key))))
        return merged
    return {".".join(path): json.dumps(value, sort_keys=True)}
