"""The target `--target slurm`: submits jobs with sbatch, follows and cancels them."""

import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

from launcher.errors import LauncherError, UsageError
from launcher.runs import layout
from launcher.runs.logs import LogReader
from launcher.runs.reader import read_spec
from launcher.spec import JobSpec
from launcher.targets.base import JobStatus, LogQuery, Target, is_of_rank
from launcher.targets.slurm import queue, script, status, submit
from launcher.targets.slurm.queue import SlurmError, UnreachableError
from launcher.targets.slurm.status import SlurmStatus

_FIRST_POLL, _LONGEST_POLL = 1.0, 10.0  # the controller serves many users
_LINE_SECONDS = 0.3
_UNREACHABLE_SECONDS = 600.0
_CLOSING_SECONDS = 60.0  # after the time to save


class SlurmTarget(Target):
    """The cluster whose commands are installed here. All nodes share the output directory.

    Names are those of jobs, which mean the newest one, or Slurm's numbers.
    """

    name = "slurm"

    def flags(self) -> str:
        return super().flags() + self.where.flags("output")

    def check(self, spec: JobSpec) -> None:
        submit.check(spec)

    def render(self, spec: JobSpec) -> str:
        return script.render(spec)

    def submit(self, spec: JobSpec) -> tuple[str, str]:
        number, new = submit.submit(spec)
        log = script.log_file(spec.output, spec.name, number)
        done = "submitted" if new else "the same job is queued or runs already"
        slots = spec.container.slots
        ranks = "a rank" if slots == 1 else f"{slots} ranks"
        request = f"nodes: {spec.ranks // slots}, with {ranks} on each; output: {log}"
        return spec.name, f"Slurm job {number}, {spec.name}: {done}\n  {request}"

    def describe(self, name: str | None) -> JobStatus:
        return self._find(name)

    def follow(self, name: str | None) -> Iterator[JobStatus]:
        """Tolerates a controller that does not answer for ten minutes."""
        job = self._find(name)
        wait, last_answer = _FIRST_POLL, time.monotonic()
        while True:
            yield job
            if job.ended:
                return
            time.sleep(wait)
            wait = min(_LONGEST_POLL, 1.5 * wait)
            try:
                before, job = job, self._find(str(job.id))
            except UnreachableError:
                if time.monotonic() - last_answer > _UNREACHABLE_SECONDS:
                    raise
                continue
            last_answer = time.monotonic()
            if job.state != before.state:
                wait = _FIRST_POLL

    def logs(self, name: str | None, query: LogQuery) -> Iterator[str]:
        """The output of the job, with that of all ranks, from the shared directory."""
        job = self._find(name)
        run = _run_of(self.where.output, job)
        query.refuse("attempt", f"a job has one log for all attempts; each is in {run}/logs")
        query.refuse("worker", "the log has the output of all nodes; use --rank")
        path = script.log_file(self.where.output, job.name, job.id)
        if not path.exists() and not (query.follow and not job.ended):
            raise LauncherError(f"{path} does not exist: {job.summary()}; see --output")
        reader, states = LogReader(path), self.follow(str(job.id))
        for line in _followed(reader, states) if query.follow else reader.lines():
            if query.rank is None or is_of_rank(line, query.rank):
                yield line

    def cancel(self, name: str | None, now: bool) -> str:
        """The ranks of a running job save first, as long as `save_timeout` allows."""
        if name is None:
            raise UsageError(f"expected the name of the job; see: launcher list{self.flags()}")
        job = self._find(name)
        if job.queued is None or job.state in {"succeeded", "stopped", "failed"}:
            return f"{job.name}: {job.state} already"
        number, run = str(job.id), _run_of(self.where.output, job)
        if now or job.state != "running" or not (run / layout.JOURNAL).exists():
            if now and job.state == "running":
                _kill(number)
            with suppress(SlurmError):  # it has ended in the meantime
                queue.command("scancel", number)
            return f"{job.name}: cancelled{'; its ranks are killed' if now else ''}"
        # scancel alone would grant the ranks KillWait (30 s by default).
        _never_again(number)
        queue.command("scancel", "--signal=TERM", number)
        limit = time.monotonic() + read_spec(run).get("save_timeout", 30.0) + _CLOSING_SECONDS
        for job in self._states(number):
            if job.ended:
                break
            if job.state == "queued":  # it was being queued again at that moment
                queue.command("scancel", number)
            if time.monotonic() > limit:
                raise LauncherError(f"{job.name} has not ended; try: launcher cancel --now")
        return f"{job.name}: {job.state}"

    def list(self) -> list[JobStatus]:
        return [*status.jobs(self.where.output)]

    def no_jobs_message(self) -> str:
        return (
            f"no jobs of the launcher in Slurm's queue, nor in {self.where.output}; start one: "
            "launcher submit --target slurm -- COMMAND"
        )

    def _find(self, name: str | None) -> SlurmStatus:
        return status.find(self.where.output, name, self.no_jobs_message())

    def _states(self, number: str) -> Iterator[SlurmStatus]:
        while True:
            yield self._find(number)
            time.sleep(_FIRST_POLL)


def _run_of(output: Path, job: SlurmStatus) -> Path:
    """The directory of the run of the job."""
    return output / f"{job.name}-{job.id}"


def _never_again(number: str) -> None:
    """A time limit or a preemption at this moment must not queue the job again."""
    queue.command("scontrol", "update", f"JobId={number}", "Requeue=0")


def _kill(number: str) -> None:
    """Kills all ranks at once."""
    _never_again(number)
    # For a whole job, scancel would send SIGTERM first, whatever the signal.
    steps = queue.command("squeue", "--noheader", "--steps", f"--jobs={number}", "--format=%i")
    for step in steps.split():
        if step.rpartition(".")[2].isdigit():
            queue.command("scancel", "--signal=KILL", step)


def _followed(reader: LogReader, states: Iterator[JobStatus]) -> Iterator[str]:
    """Lines as they are written, until the job has ended."""
    ended, next_look = False, 0.0
    while True:
        if not ended and time.monotonic() >= next_look:
            ended = next(states).ended
            next_look = time.monotonic() + _FIRST_POLL
        yield from reader.lines()
        if ended:
            return
        time.sleep(_LINE_SECONDS)
