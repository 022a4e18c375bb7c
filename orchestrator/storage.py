"""How does a run travel to storage that is no folder, and come back whole? By URI, hash by hash.

``s3://bucket/runs``, ``gs://``, ``hdfs://``, ``file:///`` or a plain path: whatever pyarrow's file
systems open. A copy is a folder ``<run>`` below it with the run's files and ``push.json``, written
last, which names every file with size and SHA-256. Runs themselves are worked on in a folder that
every node sees: workers talk through files there, which object stores cannot do.
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

from orchestrator.errors import ResourceError, StoreError, UserError
from orchestrator.journal import read_journal
from orchestrator.leftovers import sha256_of
from orchestrator.lock import RunLock
from orchestrator.redact import keys_of_secrets, redacted_text, secrets_of
from orchestrator.store import RunStore
from orchestrator.yaml_source import read_yaml
from solvers.atomic import TEMPORARY, write_atomically

SCHEMA = "push/1"
MANIFEST = "push.json"
_CHUNK_BYTES = 8 << 20
# Ray's own state, locks and the request to stop mean something on one cluster only.
_LEFT_OUT = ("lock", "lock.guard", "mirror.lock", "mirror.json", "stop-requested")
_LEFT_OUT_FOLDERS = ("ray", "tune")


@dataclass(frozen=True, kw_only=True, slots=True)
class Transfer:
    """What one push or pull did.

    Attributes:
        run: name of the run.
        place: where the copy is, without secrets.
        num_files: files of the run.
        num_moved: of these, moved now; the others were there already.
        size_bytes: of what was moved.
    """

    run: str
    place: str
    num_files: int
    num_moved: int
    size_bytes: int


def push(store: RunStore, uri: str) -> Transfer:
    """Copy a run to ``uri``; what is there with the same hash is not sent again.

    Every file that is sent is read back and compared.

    Raises:
        LockedError: the run is going on.
        UserError: its configuration holds a secret.
        ResourceError: the storage cannot be reached or written, or gave back something else.
    """
    read_journal(store.journal_path)
    with RunLock(store.lock_path), _Storage(uri, store.name) as there:
        _refuse_secrets(store.config_path, there.place)
        before = there.manifest()
        files = {relative: _fact(store.root / relative) for relative in _files(store.root)}
        moved = [r for r, fact in files.items() if before.get(r) != fact]
        if moved:
            there.drop_manifest()
        for relative in moved:
            there.write(relative, store.root / relative)
            if there.digest(relative) != files[relative]["sha256"]:
                raise ResourceError(
                    f"{relative} came back from the storage with another content", there.place,
                    "", "push again; the copy has no manifest and counts as unfinished",
                )  # fmt: skip
        for relative in sorted(before.keys() - files.keys()):
            there.delete(relative)
        body = {"schema": SCHEMA, "run": store.name, "files": files}
        there.write_text(MANIFEST, json.dumps(body, indent=1, sort_keys=True))
    return Transfer(
        run=store.name, place=there.place, num_files=len(files), num_moved=len(moved),
        size_bytes=sum(files[r]["size_bytes"] for r in moved),
    )  # fmt: skip


def pull(uri: str, name: str, runs_dir: str | Path) -> Transfer:
    """Bring a pushed run back into ``runs_dir``; every file is compared with its hash.

    A run that is there is only brought up to date when its journal is a beginning of the copy's.

    Raises:
        StoreError: no whole copy there, or another run of that name here.
        ResourceError: the storage cannot be reached.
    """
    store = RunStore(runs_dir, name)
    with _Storage(uri, name) as there:
        files = there.manifest()
        if not files:
            raise StoreError(f"no whole copy of run {name!r}", there.place, f"no {MANIFEST} there",
                             "push it again")  # fmt: skip
        _refuse_another(store, there)
        with RunLock(store.lock_path):
            moved = []
            # The journal last: with it the folder is a run.
            for relative in sorted(files, key=lambda r: (r == "journal.jsonl", r)):
                path = _contained(store.root, relative)
                if path.is_file() and _fact(path) == files[relative]:
                    continue
                content = there.read(relative)
                if hashlib.sha256(content).hexdigest() != files[relative]["sha256"]:
                    raise StoreError(f"{relative} is damaged in the storage", there.place, "",
                                     "push the run again")  # fmt: skip
                write_atomically(path, content)
                moved.append(relative)
    return Transfer(
        run=name, place=there.place, num_files=len(files), num_moved=len(moved),
        size_bytes=sum(int(files[r]["size_bytes"]) for r in moved),
    )  # fmt: skip


class _Storage:
    """One run's folder on a pyarrow file system."""

    def __init__(self, uri: str, run: str) -> None:
        from pyarrow import fs

        self.place = redacted_text(f"{uri.rstrip('/')}/{run}")
        try:
            plain = "://" not in uri
            where = Path(uri).expanduser().absolute().as_posix() if plain else uri
            self._fs, root = fs.FileSystem.from_uri(where)
        except (OSError, ValueError) as error:
            raise self._refused(error) from error
        self._fs_module = fs
        self._root = PurePosixPath(root) / run

    def __enter__(self) -> _Storage:
        return self

    def __exit__(self, kind: object, error: BaseException | None, trace: object) -> None:
        if isinstance(error, OSError):
            raise self._refused(error) from error

    def _refused(self, error: Exception) -> ResourceError:
        first = (redacted_text(str(error)).splitlines() or [""])[0][:300]
        return ResourceError(
            "the storage cannot be used", self.place, first,
            "check the address, and that this machine has the rights and keys (AWS_..., gcloud)",
        )  # fmt: skip

    def manifest(self) -> dict[str, Any]:
        """File -> size and hash, empty when there is no whole copy."""
        path = str(self._root / MANIFEST)
        if self._fs.get_file_info(path).type != self._fs_module.FileType.File:
            return {}
        try:
            body = json.loads(self.read(MANIFEST))
            if body["schema"] != SCHEMA:
                raise ValueError(f"schema {body['schema']!r}")
            return {str(k): {"size_bytes": int(v["size_bytes"]), "sha256": str(v["sha256"])}
                    for k, v in body["files"].items()}  # fmt: skip
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise StoreError(f"{MANIFEST} is not whole", self.place, str(error)) from error

    def drop_manifest(self) -> None:
        """From here on the copy is unfinished."""
        if self.manifest():
            self.delete(MANIFEST)

    def delete(self, relative: str) -> None:
        path = str(self._root / relative)
        if self._fs.get_file_info(path).type == self._fs_module.FileType.File:
            self._fs.delete_file(path)

    def write(self, relative: str, source: Path) -> None:
        path = self._root / relative
        self._fs.create_dir(str(path.parent), recursive=True)
        with source.open("rb") as file, self._fs.open_output_stream(str(path)) as stream:
            while chunk := file.read(_CHUNK_BYTES):
                stream.write(chunk)

    def write_text(self, relative: str, text: str) -> None:
        self._fs.create_dir(str(self._root), recursive=True)
        with self._fs.open_output_stream(str(self._root / relative)) as stream:
            stream.write(text.encode())

    def read(self, relative: str) -> bytes:
        with self._fs.open_input_stream(str(self._root / relative)) as stream:
            return bytes(stream.read())

    def digest(self, relative: str) -> str:
        found = hashlib.sha256()
        with self._fs.open_input_stream(str(self._root / relative)) as stream:
            while chunk := stream.read(_CHUNK_BYTES):
                found.update(chunk)
        return found.hexdigest()


