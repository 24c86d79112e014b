"""A job of real ranks in a test: watch it, wait for it with a limit, kill it, read its output.

Every process of a job carries a token in its environment, so that the whole job can be found and
killed afterwards, also the ranks that moved to another session or lost their parent. processes.py
starts jobs.
"""

import json
import re
import signal
import socket
import subprocess
import time
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

import psutil

TOKEN = "TEST_JOB_TOKEN"

# How horovodrun begins every line, in the rank's own file too: "[0]<stdout>:" over Gloo,
# "[1,0]<stdout>:" over MPI, and there before every piece of a line that came in pieces.
_TAG = re.compile(r"\[(?:1,)?\d+\]<std(?:out|err)>:")


class JobTimeoutError(AssertionError):
    """The job outlived its limit and was killed; the message carries what its ranks had printed."""


@dataclass(frozen=True)
class JobResult:
    """How a job ended.

    `stdout` and `stderr` hold one text per rank; `output` is what the launcher itself printed,
    ranks included; `orphans` are the command lines of processes that outlived the launcher.
    """

    returncode: int
    output: str
    stdout: tuple[str, ...]
    stderr: tuple[str, ...]
    seconds: float
    orphans: tuple[str, ...]

    def check(self) -> "JobResult":
        """Returns itself if the job ended with 0; else raises AssertionError with all output."""
        if self.returncode != 0:
            raise AssertionError(f"the job ended with {self.returncode}\n{self.transcript()}")
        return self

    def json(self) -> list:
        """The last line of each rank's stdout, decoded from JSON: how ranks answer a test."""
        self.check()
        try:
            return [json.loads(text.strip().splitlines()[-1]) for text in self.stdout]
        except (IndexError, json.JSONDecodeError) as error:
            raise AssertionError(
                f"a rank's last line is no JSON ({error})\n{self.transcript()}"
            ) from error

    def transcript(self) -> str:
        """All output with a heading per stream, for failure messages."""
        return _transcript(self.output, self.stdout, self.stderr)


@dataclass
class Job:
    """A started job, from `Launcher.start`, for tests that act while the ranks run."""

    processes: list[subprocess.Popen[bytes]]
    directory: Path
    token: str
    size: int
    reserved: list[socket.socket] = field(default_factory=list)
    started: float = field(default_factory=time.monotonic)

    def alive(self) -> list[psutil.Process]:
        """Every living process of the job: launcher, ranks, and whatever they started."""
        return [process for process in psutil.process_iter() if _carries(process, self.token)]

    def rank_process(self, rank: int) -> psutil.Process:
        """The process of one rank. Raises LookupError while it does not run."""
        pythons = {
            process.pid: process
            for process in self.alive()
            if _rank_of(process) == rank and _is_python(process)
        }
        for process in pythons.values():
            # What a rank starts inherits its environment: the rank itself is the topmost.
            if process.ppid() not in pythons:
                return process
        raise LookupError(f"no living process for rank {rank} in {[p.pid for p in self.alive()]}")

    def send_signal(self, number: signal.Signals) -> None:
        """Signals what the user started: the launcher, or each process of a TF_CONFIG cluster."""
        for process in self.processes:
            process.send_signal(number)

    def stdout(self) -> tuple[str, ...]:
        """What each rank has printed on stdout up to now."""
        return self._streams("stdout")

    def wait(self, timeout: float) -> JobResult:
        """Waits until `timeout` seconds after the start, kills what is left, returns the result.

        Raises JobTimeoutError if the launcher had not ended by then.
        """
        deadline = self.started + timeout
        try:
            codes = [
                process.wait(max(0.0, deadline - time.monotonic())) for process in self.processes
            ]
        except subprocess.TimeoutExpired:
            self.kill()
            raise JobTimeoutError(
                f"no end within {timeout:g} s\n{_transcript(*self._printed())}"
            ) from None
        seconds = time.monotonic() - self.started
        orphans = tuple(_command_line(process) for process in self._after_grace())
        self.kill()
        failed = [code for code in codes if code != 0]
        return JobResult(
            failed[0] if failed else 0, *self._printed(), seconds=seconds, orphans=orphans
        )

    def kill(self) -> None:
        """Kills the whole job, whatever session its processes are in. May be called twice."""
        # A process may fork between the look and the kill, so look until none is left.
        for _ in range(50):
            alive = self.alive()
            if not alive:
                break
            for process in alive:
                with suppress(psutil.NoSuchProcess):
                    process.kill()
            psutil.wait_procs(alive, timeout=0.2)
        for started in self.processes:
            started.wait(5)
        for reserved in self.reserved:
            reserved.close()

    def _after_grace(self) -> list[psutil.Process]:
        """Who lives half a second after the launcher: ranks on their way out are no orphans."""
        limit = time.monotonic() + 0.5
        while (alive := self.alive()) and time.monotonic() < limit:
            time.sleep(0.05)
        return alive

    def _streams(self, name: str) -> tuple[str, ...]:
        return tuple(_TAG.sub("", _read(self._stream(rank, name))) for rank in range(self.size))

    def _stream(self, rank: int, name: str) -> Path:
        # mpirun writes 1/rank.0/stdout, horovodrun over Gloo rank.0/stdout; both may pad the rank.
        for path in self.directory.glob(f"**/rank.*/{name}"):
            if int(path.parent.name.removeprefix("rank.")) == rank:
                return path
        return self.directory / f"rank.{rank}" / name

    def _printed(self) -> tuple[str, tuple[str, ...], tuple[str, ...]]:
        return _read(self.directory / "launcher"), self._streams("stdout"), self._streams("stderr")


def _environment(process: psutil.Process) -> dict[str, str]:
    try:
        return process.environ()
    except (psutil.Error, OSError):
        return {}  # Gone, a zombie, or another user's: not ours.


def _carries(process: psutil.Process, token: str) -> bool:
    return _environment(process).get(TOKEN) == token


def _rank_of(process: psutil.Process) -> int | None:
    environment = _environment(process)
    for name in ("OMPI_COMM_WORLD_RANK", "HOROVOD_RANK"):
        if name in environment:
            return int(environment[name])
    if "TF_CONFIG" in environment:
        return int(json.loads(environment["TF_CONFIG"])["task"]["index"])
    return None


def _is_python(process: psutil.Process) -> bool:
    try:
        return Path(process.exe()).name.startswith("python")
    except psutil.Error:
        return False


def _command_line(process: psutil.Process) -> str:
    try:
        return " ".join(process.cmdline())
    except psutil.Error:
        return f"process {process.pid}"


def _read(path: Path) -> str:
    return path.read_text(errors="replace") if path.exists() else ""


def _transcript(output: str, stdout: tuple[str, ...], stderr: tuple[str, ...]) -> str:
    parts = [f"----- launcher -----\n{output}"] if output else []
    for rank, (out, error) in enumerate(zip(stdout, stderr, strict=True)):
        parts.append(f"----- rank {rank}, stdout -----\n{out}")
        parts.append(f"----- rank {rank}, stderr -----\n{error}")
    return "\n".join(parts)
