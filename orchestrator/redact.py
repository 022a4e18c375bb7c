"""What of a configuration may leave the person's hands? Everything but secrets.

Three rules, for journal, MLflow, report and terminal alike. A key whose name says that it is a
secret loses its value (``num_tokens`` and the like are counts, not secrets). A URL loses its user
name, password and signature. And what was found to be secret in this run's configuration is
hidden wherever it turns up again, in a command line or in the text of somebody else's error.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

HIDDEN = "(hidden)"
# A shorter value would hide half of every text it is part of, and protects nothing.
_SHORTEST = 6
# ``indicators.random_pass`` is a pass through the network.
_SECRET = re.compile(
    r"(?<!random_)pass(word|wd|phrase)?$|secret|credential|api_?key|access_?key|private_?key|(^|[_-])token$"
    r"|auth|bearer|signature$|(^|[_-])sas$",
    re.IGNORECASE,
)
_USER_INFO = re.compile(r"(?P<scheme>[A-Za-z][A-Za-z0-9+.-]*://)(?P<user>[^/@\s]*)@")
_QUERY_SECRET = re.compile(
    r"(?P<key>[?&;](?:sig|signature|token|password|passwd|secret|key|api_?key|access_?key(?:_?id)?"
    r"|secret_?(?:access_?)?key|x-amz-(?:signature|credential|security-token)"
    r"|awsaccesskeyid)=)(?P<value>[^&;\s'\"]+)",
    re.IGNORECASE,
)
_BEARER = re.compile(r"(?P<key>\b(?:Bearer|Basic)\s+)(?P<value>[A-Za-z0-9._~+/=-]{6,})")
_PAIR = re.compile(
    r"(?P<key>\b[\w.-]*(?:password|passwd|passphrase|secret|api_?key|access_?key|private_?key"
    r"|auth_?token|access_?token)[\w.-]*[\"']?\s*[=:]\s*[\"']?)(?P<value>[^\s\"',;&(]+)",
    re.IGNORECASE,
)


def is_secret_name(key: str) -> bool:
    """Whether a key's name says that its value is a secret."""
    return bool(_SECRET.search(key))


def redacted(value: Any, key: str = "") -> Any:
    """A copy of a tree without secrets."""
    if isinstance(value, Mapping):
        if key and is_secret_name(key):
            return {name: HIDDEN for name in value}
        return {name: redacted(inner, str(name)) for name, inner in value.items()}
    if key and is_secret_name(key) and isinstance(value, (str, bytes, list, tuple, int, float)):
        return value if isinstance(value, bool) else HIDDEN
    if isinstance(value, (list, tuple)):
        return [redacted(inner) for inner in value]
    return redacted_text(value) if isinstance(value, str) else value


def redacted_text(text: str) -> str:
    """A text whose URLs, headers and pairs carry no user names, passwords or signatures."""
    text = _USER_INFO.sub(r"\g<scheme>", text)
    for pattern in (_QUERY_SECRET, _BEARER, _PAIR):
        text = pattern.sub(rf"\g<key>{HIDDEN}", text)
    return text


def redacted_arguments(arguments: Sequence[str]) -> list[str]:
    """A command line as it may be kept: values of secret keys behind ``--set`` are hidden."""
    shown = []
    for argument in arguments:
        prefix, text = ("--set=", argument[6:]) if argument.startswith("--set=") else ("", argument)
        key, equals, _ = text.partition("=")
        if equals and re.fullmatch(r"[\w.-]+", key) and is_secret_name(key.rpartition(".")[2]):
            shown.append(f"{prefix}{key}={HIDDEN}")
        else:
            shown.append(prefix + redacted_text(text))
    return shown


def secrets_of(tree: Any, key: str = "") -> frozenset[str]:
    """Every secret value of a configuration."""
    return frozenset(s for s in _secrets(tree, key) if len(s) >= _SHORTEST)


def keys_of_secrets(tree: Mapping[str, Any], above: str = "") -> tuple[str, ...]:
    """Dotted keys of a configuration whose values hold secrets."""
    found: list[str] = []
    for name, inner in tree.items():
        place = f"{above}.{name}" if above else str(name)
        if isinstance(inner, Mapping) and not is_secret_name(str(name)):
            found += keys_of_secrets(inner, place)
        elif secrets_of(inner, str(name)):
            found.append(place)
    return tuple(found)


def hider(tree: Any) -> Callable[[Any], Any]:
    """A function that hides a configuration's secrets in any text or tree, wherever they stand."""
    known = sorted(secrets_of(tree), key=len, reverse=True)

    def hide(value: Any) -> Any:
        if isinstance(value, str):
            for secret in known:
                value = value.replace(secret, HIDDEN)
            return redacted_text(value)
        if isinstance(value, Mapping):
            return {name: hide(inner) for name, inner in value.items()}
        if isinstance(value, (list, tuple)):
            return [hide(inner) for inner in value]
        return value

    return hide


def _secrets(value: Any, key: str) -> Iterator[str]:
    if isinstance(value, Mapping):
        for name, inner in value.items():
            yield from _secrets(inner, key if key and is_secret_name(key) else str(name))
    elif isinstance(value, (list, tuple)):
        for inner in value:
            yield from _secrets(inner, key)
    elif isinstance(value, str):
        if key and is_secret_name(key):
            yield value
        for found in _USER_INFO.finditer(value):
            user, _, password = found["user"].partition(":")
            yield from (user, password)
        for pattern in (_QUERY_SECRET, _BEARER, _PAIR):
            yield from (found["value"] for found in pattern.finditer(value))
    elif isinstance(value, (int, float)) and not isinstance(value, bool) and is_secret_name(key):
        yield str(value)
