"""Do the paper's observations show on a small network? Data and figures, in minutes.

    python benchmarks/metamix_evidence.py FOLDER [--epochs 12] [--seed 0]

Trains a full-precision network on scikit-learn's digits, then runs, through the same phases as any
experiment:

* ``metamix.drift``: BatchNorm statistics under random bit changes (Figure 2);
* ``metamix.distributions``, one network a cell (Figure 1), one meta-state a row (Figure 6), and
  the untrained network beside them;
* ``metamix.bit_selection`` on a fixed meta-state and on a moving one (Figure 7), at one target.

Each leaves its tables in a folder of its own, ``figures/`` holds the drawings, and the summary is
printed. A second call goes on where the first one stopped.
"""

from __future__ import annotations

import argparse
import sys
from dataclasses import replace
from pathlib import Path

import torch

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from orchestrator import figures_metamix as draw
from orchestrator.figures import save_figure
from solvers.parquet import read_table
from solvers.storage import load_costs, load_policy, save_costs
from solvers.tables import BitChoices
from trainers.costs import trace_costs
from trainers.metamix import distributions, drift, history
from trainers.metamix.config import BitSelectionConfig, MetaConfig, MetaMixConfig, SearchConfig
from trainers.metamix.evidence_config import DistributionConfig, DriftConfig
from trainers.models import build_model
from trainers.phases import DataSpec, ModelSpec, PhaseContext, PhaseResult, PhaseSpec
from trainers.recipes import PretrainConfig
from trainers.registry import find_phase

MODEL = ModelSpec(name="cifar_resnet14", options={"in_channels": 1, "base_width": 8})
TARGET = "bitops_level=4x5"


def main() -> None:
    """Run everything and print what came out."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", type=Path)
    parser.add_argument("--epochs", type=int, default=12)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--threads", type=int, default=1)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    root: Path = options.folder
    spec = PhaseSpec(
        phase="pretrain",
        model=MODEL,
        data=DataSpec(name="digits"),
        config=PretrainConfig(epochs=20, batch_size=64, lr=0.05),
        seed=options.seed,
        choices=BitChoices(weight_bits=(4,), act_bits=(2, 4, 8)),
    )
    top1 = _run(spec, root / "pretrain").metrics["top1"]
    print(f"full precision: {top1:.2f} %")
    save_costs(
        root / "costs.parquet",
        trace_costs(build_model(MODEL), name=MODEL.name, input_shape=(1, 8, 8)),
    )
    inputs = {
        "weights": str(root / "pretrain" / "weights.pt"),
        "costs": str(root / "costs.parquet"),
    }
    spec = replace(spec, inputs=inputs)
    show_drift(spec, root, options.epochs)
    show_distributions(spec, root, max(1, options.epochs // 4))
    show_selections(spec, root, max(1, options.epochs // 3))


def show_drift(spec: PhaseSpec, root: Path, epochs: int) -> None:
    """Figure 2."""
    config = DriftConfig(epochs=epochs, batch_size=64, lr=0.01)
    result = _run(replace(spec, phase="metamix.drift", config=config), root / "drift")
    columns = ["variant", "update", "bits", "variance"]
    _, rows = read_table(root / "drift" / result.outputs["drift"], drift.SCHEMA, columns)
    save_figure(draw.norm_drift(rows, result.facts["layer"]), root / "figures", "norm-drift")
    for name, value in result.metrics.items():
        print(f"drift of running variance, {name}: {value:.4f} (std of its logarithm)")


def show_distributions(spec: PhaseSpec, root: Path, epochs: int) -> None:
    """Figures 1 and 6."""
    columns = ["weight_bits", "act_bits", "layer", "left", "right", "count", "variance"]
    for training in ("single", "none", "meta"):
        config = DistributionConfig(training=training, epochs=epochs, batch_size=64, lr=0.01)
        folder = root / f"distributions-{training}"
        result = _run(replace(spec, phase="metamix.distributions", config=config), folder)
        table = folder / result.outputs["distributions"]
        _, rows = read_table(table, distributions.SCHEMA, columns)
        for layer in result.facts["layers"]:
            stem = f"inputs-{training}-{layer}"
            save_figure(draw.input_distributions(rows, layer), root / "figures", stem)
        for name, value in result.metrics.items():
            print(f"input variance over activation bits, {training}, {name}: x{value:.3f}")


def show_selections(spec: PhaseSpec, root: Path, epochs: int) -> None:
    """Figure 7, from one shared meta-state of epoch 1."""
    meta = MetaConfig(epochs=epochs, batch_size=64, lr=0.02)
    recipe = MetaMixConfig(meta=meta, search=SearchConfig(epochs=epochs, lambda_r=0.3))
    _run(replace(spec, phase="metamix.meta", config=recipe), root / "meta")
    inputs = {**spec.inputs, "meta": str(root / "meta" / "meta.pt")}
    costs = load_costs(root / "costs.parquet")
    macs = {layer.name: float(layer.num_macs) for layer in costs.searched}
    depthwise = frozenset(layer.name for layer in costs if layer.kind == "depthwise")
    for name, is_fixed in (("fixed", True), ("unfixed", False)):
        own = replace(recipe, search=replace(recipe.search, fixed_meta_state=is_fixed))
        config = BitSelectionConfig(metamix=own, target=TARGET)
        folder = root / f"selection-{name}"
        result = _run(
            replace(spec, phase="metamix.bit_selection", config=config, inputs=inputs), folder
        )
        columns = ["update", "unit", "tensor", "bits", "probability"]
        _, rows = read_table(folder / result.outputs["history"], history.SCHEMA, columns)
        save_figure(draw.alpha_paths(rows), root / "figures", f"alphas-{name}")
        policy = load_policy(folder / result.outputs["policy"])
        bits = {n: b.act_bits for n, b in policy.layers if n in macs}
        figure = draw.selected_bits(bits, depthwise, macs, "MACs")
        save_figure(figure, root / "figures", f"bits-{name}")
        shares = f"argmax {result.metrics['argmax_share']:.3f}, policy"
        print(f"{name}: {shares} {result.metrics['reached_share']:.3f} of {TARGET}: {bits}")


def _run(spec: PhaseSpec, folder: Path) -> PhaseResult:
    return find_phase(spec.phase)(spec, PhaseContext.alone(folder))


if __name__ == "__main__":
    main()
