"""How is a rehearsal run? Prepared, said loudly, and then as any other experiment."""

from __future__ import annotations

import sys
from dataclasses import replace

from orchestrator.config import LoadedConfig
from orchestrator.config_schema import ExperimentConfig
from orchestrator.contradictions import contradictions
from orchestrator.errors import ExitCode, UserError
from orchestrator.private import close_umask
from orchestrator.rehearsal.config import rehearsed
from orchestrator.rehearsal.files import prepare

_KEY = "cluster.num_workers"


def rehearse_experiment(loaded: LoadedConfig) -> ExitCode:
    """Run the rehearsal of an experiment.

    Raises:
        UserError: refused, as the experiment itself would be.
    """
    close_umask()  # images are made before the run is opened
    config = loaded.config
    asked = any(text.partition("=")[0].strip() == _KEY for text in loaded.overrides)
    prepared = prepare(
        config,
        num_workers=config.cluster.num_workers if asked else 1,
        has_gpus=_has_gpus(config),
    )
    rehearsal = rehearsed(config, prepared.stage)
    _refuse_contradictions(rehearsal)
    _say(prepared.told)

    from orchestrator.pipeline import run_experiment

    code = run_experiment(replace(loaded, config=rehearsal))
    _say((f"REHEARSAL ended with exit code {int(code)}; its figures mean nothing",))
    return code


def _has_gpus(config: ExperimentConfig) -> bool:
    """Whether workers may ask for GPUs: a look decides here, a cluster's head elsewhere."""
    if not config.cluster.gpus_per_worker:
        return False
    if config.cluster.address is not None:
        return True
    import torch

    return torch.cuda.is_available()


def _refuse_contradictions(config: ExperimentConfig) -> None:
    found = contradictions(config, {})
    if found:
        where = ".".join(str(part) for part in found[0].path)
        raise UserError(
            f"the rehearsal of this experiment contradicts itself: {found[0].found}",
            where,
            f"allowed: {found[0].allowed}",
        )


def _say(lines: tuple[str, ...]) -> None:
    for line in lines:
        print(f"*** {line}", file=sys.stderr, flush=True)
