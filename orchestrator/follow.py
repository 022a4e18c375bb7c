"""How is what a job says passed on while it runs, over a line that may break?

Ray streams what a driver writes; its log can also be asked for, but only whole, which over a run of
hours is gigabytes. So the stream is listened to, and whenever it breaks, ends or falls silent, one
question says where the job stands. A line that broke (an ssh tunnel, a laptop that slept) is no
run that broke: questions are repeated for a minute before anybody gives up.
"""

from __future__ import annotations

import asyncio
import re
import time
from collections.abc import AsyncIterator, Callable

from orchestrator.errors import ResourceError
from orchestrator.submit import Job, Jobs

# How long in a row nothing but failures is borne.
PATIENCE_S = 60.0
_POLL_S = 2.0
# Then the stream is opened anew: a connection whose middle is gone is silent for ever.
_SILENCE_S = 60.0
# The cluster is there and says no: no such job, or not with this token.
_REFUSAL = re.compile(r"status code 4\d\d")


class _Listener:
    """Passes on what is new of a log that is told from its beginning again and again."""

    def __init__(self, write: Callable[[str], None]) -> None:
        self._write, self._shown = write, 0

    def hear(self, text: str, start: int = 0) -> None:
        """Take a part of the log that begins at character ``start``."""
        new = text[max(0, self._shown - start) :]
        if new:
            self._write(new)
            self._shown = start + len(text)


def follow_job(
    jobs: Jobs,
    job_id: str,
    write: Callable[[str], None],
    sleep: Callable[[float], None] = time.sleep,
    clock: Callable[[], float] = time.monotonic,
) -> Job:
    """Pass on what a job's driver writes until it ends.

    Args:
        jobs: of the cluster.
        job_id: which one.
        write: takes the text, piece by piece.
        sleep: waits some seconds.
        clock: tells seconds.

    Returns:
        The job as it ended.

    Raises:
        ResourceError: the cluster did not answer for a minute, or does not know the job.
    """
    listener = _Listener(write)
    failing_since: float | None = None
    while True:
        streamed = _listen(jobs.stream(job_id), listener)
        try:
            job = jobs.state(job_id)
            if job.ended or not streamed:
                listener.hear(jobs.log(job_id))
            failing_since = None
        except ResourceError as error:
            if _REFUSAL.search(error.why):
                raise
            failing_since = clock() if failing_since is None else failing_since
            if clock() - failing_since >= PATIENCE_S:
                raise ResourceError(
                    f"no answer from the cluster for {PATIENCE_S:g} s; the run goes on",
                    error.where, error.why,
                    f"follow it with: mpq logs {job_id} --address {jobs.address} --follow",
                ) from error  # fmt: skip
        else:
            if job.ended:
                return job
        sleep(_POLL_S)


def _listen(stream: AsyncIterator[str], listener: _Listener) -> bool:
    """Pass on a stream until it ends or falls silent; false when it broke."""

    async def pass_on() -> None:
        heard = 0
        while True:
            try:
                text = await asyncio.wait_for(anext(stream), _SILENCE_S)
            except (StopAsyncIteration, TimeoutError):
                return
            listener.hear(text, heard)
            heard += len(text)

    try:
        asyncio.run(pass_on())
    except Exception:
        # Whatever it was: the question that follows says whether the cluster is there, and the log
        # brings what is missing.
        return False
    return True
