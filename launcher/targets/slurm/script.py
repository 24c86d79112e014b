"""A job as a script for sbatch."""

import shlex
import sys
from collections.abc import Iterator
from pathlib import Path

from launcher.errors import SpecError
from launcher.spec import JobSpec
from launcher.spec.secrets import is_secret
from launcher.targets.join_command import job_json

_LEAVING_SECONDS = 30  # after the ranks have saved and ended
_OWN_MEBIBYTES = 512  # for the launcher of a node and its agents
_FIRST_PORT, _PORTS = 20000, 12000  # below those that the kernel assigns by itself
_INDENT = " \\\n    "

# The shell of a script, after its step has been started in the background. `exit codes`: 0 done,
# 1 failed, 2 bad configuration, 130 and 143 stopped; any other is that of srun, without a launcher.
_END = """\
step=$!
while interrupted=; wait "$step"; code=$?; [ -n "$interrupted" ]; do :; done
"""
_CONTINUE = """\
# 143: the ranks have saved and stopped. Where Slurm asked for it, the job continues later.
read -r state preempted < <(squeue --noheader --jobs="$SLURM_JOB_ID" --Format=State,PreemptTime)
again=
if [ "$code" -eq 143 ] && [ "$state" = RUNNING ]; then
    if [ -n "$warned" ] || [ "$preempted" != N/A ]; then again=yes; fi
elif [ "$state" = RUNNING ] && [ "${SLURM_RESTART_COUNT:-0}" -lt %(restarts)d ]; then
    # Not an exit code of the launcher: one was killed, with its node or without.
    case $code in 0 | 1 | 2 | 130 | 143) ;; *) again=yes ;; esac
fi
if [ -n "$again" ]; then
    echo "launcher: job $SLURM_JOB_ID ended with $code and is queued again"
    scontrol requeue "$SLURM_JOB_ID"
fi
"""


def check(spec: JobSpec) -> None:
    """Raises SpecError for what a local job may request but Slurm cannot provide."""
    slots = spec.container.slots
    if spec.ranks % slots:
        raise SpecError(
            f"ranks: expected a multiple of the {slots} slots of each node. Received: {spec.ranks}"
        )
    if spec.hosts:
        raise SpecError("hosts: Slurm chooses the nodes; expected none. See --sbatch --nodelist=…")
    if spec.backend == "local" and spec.ranks > 1:
        raise SpecError(
            "backend: expected auto, mpi, horovod or tf for several ranks. Received: local"
        )
    if spec.container.image is not None:
        raise SpecError("container.image: on Slurm the image is slurm.container_image")
    if spec.kubernetes.time_limit is not None:
        raise SpecError("kubernetes.time_limit: on Slurm the limit is slurm.time, as sbatch has it")
    if spec.slurm.mounts and spec.slurm.container_image is None:
        raise SpecError("slurm.mounts: expected a container_image with them; --container-image")
    for path in (spec.output.absolute(), spec.directory):
        if any(character in str(path) for character in " \t\n#'\"\\%"):
            raise SpecError(
                "output, directory: sbatch takes no space, quote, backslash, # or % in a path. "
                f"Received: {str(path)!r}"
            )


def log_file(output: Path, name: str, job: object) -> Path:
    """The output of the job, of all nodes; `job` is its number, or sbatch's %j."""
    return output.absolute() / f"{name}-{job}.out"


def render(spec: JobSpec) -> str:
    """Raises SpecError."""
    check(spec)
    parts = [
        "#!/bin/bash",
        "\n".join(f"#SBATCH --{line}" for line in _directives(spec)),
        "",
        *_preparation(spec),
        *_traps(spec),
        "",
        *_about_tasks(spec),
        _step(spec) + " &",
        _END + (_CONTINUE % {"restarts": spec.restart.max_restarts} if spec.slurm.requeue else ""),
    ]
    return "\n".join(parts) + 'exit "$code"'


