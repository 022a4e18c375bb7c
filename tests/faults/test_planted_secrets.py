"""Row 22: twelve secrets are planted, a whole run is made, and everything it left is searched.

Eight stand in the configuration (one of them on the command line), four in the environment. The
network is a module of the user's that logs what it was given, as tactless code does. Searched are
every file of the run folder, MLflow's database and artifacts, the report, every log, and what the
commands print. ``config.yaml`` keeps what was typed, for its owner (SECURITY.md), and the network's
own file and the experiment file are the user's.
"""

from __future__ import annotations

import json
import os
import sqlite3
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from test_mlflow_outages import Server

if TYPE_CHECKING:
    from conftest import Command
    from fault_ledger import Ledger

PLACES = {
    "a key that is named like a secret": "planted-00-hunter2",
    "below such a key": "planted-01-hunter2",
    "in a list below such a key": "planted-02-hunter2",
    "signature in a URL": "planted-03-hunter2",
    "Bearer header": "planted-04-hunter2",
    "password in a connection text": "planted-05-hunter2",
    "--set on the command line": "planted-06-hunter2",
    "password of the tracking server": "planted-07-hunter2",
    "AWS_SECRET_ACCESS_KEY": "planted-08-hunter2",
    "MLFLOW_TRACKING_PASSWORD": "planted-09-hunter2",
    "RAY_AUTH_TOKEN": "planted-10-hunter2-planted-10-hunter2",
    "HF_TOKEN": "planted-11-hunter2",
}
P = list(PLACES.values())

CONFIG = f"""\
schema: experiment/1
name: tiny
seed: 3
method: limpq
model:
  name: planted_net:make
  num_classes: 10
  options:
    secret_key: {P[0]}
    credentials: {{user: {P[1]}, list: [{P[2]}]}}
    url: "https://host/x?X-Amz-Signature={P[3]}&width=3"
    header: "Authorization: Bearer {P[4]}"
    dsn: "host=db password={P[5]} user=me"
data: {{name: digits}}
bits: {{weight: [2, 3, 4], act: [2, 3, 4]}}
cluster: {{num_workers: 1, threads_per_worker: 1}}
pretrain: {{epochs: 2, batch_size: 64, lr: 0.1}}
indicators: {{epochs: 2, batch_size: 64, lr: 0.01, fraction: 0.5}}
search:
  alphas: [1.0]
  limits: [{{bitops_level: 3x3}}]
train: {{epochs: 1, batch_size: 64, lr: 0.02, warmup_epochs: 0, bn_reestimate_images: 128}}
controls: []
tracking: {{uri: "http://me:{P[7]}@127.0.0.1:PORT"}}
"""

TACTLESS = """\
import logging
from trainers.models.registry import build_model
from trainers.phases import ModelSpec

def make(num_classes, **options):
    logging.getLogger(__name__).info("made with %s", options)
    small = {"in_channels": 1, "base_width": 8}
    return build_model(ModelSpec(name="cifar_resnet8", num_classes=num_classes, options=small))
"""

# ``mpq`` with a redaction that hides nothing.
BROKEN = """\
import sys
import orchestrator.redact as redact
redact.redacted = lambda value, key="": value
redact.redacted_text = lambda text: text
redact.redacted_arguments = list
redact.hider = lambda tree: lambda value: value
from orchestrator.cli import main
main(sys.argv[1:])
"""

RUN = ("run", "tiny.yaml", "--set", f"model.options.api_key={P[6]}")
OWNERS = ("tiny.yaml", "planted_net.py", "runs/tiny/config.yaml")


def texts(folder: Path) -> Iterator[tuple[str, bytes]]:
    """Everything below a folder as bytes; databases and tables as what is in them, too."""
    import pyarrow.parquet as pq

    for path in sorted(folder.rglob("*")):
        name = path.relative_to(folder).as_posix()
        if not path.is_file() or name in OWNERS or "__pycache__" in name:
            continue
        yield name, path.read_bytes()
        if path.suffix == ".db":
            with sqlite3.connect(path) as database:
                yield f"{name} (dump)", "\n".join(database.iterdump()).encode()
        elif path.suffix == ".parquet":
            table = pq.read_table(path)
            told = f"{table.schema.metadata} {table.to_pylist()}"
            yield f"{name} (rows)", told.encode()


