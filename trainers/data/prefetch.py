"""How does decoding overlap with training? Threads fill the next batches while one is used.

Threads, not processes: the decoders give up Python's lock, there is nothing to start (two
DataLoader processes took longer to start than 1,500 images to read) and no second copy of the
index in memory. Each image is a task of its own and knows its place in the batch, so neither the
number of threads nor their order can change what a batch holds.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor


@dataclass(frozen=True, slots=True)
class Task:
    """A batch that is being made: its buffer, and one future for each image.

    Attributes:
        images: float32 [B, C, H, W], being filled.
        rows: one future each; its result is the label, or None for an image left out.
    """

    images: Tensor
    rows: tuple[Future[int | None], ...]

    def result(self) -> tuple[Tensor, Tensor]:
        """Wait for the images; those left out are taken out of the batch."""
        labels = [row.result() for row in self.rows]
        kept = [i for i, label in enumerate(labels) if label is not None]
        images = self.images if len(kept) == len(labels) else self.images[kept]
        return images, torch.tensor([labels[i] for i in kept], dtype=torch.int64)


class DecodePool:
    """Threads that decode images, started at the first use.

    Args:
        num_threads: 0 decodes in the calling thread, when a batch is asked for.
        ahead: batches in the making beside the one in use.
    """

    def __init__(self, num_threads: int, ahead: int) -> None:
        self.num_threads, self.ahead = num_threads, ahead
        self._threads: ThreadPoolExecutor | None = None

    def submit(self, function: Callable[..., int | None], *args: Any) -> Future[int | None]:
        """Run ``function`` in a thread, or now when there are none."""
        if self.num_threads == 0:
            future: Future[int | None] = Future()
            try:
                future.set_result(function(*args))
            except Exception as error:
                future.set_exception(error)
            return future
        if self._threads is None:
            before = torch.get_num_threads()
            # A resize would start a team of OpenMP threads in every thread of the pool.
            self._threads = ThreadPoolExecutor(
                self.num_threads, "decode", initializer=torch.set_num_threads, initargs=(1,)
            )
            for started in [self._threads.submit(int) for _ in range(self.num_threads)]:
                started.result()
            torch.set_num_threads(before)
        return self._threads.submit(function, *args)

    def run(self, tasks: Iterable[Callable[[], Task]]) -> Iterator[tuple[Tensor, Tensor]]:
        """The results of ``tasks`` in order, begun up to ``ahead`` batches before their turn."""
        begun: deque[Task] = deque()
        try:
            for begin in tasks:
                begun.append(begin())
                if len(begun) > (self.ahead if self.num_threads else 0):
                    yield begun.popleft().result()
            while begun:
                yield begun.popleft().result()
        finally:
            for task in begun:
                for row in task.rows:
                    row.cancel()

    def __getstate__(self) -> dict[str, Any]:
        return {"num_threads": self.num_threads, "ahead": self.ahead, "_threads": None}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
