"""What does quantization-aware training cost against full precision, as a ratio in one run?

    python benchmarks/quantizer.py [--images 64] [--repeats 5] [--compiled] [--keep-relu]

Each case trains the same network on the same random images, full precision and at 4/4 bits
(first and last layer 8/8), channels_last, ReLUs merged into quantizers unless told otherwise;
forward, backward and SGD update. The two take turns, step by step, and the ratio is the median of
the pairs', so a busy machine slows both alike. CPU time is counted, not wall time.
"""

from __future__ import annotations

import argparse
import copy
import statistics
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
import torch.nn.functional as F

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from solvers.tables import BitChoices
from trainers.memory import keep_freed_memory
from trainers.models import build_model
from trainers.phases import ModelSpec
from trainers.quant.options import QuantOptions
from trainers.quant.wrap import quantize_network


@dataclass(frozen=True, kw_only=True, slots=True)
class Case:
    """One row: a network, its image side, and the most its ratio may be."""

    network: str
    side: int
    target: float = 1.25
    target_compiled: float = 1.15


CASES = (
    Case(network="cifar_resnet20", side=32),
    Case(network="resnet18", side=64),
    Case(network="mobilenet_v2", side=64),
)


def measure(
    case: Case, num_images: int, repeats: int, *, compiled: bool, merge_relu: bool
) -> dict[str, list[float]]:
    """CPU seconds of the steps of each variant, taken in turns."""
    torch.manual_seed(0)
    images = torch.randn(num_images, 3, case.side, case.side)
    images = images.contiguous(memory_format=torch.channels_last)
    labels = torch.randint(0, 10, (num_images,))
    plain = build_model(ModelSpec(name=case.network)).to(memory_format=torch.channels_last)
    steps = {"fp32": _step(copy.deepcopy(plain), images, labels)}
    for name, is_compiled in (("eager", False), ("compiled", True)):
        if is_compiled and not compiled:
            continue
        quantized = quantize_network(
            copy.deepcopy(plain),
            choices=BitChoices(weight_bits=(2, 4), act_bits=(2, 4)),
            sample=images[:8],
            options=QuantOptions(compiled=is_compiled, merge_relu=merge_relu),
        )
        quantized.set_uniform(4)
        steps[name] = _step(quantized.model, images, labels)
    seconds: dict[str, list[float]] = {name: [] for name in steps}
    for repeat in range(repeats + 2):
        for name, step in steps.items():
            start = time.process_time()
            step()
            if repeat >= 2:  # the first two initialise step sizes and momentum, and compile
                seconds[name].append(time.process_time() - start)
    return seconds


def _step(model: torch.nn.Module, images: torch.Tensor, labels: torch.Tensor) -> Callable[[], None]:
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01, momentum=0.9)

    def step() -> None:
        optimizer.zero_grad(set_to_none=True)
        F.cross_entropy(model(images), labels).backward()
        optimizer.step()

    return step


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--images", type=int, default=64)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--compiled", action="store_true", help="also the compiled quantizer")
    parser.add_argument("--network", action="append", help="only this one; may be repeated")
    parser.add_argument("--keep-relu", action="store_true", help="do not merge ReLUs")
    chosen = parser.parse_args()
    torch.set_num_threads(chosen.threads)
    keep_freed_memory()  # as a worker does
    missed = False
    for case in CASES:
        if chosen.network and case.network not in chosen.network:
            continue
        took = measure(
            case,
            chosen.images,
            chosen.repeats,
            compiled=chosen.compiled,
            merge_relu=not chosen.keep_relu,
        )
        limits = {"eager": case.target, "compiled": case.target_compiled}
        for name in took:
            if name == "fp32":
                continue
            pairs = [a / b for a, b in zip(took[name], took["fp32"], strict=True)]
            ratio = statistics.median(pairs)
            missed |= ratio > limits[name]
            print(
                f"{case.network}@{case.side} batch {chosen.images} {name}: "
                f"{statistics.median(took[name]) * 1e3:.0f} ms against "
                f"{statistics.median(took['fp32']) * 1e3:.0f} ms fp32 = {ratio:.3f} x "
                f"(at most {limits[name]:.2f}; {min(pairs):.3f} to {max(pairs):.3f})"
            )
    sys.exit(1 if missed else 0)


if __name__ == "__main__":
    main()
