"""What do the papers report? Rows of their tables as data, each marked reported, never measured.

``configs/literature/*.yaml`` holds one printed table a file, schema ``literature/1``. An
experiment names the rows it repeats in its key ``reports``; ``rows_for`` gives every row of a
network and a data set. Figures stand as printed, those that no cost accounting gives included.
"""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, fields
from functools import cache
from pathlib import Path
from typing import Annotated, Any, Literal

from annotated_types import Ge, Gt, Le, MinLen
from pydantic import TypeAdapter, ValidationError

from orchestrator.errors import ConfigError, ConfigProblem, UserError
from orchestrator.yaml_source import YamlSource, dotted, read_yaml
from trainers.recipes import CLOSED

SCHEMA = "literature/1"
FOLDER = Path(__file__).resolve().parents[1] / "configs" / "literature"
# 3, 2.5MP, MP; 32 = full precision. MP = mixed precision, of about that many bits.
_BITS = re.compile(r"(\d+(\.\d+)?)?(MP)?\Z")
# Printed drops are differences of printed accuracies, rounded to the same decimals.
ROUNDING = 0.051

Percent = Annotated[float, Gt(0.0), Le(100.0)]
Amount = Annotated[float, Gt(0.0)]
Text = Annotated[str, MinLen(1)]


@dataclass(frozen=True, kw_only=True, slots=True)
class LiteratureRow:
    """One row of a printed table; None where the table says nothing.

    Attributes:
        id: unique over all files, ``limpq-t3-ours``.
        method: as the table calls it, the paper's own method by its name.
        own: the paper's own result, which a recipe of ours repeats.
        weight_bits: ``3``, ``3MP`` (mixed precision of about 3 bits), ``MP``; 32 = full precision.
        act_bits: the same for activations.
        top1: percent.
        top5: percent.
        top1_fp: of the full-precision network that the row started from, percent.
        drop: ``top1_fp`` less ``top1``, in points.
        bitops_g: BitOps in units of 1e9.
        size_mb: of the quantized weights, in the unit of the table.
        compression: full-precision size over quantized size.
        search_gpu_h: GPU-hours of the search.
        solve_s: seconds of the solver alone.
        search_epochs: epochs of the search.
        retrain_epochs: epochs of the training after it.
        ends: what of the first and last layer is at 8 bits, where the table tells.
        note: what a reader must know besides.
        paper: which paper prints it.
        source: which table of it.
        model: the network.
        dataset: the images.
    """

    __pydantic_config__ = CLOSED

    id: Text
    method: Text
    own: bool = False
    weight_bits: str | None = None
    act_bits: str | None = None
    top1: Percent | None = None
    top5: Percent | None = None
    top1_fp: Percent | None = None
    drop: float | None = None
    bitops_g: Amount | None = None
    size_mb: Amount | None = None
    compression: Amount | None = None
    search_gpu_h: Amount | None = None
    solve_s: Amount | None = None
    search_epochs: Annotated[int, Ge(1)] | None = None
    retrain_epochs: Annotated[int, Ge(1)] | None = None
    ends: str = ""
    note: str = ""
    paper: str = ""
    source: str = ""
    model: str = ""
    dataset: str = ""

    @property
    def reported(self) -> bool:
        """Always: it was read, not measured here."""
        return True

    def to_json(self) -> dict[str, Any]:
        """Plain values, ``reported: true`` among them."""
        return {**asdict(self), "reported": self.reported}


@dataclass(frozen=True, kw_only=True, slots=True)
class LiteratureTable:
    """One file: a printed table.

    Attributes:
        paper: short name of the paper.
        source: the table, ``LIMPQ Table 3``.
        model: the network, by this project's name.
        dataset: the images.
        reported: must be true, so that no file can pass for a measurement.
        rows: in the order printed.
    """

    __pydantic_config__ = CLOSED

    paper: Literal["LIMPQ", "MetaMix"]
    source: Text
    model: Text
    dataset: Text
    reported: Literal[True]
    rows: Annotated[tuple[LiteratureRow, ...], MinLen(1)]


def load_literature(folder: str | Path = FOLDER) -> tuple[LiteratureRow, ...]:
    """Every row of every file of a folder, in the order of file names and rows.

    Raises:
        ConfigError: what is wrong in the files, all of it.
        UserError: no such folder, or nothing in it.
    """
    paths = sorted(Path(folder).glob("*.yaml"))
    if not paths:
        raise UserError("no literature tables", str(folder), "there is no *.yaml", "name another")
    problems: list[ConfigProblem] = []
    rows: list[LiteratureRow] = []
    for path in paths:
        found, wrong = _read(path)
        rows += found
        problems += wrong
    twice = sorted(name for name, count in Counter(row.id for row in rows).items() if count > 1)
    if twice:
        allowed = "every id once over all files"
        problems.append(_problem(str(folder), None, "rows.id", ", ".join(twice), allowed))
    if problems:
        raise ConfigError(tuple(problems))
    return tuple(rows)


