"""What happens when an image cannot be decoded? By default the run stops and names it.

With ``on_bad_sample: skip`` a step may lose up to ``max_bad_samples`` images: each is written down
at once, beside the step's results, so that the list survives a kill and the record can show it. The
cap is over all ranks, which see each other's lists. More than the cap stops the run: a set that
shrinks without bound is another set.

A file that cannot be read at all is no broken image and never skipped: whether a file server
answers must not decide which images a result rests on.
"""

from __future__ import annotations

import json
import threading
from pathlib import Path

from solvers.atomic import write_atomically
from trainers.errors import DataError


class BadSamples:
    """The broken images of one data set, as one process met them.

    Args:
        most: how many may be skipped; None = the first one stops the run.
    """

    def __init__(self, most: int | None = None) -> None:
        self.most = most
        self.found: dict[str, str] = {}
        self._journal: Path | None = None
        self._lock = threading.Lock()

    def write_to(self, folder: Path, rank: int) -> None:
        """Keep the list in ``folder``, and take up what an earlier attempt had found.

        Raises:
            DataError: that was more than may be skipped.
        """
        if self.most is None:
            return
        with self._lock:
            self._journal = folder / f"skipped-images-{rank}.json"
            if self._journal.is_file():
                self.found = json.loads(self._journal.read_text()) | self.found
            self._keep()

    def note(self, place: str, reason: str) -> None:
        """Take down a broken image; returns when it may be skipped.

        Raises:
            DataError: it may not.
        """
        if self.most is None:
            raise DataError(
                f"{place}: broken image: {reason}. Replace it, or set data.on_bad_sample to skip "
                "with data.max_bad_samples"
            )
        with self._lock:
            if place in self.found:
                return
            self.found[place] = reason
            self._keep()

    def _keep(self) -> None:
        assert self.most is not None
        if self._journal is not None and self.found:
            write_atomically(self._journal, json.dumps(self.found, indent=1, sort_keys=True))
        found = self.found
        if self._journal is not None and found:
            found = _listed(self._journal.parent) | found
        if len(found) > self.most:
            some = "; ".join(f"{place}: {why}" for place, why in list(found.items())[:3])
            # Earlier attempts count, and an image that was mended since is still on their lists.
            lists = "" if self._journal is None else (
                f", delete {self._journal.parent}/skipped-images-*.json"
            )  # fmt: skip
            raise DataError(
                f"more broken images than allowed, {len(found)} of {self.most}: {some}. "
                f"Replace them{lists} and start again, or allow for more"
            )


def _listed(folder: Path) -> dict[str, str]:
    """Place -> reason of every image that any rank of a step skipped."""
    found: dict[str, str] = {}
    for journal in sorted(folder.glob("skipped-images-*.json")):
        found |= json.loads(journal.read_text())
    return found


def skipped_images(folder: Path) -> list[str]:
    """``place: reason`` of every image that any rank of a step skipped, sorted."""
    return [f"{place}: {reason}" for place, reason in sorted(_listed(folder).items())]
