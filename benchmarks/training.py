"""What do LIMPQ's joint update and a second worker cost, as ratios in one run?

    python benchmarks/training.py joint [--images 64] [--repeats 5]
    python benchmarks/training.py workers [--images 64] [--repeats 6]

``joint``: one update of n + 1 passes against n + 1 full-precision updates of the same network, in
turns, by CPU time. ``workers``: ResNet-18 at 64 pixels, batches of one size, by two gloo processes
with one thread each against one process with two threads, in turns, by wall time: run it on a
machine that does nothing else. Both with the engine options that docs/training.md recommends for
a CPU: channels_last and merge_relu.
"""

from __future__ import annotations

import argparse
import copy
import os
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
import torch.nn.functional as F

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from solvers.tables import BitChoices
from trainers.distributed import reduce_gradients
from trainers.limpq.config import IndicatorConfig
from trainers.limpq.indicators import JointStep
from trainers.memory import keep_freed_memory
from trainers.meters import Meter
from trainers.models import build_model
from trainers.optim import make_sgd
from trainers.phases import ModelSpec
from trainers.precision import run_as
from trainers.quant.options import QuantOptions
from trainers.quant.wrap import quantize_network
from trainers.recipes import OptimizerConfig

JOINT_CASES = (("cifar_resnet20", 32), ("resnet18", 64), ("mobilenet_v2", 64))
CHOICES = BitChoices(weight_bits=(2, 3, 4, 5, 6), act_bits=(2, 3, 4, 5, 6))
JOINT_LIMIT, WORKERS_LIMIT = 1.25, 0.85


def batch_of(num_images: int, side: int) -> tuple[torch.Tensor, torch.Tensor]:
    torch.manual_seed(0)
    return torch.randn(num_images, 3, side, side), torch.randint(0, 10, (num_images,))


def plain_update(model: torch.nn.Module, batch: Any) -> Callable[[], None]:
    run_as(model, OptimizerConfig(channels_last=True))
    optimizer = make_sgd(model.parameters(), OptimizerConfig(lr=0.01))

    def update() -> None:
        optimizer.zero_grad(set_to_none=True)
        loss = F.cross_entropy(model(batch[0]), batch[1])
        loss.backward()
        reduce_gradients(model.parameters(), loss, False)
        optimizer.step()

    return update


def joint_update(model: torch.nn.Module, batch: Any, *, compiled: bool) -> Callable[[], None]:
    recipe = IndicatorConfig(channels_last=True, batchnorm="switchable")
    network = quantize_network(
        model,
        choices=CHOICES,
        sample=batch[0][:8],
        batchnorm="switchable",
        options=QuantOptions(merge_relu=True, compiled=compiled),
    )
    run_as(network.model, recipe)
    optimizer = make_sgd(network.model.parameters(), recipe)
    step = JointStep(network, CHOICES, recipe, 0, Meter())
    number = iter(range(10**6))

    def update() -> None:
        optimizer.zero_grad(set_to_none=True)
        loss = step.accumulate(batch, next(number))
        reduce_gradients(network.model.parameters(), loss, False)
        optimizer.step()

    return update


def joint(chosen: argparse.Namespace) -> bool:
    """Whether a case is above its limit."""
    missed = False
    num_passes = len(CHOICES.weight_bits) + 1
    for name, side in JOINT_CASES:
        if chosen.network and name not in chosen.network:
            continue
        batch = batch_of(chosen.images, side)
        torch.manual_seed(0)
        model = build_model(ModelSpec(name=name))
        joint_of = joint_update(copy.deepcopy(model), batch, compiled=chosen.compiled)
        plain_of = plain_update(model, batch)
        ratios = []
        for repeat in range(chosen.repeats + 1):
            start = time.process_time()
            joint_of()
            middle = time.process_time()
            for _ in range(num_passes):
                plain_of()
            if repeat:  # the first starts step sizes and momentum
                ratios.append((middle - start) / (time.process_time() - middle))
        ratio = statistics.median(ratios)
        missed |= ratio > JOINT_LIMIT
        print(
            f"{name}@{side} batch {chosen.images}: joint update / {num_passes} FP32 updates = "
            f"{ratio:.3f} x (at most {JOINT_LIMIT}; {min(ratios):.3f} to {max(ratios):.3f})"
        )
    return missed


def _train_rank(
    rank: int, world_size: int, threads: int, images: int, gate: Any, done: Any
) -> None:
    torch.set_num_threads(threads)
    keep_freed_memory()
    if world_size > 1:
        dist.init_process_group("gloo", rank=rank, world_size=world_size)
    batch = batch_of(images // world_size, 64)
    torch.manual_seed(0)
    update = plain_update(build_model(ModelSpec(name="resnet18")), batch)
    update()
    done.put(rank)
    while gate.get():
        update()
        update()
        done.put(rank)
    if world_size > 1:
        dist.destroy_process_group()


def workers(chosen: argparse.Namespace) -> bool:
    """Whether two workers fall short of one with two threads."""
    context = torch.multiprocessing.get_context("spawn")
    with tempfile.TemporaryDirectory():
        os.environ.update(MASTER_ADDR="127.0.0.1", MASTER_PORT=str(20000 + os.getpid() % 20000))
        groups = []
        for world_size, threads in ((2, 1), (1, 2)):
            gates, done = [context.Queue() for _ in range(world_size)], context.Queue()
            ranks = [
                context.Process(
                    target=_train_rank,
                    args=(rank, world_size, threads, chosen.images, gates[rank], done),
                )
                for rank in range(world_size)
            ]
            for process in ranks:
                process.start()
            for _ in ranks:
                done.get()
            groups.append((gates, done, ranks))
        ratios = []
        for _ in range(chosen.repeats):
            took = []
            for gates, done, _ in groups:
                start = time.perf_counter()
                for gate in gates:
                    gate.put(True)
                for _ in gates:
                    done.get()
                took.append(time.perf_counter() - start)
            ratios.append(took[1] / took[0])
        for gates, _, ranks in groups:
            for gate in gates:
                gate.put(False)
            for process in ranks:
                process.join()
    ratio = statistics.median(ratios)
    print(
        f"resnet18@64 batch {chosen.images}: 2 workers x 1 thread / 1 worker x 2 threads = "
        f"{ratio:.3f} x (at least {WORKERS_LIMIT}; {min(ratios):.3f} to {max(ratios):.3f})"
    )
    return ratio < WORKERS_LIMIT


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("what", choices=["joint", "workers"])
    parser.add_argument("--images", type=int, default=64)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--threads", type=int, default=1, help="of joint")
    parser.add_argument("--compiled", action="store_true", help="joint with the compiled quantizer")
    parser.add_argument("--network", action="append", help="only this one; may be repeated")
    chosen = parser.parse_args()
    torch.set_num_threads(chosen.threads)
    keep_freed_memory()  # as a worker does
    sys.exit(1 if {"joint": joint, "workers": workers}[chosen.what](chosen) else 0)


if __name__ == "__main__":
    main()
