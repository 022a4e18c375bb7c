"""Who else on this machine may read a run, and which token guards the cluster?

A run folder holds what the configuration holds, so it is made for its owner alone: folders 0700,
files 0600. Whoever shares runs within a group sets ``MPQ_UMASK=027`` or looser. The token of a
Ray cluster lets its reader run code as us; Ray's own tool was seen to write it readable for all.
"""

from __future__ import annotations

import os
import secrets
import stat
from pathlib import Path

from orchestrator.errors import UserError

UMASK_ENV = "MPQ_UMASK"
_DEFAULT_UMASK = 0o077


def close_umask() -> int:
    """Make everything that this process writes from now on private; returns the mask.

    Raises:
        UserError: MPQ_UMASK is no octal number.
    """
    text = os.environ.get(UMASK_ENV, "")
    try:
        mask = int(text, 8) if text else _DEFAULT_UMASK
        if not 0 <= mask <= 0o777:
            raise ValueError("out of range")
    except ValueError as error:
        raise UserError(
            f"{UMASK_ENV}={text!r} is no mask", "environment", str(error), "write it like 027"
        ) from error
    os.umask(mask)
    return mask


def make_private(folder: Path) -> None:
    """Take a folder's rights for others away, as far as MPQ_UMASK asks for; ours only."""
    there = folder.stat()
    closed = stat.S_IMODE(there.st_mode) & ~close_umask()
    if there.st_uid == os.getuid() and closed != stat.S_IMODE(there.st_mode):
        folder.chmod(closed)


def token_path() -> Path:
    """Where Ray looks for the token of its clusters, unless RAY_AUTH_TOKEN holds it."""
    given = os.environ.get("RAY_AUTH_TOKEN_PATH")
    return Path(given).expanduser() if given else Path.home() / ".ray" / "auth_token"


def ensure_token() -> str:
    """Have a token, readable by nobody else, before Ray asks for one.

    Returns:
        What was mended, for the user; empty when nothing was.

    Raises:
        UserError: the token belongs to somebody else, or cannot be written.
    """
    if os.environ.get("RAY_AUTH_MODE", "token") != "token" or os.environ.get("RAY_AUTH_TOKEN"):
        return ""
    path = token_path()
    try:
        if path.is_file() and path.stat().st_size:
            return _close(path)
        path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        handle = os.open(path, os.O_WRONLY | os.O_CREAT, 0o600)
        with os.fdopen(handle, "w") as stream:
            os.fchmod(stream.fileno(), 0o600)
            stream.write(secrets.token_hex(32))
            stream.flush()
            os.fsync(stream.fileno())
    except OSError as error:
        raise UserError(
            "there is no token for Ray's clusters and none can be written", str(path),
            error.strerror or str(error), "set RAY_AUTH_TOKEN, or RAY_AUTH_TOKEN_PATH to a file",
        ) from error  # fmt: skip
    return f"made a token for Ray's clusters: {path}"


def readable_by_others(path: Path) -> bool:
    """Whether anyone but the owner may read or write a file or folder."""
    return bool(stat.S_IMODE(path.stat().st_mode) & 0o077)


def _close(path: Path) -> str:
    if not readable_by_others(path):
        return ""
    if path.stat().st_uid != os.getuid():
        raise UserError(
            "the token of Ray's clusters belongs to somebody else and others can read it",
            str(path), "whoever reads it can run code on the cluster",
            "set RAY_AUTH_TOKEN_PATH to a file of your own with mode 600",
        )  # fmt: skip
    path.chmod(0o600)
    return f"{path} could be read by others; its mode is 600 now"
