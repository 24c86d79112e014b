"""The environment of this process, read and set before TensorFlow is imported."""

import gc
import importlib
import os
import sys
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

# By launcher: horovodrun and ours, Open MPI, MPICH, srun.
_LOCAL_RANK_VARIABLES = (
    "HOROVOD_LOCAL_RANK",
    "OMPI_COMM_WORLD_LOCAL_RANK",
    "MPI_LOCALRANKID",
    "SLURM_LOCALID",
)
_LOCAL_SIZE_VARIABLES = ("HOROVOD_LOCAL_SIZE", "OMPI_COMM_WORLD_LOCAL_SIZE", "MPI_LOCALNRANKS")
# Every launcher that syncbn knows sets a variable with one of these prefixes.
_LAUNCHER_PREFIXES = ("HOROVOD_", "OMPI_", "PMI_", "TF_CONFIG", "SLURM_STEP_")


def load_tensorflow() -> None:
    """Imports TensorFlow with this rank's share of the cores. Variables already set take priority.

    TensorFlow prints to stderr during import whatever its log level; the output is shown only if
    the import fails. The garbage collector ignores the imported objects, which live as long as the
    process: the import takes 1.9 s instead of 3.2 s.
    """
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
    # More threads than cores, over all ranks of the host, would only wait for each other.
    os.environ.setdefault("TF_NUM_INTRAOP_THREADS", str(max(1, _cores() // _local_size())))
    sys.stderr.flush()
    stderr = os.dup(2)
    try:
        with tempfile.TemporaryFile() as output:
            os.dup2(output.fileno(), 2)
            try:
                with _no_collection():
                    importlib.import_module("tensorflow")
            except BaseException:
                output.seek(0)
                os.write(stderr, output.read())
                raise
            finally:
                os.dup2(stderr, 2)
    finally:
        os.close(stderr)


@contextmanager
def _no_collection() -> Iterator[None]:
    """Keeps the garbage collector from scanning a million permanent objects repeatedly."""
    gc.disable()
    try:
        yield
    finally:
        gc.freeze()
        gc.enable()


def is_elastic() -> bool:
    """Whether horovodrun started this process as part of an elastic job."""
    return os.environ.get("HOROVOD_ELASTIC") == "1"


def rank_from_environment() -> int:
    """The rank that the launcher of this process gave it; 0 without a launcher.

    For errors that end a rank before it has joined the job. Importing syncbn loads TensorFlow, so
    a process without a launcher, which is most often a user trying out options, skips it.
    """
    if not any(name.startswith(_LAUNCHER_PREFIXES) for name in os.environ):
        return 0
    load_tensorflow()
    from syncbn.communicators.cluster_environment import cluster_environment
    from syncbn.errors import SyncbnError

    try:
        return cluster_environment().rank
    except SyncbnError:  # the variables are wrong: every rank prints its error
        return 0


def local_rank() -> int:
    """The rank of this process among those on its host, before a communicator exists."""
    found = _first_number(_LOCAL_RANK_VARIABLES)
    if found is not None:
        return found
    if os.environ.get("TF_CONFIG"):
        from syncbn.communicators.cluster_environment import cluster_from_tf_config

        addresses, index = cluster_from_tf_config(os.environ["TF_CONFIG"])
        hosts = [address.rsplit(":", 1)[0] for address in addresses]
        return hosts[:index].count(hosts[index])
    return 0


def launcher_run() -> Path | None:
    """The run directory of the launcher that started this process; None without a launcher."""
    directory = os.environ.get("LAUNCHER_RUN_DIR")
    return Path(directory) if directory else None


def launcher_attempt() -> int:
    """The attempt of the launcher that this process belongs to, from 0."""
    return int(os.environ.get("LAUNCHER_ATTEMPT") or 0)


def _cores() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _local_size() -> int:
    """The number of ranks on this host, as far as their launcher says."""
    return _first_number(_LOCAL_SIZE_VARIABLES) or 1


def _first_number(variables: Sequence[str]) -> int | None:
    texts = (os.environ.get(name, "") for name in variables)
    return next((int(text) for text in texts if text.isdigit()), None)
