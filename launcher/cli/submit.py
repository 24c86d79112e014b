"""`launcher submit`: starts a job in the background and returns as soon as it runs."""

import os
import subprocess
import sys
from pathlib import Path
from typing import Annotated

import typer

from launcher.cli.job_flags import supervised, target_of, with_job_flags
from launcher.cli.run import supervise
from launcher.errors import exit_code_of
from launcher.runs import layout
from launcher.spec import JobSpec
from launcher.supervision.stop import StopRequests
from launcher.terminal.words import next_commands

_BACKGROUND = (
    "import sys; sys.path.insert(0, sys.argv.pop(1)); "
    "from launcher.cli.submit import background; background()"
)


def submit(
    spec: JobSpec,
    wait: Annotated[
        bool, typer.Option("--wait", help="On a cluster, stay until it has ended.")
    ] = False,
) -> None:
    """Start a job in the background, watched all the same, and print what to do next."""
    if spec.target == "kubernetes":
        from launcher.cli import cluster_verbs

        cluster_verbs.submit(spec, wait)
        return
    supervised(target_of(spec)).check()
    root = str(Path(__file__).parents[2])
    process = subprocess.Popen(
        [sys.executable, "-c", _BACKGROUND, root],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        start_new_session=True,
    )
    # The job goes through the pipe: its environment may hold what nobody should read in `ps`.
    assert process.stdin is not None
    assert process.stdout is not None
    with process.stdin as pipe:
        pipe.write(spec.model_dump_json().encode())
    answer = process.stdout.readline()
    if not answer:
        raise typer.Exit(process.wait())
    run = Path(answer.decode().strip())
    print(f"{run.name} is running, recorded in {run}")
    for command in next_commands(run.name, str(spec.output), running=True):
        print(f"  {command}")


def background() -> None:
    """The supervisor of a submitted job: answers with its directory, then works on alone."""
    spec = JobSpec.model_validate_json(sys.stdin.buffer.read())
    sys.exit(exit_code_of(lambda: _supervise(spec)))


def _supervise(spec: JobSpec) -> None:
    stop = StopRequests()
    with stop.listening():
        target = supervised(target_of(spec))
        result = supervise(target, stop, quiet=True, begun=_answer)
    sys.exit(result.exit_code)


def _answer(directory: Path) -> None:
    """Tells `submit` where the run is recorded; from then on all words go to a file there."""
    print(directory, flush=True)
    log = os.open(directory / layout.LAUNCHER_LOG, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    for descriptor in (1, 2):
        os.dup2(log, descriptor)
    os.close(log)


command = with_job_flags(submit)