@cache
def shipped_rows() -> tuple[LiteratureRow, ...]:
    """The rows that come with this project."""
    return load_literature()


def rows_for(
    model: str, dataset: str, rows: Iterable[LiteratureRow] | None = None
) -> tuple[LiteratureRow, ...]:
    """Every reported row of a network on a data set; empty where the papers have none.

    Args:
        model: the network, by this project's name.
        dataset: the images; see ``dataset_of``.
        rows: where to look; None = those shipped.
    """
    among = shipped_rows() if rows is None else rows
    return tuple(row for row in among if (row.model, row.dataset) == (model, dataset))


def rows_named(
    ids: Iterable[str], rows: Iterable[LiteratureRow] | None = None
) -> tuple[LiteratureRow, ...]:
    """The rows of these ids, in their order.

    Raises:
        UserError: an id that no file has, with near ones.
    """
    known = {row.id: row for row in (shipped_rows() if rows is None else rows)}
    wanted = list(ids)
    missing = [name for name in wanted if name not in known]
    if missing:
        from difflib import get_close_matches

        near = get_close_matches(missing[0], known, n=3)
        raise UserError(
            f"no reported row {missing[0]!r}",
            "reports",
            "configs/literature has no row of that id",
            f"did you mean {' or '.join(near)}?" if near else "see mpq literature",
        )
    return tuple(known[name] for name in wanted)


def dataset_of(data_name: str, num_classes: int) -> str:
    """What the papers call the images of an experiment.

    A folder of images has no name of its own: with a thousand classes it is taken for ImageNet,
    which every table of both papers is about.
    """
    folders = ("imagefolder", "imagenet_parquet", "parquet")
    return "imagenet" if data_name in folders and num_classes == 1000 else data_name


def _read(path: Path) -> tuple[list[LiteratureRow], list[ConfigProblem]]:
    source = read_yaml(path)
    if source.problems:
        return [], list(source.problems)
    if not isinstance(source.tree, dict) or source.tree.get("schema") != SCHEMA:
        return [], [_problem(str(path), 1, "schema", "another or none", f"'{SCHEMA}'")]
    body = {key: value for key, value in source.tree.items() if key != "schema"}
    try:
        table = TypeAdapter(LiteratureTable).validate_json(json.dumps(body), strict=True)
    except ValidationError as error:
        return [], [
            _at(source, tuple(e["loc"]), repr(e["input"])[:80], e["msg"])
            for e in error.errors(include_url=False)
        ]
    given = {"paper": table.paper, "source": table.source}
    placed = given | {"model": table.model, "dataset": table.dataset}
    rows = []
    problems = []
    for index, row in enumerate(table.rows):
        own = {f.name: getattr(row, f.name) for f in fields(row)}
        problems += [_at(source, ("rows", index), row.id, w) for w in _wrong(own)]
        rows.append(LiteratureRow(**{**own, **placed}))
    return rows, problems


def _wrong(row: Mapping[str, Any]) -> list[str]:
    """What cannot be so in a row."""
    found = [f"{name} is the table's to say" for name in
             ("paper", "source", "model", "dataset") if row[name]]  # fmt: skip
    for name in ("weight_bits", "act_bits"):
        text = row[name]
        if text is not None and (not text or not _BITS.match(text)):
            found.append(f"{name} such as 3, 2.5MP, MP or 32, not {text!r}")
    if row["drop"] is not None:
        if row["top1"] is None or row["top1_fp"] is None:
            found.append("top1 and top1_fp beside drop")
        elif abs(row["top1_fp"] - row["top1"] - row["drop"]) > ROUNDING:
            found.append(f"drop {row['top1_fp'] - row['top1']:.2f} = top1_fp - top1")
    return found


def _at(source: YamlSource, path: tuple[Any, ...], found: str, allowed: str) -> ConfigProblem:
    line = next((source.lines[path[:n]] for n in range(len(path), -1, -1)
                 if path[:n] in source.lines), None)  # fmt: skip
    return _problem(source.file, line, dotted(path), found, allowed)


def _problem(file: str, line: int | None, key: str, found: str, allowed: str) -> ConfigProblem:
    return ConfigProblem(file=file, line=line, key=key, found=found, allowed=allowed)
