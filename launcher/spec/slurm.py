"""The part of a job for Slurm: the table `[slurm]` of a job's file, in the terms of sbatch.

Nodes, tasks, CPUs, memory and GPUs follow from the ranks and their resources.
"""

from typing import Annotated, Literal

from pydantic import Field, StringConstraints, model_validator

from launcher.options import option
from launcher.spec.fields import Data, Text

_PANEL = "Slurm"

# Values that stand on a line `#SBATCH --name=VALUE` without quotes.
Word = Annotated[str, StringConstraints(pattern=r"^[^\s#'\"\\]+$", max_length=512)]
# https://slurm.schedmd.com/sbatch.html#OPT_time: minutes, [hours:]minutes:seconds, or with days.
Time = Annotated[str, StringConstraints(pattern=r"^(\d+-)?\d{1,9}(:\d{1,2}){0,2}$", max_length=24)]
Directive = Annotated[str, StringConstraints(pattern=r"^--[a-z][^\s#'\"\\]*$", max_length=512)]
Image = Annotated[str, StringConstraints(pattern=r"^[^\s'\"\\]+$", max_length=512)]
Mount = Annotated[str, StringConstraints(pattern=r"^/[^\s,'\"\\]*$", max_length=512)]


class Slurm(Data):
    """The settings of a job on Slurm, named like the options of sbatch.

    `setup` are lines of shell before the ranks start; `options` are further options of sbatch. With
    `requeue` the job is queued again after its time limit, a preemption or the loss of a node, and
    continues. With a `container_image` the ranks run in containers, in which `mounts` (and the
    directories of the job) are visible.
    """

    partition: Word | None = option(None, "Partition.", _PANEL, shown="the cluster's")
    account: Word | None = option(None, "Account.", _PANEL, shown="yours")
    qos: Word | None = option(None, "Quality of service.", _PANEL, shown="the account's")
    time: Time | None = option(
        None,
        "Time limit: 90 (minutes), 2:00:00 or 1-12:00:00.",
        _PANEL,
        shown="the partition's",
        metavar="time",
    )
    constraint: Word | None = option(None, "Features of the nodes: a100&ib.", _PANEL)
    exclusive: Annotated[bool, Field(strict=True)] = option(
        False, "Share the nodes with no other job.", _PANEL
    )
    gpu_type: Word | None = option(None, "Type of the GPUs: h100.", _PANEL)
    dependency: Word | None = option(None, "Wait for other jobs: afterok:4711.", _PANEL)
    requeue: Annotated[bool, Field(strict=True)] = option(
        True, "Continue after time limit, preemption, node failure.", _PANEL
    )
    setup: tuple[Text, ...] = option(
        (),
        "A line of shell before the ranks: module load cuda. Repeatable.",
        _PANEL,
        repeated=True,
        metavar="line",
    )
    options: tuple[Directive, ...] = option(
        (),
        "Another option of sbatch: --reservation=maint. Repeatable.",
        _PANEL,
        "--sbatch",
        repeated=True,
        metavar="option",
    )
    container_image: Image | None = option(
        None, "The ranks run in this image: /images/x.sif, docker://x.", _PANEL, metavar="image"
    )
    container_runtime: Literal["apptainer", "pyxis"] = option(
        "apptainer", "apptainer, or pyxis (srun --container-image).", _PANEL
    )
    mounts: tuple[Mount, ...] = option(
        (),
        "A directory in the containers: /data. Repeatable.",
        _PANEL,
        "--mount",
        repeated=True,
        metavar="path",
    )

    @model_validator(mode="after")
    def _fits(self) -> "Slurm":
        if any("\n" in line for line in self.setup):
            raise ValueError("setup: expected one line each")
        return self
