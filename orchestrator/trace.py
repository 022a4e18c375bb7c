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
from orchestrator.teachers import teachers_of
from solvers.tables import CostTable
from trainers.recipes import QuantTrainingConfig

if TYPE_CHECKING:
    from torch import nn


def traced_costs(config: ExperimentConfig) -> CostTable:
    """Build the network without its weights, trace one image through it, refuse what cannot work.

    Raises:
        ModelError: unknown network, weights (its own or a teacher's) that nobody publishes or that
            are published for other classes, weights that know other classes than the images have,
            pins and groups that match nothing, or a network that a phase of this run would refuse:
            no BatchNorm for MetaMix, negative inputs where ``negative_inputs`` is ``refuse``,
            evidence on a layer that is not there.
        DataError: the images cannot be looked at.
    """
    from trainers.costs import trace_costs
    from trainers.data import input_shape
    from trainers.errors import ModelError
    from trainers.metamix.meta_state import check_network
    from trainers.models import build_model, check_weights
    from trainers.phases import ModelSpec

    _refuse_other_classes(config)
    check_weights(config.model.spec())
    for _, teacher in teachers_of(config):
        if teacher.model is not None:
            check_weights(ModelSpec(
                name=teacher.model, num_classes=config.model.num_classes,
                options=teacher.options, weights=teacher.weights,
            ))  # fmt: skip
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
    if isinstance(tree, (list, tuple)):
        for each in tree:
            yield from _weight_files(each)
    elif isinstance(tree, Mapping):
        for key, value in tree.items():
            if key == "weights" and isinstance(value, str):
                yield value
            elif key != "options":  # those of a user's own factory
                yield from _weight_files(value)


def _refuse_other_classes(config: ExperimentConfig) -> None:
    """Label 7 of the images must be output 7 of the network.

    More outputs than classes are harmless where they are learned here. Given weights know classes
    of their own, and with another number of them the numbers do not mean the same.
    """
    from trainers.data import known_classes
    from trainers.errors import ModelError

    classes, outputs = known_classes(config.data.spec()), config.model.num_classes
    if classes is None or classes == outputs:
        return
    images = config.data.path or config.data.name
    if classes > outputs:
        raise ModelError(
            f"{images} has {classes} classes and model.num_classes is {outputs}; set "
            "model.num_classes"
        )
    if config.model.weights is not None and not config.rehearsal:
        raise ModelError(
            f"{images} has {classes} classes and model.weights are of a network of {outputs}: "
            "their labels do not mean the same. Give the images of all classes, or weights of a "
            "network of as many classes and set model.num_classes"
        )


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

    from orchestrator.forecast.images_at_hand import without_download
    from trainers.data import load_data
    from trainers.errors import DataError, ModelError
    from trainers.quant.options import QuantOptions
    from trainers.quant.ranges import trace_ranges
    from trainers.setup import SAMPLE_IMAGES

    try:
        images = load_data(without_download(config.data.spec()), config.seed).train
    except DataError:
        if config.data.options.get("download"):
            return  # A plan before the first run, which downloads them and looks then.
        raise
    sample, _ = images.batch(torch.arange(min(SAMPLE_IMAGES, len(images))), None)
    try:
        trace_ranges(model, sample, QuantOptions(negative_inputs="refuse"))
    except ModelError as error:
        raise ModelError(f"{', '.join(refusing)}: {error}") from error
