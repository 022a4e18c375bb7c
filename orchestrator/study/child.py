"""How does one run of a study work beside the others? As a process of its own on their cluster.

Started by the study as ``python -m orchestrator.study.child STUDY CONFIG ADDRESS [REUSED ...]``. A
crash of one seed ends one process; what it did is in its journal, and the study typed again goes
on with it.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence

from orchestrator.cli import run_command


def main(arguments: Sequence[str]) -> int:
    """Run one experiment of a study on a running cluster; returns the exit code."""
    study, config, address, *reused = arguments
    # What the journal tells people to type again; the cluster will have another address then.
    sys.argv = ["mpq", "study", study]
    reuse = [word for run in reused for word in ("--reuse", run)]
    return int(run_command(["run", config, "--address", address, *reuse]))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