def _directives(spec: JobSpec) -> Iterator[str]:
    slurm, each, slots = spec.slurm, spec.resources, spec.container.slots
    warning = int(spec.save_timeout + spec.grace) + _LEAVING_SECONDS
    yield f"job-name={spec.name}"
    yield f"output={log_file(spec.output, spec.name, '%j')}"
    yield "open-mode=append"
    yield f"chdir={spec.directory}"
    yield f"nodes={spec.ranks // slots}"
    yield "ntasks-per-node=1"
    if each.cpus:
        yield f"cpus-per-task={each.cpus * slots}"
    if each.gpus:
        kind = f"{slurm.gpu_type}:" if slurm.gpu_type else ""
        yield f"gpus-per-node={kind}{each.gpus * slots}"
    if each.memory:
        yield f"mem={-(-each.memory * slots // 2**20) + _OWN_MEBIBYTES}M"
    given = ("partition", "account", "qos", "time", "constraint")
    for name in given:
        if (value := getattr(slurm, name)) is not None:
            yield f"{name}={value}"
    if slurm.exclusive:
        yield "exclusive"
    if slurm.dependency is not None:
        yield f"dependency={slurm.dependency}"
        yield "kill-on-invalid-dep=yes"
    yield f"signal=B:USR1@{warning}"
    yield "requeue" if slurm.requeue else "no-requeue"
    for line in slurm.options:
        yield line.removeprefix("--")


def _preparation(spec: JobSpec) -> Iterator[str]:
    """sbatch passes its own environment on; secrets are only there."""
    for name, value in sorted(spec.environment.items()):
        if is_secret(name):
            yield f"# {name}: in the environment of sbatch; the value is not written here."
        else:
            yield f"export {name}={shlex.quote(value)}"
    yield from spec.slurm.setup
    if spec.environment or spec.slurm.setup:
        yield ""


def _traps(spec: JobSpec) -> Iterator[str]:
    warned = " warned=yes" if spec.slurm.requeue else ""
    yield "# Before the time limit Slurm sends USR1 to this script, which asks all tasks to save."
    yield "# scancel and preemption send SIGTERM to the tasks themselves."
    if warned:
        yield "warned="
    yield f"trap 'interrupted=yes{warned}; scancel --signal=TERM \"$SLURM_JOB_ID\"' USR1"
    yield "trap 'interrupted=yes' TERM"


def _about_tasks(spec: JobSpec) -> Iterator[str]:
    slots = spec.container.slots
    ranks = f"{slots} ranks" if slots > 1 else "one rank"
    yield f"# On each node one launcher with {ranks}. The first one leads: it starts, watches and"
    yield "# restarts all ranks. Jobs that share a node listen on ports of their own."
    size = slots + 2  # of the leader, Horovod's rendezvous, and one for every rank over tf
    yield f"port=$(({_FIRST_PORT} + SLURM_JOB_ID % {_PORTS // size} * {size}))"


def _step(spec: JobSpec) -> str:
    slots, slurm = spec.container.slots, spec.slurm
    nodes = spec.ranks // slots
    srun = [f"srun --nodes={nodes} --ntasks={nodes} --ntasks-per-node=1"]
    if spec.resources.cpus:
        srun[0] += f" --cpus-per-task={spec.resources.cpus * slots}"
    # A task that has stopped must not end those that still save.
    patience = int(spec.save_timeout + spec.grace) + _LEAVING_SECONDS
    srun.append(f"--mpi=none --kill-on-bad-exit=0 --wait={patience} --export=ALL")
    python = shlex.quote(sys.executable)
    if slurm.container_image is not None:
        python = "python"
        srun.append(_container(spec))
    return _INDENT.join(
        [
            *srun,
            f'{python} -m launcher join --workers {nodes - 1} --port "$port"'
            f' --run "{spec.name}-$SLURM_JOB_ID"',
            f"--job {shlex.quote(job_json(spec, spec.output.absolute()))}",
            f"-- {shlex.join(spec.command)}",
        ]
    )


def _container(spec: JobSpec) -> str:
    slurm = spec.slurm
    paths = [str(spec.output.absolute()), str(spec.directory), *slurm.mounts]
    image, directory = shlex.quote(slurm.container_image or ""), shlex.quote(str(spec.directory))
    if slurm.container_runtime == "pyxis":
        mounts = ",".join(path if ":" in path else f"{path}:{path}" for path in paths)
        return (
            f"--container-image={image} --container-mounts={shlex.quote(mounts)} "
            f"--container-workdir={directory}"
        )
    gpus = "--nv " if spec.resources.gpus else ""
    binds = " ".join(f"--bind {shlex.quote(path)}" for path in paths)
    return f"apptainer exec {gpus}{binds} --pwd {directory} {image}"
