"""What the environment says about the job this process belongs to.

Reads environment variables only: no engine is imported here, so that the answer is known before
one is chosen.
"""

import json
import os
import sys
from dataclasses import dataclass
from pathlib import Path

from syncbn.errors import WorldError


@dataclass(frozen=True)
class ClusterEnvironment:
    """The job as its launcher describes it.

    Attributes:
        engine: `"horovod"` (HOROVOD_* variables), `"mpi"` (Open MPI or PMI), `"tf"` (TF_CONFIG with
            more than one worker), or `"local"`.
        rank: Rank of this process, 0 for a single process.
        size: Number of processes.
        source: The variable that told, for error messages.
    """

    engine: str
    rank: int
    size: int
    source: str


def cluster_from_tf_config(text: str) -> tuple[list[str], int]:
    """The training addresses (`chief` first, then `worker`) of a TF_CONFIG and our index in them.

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
    """Reads rank and size, the most specific launcher first.

    Horovod's own variables win over MPI's because `horovodrun --gloo` may run inside an MPI
    allocation; MPI's win over TF_CONFIG because cloud platforms set TF_CONFIG unasked.
    """
    env = dict(os.environ) if environ is None else environ
    for engine, size_key, rank_key in (
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
            return ClusterEnvironment(engine, rank, size, size_key)
    if env.get("TF_CONFIG"):
        addresses, index = cluster_from_tf_config(env["TF_CONFIG"])
        if len(addresses) > 1:
            return ClusterEnvironment("tf", index, len(addresses), "TF_CONFIG")
    return ClusterEnvironment("local", 0, 1, "")


def local_ranks() -> int:
    """How many ranks the job has on this host, at least; 1 where its launcher does not say."""
    for key in ("HOROVOD_LOCAL_SIZE", "OMPI_COMM_WORLD_LOCAL_SIZE", "MPI_LOCALNRANKS"):
        if os.environ.get(key, "").isdecimal():
            return int(os.environ[key])
    return 1


# Messages of up to so many bytes go to a rank of the same host at once. By default Open MPI asks
# first from 4 KiB on: a sum of 1,026 float64 (256 channels) then takes 6.5 µs between two ranks
# instead of 2.3 µs, and a whole turn of the scheduler where other programs want the cores.
_EAGER_BYTES = 32768


def prepare_open_mpi() -> None:
    """Settles what Open MPI reads when it starts; what the environment says already wins.

    Statistics are small messages, which should go at once. And Open MPI is told where the wheel of
    this Python environment lies: `mpirun` tells its ranks, but in a process started without it Open
    MPI would look for its programs where it was built, find none, and abort the process.
    """
    os.environ.setdefault("OMPI_MCA_btl_vader_eager_limit", str(_EAGER_BYTES))
    if cluster_environment().engine != "mpi" and (Path(sys.prefix) / "bin" / "orted").exists():
        os.environ.setdefault("OPAL_PREFIX", sys.prefix)
