"""What the workers said since the last look, whole lines and torn ones."""

from __future__ import annotations

from pathlib import Path

import pytest

from orchestrator.progress import ProgressLines


def test_the_newest_line_of_each_look_is_told_once_it_is_whole(tmp_path: Path) -> None:
    path = tmp_path / "progress.jsonl"
    path.write_text('{"epoch": 1, "loss": 9.0}\n')
    lines = ProgressLines(path)
    assert list(lines.fresh()) == []
    with path.open("a") as file:
        file.write(
            '{"epoch": 2, "loss": 0.5}\n{"epoch": 3, "update": 6, "updates": 8, "loss": 0.25}\n'
        )
        file.write('{"epoch": 4, "lo')
        file.flush()
        assert list(lines.fresh()) == ["epoch 3, update 6 of 8, loss 0.25"]
        file.write('ss": 0.125}\n')
    assert list(lines.fresh()) == ["loss 0.125"]


@pytest.mark.parametrize(
    "torn",
    [b'{"epoch": 1, "lo{"epoch": 2, "loss": 0.5}', b"\x00\x00\xff", b"17", b'{"update": 1}',
     b'{"loss": "x"}'],
)  # fmt: skip
def test_a_torn_line_ends_nothing_and_the_next_one_is_told(tmp_path: Path, torn: bytes) -> None:
    path = tmp_path / "progress.jsonl"
    lines = ProgressLines(path)
    path.write_bytes(torn + b"\n")
    assert "torn" in "".join(lines.fresh())
    with path.open("ab") as file:
        file.write(b'{"epoch": 3, "loss": 0.25}\n')
    assert list(lines.fresh()) == ["loss 0.25"]
