"""Every exception syncbn raises on purpose, as one tree.

SyncbnError
├── NotInitializedError      a multi-process job whose communicator was never initialised
├── MissingEngineError       an optional engine (TensorFlow, Horovod, mpi4py) is not installed
├── UnknownBackendError      an unknown backend name (also a ValueError)
├── WorldError               the job's processes disagree, or the world cannot be formed
├── DivergenceError          the ranks' weights are no longer equal
└── NonFiniteError           a loss, a gradient or a weight has become NaN or infinite
"""


class SyncbnError(Exception):
    """Root of the exceptions raised by syncbn."""


class NotInitializedError(SyncbnError):
    """A process of a multi-process job uses a communicator before `syncbn.init()`."""


class MissingEngineError(SyncbnError, ImportError):
    """An optional engine is needed and not installed; the text names the command."""


class UnknownBackendError(SyncbnError, ValueError):
    """A backend name that is not one of `auto`, `horovod`, `mpi`, `tf`, `local`."""


class WorldError(SyncbnError):
    """The world cannot be formed as asked: sizes do not divide, or ranks disagree."""


class DivergenceError(SyncbnError):
    """Weights or statistics that must be equal on all ranks differ; the text names them."""


class NonFiniteError(SyncbnError):
    """Training has become NaN or infinite; the text names the step, and where it was first seen."""
