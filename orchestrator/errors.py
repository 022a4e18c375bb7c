"""What a user can do wrong or meet, and the exit code the command ends with.

Every message says what went wrong, where, why, and what to do about it. Constructors take
positional arguments only and hand all of them to ``Exception``, so that an error raised in a
worker process survives the pickle round trip to the driver.
"""

from __future__ import annotations

import errno
from dataclasses import dataclass
from enum import IntEnum
from typing import ClassVar

_STORAGE_ERRORS = (
    errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS, errno.EACCES, errno.EPERM, errno.EIO,
    errno.ENOTDIR, errno.EISDIR, errno.EEXIST, errno.ESTALE,
    # A file server that is away: the same that restarts a phase (retries.py).
    errno.ETIMEDOUT, errno.ENOTCONN, errno.EHOSTDOWN, errno.EHOSTUNREACH, errno.ENETDOWN,
    errno.ENETUNREACH,
)  # fmt: skip


class ExitCode(IntEnum):
    """What the shell gets to see."""

    DONE = 0
    """Everything asked for is there."""
    INTERNAL = 1
    """A defect of this program; the traceback is in a file."""
    BAD_INPUT = 2
    """Config, file, name or format is wrong; nothing was started."""
    INCOMPLETE = 3
    """Finished, but some cells are infeasible, unproven, timed out, diverged or failed."""
    LOCKED = 4
    """Another process is running this run."""
    DRIFT = 5
    """The run exists with another configuration and no fork was asked for."""
    RESOURCES = 6
    """Disk, memory or the cluster lacks what was asked."""
    INTERRUPTED = 130
    """SIGINT: state is saved, the same command goes on."""
    TERMINATED = 143
    """SIGTERM: state is saved, the same command goes on."""


class UserError(Exception):
    """Something the person at the keyboard can mend.

    Args:
        what: what went wrong, one clause.
        where: file, key, run or host it concerns.
        why: the reason, as far as it is known.
        todo: what to do about it.
    """

    exit_code: ClassVar[ExitCode] = ExitCode.BAD_INPUT

    def __init__(self, what: str, where: str = "", why: str = "", todo: str = "") -> None:
        super().__init__(what, where, why, todo)
        self.what, self.where, self.why, self.todo = what, where, why, todo

    def __str__(self) -> str:
        lines = [self.what]
        lines += [f"  where: {self.where}"] if self.where else []
        lines += [f"  why:   {self.why}"] if self.why else []
        lines += [f"  do:    {self.todo}"] if self.todo else []
        return "\n".join(lines)


class StoreError(UserError):
    """A run folder, journal or record that is missing, damaged or of another version."""


class LockedError(UserError):
    """Another process holds the run."""

    exit_code = ExitCode.LOCKED


class DriftError(UserError):
    """The run was made with another configuration."""

    exit_code = ExitCode.DRIFT


class ResourceError(UserError):
    """The machine or the cluster cannot give what was asked."""

    exit_code = ExitCode.RESOURCES


class InterruptedRunError(UserError):
    """SIGINT stopped the run at a point it can go on from."""

    exit_code = ExitCode.INTERRUPTED


class TerminatedRunError(UserError):
    """SIGTERM stopped the run at a point it can go on from."""

    exit_code = ExitCode.TERMINATED


def exit_code_of(error: Exception) -> ExitCode:
    """What the command ends with after an error; INTERNAL for what nobody raised on purpose."""
    if isinstance(error, UserError):
        return error.exit_code
    if is_storage_refusal(error):
        return ExitCode.RESOURCES
    code = room_exit_code(error)
    return ExitCode.INTERNAL if code is None else code


def is_storage_refusal(error: Exception) -> bool:
    """Whether a file system said no: full, read-only, forbidden, broken."""
    return isinstance(error, OSError) and error.errno in _STORAGE_ERRORS


def room_exit_code(error: Exception) -> ExitCode | None:
    """The exit code of an error that another room raised on purpose, else None."""
    from solvers.errors import SolverFailedError, SolversError
    from trainers.errors import DivergedError, InterruptedPhaseError, TrainersError

    if isinstance(error, SolverFailedError):
        return ExitCode.INTERNAL
    if isinstance(error, DivergedError):
        return ExitCode.INCOMPLETE
    if isinstance(error, InterruptedPhaseError):
        return ExitCode.INTERRUPTED
    return ExitCode.BAD_INPUT if isinstance(error, (SolversError, TrainersError)) else None


@dataclass(frozen=True, kw_only=True, slots=True)
class ConfigProblem:
    """One thing that is wrong in a configuration.

    Attributes:
        file: path as the user gave it, or ``--set``.
        line: line in that file, counted from 1; None where there is none.
        key: dotted path of the key, ``search.limits.0.bitops``.
        found: what stands there.
        allowed: what may stand there.
        suggestion: what was probably meant; empty when nothing is near.
    """

    file: str
    line: int | None
    key: str
    found: str
    allowed: str
    suggestion: str = ""

    def __str__(self) -> str:
        place = self.file if self.line is None else f"{self.file}:{self.line}"
        text = f"{place}: {self.key}: found {self.found}; allowed: {self.allowed}"
        return f"{text} ({self.suggestion})" if self.suggestion else text


class ConfigError(UserError):
    """Everything that is wrong in a configuration, at once."""

    def __init__(self, problems: tuple[ConfigProblem, ...]) -> None:
        Exception.__init__(self, problems)
        self.problems = tuple(problems)
        count = len(self.problems)
        self.what = f"the configuration has {count} problem{'s' if count != 1 else ''}"
        self.where = ", ".join(sorted({p.file for p in self.problems}))
        self.why, self.todo = "", ""

    def __str__(self) -> str:
        return "\n".join([self.what + ":", *(f"  {problem}" for problem in self.problems)])
