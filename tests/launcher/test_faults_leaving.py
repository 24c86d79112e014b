"""A rank that exits early without heartbeats is reported as the cause, on every backend."""

import re
import time
from pathlib import Path

import pytest

from tests.launcher.launches import Launch, first_line, note

pytestmark = pytest.mark.multiprocess

PROGRAM = str(Path(__file__).with_name("leaving_program.py"))
LEFT = (
    r"rank 1 on localhost ended with exit code 0 at \d\d:\d\d:\d\d "
    "while its peers were still running"
)


def leave(launch: Launch, backend: str, program: str, how: str, *options: str) -> str:
    """Runs a job whose rank 1 leaves; returns the line on the cause, empty if there is none."""
    once = ["-np", "2", "--backend", backend, "--max-restarts", "0", *options]
    launch.start(once, ["python", PROGRAM, program, how, str(launch.shared)])
    result = launch.finish(80)
    line = first_line(result)
    assert result.returncode == (0 if how == "export" else 1), result.transcript()
    if how == "exit":
        fault = f"a rank that exits 0 early, no heartbeats, {program} under --backend {backend}"
        note(f"{fault} (--exit-timeout 3)", time.time() - launch.fault_at(), result)
    return line


@pytest.mark.timeout(100)
@pytest.mark.parametrize(
    ("backend", "program", "then"),
    [
        ("horovod", "horovod", "; rank 0 failed with exit code 1"),
        ("tf", "tf", "; rank 0 failed with exit code 1"),
        # The process of rank 1 does not end at all: MPI_Finalize waits for the peers.
        ("mpi", "mpi", ", which showed no activity for 3 s"),
        # Either that, or Horovod finalizes MPI below the running all-reduce of rank 0.
        (
            "mpi",
            "horovod",
            "(, which showed no activity for 3 s|; rank 0 was killed by SIG)",
        ),
    ],
)
def test_the_rank_that_exited_early_is_the_cause(
    launch: Launch, backend: str, program: str, then: str
) -> None:
    line = leave(launch, backend, program, "exit", "--exit-timeout", "3")
    cause = launch.cause()
    assert re.match(rf"{LEFT}{then}", cause["summary"]), cause
    assert (cause["rank"], cause["class"], cause["exit_code"]) == (1, "error", 0)
    assert "every rank must take part" in cause["hint"]
    if "no activity" in cause["summary"]:
        assert line.startswith("launcher: warning: rank 1 on localhost ended with exit code 0 at ")
        log = (launch.run / "logs" / "attempt-0" / "rank-0.log").read_text()
        # Horovod may have finalized MPI below rank 0, which then crashes while it is looked at.
        crashed = program == "horovod" and "*** Process received signal ***" in log
        assert "most recent call first" in log or crashed, "where the peer waits"


@pytest.mark.timeout(60)
@pytest.mark.parametrize(
    ("how", "said"),
    [("three", "exit code 3"), ("raise", "exit code 1: ValueError: the cause itself")],
)
def test_a_failure_is_detected_before_mpi_finalize_returns(
    launch: Launch, how: str, said: str
) -> None:
    line = leave(launch, "mpi", "plain mpi", how)
    assert line == f"launcher: error: rank 1 on localhost failed with {said}"


@pytest.mark.timeout(60)
def test_rank_0_may_continue_alone_while_it_prints(launch: Launch) -> None:
    # A third of the limit without activity is a warning, which a busy machine must not cause.
    assert leave(launch, "mpi", "plain mpi", "export", "--exit-timeout", "5").startswith(
        "launcher: succeeded"
    )


@pytest.mark.timeout(60)
def test_a_program_exits_after_its_threads(launch: Launch) -> None:
    source = (
        "import os, threading, time\n"
        "rank = os.environ['LAUNCHER_RANK']\n"
        "thread = threading.Thread(target=time.sleep, args=(5 if rank == '0' else 4,))\n"
        "thread.start(); thread.join() if rank == '0' else None\n"
    )
    options = ["-np", "2", "--backend", "local", "--max-restarts", "0", "--exit-timeout", "3"]
    launch.start(options, ["python", "-c", source])
    result = launch.finish()
    assert result.returncode == 0, result.transcript()
