"""What has this run done, for certain? An append-only file that survives a kill at any byte.

One JSON object a line: a sequence number, a kind, the data, and a check value over the rest. The
first line names the schema. A record is on the disk before ``append`` returns. A last line without
its newline, or of the zeros that a power loss leaves, was never acknowledged, so it is cut off when
the journal is opened and the cut is noted; any other line that does not verify is no unfinished
write but damage, and is refused.

Steps may run more than once; a final result is written once: appending a record whose identity
(``RunRecord.record_id``) is there already changes nothing.
"""

from __future__ import annotations

import hashlib
import json
import os
import secrets
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from types import TracebackType
from typing import Any

from orchestrator.errors import ResourceError, StoreError
from orchestrator.records import RunRecord

SCHEMA = "journal/1"
_RECORD = "record"
_HEADER = "header"
_AGAIN = "record_again"


@dataclass(frozen=True, kw_only=True, slots=True)
class Entry:
    """One line.

    Attributes:
        seq: 0 for the header, then 1, 2, 3 without a gap: the order of things.
        kind: ``header``, ``record``, or the name of an event.
        time_utc: a label; clocks jump.
        data: what it says.
    """

    seq: int
    kind: str
    time_utc: str
    data: Mapping[str, Any]


@dataclass(frozen=True, kw_only=True, slots=True)
class JournalView:
    """A journal as read.

    Attributes:
        entries: every whole line after the header.
        torn_bytes: length of an unfinished last line; 0 when there is none.
        run_id: made at random with the journal, so that two runs of one name differ.
    """

    entries: tuple[Entry, ...]
    torn_bytes: int = 0
    run_id: str = ""

    def records(self) -> tuple[RunRecord, ...]:
        """Every record, in order of appending."""
        return tuple(record for _, record in self.stamped_records())

    def stamped_records(self) -> tuple[tuple[str, RunRecord], ...]:
        """Every record with the time it was appended at."""
        return tuple(
            (e.time_utc, RunRecord.from_json(e.data)) for e in self.entries if e.kind == _RECORD
        )

    def current_keys(self) -> dict[str, str]:
        """Step -> the key that it was recorded under last, or found to hold again."""
        kinds = (_RECORD, _AGAIN)
        return {e.data["step"]: e.data["key"] for e in self.entries if e.kind in kinds}


def read_journal(path: Path) -> JournalView:
    """Read without changing anything; fit for a run that is going on.

    Raises:
        StoreError: missing, of another version, or damaged.
    """
    try:
        raw = path.read_bytes()
    except OSError as error:
        raise StoreError(
            "the journal cannot be read", str(path), error.strerror or str(error)
        ) from error
    view, _ = _parse(raw, path)
    return view


