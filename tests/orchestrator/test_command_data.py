"""``mpq data pack`` at the shell: what it prints, and the exit codes of bad folders."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from PIL import Image

from orchestrator.cli import run_command
from orchestrator.config_schema import DataConfig
from orchestrator.drift import what_decides
from orchestrator.errors import ExitCode
from orchestrator.plan import _deciding


@pytest.fixture
def folder(tmp_path) -> Path:
    for split in ("train", "val"):
        for i in range(4):
            place = tmp_path / "images" / split / f"c{i % 2}"
            place.mkdir(parents=True, exist_ok=True)
            Image.new("RGB", (20, 16), (40 * i, 90, 10)).save(place / f"{i}.jpg")
    return tmp_path / "images"


def test_a_folder_is_packed_and_packed_again_without_work(folder, tmp_path, capsys):
    command = ["data", "pack", str(folder), str(tmp_path / "out"), "--threads", "1"]
    assert run_command(command) is ExitCode.DONE
    assert "train: 4 images in 1 shards" in capsys.readouterr().out
    assert run_command([*command, "--json"]) is ExitCode.DONE
    facts = json.loads(capsys.readouterr().out)
    assert facts["images"] == {"train": 4, "val": 4}
    assert facts["kept_shards"] == 2


def test_bad_folders_are_exit_code_two(folder, tmp_path, capsys):
    assert run_command(["data", "pack", str(tmp_path / "none"), "x"]) is ExitCode.BAD_INPUT
    broken = folder / "train" / "c0" / "0.jpg"
    broken.write_bytes(broken.read_bytes()[:100])
    out = str(tmp_path / "out")
    assert run_command(["data", "pack", str(folder), out]) is ExitCode.BAD_INPUT
    assert "0.jpg" in capsys.readouterr().err
    other = str(tmp_path / "less")
    assert run_command(["data", "pack", str(folder), other, "--skip-bad", "1"]) is ExitCode.DONE
    assert "left out: " in capsys.readouterr().out


def test_decoding_threads_decide_no_result_and_are_no_drift():
    one, two = (
        DataConfig(name="imagefolder", options={"resolution": 96, "decode_workers": n})
        for n in (1, 8)
    )
    assert _deciding(one) == _deciding(two)
    assert _deciding(one) != _deciding(DataConfig(name="imagefolder", options={"resolution": 97}))
    trees = [{"data": {"name": "x", "options": dict(c.options)}} for c in (one, two)]
    assert what_decides(trees[0]) == what_decides(trees[1])
