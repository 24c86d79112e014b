"""The exceptions of syncbn.

SyncbnError
├── NotInitializedError      a job of several processes without `syncbn.init()`
├── MissingBackendError      a backend (TensorFlow, Horovod, mpi4py) is not installed
├── UnknownBackendError      an unknown backend name (also a ValueError)
├── WorldError               ranks disagree, or the world cannot be formed
├── DivergenceError          weights or statistics differ between ranks
└── NonFiniteError           a loss, a gradient or a weight is NaN or infinite
"""


class SyncbnError(Exception):
    """Base class of the exceptions of syncbn."""


class NotInitializedError(SyncbnError):
    """A process of a job of several processes uses a communicator before `syncbn.init()`."""


class MissingBackendError(SyncbnError, ImportError):
    """A backend is needed and not installed; the message has the install command."""


class UnknownBackendError(SyncbnError, ValueError):
    """A backend name that is not one of `auto`, `horovod`, `mpi`, `tf`, `local`."""


class WorldError(SyncbnError):
    """The world cannot be formed as requested: sizes do not divide, or ranks disagree."""


class DivergenceError(SyncbnError):
    """Weights or statistics that must be equal on all ranks differ; the message names them."""


class NonFiniteError(SyncbnError):
    """A value in training is NaN or infinite; the message names the step and the origin."""
