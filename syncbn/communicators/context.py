"""The communicator of this process: `init`, `communicator`, and `resolve` for layers."""

import logging
import os
import sys
import threading
from collections.abc import Callable
from typing import TYPE_CHECKING

import tensorflow as tf

from syncbn.communicators.base import Communicator
from syncbn.communicators.cluster_environment import ClusterEnvironment, cluster_environment
from syncbn.communicators.local import LocalCommunicator
from syncbn.errors import MissingBackendError, NotInitializedError, UnknownBackendError, WorldError

if TYPE_CHECKING:
    from syncbn.communicators.distribute import ReplicaCommunicator

_log = logging.getLogger(__name__)

BACKENDS = ("auto", "horovod", "mpi", "tf", "local")

_lock = threading.Lock()
_current: Communicator | None = None
_local = LocalCommunicator()


def _horovod() -> Communicator:
    from syncbn.communicators.horovod import initialise_horovod

    return initialise_horovod()


def _mpi() -> Communicator:
    from syncbn.communicators.mpi import MPICommunicator, abort_job_on_uncaught_exception

    abort_job_on_uncaught_exception()
    return MPICommunicator()


def _tf() -> Communicator:
    from syncbn.communicators.distribute import initialise_cluster

    return initialise_cluster() or LocalCommunicator()


_FACTORIES: dict[str, Callable[[], Communicator]] = {
    "horovod": _horovod,
    "mpi": _mpi,
    "tf": _tf,
    "local": lambda: _local,
}


def _choose(environment: ClusterEnvironment) -> str:
    """The backend for `backend="auto"`.

    Horovod if it is already initialised. In an MPI job, MPI on CPUs, where it is the fastest, and
    Horovod on GPUs, since only Horovod reduces in device memory.
    """
    hvd = sys.modules.get("horovod.tensorflow")
    if hvd is not None and hvd.is_initialized():
        return "horovod"
    if environment.backend == "mpi" and tf.config.get_visible_devices("GPU"):
        try:
            from syncbn.communicators.horovod import import_horovod

            import_horovod()
        except MissingBackendError:
            return "mpi"
        return "horovod"
    return environment.backend


def _pin_gpu(local_rank: int) -> None:
    """Makes only the GPU of the local rank visible, with memory growth enabled."""
    gpus = tf.config.list_physical_devices("GPU")
    if not gpus:
        return
    try:
        mine = gpus[local_rank % len(gpus)]
        tf.config.set_visible_devices(mine, "GPU")
        tf.config.experimental.set_memory_growth(mine, True)
    except RuntimeError as error:
        raise WorldError(
            "syncbn.init() must run before TensorFlow touches a GPU: call it at the top of the "
            f"program (TensorFlow: {error})"
        ) from error


def init(backend: str = "auto", check_consistency: bool = True) -> Communicator:
    """Joins the job and makes its communicator the current one.

    Call it once, before TensorFlow runs any operation: it pins the GPU of the local rank and, for
    `tf`, starts the cluster. A second call with the same backend or `auto` returns the same
    communicator.

    Args:
        backend: `"auto"` (from the environment variables of the launcher), `"horovod"`, `"mpi"`
            (mpi4py), `"tf"` (the cluster in TF_CONFIG) or `"local"` (a single process).
        check_consistency: Whether a job of several processes periodically compares the variables
            that Keras optimizers train, and fails with a `DivergenceError` if ranks train
            different models. `SYNCBN_CHECK_CONSISTENCY=0` in the environment disables it, too.

    Returns:
        The communicator over all ranks of the job.

    Raises:
        UnknownBackendError: `backend` is none of these.
        MissingBackendError: The backend is not installed; the message has the install command.
        WorldError: The backend finds another number of ranks than the launcher started, or another
            backend is already initialised.
    """
    global _current
    if backend not in BACKENDS:
        raise UnknownBackendError(
            f"backend must be one of {', '.join(BACKENDS)}. Received: backend={backend!r}"
        )
    with _lock:
        environment = cluster_environment()
        if _current is not None:
            if backend in ("auto", _current.name):
                return _current
            raise WorldError(
                f"this process already uses the {_current.name} backend; a process can use only "
                f"one. Received: backend={backend!r}"
            )
        name = _choose(environment) if backend == "auto" else backend
        joined = _FACTORIES[name]()
        if name != "local" and joined.size != environment.size:
            said = (
                f"{environment.source} says {environment.size}"
                if environment.source
                else "one was started"
            )
            raise WorldError(
                f"the {name} backend sees {joined.size} rank(s), but {said}. Start the job with "
                f"{_HOW_TO_START[name]}, or choose backend {environment.backend!r}"
            )
        if joined.size > 1:
            _pin_gpu(joined.local_rank)
            if check_consistency and os.environ.get("SYNCBN_CHECK_CONSISTENCY") != "0":
                _enable_consistency_check(joined)
        _current = joined
        return joined


