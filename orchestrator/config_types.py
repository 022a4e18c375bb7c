"""Which single values may stand in an experiment file? Types with their checks attached.

A check raises pydantic's error with a code of its own, ``mpq_allowed`` (the text is what would be
allowed) or ``mpq_name`` (a list of names), which ``config_problems`` tells to a person.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any

from annotated_types import Ge, Le, MinLen
from pydantic import AfterValidator, BeforeValidator, ValidationInfo
from pydantic_core import PydanticCustomError

from solvers.accounting import accounting_named
from solvers.errors import LimitError, TableError
from solvers.limits import limit_from

NAME_PATTERN = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,127}\Z")
NAME_RULE = "1-128 characters from A-Z a-z 0-9 . _ - starting with a letter or digit"
# One bit is binary, which no quantizer here implements; 32 means "as it is".
MAX_BITS = 16
FULL_PRECISION_BITS = 32
NO_LATENCY = (
    "limit latency_us: an experiment has no latency table; learn the indicators within other "
    "limits, then solve with mpq sweep RUN --devices FILE, a YAML file that names latency_table"
)
# Of a path that is written like s3://bucket/images.
MOUNTED = "a path on a mounted file system: nothing is read by URI"


def _name(value: str) -> str:
    if not NAME_PATTERN.match(value):
        raise PydanticCustomError("mpq_allowed", NAME_RULE)
    return value


def _regex(value: str) -> str:
    try:
        re.compile(value)
    except re.error as error:
        raise PydanticCustomError(
            "mpq_allowed", "a regular expression ({why})", {"why": str(error)}
        ) from error
    return value


def _ascending(value: tuple[int, ...]) -> tuple[int, ...]:
    if list(value) != sorted(set(value)):
        raise PydanticCustomError("mpq_allowed", "each bit-width once, _ascending")
    return value


def _widths(value: tuple[int, ...]) -> tuple[int, ...]:
    """32 stands alone: full precision has no step size, so nothing to weigh it against others."""
    if value != (FULL_PRECISION_BITS,) and any(bits > MAX_BITS for bits in value):
        allowed = f"bit-widths from 2 to {MAX_BITS}, or [{FULL_PRECISION_BITS}] alone"
        raise PydanticCustomError("mpq_allowed", allowed)
    return value


def _pinned(value: int) -> int:
    if value == 1:
        raise PydanticCustomError("mpq_allowed", f"0 (full precision), or 2 to {MAX_BITS}")
    return value


def _unique(value: tuple[Any, ...]) -> tuple[Any, ...]:
    if len(set(value)) != len(value):
        raise PydanticCustomError("mpq_allowed", "every entry once")
    return value


def _readable(value: str | None) -> str | None:
    if value is None:
        return value
    if "://" in value:
        raise PydanticCustomError("mpq_allowed", MOUNTED)
    try:
        path = Path(value).expanduser()
        if path.is_dir():
            next(iter(path.iterdir()), None)
        else:
            with path.open("rb"):
                pass
    except (OSError, ValueError, RuntimeError) as error:
        reason = getattr(error, "strerror", None) or str(error)
        raise PydanticCustomError(
            "mpq_allowed", "a file or folder that can be read ({why})", {"why": reason}
        ) from error
    return value


def from_here(path: str | None) -> str | None:
    """A relative path means the driver's folder: a Ray worker runs in one of its own."""
    if path is None:
        return path
    return str(Path(path).expanduser().absolute())


def is_published(weights: str | None) -> bool:
    """Whether weights are torchvision's: ``torchvision``, or ``torchvision:NAME`` of several."""
    return weights is not None and weights.partition(":")[0] == "torchvision"


def _weights(value: str | None) -> str | None:
    return value if is_published(value) else _readable(value)


def known(kind: str) -> AfterValidator:
    """A check against the names that the caller of ``load_config`` brought along, if any."""

    def check(value: str, info: ValidationInfo) -> str:
        names = (info.context or {}).get(kind)
        if names is None or value in names or (kind == "models" and ":" in value):
            return value
        raise PydanticCustomError("mpq_name", "{kind}", {"kind": kind, "names": sorted(names)})

    return AfterValidator(check)


def _number_as_text(value: Any) -> Any:
    is_number = isinstance(value, (int, float)) and not isinstance(value, bool)
    return str(value) if is_number else value


def _limits(value: Mapping[str, str]) -> Mapping[str, str]:
    faults = []
    for kind, amount in value.items():
        try:
            limit_from(kind, amount)
        except LimitError as error:
            faults.append(str(error))
        if kind == "latency_us":
            faults.append(NO_LATENCY)
    if faults:
        raise PydanticCustomError("mpq_allowed", "limits ({why})", {"why": "; ".join(faults)})
    return value


def _accounting(value: str) -> str:
    try:
        accounting_named(value)
    except TableError as error:
        raise PydanticCustomError("mpq_allowed", "{why}", {"why": str(error)}) from error
    return value


Name = Annotated[str, AfterValidator(_name)]
ReadablePath = Annotated[str | None, AfterValidator(_readable)]
PolicyFile = Annotated[str, AfterValidator(_readable)]
WeightsSource = Annotated[str | None, AfterValidator(_weights)]
AccountingName = Annotated[str, AfterValidator(_accounting)]
Unique = AfterValidator(_unique)
Bits = Annotated[int, Ge(2), Le(MAX_BITS)]
PinBits = Annotated[int, Ge(0), Le(MAX_BITS), AfterValidator(_pinned)]
Width = Annotated[int, Ge(2), Le(FULL_PRECISION_BITS)]
Candidates = Annotated[
    tuple[Width, ...], MinLen(1), AfterValidator(_ascending), AfterValidator(_widths)
]
Regex = Annotated[str, MinLen(1), AfterValidator(_regex)]
LimitText = Annotated[str, BeforeValidator(_number_as_text)]
LimitSet = Annotated[Mapping[str, LimitText], MinLen(1), AfterValidator(_limits)]
Alpha = Annotated[float, Ge(0.0), Le(1e6)]
