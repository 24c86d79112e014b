"""Starts the one process of an agent: its environment, session, cores and heartbeat."""

import os
import signal
import subprocess
import sys
import tempfile
from contextlib import ExitStack
from pathlib import Path

from launcher import heartbeat
from launcher.agent import shared_signals, tree
from launcher.agent.process_spec import ProcessSpec

_STARTUP = str(Path(__file__).parent / "startup")
# Where Open MPI keeps what the ranks of a machine share; those of killed ranks remain.
_SEGMENTS, _SHARED_MEMORY = "OMPI_MCA_btl_vader_backing_directory", "/dev/shm"
_PROGRAM_EXIT = "LAUNCHER_PROGRAM_EXIT"  # the file to which startup/sitecustomize.py writes


class Child:
    """The process, its pipes, and the files in which it reports heartbeats and the program's end.

    Raises OSError if the command cannot be started; `errno` says why.
    """

    def __init__(self, spec: ProcessSpec) -> None:
        self.directories = ExitStack()
        directory = self._temporary_directory(tempfile.gettempdir())
        self.heartbeat = directory / "heartbeat"
        self._program_exit = directory / "program-exit"
        environment = _environment(spec, self.heartbeat, self._program_exit)
        if spec.shared_memory and os.access(_SHARED_MEMORY, os.W_OK):
            environment[_SEGMENTS] = str(self._temporary_directory(_SHARED_MEMORY))
        agent = os.getpid()
        cpus = spec.cpus[spec.local_rank] if spec.cpus else []

        def before_exec() -> None:
            tree.die_with(agent)
            if not spec.raw:  # mpirun and its daemon must not end their ranks on a SIGTERM to all
                shared_signals.let_through()
            if cpus:
                os.sched_setaffinity(0, cpus)

        try:
            self._process = subprocess.Popen(
                spec.argv,
                cwd=spec.cwd,
                env=environment,
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT if spec.raw else subprocess.PIPE,
                start_new_session=True,
                preexec_fn=before_exec,
            )
        except OSError:
            self.directories.close()
            raise
        self.pid = self._process.pid
        self.pipes = {
            stream.fileno(): kind
            for stream, kind in ((self._process.stdout, "o"), (self._process.stderr, "e"))
            if stream is not None
        }
        for descriptor in self.pipes:
            os.set_blocking(descriptor, False)

    def _temporary_directory(self, parent: str) -> Path:
        directory = tempfile.TemporaryDirectory(prefix="launcher-rank-", dir=parent)
        return Path(self.directories.enter_context(directory))

    def program_exit(self) -> tuple[float, int] | None:
        """When the program of the rank ended, and its exit code; None while it runs.

        Its process may still run: MPI_Finalize waits for the peers. Python programs only.
        """
        try:
            at, code = self._program_exit.read_text().split()
        except (OSError, ValueError):
            return None
        return float(at), int(code)

    def reaped(self, status: int) -> int:
        """Takes the wait status and returns the exit code, negative for a signal."""
        self._process.returncode = os.waitstatus_to_exitcode(status)
        return self._process.returncode


def _environment(spec: ProcessSpec, beats: Path, program_exit: Path) -> dict[str, str]:
    environment = dict(os.environ) | spec.environment
    if spec.by_local_rank:
        environment |= spec.by_local_rank[spec.local_rank]
    # `python` is the Python that runs the launcher, even if no virtual environment is active.
    path = environment.get("PATH", os.defpath).split(os.pathsep)
    own = os.path.dirname(sys.executable)
    environment["PATH"] = os.pathsep.join([own, *(entry for entry in path if entry != own)])
    if spec.raw:
        # Removed with the directory: an mpirun that is killed leaves its temporary files.
        environment["TMPDIR"] = str(beats.parent)
    else:
        environment[heartbeat.VARIABLE] = str(beats)
        environment[_PROGRAM_EXIT] = str(program_exit)
        environment["LAUNCHER_RANK"] = str(spec.rank)
        environment["LAUNCHER_LOCAL_RANK"] = str(spec.local_rank)
        modules = [_STARTUP, environment.get("PYTHONPATH", "")]
        environment["PYTHONPATH"] = os.pathsep.join(filter(None, modules))
    return environment


def reap() -> dict[int, int]:
    """Wait statuses of every child, own or adopted, that has ended since the last call."""
    ended: dict[int, int] = {}
    while True:
        try:
            pid, status = os.waitpid(-1, os.WNOHANG)
        except ChildProcessError:
            return ended
        if pid == 0:
            return ended
        ended[pid] = status


def wake_on_signals(numbers: list[signal.Signals]) -> int:
    """Turns signals into bytes that can be polled for; returns the descriptor to read."""
    reading, writing = os.pipe()
    for descriptor in (reading, writing):
        os.set_blocking(descriptor, False)
    signal.set_wakeup_fd(writing, warn_on_full_buffer=False)
    for number in numbers:
        signal.signal(number, lambda _number, _frame: None)
    return reading
