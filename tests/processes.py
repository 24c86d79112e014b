"""Starts real ranks for tests: `mpirun`, `horovodrun`, a TF_CONFIG cluster, or one process.

The fixtures in conftest.py hand these launchers to the tests; jobs.py says what can be done with a
started job.
"""

import json
import os
import shutil
import socket
import subprocess
import sys
import uuid
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from pathlib import Path

from tests.jobs import TOKEN, Job, JobResult

REPOSITORY = Path(__file__).resolve().parents[1]
SCRIPTS = Path(sys.executable).parent

THREADS = ("TF_NUM_INTRAOP_THREADS", "OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS")

# What one rank must not inherit from a job that happens to surround the tests.
_RANK_VARIABLES = ("TF_CONFIG", "HOROVOD_", "OMPI_", "PMI_", "PMIX_", "LAUNCHER_", "SLURM_")

_QUIET_AND_SMALL = {
    "TF_CPP_MIN_LOG_LEVEL": "3",
    # One thread a rank, unless `make test-threads` says otherwise.
    **{name: os.environ.get(name, "1") for name in THREADS},
    "PYTHONUNBUFFERED": "1",
    "CUDA_VISIBLE_DEVICES": "",
    # Open MPI: allow root and more ranks than cores, yield while waiting, stay on this machine.
    "OMPI_ALLOW_RUN_AS_ROOT": "1",
    "OMPI_ALLOW_RUN_AS_ROOT_CONFIRM": "1",
    "OMPI_MCA_rmaps_base_oversubscribe": "1",
    "OMPI_MCA_mpi_yield_when_idle": "1",
    "OMPI_MCA_btl_vader_single_copy_mechanism": "none",
    "OMPI_MCA_plm": "isolated",
    "OMPI_MCA_btl": "self,vader,tcp",
    "OMPI_MCA_btl_tcp_if_include": "lo",
    "OMPI_MCA_oob_tcp_if_include": "lo",
}


class Launcher(ABC):
    """Starts `program` on `size` ranks: a Path is a script, a string a module for `python -m`.

    `scripts` is the directory of the Python and of mpirun or horovodrun, by default our own.
    """

    def __init__(self, directory: Path, scripts: Path = SCRIPTS) -> None:
        self._directory, self._scripts = directory, scripts
        self._jobs: list[Job] = []

    def __call__(
        self,
        size: int,
        program: Path | str,
        arguments: Sequence[str] = (),
        *,
        environment: Mapping[str, str] | None = None,
        timeout: float = 100,
        options: Sequence[str] = (),
    ) -> JobResult:
        """Runs the job to its end. `options` go to the launcher, `arguments` to the program."""
        return self.start(size, program, arguments, environment=environment, options=options).wait(
            timeout
        )

    def start(
        self,
        size: int,
        program: Path | str,
        arguments: Sequence[str] = (),
        *,
        environment: Mapping[str, str] | None = None,
        options: Sequence[str] = (),
    ) -> Job:
        """Starts the job and returns at once; the end of the test kills it, however that comes."""
        directory = self._directory / f"job-{len(self._jobs)}-{uuid.uuid4().hex[:6]}"
        directory.mkdir(parents=True)
        job = Job([], directory, uuid.uuid4().hex, size)
        self._jobs.append(job)
        inherited = {
            name: text for name, text in os.environ.items() if not name.startswith(_RANK_VARIABLES)
        }
        variables = inherited | _QUIET_AND_SMALL | {TOKEN: job.token}
        variables["PATH"] = f"{self._scripts}{os.pathsep}{inherited.get('PATH', os.defpath)}"
        command = [str(self._scripts / "python"), *python_command(program, arguments)[1:]]
        self._launch(job, command, variables | dict(environment or {}), options)
        return job

    def close(self) -> None:
        """Kills every job this launcher started."""
        for job in self._jobs:
            job.kill()

    @abstractmethod
    def _launch(
        self, job: Job, command: list[str], environment: dict[str, str], options: Sequence[str]
    ) -> None:
        """Starts the processes of the job."""

    def _executable(self, name: str) -> str:
        found = find_executable(name, self._scripts)
        if found is None:
            raise FileNotFoundError(
                f"{name} stands neither in {self._scripts} nor on PATH; run `make test`"
            )
        return found


