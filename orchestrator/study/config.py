"""What is a study? Methods x budgets x seeds on one network: a file of schema ``study/1``.

    schema: study/1
    name: study_digits
    base: quickstart.yaml             # the experiment that everything else is taken from
    seeds: [0, 1, 2]                  # one run each: its network, indicators and search are its own
    methods: [limpq, uniform, random, hawq_v2]
    budgets:
      - {bitops_level: 3x3}
    settings:                         # sections laid over those of the base
      train: {epochs: 4}

A method is ``limpq``, ``metamix``, a control, or a source; settings of a source that is among the
methods stand in ``settings.sources``. All methods and budgets of one seed are one run, so that they
share its full-precision network, its indicators and its trainings of equal bits. docs/studies.md
has every key and what becomes of it.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, get_args

from orchestrator.config import KnownNames, LoadedConfig, is_study_tree, load_config
from orchestrator.config_problems import Places
from orchestrator.config_schema import Control
from orchestrator.config_types import NAME_PATTERN, NAME_RULE
from orchestrator.errors import ConfigError, ConfigProblem
from orchestrator.yaml_source import KeyPath, YamlSource, dump_yaml, read_yaml
from trainers.sources import SOURCES

SCHEMA = "study/1"
_SEARCHES = ("limpq", "metamix")
KEYS = ("schema", "name", "base", "seeds", "methods", "budgets", "settings", "runs_dir")
_NEEDED = ("name", "base", "seeds", "methods", "budgets")
# Looked into while an experiment is made, before anything checks it.
_SECTIONS = ("search", "tracking", "sources")
# Said by the study, so saying it again in ``settings`` could only contradict it.
_SAID_ELSEWHERE = ("schema", "name", "seed", "method", "controls", "runs_dir")


@dataclass(frozen=True, kw_only=True, slots=True)
class Study:
    """A checked study.

    Attributes:
        name: its folder is ``runs_dir/name``; its runs are ``name-s<seed>``.
        path: the file as the user gave it.
        base: file of the experiment it starts from.
        seeds: one run each.
        methods: in the order of the file.
        budgets: limit sets.
        settings: sections laid over the base's.
        runs_dir: where run folders are made.
    """

    name: str
    path: Path
    base: Path
    seeds: tuple[int, ...]
    methods: tuple[str, ...]
    budgets: tuple[Mapping[str, Any], ...]
    settings: Mapping[str, Any] = field(default_factory=dict)
    runs_dir: str = "runs"

    def run_name(self, seed: int) -> str:
        """Name of the run of one seed."""
        return f"{self.name}-s{seed}"

    def to_json(self) -> dict[str, Any]:
        """What its own file says about its results, seeds apart: a study may get more of them."""
        return {
            "name": self.name,
            "methods": list(self.methods),
            "budgets": [dict(each) for each in self.budgets],
            "settings": dict(self.settings),
        }


def known_methods() -> tuple[str, ...]:
    """Every name that may stand in ``methods``."""
    return tuple(
        dict.fromkeys((*_SEARCHES, *get_args(Control), *(source.name for source in SOURCES)))
    )


def load_study(path: str | Path, runs_dir: str | None = None) -> Study:
    """Read and check a study file; the experiments that it makes are checked by ``expand``.

    Args:
        path: the YAML file.
        runs_dir: in place of the file's.

    Raises:
        ConfigError: everything that is wrong.
    """
    source = read_yaml(path)
    tree = source.tree
    if not isinstance(tree, dict):
        raise ConfigError((_Checker(source, {}).at((), "no sections", f"schema: {SCHEMA}"),))
    checker = _Checker(source, tree)
    if str(tree.get("schema", "")).startswith("experiment/"):
        # Nearly every key of it would be unknown.
        found = f"{tree['schema']!r}: this is an experiment"
        hint = f"run it with: mpq run {path}"
        raise ConfigError((checker.at(("schema",), found, f"'{SCHEMA}'", hint),))
    problems = [*source.problems, *checker.problems()]
    if problems:
        raise ConfigError(tuple(problems))
    return Study(
        name=tree["name"],
        path=Path(path),
        base=Path(path).parent / tree["base"],
        seeds=tuple(tree["seeds"]),
        methods=tuple(tree["methods"]),
        budgets=tuple(tree["budgets"]),
        settings=tree.get("settings") or {},
        runs_dir=runs_dir or tree.get("runs_dir") or "runs",
    )


def is_study(path: str | Path) -> bool:
    """Whether a file says that it is a study; one that cannot be read is none."""
    try:
        tree = read_yaml(path).tree
    except ConfigError:
        return False
    return is_study_tree(tree)


def experiment_tree(study: Study, base: Mapping[str, Any], seed: int) -> dict[str, Any]:
    """The experiment of one seed, as a tree; pure."""
    tree = _laid_over(copy.deepcopy(dict(base)), study.settings)
    method = next((m for m in reversed(_SEARCHES) if m in study.methods), "uniform")
    sources = tree.get("sources") or {}
    search = {**(tree.get("search") or {}), "limits": [dict(b) for b in study.budgets]}
    search.pop("train_limits", None)
    tracking = {"experiment": study.name, **(tree.get("tracking") or {})}
    controls = [m for m in study.methods if m in get_args(Control) and m != method]
    return {
        **tree,
        "schema": "experiment/1",
        "name": study.run_name(seed),
        "seed": seed,
        "runs_dir": study.runs_dir,
        "method": method,
        "controls": controls,
        "sources": {s.name: sources.get(s.name) or {} for s in SOURCES if s.name in study.methods},
        "search": search,
        "tracking": tracking,
    }


def expand(study: Study, names: KnownNames | None = None) -> dict[int, tuple[str, LoadedConfig]]:
    """Seed -> text of its experiment file, and the checked configuration.

    Raises:
        ConfigError: the base, or what the study makes of it, is no experiment.
    """
    source = read_yaml(study.base)
    base = source.tree
    if not isinstance(base, dict) or is_study_tree(base):
        shown = "a study" if isinstance(base, dict) else "no sections"
        found = ConfigProblem(file=str(study.base), line=1, key="(file)", found=shown,
                              allowed="an experiment, as the base of a study")  # fmt: skip
        raise ConfigError((found,))
    wrong = [*source.problems, *_Checker(source, base).sections((), base)]
    if wrong:
        raise ConfigError(tuple(wrong))
    experiments: dict[int, tuple[str, LoadedConfig]] = {}
    with TemporaryDirectory() as folder:
        path = Path(folder) / "experiment.yaml"
        for seed in study.seeds:
            text = dump_yaml(experiment_tree(study, base, seed))
            path.write_text(text)
            try:
                experiments[seed] = text, load_config(path, (), names)
            except ConfigError as error:
                # The lines are those of a file that nobody wrote.
                where = f"{study.path} over {study.base}, seed {seed}"
                told = tuple(replace(p, file=where, line=None) for p in error.problems)
                raise ConfigError(told) from error
    return experiments


def _laid_over(tree: dict[str, Any], settings: Mapping[str, Any]) -> dict[str, Any]:
    for key, value in settings.items():
        if isinstance(value, Mapping) and isinstance(tree.get(key), dict):
            tree[key] = _laid_over(tree[key], value)
        else:
            tree[key] = copy.deepcopy(value)
    return tree


@dataclass(frozen=True, slots=True)
class _Checker:
    """What is wrong with a study's own keys."""

    source: YamlSource
    tree: Mapping[str, Any]

    def at(self, path: KeyPath, found: str, allowed: str, hint: str = "") -> ConfigProblem:
        places = Places(file=self.source.file, lines=self.source.lines)
        return places.problem(path, found, allowed, hint)

    def problems(self) -> list[ConfigProblem]:
        tree = self.tree
        found = [self.at((key,), "an unknown key", ", ".join(KEYS)) for key in tree
                 if key not in KEYS]  # fmt: skip
        if tree.get("schema") != SCHEMA:
            found.append(self.at(("schema",), repr(tree.get("schema")), f"'{SCHEMA}'"))
        found += [self.at((key,), "missing", "a value") for key in _NEEDED if key not in tree]
        name = tree.get("name", "study")
        if not isinstance(name, str) or not NAME_PATTERN.match(name):
            found.append(self.at(("name",), repr(name), NAME_RULE))
        for key in ("base", "runs_dir"):
            if not isinstance(tree.get(key, "x"), str):
                found.append(self.at((key,), repr(tree[key]), "a path"))
        found += self._list("seeds", "integers from 0 to 2**32 - 1, each once", _is_seed)
        found += self._list("methods", "names of methods, each once", lambda v: isinstance(v, str))
        found += self._list("budgets", "limit sets such as {bitops_level: 3x3}, each once",
                            lambda v: isinstance(v, dict) and bool(v))  # fmt: skip
        known = known_methods()
        for index, method in enumerate(_listed(tree.get("methods"))):
            if isinstance(method, str) and method not in known:
                hint = _hint(method, known)
                found.append(self.at(("methods", index), repr(method), ", ".join(known), hint))
        settings = tree.get("settings") or {}
        if not isinstance(settings, dict):
            found.append(self.at(("settings",), repr(settings), "sections of an experiment"))
        else:
            found += [
                self.at(("settings", key), "said by the study itself", "the other sections")
                for key in settings if key in _SAID_ELSEWHERE
            ]  # fmt: skip
            found += self.sections(("settings",), settings)
        return found

    def sections(self, above: KeyPath, tree: Mapping[str, Any]) -> list[ConfigProblem]:
        """What is wrong with the sections that a study takes from there: no sections, no sources.

        A source that is not among the methods is left out of the experiment, so a misspelt one
        would be missed by the experiment's own check.
        """
        given = {key: tree[key] for key in _SECTIONS if tree.get(key) is not None}
        found = [self.at((*above, key), repr(value), "a section") for key, value in given.items()
                 if not isinstance(value, dict)]  # fmt: skip
        sources, known = given.get("sources"), tuple(source.name for source in SOURCES)
        if isinstance(sources, dict):
            found += [
                self.at((*above, "sources", name), "no source", ", ".join(known),
                        _hint(str(name), known))
                for name in sources if name not in known
            ]  # fmt: skip
        return found

    def _list(self, key: str, allowed: str, fits: Any) -> list[ConfigProblem]:
        if key not in self.tree:
            return []
        values = self.tree[key]
        if not isinstance(values, list) or not values:
            return [self.at((key,), repr(values), allowed)]
        wrong = [i for i, v in enumerate(values) if not fits(v) or v in values[:i]]
        return [self.at((key, i), repr(values[i]), allowed) for i in wrong]


def _hint(name: str, known: Sequence[str]) -> str:
    from difflib import get_close_matches

    near = get_close_matches(name, known, n=2)
    return f"did you mean {' or '.join(near)}?" if near else ""


def _is_seed(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and 0 <= value < 2**32


def _listed(value: object) -> Sequence[object]:
    return value if isinstance(value, list) else ()
