"""How does a file reach the disk whole or not at all? The one answer of all three rooms.

Temporary name beside the target, flush, rename, flush of the folder. Temporary files of killed
processes start with ``.tmp-``, so that whoever owns the folder can sweep them.
"""

from __future__ import annotations

import errno
import os
import secrets
from pathlib import Path

TEMPORARY = ".tmp-"


def write_atomically(path: Path | str, content: bytes | str) -> None:
    """Put ``content`` at ``path``; after a kill at any instant the old or the new file is there.

    The folder is made if it is missing.

    Raises:
        IsADirectoryError: ``path`` names no file, as ``.``, ``/`` and the empty text.
        OSError: the storage refused.
    """
    path = Path(path)
    if not path.name:
        raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR), str(path))
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
