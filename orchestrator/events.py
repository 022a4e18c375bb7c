"""What happens in a run besides results: the events of the journal, and what each one says."""

from __future__ import annotations

RUN_STARTED = "run_started"
"""``command`` (to type again), ``attempt``, ``machine`` (cores, memory), ``versions``,
``git_commit`` of the code, with a ``+`` where it was changed; empty for an installed copy."""

PLANNED = "planned"
"""``steps``: a list of ``name``, ``phase``, ``state`` (run, cached, blocked) and ``reason``;
``not_run``: a list of ``what`` and ``reason``."""

STEP_STARTED = "step_started"
"""``step``, ``attempt``."""

STEP_SKIPPED = "step_skipped"
"""``step``, ``reason``: it was finished and its outputs verify."""

STEP_RESTARTED = "step_restarted"
"""``step``, ``attempt``, ``failure`` (its class), ``reason``, ``wait_s``, ``num_workers``."""

RUN_INTERRUPTED = "run_interrupted"
"""``signal`` (0 for none), ``exit_code``: the attempt ended before the run did."""

RUN_FINISHED = "run_finished"
"""``exit_code``, ``wall_s``, ``spent``: wall seconds by what they were spent on."""
