"""What did the workers say since the last look? One short line per epoch, for the terminal."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from pathlib import Path

# An epoch of a small network takes less than a second; a person reads one line every few.
LINES_PER_LOOK = 1


class NewLines:
    """The lines that others add to a file from now on.

    Args:
        path: the file; it may not exist yet.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._read = path.stat().st_size if path.exists() else 0

    def take(self) -> list[bytes]:
        """Whole lines since the last call."""
        if not self._path.exists():
            return []
        with self._path.open("rb") as file:
            file.seek(self._read)
            whole, newline, _ = file.read().rpartition(b"\n")
        self._read += len(whole) + len(newline)
        return [line for line in whole.split(b"\n") if line]


class ProgressLines:
    """The new lines of a step's progress file, the newest of each look.

    Args:
        path: the file; it may not exist yet.
    """

    def __init__(self, path: Path) -> None:
        self._lines = NewLines(path)

    def fresh(self) -> Iterator[str]:
        """What is new since the last call, at most ``LINES_PER_LOOK`` lines."""
        for line in self._lines.take()[-LINES_PER_LOOK:]:
            yield _told(line)


def _told(line: bytes) -> str:
    # A disk that was full leaves half a line with the next one glued to it; a line that is for
    # people must not end the driver, and with it the training that goes on.
    try:
        return _shown(json.loads(line))
    except (ValueError, TypeError, KeyError, AttributeError):
        return "a line of progress cannot be read: it was torn (is the disk full?)"


def _shown(metrics: Mapping[str, float]) -> str:
    parts = []
    if "update" in metrics:
        parts.append(f"epoch {metrics['epoch']:.0f}, update {metrics['update']:.0f} of "
                     f"{metrics['updates']:.0f}")  # fmt: skip
    rest = {k: v for k, v in metrics.items() if k not in ("epoch", "update", "updates")}
    parts += [f"{name} {value:.4g}" for name, value in rest.items()]
    return ", ".join(parts)