def found(folder: Path) -> list[str]:
    """Where which planted secret is."""
    return [
        f"{place}: {name}"
        for name, body in texts(folder)
        for place, secret in PLACES.items()
        if secret.encode() in body
    ]


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    made = Server(tmp_path_factory.mktemp("server"))
    made.start()
    yield made
    made.kill()


@pytest.mark.ray
@pytest.mark.slow
def test_twelve_planted_secrets_are_nowhere_after_a_run(
    tmp_path: Path, server: Server, ledger: Ledger
) -> None:
    from conftest import Command

    command = Command(tmp_path / "work", CONFIG.replace("PORT", str(server.port)))
    (command.folder / "planted_net.py").write_text(TACTLESS)
    command.env |= {
        "PYTHONPATH": os.pathsep.join([str(command.folder), command.env["PYTHONPATH"]]),
        "AWS_SECRET_ACCESS_KEY": P[8],
        "MLFLOW_TRACKING_USERNAME": "me",
        "MLFLOW_TRACKING_PASSWORD": P[9],
        "RAY_AUTH_TOKEN": P[10],
        "HF_TOKEN": P[11],
    }
    ledger.inject(22, "secret in the configuration or the environment", len(PLACES))
    code = command.run(*RUN)
    assert code == 0, command.output
    for arguments in (("status", "tiny", "--json"), ("logs", "tiny"), ("report", "tiny")):
        assert command.run(*arguments) == 0, command.output
    # The search looked where secrets would be: each of these exists and says something of the run.
    log = next(command.root.glob("steps/pretrain/logs/rank0.log")).read_text()
    assert "made with" in log
    assert "width=3" in log
    for name in ("journal.jsonl", "driver.log", "report.html", "report.md", "mirror.json"):
        assert (command.root / name).stat().st_size > 0
    mirrored = dict(texts(server.folder))["server.db (dump)"].decode()
    assert "(hidden)" in mirrored
    assert "width=3" in mirrored
    assert list((server.folder / "artifacts").rglob("config.yaml"))
    assert found(command.folder) == []
    assert found(server.folder) == []
    ledger.survive(22, "secret in the configuration or the environment", len(PLACES))
    _break_it(command, server)


def _break_it(command: Command, server: Server) -> None:
    """Negative control: the same search after a start whose redaction hides nothing.

    Every step is done, so it needs no cluster; it writes its journal, its log and MLflow again.
    """
    (command.root / "mirror.json").unlink()
    done = subprocess.run(
        [sys.executable, "-c", BROKEN, *RUN], cwd=command.folder, env=command.env,
        capture_output=True, text=True, timeout=600,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    where = found(command.folder)
    assert "--set on the command line: runs/tiny/journal.jsonl" in where
    assert "--set on the command line: runs/tiny/driver.log" in where
    assert any(w.startswith("signature in a URL") for w in found(server.folder))


def test_the_search_finds_what_is_there(tmp_path: Path) -> None:
    """The detector itself, in every kind of file that it opens."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    assert found(tmp_path) == []
    (tmp_path / "a.json").write_text(json.dumps({"x": P[0]}))
    pq.write_table(pa.table({"x": [P[1]] * 100}), tmp_path / "b.parquet", compression="zstd")
    with sqlite3.connect(tmp_path / "c.db") as database:
        database.execute("create table t (x text)")
        database.execute("insert into t values (?)", (P[2],))
    database.close()
    (tmp_path / "planted_net.py").write_text(P[3])
    names = {where.rpartition(": ")[2] for where in found(tmp_path)}
    assert {"a.json", "b.parquet (rows)", "c.db (dump)"} <= names
    assert "planted_net.py" not in names
