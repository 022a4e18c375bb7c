"""How does untrusted JSON become a value, or one clear line?

``Fields`` walks a decoded mapping. Every complaint names the file and the dotted key.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from solvers.errors import FormatError


@dataclass(frozen=True, slots=True)
class Fields:
    """A mapping of a file, with the address at which it stands.

    Attributes:
        values: decoded mapping.
        where: file and dotted key, as messages show it.
    """

    values: Mapping[str, Any]
    where: str

    @staticmethod
    def of(value: object, where: str) -> Fields:
        """A mapping, or a complaint."""
        if not isinstance(value, Mapping):
            raise FormatError(f"{where}: expected an object, found {_kind(value)}")
        return Fields(value, where)

    def raw(self, key: str) -> Any:
        """The value of a key that must be there."""
        if key not in self.values:
            raise FormatError(f"{self.where}: key {key!r} is missing")
        return self.values[key]

    def text(self, key: str) -> str:
        """A string."""
        value = self.raw(key)
        if not isinstance(value, str):
            raise FormatError(f"{self.where}: {key} must be text, found {_kind(value)}")
        return value

    def whole(self, key: str) -> int:
        """An integer, not a bool and not 3.0."""
        value = self.raw(key)
        if isinstance(value, bool) or not isinstance(value, int):
            raise FormatError(f"{self.where}: {key} must be a whole number, found {value!r}")
        return value

    def number(self, key: str) -> float:
        """A finite number."""
        value = self.raw(key)
        if isinstance(value, bool) or not isinstance(value, (int, float)):
            raise FormatError(f"{self.where}: {key} must be a number, found {_kind(value)}")
        try:
            number = float(value)
        except OverflowError:
            number = math.inf
        if not math.isfinite(number):
            raise FormatError(f"{self.where}: {key} is {value!r}; it must be finite")
        return number

    def number_or_none(self, key: str) -> float | None:
        """A finite number or null."""
        return None if self.raw(key) is None else self.number(key)

    def whole_or_none(self, key: str) -> int | None:
        """An integer or null."""
        return None if self.raw(key) is None else self.whole(key)

    def flag(self, key: str) -> bool:
        """True or false."""
        value = self.raw(key)
        if not isinstance(value, bool):
            raise FormatError(f"{self.where}: {key} must be true or false, found {value!r}")
        return value

    def inner(self, key: str) -> Fields:
        """A nested mapping."""
        return Fields.of(self.raw(key), f"{self.where}: {key}")

    def items(self, key: str) -> Iterator[Fields]:
        """The mappings of a list."""
        for i, item in enumerate(self.listed(key)):
            yield Fields.of(item, f"{self.where}: {key}[{i}]")

    def listed(self, key: str) -> list[Any]:
        """A list."""
        value = self.raw(key)
        if not isinstance(value, list):
            raise FormatError(f"{self.where}: {key} must be a list, found {_kind(value)}")
        return value


def _kind(value: object) -> str:
    if value is None:
        return "nothing"
    return {"dict": "an object", "list": "a list", "str": "text", "bool": "true/false"}.get(
        type(value).__name__, f"{value!r}"
    )
