"""Which files are torn, and which are still what they were? Sweeping and hashing."""

from __future__ import annotations

import hashlib
from pathlib import Path

from solvers.atomic import TEMPORARY

_CHUNK_BYTES = 1 << 20


def sweep_temporaries(folder: Path) -> int:
    """Delete what killed writers left below ``folder``; only for the holder of the run's lock."""
    count = 0
    for path in sorted(folder.rglob(f"{TEMPORARY}*")):
        if path.is_file() and not path.is_symlink():
            path.unlink(missing_ok=True)
            count += 1
    return count


def sha256_of(path: Path) -> str:
    """Hash of a file's bytes, read in pieces."""
    digest = hashlib.sha256()
    with path.open("rb") as stream:
        while chunk := stream.read(_CHUNK_BYTES):
            digest.update(chunk)
    return digest.hexdigest()
