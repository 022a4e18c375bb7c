"""Where does a run keep what it made, and how does it know that it is still good?

    runs_dir/name/config.yaml       the resolved configuration
                  journal.jsonl     the truth
                  lock              who is running it
                  steps/STEP/...    outputs of a step, and record.json, written last
                  runs.parquet, report.md, figures/

``record.json`` holds the step's ``RunRecord`` and a manifest with size and SHA-256 of every
output. A step counts as finished only if its record carries the expected key and every output
still matches; anything else is done again.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from orchestrator.config_types import NAME_PATTERN, NAME_RULE
from orchestrator.errors import StoreError
from orchestrator.journal import Journal
from orchestrator.leftovers import sha256_of, sweep_temporaries
from orchestrator.lock import RunLock
from orchestrator.records import RunRecord
from solvers.atomic import flush_folder, write_atomically

RECORD = "record.json"
_MANIFEST_SCHEMA = "step/1"


@dataclass(frozen=True, kw_only=True, slots=True)
class Verdict:
    """Whether a step is finished.

    Attributes:
        record: its record when everything verifies, else None.
        reason: why it is not finished, for the user; empty when it is.
        damaged: whether there was a matching record whose outputs do not verify.
    """

    record: RunRecord | None
    reason: str = ""
    damaged: bool = False


class RunStore:
    """The folder of one run. Makes nothing until it is opened for writing.

    Attributes:
        before_write: raises ``LockedError`` where the run was opened and then lost to another
            process; for whoever is about to write or remove something for good.
    """

    def __init__(self, runs_dir: str | Path, name: str) -> None:
        """Point at a run.

        Raises:
            StoreError: the name is none, or leads out of ``runs_dir``.
        """
        _check_part(name, "run name")
        self.name = name
        self.runs_dir = Path(runs_dir).expanduser().resolve()
        self.root = self.runs_dir / name
        self._hide: Callable[[Any], Any] = lambda value: value
        self.before_write: Callable[[], None] = _allow
        if self.root.is_symlink():
            raise StoreError("a run folder must not be a link", str(self.root))

    @property
    def config_path(self) -> Path:
        """The resolved configuration."""
        return self.root / "config.yaml"

    @property
    def journal_path(self) -> Path:
        """The journal."""
        return self.root / "journal.jsonl"

    @property
    def lock_path(self) -> Path:
        """The lock file."""
        return self.root / "lock"

    @property
    def table_path(self) -> Path:
        """All records as a table."""
        return self.root / "runs.parquet"

    @property
    def report_path(self) -> Path:
        """The report."""
        return self.root / "report.md"

    @property
    def log_path(self) -> Path:
        """What the driver told the person who waited, attempt after attempt."""
        return self.root / "driver.log"

    @property
    def figures_dir(self) -> Path:
        """Where figures go."""
        return self.root / "figures"

    def exists(self) -> bool:
        """Whether there is such a run."""
        return self.journal_path.is_file()

    @contextmanager
    def opened(self, hide: Callable[[Any], Any] = lambda value: value) -> Iterator[Journal]:
        """Hold the run for writing: folder, lock, swept leftovers, open journal.

        Args:
            hide: takes secrets out of what is written about the run.

        Raises:
            LockedError: another process runs it, or took it over meanwhile.
            StoreError: its journal is damaged.
        """
        (self.root / "steps").mkdir(parents=True, exist_ok=True)
        self._hide = hide
        with RunLock(self.lock_path) as lock:
            num_swept = sweep_temporaries(self.root)
            with Journal(self.journal_path, hide, lock.check) as journal:
                journal.notices += lock.notices
                if lock.notices:
                    journal.event("lock_taken_over", {"notices": list(lock.notices)})
                if num_swept:
                    journal.notices += (f"store: swept {num_swept} unfinished temporary files",)
                self.before_write = lock.check
                try:
                    yield journal
                finally:
                    self.before_write = _allow

    def step_dir(self, step: str) -> Path:
        """The folder of a step, e.g. ``indicators`` or ``train/3f2a9c81d0e4``.

        Raises:
            StoreError: a part of the name could lead out of the run folder.
        """
        for part in step.split("/"):
            _check_part(part, "step name")
        path = self.root / "steps" / step
        if not path.resolve().is_relative_to(self.root):
            raise StoreError("a step leads out of its run folder", str(path))
        return path

    def relative(self, path: Path) -> str:
        """A path below the run folder as records write it."""
        return path.resolve().relative_to(self.root).as_posix()

    def finish_step(self, step: str, record: RunRecord) -> None:
        """Hash the outputs and write ``record.json``: from here on the step is done.

        Raises:
            StoreError: an output is missing, a link, or outside the run folder.
            LockedError: another process took the run over.
        """
        folder = self.step_dir(step)
        manifest = {}
        for role, relative in sorted(record.outputs.items()):
            for path in _files_of(self._contained(relative, role)):
                facts = {"size_bytes": path.stat().st_size, "sha256": sha256_of(path)}
                manifest[self.relative(path)] = facts
        body = {
            "schema": _MANIFEST_SCHEMA,
            "record": self._hide(record.to_json()),
            "files": manifest,
        }
        self.before_write()
        write_atomically(folder / RECORD, json.dumps(body, indent=1, allow_nan=False) + "\n")
        flush_folder(folder.parent)

    def finished(self, step: str, key: str) -> Verdict:
        """Whether the step is done under this key, and its outputs are what they were."""
        path = self.step_dir(step) / RECORD
        if not path.is_file():
            return Verdict(record=None, reason="not done yet")
        try:
            body = json.loads(path.read_text())
            if body["schema"] != _MANIFEST_SCHEMA:
                raise StoreError("another version", str(path), f"schema {body['schema']!r}")
            record = RunRecord.from_json(body["record"])
            files: Mapping[str, Mapping[str, Any]] = body["files"]
        except (OSError, ValueError, KeyError, TypeError, StoreError) as error:
            reason = f"its record cannot be read ({str(error).splitlines()[0]})"
            return Verdict(record=None, reason=reason, damaged=True)
        if record.key != key:
            return Verdict(record=None, reason="its configuration or inputs changed")
        if not record.state.final:
            return Verdict(record=None, reason=f"it ended {record.state}")
        for relative, facts in files.items():
            fault = self._fault(relative, facts)
            if fault:
                return Verdict(record=None, reason=f"{relative} {fault}", damaged=True)
        return Verdict(record=record)

    def _fault(self, relative: str, facts: Mapping[str, Any]) -> str:
        try:
            path = self._contained(relative, "output")
        except StoreError as error:
            return f"is no good: {error.what}"
        if path.stat().st_size != facts.get("size_bytes"):
            return "has another size than when it was written"
        if sha256_of(path) != facts.get("sha256"):
            return "has another content than when it was written"
        return ""

    def _contained(self, relative: str, role: str) -> Path:
        path = self.root / relative
        if path.is_symlink() or not path.resolve().is_relative_to(self.root):
            raise StoreError(f"output {role!r} is a link or outside the run folder", relative)
        if not path.exists():
            raise StoreError(f"output {role!r} is missing", str(path))
        return path


def list_runs(runs_dir: str | Path) -> tuple[str, ...]:
    """Names of the runs in a folder."""
    root = Path(runs_dir).expanduser()
    if not root.is_dir():
        return ()
    return tuple(
        sorted(
            p.name
            for p in root.iterdir()
            if NAME_PATTERN.match(p.name) and (p / "journal.jsonl").is_file()
        )
    )


def _allow() -> None:
    """Nobody holds the run, so it cannot have been lost."""


def _files_of(path: Path) -> Iterator[Path]:
    """The file itself, or every file of a folder."""
    if path.is_dir():
        yield from sorted(p for p in path.rglob("*") if p.is_file() and not p.is_symlink())
    else:
        yield path


def _check_part(part: str, what: str) -> None:
    if not NAME_PATTERN.match(part):
        raise StoreError(f"{part!r} is no {what}", why=f"allowed: {NAME_RULE}")
