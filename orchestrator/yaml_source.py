"""What does a YAML file say, and on which line does it say it?

The file is read as a stream of parser events, never through YAML's object constructors: no tag
can build an object, no alias can blow the tree up, nesting is bounded without recursion, and the
line of every key is known. Scalars follow the YAML 1.2 core rules, because the 1.1 rules of
PyYAML surprise people: there ``3e9`` is a string, ``010`` is 8, ``1:30`` is 90 and ``no`` is
false. Not-a-number and infinity cannot be written at all.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from orchestrator.errors import ConfigError, ConfigProblem

KeyPath = tuple[str | int, ...]

MAX_BYTES = 256 * 1024
MAX_DEPTH = 24
_MAX_NUMBER_CHARS = 40

_INT = re.compile(r"[-+]?[0-9]+\Z")
_FLOAT = re.compile(r"[-+]?(\.[0-9]+|[0-9]+(\.[0-9]*)?)([eE][-+]?[0-9]+)?\Z")
_WORDS: Mapping[str, bool | None] = {
    "": None, "~": None, "null": None, "Null": None, "NULL": None,
    "true": True, "True": True, "TRUE": True, "false": False, "False": False, "FALSE": False,
}  # fmt: skip


@dataclass(frozen=True, kw_only=True, slots=True)
class YamlSource:
    """A parsed file: its tree and where every key of it stands.

    Attributes:
        file: the path as the user gave it.
        tree: mappings, lists, strings, integers, finite floats, booleans and None.
        lines: line of every key path, counted from 1; ``()`` is the document.
        problems: doubled keys and other faults that still leave a tree.
    """

    file: str
    tree: Any
    lines: Mapping[KeyPath, int]
    problems: tuple[ConfigProblem, ...] = ()


def read_yaml(path: str | Path) -> YamlSource:
    """Read one file.

    Raises:
        ConfigError: it cannot be read, is too large, or is not YAML.
    """
    file = str(path)
    try:
        with Path(path).open("rb") as stream:
            raw = stream.read(MAX_BYTES + 1)
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or str(error)
        raise _refusal(file, None, f"a path that cannot be read ({reason})", "a file") from error
    if len(raw) > MAX_BYTES:
        raise _refusal(file, None, f"more than {MAX_BYTES} bytes", f"at most {MAX_BYTES} bytes")
    try:
        text = raw.decode("utf-8")
    except UnicodeDecodeError as error:
        line = raw.count(b"\n", 0, error.start) + 1
        raise _refusal(file, line, "bytes that are no UTF-8 text", "UTF-8 text") from error
    return parse_yaml(text, file)


def parse_yaml(text: str, file: str) -> YamlSource:
    """Parse the text of one file; ``file`` is only its name in messages.

    Raises:
        ConfigError: the text is not one YAML document of plain values.
    """
    try:
        builder = _built(text, file)
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        line = mark.line + 1 if mark else None
        raise _refusal(file, line, error.problem or "a syntax error", "YAML") from error
    except yaml.reader.ReaderError as error:
        line = text.count("\n", 0, max(error.position, 0)) + 1
        raise _refusal(file, line, "a control character", "printable text") from error
    except (ValueError, OverflowError, yaml.YAMLError) as error:
        raise _refusal(file, None, f"text YAML cannot read ({error})", "YAML") from error
    return YamlSource(
        file=file,
        tree=builder.root,
        lines=builder.lines,
        problems=tuple(builder.problems),
    )


def _built(text: str, file: str) -> _TreeBuilder:
    """The tree from libyaml's events, 20 times faster than PyYAML's own, which 500 runs notice.

    Where libyaml finds a fault PyYAML reads the text again: its lines and words are the better.
    """
    for loader in (getattr(yaml, "CSafeLoader", None), yaml.SafeLoader):
        builder = _TreeBuilder(file)
        try:
            for event in yaml.parse(text, Loader=loader or yaml.SafeLoader):
                builder.take(event)
        except (ValueError, OverflowError, yaml.YAMLError):
            if loader is yaml.SafeLoader:
                raise
        else:
            break
    return builder


def parse_value(text: str, origin: str) -> Any:
    """The value in ``--set a.b=VALUE``, typed as YAML would type it.

    Raises:
        ConfigError: it is not YAML.
    """
    source = parse_yaml(text, origin)
    if source.problems:
        raise ConfigError(source.problems)
    return source.tree


def dump_yaml(tree: Mapping[str, Any]) -> str:
    """The tree as YAML text that ``parse_yaml`` reads back to an equal tree."""
    return str(
        yaml.dump(tree, Dumper=_Dumper, sort_keys=False, allow_unicode=True, width=96, indent=2)
    )


def _refusal(file: str, line: int | None, found: str, allowed: str) -> ConfigError:
    problem = ConfigProblem(file=file, line=line, key="(file)", found=found, allowed=allowed)
    return ConfigError((problem,))


@dataclass(slots=True)
class _Open:
    """A mapping or list whose end has not been seen."""

    value: dict[str, Any] | list[Any]
    path: KeyPath
    key: str | None = None
    doubled: bool = False


@dataclass(slots=True)
class _TreeBuilder:
    """Turns parser events into a tree without recursion."""

    file: str
    root: Any = None
    lines: dict[KeyPath, int] = field(default_factory=dict)
    problems: list[ConfigProblem] = field(default_factory=list)
    _stack: list[_Open] = field(default_factory=list)
    _documents: int = 0

    def take(self, event: yaml.events.Event) -> None:
        line = event.start_mark.line + 1 if event.start_mark else 1
        if isinstance(event, yaml.events.DocumentStartEvent):
            self._documents += 1
            if self._documents > 1:
                raise _refusal(self.file, line, "a second document ('---')", "one document")
        elif isinstance(event, yaml.events.AliasEvent):
            raise _refusal(self.file, line, f"the alias '*{event.anchor}'", "values written out")
        elif isinstance(event, yaml.events.NodeEvent):
            self._take_node(event, line)
        elif isinstance(event, (yaml.events.MappingEndEvent, yaml.events.SequenceEndEvent)):
            self._stack.pop()

    def _take_node(self, event: yaml.events.NodeEvent, line: int) -> None:
        if event.anchor is not None:
            raise _refusal(self.file, line, f"the anchor '&{event.anchor}'", "values written out")
        tag = getattr(event, "tag", None)
        if tag is not None:
            raise _refusal(self.file, line, f"the tag '{tag}'", "plain values, no tags")
        if isinstance(event, yaml.events.ScalarEvent):
            if self._at_key():
                self._take_key(event, line)
            else:
                self._place(self._scalar(event, line), line)
            return
        if self._at_key():
            raise _refusal(self.file, line, "a mapping or list as a key", "a word as a key")
        if len(self._stack) >= MAX_DEPTH:
            raise _refusal(
                self.file, line, f"more than {MAX_DEPTH} levels of nesting", f"at most {MAX_DEPTH}"
            )
        value: dict[str, Any] | list[Any]
        value = {} if isinstance(event, yaml.events.MappingStartEvent) else []
        path = self._place(value, line)
        self._stack.append(_Open(value, path))

    def _at_key(self) -> bool:
        return bool(self._stack) and (
            isinstance(self._stack[-1].value, dict) and self._stack[-1].key is None
        )

    def _take_key(self, event: yaml.events.ScalarEvent, line: int) -> None:
        top = self._stack[-1]
        top.key = self._checked_text(event.value, line)
        path = (*top.path, top.key)
        top.doubled = top.key in top.value
        if top.doubled:
            self.problems.append(
                ConfigProblem(
                    file=self.file,
                    line=line,
                    key=dotted(path),
                    found="the same key a second time",
                    allowed="every key once",
                    suggestion=f"first on line {self.lines[path]}",
                )
            )
        else:
            self.lines[path] = line

    def _place(self, value: Any, line: int) -> KeyPath:
        """Put a value where the parser stands and say which path that is."""
        if not self._stack:
            self.root = value
            self.lines[()] = line
            return ()
        top = self._stack[-1]
        if isinstance(top.value, list):
            top.value.append(value)
            path: KeyPath = (*top.path, len(top.value) - 1)
            self.lines[path] = line
            return path
        key, top.key = str(top.key), None
        if not top.doubled:
            top.value[key] = value
        return (*top.path, key)

    def _scalar(self, event: yaml.events.ScalarEvent, line: int) -> Any:
        text = self._checked_text(event.value, line)
        if not event.implicit[0]:
            return text
        if text in _WORDS:
            return _WORDS[text]
        if _FLOAT.match(text):
            if len(text) > _MAX_NUMBER_CHARS:
                raise _refusal(self.file, line, "a number of absurd length", "40 digits or less")
            if _INT.match(text):
                return int(text)
            number = float(text)
            if number in (float("inf"), float("-inf")):
                raise _refusal(self.file, line, f"the number {text}", "a finite number")
            return number
        return text

    def _checked_text(self, text: str, line: int) -> str:
        if any("\ud800" <= c <= "\udfff" or c == "\x00" for c in text):
            raise _refusal(self.file, line, "a character that is no text", "printable text")
        return text


def dotted(path: KeyPath) -> str:
    """A key path as messages and ``--set`` write it: ``search.limits.0.bitops``."""
    return ".".join(str(part) for part in path) or "(file)"


class _Dumper(yaml.SafeDumper):
    """Writes what ``parse_yaml`` reads: strings that look like 1.2 numbers are quoted."""

    def ignore_aliases(self, data: Any) -> bool:
        return True


_Dumper.add_implicit_resolver("tag:yaml.org,2002:float", _FLOAT, list("-+0123456789."))
