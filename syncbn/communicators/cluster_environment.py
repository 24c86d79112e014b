"""Rank and size of this process from the environment variables of its launcher.

Imports no backend, so that the result is available before one is chosen.
"""

import json
import os
import sys
from dataclasses import dataclass
from pathlib import Path

from syncbn.communicators import slurm
from syncbn.errors import WorldError


@dataclass(frozen=True)
class ClusterEnvironment:
    """The job as described by its launcher.

    Attributes:
        backend: `"horovod"` (HOROVOD_* variables), `"mpi"` (Open MPI, PMI, or Slurm with PMIx),
            `"tf"` (TF_CONFIG with more than one worker, or Slurm without PMIx), or `"local"`.
        rank: Rank of this process, 0 for a single process.
        size: Number of processes.
        source: The variable that gives the size, for error messages.
    """

    backend: str
    rank: int
    size: int
    source: str


def cluster_from_tf_config(text: str) -> tuple[list[str], int]:
    """The addresses of `chief` and `worker` in a TF_CONFIG, and the index of this process.

    Raises:
        WorldError: `text` is not the JSON that tf.distribute expects.
    """
    try:
        config = json.loads(text)
        cluster = config.get("cluster", {})
        chiefs = list(cluster.get("chief", []))
        addresses = chiefs + list(cluster.get("worker", []))
        task = config.get("task", {})
        index = int(task.get("index", 0))
    except (ValueError, AttributeError, TypeError) as error:
        raise WorldError(
            "TF_CONFIG must be JSON with `cluster` and `task` "
            f'(like {{"cluster": {{"worker": ["host:port"]}}, "task": {{"type": "worker", '
            f'"index": 0}}}}). Received: {text!r} ({error})'
        ) from error
    if task.get("type") == "worker":
        index += len(chiefs)
    return addresses, index


def cluster_environment(environ: dict[str, str] | None = None) -> ClusterEnvironment:
    """Reads rank and size; the variables of the most specific launcher take precedence.

    Horovod's variables precede MPI's because `horovodrun --gloo` may run inside an MPI allocation;
    MPI's precede TF_CONFIG because cloud platforms set TF_CONFIG by default. Slurm's come last: its
    tasks may start another launcher.
    """
    env = dict(os.environ) if environ is None else environ
    for backend, size_key, rank_key in (
        ("horovod", "HOROVOD_SIZE", "HOROVOD_RANK"),
        ("mpi", "OMPI_COMM_WORLD_SIZE", "OMPI_COMM_WORLD_RANK"),
        ("mpi", "PMI_SIZE", "PMI_RANK"),
    ):
        if size_key in env:
            try:
                size, rank = int(env[size_key]), int(env.get(rank_key, "0"))
            except ValueError as error:
                raise WorldError(
                    f"{size_key} and {rank_key} must be whole numbers. "
                    f"Received: {env[size_key]!r}, {env.get(rank_key)!r}"
                ) from error
            return ClusterEnvironment(backend, rank, size, size_key)
    if env.get("TF_CONFIG"):
        addresses, index = cluster_from_tf_config(env["TF_CONFIG"])
        if len(addresses) > 1:
            return ClusterEnvironment("tf", index, len(addresses), "TF_CONFIG")
    if (found := slurm.rank_and_size(env)) is not None:
        return ClusterEnvironment("mpi" if slurm.has_pmix(env) else "tf", *found, slurm.SIZE)
    return ClusterEnvironment("local", 0, 1, "")


def local_ranks() -> int:
    """The number of ranks of the job on this host; 1 if the launcher does not set it."""
    for key in ("HOROVOD_LOCAL_SIZE", "OMPI_COMM_WORLD_LOCAL_SIZE", "MPI_LOCALNRANKS"):
        if os.environ.get(key, "").isdecimal():
            return int(os.environ[key])
    return 1


# Open MPI sends messages of up to this size to ranks on the same host eagerly. With its default of
# 4 KiB a sum of 1,026 float64 (256 channels) uses the rendezvous protocol and takes 6.5 µs between
# two ranks instead of 2.3 µs, or a whole time slice where other programs use the cores.
_EAGER_BYTES = 32768


def prepare_open_mpi() -> None:
    """Sets environment variables that Open MPI reads when it starts; existing values are kept.

    Raises the eager limit for the small messages of statistics. Sets OPAL_PREFIX to the Open MPI
    wheel of this Python environment: `mpirun` sets it for its ranks, but in a process started
    without `mpirun` Open MPI would search the prefix it was built with, and abort.
    """
    os.environ.setdefault("OMPI_MCA_btl_vader_eager_limit", str(_EAGER_BYTES))
    if cluster_environment().backend != "mpi" and (Path(sys.prefix) / "bin" / "orted").exists():
        os.environ.setdefault("OPAL_PREFIX", sys.prefix)