def _files(root: Path) -> list[str]:
    found = []
    for path in sorted(root.rglob("*")):
        relative = path.relative_to(root)
        skipped = relative.name in _LEFT_OUT or relative.name.startswith(TEMPORARY)
        skipped = skipped or bool(set(relative.parts[:-1]) & set(_LEFT_OUT_FOLDERS))
        if path.is_file() and not path.is_symlink() and not skipped:
            found.append(relative.as_posix())
    return found


def _fact(path: Path) -> dict[str, Any]:
    return {"size_bytes": path.stat().st_size, "sha256": sha256_of(path)}


def _contained(root: Path, relative: str) -> Path:
    path = root / relative
    if PurePosixPath(relative).is_absolute() or not path.resolve().is_relative_to(root.resolve()):
        raise StoreError("the copy names a file outside its run", relative)
    return path


def _refuse_secrets(path: Path, place: str) -> None:
    """What was typed is kept for its owner; a bucket has other readers.

    Everything else in the folder was written without secrets. Comments are looked at because who
    takes a value out may leave it in one.
    """
    if not path.is_file():
        return
    tree = read_yaml(path).tree
    held = list(keys_of_secrets(tree if isinstance(tree, dict) else {}))
    for number, line in enumerate(path.read_text().splitlines(), start=1):
        held += [f"the comment of line {number}"] if secrets_of(line.partition("#")[2]) else []
    if held:
        raise UserError(
            f"the run's configuration holds a secret, and is not copied to {place}", str(path),
            f"in {', '.join(held)}: whoever reads the copy would have it",
            "take it out there and in the experiment file, give storage keys and MLflow's login "
            "in the environment (SECURITY.md), and push again",
        )  # fmt: skip


def _refuse_another(store: RunStore, there: _Storage) -> None:
    """A run here that the copy does not continue must not be overwritten."""
    if store.exists() and not there.read("journal.jsonl").startswith(
        store.journal_path.read_bytes()
    ):
        raise StoreError(
            f"run {store.name!r} here has records that the copy lacks", str(store.root),
            f"it is not a beginning of {there.place}", "pull into another --runs-dir",
        )  # fmt: skip
