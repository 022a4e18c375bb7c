"""What may stand in ``data.options``, set by set, and what does each value have to be?"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import torch

from trainers.data.augment import AugmentSpec
from trainers.data.images import Normalisation
from trainers.data.prefetch import DecodePool
from trainers.data.views import View
from trainers.errors import DataError
from trainers.phases import EXECUTION_OPTIONS, DataSpec

AUGMENT = ("pad", "flip")
VIEW = ("resolution", "eval_resize", "interpolation", "mean", "std", "crop_scale", "crop_ratio",
        "flip", "eval_split", *EXECUTION_OPTIONS)  # fmt: skip
# ImageNet's, as pretrained networks expect.
MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
# Shorter side to centre crop of the published ImageNet accuracies.
EVAL_RESIZE = 256 / 224
# Batches in the making: one is used while the next two are decoded.
PREFETCH = 2


def refuse_options(spec: DataSpec, allowed: tuple[str, ...]) -> None:
    """Refuse an option that the set has not.

    Raises:
        DataError: naming it.
    """
    for option in spec.options:
        if option not in allowed:
            raise DataError(
                f"data set {spec.name!r} has no option {option!r} "
                f"(it has: {', '.join(allowed) or 'none'})"
            )


def refuse_skipping(spec: DataSpec) -> None:
    """Refuse ``on_bad_sample: skip`` for a set that is decoded whole before anything starts.

    Raises:
        DataError: it was asked for.
    """
    if spec.on_bad_sample != "stop":
        raise DataError(
            f"data.on_bad_sample is {spec.on_bad_sample!r}; data set {spec.name!r} is read whole "
            "at the start and stops at a broken image. Only imagefolder and imagenet_parquet skip"
        )


def root_of(spec: DataSpec) -> str:
    """``data.path``.

    Raises:
        DataError: it is not given.
    """
    if spec.path is None:
        raise DataError(f"data set {spec.name!r} needs data.path")
    return spec.path


def normalisation_of(spec: DataSpec) -> Normalisation:
    """Mean and std of the options, else ImageNet's.

    Raises:
        DataError: not a number a channel, or a deviation that is not positive.
    """
    mean = _channels(spec.options, "mean", MEAN)
    std = _channels(spec.options, "std", STD)
    if len(mean) != len(std) or any(s <= 0 for s in std):
        raise DataError(
            f"data.options: mean {list(mean)} and std {list(std)} are one number a channel each, "
            "and every std is above 0"
        )
    return Normalisation(mean=mean, std=std)


def small_augment(spec: DataSpec, default: AugmentSpec) -> AugmentSpec:
    """The augmentation of sets in memory: ``pad`` and ``flip``, else the set's default.

    Raises:
        DataError: one of them is of another kind.
    """
    pad, flip = spec.options.get("pad", default.pad), spec.options.get("flip", default.flip)
    if isinstance(pad, bool) or not isinstance(pad, int) or pad < 0 or not isinstance(flip, bool):
        raise DataError(
            f"data.options: pad is {pad!r} and flip is {flip!r}; pad is a whole number of pixels, "
            "0 or more, and flip is true or false"
        )
    return AugmentSpec(pad=pad, flip=flip)


def view_of(spec: DataSpec) -> View:
    """What is seen of images of any size.

    Raises:
        DataError: an option is of another kind or out of range.
    """
    options = spec.options
    resolution = _whole(options, "resolution", 224, least=1)
    eval_resize = _whole(options, "eval_resize", round(EVAL_RESIZE * resolution), least=resolution)
    interpolation = options.get("interpolation", "bilinear")
    if interpolation not in ("bilinear", "bicubic"):
        raise DataError(
            f"data.options.interpolation is {interpolation!r}; allowed: bilinear, bicubic"
        )
    normalisation = normalisation_of(spec)
    if len(normalisation.mean) not in (1, 3):
        raise DataError(
            f"data.options.mean has {len(normalisation.mean)} channels; images are read in colour "
            "(3) or grey (1)"
        )
    return View(
        resolution=resolution,
        eval_resize=eval_resize,
        interpolation=interpolation,
        normalisation=normalisation,
    )


def crop_augment(spec: DataSpec) -> AugmentSpec:
    """Random resized crop and flip, the ImageNet recipe; ``crop_scale: null`` = central crop.

    Raises:
        DataError: an option is of another kind or out of range.
    """
    flip = spec.options.get("flip", True)
    if not isinstance(flip, bool):
        raise DataError(f"data.options.flip is {flip!r}; it is true or false")
    scale = spec.options.get("crop_scale", (0.08, 1.0))
    ratio = _range(spec.options.get("crop_ratio", (3 / 4, 4 / 3)), "crop_ratio", most=math.inf)
    return AugmentSpec(
        flip=flip,
        crop_scale=None if scale is None else _range(scale, "crop_scale", most=1.0),
        crop_ratio=ratio,
    )


def pool_of(spec: DataSpec) -> DecodePool:
    """The decoding threads: ``decode_workers``, by default as many as this process may use.

    Raises:
        DataError: not a whole number.
    """
    return DecodePool(
        num_threads=_whole(spec.options, "decode_workers", torch.get_num_threads(), least=0),
        ahead=_whole(spec.options, "prefetch", PREFETCH, least=1),
    )


def _whole(options: Mapping[str, Any], name: str, default: int, *, least: int) -> int:
    value = options.get(name, default)
    if isinstance(value, bool) or not isinstance(value, int) or value < least:
        raise DataError(f"data.options.{name} is {value!r}; it is a whole number, {least} or more")
    return value


def _channels(
    options: Mapping[str, Any], name: str, default: tuple[float, ...]
) -> tuple[float, ...]:
    value = options.get(name, default)
    numbers = value if isinstance(value, (list, tuple)) else ()
    if not numbers or not all(_is_number(each) for each in numbers):
        raise DataError(
            f"data.options.{name} is {value!r}; it is a list of numbers, one a channel: [0.5] for "
            "grey images, [0.485, 0.456, 0.406] in colour"
        )
    return tuple(numbers)


def _is_number(value: Any) -> bool:
    is_one = isinstance(value, (int, float)) and not isinstance(value, bool)
    return is_one and math.isfinite(value)


def _range(value: Any, name: str, *, most: float) -> tuple[float, float]:
    pair = list(value) if isinstance(value, (list, tuple)) else []
    numbers = [v for v in pair if isinstance(v, (int, float)) and not isinstance(v, bool)]
    if len(pair) != 2 or len(numbers) != 2 or not 0 < numbers[0] <= numbers[1] <= most:
        raise DataError(
            f"data.options.{name} is {value!r}; it is [least, most], both above 0"
            + (f" and at most {most:g}" if math.isfinite(most) else "")
        )
    return float(numbers[0]), float(numbers[1])
