"""Which finished steps of other runs are this run's too, and how are they taken over?

A step's key is a hash of everything that decides its result, so an equal key in another run's
folder is the same result. Its outputs are verified there, linked (copied where the file system
cannot link) and verified here. Outputs are replaced whole, never written in place, so two runs can
share a file.
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from orchestrator.leftovers import sha256_of
from orchestrator.records import RunRecord
from orchestrator.store import RECORD, RunStore
from solvers.atomic import TEMPORARY, write_atomically

# Beside a step's outputs: the key they were made under.
KEY_FILE = "key"


def take_over(store: RunStore, donors: tuple[RunStore, ...], step: str, key: str) -> str:
    """Link a finished step of the first donor that has it, with its record.

    Args:
        store: the run that lacks the step.
        donors: runs to look in.
        step: its name.
        key: what it must have been made from.

    Returns:
        The donor's name; empty when none has it.
    """
    for donor in donors:
        record = _link(store, donor, step, key)
        if record is not None:
            facts = {**record.facts, "reused_from": donor.name}
            store.finish_step(step, replace(record, run=store.name, facts=facts))
            return donor.name
    return ""


def take_over_files(
    store: RunStore, donors: tuple[RunStore, ...], step: str, key: str
) -> str:  # fmt: skip
    """The same without the record: who calls makes one of its own from the result."""
    return next((d.name for d in donors if _link(store, d, step, key) is not None), "")


def _link(store: RunStore, donor: RunStore, step: str, key: str) -> RunRecord | None:
    """The donor's record after its outputs are here; None when it has no such step."""
    record = donor.finished(step, key).record
    if record is None:
        return None
    files: Mapping[str, Mapping[str, Any]] = json.loads(
        (donor.step_dir(step) / RECORD).read_text()
    )["files"]
    for relative, facts in files.items():
        target = store.root / relative
        _place(donor.root / relative, target)
        if sha256_of(target) != facts["sha256"]:
            target.unlink()
            return None  # the donor was at work on it in between
    write_atomically(store.step_dir(step) / KEY_FILE, key)
    return record


def _place(source: Path, target: Path) -> None:
    """The file under another name, whole or not at all."""
    target.parent.mkdir(parents=True, exist_ok=True)
    temporary = target.with_name(f"{TEMPORARY}{target.name}")
    temporary.unlink(missing_ok=True)
    try:
        os.link(source, temporary)
    except OSError:  # another file system, or one without links
        shutil.copyfile(source, temporary)
    os.replace(temporary, target)
    temporary.unlink(missing_ok=True)  # replacing a link by the same file leaves both names
