"""How does an image folder become Parquet shards that training reads image by image?

The images of a split are shuffled once by a seed and cut into shards of equal number. A shard is
written whole or not at all, then read back and compared byte for byte with the files; its footer
keeps the hash of its content. ``pack.json`` says what is being packed, so that the same command
after a kill verifies the shards that are there and writes the rest, and another source or other
settings are refused instead of mixed.

Encoded bytes are copied, never decoded and encoded again; every image is decoded once to prove
that it can be.
"""

from __future__ import annotations

import hashlib
import io
import json
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import torch

from solvers.atomic import TEMPORARY, write_atomically
from trainers.data.bad_samples import BadSamples
from trainers.data.image_folder import FolderReader, class_names, evaluation_split, read_folder
from trainers.data.shards import MANIFEST, SCHEMA
from trainers.data.views import BrokenImageError, decode
from trainers.errors import DataError
from trainers.seeds import generator

MANIFEST_SCHEMA = "image-pack/1"
# A page is a row group: what foreign readers must hold at once, 28 MB of ImageNet.
ROWS_PER_GROUP = 256
# pyarrow must not cut the page, or offsets could not be told from lengths.
_ONE_PAGE = 1 << 30


@dataclass(frozen=True, kw_only=True, slots=True)
class PackSettings:
    """What decides the content of the shards.

    Attributes:
        seed: of the shuffle.
        images_per_shard: 2,048 ImageNet images are 225 MB.
        check_images: decode every image before it is packed.
        max_bad_samples: broken images that may be left out; 0 = stop at the first.
    """

    seed: int = 0
    images_per_shard: int = 2048
    check_images: bool = True
    max_bad_samples: int = 0


@dataclass(frozen=True, kw_only=True, slots=True)
class Packed:
    """What came of it.

    Attributes:
        num_images: images by split.
        num_shards: shards by split.
        num_kept: shards that an earlier attempt had written, verified now.
        skipped: ``place: reason`` of the images left out.
    """

    num_images: dict[str, int]
    num_shards: dict[str, int]
    num_kept: int
    skipped: tuple[str, ...]


def pack_folder(
    source: str,
    out: Path,
    settings: PackSettings,
    *,
    num_threads: int = 1,
    eval_split: str | None = None,
    tell: Callable[[str, int, int], None] = lambda split, done, total: None,
) -> Packed:
    """Pack ``train`` and the evaluation split of an image folder.

    Args:
        source: ``train/<class>/*`` and ``val/<class>/*``.
        out: folder of the shards; made if missing.
        settings: see ``PackSettings``.
        num_threads: that read and decode.
        eval_split: the evaluation split, where there are two.
        tell: called after each shard with the split and the images done and in all.

    Raises:
        DataError: a broken or empty source, more broken images than allowed, or an ``out`` that
            holds something else.
    """
    classes = class_names(source)
    names = ("train", evaluation_split(source, eval_split))
    splits = {name: read_folder(source, name, classes) for name in names}
    plan = {
        "schema": MANIFEST_SCHEMA,
        "settings": asdict(settings),
        "classes": list(classes),
        "source_fingerprints": {name: reader.fingerprint for name, reader in splits.items()},
    }
    _begin(out, plan)
    bad = BadSamples(settings.max_bad_samples)
    bad.write_to(out, 0)
    kept = 0
    numbers: dict[str, list[int]] = {}
    with ThreadPoolExecutor(
        max(1, num_threads), initializer=torch.set_num_threads, initargs=(1,)
    ) as pool:
        for name, reader in splits.items():
            (out / name).mkdir(exist_ok=True)
            numbers[name], done = [], 0
            for path, rows in _cut(out / name, reader, name, settings):
                content = _Content(reader, rows, classes, name, settings, bad, pool)
                found = content.written_before(path)
                kept += found is not None
                numbers[name].append(content.write(path) if found is None else found)
                done += len(rows)
                tell(name, done, len(reader.labels))
    skipped = tuple(f"{place}: {why}" for place, why in sorted(bad.found.items()))
    counts = {name: sum(rows) for name, rows in numbers.items()}
    done_plan = {**plan, "complete": True, "images": counts, "skipped": list(skipped)}
    write_atomically(out / MANIFEST, json.dumps(done_plan, indent=1))
    return Packed(
        num_images=counts,
        num_shards={name: len(rows) for name, rows in numbers.items()},
        num_kept=kept,
        skipped=skipped,
    )


