"""What can go wrong in training that is not a plain bug.

Every class takes one message so that it survives the pickle round trip from a Ray worker.
"""


class TrainersError(Exception):
    """Base of every error raised by ``trainers``; the message says what, where and what to do."""


class ModelError(TrainersError):
    """Unknown network, unusable weights, or a network a phase cannot work with."""


class DataError(TrainersError):
    """Unknown data set, unreadable file, broken image, empty split."""


class FolderNotSharedError(TrainersError):
    """This node does not see the run's folder."""


class CheckpointError(TrainersError):
    """No complete checkpoint where one must be."""


class DivergedError(TrainersError):
    """The loss or a parameter is no longer finite; the last good checkpoint stands."""


class InterruptedPhaseError(TrainersError):
    """The phase was asked to stop; its checkpoint is written and it can be resumed."""
