"""How does one get a trained network out of a run, with its bits?

    from orchestrator.trained import load_trained
    network = load_trained("runs/quickstart", "32069f7a268d")

Read from the run's folder alone, every file compared with its recorded hash. Neither the images nor
the weights that the run began with are needed, so a folder that was copied elsewhere will do.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from orchestrator.config import stored_section
from orchestrator.config_schema import DataConfig, ModelConfig
from orchestrator.errors import StoreError
from orchestrator.journal import read_journal
from orchestrator.records import EVAL_TOP1, RunRecord
from orchestrator.runs import find_run, newest_records
from orchestrator.store import RunStore
from orchestrator.yaml_source import read_yaml
from solvers.policy import Policy
from solvers.storage import load_costs, load_policy
from solvers.tables import CostTable
from trainers.phases import DataSpec, ModelSpec
from trainers.recipes import TrainConfig

if TYPE_CHECKING:
    from torch import nn

    from trainers.quant.handle import QuantNetwork


@dataclass(frozen=True, kw_only=True, slots=True)
class TrainedPolicy:
    """One finished weight training of a run, its files verified.

    Attributes:
        record: what was measured, and ``facts["training"]``, its name in the run.
        run: name of the run.
        model: the network, without the weights that it began with.
        data: the images, without their place.
        recipe: of the training, with the quantizer that this policy was trained with.
        policy: the bits.
        costs: the network's layers and input shape.
        kinds: range of every layer's input.
        weights: the state dict of the quantized network.
    """

    record: RunRecord
    run: str
    model: ModelSpec
    data: DataSpec
    recipe: TrainConfig
    policy: Policy
    costs: CostTable
    kinds: dict[str, Any]
    weights: Path


def load_trained(
    run: str | Path, policy: str, *, runs_dir: str | Path = "runs", device: str = "cpu"
) -> nn.Module:
    """A trained network in evaluation mode that computes with the policy's bits.

    It takes float32 images [B, C, H, W], normalised as in training, and gives logits [B, classes];
    on the test images the accuracy of its record.

    Args:
        run: a run's folder, or its name in ``runs_dir``.
        policy: id of the policy, or the name of its training (a folder below ``steps/train``)
            where the same bits were trained more than once.
        runs_dir: where runs are kept.
        device: where the network goes.

    Raises:
        StoreError: no such run, no such policy in it (the message lists those there are), a
            policy that was not trained, or files that are not what was recorded.
        TrainersError: the network cannot be built again (its own code has changed).
    """
    return rebuilt(find_trained(run, policy, runs_dir=runs_dir), device).model


def find_trained(
    run: str | Path, policy: str, *, runs_dir: str | Path = "runs"
) -> TrainedPolicy:  # fmt: skip
    """Look a trained policy up and verify its files; see ``load_trained``."""
    store = find_run(str(run), str(runs_dir))
    records = newest_records(read_journal(store.journal_path))
    record = _verified(store, _training_of(store, records, policy))
    costs = _verified(store, _costs_of(store, records))
    model, data, train = _sections(store)
    facts = record.facts
    missing = [name for name in ("quantizer", "input_ranges") if name not in facts]
    if missing:
        raise StoreError(
            f"the record of {record.step} says nothing of {' and '.join(missing)}",
            str(store.step_dir(record.step)), "an earlier version wrote it", "train it again",
        )  # fmt: skip
    return TrainedPolicy(
        record=record,
        run=store.name,
        model=model.spec(),
        data=data.spec(),
        recipe=replace(train, quantizer=facts["quantizer"]),
        policy=load_policy(store.root / record.outputs["policy"]),
        costs=load_costs(store.root / costs.outputs["costs"]),
        kinds=dict(facts["input_ranges"]),
        weights=store.root / record.outputs["weights"],
    )


def rebuilt(trained: TrainedPolicy, device: str = "cpu") -> QuantNetwork:
    """The network of a trained policy with everything that is known of its quantizers.

    Raises:
        TrainersError: it cannot be built again.
    """
    from trainers.trained import load_network

    return load_network(
        trained.model,
        trained.policy,
        trained.costs,
        trained.recipe,
        trained.kinds,
        trained.weights,
        device,
    )


def _training_of(store: RunStore, records: Sequence[RunRecord], asked: str) -> RunRecord:
    """The one training that is meant.

    Raises:
        StoreError: none or several, or it left no weights.
    """
    trainings = [r for r in records if r.phase == "train" and r.policy_id is not None]
    named = [r for r in trainings if _name(r) == asked]
    found = named or [r for r in trainings if r.policy_id == asked]
    if len(found) > 1:
        raise StoreError(
            f"policy {asked!r} was trained {len(found)} times", str(store.root),
            "the same bits from different starts, or with different quantizers",
            f"give the name of one training: {', '.join(_name(r) for r in found)}",
        )  # fmt: skip
    whole = [r for r in trainings if "weights" in r.outputs]
    listed = "; ".join(_told(r) for r in whole) if whole else "none"
    if found and found[0] in whole:
        return found[0]
    if found:
        raise StoreError(
            f"the training of policy {asked!r} left no weights", str(store.step_dir(found[0].step)),
            found[0].message or f"it ended {found[0].state}", f"trained policies: {listed}",
        )  # fmt: skip
    if any(r.policy_id == asked for r in records):
        raise StoreError(
            f"policy {asked!r} was found and not trained", str(store.root),
            "search.train_limits or search.train_alphas leave it out, or the run did not get there",
            f"run it again with other keys under --fork; trained policies: {listed}",
        )  # fmt: skip
    raise StoreError(
        f"run {store.name!r} has no policy {asked!r}", str(store.root),
        f"trained policies: {listed}", "give one of these; mpq report shows them in a table",
    )  # fmt: skip


def _costs_of(store: RunStore, records: Sequence[RunRecord]) -> RunRecord:
    found = next((r for r in records if r.phase == "costs" and "costs" in r.outputs), None)
    if found is None:
        raise StoreError("the run has no cost table", str(store.root), "", "run it again")
    return found


def _verified(store: RunStore, record: RunRecord) -> RunRecord:
    """The record as it stands beside its outputs, which are what was recorded.

    Raises:
        StoreError: they are not.
    """
    verdict = store.finished(record.step, record.key)
    if verdict.record is None:
        raise StoreError(
            f"{record.step} cannot be used", str(store.step_dir(record.step)), verdict.reason,
            "run the same experiment again, which does this step again, or pull it anew",
        )  # fmt: skip
    return verdict.record


def _sections(store: RunStore) -> tuple[ModelConfig, DataConfig, TrainConfig]:
    """The three sections that matter, each by itself.

    The others may rest on files that are gone, or be of a version that knew fewer rules.

    Raises:
        ConfigError: one of them is missing or wrong.
    """
    tree, file = read_yaml(store.config_path).tree, str(store.config_path)
    if not isinstance(tree, dict):
        raise StoreError("the run's configuration is not readable", file, "it has no sections")
    bare = {**tree}
    for section, place in (("model", "weights"), ("data", "path")):
        if isinstance(tree.get(section), dict):
            bare[section] = {**tree[section], place: None}
    return (
        stored_section(bare, "model", ModelConfig, file),
        stored_section(bare, "data", DataConfig, file),
        stored_section(bare, "train", TrainConfig, file),
    )


def _name(record: RunRecord) -> str:
    return str(record.facts.get("training", record.policy_id))


def _told(record: RunRecord) -> str:
    top1 = record.metrics.get(EVAL_TOP1)
    limits = " ".join(f"{kind}={text}" for kind, text in record.limits.items())
    measured = "" if top1 is None else f", {top1:.2f} %"
    return f"{_name(record)} ({record.method}{' ' if limits else ''}{limits}{measured})"
