"""What does the network of a configuration cost, and can it be worked with at all?

The planning edge that imports torch.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import asdict, replace
from typing import TYPE_CHECKING, Any

from orchestrator.config_schema import ExperimentConfig
from orchestrator.config_types import from_here, is_published
from orchestrator.evidence import check_layers
from orchestrator.specs import pin_rules
from solvers.tables import CostTable
from trainers.recipes import QuantTrainingConfig

if TYPE_CHECKING:
    from torch import nn


def traced_costs(config: ExperimentConfig) -> CostTable:
    """Build the network without its weights, trace one image through it, refuse what cannot work.

    Raises:
        ModelError: unknown network, weights that nobody publishes, pins and groups that match
            nothing, or a network that a phase of this run would refuse: no BatchNorm for MetaMix,
            negative inputs where ``negative_inputs`` is ``refuse``, evidence on a layer that is
            not there.
        DataError: the images cannot be looked at.
    """
    from trainers.costs import trace_costs
    from trainers.data import input_shape
    from trainers.data.large_sets import known_classes
    from trainers.errors import ModelError
    from trainers.metamix.meta_state import check_network
    from trainers.models import build_model
    from trainers.models.weights import published_weights

    classes = known_classes(config.data.spec())
    if classes is not None and classes > config.model.num_classes:
        raise ModelError(
            f"{config.data.path} has {classes} classes and model.num_classes is "
            f"{config.model.num_classes}; set model.num_classes"
        )
    source = config.model.weights
    if source is not None and is_published(source):
        published_weights(config.model.name, source.partition(":")[2])
    model = build_model(replace(config.model.spec(), weights=None))
    costs = trace_costs(
        model,
        name=config.model.name,
        input_shape=input_shape(config.data.spec()),
        pins=pin_rules(config),
        groups=[group.match for group in config.groups],
    )
    check_layers(config.evidence, costs)
    if config.method == "metamix" or config.evidence.drift or config.evidence.distributions:
        check_network(model)
    if not costs.searched:
        raise ModelError("every layer is pinned: there is nothing to search; take a pin out")
    _refuse_signed_inputs(config, model)
    return costs


def images_fingerprint(config: ExperimentConfig) -> str:
    """Quick hash of the images' source, for the keys of a run.

    Images that are to be downloaded are downloaded here, once and by one process: the hash is of
    what is there, and must be the same at the next start.

    Raises:
        DataError: nothing says where the images are, or they cannot be read.
    """
    from orchestrator.forecast.images_at_hand import require_path
    from trainers.data import load_data, source_fingerprint

    require_path(config)
    spec = config.data.spec()
    if spec.options.get("download"):
        load_data(spec, config.seed)
    return source_fingerprint(spec)


def weight_hashes(config: ExperimentConfig) -> dict[str, str]:
    """Path as written -> sha256 of every file of weights that the experiment starts from.

    Raises:
        ModelError: a file cannot be read.
    """
    from trainers.models.weights import weights_hash

    found = {}
    for path in _weight_files(asdict(config)):
        if not is_published(path):
            found[path] = weights_hash(str(from_here(path)))
    return found


def _weight_files(tree: Any) -> Iterator[str]:
    """Of the network, and of every teacher."""
    for key, value in tree.items():
        if key == "weights" and isinstance(value, str):
            yield value
        elif isinstance(value, Mapping) and key != "options":  # those of a user's own factory
            yield from _weight_files(value)


def _refuse_signed_inputs(config: ExperimentConfig, model: nn.Module) -> None:
    """Where a section refuses negative inputs, look for them now, on real images.

    Fresh weights do: a linear bottleneck or an h-swish is negative somewhere with any. The phase
    looks again at its own weights.
    """
    sections: dict[str, QuantTrainingConfig] = {"train": config.train}
    if config.learns_indicators:
        sections["indicators"] = config.indicators
    if config.method == "metamix":
        sections["metamix.meta"] = config.metamix.meta
    for source, recipe in config.asked_sources:
        if isinstance(recipe, QuantTrainingConfig):
            sections[f"sources.{source.name}"] = recipe
    refusing = [name for name, s in sections.items() if s.negative_inputs == "refuse"]
    if not refusing:
        return
    import torch

    from trainers.data import load_data
    from trainers.errors import ModelError
    from trainers.quant.options import QuantOptions
    from trainers.quant.ranges import trace_ranges
    from trainers.setup import SAMPLE_IMAGES

    images = load_data(config.data.spec(), config.seed).train
    sample, _ = images.batch(torch.arange(min(SAMPLE_IMAGES, len(images))), None)
    try:
        trace_ranges(model, sample, QuantOptions(negative_inputs="refuse"))
    except ModelError as error:
        raise ModelError(f"{', '.join(refusing)}: {error}") from error