class Mpirun(Launcher):
    """`mpirun -np N`."""

    def _launch(
        self, job: Job, command: list[str], environment: dict[str, str], options: Sequence[str]
    ) -> None:
        mpirun = [self._executable("mpirun"), "--oversubscribe", "--bind-to", "none"]
        mpirun += ["--output-filename", str(job.directory), "-np", str(job.size), *options]
        spawn(job, [*mpirun, *command], environment)


class Horovodrun(Launcher):
    """`horovodrun -np N`, over MPI unless `--gloo` is among the options."""

    def _launch(
        self, job: Job, command: list[str], environment: dict[str, str], options: Sequence[str]
    ) -> None:
        horovodrun = [self._executable("horovodrun"), "-np", str(job.size)]
        horovodrun += ["--output-filename", str(job.directory)]
        if "--gloo" in options and "--network-interfaces" not in options:
            horovodrun += ["--network-interfaces", "lo"]
        spawn(job, [*horovodrun, *options, *command], environment)


class TensorFlowCluster(Launcher):
    """N processes on loopback, each with its TF_CONFIG and nothing above them, as pods would be."""

    def _launch(
        self, job: Job, command: list[str], environment: dict[str, str], options: Sequence[str]
    ) -> None:
        if options:
            raise ValueError(
                f"a TF_CONFIG cluster has no launcher to give options to. Received: {list(options)}"
            )
        job.reserved = [_reserve_port() for _ in range(job.size)]
        workers = [f"127.0.0.1:{reserved.getsockname()[1]}" for reserved in job.reserved]
        # The ports stay ours to the end: we hold them bound but silent, the workers bind beside us.
        shared = environment | {"TF_GRPC_REUSE_PORT": "1"}
        for rank in range(job.size):
            task = {"cluster": {"worker": workers}, "task": {"type": "worker", "index": rank}}
            spawn_rank(job, rank, command, shared | {"TF_CONFIG": json.dumps(task)})


class SingleProcess(Launcher):
    """One plain `python` with no launcher; the size must be 1."""

    def _launch(
        self, job: Job, command: list[str], environment: dict[str, str], options: Sequence[str]
    ) -> None:
        if job.size != 1 or options:
            raise ValueError(f"expected 1 process, no options. Received: {job.size}, {options}")
        spawn_rank(job, 0, command, environment)


def python_command(program: Path | str, arguments: Sequence[str] = ()) -> list[str]:
    """This interpreter with a script (Path) or a module (string)."""
    target = [str(program)] if isinstance(program, Path) else ["-m", program]
    return [sys.executable, *target, *arguments]


def python_path(*directories: Path) -> str:
    """A PYTHONPATH with these directories before those it already has."""
    entries = [str(directory) for directory in directories]
    known = os.environ.get("PYTHONPATH", "").split(os.pathsep)
    return os.pathsep.join([*entries, *(path for path in known if path and path not in entries)])


def find_executable(name: str, scripts: Path = SCRIPTS) -> str | None:
    """The executable in `scripts`, by default beside this interpreter, else the one on PATH."""
    return shutil.which(name, path=str(scripts)) or shutil.which(name)


def spawn(job: Job, command: list[str], environment: dict[str, str]) -> None:
    """Starts a launcher, which writes for all ranks."""
    with (job.directory / "launcher").open("wb") as output:
        job.processes.append(_popen(command, environment, output.fileno(), subprocess.STDOUT))


def spawn_rank(job: Job, rank: int, command: list[str], environment: dict[str, str]) -> None:
    """Starts one rank without a launcher above it."""
    directory = job.directory / f"rank.{rank}"
    directory.mkdir()
    with (directory / "stdout").open("wb") as stdout, (directory / "stderr").open("wb") as stderr:
        job.processes.append(_popen(command, environment, stdout.fileno(), stderr.fileno()))


def _popen(
    command: list[str], environment: dict[str, str], stdout: int, stderr: int
) -> subprocess.Popen[bytes]:
    return subprocess.Popen(
        command,
        cwd=REPOSITORY,
        env=environment,
        stdin=subprocess.DEVNULL,
        stdout=stdout,
        stderr=stderr,
        start_new_session=True,
    )


def _reserve_port() -> socket.socket:
    reserved = socket.socket()
    reserved.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
    reserved.bind(("127.0.0.1", 0))
    return reserved
