"""What does safety cost a training phase of five minutes? Journal, hashes, lock, fence, watchdog.

    python benchmarks/safety.py

The phase is one of ResNet-18's size: 45 MB of weights, checkpoints with momentum of 90 MB once a
minute, 20 updates a second that each ask whether to stop. Counted is what is done for safety and
would not be done by a program that just writes its files: flushing, hashing, renaming, asking.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from pathlib import Path
from tempfile import TemporaryDirectory

import torch

from orchestrator.records import RunRecord, State
from orchestrator.store import RunStore
from trainers.checkpoint import Checkpoints
from trainers.messages import StopRequest
from trainers.watchdog import Fence, Watchdog, raise_fence

PHASE_S = 300.0
UPDATES_PER_S = 20
CHECKPOINTS = 5
EVENTS = 10


def seconds(work: Callable[[], object]) -> float:
    """Wall seconds of one call."""
    began = time.perf_counter()
    work()
    return time.perf_counter() - began


def main() -> None:
    """Print a line a part, and the sum as a share of the phase."""
    torch.set_num_threads(1)
    weights = {"w": torch.randn(11_250_000)}
    state = {**weights, "m": torch.randn(11_250_000)}
    with TemporaryDirectory(dir=".") as folder:
        root = Path(folder)
        spent: dict[str, float] = {}
        store = RunStore(root, "run")
        step = store.step_dir("pretrain")
        step.mkdir(parents=True)
        torch.save(weights, step / "weights.pt")
        record = RunRecord(
            run="run",
            step="pretrain",
            key="k",
            phase="pretrain",
            method="fp",
            state=State.DONE,
            outputs={"w": "steps/pretrain/weights.pt"},
        )
        began = time.perf_counter()
        with store.opened() as journal:
            spent["lock"] = time.perf_counter() - began
            spent["journal"] = seconds(
                lambda: [journal.event("step_started", {"n": n}) for n in range(EVENTS)]
            )
            spent["hash of outputs and record"] = seconds(
                lambda: (store.finish_step("pretrain", record), journal.append(record))
            )
            spent["verification at the next start"] = seconds(
                lambda: store.finished("pretrain", "k")
            )
        plain = seconds(lambda: torch.save(state, root / "plain.pt"))
        safe = Checkpoints(root / "checkpoints", 0)
        spent["checkpoints"] = sum(
            seconds(lambda n=n: safe.save(n, state, {})) - plain for n in range(CHECKPOINTS)
        )
        raise_fence(step, "t")
        fence, stop = Fence(step, "t"), StopRequest(root)
        dog = Watchdog(1800.0, root / "stacks")
        asked = 20_000
        each = seconds(lambda: [(dog.beat(), fence.check(), stop()) for _ in range(asked)]) / asked
        # Looks at the disk are once a second; here they were at most a few.
        look = seconds(lambda: [(Fence(step, "t").check(), StopRequest(root)()) for _ in range(50)])
        spent["asking at every update"] = each * UPDATES_PER_S * PHASE_S + look / 50 * PHASE_S
    for name, wall_s in spent.items():
        print(f"{name:<32} {1e3 * wall_s:9.1f} ms")
    total = sum(spent.values())
    share = 100 * total / PHASE_S
    print(f"{'sum':<32} {1e3 * total:9.1f} ms = {share:.2f} % of {PHASE_S:g} s")
    print(json.dumps({"safety_s": total, "share_percent": share}))


if __name__ == "__main__":
    main()