def _enable_consistency_check(world: Communicator) -> None:
    from syncbn import consistency

    mailbox = world.open_mailbox()
    if mailbox is not None:
        consistency.enable(world, mailbox)
    else:
        _log.warning(
            "the consistency check is disabled: where Horovod runs over MPI it needs mpi4py "
            "(pip install 'syncbn[mpi]')"
        )


_HOW_TO_START = {
    "horovod": "horovodrun -np N python ...",
    "mpi": "mpirun -np N python ...",
    "tf": "a TF_CONFIG in the environment of each worker",
}


def shutdown() -> None:
    """Resets the current communicator, so that `init` can be called again (elastic restarts).

    The backend itself keeps running.
    """
    global _current
    from syncbn import consistency

    with _lock:
        _current = None
        consistency.disable()


def communicator() -> Communicator:
    """The current communicator.

    Returns:
        What `init` returned; without `init`, the local communicator in a single-process program.

    Raises:
        NotInitializedError: The job has several processes and `init` was not called.
    """
    if _current is not None:
        return _current
    environment = cluster_environment()
    if environment.size > 1:
        raise NotInitializedError(
            f"this process is rank {environment.rank} of {environment.size} "
            f"({environment.source}), but no communicator was initialised: "
            "call syncbn.init() at the top of the program"
        )
    return _local


def resolve(choice: "str | Communicator") -> Communicator:
    """The communicator that a layer uses at this point of the program.

    Inside `strategy.run` of several replicas, the communicator of the replica context, which must
    include all processes of the job. Otherwise the current one, whose backend must be `choice`.

    Args:
        choice: A backend name or a communicator.

    Raises:
        NotInitializedError: See `communicator`.
        UnknownBackendError: An unknown name.
        WorldError: A backend that is not the current one, or a strategy over the devices of this
            process in a job of several processes.
    """
    if isinstance(choice, Communicator):
        return choice
    if choice not in BACKENDS:
        raise UnknownBackendError(
            f"communicator must be a Communicator or one of {', '.join(BACKENDS)}. "
            f"Received: communicator={choice!r}"
        )
    if choice == "local":
        return _local
    from syncbn.communicators.distribute import current_replica

    replica = current_replica()
    if replica is not None:
        return _inside_strategy(choice, replica)
    now = communicator()
    # A single process needs no backend, which may not even be installed.
    if choice not in ("auto", now.name) and now.size > 1:
        raise WorldError(
            f"the layer asks for the {choice} communicator, but this job uses {now.name}. "
            f"Use communicator='auto', or call syncbn.init({choice!r})"
        )
    return now


def _inside_strategy(choice: str, replica: "ReplicaCommunicator") -> Communicator:
    if choice not in ("auto", "tf"):
        raise WorldError(
            f"the layer asks for the {choice} communicator inside strategy.run of {replica.size} "
            "replicas, which only tf.distribute can reduce over. Use communicator='auto'"
        )
    if replica.spans_processes:
        # One replica per process: the collectives of ClusterCommunicator are faster.
        ours = _current if _current is not None and _current.name == "tf" else None
        return ours if ours is not None and ours.size == replica.size else replica
    processes = cluster_environment().size if _current is None else _current.size
    if choice == "auto" and processes > 1:
        raise WorldError(
            f"the strategy covers only the {replica.size} replicas of this process, and the job "
            f"has {processes} processes: start one process per device without a strategy, or "
            "synchronize only the replicas of this process with communicator='tf'"
        )
    return replica