def _begin(out: Path, plan: dict[str, Any]) -> None:
    """Claim ``out`` for this pack, and sweep what a killed attempt left half written."""
    manifest = out / MANIFEST
    if manifest.is_file():
        try:
            found = json.loads(manifest.read_text())
            differs = [key for key in plan if found.get(key) != plan[key]]
        except (ValueError, AttributeError) as error:
            raise DataError(
                f"{manifest} is damaged: {error}; delete {out} and pack again"
            ) from error
        if differs:
            raise DataError(
                f"{out} holds a pack of other {' and '.join(differs)}: the source changed or other "
                "options were given. Give the same ones, or another folder"
            )
    elif out.is_dir() and any(out.iterdir()):
        raise DataError(f"{out} is not empty and holds no {MANIFEST}; give an empty folder")
    write_atomically(manifest, json.dumps({**plan, "complete": False}, indent=1))
    for torn in out.rglob(f"{TEMPORARY}*"):
        torn.unlink()


def _cut(
    folder: Path, reader: FolderReader, name: str, settings: PackSettings
) -> Iterator[tuple[Path, list[int]]]:
    """Each shard's file and the images in it: equal parts of one seeded permutation."""
    total = len(reader.labels)
    order = torch.randperm(total, generator=generator(settings.seed, "pack", name)).tolist()
    size = settings.images_per_shard
    num_shards = -(-total // size)
    for k in range(num_shards):
        yield folder / f"{k:05d}-of-{num_shards:05d}.parquet", order[k * size : (k + 1) * size]


@dataclass(frozen=True, slots=True)
class _Content:
    """What belongs into one shard."""

    reader: FolderReader
    rows: list[int]
    classes: tuple[str, ...]
    split: str
    settings: PackSettings
    bad: BadSamples
    pool: ThreadPoolExecutor

    def write(self, path: Path) -> int:
        """Write, read back, compare; the number of images."""
        read = zip(self.rows, self.pool.map(self._read, self.rows), strict=True)
        images = [(row, content) for row, content in read if content is not None]
        table = pa.Table.from_pydict(
            {
                "image": [content for _, content in images],
                "num_bytes": [len(content) for _, content in images],
                "label": [int(self.reader.labels[row]) for row, _ in images],
                "file": [self._name(row) for row, _ in images],
            },
            schema=_schema(self.classes, self.split, _hash_of(content for _, content in images)),
        )
        buffer = io.BytesIO()
        pq.write_table(
            table, buffer, row_group_size=ROWS_PER_GROUP, compression="NONE",
            use_dictionary=False, data_page_size=_ONE_PAGE, write_statistics=False,
        )  # fmt: skip
        write_atomically(path, buffer.getvalue())
        found = pq.read_table(path)
        if not found.equals(table):
            raise DataError(f"{path} reads back other than it was written; check the disk")
        return len(images)

    def written_before(self, path: Path) -> int | None:
        """Images of a whole shard that an earlier attempt left, None where there is none.

        Raises:
            DataError: there is one, and it does not hold what its footer says.
        """
        if not path.is_file():
            return None
        try:
            table = pq.read_table(path)
            metadata = table.schema.metadata or {}
            images = (value.as_py() for value in table.column("image"))
            is_whole = _hash_of(images) == metadata[b"content_sha256"].decode()
        except (OSError, pa.ArrowException, KeyError) as error:
            raise DataError(f"{path} is damaged: {error}; delete it and pack again") from error
        names = {self._name(row) for row in self.rows}
        if not is_whole or not names.issuperset(table.column("file").to_pylist()):
            raise DataError(f"{path} does not hold what its footer says; delete it and pack again")
        return len(table)

    def _read(self, row: int) -> bytes | None:
        """The encoded image, None when it is broken and may be left out."""
        try:
            content = self.reader.read(row)
            if self.settings.check_images:
                decode(content, 3)
        except BrokenImageError as error:
            self.bad.note(self.reader.place(row), str(error))
            return None
        return content

    def _name(self, row: int) -> str:
        return bytes(self.reader.names[row]).decode(errors="replace")


def _schema(classes: tuple[str, ...], split: str, content: str) -> pa.Schema:
    return pa.schema(
        [
            pa.field("image", pa.binary(), nullable=False),
            pa.field("num_bytes", pa.int32(), nullable=False),
            pa.field("label", pa.int32(), nullable=False),
            pa.field("file", pa.string(), nullable=False),
        ],
        metadata={
            "schema": SCHEMA, "classes": json.dumps(classes), "split": split,
            "content_sha256": content,
        },
    )  # fmt: skip


def _hash_of(images: Iterator[bytes]) -> str:
    digest = hashlib.sha256()
    for content in images:
        digest.update(len(content).to_bytes(8, "little"))
        digest.update(content)
    return digest.hexdigest()
