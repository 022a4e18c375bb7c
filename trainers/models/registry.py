"""Which networks are there, and how does a name become one?

Three sources: this project's own definitions, torchvision's classification networks under
torchvision's names, and ``module:factory`` for anything the user trusts enough to import.
"""

from __future__ import annotations

import difflib
import importlib
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from trainers.errors import ModelError
from trainers.models.cifar_resnet import CifarResNet
from trainers.models.mobilenet_v1 import MobileNetV1
from trainers.models.published import fetched_file, published_state, published_weights
from trainers.models.weights import load_weights, read_state
from trainers.phases import ModelSpec

_CIFAR_DEPTHS = (8, 14, 20, 32, 44, 56)


def _cifar(depth: int) -> Callable[..., nn.Module]:
    def make(num_classes: int = 10, **options: Any) -> nn.Module:
        return CifarResNet(depth, num_classes=num_classes, **options)

    return make


_OWN: Mapping[str, Callable[..., nn.Module]] = {
    **{f"cifar_resnet{depth}": _cifar(depth) for depth in _CIFAR_DEPTHS},
    "mobilenet_v1": MobileNetV1,
}

# Classifiers beside the last one, by attribute: in training they make the output a tuple.
_AUXILIARY: Mapping[str, tuple[str, ...]] = {
    "googlenet": ("aux1", "aux2"),
    "inception_v3": ("AuxLogits",),
}


def model_names(*, torchvision: bool = True) -> tuple[str, ...]:
    """All names that ``build_model`` knows.

    Args:
        torchvision: false leaves torchvision's names out, whose import takes 3-4 seconds.
    """
    names = sorted(_OWN)
    if torchvision:
        names += [name for name in _torchvision_names() if name not in _OWN]
    return tuple(names)


def build_model(spec: ModelSpec) -> nn.Module:
    """The network of ``spec`` with its weights loaded, on the CPU in training mode.

    Auxiliary classifiers are taken out, as torchvision takes them out of pretrained networks:
    nothing here trains on more than one output.

    Raises:
        ModelError: unknown name, options the network does not take, or weights that are missing,
            unreadable or another network's.
    """
    check_weights(spec)
    model = _create(spec)
    if not isinstance(model, nn.Module):
        raise ModelError(
            f"model {spec.name!r}: the factory returned {type(model).__name__}, not a Module"
        )
    _take_out_heads(spec.name, model)
    if spec.weights is None:
        return model
    which = _published(spec)
    state = read_state(Path(spec.weights)) if which is None else published_state(spec.name, which)
    where = spec.weights if which is None else "torchvision's published weights"
    load_weights(model, _without_heads(spec.name, state), where)
    return model


def check_weights(spec: ModelSpec) -> None:
    """Refuse a network or published weights that cannot be meant; nothing is built or fetched.

    Raises:
        ModelError: unknown name; nobody publishes the weights, they are of another number of
            classes, or they were trained on inputs of another scale and the options do not say
            which is given.
    """
    _factory(spec.name)
    which = _published(spec)
    if which is None:
        return
    if spec.name in _OWN or ":" in spec.name:
        raise ModelError(f"model {spec.name!r}: torchvision publishes no weights for it")
    classes = published_weights(spec.name, which).meta["categories"]
    if classes is None:
        raise ModelError(
            f"model {spec.name!r}: torchvision publishes {which!r} without a classifier; "
            "name others"
        )
    if len(classes) != spec.num_classes:
        raise ModelError(
            f"model {spec.name!r}: torchvision's weights know {len(classes)} classes and "
            f"num_classes is {spec.num_classes}; set model.num_classes: {len(classes)} and give "
            "those images, or start from a file of a network of as many classes"
        )
    if spec.name in _AUXILIARY and "transform_input" not in spec.options:
        raise ModelError(
            f"model {spec.name!r}: torchvision's weights are for pixels of mean and deviation 0.5; "
            "set model.options.transform_input: true beside ImageNet's mean and std (the default), "
            "false where data.options give 0.5"
        )


def weights_file(spec: ModelSpec) -> Path | None:
    """The file that ``build_model`` reads weights from; None = fresh ones.

    Raises:
        ModelError: published weights that are not here and cannot be fetched, or differ.
    """
    which = _published(spec)
    if which is not None:
        return fetched_file(spec.name, which)
    return None if spec.weights is None else Path(spec.weights)


def _published(spec: ModelSpec) -> str | None:
    """Which of torchvision's weights are asked for, empty for the newest; None = none of them."""
    who, _, which = (spec.weights or "").partition(":")
    return which if who == "torchvision" else None


def _take_out_heads(name: str, model: Any) -> None:
    for head in _AUXILIARY.get(name, ()):
        setattr(model, head, None)
        # Read by the forward pass: a tuple or the logits.
        model.aux_logits = False


def _without_heads(name: str, state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    heads = tuple(f"{p}{head}." for head in _AUXILIARY.get(name, ()) for p in ("", "module."))
    return {key: value for key, value in state.items() if not key.startswith(heads)}


def _create(spec: ModelSpec) -> nn.Module:
    factory = _factory(spec.name)
    try:
        return factory(num_classes=spec.num_classes, **spec.options)
    except (TypeError, ValueError) as error:
        raise ModelError(
            f"model {spec.name!r} with num_classes={spec.num_classes} and options "
            f"{dict(spec.options)}: {error}"
        ) from error


def _factory(name: str) -> Callable[..., nn.Module]:
    if name in _OWN:
        return _OWN[name]
    if ":" in name:
        return _imported(name)
    if name not in _torchvision_names():
        near = difflib.get_close_matches(name, model_names(), n=3, cutoff=0.4)
        hint = f"; did you mean {', '.join(near)}?" if near else ""
        raise ModelError(f"unknown model {name!r}{hint} (own networks are given as module:factory)")
    from torchvision import models

    def make(**options: Any) -> nn.Module:
        model: nn.Module = models.get_model(name, weights=None, **options)
        return model

    return make


def _imported(name: str) -> Callable[..., nn.Module]:
    module_name, _, factory_name = name.partition(":")
    try:
        module = importlib.import_module(module_name)
    except (ImportError, ValueError) as error:
        raise ModelError(f"model {name!r}: cannot import {module_name!r}: {error}") from error
    factory: Callable[..., nn.Module] | None = getattr(module, factory_name, None)
    if not callable(factory):
        raise ModelError(f"model {name!r}: {module_name!r} has no factory {factory_name!r}")
    return factory


def _torchvision_names() -> tuple[str, ...]:
    from torchvision import models

    # Only the top module: detection, segmentation and video models are no classifiers.
    return tuple(models.list_models(module=models))
