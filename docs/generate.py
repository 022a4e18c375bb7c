"""Which parts of the documents follow from the code? They are written here, never by hand.

    python docs/generate.py            write them
    python docs/generate.py --check    list those that are out of date, exit 1 if there are any

A generated part stands between ``<!-- generated: NAME -->`` and ``<!-- end of NAME -->``; the
rest of a document is prose and stays as it is.
"""

from __future__ import annotations

import argparse
import ast
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT), str(ROOT / "docs")]

from key_tables import every_key  # noqa: E402

ROOMS = ("orchestrator", "trainers", "solvers")


def modules(room: str) -> Iterator[Path]:
    """Every Python file of a room; files that only make a folder a package say nothing new."""
    for path in sorted((ROOT / room).rglob("*.py")):
        if path.name != "__init__.py" or path.parent == ROOT / room:
            yield path.relative_to(ROOT)


def purpose(path: Path) -> str:
    """First sentence of a module's docstring."""
    text = ast.get_docstring(ast.parse((ROOT / path).read_text())) or ""
    return " ".join(text.partition("\n\n")[0].split()).replace("``", "`").replace("|", "\\|")


def file_list() -> str:
    """Every module of the rooms with the question it answers."""
    lines: list[str] = []
    for room in ROOMS:
        files = list(modules(room))
        lines += [f"### {room}/ ({len(files)} files)", "", "| file | purpose |", "| --- | --- |"]
        lines += [f"| `{path}` | {purpose(path)} |" for path in files]
        lines.append("")
    return "\n".join(lines)


def config_catalogue() -> str:
    """Every file below ``configs/`` with the first sentence of its comment."""
    from orchestrator.yaml_source import read_yaml

    lines = ["| experiment | what it shows | method | network | data |", "| --- | --- | --- | --- | --- |"]  # noqa: E501  # fmt: skip
    for path in sorted((ROOT / "configs/experiments").glob("*.yaml")):
        tree = read_yaml(path).tree
        if path.stem.startswith("study_"):
            # Network and data are those of the experiment that it starts from.
            base = read_yaml(path.parent / tree["base"]).tree
            tree = {**base, "method": f"study of {len(tree['methods'])} methods"}
        network, data = tree["model"]["name"], tree["data"]["name"]
        lines.append(
            f"| `experiments/{path.name}` | {comment(path)} | {tree.get('method', 'limpq')} "
            f"| `{network}` | `{data}` |"
        )
    others = {"evidence": "what it answers", "devices": "what they are", "literature": "rows of"}
    for folder, column in others.items():
        lines += ["", f"| {folder} | {column} |", "| --- | --- |"]
        files = sorted(p for p in (ROOT / "configs" / folder).glob("*") if p.is_file())
        lines += [f"| `{folder}/{path.name}` | {comment(path)} |" for path in files]
    return "\n".join(lines) + "\n"


def comment(path: Path) -> str:
    """The first sentence of the comment at the head of a file."""
    words: list[str] = []
    for line in path.read_text().splitlines():
        if line.startswith("#"):
            words += line.lstrip("#").split()
        elif words or not line.startswith("schema:"):
            break
    return " ".join(words).partition(". ")[0].rstrip(".:")


PARTS: dict[str, dict[str, Callable[[], str]]] = {
    "ARCHITECTURE.md": {"files": file_list},
    "configs/README.md": {"catalogue": config_catalogue},
    "docs/configuration.md": {"keys": every_key},
}


def current(document: str) -> str:
    """A document with its generated parts as the code has them now."""
    text = (ROOT / document).read_text()
    for name, make in PARTS[document].items():
        begin, end = f"<!-- generated: {name} -->\n", f"<!-- end of {name} -->"
        head, found, rest = text.partition(begin)
        _, closed, tail = rest.partition(end)
        if not found or not closed:
            raise SystemExit(f"{document}: no part between {begin.strip()} and {end}")
        text = f"{head}{begin}{make().rstrip()}\n{end}{tail}"
    return text


def main(arguments: list[str] | None = None) -> int:
    """Write or check every generated part."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--check", action="store_true", help="write nothing, exit 1 when stale")
    check = parser.parse_args(arguments).check
    stale = [name for name in PARTS if (ROOT / name).read_text() != current(name)]
    for name in stale:
        if check:
            print(f"{name} is out of date; run: make docs")
        else:
            (ROOT / name).write_text(current(name))
            print(f"wrote {name}")
    return 1 if check and stale else 0


if __name__ == "__main__":
    sys.exit(main())