class Journal:
    """A journal open for appending; its holder must hold the run's lock.

    Attributes:
        notices: what was mended on opening, for the user.
        run_id: made at random with the journal, so that two runs of one name differ.
    """

    def __init__(
        self,
        path: Path,
        hide: Callable[[Any], Any] = lambda value: value,
        before_write: Callable[[], None] = lambda: None,
    ) -> None:
        """Open or create, and cut a torn tail.

        Args:
            path: of the file.
            hide: takes secrets out of what is appended.
            before_write: raises where the run's lock was lost; asked before every change, for two
                writers would both number their lines from the same one.

        Raises:
            StoreError: of another version, or damaged.
        """
        self._path, self._hide, self._before_write = path, hide, before_write
        path.parent.mkdir(parents=True, exist_ok=True)
        raw = path.read_bytes() if path.exists() else b""
        view, sound_bytes = _parse(raw, path)
        self.notices: tuple[str, ...] = ()
        self.run_id = view.run_id or secrets.token_hex(8)
        self._entries = list(view.entries)
        self._ids = {record.record_id for record in view.records()}
        self._current = view.current_keys()
        before_write()
        self._handle = os.open(path, os.O_RDWR | os.O_CREAT | os.O_APPEND, 0o666)
        if view.torn_bytes:
            os.ftruncate(self._handle, sound_bytes)
            os.fsync(self._handle)
        if sound_bytes == 0:
            self._write([_line(0, _HEADER, {"schema": SCHEMA, "run_id": self.run_id})])
        if view.torn_bytes:
            self.notices = (
                f"journal: cut an unfinished last line of {view.torn_bytes} bytes, left by a "
                "process that was killed; nothing acknowledged is lost",
            )
            self.event("tail_cut", {"bytes": view.torn_bytes})

    def __enter__(self) -> Journal:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    def close(self) -> None:
        """Release the file; appending is over."""
        if self._handle >= 0:
            os.close(self._handle)
            self._handle = -1

    @property
    def view(self) -> JournalView:
        """Everything in it now."""
        return JournalView(entries=tuple(self._entries), run_id=self.run_id)

    def records(self) -> tuple[RunRecord, ...]:
        """Every record in it now."""
        return self.view.records()

    def __contains__(self, record_id: object) -> bool:
        return record_id in self._ids

    def event(self, kind: str, data: Mapping[str, Any] | None = None) -> int:
        """Append something that happened and return its sequence number."""
        if kind in (_RECORD, _HEADER, _AGAIN):
            raise ValueError(f"{kind!r} is no name for an event")
        return self._append([(kind, self._hide(dict(data or {})))])[-1]

    def append(self, record: RunRecord) -> bool:
        """Append one record; False when its result is there already."""
        return self.append_all([record]) == 1

    def append_all(self, records: Iterable[RunRecord]) -> int:
        """Append many with one flush to disk; returns how many were new.

        One that is there already is not written again. Where its step was recorded under another
        key meanwhile (other images, and then these again), a line says that it holds once more.
        """
        fresh: list[RunRecord] = []
        items: list[tuple[str, dict[str, Any]]] = []
        current = dict(self._current)
        for record in records:
            if record.record_id not in self._ids:
                self._ids.add(record.record_id)
                fresh.append(record)
                items.append((_RECORD, self._hide(record.to_json())))
            elif current.get(record.step) != record.key:
                items.append((_AGAIN, {"step": record.step, "key": record.key}))
            current[record.step] = record.key
        try:
            self._append(items)
        except BaseException:
            self._ids.difference_update(record.record_id for record in fresh)
            raise
        self._current = current
        return len(fresh)

    def _append(self, items: list[tuple[str, dict[str, Any]]]) -> list[int]:
        first = len(self._entries) + 1
        entries = [_entry(first + index, *item) for index, item in enumerate(items)]
        if entries:
            self._write([_line(e.seq, e.kind, e.data, e.time_utc) for e in entries])
            # Kept as it will be read back, so that a tuple is a list in both.
            self._entries += [
                Entry(seq=e.seq, kind=e.kind, time_utc=e.time_utc,
                      data=json.loads(json.dumps(e.data)))
                for e in entries
            ]  # fmt: skip
        return [e.seq for e in entries]

    def _write(self, lines: list[bytes]) -> None:
        self._before_write()
        before = os.fstat(self._handle).st_size
        data = b"".join(lines)
        try:
            written = 0
            while written < len(data):
                written += os.write(self._handle, data[written:])
            os.fsync(self._handle)
        except OSError as error:
            # A file server that was away may say so after another process went on with the file.
            self._before_write()
            os.ftruncate(self._handle, before)
            raise ResourceError(
                "the journal cannot be written", str(self._path), error.strerror or str(error),
                "make room, then run the same command again",
            ) from error  # fmt: skip


def _entry(seq: int, kind: str, data: dict[str, Any]) -> Entry:
    return Entry(seq=seq, kind=kind, time_utc=_now(), data=data)


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="milliseconds")


def _line(seq: int, kind: str, data: Mapping[str, Any], time_utc: str | None = None) -> bytes:
    body = {"seq": seq, "kind": kind, "time_utc": time_utc or _now(), "data": data}
    text = json.dumps({**body, "check": _check(body)}, separators=(",", ":"), allow_nan=False)
    return text.encode() + b"\n"


def _check(body: Mapping[str, Any]) -> str:
    text = json.dumps(body, sort_keys=True, separators=(",", ":"), allow_nan=False)
    return hashlib.sha256(text.encode()).hexdigest()[:12]


def _parse(raw: bytes, path: Path) -> tuple[JournalView, int]:
    """The sound entries and the length of the file up to their end."""
    lines = raw.split(b"\n")
    # The piece after the last newline is empty in a sound file; anything else was cut short.
    whole = lines[:-1]
    if not lines[-1] and whole and whole[-1] and not whole[-1].strip(b"\0"):
        # Blocks that a power loss kept from the disk read as zeros, also before a newline that made
        # it there.
        whole = whole[:-1]
    entries: list[Entry] = []
    sound_bytes = 0
    run_id = ""
    for index, line in enumerate(whole):
        entry = _read_line(line, index)
        if entry is None:
            raise StoreError(
                f"the journal is damaged at line {index + 1}",
                str(path),
                "it ends with its newline, the last byte written: this is no unfinished write",
                "restore the file from a backup, or start the run under another name",
            )
        if index == 0:
            _check_schema(entry, path)
            run_id = str(entry.data.get("run_id", ""))
        else:
            entries.append(entry)
        sound_bytes += len(line) + 1
    torn_bytes = len(raw) - sound_bytes
    return JournalView(entries=tuple(entries), torn_bytes=torn_bytes, run_id=run_id), sound_bytes


def _read_line(line: bytes, seq: int) -> Entry | None:
    try:
        body = json.loads(line)
        check = body.pop("check")
        if check != _check(body) or body["seq"] != seq:
            return None
        return Entry(**body)
    except (ValueError, TypeError, KeyError, AttributeError, RecursionError):
        return None


def _check_schema(entry: Entry, path: Path) -> None:
    schema = entry.data.get("schema")
    if entry.kind != _HEADER or schema != SCHEMA:
        raise StoreError(
            f"the journal has schema {schema!r}",
            str(path),
            f"this version reads {SCHEMA!r}",
            "open it with the version that wrote it",
        )
