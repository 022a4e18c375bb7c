"""Kills, stops and slows real processes at named points; loaded by Python itself at their start.

A test puts this folder on PYTHONPATH and names a plan in MPQ_FAULT_PLAN: a JSON list of faults
{"point", "phase", "rank", "at", "do"}. They fire in order, each once over all processes: a file
made with O_EXCL says that one has fired. ``at`` counts one process's passes through a point.
"""

from __future__ import annotations

import json
import os
import signal
import sys
import time
from collections import Counter
from importlib.abc import Loader, MetaPathFinder
from importlib.util import find_spec

PLAN = os.environ.get("MPQ_FAULT_PLAN", "")
_passes: Counter[str] = Counter()
_phase = [""]


def _rank() -> int:
    torch = sys.modules.get("torch")
    if torch is None or not torch.distributed.is_available():
        return 0
    return torch.distributed.get_rank() if torch.distributed.is_initialized() else 0


def hit(point: str) -> None:
    """Pass a named point; the fault that is due here happens."""
    _passes[point] += 1
    with open(PLAN) as stream:
        plan = json.load(stream)
    for index, fault in enumerate(plan):
        marker = f"{PLAN}.fired-{index}"
        if os.path.exists(marker):
            continue
        fits = (
            fault["point"] == point
            and fault.get("rank", _rank()) == _rank()
            and _phase[0].startswith(fault.get("phase", ""))
        )
        if fits and _passes[point] >= fault.get("at", 1):
            try:
                handle = os.open(marker, os.O_CREAT | os.O_EXCL | os.O_WRONLY)
            except FileExistsError:
                return
            told = {"pid": os.getpid(), "time": time.time(), "rank": _rank()}
            os.write(handle, json.dumps(told).encode())
            os.close(handle)
            _do(fault["do"])
        return


def _do(what: str) -> None:
    if what == "sleep":
        time.sleep(3600)
    elif what == "enospc":
        raise OSError(28, "No space left on device", PLAN)
    elif what == "oom":
        raise MemoryError("injected")
    elif what != "note":
        os.kill(os.getpid(), getattr(signal, what))


def _around(owner: object, name: str, before: str = "", after: str = "") -> None:
    inner = getattr(owner, name)

    def wrapped(*args, **kwargs):
        if before:
            hit(before)
        result = inner(*args, **kwargs)
        if after:
            hit(after)
        return result

    setattr(owner, name, wrapped)


def _loop(module: object) -> None:
    _around(module.Training, "run", before="start")
    inner = module.Training.run

    def run(self):
        _phase[0] = self.stream
        return inner(self)

    module.Training.run = run
    _around(module, "reduce_gradients", after="mid-step")


def _checkpoint(module: object) -> None:
    _around(module, "save_tensors", after="mid-save")
    _around(module.Checkpoints, "save", before="before-save", after="after-save")


def _worker(module: object) -> None:
    make = module._reporter

    def reporter(*args):
        report = make(*args)

        def told(metrics):
            report(metrics)
            hit("after-report")

        return told

    module._reporter = reporter


def _store(module: object) -> None:
    _around(module.RunStore, "finish_step", before="before-record", after="after-record")


def _journal(module: object) -> None:
    inner = module.Journal._write

    def write(self, lines):
        data = b"".join(lines)
        if b'"kind":"record"' in data:
            if _due("mid-journal"):
                os.write(self._handle, data[: len(data) // 2])
            hit("mid-journal")
        inner(self, lines)
        if b'"kind":"record"' in data:
            hit("after-journal")

    module.Journal._write = write


def _due(point: str) -> bool:
    """Whether the next fault is at this point, so that a half-written line is wanted."""
    with open(PLAN) as stream:
        plan = json.load(stream)
    for index, fault in enumerate(plan):
        if not os.path.exists(f"{PLAN}.fired-{index}"):
            return fault["point"] == point and _passes[point] + 1 >= fault.get("at", 1)
    return False


def _phase_step(module: object) -> None:
    _around(module, "begin", after="step-begin")
    _around(module, "run_group", before="before-group")


PATCHES = {
    "trainers.loop": _loop,
    "trainers.checkpoint": _checkpoint,
    "trainers.worker": _worker,
    "orchestrator.store": _store,
    "orchestrator.journal": _journal,
    "orchestrator.phase_step": _phase_step,
}


class _Patching(Loader):
    def __init__(self, loader: Loader, patch) -> None:
        self._loader, self._patch = loader, patch

    def create_module(self, spec):
        return self._loader.create_module(spec)

    def exec_module(self, module) -> None:
        self._loader.exec_module(module)
        self._patch(module)


class _Finder(MetaPathFinder):
    def find_spec(self, name, path=None, target=None):
        patch = PATCHES.pop(name, None)
        if patch is None:
            return None
        spec = find_spec(name)
        if spec is not None and spec.loader is not None:
            spec.loader = _Patching(spec.loader, patch)
        return spec


if PLAN:
    sys.meta_path.insert(0, _Finder())
