"""Phases in forked processes, so that SIGKILL is SIGKILL and costs no imports.

The parent has torch loaded and uses one thread; a child trains on one rank, or two children on two
ranks of gloo, and is killed at a named point when told so.
"""

from __future__ import annotations

import hashlib
import json
import os
import random
import signal
import socket
import traceback
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.distributed as dist

import trainers.checkpoint
import trainers.loop
from solvers.policy import make_policy
from solvers.storage import save_costs, save_policy
from solvers.tables import BitChoices, LayerBits
from trainers.checkpoint import save_tensors, state_hash
from trainers.costs import trace_costs
from trainers.limpq.config import IndicatorConfig
from trainers.metamix.config import BitSelectionConfig, MetaConfig, MetaMixConfig, SearchConfig
from trainers.models import build_model
from trainers.phases import DataSpec, ModelSpec, PhaseContext, PhaseSpec
from trainers.recipes import PretrainConfig, TrainConfig
from trainers.registry import find_phase

MODEL = ModelSpec(name="cifar_resnet8", options={"in_channels": 1, "base_width": 4})
DATA = DataSpec(name="digits")


@dataclass(frozen=True)
class Kill:
    """SIGKILL when a process passes a point for the ``at``-th time."""

    point: str
    at: int
    rank: int = 0


POINTS = ("mid-step", "before-save", "mid-save", "mid-write", "before-rename", "after-save")


def in_child(work: Callable[[], None]) -> int:
    """Run ``work`` in a fork; its exit status, negative for a signal."""
    child = start_child(work)
    return wait_for(child)


def start_child(work: Callable[[], None]) -> int:
    child = os.fork()
    if child == 0:
        code = 0
        try:
            work()
        except BaseException:
            traceback.print_exc()
            code = 1
        os._exit(code)
    return child


def wait_for(child: int) -> int:
    _, status = os.waitpid(child, 0)
    return os.waitstatus_to_exitcode(status)


