"""Hands a job to sbatch, once; refusals as errors that name the field."""

import hashlib
import os
import re

from launcher.errors import LauncherError, UsageError
from launcher.spec import JobSpec
from launcher.spec.secrets import is_secret
from launcher.targets.slurm import queue, reasons, script
from launcher.targets.slurm.queue import MARK, SlurmError

# What sbatch prints (in lower case), the field it is about, and how to see what is valid.
_REFUSALS = {
    "partition": ("slurm.partition", "the partitions: sinfo --summarize"),
    "account": ("slurm.account", "yours: sacctmgr show associations user=$USER"),
    "qos": ("slurm.qos", "those there are: sacctmgr show qos"),
    "feature": ("slurm.constraint", "the features of nodes: sinfo --format='%N %f'"),
    "time limit": ("slurm.time", "the limits of partitions: sinfo --format='%P %l'"),
    "dependency": ("slurm.dependency", "an example: afterok:4711"),
    "gres": ("resources.gpus", "the GPUs of nodes: sinfo --format='%N %G'"),
    "memory": ("resources.memory", "the memory of nodes: sinfo --format='%N %m'"),
    "processors": ("resources.cpus", "the cores of nodes: sinfo --format='%N %c'"),
    "cpu": ("resources.cpus", "the cores of nodes: sinfo --format='%N %c'"),
    "node count": ("ranks", "the nodes of partitions: sinfo --summarize"),
    "node configuration": ("ranks, resources", "the nodes: sinfo --format='%P %D %c %m %G %f'"),
}


def submit(spec: JobSpec) -> tuple[int, bool]:
    """The number of the job, and whether it is new: not if the same job is queued or runs already.

    Raises UsageError when another job of the name does, or when Slurm refuses the job.
    """
    text = script.render(spec)
    digest = hashlib.sha256(f"{text}{sorted(spec.environment.items())}".encode()).hexdigest()[:16]
    for job in queue.jobs(f"--name={spec.name}"):
        if not reasons.ended(job):
            if job.comment == MARK + digest:
                return job.id, False
            raise UsageError(
                f"name: another job {spec.name!r} is {reasons.state_of(job)} (Slurm job {job.id}); "
                f"{_cancel_hint(spec, job)}choose another --name"
            )
    _make_output(spec)
    secrets = {name: value for name, value in spec.environment.items() if is_secret(name)}
    try:
        answer = queue.command(
            "sbatch", "--parsable", f"--comment={MARK}{digest}", text=text, environment=secrets
        )
    except SlurmError as error:
        raise _explained(str(error)) from None
    return int(answer.strip().partition(";")[0]), True


def check(spec: JobSpec) -> None:
    """Asks Slurm whether it would accept the job. Raises UsageError if not."""
    try:
        queue.command("sbatch", "--test-only", text=script.render(spec))
    except SlurmError as error:
        raise _explained(str(error)) from None


def _cancel_hint(spec: JobSpec, job: queue.QueuedJob) -> str:
    return f"launcher cancel {spec.name} --target slurm, or " if job.ours else ""


def _make_output(spec: JobSpec) -> None:
    try:
        os.makedirs(spec.output, exist_ok=True)
    except OSError as error:
        raise LauncherError(
            f"output: {spec.output.absolute()} cannot be made: {error.strerror}; choose another "
            "directory with --output, on a file system that all nodes share"
        ) from None


def _explained(said: str) -> UsageError:
    last = re.sub(r"^.*Batch job submission failed: ", "", said)
    lower = said.lower()
    for sign, (field, valid) in _REFUSALS.items():
        if sign in lower:
            return UsageError(f"{field}: Slurm refuses the job: {said}; {valid}")
    return UsageError(f"Slurm refuses the job: {last}")
