"""How much does fanning out solves cost? 2,000 two-limit devices through Ray Tune and tasks.

    python benchmarks/device_sweep.py [--devices 2000]

Target: wall <= 1.1 x (sum of the solves' CPU time / cores) + Ray's start. Run it on an idle
machine.
"""

from __future__ import annotations

import argparse
import os
import sys
import tempfile
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from benchmarks.instances import CHOICES, indicators  # noqa: E402
from benchmarks.networks import NETWORKS  # noqa: E402
from orchestrator.cluster import ray_cluster  # noqa: E402
from orchestrator.cluster_config import ClusterConfig  # noqa: E402
from orchestrator.config_schema import SearchConfig  # noqa: E402
from orchestrator.device_sweep import DEVICES_PER_TRIAL, device_questions  # noqa: E402
from orchestrator.solve_tasks import SweepTables, answer_questions  # noqa: E402
from orchestrator.sweep import question_chunks, run_sweep  # noqa: E402
from solvers.devices import generate_devices  # noqa: E402
from solvers.limits import parse_limit  # noqa: E402


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--devices", type=int, default=2000)
    number = parser.parse_args().devices
    costs = NETWORKS["resnet18"]()
    ranges = {
        kind: (parse_limit(f"{kind}={low}"), parse_limit(f"{kind}={high}"))
        for kind, low, high in (("bitops", "14G", "40G"), ("weight_bytes", "3.5MiB", "6.5MiB"))
    }
    devices = generate_devices(ranges, number, 0)
    tables = SweepTables(
        costs=costs,
        choices=CHOICES,
        importance={"limpq": indicators(costs, 0)},
        search=SearchConfig(),
        accounting="standard",
    )
    chunks = question_chunks(device_questions(devices, (2.0,)), DEVICES_PER_TRIAL, "benchmark")
    began = time.perf_counter()
    with tempfile.TemporaryDirectory() as folder, ray_cluster(None):
        started = time.perf_counter()
        outcome = run_sweep(
            chunks, answer_questions, tables, folder=Path(folder), run_dir=Path(folder),
            key="benchmark", concurrent=os.cpu_count() or 1,
            tell=lambda *again: print("lost trials:", *again), cluster=ClusterConfig(),
        )  # fmt: skip
        ended = time.perf_counter()
    cores = os.cpu_count() or 1
    allowed = 1.1 * outcome.solve_cpu_s / cores + (started - began)
    states = sorted({row.status.value for row in outcome.results.rows})
    print(f"devices            {number} ({', '.join(states)})")
    print(f"Ray start          {started - began:8.1f} s")
    print(f"sum of solve CPU   {outcome.solve_cpu_s:8.1f} s on {cores} cores")
    print(f"wall               {ended - began:8.1f} s, sweep alone {ended - started:.1f} s")
    print(f"allowed            {allowed:8.1f} s")
    print(f"ratio              {(ended - began) / allowed:8.2f} x the target")


if __name__ == "__main__":
    main()
