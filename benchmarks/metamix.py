"""What do MetaMix's two steps cost, in units of one single-bit training step?

    python benchmarks/metamix.py [--model cifar_resnet20] [--images 128] [--repeats 7]

Three steps on the same network and images take turns: plain 4-bit-activation training (full-
precision weights, forward, backward, SGD update), one bit-meta update (B passes), one bit-search
update (the fused mixture of B branches, Adam on alpha). Ratios are of median CPU seconds, so a
busy machine slows all alike. Peak memory is that of the tensors torch allocates within one step,
counted by torch's own profiler of allocations, above what the network occupies at rest.

Targets: meta <= 1.1 x B single-bit steps, search <= 2.0 x one, its peak <= 2.5 x one.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path

import torch
from torch.profiler import ProfilerActivity, profile

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from solvers.tables import BitChoices
from trainers.costs import trace_costs
from trainers.distillation import TeacherLoss
from trainers.memory import keep_freed_memory
from trainers.metamix.architecture import Architecture, units_of
from trainers.metamix.config import SearchConfig
from trainers.metamix.meta_step import MetaStep
from trainers.metamix.search_step import SearchStep, make_optimizer
from trainers.metamix.target import make_target
from trainers.meters import Meter
from trainers.models import build_model
from trainers.phases import ModelSpec
from trainers.quant.wrap import quantize_network

Step = Callable[[], object]

CHOICES = BitChoices(weight_bits=(4,), act_bits=(3, 4, 8))
LIMITS = {"meta / B": 1.1, "search": 2.0, "search peak": 2.5}


def make_steps(model_name: str, side: int, num_images: int) -> dict[str, Step]:
    """The three steps on one network."""
    torch.manual_seed(0)
    model = build_model(ModelSpec(name=model_name))
    costs = trace_costs(model, name=model_name, input_shape=(3, side, side))
    images, labels = torch.randn(num_images, 3, side, side), torch.randint(0, 10, (num_images,))
    network = quantize_network(model, choices=CHOICES, sample=images[:16])
    network.model.train()
    loss, meter = TeacherLoss(None, None, 0.0), Meter()
    weights = torch.optim.SGD(network.model.parameters(), lr=1e-4, momentum=0.9)
    architecture = Architecture(units_of(costs, CHOICES), 0.01)
    meta = MetaStep(network, loss, meter)
    search = SearchStep(
        network, architecture, make_target("mean_act_bits=4", costs, CHOICES), SearchConfig(),
        loss, meter,
    )  # fmt: skip
    alphas = make_optimizer(architecture, search.config)

    def single_step() -> None:
        weights.zero_grad(set_to_none=True)
        network.restore_bits(meta.passes[1])
        loss(network.model(images), labels).backward()
        weights.step()

    def meta_step() -> None:
        weights.zero_grad(set_to_none=True)
        meta.accumulate((images, labels), 0)
        weights.step()

    def search_step() -> None:
        # As in the loop: the meta update's gradients are still there when the search begins.
        alphas.zero_grad(set_to_none=True)
        search.accumulate((images, labels), 0)
        alphas.step()

    return {"single": single_step, "meta": meta_step, "search": search_step}


def peak_bytes(step: Step) -> int:
    """Most bytes of tensors alive during ``step`` above those alive before it."""
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as watched:
        step()
    now = highest = 0
    for event in sorted(_allocations(watched), key=lambda e: e[0]):
        now += event[1]
        highest = max(highest, now)
    return highest


def _allocations(watched: profile) -> list[tuple[int, int]]:
    """(time, bytes; negative when freed) of every allocation."""
    assert watched.profiler is not None
    result = watched.profiler.kineto_results
    return [
        (event.start_ns(), event.nbytes())
        for event in result.events()
        if event.name() == "[memory]"
    ]


def main() -> int:
    """Measure, print a table, and fail when a limit is passed."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", default="cifar_resnet20")
    parser.add_argument("--side", type=int, default=32)
    parser.add_argument("--images", type=int, default=128)
    parser.add_argument("--repeats", type=int, default=7)
    parser.add_argument("--threads", type=int, default=1)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    keep_freed_memory()  # as a worker does
    steps = make_steps(options.model, options.side, options.images)
    for name in ("meta", "single", "search"):  # meta first: it starts every step size
        steps[name]()
    seconds: dict[str, list[float]] = {name: [] for name in steps}
    for _ in range(options.repeats):
        for name, step in steps.items():
            begin = time.process_time()
            step()
            seconds[name].append(time.process_time() - begin)
    medians = {name: statistics.median(values) for name, values in seconds.items()}
    peaks = {name: peak_bytes(step) for name, step in steps.items()}
    num_widths = len(CHOICES.act_bits)
    ratios = {
        "meta / B": medians["meta"] / (num_widths * medians["single"]),
        "search": medians["search"] / medians["single"],
        "search peak": peaks["search"] / peaks["single"],
    }
    print(f"{options.model} {options.side} px, batch {options.images}, {options.threads} thread(s)")
    for name, median in medians.items():
        print(f"  {name:<7} {median:7.3f} s CPU   peak {peaks[name] / 2**20:8.1f} MiB")
    for name, ratio in ratios.items():
        verdict = "ok" if ratio <= LIMITS[name] else "ABOVE"
        print(f"  {name:<12} {ratio:5.2f}  (at most {LIMITS[name]}) {verdict}")
    return int(any(ratio > LIMITS[name] for name, ratio in ratios.items()))


if __name__ == "__main__":
    sys.exit(main())
