"""How do pretrained weights get into a network, and which file was it?

A file is a state dict in torch's format, read without unpickling code (``weights_only``), or
safetensors. There is no fall-back: a file that cannot be read so is refused, and every key must
fit.
"""

from __future__ import annotations

import hashlib
import importlib
import pickle
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from trainers.errors import ModelError

# Restored by torch when absent; files written before torch 0.4.1 and hand-made ones lack it.
_OPTIONAL = "num_batches_tracked"
_CHUNK_BYTES = 1 << 20


def load_weights(model: nn.Module, state: Mapping[str, Tensor], where: str) -> None:
    """Load a state dict into ``model``; every key and shape must fit.

    Args:
        model: changed in place, or not at all when an error is raised.
        state: of ``read_state``.
        where: what to call its source in messages.

    Raises:
        ModelError: it is another network's; the message names the first key that differs and both
            shapes.
    """
    state = {key.removeprefix("module."): value for key, value in state.items()}
    difference = _first_difference(model.state_dict(), state)
    if difference:
        raise ModelError(f"weights {where} do not fit the network: {difference}")
    model.load_state_dict(state)


def read_state(path: Path) -> dict[str, Tensor]:
    """The state dict in a ``.safetensors`` file or a torch file.

    Raises:
        ModelError: missing, unreadable, or not a plain state dict.
    """
    if not path.is_file():
        raise ModelError(f"weights {path}: there is no such file")
    if path.suffix == ".safetensors":
        return _read_safetensors(path)
    try:
        content: Any = torch.load(path, map_location="cpu", weights_only=True)
    except (RuntimeError, OSError, EOFError, ValueError, KeyError, pickle.UnpicklingError) as error:
        first_line = str(error).strip().splitlines()[0] if str(error).strip() else repr(error)
        raise ModelError(
            f"weights {path}: not a readable state dict ({first_line}); save one with "
            "torch.save(model.state_dict(), path)"
        ) from error
    if isinstance(content, Mapping) and isinstance(content.get("state_dict"), Mapping):
        content = content["state_dict"]
    if not isinstance(content, Mapping) or not all(
        isinstance(key, str) and isinstance(value, Tensor) for key, value in content.items()
    ):
        raise ModelError(f"weights {path}: the file holds no state dict of named tensors")
    return dict(content)


def weights_hash(path: str | Path) -> str:
    """sha256 of the weight file, for the run's record.

    Raises:
        ModelError: the file cannot be read.
    """
    digest = hashlib.sha256()
    try:
        with Path(path).open("rb") as file:
            while chunk := file.read(_CHUNK_BYTES):
                digest.update(chunk)
    except OSError as error:
        raise ModelError(f"weights {path}: {error.strerror or error}") from error
    return digest.hexdigest()


def _read_safetensors(path: Path) -> dict[str, Tensor]:
    try:
        safetensors: Any = importlib.import_module("safetensors.torch")
    except ImportError as error:
        raise ModelError(
            f"weights {path}: reading safetensors needs the package of that name "
            "(pip install safetensors)"
        ) from error
    try:
        return dict(safetensors.load_file(path))
    except (safetensors.SafetensorError, OSError, ValueError) as error:
        raise ModelError(f"weights {path}: not a readable safetensors file: {error}") from error


def _first_difference(own: Mapping[str, Tensor], given: Mapping[str, Tensor]) -> str | None:
    for key, value in own.items():
        if key not in given:
            if key.endswith(_OPTIONAL):
                continue
            return f"{key} {tuple(value.shape)} is missing"
        if given[key].shape != value.shape:
            return (
                f"{key} is {tuple(given[key].shape)} in the file, "
                f"{tuple(value.shape)} in the network"
            )
    for key, value in given.items():
        if key not in own:
            return f"{key} {tuple(value.shape)} is in the file but not in the network"
    return None
