"""How does a file reach the disk whole or not at all, without importing torch?

Temporary name beside the target, flush, rename, flush of the folder. Temporary files of killed
processes start with ``.tmp-`` and are swept when a run is opened for writing.
"""

from __future__ import annotations

import hashlib
import os
import secrets
from pathlib import Path

TEMPORARY = ".tmp-"
_CHUNK_BYTES = 1 << 20


def write_atomically(path: Path, content: bytes | str) -> None:
    """Put ``content`` at ``path``; after a kill at any instant the old or the new file is there."""
    data = content.encode() if isinstance(content, str) else content
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f"{TEMPORARY}{os.getpid()}-{secrets.token_hex(4)}-{path.name}")
    try:
        with temporary.open("xb") as stream:
            stream.write(data)
            stream.flush()
            os.fsync(stream.fileno())
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)
    flush_folder(path.parent)


def flush_folder(folder: Path) -> None:
    """Make names created or renamed in ``folder`` survive a power loss."""
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


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
