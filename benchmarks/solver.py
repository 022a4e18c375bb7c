"""How fast is the solver room? One table: target, measured, ratio.

    python benchmarks/solver.py [--seeds 20] [--json]

CPU seconds of this process and its children, median over the seeds, except where wall is said.
Whole processes are started from files. Run it on an idle machine: CPU time grows when another
process shares the core.
"""

from __future__ import annotations

import argparse
import json
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from benchmarks.instances import CHOICES, indicators  # noqa: E402
from benchmarks.networks import NETWORKS  # noqa: E402
from solvers.devices import generate_devices  # noqa: E402
from solvers.frontier import front  # noqa: E402
from solvers.limits import Limit, parse_limit  # noqa: E402
from solvers.result import SolveRequest  # noqa: E402
from solvers.solve import solve  # noqa: E402
from solvers.storage import save_costs, save_importance  # noqa: E402
from solvers.tables import CostTable  # noqa: E402


@dataclass(frozen=True)
class Row:
    """One line of the table."""

    case: str
    unit: str
    target: float
    measured: float


def cpu_s() -> float:
    own = resource.getrusage(resource.RUSAGE_SELF)
    children = resource.getrusage(resource.RUSAGE_CHILDREN)
    return own.ru_utime + own.ru_stime + children.ru_utime + children.ru_stime


def median_cpu_ms(task: Callable[[int], object], seeds: int) -> float:
    times = []
    for seed in range(seeds):
        before = cpu_s()
        task(seed)
        times.append((cpu_s() - before) * 1e3)
    return statistics.median(times)


def both_limits(costs: CostTable) -> tuple[Limit, ...]:
    """12 BitOps a MAC and 2.7 bits a weight on average over the searched layers."""
    searched = sum(s.num_weights for s in costs.searched)
    pinned = sum(s.num_weights for s in costs) - searched
    size = parse_limit(f"weight_bytes={int(2.7 * searched / 8) + pinned}")
    return (parse_limit("bitops_level=3x4"), size)


def in_process(seeds: int) -> list[Row]:
    rows = []
    tables = {name: network() for name, network in NETWORKS.items()}
    learned = {n: [indicators(c, seed) for seed in range(seeds)] for n, c in tables.items()}

    def solving(name: str, limits: tuple[Limit, ...]) -> Callable[[int], object]:
        return lambda seed: solve(
            SolveRequest(
                costs=tables[name], importance=learned[name][seed], choices=CHOICES,
                limits=limits, alpha=2.0,
            )
        )  # fmt: skip

    solving("resnet18", (parse_limit("bitops_level=3x3"),))(0)  # imports PuLP
    for name, target in (("resnet18", 40.0), ("resnet50", 150.0)):
        for level in ("3x3", "4x4"):
            measured = median_cpu_ms(solving(name, (parse_limit(f"bitops_level={level}"),)), seeds)
            rows.append(Row(f"one BitOps limit ({level}), {name}", "ms CPU", target, measured))
    measured = median_cpu_ms(solving("resnet50", both_limits(tables["resnet50"])), seeds)
    rows.append(Row("BitOps and size together, resnet50", "ms CPU", 350.0, measured))
    for name, target in (("resnet18", 3.0), ("resnet50", 25.0), ("mobilenet_v3_large", 150.0)):
        measured = median_cpu_ms(
            lambda seed, n=name: front(tables[n], learned[n][seed], CHOICES, alpha=2.0),  # type: ignore[misc]
            seeds,
        )
        rows.append(Row(f"complete front, {name}", "ms CPU", target, measured))
    return rows


def processes() -> list[Row]:
    costs = NETWORKS["resnet50"]()
    with tempfile.TemporaryDirectory() as folder:
        at = Path(folder)
        save_costs(at / "costs.parquet", costs)
        save_importance(at / "importance.parquet", indicators(costs, 0))
        ranges = {"bitops": (parse_limit("bitops=24G"), parse_limit("bitops=140G"))}
        devices = generate_devices(ranges, 10_000, 0)
        lines = [f"{d.name},{d.limits[0].limit}\n" for d in devices]
        (at / "devices.csv").write_text("name,bitops\n" + "".join(lines))
        base = [
            sys.executable, "-m", "orchestrator.cli", "solve", "--costs", str(at / "costs.parquet"),
            "--importance", str(at / "importance.parquet"), "--alpha", "2", "--json",
        ]  # fmt: skip
        one = [*base, "--limit", "bitops=36G", "--out", str(at / "policy.json")]
        many = [
            *base, "--device", str(at / "devices.csv"), "--front", "--out", str(at / "r.parquet"),
        ]  # fmt: skip
        cold = statistics.median(whole_process(one)[0] for _ in range(5))
        runs = [whole_process(many) for _ in range(5)]
    return [
        Row("mpq solve, cold start, one policy", "s wall", 1.0, cold),
        Row("10,000 devices, resnet50, whole process", "s wall", 1.5,
            statistics.median(wall for wall, _ in runs)),
        Row("  its peak memory", "MiB", 400.0, max(peak for _, peak in runs)),
    ]  # fmt: skip


def whole_process(command: list[str]) -> tuple[float, float]:
    """Wall seconds and peak MiB of one process."""
    meter = (
        "import resource, subprocess, sys\n"
        "code = subprocess.run(sys.argv[1:], stdout=subprocess.DEVNULL).returncode\n"
        "print(code, resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss)\n"
    )
    started = time.perf_counter()
    done = subprocess.run(
        [sys.executable, "-S", "-c", meter, *command],
        capture_output=True, text=True, check=True, cwd=ROOT,
    )  # fmt: skip
    wall_s = time.perf_counter() - started
    code, peak_kib = (int(n) for n in done.stdout.split())
    if code != 0:
        raise SystemExit(f"exit code {code}: {done.stderr}")
    return wall_s, peak_kib / 1024


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seeds", type=int, default=20)
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    rows = in_process(options.seeds) + processes()
    if options.json:
        print(json.dumps([r.__dict__ | {"ratio": r.measured / r.target} for r in rows], indent=1))
        return
    print(f"{'case':<44} {'target':>8} {'measured':>9} {'ratio':>6}")
    for row in rows:
        ratio = row.measured / row.target
        late = "" if ratio <= 1 else "  over"
        print(
            f"{row.case:<44} {row.target:>8g} {row.measured:>9.2f} {ratio:>6.2f} {row.unit}{late}"
        )


if __name__ == "__main__":
    main()
