"""How long do ``mpq compare`` and ``mpq report`` take over hundreds of runs; how large is the page?

    python benchmarks/reports.py runs/quickstart [--runs 500] [--repeats 3]

Copies a finished run under other names and seeds, with what it recorded and the policies and
tables that reports read, and starts each command as a process of its own. Accuracies move a little
with the seed, so that intervals and figures have something to show. Printed are wall and CPU
seconds, the median of the repeats, against the limits; 1 when one is missed.
"""

from __future__ import annotations

import argparse
import os
import random
import shutil
import statistics
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from orchestrator.journal import Journal, read_journal
from orchestrator.records import RunRecord
from orchestrator.yaml_source import dump_yaml, read_yaml

LIMITS_S = {"compare": 5.0, "report": 10.0}
PAGE_LIMIT = 5 * 2**20
TOP1 = "eval/top1"


def copy_of(run: Path, folder: Path, seed: int) -> None:
    """The run again, as if made with another seed."""
    name = f"run-{seed}"
    new = folder / name
    for path in sorted([*run.rglob("*.parquet"), *run.rglob("policies/*.json")]):
        target = new / path.relative_to(run)
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(path, target)
    tree = read_yaml(run / "config.yaml").tree
    (new / "config.yaml").write_text(dump_yaml({**tree, "name": name, "seed": seed}))
    draw = random.Random(seed)
    with Journal(new / "journal.jsonl") as journal:
        for entry in read_journal(run / "journal.jsonl").entries:
            if entry.kind != "record":
                journal.event(entry.kind, entry.data)
                continue
            record = RunRecord.from_json(entry.data)
            metrics = dict(record.metrics)
            if TOP1 in metrics:
                metrics[TOP1] += draw.gauss(0.0, 0.3)
            journal.append(replace(record, run=name, seed=seed, metrics=metrics))


def timed(command: list[str], repeats: int) -> tuple[float, float]:
    """Median wall and CPU seconds of a command in a process of its own."""
    walls, cpus = [], []
    for _ in range(repeats):
        before, began = os.times(), time.perf_counter()
        subprocess.run(command, check=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        walls.append(time.perf_counter() - began)
        after = os.times()
        cpus.append(
            after.children_user + after.children_system
            - before.children_user - before.children_system
        )  # fmt: skip
    return statistics.median(walls), statistics.median(cpus)


def main() -> int:
    """Print a line a command; 1 when one is above its limit."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("run", type=Path, help="folder of a finished run")
    parser.add_argument("--runs", type=int, default=500)
    parser.add_argument("--repeats", type=int, default=3)
    chosen = parser.parse_args()
    with TemporaryDirectory() as temporary:
        folder = Path(temporary)
        for seed in range(chosen.runs):
            copy_of(chosen.run, folder, seed)
        names = [f"run-{seed}" for seed in range(chosen.runs)]
        mpq = [sys.executable, "-m", "orchestrator.cli"]
        output = folder / "comparison"
        missed = False
        for name, more in (("compare", []), ("report", ["--output", str(output)])):
            command = [*mpq, name, *names, "--runs-dir", str(folder), *more]
            wall, cpu = timed(command, chosen.repeats)
            missed |= wall > LIMITS_S[name]
            print(
                f"mpq {name} of {chosen.runs} runs: {wall:.2f} s, {cpu:.2f} CPU-s "
                f"(at most {LIMITS_S[name]} s)"
            )
        size = (output / "report.html").stat().st_size
        missed |= size > PAGE_LIMIT
        print(f"its page: {size / 2**20:.2f} MiB (at most {PAGE_LIMIT / 2**20:.0f})")
    return int(missed)


if __name__ == "__main__":
    raise SystemExit(main())
