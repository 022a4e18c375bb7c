"""How does one image come out of Parquet shards without reading its neighbours?

Shards that ``mpq data pack`` wrote hold the images of a row group in one plain, uncompressed page,
and the length of each in a column of its own. So footers and lengths, read once, say at which byte
of the file every image begins, and an image is one ``pread``: nothing but labels and offsets is in
memory. Any other Parquet file with columns ``image`` and ``label`` works too, a whole row group
decoded for each image that is not among the last ones read; pack it for speed.
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
import threading
from collections import OrderedDict
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from torch import Tensor

from trainers.data.parquet import shards
from trainers.data.views import BrokenImageError, unreadable
from trainers.errors import DataError

log = logging.getLogger(__name__)

SCHEMA = "image-shard/1"
MANIFEST = "pack.json"
# Row groups of foreign shards kept decoded; every thread may be in another one.
_KEPT_GROUPS = 16
# Of Linux' usual 1,024 a process.
_OPEN_FILES = 512
_PREFIX = 4


@dataclass(frozen=True, kw_only=True, slots=True)
class Shard:
    """What the footer of one file says.

    Attributes:
        path: the file.
        labels: int64 [rows].
        starts: int64 [rows], byte at which each image's length prefix stands; None when images
            cannot be addressed.
        lengths: int64 [rows], bytes of each image; None likewise.
        group_ends: int64 [groups], rows up to the end of each row group.
        identity: what the file says about its content, for the fingerprint.
    """

    path: Path
    labels: np.ndarray
    starts: np.ndarray | None
    lengths: np.ndarray | None
    group_ends: np.ndarray
    identity: str


@dataclass(kw_only=True)
class ShardReader:
    """One split in shards; see ``ImageReader``."""

    shards: tuple[Shard, ...]
    labels: Tensor
    fingerprint: str
    _ends: np.ndarray
    _files: dict[int, int] = field(default_factory=dict)
    _groups: OrderedDict[tuple[int, int], pa.Array] = field(default_factory=OrderedDict)
    _lock: Any = field(default_factory=threading.Lock)

    def read(self, index: int) -> bytes:
        """See ``ImageReader.read``."""
        number, row = self._locate(index)
        shard = self.shards[number]
        try:
            if shard.starts is None or shard.lengths is None:
                return self._from_group(number, row)
            length = int(shard.lengths[row])
            return self._pread(number, int(shard.starts[row]), length)
        except OSError as error:
            if error.errno is not None:
                raise unreadable(self.place(index), error) from error
            raise BrokenImageError(str(error)) from error  # Arrow's word for bytes it cannot read
        except MemoryError:
            raise  # Arrow's own is an ArrowException too, and breaks no image
        except pa.ArrowException as error:
            raise BrokenImageError(str(error)) from error

    def place(self, index: int) -> str:
        """See ``ImageReader.place``."""
        number, row = self._locate(index)
        return f"{self.shards[number].path}, row {row}"

    def _locate(self, index: int) -> tuple[int, int]:
        number = int(np.searchsorted(self._ends, index, side="right"))
        return number, index - int(self._ends[number - 1] if number else 0)

    def _pread(self, number: int, start: int, length: int) -> bytes:
        file = self._files.get(number)
        if file is None:
            with self._lock:
                file = self._files.get(number)
                if file is None and len(self._files) < _OPEN_FILES:
                    file = self._files[number] = os.open(self.shards[number].path, os.O_RDONLY)
        if file is None:
            with self.shards[number].path.open("rb") as opened:
                content = os.pread(opened.fileno(), _PREFIX + length, start)
        else:
            content = os.pread(file, _PREFIX + length, start)
        if int.from_bytes(content[:_PREFIX], "little") != length or len(content) < length:
            raise BrokenImageError(
                "its length is not where the footer says; the file was cut or changed after packing"
            )
        return content[_PREFIX:]

    def _from_group(self, number: int, row: int) -> bytes:
        ends = self.shards[number].group_ends
        group = int(np.searchsorted(ends, row, side="right"))
        with self._lock:
            column = self._groups.get((number, group))
        if column is None:
            with pq.ParquetFile(self.shards[number].path) as file:
                column = file.read_row_group(group, columns=["image"]).column("image")
            column = _bytes_of(column.combine_chunks())
            with self._lock:
                self._groups[number, group] = column
                if len(self._groups) > _KEPT_GROUPS:
                    self._groups.popitem(last=False)
        value: bytes | None = column[row - int(ends[group - 1] if group else 0)].as_py()
        return value or b""

    def close(self) -> None:
        """Let go of the open files."""
        with self._lock:
            for file in self._files.values():
                os.close(file)
            self._files.clear()

    def __del__(self) -> None:
        self.close()


def open_split(root: str, split: str) -> ShardReader:
    """Read the footers, labels and lengths of one split.

    Raises:
        DataError: no file, a damaged one, a missing column, a label that is no class number, no
            image, or a pack that is not finished.
    """
    _refuse_unfinished(Path(root))
    found = tuple(_open_shard(path) for path in shards(root, split))
    labels = np.concatenate([shard.labels for shard in found])
    if len(labels) == 0:
        raise DataError(f"the {split} split is empty: {Path(root) / split} holds no row")
    slow = [shard.path for shard in found if shard.starts is None]
    if slow:
        log.warning(
            "%s and %d more were not written by 'mpq data pack': every image costs reading its "
            "row group", slow[0], len(slow) - 1,
        )  # fmt: skip
    digest = hashlib.sha256()
    for shard in found:
        digest.update(f"{shard.path.name}:{shard.identity}\n".encode())
    digest.update(labels.tobytes())
    return ShardReader(
        shards=found,
        labels=torch.from_numpy(labels),
        fingerprint=digest.hexdigest()[:16],
        _ends=np.cumsum([len(shard.labels) for shard in found]),
    )


def _refuse_unfinished(root: Path) -> None:
    path = root / MANIFEST
    if not path.is_file():
        return
    try:
        is_complete = json.loads(path.read_text())["complete"]
    except (ValueError, KeyError, TypeError) as error:
        raise DataError(f"{path} is damaged: {error}; pack the images again") from error
    if not is_complete:
        raise DataError(f"{root}: packing is not finished; run the same 'mpq data pack' again")


def _open_shard(path: Path) -> Shard:
    try:
        with pq.ParquetFile(path) as file:
            names = file.schema_arrow.names
            for column in ("image", "label"):
                if column not in names:
                    raise DataError(f"{path} has no column {column!r} (it has: {', '.join(names)})")
            sizes = ["num_bytes"] if "num_bytes" in names else []
            table = file.read(columns=["label", *sizes])
            metadata = file.metadata
            groups = [metadata.row_group(i) for i in range(metadata.num_row_groups)]
            columns = [metadata.schema.column(i) for i in range(metadata.num_columns)]
            at = next(i for i, c in enumerate(columns) if c.path.split(".")[0] == "image")
            image = [group.column(at) for group in groups]
            required = columns[at].max_definition_level == 0
    except (OSError, pa.ArrowException) as error:
        raise DataError(f"cannot read {path}: {error}") from error
    lengths = starts = None
    plain = required and all(
        c.compression == "UNCOMPRESSED" and set(c.encodings) <= {"PLAIN", "RLE"} for c in image
    )
    facts = metadata.metadata or {}
    if sizes and plain and facts.get(b"schema") == SCHEMA.encode():
        lengths = table.column("num_bytes").to_numpy().astype(np.int64)
        starts = _starts(lengths, groups, image)
    written = facts.get(b"content_sha256", b"").decode()
    return Shard(
        path=path,
        labels=_labels(table.column("label"), path),
        starts=starts,
        lengths=lengths,
        group_ends=np.cumsum([g.num_rows for g in groups], dtype=np.int64),
        identity=written or f"{path.stat().st_size}:{[c.total_compressed_size for c in image]}",
    )


def _starts(lengths: np.ndarray, groups: list[Any], image: list[Any]) -> np.ndarray:
    """Where each image's length prefix stands: a page is its header, then prefix and bytes."""
    starts = np.empty(len(lengths), np.int64)
    first = 0
    for group, column in zip(groups, image, strict=True):
        stops = np.cumsum(lengths[first : first + group.num_rows] + _PREFIX)
        header = column.total_compressed_size - (stops[-1] if len(stops) else 0)
        starts[first : first + group.num_rows] = (
            column.data_page_offset + header + np.concatenate([[0], stops[:-1]])
        )
        first += group.num_rows
    return starts


def _labels(column: pa.ChunkedArray, path: Path) -> np.ndarray:
    if not pa.types.is_integer(column.type) or column.null_count:
        raise DataError(
            f"{path}: labels are {column.type} with {column.null_count} missing; they must be "
            "integers, 0 or more"
        )
    labels: np.ndarray = column.to_numpy().astype(np.int64)
    if len(labels) and labels.min() < 0:
        row = int(labels.argmin())
        raise DataError(f"{path}, row {row}: label is {labels[row]}; it must be 0 or more")
    return labels


def _bytes_of(column: pa.Array) -> pa.Array:
    """The images of a column of bytes, or of structs with a field ``bytes`` (Hugging Face)."""
    if pa.types.is_struct(column.type):
        return column.field("bytes")
    return column
