"""Where does a study keep what it makes, and which runs belong to it?

runs_dir/NAME/study.json        what decides its results, its base included, and its runs by seed
              configs/          the experiment file of every seed
              logs/             what each run said
              report.html, results.csv, results.json, figures/
runs_dir/NAME-s0, NAME-s1 ...   its runs, each a run like any other
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from orchestrator.config import LoadedConfig, config_differences, config_tree
from orchestrator.drift import FREE, what_decides
from orchestrator.errors import DriftError, StoreError
from orchestrator.report.inputs import read_config
from orchestrator.runs import find_run
from orchestrator.store import RunStore
from orchestrator.study.config import Study, is_study, load_study
from orchestrator.yaml_source import read_yaml
from solvers.atomic import write_atomically

SCHEMA = "study-plan/1"
PLAN = "study.json"


@dataclass(frozen=True, kw_only=True, slots=True)
class StudyStore:
    """The folder of a study.

    Attributes:
        name: of the study.
        runs_dir: where it and its runs are.
        runs: seed -> name of its run.
        said: what its own file says about its results.
        shared: what decides the results of every run; None in a plan of before this was kept.
    """

    name: str
    runs_dir: Path
    runs: Mapping[int, str]
    said: Mapping[str, Any]
    shared: Mapping[str, Any] | None = None

    @property
    def root(self) -> Path:
        """Its folder."""
        return self.runs_dir / self.name

    def config_path(self, seed: int) -> Path:
        """Experiment file of one seed."""
        return self.root / "configs" / f"seed-{seed}.yaml"

    def log_path(self, seed: int) -> Path:
        """What the run of one seed said."""
        return self.root / "logs" / f"seed-{seed}.log"

    @property
    def stop_path(self) -> Path:
        """Its runs stop at the next checkpoint when this file is there."""
        return self.root / "stop-requested"

    def store(self, seed: int) -> RunStore:
        """The run of one seed."""
        return RunStore(self.runs_dir, self.runs[seed])


def study_folder(study: Study) -> Path:
    """Where a study goes.

    Raises:
        StoreError: a run of an experiment has the name.
    """
    runs_dir = Path(study.runs_dir).expanduser().resolve()
    if RunStore(runs_dir, study.name).exists():
        raise StoreError(
            f"{study.name!r} is a run, not a study", str(runs_dir / study.name),
            todo="give the study another name",
        )  # fmt: skip
    return runs_dir / study.name


def keep_study(study: Study, experiments: Mapping[int, tuple[str, LoadedConfig]]) -> StudyStore:
    """Write the plan and the experiment files of a study, or add seeds to one that exists.

    For whoever holds the study's lock: another start of it reads these files.

    Args:
        study: what was asked for.
        experiments: seed -> experiment file and configuration.

    Raises:
        DriftError: a study of that name had other methods, budgets or settings, or its runs were
            made from another base.
        StoreError: a run of an experiment has the name.
    """
    folder = study_folder(study)
    runs_dir = folder.parent
    before = read_study(runs_dir, study.name)
    said = json.loads(json.dumps(study.to_json()))
    shared = next(
        (_shared(config_tree(own.config)) for _, own in experiments.values()),
        None if before is None else before.shared,
    )
    was, now = _deciding(said if before is None else before.said), _deciding(said)
    if before is not None and was != now:
        changed = [key for key in now if was.get(key) != now[key]]
        raise _drift(before, f"other {', '.join(changed)}")
    if before is not None and shared is not None:
        changed = list(config_differences(_made_with(before) or shared, shared))
        if changed:
            raise _drift(before, f"another base (now {study.base}):\n    " + "\n    ".join(changed))
    runs = {} if before is None else dict(before.runs)
    runs |= {seed: study.run_name(seed) for seed in study.seeds}
    store = StudyStore(name=study.name, runs_dir=runs_dir, runs=runs, said=said, shared=shared)
    for seed, (text, _) in experiments.items():
        write_atomically(store.config_path(seed), text)
    listed = [{"seed": seed, "run": name} for seed, name in sorted(runs.items())]
    body = {"schema": SCHEMA, "study": said, "shared": shared, "runs": listed}
    write_atomically(store.root / PLAN, json.dumps(body, indent=1) + "\n")
    return store


def _deciding(said: Mapping[str, Any]) -> dict[str, Any]:
    """Without the sections that say how and where: a study may go on with other resources."""
    settings = {k: v for k, v in (said.get("settings") or {}).items() if k not in FREE}
    return {**said, "settings": settings}


def _shared(tree: Mapping[str, Any]) -> dict[str, Any]:
    """What decides the results of every run of a study: its seeds differ in name and seed."""
    shared = {k: v for k, v in what_decides(tree).items() if k not in ("name", "seed")}
    return dict(json.loads(json.dumps(shared)))  # as it will be read back


def _made_with(study: StudyStore) -> Mapping[str, Any] | None:
    """What its runs were made with; None when there is no run yet, or none that says it.

    A study without a run may still be corrected: nothing was made with what it said.
    """
    runs = [run for run in map(study.store, sorted(study.runs)) if run.exists()]
    if runs and study.shared is not None:
        return study.shared
    stored = (run.config_path for run in runs if run.config_path.is_file())
    return next((_shared(read_yaml(path).tree) for path in stored), None)


def _drift(before: StudyStore, what: str) -> DriftError:
    return DriftError(
        f"study {before.name!r} was made with {what}",
        str(before.root / PLAN),
        "results of two studies must not stand under one name; only seeds may be added",
        "undo the change, or give the study another name and --reuse what the first finished",
    )


def read_study(runs_dir: Path, name: str) -> StudyStore | None:
    """A study that exists, or None.

    Raises:
        StoreError: its plan is damaged or of another version.
    """
    path = runs_dir / name / PLAN
    if not path.is_file():
        return None
    try:
        body = json.loads(path.read_text())
        if body["schema"] != SCHEMA:
            raise StoreError(
                f"the study has schema {body['schema']!r}", str(path),
                f"this version reads {SCHEMA!r}", "open it with the version that wrote it",
            )  # fmt: skip
        return StudyStore(
            name=name,
            runs_dir=runs_dir,
            runs={int(each["seed"]): str(each["run"]) for each in body["runs"]},
            said=dict(body["study"]),
            shared=None if (shared := body.get("shared")) is None else dict(shared),
        )
    except (ValueError, KeyError, TypeError) as error:
        raise StoreError("the study's plan is damaged", str(path), str(error)) from error


def find_study(text: str, runs_dir: str) -> StudyStore | None:
    """The study that a user means: a name in ``runs_dir``, its folder, or its file; or None.

    Raises:
        StoreError: its file is there, but nothing was run yet.
    """
    path = Path(text)
    if path.suffix in (".yaml", ".yml") and path.is_file():
        if not is_study(path):
            return None
        study = load_study(path)
        found = read_study(Path(study.runs_dir).expanduser().resolve(), study.name)
        if found is None:
            raise StoreError(f"study {study.name!r} was not started", str(path),
                             todo=f"start it with: mpq study {text}")  # fmt: skip
        return found
    if (path / PLAN).is_file():
        return read_study(path.resolve().parent, path.resolve().name)
    if "/" in text:
        return None
    return read_study(Path(runs_dir).expanduser().resolve(), text)


def find_runs(text: str, runs_dir: str) -> list[RunStore]:
    """The runs that a user means: those of a study, or one run.

    Raises:
        StoreError: there is neither.
    """
    study = find_study(text, runs_dir)
    if study is None:
        return [find_run(text, runs_dir)]
    return [study.store(seed) for seed in sorted(study.runs)]


def seeds_of(stores: Sequence[RunStore]) -> dict[int, str]:
    """Seed -> name of the runs that a person calls seeds of one study.

    Raises:
        StoreError: two runs have one name or one seed, or a configuration cannot be read.
    """
    found: dict[int, str] = {}
    parsed: dict[str, dict[str, Any]] = {}
    for store in stores:
        lacks: list[str] = []
        seed = read_config(store, lacks, parsed).get("seed")
        if not isinstance(seed, int):
            raise StoreError(f"run {store.name!r} says no seed", str(store.config_path),
                             "; ".join(lacks))  # fmt: skip
        if seed in found or store.name in found.values():
            raise StoreError(
                f"runs {found.get(seed, store.name)!r} and {store.name!r} have the same seed or "
                "name", str(store.root), "a study's runs differ in their seed and in nothing else",
                "compare them with: mpq compare",
            )  # fmt: skip
        found[seed] = store.name
    return found
