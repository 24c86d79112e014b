"""One process of the supervisor (an agent, perhaps behind ssh), and the state of its ranks."""

import os
import signal
import subprocess
import time
from collections import deque
from contextlib import suppress
from dataclasses import dataclass, field, replace

from launcher.agent.frames import Decoder, Frame
from launcher.agent.plan import ProcessPlan
from launcher.heartbeat import Beat
from launcher.supervision.causes import Exit

_TAIL_LINES = 20

# Prefixes of variables that a rank must not inherit from a job in which the launcher itself runs.
_VARIABLES_OF_ANOTHER_JOB = (
    "TF_CONFIG",
    "OMPI_COMM_",
    "OMPI_MCA_orte",
    "OMPI_MCA_ess",
    "PMI_",
    "PMIX_",
    "LAUNCHER_",
    "HOROVOD_RANK",
    "HOROVOD_SIZE",
    "HOROVOD_LOCAL_",
    "HOROVOD_CROSS_",
    # Of the tasks that srun starts; with SLURM_JOBID, mpirun would start its daemons by srun.
    *("SLURM_JOBID", "SLURM_NODELIST", "SLURM_STEP", "SLURM_TASK", "SLURM_NTASKS", "SLURM_NPROCS"),
    *("SLURM_PROCID", "SLURM_LOCALID", "SLURM_NODEID", "SLURM_GTIDS", "SLURM_LAUNCH_NODE"),
)


@dataclass
class RankState:
    """What the supervisor judges a rank by, in one attempt: its agent's reports.

    The state that users see is `RankStatus`, from the events that these reports cause.

    `program_exit` is the exit of its program, where known; `exit` that of its process, which may
    be much later: MPI_Finalize waits for the peers.
    """

    rank: int
    host: str
    beat: Beat | None = None
    program_exit: Exit | None = None
    exit: Exit | None = None
    tail: deque[str] = field(default_factory=lambda: deque(maxlen=_TAIL_LINES))

    @property
    def end(self) -> Exit | None:
        """How the rank itself ended, regardless of what ended a process that stayed."""
        if self.program_exit is None or (self.exit is not None and not self.exit.ended_by_others):
            return self.exit
        return replace(self.program_exit, tail=tuple(self.tail))

    @property
    def step(self) -> int | None:
        return None if self.beat is None else self.beat.step


class Member:
    """Starts the process of a plan, sends it its process spec and commands, and reads its reports.

    `last_report` is the monotonic time of the last report. Raises OSError if it cannot be started.
    """

    def __init__(self, plan: ProcessPlan) -> None:
        self.plan = plan
        self.last_report = time.monotonic()
        self.reported = False
        self.transport_tail: deque[str] = deque(maxlen=_TAIL_LINES)
        self._decoder = Decoder()
        self._process = subprocess.Popen(
            plan.argv,
            env=clean_environment(),
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self.output = self._process.stdout.fileno()
        self._input = self._process.stdin.fileno()
        os.set_blocking(self.output, False)
        self.send(plan.process.encode())
        os.set_blocking(self._input, False)

    @property
    def pid(self) -> int:
        return self._process.pid

    def send(self, line: str) -> None:
        """Sends a line, and ignores an error: such a process is ending anyway."""
        with suppress(OSError):
            os.write(self._input, line.encode() + b"\n")

    def read(self) -> tuple[list[Frame], bool]:
        """The frames received since the last call, and whether the output is still open."""
        try:
            data = os.read(self.output, 1 << 16)
        except BlockingIOError:
            return [], True
        if not data:
            return list(self._decoder.close()), False
        self.last_report = time.monotonic()
        return list(self._decoder.feed(data)), True

    def wait(self) -> int:
        """The exit code, once the output is closed; kills a process that does not end."""
        try:
            return self._process.wait(1.0)
        except subprocess.TimeoutExpired:
            self.kill()
            return self._process.wait(5.0)

    def kill(self) -> None:
        """Ends the process itself, with its session: the last resort. May be called twice."""
        with suppress(ProcessLookupError, PermissionError):
            os.killpg(self._process.pid, signal.SIGKILL)

    def close(self) -> None:
        for stream in (self._process.stdin, self._process.stdout):
            assert stream is not None
            with suppress(OSError):
                stream.close()


def clean_environment() -> dict[str, str]:
    """The launcher's own environment without the variables of a job that it may run in."""
    return {
        name: value
        for name, value in os.environ.items()
        if not name.startswith(_VARIABLES_OF_ANOTHER_JOB)
    }
