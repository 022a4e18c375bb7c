"""What can be wrong with tables, policies and requests handed to this room.

An infeasible limit is not here: it is a result (``SolveStatus.INFEASIBLE``), since sweeps cross
the edge of the feasible on purpose.
"""


class SolversError(Exception):
    """Base of every error raised by ``solvers``; the message says what, where and what to do."""


class TableError(SolversError):
    """A table contradicts itself or the other tables: missing, doubled or impossible entries."""


class LatencyMissingError(TableError):
    """A latency table does not hold a layer at some pair of bits that was asked for."""


class PolicyError(SolversError):
    """A policy does not fit the network or the choices it is used with."""


class FormatError(SolversError):
    """A file is not what its name says: unreadable, cut short, wrong schema or version."""


class LimitError(SolversError):
    """A limit or device cannot be understood: unknown name, unknown unit, zero or negative."""


class SolverFailedError(SolversError):
    """The backend broke or contradicted itself; no policy can be trusted."""


class BackendCrashedError(SolverFailedError):
    """The backend's process died before it gave an answer."""
