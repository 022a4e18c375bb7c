"""What of a configuration may leave the run folder? Everything but secrets.

Two rules: a key whose name says that it is a secret loses its value, and every URL loses its user
name and password. ``num_tokens`` and the like are counts, not secrets.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

HIDDEN = "(hidden)"
_SECRET = re.compile(
    r"pass(word|wd|phrase)?$|secret|credential|api_?key|access_?key|private_?key|(^|_)token$|auth",
    re.IGNORECASE,
)
_USER_INFO = re.compile(r"(?P<scheme>[A-Za-z][A-Za-z0-9+.-]*://)[^/@\s]*@")
_QUERY_SECRET = re.compile(
    r"(?P<key>[?&](?:sig|signature|token|password|secret|key)=)[^&\s]+", re.IGNORECASE
)


def redacted(value: Any, key: str = "") -> Any:
    """A copy of a tree without secrets."""
    if isinstance(value, Mapping):
        return {name: redacted(inner, str(name)) for name, inner in value.items()}
    if key and _SECRET.search(key) and isinstance(value, (str, bytes, list, tuple)):
        return HIDDEN
    if isinstance(value, (list, tuple)):
        return [redacted(inner) for inner in value]
    return redacted_text(value) if isinstance(value, str) else value


def redacted_text(text: str) -> str:
    """A text whose URLs carry no user names, passwords or signatures."""
    return _QUERY_SECRET.sub(rf"\g<key>{HIDDEN}", _USER_INFO.sub(r"\g<scheme>", text))
