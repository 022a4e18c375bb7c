"""How do the driver and the workers of a step talk, besides the step's results? Through files.

Numbers reported to Ray do not reach a driver that waits in ``fit``, and files also answer
``mpq status`` when no cluster is alive. Progress is for people: nothing reads a result from it.
"""

from __future__ import annotations

import json
import time
from collections.abc import Mapping
from pathlib import Path

PROGRESS_FILE = "progress.jsonl"
STOP_FILE = "stop-requested"
# A look at a file on shared storage costs milliseconds; a small update takes ten.
_LOOK_EVERY_S = 1.0


def append_progress(step_dir: Path, metrics: Mapping[str, float]) -> None:
    """Add one line; called by rank 0 once an epoch."""
    step_dir.mkdir(parents=True, exist_ok=True)
    with (step_dir / PROGRESS_FILE).open("a") as file:
        file.write(json.dumps(dict(metrics)) + "\n")


class StopRequest:
    """Whether the driver left a stop request in the run's folder.

    Args:
        run_dir: folder of the run.
    """

    def __init__(self, run_dir: Path) -> None:
        self._path = run_dir / STOP_FILE
        self._asked = False
        self._next_look = 0.0

    def __call__(self) -> bool:
        """True from the first look that finds the request; looks at most once a second."""
        now = time.monotonic()
        if not self._asked and now >= self._next_look:
            self._next_look = now + _LOOK_EVERY_S
            self._asked = self._path.exists()
        return self._asked
