"""How one seed of a run feeds every random stream: by name.

A stream is addressed by what it is for (``"order"``, epoch 3), never by how many numbers were
drawn before. So a phase that resumes in the middle of an epoch, or runs on another number of
ranks, draws what the undisturbed run drew, and no generator state has to be saved.
"""

from __future__ import annotations

import hashlib

import torch


def derive(seed: int, *names: str | int) -> int:
    """A 63-bit seed for the stream that ``names`` address under the run's ``seed``."""
    text = "/".join(str(part) for part in (seed, *names))
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "big") >> 1


def generator(seed: int, *names: str | int) -> torch.Generator:
    """A fresh CPU generator at the start of that stream."""
    return torch.Generator().manual_seed(derive(seed, *names))
