"""The job as Slurm describes it to a task that `srun` has started without another launcher.

With PMIx (`srun --mpi=pmix`) the tasks find each other over MPI; without it, over a TensorFlow
cluster made from the list of nodes.
"""

import json
import re
from collections.abc import Mapping
from itertools import accumulate

from syncbn.errors import WorldError

SIZE = "SLURM_STEP_NUM_TASKS"  # not set in a batch script itself, unlike SLURM_NTASKS
_FIRST_PORT, _PORTS = 20000, 12000  # below those that the kernel assigns by itself
_ENTRY = re.compile(r"((?:[^,\[\]]|\[[^\]]*\])+)(?:,|$)")
_COUNT = re.compile(r"(\d+)(?:\(x(\d+)\))?")


def rank_and_size(environ: Mapping[str, str]) -> tuple[int, int] | None:
    """Rank and number of the tasks of this step; None if it has only one, or there is no step.

    Raises:
        WorldError: The variables are not numbers.
    """
    try:
        size, rank = int(environ.get(SIZE, "1")), int(environ.get("SLURM_PROCID", "0"))
    except ValueError:
        raise WorldError(
            f"{SIZE} and SLURM_PROCID must be whole numbers. Received: {environ.get(SIZE)!r}, "
            f"{environ.get('SLURM_PROCID')!r}"
        ) from None
    return (rank, size) if size > 1 else None


def has_pmix(environ: Mapping[str, str]) -> bool:
    """Whether MPI finds the other tasks."""
    return "PMIX_RANK" in environ


def tf_config(environ: Mapping[str, str]) -> str:
    """TF_CONFIG for this task, with one worker per task of the step.

    Tasks of a node listen on consecutive ports, which depend on the number of the job.

    Raises:
        WorldError: The variables do not describe where the tasks run.
    """
    rank, size = rank_and_size(environ) or (0, 1)
    nodes = expand_nodes(environ.get("SLURM_STEP_NODELIST", ""))
    counts = expand_counts(environ.get("SLURM_STEP_TASKS_PER_NODE", ""))
    if len(nodes) != len(counts) or sum(counts) != size:
        raise WorldError(
            f"expected {size} tasks on the nodes of this step. Received: "
            f"SLURM_STEP_NODELIST={environ.get('SLURM_STEP_NODELIST')!r}, "
            f"SLURM_STEP_TASKS_PER_NODE={environ.get('SLURM_STEP_TASKS_PER_NODE')!r}"
        )
    mine = next(node for node, end in enumerate(accumulate(counts)) if rank < end)
    if environ.get("SLURM_NODEID", str(mine)) != str(mine):
        raise WorldError(
            "a TensorFlow cluster numbers the tasks node by node: srun --distribution=block"
        )
    most = max(counts)
    number = int(environ.get("SLURM_JOB_ID", "0")) * 7 + int(environ.get("SLURM_STEP_ID", "0"))
    port = _FIRST_PORT + number % (_PORTS // most) * most
    workers = [
        f"{node}:{port + local}"
        for node, count in zip(nodes, counts, strict=True)
        for local in range(count)
    ]
    task = {"cluster": {"worker": workers}, "task": {"type": "worker", "index": rank}}
    return json.dumps(task)


def expand_nodes(text: str) -> list[str]:
    """`n[01-03,7],gpu` as n01, n02, n03, n7, gpu."""
    names: list[str] = []
    for entry in _ENTRY.findall(text):
        expanded = [""]
        for plain, ranges in re.findall(r"([^\[\]]*)(?:\[([^\]]*)\])?", entry):
            numbers = [one for part in ranges.split(",") for one in _numbers(part)]
            expanded = [start + plain + number for start in expanded for number in numbers]
        names += expanded
    return names


def expand_counts(text: str) -> list[int]:
    """`2(x3),1` as 2, 2, 2, 1."""
    found = (_COUNT.fullmatch(part) for part in text.split(",") if part)
    return [int(one[1]) for one in found if one is not None for _ in range(int(one[2] or 1))]


def _numbers(part: str) -> list[str]:
    first, dash, last = part.partition("-")
    if not dash:
        return [part]
    return [str(number).zfill(len(first)) for number in range(int(first), int(last) + 1)]
