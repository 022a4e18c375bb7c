"""Which weights does torchvision publish for a network, and is the file here the published one?

torchvision writes the first digits of a file's sha256 into its name. torch's own loader looks at
them while it downloads and never again, and unpickles what it finds; here a file is compared before
every reading, and read as any other: ``weights_only``, without a fall-back.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from trainers.errors import ModelError
from trainers.models.weights import read_state, weights_hash

# As torch.hub reads it out of a name: resnet18-f37072fd.pth.
_HASH = re.compile(r"-([a-f0-9]+)\.[^-]*$")


def published_weights(name: str, which: str = "") -> Any:
    """Torchvision's entry for a network's published weights; nothing is fetched.

    Args:
        name: of the network.
        which: ``IMAGENET1K_V1`` ...; empty = the newest, which torchvision may change.

    Raises:
        ModelError: there are none, or none of that name; the message lists those there are.
    """
    from torchvision import models

    try:
        entries = models.get_model_weights(name)
    except ValueError as error:
        raise ModelError(f"model {name!r}: torchvision publishes no weights for it") from error
    try:
        return entries[which or "DEFAULT"]
    except KeyError:
        raise ModelError(
            f"model {name!r}: torchvision publishes no weights {which!r} for it; there are "
            f"{', '.join(entries.__members__)}"
        ) from None


def published_file(name: str, which: str = "") -> Path:
    """Where torchvision keeps those weights once they are downloaded; it may not exist yet.

    Raises:
        ModelError: see ``published_weights``.
    """
    url: str = published_weights(name, which).url
    return Path(torch.hub.get_dir()) / "checkpoints" / url.rpartition("/")[2]


def fetched_file(name: str, which: str = "") -> Path:
    """The file of those weights, downloaded if it is not there, compared with its name's hash.

    Raises:
        ModelError: there are none, they cannot be fetched, or the file is another one.
    """
    path = published_file(name, which)
    expected = _HASH.search(path.name)
    prefix = expected.group(1) if expected else ""
    if not path.exists():
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            url: str = published_weights(name, which).url
            torch.hub.download_url_to_file(url, str(path), prefix or None, progress=False)
        except (OSError, RuntimeError) as error:
            raise ModelError(
                f"model {name!r}: torchvision's weights cannot be fetched ({error}); give the path "
                "of a local file instead"
            ) from error
    found = weights_hash(path)
    if not found.startswith(prefix):
        raise ModelError(
            f"weights {path}: the sha256 is {found[: len(prefix)]}..., not {prefix}... as in the "
            "file's name: it is cut short or another file. Delete it, and it is downloaded again"
        )
    return path


def published_state(name: str, which: str = "") -> dict[str, Tensor]:
    """Torchvision's published weights of a network.

    Raises:
        ModelError: see ``fetched_file``; or the file holds more than tensors.
    """
    path = fetched_file(name, which)
    try:
        return read_state(path)
    except ModelError as error:
        raise ModelError(f"{error}. Delete {path}, and it is downloaded again") from error