class Phases:
    """One small specification of every training phase, and what they start from."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        torch.manual_seed(0)
        model = build_model(MODEL)
        save_tensors(folder / "weights.pt", model.state_dict())
        costs = trace_costs(model, name=MODEL.name, input_shape=(1, 8, 8))
        save_costs(folder / "costs.parquet", costs)
        bits = {s.name: s.pinned or LayerBits(weight_bits=3, act_bits=4) for s in costs}
        save_policy(folder / "policy.json", make_policy(costs, bits, "uniform"))
        self.inputs = {
            "weights": str(folder / "weights.pt"),
            "costs": str(folder / "costs.parquet"),
        }

    def spec(self, name: str, seed: int) -> PhaseSpec:
        metamix = MetaMixConfig(
            meta=MetaConfig(steps=6, batch_size=128, lr=0.02), search=SearchConfig(steps=6)
        )
        configs: dict[str, Any] = {
            "pretrain": PretrainConfig(epochs=3, batch_size=256, lr=0.1),
            "limpq.indicators": IndicatorConfig(steps=6, batch_size=128, lr=0.01),
            "metamix.meta": metamix,
            "metamix.bit_selection": BitSelectionConfig(metamix=metamix, target="mean_act_bits=4"),
            "weight_training": TrainConfig(
                steps=8, batch_size=256, lr=0.02, warmup_epochs=0.0, bn_reestimate_images=256,
                evaluate_every=1,
            ),
        }  # fmt: skip
        choices = {
            "limpq.indicators": BitChoices(weight_bits=(2, 4), act_bits=(2, 4)),
            "metamix.meta": BitChoices(weight_bits=(4,), act_bits=(2, 4, 8)),
            "metamix.bit_selection": BitChoices(weight_bits=(4,), act_bits=(2, 4, 8)),
        }
        inputs = {} if name == "pretrain" else dict(self.inputs)
        if name == "weight_training":
            inputs["policy:one"] = str(self.folder / "policy.json")
        if name == "metamix.bit_selection":
            inputs["meta"] = str(self.meta(seed) / "meta.pt")
        return PhaseSpec(
            phase=name, model=MODEL, data=DATA, config=configs[name], seed=seed, inputs=inputs,
            choices=choices.get(name),
        )  # fmt: skip

    def meta(self, seed: int) -> Path:
        """The meta-state that a bit selection starts from."""
        folder = self.folder / f"meta-{seed}"
        if not (folder / "result.json").exists():
            spec = self.spec("metamix.meta", seed)
            assert in_child(lambda: _quietly(spec, PhaseContext.alone(folder))) == 0
        return folder


def _quietly(spec: PhaseSpec, context: PhaseContext) -> None:
    torch.set_num_threads(1)
    find_phase(spec.phase)(spec, context)


def train(spec: PhaseSpec, folder: Path, *, ranks: int, kill: Kill | None) -> list[int]:
    """Train on forked ranks; their exit statuses. What each rank held at its end is in files."""
    port = _free_port()
    folder.mkdir(parents=True, exist_ok=True)

    def work(rank: int) -> None:
        torch.set_num_threads(1)
        # A fork inherits them as the tests left them; a process of its own draws them.
        random.seed(0)
        np.random.seed(0)
        torch.manual_seed(0)
        if ranks > 1:
            os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
            dist.init_process_group("gloo", rank=rank, world_size=ranks)
        _observe(folder, rank, kill if kill is not None and kill.rank == rank else None)
        context = replace(PhaseContext.alone(folder), rank=rank, world_size=ranks)
        find_phase(spec.phase)(spec, context)
        _write(folder / f"random-{rank}.json", random_state())

    children = [start_child(lambda r=rank: work(r)) for rank in range(ranks)]
    if kill is None or ranks == 1:
        return [wait_for(child) for child in children]
    # The killed rank first; the others wait for it in a collective, as a group's would.
    statuses = {kill.rank: wait_for(children[kill.rank])}
    for rank, child in enumerate(children):
        if rank != kill.rank:
            if statuses[kill.rank] != 0:
                os.kill(child, signal.SIGKILL)
            statuses[rank] = wait_for(child)
    return [statuses[rank] for rank in range(ranks)]


def random_state() -> str:
    """Hash of the state of every global generator."""
    parts = (torch.get_rng_state().numpy().tobytes(), repr(random.getstate()).encode(),
             repr(np.random.get_state()).encode())  # fmt: skip
    return hashlib.sha256(b"".join(parts)).hexdigest()


def _write(path: Path, value: object) -> None:
    path.write_text(json.dumps(value))


def _observe(folder: Path, rank: int, kill: Kill | None) -> None:
    """Note every batch and the last state; die where told. In a child only: it patches modules."""
    passes: Counter[str] = Counter()

    def hit(point: str) -> None:
        passes[point] += 1
        if kill is not None and kill.point == point and passes[point] == kill.at:
            os.kill(os.getpid(), signal.SIGKILL)

    loop, checkpoint = trainers.loop, trainers.checkpoint
    loop.CHECKPOINT_UPDATES = 2  # so that there is something to go on from inside an epoch
    update_inner, save_inner = loop.Training._update, loop.Training._save
    reduce_inner = loop.reduce_gradients
    tensors_inner, write_inner = checkpoint.save_tensors, checkpoint.write_atomically
    checkpoints_inner, replace_inner = checkpoint.Checkpoints.save, os.replace

    def update(self: Any, batch: Any, number: int) -> bool:
        digest = hashlib.sha256(batch[0].numpy().tobytes() + batch[1].numpy().tobytes())
        with (folder / f"batches-{rank}.txt").open("a") as stream:
            stream.write(f"{self.stream} {number} {digest.hexdigest()}\n")
        return update_inner(self, batch, number)

    def save(self: Any, checkpoints: Any, number: int) -> None:
        save_inner(self, checkpoints, number)
        if number == self.total_updates:
            state: Mapping[str, Any] = {
                "model": self.model.state_dict(),
                "optimizers": {n: o.state_dict() for n, o in self._optimizers().items()},
                "extra": {n: v.state_dict() for n, v in self.extra.items()},
                "buffers": dict(self.model.named_buffers()),
                "losses": self._losses, "metrics": self._metrics, "random": random_state(),
            }  # fmt: skip
            with (folder / f"state-{rank}.txt").open("a") as stream:
                for part, value in state.items():
                    stream.write(f"{self.stream} {part} {state_hash({'': _timeless(value)})}\n")

    def reduce(*args: Any) -> Any:
        result = reduce_inner(*args)
        hit("mid-step")
        return result

    def save_tensors(*args: Any) -> None:
        tensors_inner(*args)
        hit("mid-save")

    def write(path: Path, content: bytes | str) -> None:
        if kill is not None and kill.point == "mid-write" and Path(path).suffix == ".pt":
            passes["mid-write"] += 1
            if passes["mid-write"] == kill.at:
                torn = Path(path).with_name(f".tmp-{os.getpid()}-torn-{Path(path).name}")
                torn.write_bytes(bytes(content[: len(content) // 2]))
                os.kill(os.getpid(), signal.SIGKILL)
        write_inner(path, content)

    def rename(source: Any, target: Any) -> None:
        if Path(target).name.startswith("step-"):
            hit("before-rename")
        replace_inner(source, target)

    def save_checkpoint(self: Any, *args: Any) -> None:
        hit("before-save")
        checkpoints_inner(self, *args)
        hit("after-save")

    loop.Training._update, loop.Training._save = update, save
    loop.reduce_gradients = reduce
    checkpoint.save_tensors, checkpoint.write_atomically = save_tensors, write
    checkpoint.Checkpoints.save = save_checkpoint
    os.replace = rename


def _timeless(value: Any) -> Any:
    """Without wall and device seconds, which no two runs share."""
    if isinstance(value, Mapping):
        kept = {k: v for k, v in value.items() if k not in ("wall_s", "device_s")}
        return {key: _timeless(inner) for key, inner in kept.items()}
    return value


def ends(folder: Path, ranks: int) -> dict[str, Any]:
    """What must be equal: final states and generators of all ranks, batches by update, outputs."""
    found: dict[str, Any] = {}
    for rank in range(ranks):
        lines = (folder / f"state-{rank}.txt").read_text().splitlines()
        found[f"state {rank}"] = sorted(set(lines))
        found[f"random {rank}"] = json.loads((folder / f"random-{rank}.json").read_text())
        # An update that was done twice must have seen the same images twice.
        seen = (folder / f"batches-{rank}.txt").read_text().splitlines()
        found[f"batches {rank}"] = sorted(set(seen))
    for path in sorted(folder.rglob("*.pt")):
        if "checkpoints" not in path.parts:
            state = trainers.checkpoint.load_tensors(path)
            found[path.name] = state_hash(state)
    return found


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])
