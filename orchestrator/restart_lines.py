"""How does the driver hear of a group's restart from the trial that made it? Through a file.

A trial that launches a worker group may be lost itself, and with it what it would have returned.
So it writes a line for every restart at once, and the driver, which alone writes the journal,
reads it while the trials run.
"""

from __future__ import annotations

import json
from pathlib import Path

from orchestrator.progress import NewLines
from orchestrator.relaunch import Restart

RESTARTS_FILE = "restarts.jsonl"


def add_restart(step_dir: Path, restart: Restart) -> None:
    """Leave a line for the driver."""
    step_dir.mkdir(parents=True, exist_ok=True)
    with (step_dir / RESTARTS_FILE).open("a") as file:
        file.write(json.dumps(restart.to_json()) + "\n")


class RestartLines:
    """The restarts of a step that its trial tells of from now on.

    Args:
        step: its name.
        step_dir: its folder.
    """

    def __init__(self, step: str, step_dir: Path) -> None:
        self._step, self._lines = step, NewLines(step_dir / RESTARTS_FILE)

    def fresh(self) -> list[Restart]:
        """What is new since the last call."""
        return [self._read(line) for line in self._lines.take()]

    def _read(self, line: bytes) -> Restart:
        try:
            return Restart(**json.loads(line))
        except (ValueError, TypeError):
            # As in progress: a full disk tears lines, and the phase that goes on matters more.
            return Restart(
                step=self._step, attempt=0, failure="unknown", wait_s=0.0, num_workers=0,
                reason="a restart whose line was torn (is the disk full?)",
            )  # fmt: skip
