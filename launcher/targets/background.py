"""The launcher of a submitted job: a separate process, which outlives the terminal."""

import os
import subprocess
import sys
from pathlib import Path

from launcher.errors import exit_code_of
from launcher.runs import layout
from launcher.runs.events import Event
from launcher.spec import JobSpec
from launcher.supervision.stop import StopRequests
from launcher.targets import target_for
from launcher.terminal.lines import Lines

_COMMAND = (
    "import sys; sys.path.insert(0, sys.argv.pop(1)); "
    "from launcher.targets.background import main; main()"
)


def start(spec: JobSpec) -> Path:
    """Starts it; returns the directory of the run. Exits with its code if it cannot start."""
    root = str(Path(__file__).parents[2])
    process = subprocess.Popen(
        [sys.executable, "-c", _COMMAND, root],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        start_new_session=True,
    )
    # Through a pipe: the job's environment may contain secrets, which `ps` would show.
    assert process.stdin is not None
    assert process.stdout is not None
    with process.stdin as pipe:
        pipe.write(spec.model_dump_json().encode())
    answer = process.stdout.readline()
    if not answer:
        sys.exit(process.wait())
    return Path(answer.decode().strip())


def main() -> None:
    """Runs the job given on standard input."""
    spec = JobSpec.model_validate_json(sys.stdin.buffer.read())
    sys.exit(exit_code_of(lambda: _run(spec)))


def _run(spec: JobSpec) -> None:
    stop = StopRequests()
    with stop.listening():
        sys.exit(target_for(spec).run(spec, stop, lambda: _BackgroundLines(spec, quiet=True)))


class _BackgroundLines(Lines):
    """Sends `start` the directory of the run; from then on all output goes to a file there."""

    def __call__(self, event: Event) -> None:
        if event.kind == "run":
            _move_output(Path(event.details["directory"]))
        super().__call__(event)


def _move_output(directory: Path) -> None:
    print(directory, flush=True)
    log = os.open(directory / layout.LAUNCHER_LOG, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    for descriptor in (1, 2):
        os.dup2(log, descriptor)
    os.close(log)
