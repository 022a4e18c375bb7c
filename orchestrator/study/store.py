"""Where does a study keep what it makes, and which runs belong to it?

runs_dir/NAME/study.json        what decides its results, and its runs by seed
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

from orchestrator.drift import FREE
from orchestrator.errors import DriftError, StoreError
from orchestrator.report.inputs import read_config
from orchestrator.runs import find_run
from orchestrator.store import RunStore
from orchestrator.study.config import Study, is_study, load_study
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
        said: what decides its results.
    """

    name: str
    runs_dir: Path
    runs: Mapping[int, str]
    said: Mapping[str, Any]

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


def keep_study(study: Study, texts: Mapping[int, str]) -> StudyStore:
    """Write the plan and the experiment files of a study, or add seeds to one that exists.

    Args:
        study: what was asked for.
        texts: experiment file of every seed.

    Raises:
        DriftError: a study of that name had other methods, budgets or settings.
        StoreError: a run of an experiment has the name.
    """
    runs_dir = Path(study.runs_dir).expanduser().resolve()
    if RunStore(runs_dir, study.name).exists():
        raise StoreError(
            f"{study.name!r} is a run, not a study", str(runs_dir / study.name),
            todo="give the study another name",
        )  # fmt: skip
    before = read_study(runs_dir, study.name)
    said = json.loads(json.dumps(study.to_json()))
    was, now = _deciding(said if before is None else before.said), _deciding(said)
    if before is not None and was != now:
        changed = [key for key in now if was.get(key) != now[key]]
        raise DriftError(
            f"study {study.name!r} was made with other {', '.join(changed)}",
            str(before.root / PLAN),
            "results of two studies must not stand under one name; only seeds may be added",
            "undo the change, or give the study another name and --reuse what the first finished",
        )
    runs = {} if before is None else dict(before.runs)
    runs |= {seed: study.run_name(seed) for seed in study.seeds}
    store = StudyStore(name=study.name, runs_dir=runs_dir, runs=runs, said=said)
    for seed, text in texts.items():
        write_atomically(store.config_path(seed), text)
    listed = [{"seed": seed, "run": name} for seed, name in sorted(runs.items())]
    body = {"schema": SCHEMA, "study": said, "runs": listed}
    write_atomically(store.root / PLAN, json.dumps(body, indent=1) + "\n")
    return store


def _deciding(said: Mapping[str, Any]) -> dict[str, Any]:
    """Without the sections that say how and where: a study may go on with other resources."""
    settings = {k: v for k, v in (said.get("settings") or {}).items() if k not in FREE}
    return {**said, "settings": settings}


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
